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
from mmalign.vision.dense import available
from mmalign.vision.openclip_towers import Tower, side, tower_of
from mmalign.vision.picture import fitted, halved, placed, rgb

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "open_clip_model.safetensors"
TEXTS = 256  # texts encoded at a time
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
OWN: dict[str, Fit] = {"shortest": "crop", "squash": "squash", "longest": "pad"}  # resize_mode of weights: its fit


class OpenCLIPVision(Vision):
    """The vision tower of an open_clip model, read at one of its layers: those of a ViT, or the stages of a ConvNeXt or
    a ResNet, whose maps are the grid.

    model: open_clip's name. pretrained: the tag of its weights. checkpoint: weights in place of the tag's, a
    .safetensors file or a folder with an open_clip_model.safetensors. layer: -1 the last, -2 the one before, whose map
    is twice as fine where layers are stages. norm: whether the tower's final norm is applied. fit: how pictures become
    squares, crop, pad or squash; None: as the weights have it. dense: how patches come into the joint space, see
    mmalign.vision.dense: plain, value or surgery of a CLIP's ViT, plain of a ConvNeXt's and value of a ResNet's last
    map. random: no weights at all.

    A CardError where one of these does not fit the others.
    """

    fit: Fit

    def __init__(
        self,
        model: str,
        pretrained: str = "",
        checkpoint: str = "",
        layer: int = -2,
        norm: bool = False,
        fit: Literal["crop", "pad", "squash"] | None = None,
        dense: Literal["plain", "value", "surgery"] = "plain",  # `check` reads no alias
        random: bool = False,
    ) -> None:
        super().__init__()
        one_of("fit", fit, (None, *FITS))
        self.name = f"{model}.{pretrained}" if pretrained else model
        self.checkpoint, self.load_args = checkpoint, (model, pretrained, checkpoint, random)
        self.norm, self.dense = norm, dense
        self.tower: Any = load(*self.load_args).visual
        self._reader: Tower = tower_of(self.tower, layer, self.name)
        self.preprocess_config: dict[str, Any] = self.tower.preprocess_cfg
        self.fit = fit or OWN[self.preprocess_config["resize_mode"]]
        self.dim, self.grid, self.image_size = self._reader.dim, self._reader.grid, side(self.tower)
        self.layers = self._reader.layers
        self.depth = depth(layer, self.layers, self.name)
        has_dense = available(dense, self._reader.ways, self._reader.why, self.name)
        self.joint = _open_clip().get_model_config(model)["embed_dim"] if has_dense else 0
        if norm and not self._reader.norms:
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
        return self._patches(self._states(pixels_B3SS, {self.depth})[self.depth])

    def both(self, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """patches_BPC and dense_BPJ of one pass."""
        self._check_joint()
        needs = self._reader.needs(self.dense)
        states = self._states(pixels_B3SS, {self.depth, *needs})
        dense_BPJ = self._reader.dense({number: states[number] for number in needs}, self.dense)
        return self._patches(states[self.depth]), dense_BPJ

    def _states(self, pixels_B3SS: Tensor, numbers: set[int]) -> dict[int, Tensor]:
        """hidden_BTC after each of these numbers of layers."""
        check_pixels(pixels_B3SS, self.image_size, self.name)
        return self._reader.states(pixels_B3SS.to(next(self.tower.parameters()).dtype), sorted(numbers))

    def _patches(self, hidden_BTC: Tensor) -> Tensor:
        patches_BPC = hidden_BTC[:, self._reader.prefix :]
        if (patches := patches_BPC.shape[1]) != self.patches:
            raise CardError(f"{self.name} gives {patches} patches, not a grid of {self.grid[0]} x {self.grid[1]}")
        return self._reader.norm(patches_BPC) if self.norm else patches_BPC

    def _check_joint(self) -> None:
        if not self.joint:
            ways = [f"dense: {way}" for way in self._reader.ways]
            fix = " or ".join([*ways, "take labels from another encoder, such as CLIP"])
            raise CardError(f"{self.name} {self._reader.why}", fix=fix)

    @torch.no_grad()
    def words(self, texts: Sequence[str]) -> Tensor:
        """text_WJ, fp32 unit vectors. The text tower is loaded for this call only."""
        self._check_joint()
        model = load(*self.load_args).eval()
        model.visual = nn.Identity()
        device = next(self.parameters()).device
        model = model.to(device=device, dtype=torch.float32)
        tokenizer = _tokenizer(self.load_args[0])
        rows = []
        for start in range(0, len(texts), TEXTS):
            ids_WT = tokenizer(list(texts[start : start + TEXTS])).to(device)
            rows.append(model.encode_text(ids_WT, normalize=True))
        return torch.cat(rows)

    def checkpoint_activations(self) -> None:
        self._reader.checkpoint_activations()

    def identity(self) -> str:
        weights_digest = [weights.digest(self.checkpoint, FILE)] if self.checkpoint else []
        settings = [f"{self.image_size} px", *[self.dense] * (self.dense != "plain")]
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


def _tokenizer(name: str) -> Any:
    """Of a model's text tower. CLIP's own comes with open_clip; others are downloaded when they are first used."""
    library = _open_clip()
    source = library.get_model_config(name)["text_cfg"].get("hf_tokenizer_name") or "its tokenizer's files"
    try:
        return library.get_tokenizer(name)
    except Exception as err:  # from transformers, huggingface_hub and the network, of many kinds
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        what = f"the text tower of open_clip's {name} needs the tokenizer {source}, which cannot be had: {reason}"
        fix = f"hf download {source}   (once, where the hub can be reached), or labels by an encoder of transformers"
        raise CardError(what, at="args.model", fix=fix) from err


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
