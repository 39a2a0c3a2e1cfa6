"""Vision encoders of timm, by name: ViTs and what is built like them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors.torch import save_file
from torch import Tensor, nn

from mmalign.errors import CardError, one_of
from mmalign.io import files
from mmalign.vision import FITS, Fit, Frame, Vision, check_pixels, depth, weights
from mmalign.vision.picture import fitted, halved, placed, rgb

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "model.safetensors"
OWN: dict[str, Fit] = {"center": "crop", "squash": "squash", "border": "pad"}  # crop_mode of weights: its fit


class TimmVision(Vision):
    """The blocks of a timm model, read after one of them. No text tower.

    model: timm's name without the tag. pretrained: the tag of its weights. checkpoint: weights in place of the tag's,
    a .safetensors file or a folder with a model.safetensors. layer: -1 the last block, -2 the one before. norm: whether
    the model's final norm is applied. fit: see HFVision; None: as the weights have it. image_size: in pixels;
    None: the size of the weights. random: no weights at all. A CardError where one of these does not fit the others.
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
        self.tower: Any = _vit(self.name, checkpoint, image_size, random)
        self.image_size, self.grid = self.tower.patch_embed.img_size[0], tuple(self.tower.patch_embed.grid_size)
        self.dim, self.layers = self.tower.num_features, len(self.tower.blocks)
        self.depth = depth(layer, self.layers, self.name)
        self.data_config: dict[str, Any] = _timm().data.resolve_model_data_config(self.tower)
        self.fit = fit or OWN[self.data_config.get("crop_mode") or "center"]
        self._transforms: dict[int, Any] = {}

    def pixels(self, image: "Image", scale: int = 1) -> Tensor:
        """pixels_3SS by the mean, deviation and interpolation of the weights. The whole short side is seen: timm's
        crop to a part of it is a habit of classifiers."""
        image = fitted(rgb(image), self.fit, self.data_config["mean"])
        if scale not in self._transforms:
            side, mode = self.image_size * scale, "center" if self.fit == "crop" else "squash"
            config = {**self.data_config, "input_size": (3, side, side), "crop_pct": 1.0, "crop_mode": mode}
            self._transforms[scale] = _timm().data.create_transform(**config, is_training=False)
        pixels_3SS: Tensor = self._transforms[scale](image)
        return pixels_3SS

    def frame(self, size: tuple[int, int]) -> Frame:
        rows, columns = (
            n * side / self.image_size for n, side in zip(self.grid, self.tower.patch_embed.patch_size, strict=True)
        )
        return placed(self.fit, size, self.grid, self.image_size, half=halved).trimmed(rows, columns)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """patches_BPC. Blocks above the chosen one are not run."""
        check_pixels(pixels_B3SS, self.image_size, self.name)
        pixels_B3SS = pixels_B3SS.to(next(self.tower.parameters()).dtype)
        options = {"norm": self.norm, "stop_early": True, "intermediates_only": True}
        (map_BCHW,) = self.tower.forward_intermediates(pixels_B3SS, indices=[self.depth - 1], **options)
        if tuple(map_BCHW.shape[2:]) != self.grid:
            raise CardError(f"{self.name} gives a grid of {tuple(map_BCHW.shape[2:])}, not of {self.grid}")
        patches_BPC: Tensor = map_BCHW.flatten(2).transpose(1, 2)
        return patches_BPC

    def checkpoint_activations(self) -> None:
        self.tower.set_grad_checkpointing(True)

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


def _timm() -> Any:
    try:
        import timm
        import timm.data
    except ModuleNotFoundError as err:
        raise CardError("encoders by timm's names need the package timm", fix="pip install mmalign[timm]") from err
    return timm


def _vit(name: str, checkpoint: str, image_size: int | None, random: bool) -> Any:
    timm = _timm()
    options: dict[str, Any] = {"img_size": image_size} if image_size else {}
    if checkpoint:
        options["pretrained_cfg_overlay"] = {"file": weights.file(checkpoint, FILE)}
    try:
        model = timm.create_model(name, pretrained=not random, num_classes=0, **options)
    except (RuntimeError, OSError, TypeError, ValueError) as err:
        reason = str(err).strip().splitlines()[0]
        fix = "timm.list_pretrained() has the names, or the network is down"
        raise CardError(f"cannot make timm model {name!r}: {reason}", fix=fix) from err
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is None or not isinstance(getattr(model, "blocks", None), nn.ModuleList | nn.Sequential):
        raise CardError(f"timm model {name!r} is not built like a ViT", fix="a model with patches and blocks")
    return model
