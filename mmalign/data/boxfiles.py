"""The files that people draw boxes into: COCO's instances and captions, Visual Genome's objects, read into arrays.

Letters: N pictures or elements of a list, M boxes.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np

from mmalign.data import cache
from mmalign.data.elements import elements
from mmalign.data.regions import Array, Names, Regions, with_aliases
from mmalign.errors import DataError
from mmalign.io import document
from mmalign.io.document import Count, Side

log = logging.getLogger(__name__)
FIX = "correct it, or fetch the file again"
FAR = 1e9  # pixels: no picture reaches so far


class CocoImage(TypedDict):
    id: Count
    file_name: str
    width: Side
    height: Side


class CocoAnnotation(TypedDict):
    image_id: Count
    category_id: Count
    bbox: tuple[float, float, float, float]  # x, y, width, height, in pixels
    iscrowd: NotRequired[Literal[0, 1]]


class CocoCategory(TypedDict):
    id: Count
    name: str


class CocoCaption(TypedDict):
    image_id: Count
    caption: str


class VisualGenomeObject(TypedDict):
    names: list[str]
    x: float
    y: float
    w: float
    h: float


class VisualGenomeImage(TypedDict):
    image_id: Count
    objects: list[VisualGenomeObject]


@dataclass
class Drawn:
    """What a file of boxes holds. files: of each picture. size_N2: its width and height; None: the file gives none."""

    id_N: Array
    files: list[str]
    size_N2: Array | None
    regions: Regions


def read_coco(path: str, alias: Mapping[str, Sequence[str]]) -> Drawn:
    """COCO's `instances_*.json`; a DataError for the first thing in it that is not as it should be."""
    files: list[str] = []
    names: list[Names] = []
    images, boxes, categories = _Table(path, "images"), _Table(path, "annotations"), _Table(path, "categories")
    for key, first, batch in elements(cache.plain(path), ("images", "annotations", "categories")):
        if key == "images":
            images.add(_coco_images, batch, CocoImage, first)
            files += [one["file_name"] for one in batch]
        elif key == "annotations":
            boxes.add(_coco_boxes, batch, CocoAnnotation, first)
        else:
            categories.add(_coco_categories, batch, CocoCategory, first)
            names += [with_aliases([one["name"]], alias) for one in batch]
    picture_M = boxes.rows("image_id", images, "id")
    name_M = boxes.rows("category_id", categories, "id")
    size_N2 = images["size", (0, 2)]
    edge_M4 = _edges(boxes["bbox", (0, 4)]).clip(0, size_N2[picture_M][:, [0, 1, 0, 1]])
    _tell_flat(edge_M4, path, "annotations.{}.bbox".format)
    regions = Regions.grouped(picture_M, len(files), edge_M4, name_M, boxes["iscrowd"] > 0, names)
    return Drawn(images["id"], files, size_N2, regions)


def read_visual_genome(path: str, alias: Mapping[str, Sequence[str]]) -> Drawn:
    """Visual Genome's `objects.json`; a DataError for the first thing in it that is not as it should be."""
    images, boxes = _Table(path, ""), _Table(path, "objects")
    number_of: dict[Names, int] = {}
    for _, first, batch in elements(cache.plain(path), ("",)):
        images.add(_visual_genome_images, batch, VisualGenomeImage, first)
        objects = [one for image in batch for one in image["objects"]]
        spelled = [number_of.setdefault(tuple(one["names"]), len(number_of)) for one in objects]
        boxes.keep(name=np.array(spelled, np.int64), bbox=_floats([one[key] for one in objects for key in "xywh"], 4))
    id_N, names = images.once("image_id"), [with_aliases(names, alias) for names in number_of]
    end_N, edge_M4 = np.cumsum(images["objects"]), _edges(boxes["bbox", (0, 4)])
    picture_M, is_loose_M = np.repeat(np.arange(len(id_N)), images["objects"]), np.zeros(len(edge_M4), bool)
    in_picture_M = np.arange(len(edge_M4)) - (end_N - images["objects"])[picture_M]
    _tell_flat(edge_M4, path, lambda m: f"{picture_M[m]}.objects.{in_picture_M[m]}")
    regions = Regions.grouped(picture_M, len(id_N), edge_M4, boxes["name"], is_loose_M, names)
    return Drawn(id_N, [f"{id_}.jpg" for id_ in id_N], None, regions)


def read_captions(path: str) -> dict[int, str]:
    """{picture's id: its first caption} of COCO's `captions_*.json`; a DataError where it is none."""
    captions = _Table(path, "annotations")
    first_of: dict[int, str] = {}
    for _, first, batch in elements(cache.plain(path), ("annotations",)):
        captions.add(_coco_captions, batch, CocoCaption, first)
        for one in batch:
            if text := one["caption"].strip():
                first_of.setdefault(one["image_id"], text)
    return first_of


# Columns of elements, as arrays. They raise for what has not its type: what exactly is looked for afterwards


def _coco_images(batch: list[Any]) -> dict[str, Array]:
    _texts([one["file_name"] for one in batch])
    size_N2 = _wholes([one[key] for one in batch for key in ("width", "height")], least=1).reshape(-1, 2)
    return {"id": _wholes([one["id"] for one in batch]), "size": size_N2}


def _coco_boxes(batch: list[Any]) -> dict[str, Array]:
    if any(len(one["bbox"]) != 4 for one in batch):
        raise ValueError
    crowd_N = _wholes([one.get("iscrowd", 0) for one in batch])
    if crowd_N.max(initial=0) > 1:
        raise ValueError
    return {
        "image_id": _wholes([one["image_id"] for one in batch]),
        "category_id": _wholes([one["category_id"] for one in batch]),
        "bbox": _floats(list(chain.from_iterable(one["bbox"] for one in batch)), 4),
        "iscrowd": crowd_N.astype(np.int8),
    }


def _coco_categories(batch: list[Any]) -> dict[str, Array]:
    _texts([one["name"] for one in batch])
    return {"id": _wholes([one["id"] for one in batch])}


def _coco_captions(batch: list[Any]) -> dict[str, Array]:
    _texts([one["caption"] for one in batch])
    return {"image_id": _wholes([one["image_id"] for one in batch])}


def _visual_genome_images(batch: list[Any]) -> dict[str, Array]:
    objects = [image["objects"] for image in batch]
    _all(objects, list)
    every = list(chain.from_iterable(objects))
    _all(names := [one["names"] for one in every], list)
    _texts(list(chain.from_iterable(names)))
    _floats([one[key] for one in every for key in "xywh"], 4)
    return {"image_id": _wholes([one["image_id"] for one in batch]), "objects": np.array(list(map(len, objects)), int)}


def _all(values: list[Any], *types: type) -> None:
    if not {*map(type, values)} <= {*types}:
        raise TypeError


def _texts(values: list[Any]) -> None:
    _all(values, str)


def _wholes(values: list[Any], least: int = 0) -> Array:
    _all(values, int)
    array = np.array(values, np.int64)
    if array.min(initial=least) < least:
        raise ValueError
    return array


def _floats(values: list[Any], width: int) -> Array:
    _all(values, int, float)
    array = np.array(values, float).reshape(-1, width)
    if not (np.abs(array) < FAR).all():  # nor NaN
        raise ValueError
    return array.astype(np.float32)


def _edges(box_M4: Array) -> Array:
    """x0, y0, x1, y1 of x, y, width, height."""
    return np.concatenate([box_M4[:, :2], box_M4[:, :2] + box_M4[:, 2:]], 1)


class _Table:
    """Columns of one list of a file, put together from batches of its elements. key: of the list; empty: the file is
    the list."""

    def __init__(self, path: str, key: str) -> None:
        self.path, self.key = path, key
        self.parts: dict[str, list[Array]] = defaultdict(list)

    def __getitem__(self, column: "str | tuple[str, tuple[int, ...]]") -> Array:
        """A whole column; of an empty list, of this shape."""
        name, shape = column if isinstance(column, tuple) else (column, (0,))
        return np.concatenate(self.parts[name]) if self.parts[name] else np.zeros(shape, np.int64)

    def keep(self, **columns: Array) -> None:
        for name, part in columns.items():
            self.parts[name].append(part)

    def add(self, read: Callable[[list[Any]], dict[str, Array]], batch: list[Any], kind: Any, first: int) -> None:
        """Keep the columns of a batch, whose first element is of that number; a DataError where some have not their
        type."""
        try:
            self.keep(**read(batch))
        except (TypeError, KeyError, ValueError, OverflowError, AttributeError):
            raise self._misfit(read, batch, kind, first) from None

    def _misfit(
        self, read: Callable[[list[Any]], dict[str, Array]], batch: list[Any], kind: Any, first: int
    ) -> DataError:
        for number, one in enumerate(batch, first):
            if misfit := document.problem(one, kind, self._at(number)):
                return self._error(*misfit)
            try:
                read([one])
            except (ValueError, OverflowError):
                return self._error(self._at(number), f"has a number that is out of range: {document.shown(one)}")
        raise AssertionError("a batch is refused, and none of its elements")

    def _at(self, number: int) -> str:
        return f"{self.key}.{number}".lstrip(".")

    def _error(self, key: str, what: str) -> DataError:
        return DataError(f"{Path(self.path).name} is damaged: {key} {what}", at=f"{self.path}  {key}", fix=FIX)

    def once(self, column: str) -> Array:
        """A column of ids; a DataError where one is there twice."""
        id_N = self[column]
        order = np.argsort(id_N, kind="stable")
        if len(again := order[1:][np.diff(id_N[order]) == 0]):
            number = int(again.min())
            raise self._error(f"{self._at(number)}.{column}", f"is that of an earlier one: {id_N[number]}")
        return id_N

    def rows(self, column: str, other: "_Table", id_: str) -> Array:
        """The number in another list of what a column names by its id; a DataError where it is not there."""
        own_M, id_N = self[column], np.append(other.once(id_), -1)  # which is nobody's, so that there always is one
        order = np.argsort(id_N)
        near_M: Array = order[np.searchsorted(id_N, own_M, sorter=order).clip(max=len(id_N) - 1)]
        is_there_M = id_N[near_M] == own_M
        if not is_there_M.all():
            number = int(is_there_M.argmin())
            what = f"is {own_M[number]}, and no element of {other.key} has that id"
            raise self._error(f"{self._at(number)}.{column}", what)
        return near_M


def _tell_flat(edge_M4: Array, path: str, where: Callable[[int], str]) -> None:
    """Log how many boxes have no area, and where the first is."""
    flat = np.flatnonzero((edge_M4[:, 2:] <= edge_M4[:, :2]).any(1))
    if len(flat):
        what = "%s: %d boxes have no area in their picture and show nothing, the first is %s"
        log.warning(what, Path(path).name, len(flat), where(int(flat[0])))
