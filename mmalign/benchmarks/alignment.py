"""Do visual tokens say what their patches show? The nearest vocabulary token of each, against the data's truth.

Letters: B images, P patches, D width of the language model, V its vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmalign.benchmarks import Probe, Score, Subject
from mmalign.errors import CheckError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from mmalign.data import Data

BATCH = 64  # images per pass


@dataclass
class Seen:
    """One image: the token nearest to each patch, and the tokens that would be right; P entries each.

    nearest: of the visual tokens; deeper: of what each layer of the language model makes of them.
    """

    key: str
    nearest: list[int]
    deeper: list[list[int]]
    right: list[set[int]]
    object: list[bool | None]  # True: an object, False: background, None: neither

    def patches(self, is_object: bool, layer: int = 0) -> list[tuple[int, set[int]]]:
        """(nearest, right) of the patches of one kind; layer 0: the visual tokens."""
        each = zip([self.nearest, *self.deeper][layer], self.right, self.object, strict=True)
        return [(nearest, right) for nearest, right, kind in each if kind is is_object]


class Alignment(Probe):
    """Share of visual tokens whose nearest token (cosine) is a piece of a word true of their patch, in percent.

    Object and background patches are counted apart, for most patches are background. `*_shuffled` compares with
    patches of the same kind in the next image: what a model gains that calls every object "large". `distinct` is
    the number of different nearest tokens. `object_layer_N`: the same of the language model's N-th layer, which shows
    whether BASIC's premise holds (arXiv 2508.06895, figure 2).

    data: must know its truth. images: how many of its images are looked at, from the first.
    """

    def __init__(self, data: "Data", images: int = 200) -> None:
        if images < 2:
            raise CheckError(f"alignment: images must be at least 2, got {images}")
        self.data, self.images = data, images

    def measure(self, model: Subject) -> Score:
        seen = self._seen(model)
        objects, backgrounds = [one.patches(True) for one in seen], [one.patches(False) for one in seen]
        metrics = {
            "object": percent(hits(objects)),
            "object_shuffled": percent(hits(_shuffled(objects))),
            "background": percent(hits(backgrounds)),
            "background_shuffled": percent(hits(_shuffled(backgrounds))),
            "distinct": len({token for one in seen for token in one.nearest}),
        }
        for layer in range(1, 1 + len(seen[0].deeper)):
            metrics[f"object_layer_{layer}"] = percent(hits([one.patches(True, layer) for one in seen]))
        items = {one.key: percent(hits([own])) for one, own in zip(seen, objects, strict=True) if own}
        patches = {"object_patches": sum(map(len, objects)), "background_patches": sum(map(len, backgrounds))}
        return Score(metrics, "object", items, {"images": len(seen), **patches})

    def _seen(self, model: Subject) -> list[Seen]:
        shown = self._shown()
        found = []
        for at in range(0, len(shown), BATCH):
            part = shown[at : at + BATCH]
            nearest, *deeper = nearest_tokens(model, [self.data.image(reference) for _, reference in part])
            for n, (key, reference) in enumerate(part):
                found.append(self._compared(model, key, reference, nearest[n], [layer[n] for layer in deeper]))
        return found

    def _shown(self) -> list[tuple[str, Any]]:
        """(key, reference) of the first images."""
        found: list[tuple[str, Any]] = []
        for record in self.data:
            found += zip(record.keys, record.images, strict=True)
            if len(found) >= self.images:
                return found[: self.images]
        if len(found) < 2:
            raise DataError(f"alignment: the data has {len(found)} images", fix="a data set with images")
        return found

    def _compared(self, model: Subject, key: str, reference: Any, nearest: list[int], deeper: list[list[int]]) -> Seen:
        truth = self.data.truth(reference, model.grid)
        known = sorted({word for words in truth.words for word in words})
        pieces = dict(zip(known, model.pieces(known), strict=True))
        right = [{piece for word in words for piece in pieces[word]} for words in truth.words]
        return Seen(key, nearest, deeper, right, truth.object or [True if words else None for words in truth.words])


def nearest_tokens(model: Subject, images: Sequence[Any]) -> list[list[list[int]]]:
    """The vocabulary token nearest (cosine) to each visual token of each image, then to what each layer makes of it."""
    from torch.nn.functional import normalize

    embed_VD, _ = model.vocabulary()
    unit_VD = normalize(embed_VD, dim=-1)
    seen: list[Tensor] = [model.visual(images), *model.layers(images)]
    return [(normalize(tokens_BPD, dim=-1) @ unit_VD.T).argmax(-1).tolist() for tokens_BPD in seen]


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
