"""Do visual tokens say what their patches show? The nearest vocabulary token of each, against the data's truth.

Letters: P patches of an image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmalign.benchmarks import Probe, Score, Subject
from mmalign.errors import CheckError, DataError

if TYPE_CHECKING:
    from mmalign.data import Data
    from mmalign.vision import Frame

BATCH = 64  # images per pass


@dataclass
class Comparison:
    """One image: the token nearest to each patch at each layer, and the tokens that would be right; P entries each.

    nearest: layer by layer, from 0, the visual tokens as the adapter makes them.
    """

    key: str
    nearest: list[list[int]]
    right: list[set[int]]
    object: list[bool | None]  # True: an object, False: background, None: neither, or padding
    padding: int = 0  # patches that show no picture

    def patches(self, is_object: bool, layer: int = 0) -> list[tuple[int, set[int]]]:
        """(nearest, right) of the patches of one kind; layer 0: the visual tokens."""
        each = zip(self.nearest[layer], self.right, self.object, strict=True)
        return [(nearest, right) for nearest, right, kind in each if kind is is_object]


class Alignment(Probe):
    """Share of visual tokens whose nearest token (cosine) is a piece of a word true of their patch, in percent.

    Object and background patches are counted apart, for most patches are background; padding is neither.
    `*_shuffled` compares with patches of the same kind in the next image: what a model gains that calls every object
    "large". `distinct` is the number of different nearest tokens. `object_layer_N`: the same of the language model's
    N-th layer, which shows whether BASIC's premise holds (arXiv 2508.06895, figure 2).

    Rows of the vocabulary that no token has are never nearest. data: must know its truth. images: how many of its
    images are looked at, from the first.
    """

    def __init__(self, data: "Data", images: int = 200) -> None:
        if images < 2:
            raise CheckError(f"alignment: images must be at least 2, got {images}")
        self.data, self.images = data, images

    def measure(self, model: Subject) -> Score:
        if model.grid is None:
            raise CheckError(
                "alignment: the model's visual tokens are no patches", fix="an adapter that keeps the grid"
            )
        images = self._compared(model)
        objects, backgrounds = [one.patches(True) for one in images], [one.patches(False) for one in images]
        metrics = {
            "object": percent(hits(objects)),
            "object_shuffled": percent(hits(_shuffled(objects))),
            "background": percent(hits(backgrounds)),
            "background_shuffled": percent(hits(_shuffled(backgrounds))),
            "distinct": len({token for one in images for token in one.nearest[0]}),
        }
        for layer in range(1, len(images[0].nearest)):
            metrics[f"object_layer_{layer}"] = percent(hits([one.patches(True, layer) for one in images]))
        items = {one.key: percent(hits([own])) for one, own in zip(images, objects, strict=True) if own}
        patches = {"object_patches": sum(map(len, objects)), "background_patches": sum(map(len, backgrounds))}
        if padding := sum(one.padding for one in images):
            patches["padding_patches"] = padding
        return Score(metrics, "object", items, {"images": len(images), **patches})

    def _compared(self, model: Subject) -> list[Comparison]:
        references = self._references()
        images: list[Comparison] = []
        for start in range(0, len(references), BATCH):
            part = references[start : start + BATCH]
            pictures = [self.data.image(reference) for _, reference in part]
            nearest = model.nearest_tokens(pictures, range(model.depth + 1))
            layers = [token_BQK[..., 0].tolist() for _, token_BQK in nearest.values()]
            for (key, reference), frame, *own in zip(part, model.frames(pictures), *layers, strict=True):
                images.append(self._comparison(model, frame, key, reference, own))
        return images

    def _references(self) -> list[tuple[str, Any]]:
        """(key, reference) of the first images."""
        found: list[tuple[str, Any]] = []
        for record in self.data:
            found += zip(record.keys, record.images, strict=True)
            if len(found) >= self.images:
                return found[: self.images]
        if len(found) < 2:
            raise DataError(f"alignment: the data has {len(found)} images", fix="a data set with images")
        return found

    def _comparison(
        self, model: Subject, frame: "Frame", key: str, reference: Any, nearest: list[list[int]]
    ) -> Comparison:
        truth, seen = self.data.truth(reference, frame), frame.seen()
        known = sorted({word for words in truth.words for word in words})
        pieces = dict(zip(known, model.pieces(known), strict=True))
        right = [{piece for word in words for piece in pieces[word]} for words in truth.words]
        kinds = truth.object or [True if words else None for words in truth.words]
        kinds = [kind if shown else None for kind, shown in zip(kinds, seen, strict=True)]
        return Comparison(key, nearest, right, kinds, seen.count(False))


Patches = list[tuple[int, set[int]]]


def _shuffled(images: Sequence[Patches]) -> Iterator[Patches]:
    """The nearest tokens of each image with what is right in the next; the n-th patch of a kind with the n-th."""
    for own, other in zip(images, [*images[1:], images[0]], strict=True):
        if other:
            yield [(nearest, other[at % len(other)][1]) for at, (nearest, _) in enumerate(own)]


def hits(images: Iterator[Patches] | Sequence[Patches]) -> list[bool]:
    return [nearest in right for patches in images for nearest, right in patches]


def percent(found: Sequence[bool]) -> float:
    return 100 * sum(found) / len(found) if found else 0.0
