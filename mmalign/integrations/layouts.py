"""Where an image's visual tokens lie in its picture, for models of transformers that cut pictures up.

A layout is one or two views of the whole picture: of all of it in one square, and of its tiles laid together. What a
model declares tells which layout it has; one whose tokens are not these in number has none that is known.

Letters: P patches of a view, Q visual tokens of an image.
"""

import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, NamedTuple

from mmalign.integrations.declared import Parts
from mmalign.vision import Frame
from mmalign.vision.picture import placed
from mmalign.vision.processor import frame_of, own_fit

Size = tuple[int, int]  # width, height


class View(NamedTuple):
    """A grid over the picture. token_P: which of the image's Q tokens each patch of the frame is."""

    frame: Frame
    token_P: tuple[int, ...]


def views(parts: Parts, size: Size, tokens: int) -> list[View] | None:
    """The views of an upright picture of (width, height) that became so many tokens; None: no layout that is known.

    The first is of all of the picture; a second, where there is one, of its tiles, and finer.
    """
    if any(getattr(parts.model.config, name, None) is not None for name in RESAMPLED):
        return None
    told = _layout(parts)(parts, size, tokens)
    return told if told is not None and _whole(told, tokens) else None


def fixed(parts: Parts) -> int | None:
    """Q, where every picture is one square and so has as many tokens; None where that depends on its size."""
    if _layout(parts) is not _square:
        return None
    tokens = {tokens_of(parts, size) for size in PROBES}
    return tokens.pop() if len(tokens) == 1 else None


def tokens_of_tile(parts: Parts) -> int | None:
    """As many of an image's tokens are one tile, where tiles follow each other and all of the picture is the last."""
    layout = _layout(parts)
    if layout not in (_split, _cropped):
        return None
    return int(parts.processor.image_seq_len if layout is _split else parts.processor.image_seq_length)


def whole_of_tiles(parts: Parts, size: Size, tokens: int) -> View | None:
    """The view of all of a picture that was cut up, of which nobody knows how it was."""
    tile = tokens_of_tile(parts)
    if tile is None or tokens % tile:
        return None
    return _plain(size, (math.isqrt(tile),) * 2, tokens - tile)


PROBES: tuple[Size, ...] = ((64, 64), (96, 32), (500, 700))


def tokens_of(parts: Parts, size: Size) -> int:
    """Q of a picture of (width, height)."""
    from PIL import Image

    picture = Image.new("RGB", size)
    ids = parts.processor(text=[parts.mark], images=[[picture]], return_tensors="pt")["input_ids"]
    return int((ids == parts.image_id).sum())


def _layout(parts: Parts) -> "Layout":
    both = (parts.processor, parts.processor.image_processor)

    def declared(name: str) -> bool:
        return any(getattr(one, name, None) for one in both)

    return next((layout for layout, needs in LAYOUTS if all(map(declared, needs))), _square)


RESAMPLED = ("perceiver_config", "qformer_config")  # tokens that are no patches


def _whole(told: list[View], tokens: int) -> bool:
    """Whether these are tokens of the image, each once; some, such as ends of lines, may be no patch."""
    every = [token for view in told for token in view.token_P]
    return len(every) == len(set(every)) and max(every) < tokens


def _side(value: Any) -> int:
    """Of a square that is declared as a number, a pair, or by its names."""
    if isinstance(value, (list, tuple)):
        return int(value[0])
    if isinstance(value, int):
        return value
    known: Mapping[str, Any] = {name: side for name, side in dict(value).items() if side}
    return int(next(known[name] for name in ("height", "shortest_edge", "longest_edge") if name in known))


def _tower(parts: Parts) -> tuple[int, int]:
    """Pixels of a side of what the tower sees, and of a patch."""
    vision = parts.model.config.vision_config
    return _side(vision.image_size), _side(vision.patch_size)


def _plain(size: Size, grid: tuple[int, int], begin: int, fit: str = "squash") -> View:
    """All of a picture, row by row, from an image's token `begin` on."""
    return View(Frame(fit, size, grid), tuple(range(begin, begin + grid[0] * grid[1])))


# One square


def _square(parts: Parts, size: Size, tokens: int) -> list[View] | None:
    """A token a patch, or as many as the config declares, of patches pooled."""
    vision, images = getattr(parts.model.config, "vision_config", None), parts.processor.image_processor
    if not hasattr(vision, "image_size") or not hasattr(vision, "patch_size"):
        return None
    side, patch = _tower(parts)
    if tokens not in ((side // patch) ** 2, getattr(parts.model.config, "mm_tokens_per_image", None)):
        return None
    rows = math.isqrt(tokens)
    if (side // patch) % rows or rows * rows != tokens:
        return None
    frame = frame_of(images, own_fit(images), size, (rows, rows), side, side // patch // rows * patch)
    return [View(frame, tuple(range(tokens)))]


# Of any size: Qwen-VL


def _dynamic(parts: Parts, size: Size, tokens: int) -> list[View] | None:
    """A picture is resized to whole patches, and squares of them are merged into tokens."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    images, (width, height) = parts.processor.image_processor, size
    factor = images.patch_size * images.merge_size
    least, most = images.size["shortest_edge"], images.size["longest_edge"]
    grid_height, grid_width = smart_resize(height, width, factor, least, most)
    grid = (grid_height // factor, grid_width // factor)
    return [_plain(size, grid, 0, "native")] if grid[0] * grid[1] == tokens else None


# Squares of the tower's size, and all of the picture in one: Idefics 3 and SmolVLM, InternVL


def _tiled(size: Size, rows: int, columns: int, side: int, begin: int) -> View:
    """Tiles of side x side tokens, one after the other, laid together."""
    at = [
        begin + ((y // side) * columns + x // side) * side * side + (y % side) * side + x % side
        for y, x in product(range(rows * side), range(columns * side))
    ]
    return View(Frame("native", size, (rows * side, columns * side)), tuple(at))


def _split(parts: Parts, size: Size, tokens: int) -> list[View] | None:
    """Tiles first, then the whole. The picture is stretched to whole tiles."""
    side = math.isqrt(parts.processor.image_seq_len)
    width, height = size
    _, rows, columns = parts.processor.image_processor.get_number_of_image_patches(height, width, {})
    whole = _plain(size, (side, side), rows * columns * side * side)
    if tokens != (rows * columns + 1) * side * side:
        return None
    return [whole, _tiled(size, rows, columns, side, 0)] if rows * columns else [whole]


def _cropped(parts: Parts, size: Size, tokens: int) -> list[View] | None:
    """Tiles first, then a thumbnail, where there is more than one tile."""
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    images, (width, height) = parts.processor.image_processor, size
    side = math.isqrt(parts.processor.image_seq_length)
    tile = (_side(images.size),) * 2
    columns, rows = get_optimal_tiled_canvas((height, width), tile, images.min_patches, images.max_patches)
    tiles = rows * columns
    if tokens == side * side:
        return [_plain(size, (side, side), 0)]
    if tokens != (tiles + 1) * side * side:
        return None
    return [_plain(size, (side, side), tiles * side * side), _tiled(size, rows, columns, side, 0)]


# The best of some resolutions, without its padding: LLaVA-NeXT and LLaVA-OneVision


def _pinpoints(parts: Parts, size: Size, tokens: int) -> list[View] | None:
    """All of the picture, stretched, then its tiles, in lines with a token behind each.

    A picture that has others beside it is padded to one square, with a token behind it.
    """
    side, patch = _tower(parts)
    rows = side // patch
    if tokens == rows * rows + 1:
        square = placed("pad", size, (rows, rows), side).trimmed(rows * patch / side, rows * patch / side)
        return [View(square, tuple(range(rows * rows)))]
    covered = Frame("squash", size, (rows, rows)).trimmed(rows * patch / side, rows * patch / side)
    tiles = _unpadded(parts, size, side, rows)
    begin, (lines, columns) = rows * rows, tiles.grid
    if tokens != begin + lines * (columns + 1):
        return None
    places = tuple(begin + y * (columns + 1) + x for y, x in product(range(lines), range(columns)))
    return [View(covered, tuple(range(begin))), View(tiles, places)]


def _unpadded(parts: Parts, size: Size, side: int, rows: int) -> Frame:
    """The tiles laid together, without whole lines of padding, and with fewer patches where they are too many."""
    from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
    from transformers.image_utils import ChannelDimension

    (width, height), images = size, parts.processor.image_processor
    best = select_best_resolution((height, width), images.image_grid_pinpoints)
    image = _Shape((3, height, width))
    resized = get_patch_output_size(image, best, input_data_format=ChannelDimension.FIRST)
    grid = [length // side * rows for length in best]  # rows, columns
    edges = []
    over = width / height > grid[1] / grid[0]  # wider than the tiles: padded above and below
    for axis in (0, 1):
        cut = 0
        if over == (axis == 0):
            scale = grid[1 - axis] / size[axis]  # size is width, height
            cut = (grid[axis] - int(round((height, width)[axis] * scale, 7))) // 2
        pixels, before = best[axis] / grid[axis], (best[axis] - resized[axis]) // 2
        edges.append([(number * pixels - before) / resized[axis] for number in (cut, grid[axis] - cut)])
        grid[axis] -= 2 * cut
    most = str(getattr(parts.model.config, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
    if most and (ratio := math.sqrt(grid[0] * grid[1] / (int(most) * rows**2))) > 1.1:
        grid = [int(number // ratio) for number in grid]
    (y0, y1), (x0, x1) = edges
    return Frame("native", size, (grid[0], grid[1]), (x0, y0, x1, y1))


class _Shape:
    """As much of an image as its size is asked of."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape


Layout = Callable[[Parts, Size, int], list[View] | None]
# Each layout, by what the processor and its image processor declare; one square for all others.
LAYOUTS: tuple[tuple[Layout, set[str]], ...] = (
    (_dynamic, {"merge_size", "patch_size", "temporal_patch_size"}),
    (_split, {"max_image_size", "image_seq_len"}),
    (_cropped, {"min_patches", "max_patches", "image_seq_length"}),
    (_pinpoints, {"image_grid_pinpoints"}),
)
