"""What timm knows of a model before any weight is loaded: the shape of its maps, and whether they can be a grid."""

from typing import Any

import torch
from torch import Tensor, nn

from mmalign.errors import CardError

ANOTHER = "another model, such as vit_base_patch14_dinov2 or convnext_base"


def library() -> Any:
    try:
        import timm
        import timm.data
    except ModuleNotFoundError as err:
        raise CardError("encoders by timm's names need the package timm", fix="pip install mmalign[timm]") from err
    return timm


def skeleton_of(name: str, image_size: int | None) -> tuple[Any, dict[str, Any]]:
    """The model without weights or memory for them, and what it is made with. Convolutions take any image size."""
    options: dict[str, Any] = {"img_size": image_size} if image_size else {}
    with torch.device("meta"):
        try:
            model = create(name, False, options)
        except TypeError:
            options = {}
            model = create(name, False, options)
    if not (getattr(model, "feature_info", None) and hasattr(model, "forward_intermediates")):
        raise CardError(f"timm model {name!r} tells of none of its layers", at="args.model", fix=ANOTHER)
    return model.eval(), options


def create(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    """A CardError where timm cannot; a TypeError for a model that takes no image size."""
    try:
        return library().create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (RuntimeError, OSError, TypeError, ValueError, AssertionError) as err:
        if isinstance(err, TypeError) and "img_size" in str(err):
            raise
        fix = "timm.list_pretrained() has the names, or the network is down"
        raise CardError(f"cannot make timm model {name!r}: {_reason(err)}", fix=fix) from err


def side(model: Any, name: str) -> int:
    """The size of the images that the weights were trained on."""
    _, height, width = library().data.resolve_model_data_config(model)["input_size"]
    if height != width:
        raise CardError(f"{name} was trained on images of {height} x {width}", fix="image_size: a number of pixels")
    return int(height)


def read(model: Any, pixels_B3SS: Tensor, depth: int, norm: bool) -> Tensor:
    """map_BCHW after so many layers. Layers above are not run."""
    options = {"norm": norm, "stop_early": True, "intermediates_only": True}
    (map_BCHW,) = model.forward_intermediates(pixels_B3SS, indices=[depth - 1], **options)
    assert isinstance(map_BCHW, Tensor)
    return map_BCHW


@torch.no_grad()
def shape(skeleton: Any, side: int, depth: int, norm: bool, name: str) -> tuple[int, tuple[int, int]]:
    """C and (rows, columns) of the map after so many layers, from a pass that computes nothing.

    A CardError where the model cannot be read, its map does not tile the image, or the final norm is not there.
    """
    try:
        pixels_B3SS = torch.zeros(1, 3, side, side, device="meta")
        map_BCHW, calls = _counted(skeleton, pixels_B3SS, depth, False)
    except Exception as err:  # whatever a model has against this image size, or against being read at all
        what = f"timm model {name!r} gives no map of an image of {side} pixels: {_reason(err)}"
        raise CardError(what, fix=f"another image_size, or {ANOTHER}") from err
    if norm:
        try:
            map_BCHW, with_norm = _counted(skeleton, pixels_B3SS, depth, True)
        except AssertionError:
            with_norm = calls
        if with_norm == calls:
            what = f"timm model {name!r} has no final norm behind layer {depth} of {len(skeleton.feature_info)}"
            raise CardError(what, at="args.norm", fix="norm: false")
    _, width, rows, columns = map_BCHW.shape
    patch = skeleton.feature_info[depth - 1]["reduction"]
    if rows != side // patch or columns != side // patch:
        what = f"layer {depth} of {name} gives {rows} x {columns} patches of {patch} pixels in an image of {side}"
        raise CardError(what, at="args.image_size", fix=f"a multiple of {patch}, or {ANOTHER}")
    return width, (rows, columns)


def _counted(skeleton: Any, pixels_B3SS: Tensor, depth: int, norm: bool) -> tuple[Tensor, int]:
    """The map, and how many modules that do something were called for it."""
    calls: list[None] = []
    does = [one for one in skeleton.modules() if not isinstance(one, nn.Identity)]
    hooks = [one.register_forward_pre_hook(lambda *_: calls.append(None)) for one in does]
    try:
        return read(skeleton, pixels_B3SS, depth, norm), len(calls)
    finally:
        for hook in hooks:
            hook.remove()


def _reason(err: Exception) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0]
