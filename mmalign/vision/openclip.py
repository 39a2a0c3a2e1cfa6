"""Vision encoders of open_clip, by name, with their text towers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmalign.errors import CardError, one_of, suggest
from mmalign.io import files
from mmalign.vision import FITS, Fit, Frame, Vision, check_pixels, depth, weights
from mmalign.vision.alone import alone
from mmalign.vision.picture import fitted, halved, placed, rgb

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "open_clip_model.safetensors"
TEXTS = 256  # texts encoded at a time
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
OWN: dict[str, Fit] = {"shortest": "crop", "squash": "squash", "longest": "pad"}  # resize_mode of weights: its fit
INTERMEDIATES = {"stop_early": True, "intermediates_only": True, "output_fmt": "NLC"}


class OpenCLIPVision(Vision):
    """The vision tower of an open_clip model, read at one of its layers.

    model: open_clip's name. pretrained: the tag of its weights. checkpoint: weights in place of the tag's, a
    .safetensors file or a folder with an open_clip_model.safetensors. layer: -1 the last, -2 the one before. norm:
    whether the tower's final norm is applied. fit: see HFVision; None: as the weights have it. dense: plain or
    value, see HFVision. random: no weights at all. A CardError where one of these does not fit the others.
    """

    fit: Fit

    def __init__(
        self,
        model: str,
        pretrained: str = "",
        checkpoint: str = "",
        layer: int = -2,
        norm: bool = False,
        fit: Fit | None = None,
        dense: Literal["plain", "value"] = "plain",
        random: bool = False,
    ) -> None:
        super().__init__()
        one_of("dense", dense, ("plain", "value"))
        one_of("fit", fit, (None, *FITS))
        self.name = f"{model}.{pretrained}" if pretrained else model
        self.checkpoint, self.load_args = checkpoint, (model, pretrained, checkpoint, random)
        self.norm, self.dense = norm, dense
        self.tower: Any = load(*self.load_args).visual
        self._reader: _NativeTower | _TimmTower = _reader_of(self.tower, self.name)
        self.preprocess_config: dict[str, Any] = self.tower.preprocess_cfg
        self.fit = fit or OWN[self.preprocess_config["resize_mode"]]
        self.dim, self.grid, self.image_size = self._reader.dim, self._reader.grid, self.tower.image_size[0]
        self.joint = 0 if self._reader.no_dense else _open_clip().get_model_config(model)["embed_dim"]
        self.layers = self._reader.layers
        self.depth = depth(layer, self.layers, self.name)
        if norm and self._reader.no_dense and isinstance(self._reader, _NativeTower):
            raise CardError(f"the final norm of {self.name} is behind its pool", at="args.norm", fix="norm: false")

    def pixels(self, image: "Image", scale: int = 1) -> Tensor:
        """pixels_3SS by open_clip's own transform for the weights."""
        image = fitted(rgb(image), self.fit, self.preprocess_config["mean"])
        options = {key: self.preprocess_config[key] for key in PREPROCESSING}
        options["resize_mode"] = "shortest" if self.fit == "crop" else "squash"
        pixels_3SS: Tensor = _open_clip().image_transform(self.image_size * scale, is_train=False, **options)(image)
        return pixels_3SS

    def frame(self, size: tuple[int, int]) -> Frame:
        rows, columns = (n * side / self.image_size for n, side in zip(self.grid, self._reader.patch, strict=True))
        return placed(self.fit, size, self.grid, self.image_size, half=halved).trimmed(rows, columns)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """patches_BPC. Layers above the chosen one are not run."""
        return self._patches(self._hidden_states(pixels_B3SS, {self.depth})[self.depth])

    def both(self, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """patches_BPC and dense_BPJ of one pass."""
        self._check_joint()
        last_depth = self.layers - (self.dense == "value")
        states = self._hidden_states(pixels_B3SS, {self.depth, last_depth})
        last_BPC = states[last_depth]
        if self.dense == "value":
            last_BPC = alone(self._reader.last_layer, last_BPC)
        return self._patches(states[self.depth]), self._reader.to_joint(self._reader.norm(last_BPC))

    def _hidden_states(self, pixels_B3SS: Tensor, numbers: set[int]) -> dict[int, Tensor]:
        """hidden_BPC after each of these numbers of layers."""
        check_pixels(pixels_B3SS, self.image_size, self.name)
        pixels_B3SS = pixels_B3SS.to(next(self.tower.parameters()).dtype)
        states = self._reader.states(pixels_B3SS, [number - 1 for number in sorted(numbers)])
        if (patches := states[0].shape[1]) != self.patches:
            raise CardError(f"{self.name} gives {patches} patches, not a grid of {self.grid[0]} x {self.grid[1]}")
        return dict(zip(sorted(numbers), states, strict=True))

    def _patches(self, hidden_BPC: Tensor) -> Tensor:
        patches_BPC: Tensor = self._reader.norm(hidden_BPC) if self.norm else hidden_BPC
        return patches_BPC

    def _check_joint(self) -> None:
        if not self.joint:
            what = f"{self.name} {self._reader.no_dense}"
            raise CardError(what, fix="take labels from another encoder, such as CLIP")
        if self.dense == "value" and isinstance(self._reader, _TimmTower):
            raise CardError(f"{self.name} is a timm tower, which has no value path here", fix="dense: plain")

    @torch.no_grad()
    def words(self, texts: Sequence[str]) -> Tensor:
        """text_WJ, fp32 unit vectors. The text tower is loaded for this call only."""
        self._check_joint()
        model = load(*self.load_args).eval()
        model.visual = nn.Identity()
        device = next(self.parameters()).device
        model = model.to(device=device, dtype=torch.float32)
        tokenizer = _open_clip().get_tokenizer(self.load_args[0])
        rows = []
        for start in range(0, len(texts), TEXTS):
            ids_WT = tokenizer(list(texts[start : start + TEXTS])).to(device)
            rows.append(model.encode_text(ids_WT, normalize=True))
        return torch.cat(rows)

    def checkpoint_activations(self) -> None:
        self.tower.set_grad_checkpointing(True)

    def identity(self) -> str:
        weights_digest = [weights.digest(self.checkpoint, FILE)] if self.checkpoint else []
        settings = [f"{self.image_size} px", *["value"] * (self.dense == "value")]
        return ", ".join([" ".join([self.name, *weights_digest]), *settings])

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """open_clip_model.safetensors, text tower included, and open_clip_config.json, as open_clip's hub folders."""
        state = self.state_dict() if state is None else state
        model = load(*self.load_args)
        model.visual.load_state_dict({name.removeprefix("tower."): value for name, value in state.items()})
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / FILE)
        name, pretrained, *_ = self.load_args
        model_config = _open_clip().get_model_config(name) | {"quick_gelu": _quick_gelu(name, pretrained)}
        config = {"model_cfg": model_config, "preprocess_cfg": dict(self.preprocess_config)}
        files.write_json(folder / "open_clip_config.json", config)


def load(name: str, pretrained: str, checkpoint: str, random: bool) -> Any:
    """The whole model, text tower included; a CardError where name, tag and weights do not fit."""
    library = _open_clip()
    if library.get_model_config(name) is None:
        raise CardError(f"open_clip has no model {name!r}", at="args.model", fix=suggest(name, library.list_models()))
    tags = library.list_pretrained_tags_by_model(name)
    if pretrained and pretrained not in tags:
        what = f"open_clip has no weights {pretrained!r} for {name}"
        raise CardError(what, at="args.pretrained", fix=suggest(pretrained, tags))
    if not (pretrained or checkpoint or random):
        raise CardError(f"open_clip model {name!r} without weights", fix=f"pretrained: {suggest('', tags)}")
    config = library.get_pretrained_cfg(name, pretrained) or {}
    preprocess_config = {key: config[key] for key in PREPROCESSING if config.get(key)}
    tag = None if checkpoint or random else pretrained
    try:
        model = library.create_model(
            name, tag, force_quick_gelu=_quick_gelu(name, pretrained), force_preprocess_cfg=preprocess_config
        )
        if checkpoint:
            library.load_checkpoint(model, weights.file(checkpoint, FILE))
    except (RuntimeError, OSError, ValueError) as err:
        reason = str(err).strip().splitlines()[0]
        raise CardError(f"cannot load open_clip model {name!r}: {reason}", fix="the network may be down") from err
    return model


def _quick_gelu(name: str, pretrained: str) -> bool:
    """Whether the weights were trained with OpenAI's approximate GELU; open_clip only warns where its name lacks it."""
    config = _open_clip().get_pretrained_cfg(name, pretrained) or {}
    return bool(config.get("quick_gelu") or _open_clip().get_model_config(name).get("quick_gelu"))


def _open_clip() -> Any:
    try:
        import open_clip
    except ModuleNotFoundError as err:
        fix = "pip install mmalign[openclip]"
        raise CardError("encoders by open_clip's names need the package open_clip_torch", fix=fix) from err
    return open_clip


class _NativeTower:
    """How open_clip's own ViTs are read. no_dense: why there are no dense features, empty where there are."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.dim, self.grid, self.layers = visual.transformer.width, tuple(visual.grid_size), visual.transformer.layers
        self.patch: tuple[int, int] = tuple(visual.patch_size)
        pools = getattr(visual, "attn_pool", None) is not None
        self.no_dense = "pools with CoCa's queries, which are not defined for one patch alone" if pools else ""

    def states(self, pixels_B3SS: Tensor, blocks: list[int]) -> list[Tensor]:
        hidden: dict[str, list[Tensor]] = self.visual.forward_intermediates(pixels_B3SS, blocks, **INTERMEDIATES)
        return hidden["image_intermediates"]

    def norm(self, hidden_BPC: Tensor) -> Tensor:
        normed_BPC: Tensor = self.visual.ln_post(hidden_BPC)
        return normed_BPC

    def last_layer(self, one_N1C: Tensor) -> Tensor:
        output_N1C: Tensor = self.visual.transformer.resblocks[-1](one_N1C)
        return output_N1C

    def to_joint(self, last_BPC: Tensor) -> Tensor:
        dense_BPJ: Tensor = last_BPC @ self.visual.proj
        return dense_BPJ


class _TimmTower:
    """How timm's ViTs inside open_clip are read."""

    def __init__(self, visual: Any) -> None:
        self.visual, self.trunk = visual, visual.trunk
        self.dim, self.grid = self.trunk.num_features, tuple(self.trunk.patch_embed.grid_size)
        self.layers, self.patch = len(self.trunk.blocks), tuple(self.trunk.patch_embed.patch_size)
        pool = self.trunk.global_pool  # map: attention, token: takes the first
        defined = pool in ("map", "token")
        self.no_dense = "" if defined else f"pools by {pool!r}, which is not defined for one patch alone"

    def states(self, pixels_B3SS: Tensor, blocks: list[int]) -> list[Tensor]:
        hidden: list[Tensor] = self.trunk.forward_intermediates(pixels_B3SS, blocks, **INTERMEDIATES)
        return hidden

    def norm(self, hidden_BPC: Tensor) -> Tensor:
        normed_BPC: Tensor = self.trunk.norm(hidden_BPC)
        return normed_BPC

    def last_layer(self, one_N1C: Tensor) -> Tensor:
        raise NotImplementedError

    def to_joint(self, last_BPC: Tensor) -> Tensor:
        return alone(lambda one_N1C: self.visual.head(self.trunk.forward_head(one_N1C)), last_BPC)


def _reader_of(visual: Any, name: str) -> _NativeTower | _TimmTower:
    if hasattr(visual, "transformer"):
        return _NativeTower(visual)
    trunk = getattr(visual, "trunk", None)
    if hasattr(trunk, "blocks") and hasattr(getattr(trunk, "patch_embed", None), "grid_size"):
        return _TimmTower(visual)
    raise CardError(f"open_clip model {name!r} is not built like a ViT", fix="a model with patches and blocks")
