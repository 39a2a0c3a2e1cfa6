"""Vision encoders of open_clip, by name, with their text towers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmalign.errors import CardError, one_of, suggest
from mmalign.io import files
from mmalign.vision import Vision, check_pixels, depth, weights
from mmalign.vision.alone import alone
from mmalign.vision.picture import middle, rgb, square

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "open_clip_model.safetensors"
TEXTS = 256  # texts encoded at a time


class OpenCLIPVision(Vision):
    """The vision tower of an open_clip model, read at one of its layers.

    model: open_clip's name. pretrained: the tag of its weights. checkpoint: weights in place of the tag's, a
    .safetensors file or a folder with an open_clip_model.safetensors. layer: -1 the last, -2 the one before. norm:
    whether the tower's final norm is applied. pad: pad images to a square with the mean colour first. dense: plain or
    value, see HFVision. random: no weights at all.
    """

    def __init__(
        self,
        model: str,
        pretrained: str = "",
        checkpoint: str = "",
        layer: int = -2,
        norm: bool = False,
        pad: bool = False,
        dense: Literal["plain", "value"] = "plain",
        random: bool = False,
    ) -> None:
        super().__init__()
        one_of("dense", dense, ("plain", "value"))
        self.name = f"{model}.{pretrained}" if pretrained else model
        self.checkpoint, self.source = checkpoint, (model, pretrained, checkpoint, random)
        self.norm, self.pad, self.dense = norm, pad, dense
        whole = load(*self.source)
        self.tower: Any = whole.visual
        self._read: _Native | _Timm = _reader(self.tower, self.name)
        self._config: dict[str, Any] = self.tower.preprocess_cfg
        self.dim, self.grid, self.image_size = self._read.dim, self._read.grid, self.tower.image_size[0]
        self.joint = 0 if self._read.lacks else _open_clip().get_model_config(model)["embed_dim"]
        self.layers = self._read.layers
        self.depth = depth(layer, self.layers, self.name)
        if norm and self._read.lacks and isinstance(self._read, _Native):
            raise CardError(f"the final norm of {self.name} is behind its pool", at="args.norm", fix="norm: false")

    def pixels(self, image: "Image", scale: int = 1) -> Tensor:
        """pixels_3SS by open_clip's own transform for the weights."""
        image = square(rgb(image), self._config["mean"]) if self.pad else middle(rgb(image))
        how = {key: self._config[key] for key in ("mean", "std", "interpolation", "resize_mode")}
        pixels_3SS: Tensor = _open_clip().image_transform(self.image_size * scale, is_train=False, **how)(image)
        return pixels_3SS

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """patches_BPC. Layers above the chosen one are not run."""
        return self._patches(self._states(pixels_B3SS, {self.depth})[self.depth])

    def both(self, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """patches_BPC and dense_BPJ of one pass."""
        self._check_joint()
        last = self.layers - (self.dense == "value")
        states = self._states(pixels_B3SS, {self.depth, last})
        last_BPC = states[last]
        if self.dense == "value":
            last_BPC = alone(self._read.last, last_BPC)
        return self._patches(states[self.depth]), self._read.join(self._read.norm(last_BPC))

    def _states(self, pixels_B3SS: Tensor, wanted: set[int]) -> dict[int, Tensor]:
        """patches_BPC after so many layers, for every number wanted."""
        check_pixels(pixels_B3SS, self.image_size, self.name)
        pixels_B3SS = pixels_B3SS.to(next(self.tower.parameters()).dtype)
        found = self._read.states(pixels_B3SS, [number - 1 for number in sorted(wanted)])
        if (patches := found[0].shape[1]) != self.patches:
            raise CardError(f"{self.name} gives {patches} patches, not a grid of {self.grid[0]} x {self.grid[1]}")
        return dict(zip(sorted(wanted), found, strict=True))

    def _patches(self, hidden_BPC: Tensor) -> Tensor:
        patches_BPC: Tensor = self._read.norm(hidden_BPC) if self.norm else hidden_BPC
        return patches_BPC

    def _check_joint(self) -> None:
        if not self.joint:
            raise CardError(f"{self.name} {self._read.lacks}", fix="take labels from another encoder, such as CLIP")
        if self.dense == "value" and isinstance(self._read, _Timm):
            raise CardError(f"{self.name} is a timm tower, which has no value path here", fix="dense: plain")

    @torch.no_grad()
    def words(self, texts: Sequence[str]) -> Tensor:
        """text_WJ, fp32 unit vectors. The text tower is loaded for this call only."""
        self._check_joint()
        whole = load(*self.source).eval()
        whole.visual = nn.Identity()
        device = next(self.parameters()).device
        whole = whole.to(device=device, dtype=torch.float32)
        tokenizer = _open_clip().get_tokenizer(self.source[0])
        rows = []
        for start in range(0, len(texts), TEXTS):
            ids_WT = tokenizer(list(texts[start : start + TEXTS])).to(device)
            rows.append(whole.encode_text(ids_WT, normalize=True))
        return torch.cat(rows)

    def checkpoint_activations(self) -> None:
        self.tower.set_grad_checkpointing(True)

    def identity(self) -> str:
        own = [weights.digest(self.checkpoint, FILE)] if self.checkpoint else []
        settings = [f"{self.image_size} px", *["padded"] * self.pad, *["value"] * (self.dense == "value")]
        return ", ".join([" ".join([self.name, *own]), *settings])

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """open_clip_model.safetensors, text tower included, and open_clip_config.json, as open_clip's hub folders."""
        given = self.state_dict() if state is None else state
        whole = load(*self.source)
        whole.visual.load_state_dict({name.removeprefix("tower."): value for name, value in given.items()})
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in whole.state_dict().items()}, folder / FILE)
        model, pretrained, *_ = self.source
        architecture = _open_clip().get_model_config(model) | {"quick_gelu": _quick_gelu(model, pretrained)}
        files.write_json(
            folder / "open_clip_config.json", {"model_cfg": architecture, "preprocess_cfg": dict(self._config)}
        )


def load(model: str, pretrained: str, checkpoint: str, random: bool) -> Any:
    """The whole model, text tower included."""
    library = _open_clip()
    if library.get_model_config(model) is None:
        raise CardError(f"open_clip has no model {model!r}", at="args.model", fix=suggest(model, library.list_models()))
    tags = library.list_pretrained_tags_by_model(model)
    if pretrained and pretrained not in tags:
        what = f"open_clip has no weights {pretrained!r} for {model}"
        raise CardError(what, at="args.pretrained", fix=suggest(pretrained, tags))
    if not (pretrained or checkpoint or random):
        raise CardError(f"open_clip model {model!r} without weights", fix=f"pretrained: {suggest('', tags)}")
    about = library.get_pretrained_cfg(model, pretrained) or {}
    how = {key: about[key] for key in ("mean", "std", "interpolation", "resize_mode") if about.get(key)}
    tag = None if checkpoint or random else pretrained
    try:
        made = library.create_model(
            model, tag, force_quick_gelu=_quick_gelu(model, pretrained), force_preprocess_cfg=how
        )
        if checkpoint:
            library.load_checkpoint(made, weights.file(checkpoint, FILE))
    except (RuntimeError, OSError, ValueError) as err:
        reason = str(err).strip().splitlines()[0]
        raise CardError(f"cannot load open_clip model {model!r}: {reason}", fix="the network may be down") from err
    return made


def _quick_gelu(model: str, pretrained: str) -> bool:
    """Whether the weights were trained with OpenAI's approximate GELU; open_clip only warns where its name lacks it."""
    about = _open_clip().get_pretrained_cfg(model, pretrained) or {}
    return bool(about.get("quick_gelu") or _open_clip().get_model_config(model).get("quick_gelu"))


def _open_clip() -> Any:
    try:
        import open_clip
    except ModuleNotFoundError as err:
        fix = "pip install mmalign[openclip]"
        raise CardError("encoders by open_clip's names need the package open_clip_torch", fix=fix) from err
    return open_clip


class _Native:
    """How open_clip's own ViTs are read."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.dim, self.grid, self.layers = visual.transformer.width, tuple(visual.grid_size), visual.transformer.layers
        pools = getattr(visual, "attn_pool", None) is not None
        self.lacks = "pools with CoCa's queries, which are not defined for one patch alone" if pools else ""

    def states(self, pixels_B3SS: Tensor, blocks: list[int]) -> list[Tensor]:
        how = {"stop_early": True, "intermediates_only": True, "output_fmt": "NLC"}
        found: list[Tensor] = self.visual.forward_intermediates(pixels_B3SS, blocks, **how)["image_intermediates"]
        return found

    def norm(self, hidden_BPC: Tensor) -> Tensor:
        normed_BPC: Tensor = self.visual.ln_post(hidden_BPC)
        return normed_BPC

    def last(self, one_N1C: Tensor) -> Tensor:
        seen_N1C: Tensor = self.visual.transformer.resblocks[-1](one_N1C)
        return seen_N1C

    def join(self, last_BPC: Tensor) -> Tensor:
        dense_BPJ: Tensor = last_BPC @ self.visual.proj
        return dense_BPJ


class _Timm:
    """How timm's ViTs inside open_clip are read."""

    def __init__(self, visual: Any) -> None:
        self.visual, self.trunk = visual, visual.trunk
        self.dim, self.grid = self.trunk.num_features, tuple(self.trunk.patch_embed.grid_size)
        self.layers = len(self.trunk.blocks)
        pool = self.trunk.global_pool  # map: attention, token: takes the first
        self.lacks = "" if pool in ("map", "token") else f"pools by {pool!r}, which is not defined for one patch alone"

    def states(self, pixels_B3SS: Tensor, blocks: list[int]) -> list[Tensor]:
        how = {"stop_early": True, "intermediates_only": True, "output_fmt": "NLC"}
        found: list[Tensor] = self.trunk.forward_intermediates(pixels_B3SS, blocks, **how)
        return found

    def norm(self, hidden_BPC: Tensor) -> Tensor:
        normed_BPC: Tensor = self.trunk.norm(hidden_BPC)
        return normed_BPC

    def last(self, one_N1C: Tensor) -> Tensor:
        raise NotImplementedError

    def join(self, last_BPC: Tensor) -> Tensor:
        return alone(lambda one_N1C: self.visual.head(self.trunk.forward_head(one_N1C)), last_BPC)


def _reader(visual: Any, name: str) -> _Native | _Timm:
    if hasattr(visual, "transformer"):
        return _Native(visual)
    trunk = getattr(visual, "trunk", None)
    if hasattr(trunk, "blocks") and hasattr(getattr(trunk, "patch_embed", None), "grid_size"):
        return _Timm(visual)
    raise CardError(f"open_clip model {name!r} is not built like a ViT", fix="a model with patches and blocks")
