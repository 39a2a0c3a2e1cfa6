"""Vision encoders of timm, by name: ViTs, whose blocks give rows of patches, and models of stages, which give maps."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors.torch import save_file
from torch import Tensor

from mmalign.errors import CardError, one_of
from mmalign.io import files
from mmalign.vision import FITS, Fit, Frame, Vision, check_pixels, depth, weights
from mmalign.vision.picture import fitted, halved, placed, rgb
from mmalign.vision.skeleton import create, library, read, shape, side, skeleton_of

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "model.safetensors"
OWN: dict[str, Fit] = {"center": "crop", "squash": "squash", "border": "pad"}  # crop_mode of weights: its fit


class TimmVision(Vision):
    """A timm model, read after one of its layers: the blocks of a ViT, or the stages of a ConvNeXt, Swin, Hiera, ResNet
    and others, whose map is the grid. No text tower, and so no dense features; open_clip has those of timm's CLIPs.

    model: timm's name without the tag. pretrained: the tag of its weights. checkpoint: weights in place of the tag's,
    a .safetensors file or a folder with a model.safetensors. layer: -1 the last, -2 the one before, whose map is twice
    as fine where layers are stages; a ResNet's stem is its first. norm: whether the model's final norm is applied
    (SAM's, its neck). fit: how a picture becomes a square, crop, pad or squash; None: as the weights have it.
    image_size: in pixels; None: the size of the weights. random: no weights at all.

    A patch is said to be where its share of the square is. Convolutions that step by two over three columns look beside
    it, by half a patch in the end: ResNet's and FastViT's to the left and up, those of `tf_` models to the right and
    down. ConvNeXt's, Swin's and SAM's do not, Hiera's by a tenth.

    A CardError where one of these does not fit the others, before any weight is loaded.
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
        image_size: int | None = None,
        random: bool = False,
    ) -> None:
        super().__init__()
        one_of("fit", fit, (None, *FITS))
        if not (pretrained or checkpoint or random):
            raise CardError(f"timm model {model!r} without weights", fix="pretrained: a tag, or checkpoint: a file")
        self.name = f"{model}.{pretrained}" if pretrained else model
        self.checkpoint, self.norm = checkpoint, norm
        skeleton, options = skeleton_of(self.name, image_size)
        self.image_size = image_size or side(skeleton, self.name)
        self.layers = len(skeleton.feature_info)
        self.depth = depth(layer, self.layers, self.name)
        self.dim, self.grid = shape(skeleton, self.image_size, self.depth, norm, self.name)
        if checkpoint:
            options["pretrained_cfg_overlay"] = {"file": weights.file(checkpoint, FILE)}
        self.tower: Any = create(self.name, not random, options)
        self.data_config: dict[str, Any] = library().data.resolve_model_data_config(self.tower)
        self.fit = fit or OWN[self.data_config.get("crop_mode") or "center"]
        self._transforms: dict[int, Any] = {}

    def pixels(self, image: "Image", scale: int = 1) -> Tensor:
        """pixels_3SS by the mean, deviation and interpolation of the weights. The whole short side is seen: timm's
        crop to a part of it is a habit of classifiers."""
        image = fitted(rgb(image), self.fit, self.data_config["mean"])
        if scale not in self._transforms:
            side, mode = self.image_size * scale, "center" if self.fit == "crop" else "squash"
            config = {**self.data_config, "input_size": (3, side, side), "crop_pct": 1.0, "crop_mode": mode}
            self._transforms[scale] = library().data.create_transform(**config, is_training=False)
        pixels_3SS: Tensor = self._transforms[scale](image)
        return pixels_3SS

    def frame(self, size: tuple[int, int]) -> Frame:
        patch = self.tower.feature_info[self.depth - 1]["reduction"]
        rows, columns = (n * patch / self.image_size for n in self.grid)
        return placed(self.fit, size, self.grid, self.image_size, half=halved).trimmed(rows, columns)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """patches_BPC. Blocks above the chosen one are not run."""
        check_pixels(pixels_B3SS, self.image_size, self.name)
        pixels_B3SS = pixels_B3SS.to(next(self.tower.parameters()).dtype)
        map_BCHW = read(self.tower, pixels_B3SS, self.depth, self.norm)
        if tuple(map_BCHW.shape[2:]) != self.grid:
            raise CardError(f"{self.name} gives a grid of {tuple(map_BCHW.shape[2:])}, not of {self.grid}")
        patches_BPC: Tensor = map_BCHW.flatten(2).transpose(1, 2)
        return patches_BPC

    def checkpoint_activations(self) -> None:
        try:
            self.tower.set_grad_checkpointing(True)
        except AssertionError as err:
            what = f"timm cannot make the activations of {self.name} again"
            raise CardError(what, fix="engine: {checkpointing: false}") from err

    def identity(self) -> str:
        weights_digest = [weights.digest(self.checkpoint, FILE)] if self.checkpoint else []
        return ", ".join([" ".join([self.name, *weights_digest]), f"{self.image_size} px"])

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """model.safetensors and config.json, as timm's own hub folders."""
        state = self.state_dict() if state is None else state
        folder.mkdir(parents=True, exist_ok=True)
        tower_state = {name.removeprefix("tower."): value.contiguous() for name, value in state.items()}
        save_file(tower_state, folder / FILE, {"format": "pt"})
        config = {k: v for k, v in self.tower.pretrained_cfg.items() if isinstance(v, (str, int, float, list, tuple))}
        overrides = {"input_size": [3, self.image_size, self.image_size], "num_classes": 0}
        content = {"architecture": self.name.split(".")[0], "num_classes": 0, "pretrained_cfg": {**config, **overrides}}
        files.write_json(folder / "config.json", content)
