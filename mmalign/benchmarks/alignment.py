"""Do visual tokens say what their patches show? The nearest token or word of each, against the data's truth.

Letters: P patches of an image.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from mmalign.benchmarks import Probe, ReadoutKind, Score, Subject
from mmalign.benchmarks.some import some
from mmalign.errors import CheckError, DataError, one_of
from mmalign.io.legible import LEGIBLE, legible
from mmalign.io.wordlist import forms, read_words

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from mmalign.data import Data

BATCH = 64  # images per pass
PERFECT = 2048  # object patches that a ceiling is measured on, where there are so many


@dataclass
class Comparison:
    """One image: what would be right for each patch, and what is nearest to it at each layer; P entries each.

    words: true of the patch. right: what it may be nearest to, in any spelling; of an object or the background empty
    where it has no word, or none that could be nearest. strict: of these, the words as the data spells them. nearest:
    layer by layer, from 0, the visual tokens as the adapter makes them.
    """

    key: str
    words: list[tuple[str, ...]]
    object: list[bool | None]  # True: an object, False: background, None: neither, or padding
    padding: int = 0  # patches that show no picture
    right: list[set[int]] = field(default_factory=list)
    strict: list[set[int]] = field(default_factory=list)
    nearest: list[list[int]] = field(default_factory=list)

    def patches(self, is_object: bool, layer: int = 0) -> "Patches":
        """(nearest, right) of the patches of one kind that can be right; layer 0: the visual tokens.

        nearest is -1 where nobody looked yet.
        """
        nearest = self.nearest[layer] if self.nearest else [-1] * len(self.right)
        each = zip(nearest, self.right, self.object, strict=True)
        return [(near, right) for near, right, kind in each if kind is is_object and right]

    def objects(self, nearest: Sequence[int]) -> "Patches":
        """As `patches` of objects, of what is nearest to other visual tokens in the place of the image's."""
        return replace(self, nearest=[list(nearest)]).patches(True)

    def strictly(self, nearest: Sequence[int]) -> "Patches":
        """As `objects`: the same patches, and of what is right the words as the data spells them."""
        each = zip(nearest, self.strict, self.right, self.object, strict=True)
        return [(near, strict) for near, strict, right, kind in each if kind and right]

    def perfect(self, random: Random, others: Sequence[int]) -> list[int]:
        """What stands for each patch in an image that says what it shows: one of its words; of a patch that has none,
        one of some others."""
        each = zip(self.strict, self.right, strict=True)
        return [random.choice(sorted(strict or right) or others) for strict, right in each]


class Alignment(Probe):
    """Share of visual tokens whose nearest token (cosine) is a piece of a word true of their patch, in percent.

    Object and background patches are counted apart, for most patches are background; padding is neither.
    `*_shuffled` compares with patches of the same kind in the next image: what a model gains that calls every object
    "large". `distinct` is the number of different nearest tokens.

    A word counts in any of its spellings: a token that is the word in upper or lower case, with a blank in front or
    without, in singular or plural, is as right as its pieces are. `object_strict` counts the pieces alone (of a list,
    the word itself).

    `object_layer_N`: the same of the language model's N-th layer, which shows whether BASIC's premise holds (arXiv
    2508.06895, figure 2), as far as `ceiling_layer_N` allows: the same again, of the first images of 2,048 object
    patches, where the visual tokens are perfect, each the embedding of a word true of its patch (of a patch whose words
    are not known, of another patch's). readout: of a hidden state the nearest input embedding (input, the papers' way),
    the nearest state of a word at that layer (same-layer), or the word whose state the layer's lens, a linear model of
    it, expects nearest (lens).

    Rows of the vocabulary that no token has are never nearest. data: must know its truth. images: how many of its
    images are looked at, from the first. words: a list, see `read_words`: the nearest of its words instead, each the
    mean of its pieces' embeddings (SEA, section 4.2), has to be true of the patch, upper and lower case alike.

    Patches that nothing could be right for are in no share: `unlisted_patches` are those of objects whose words are
    not in the list, and where the data has no words for the background (COCO), it has no share.
    """

    meanings = {
        "object": ("share of object patches whose nearest word is true of them", "percent", "higher"),
        "object_strict": ("the same without other spellings of a word", "percent", "higher"),
        "object_shuffled": ("the same with the patches of other images: what chance gives", "percent", ""),
        "background": ("share of background patches whose nearest word is true of them", "percent", "higher"),
        "background_shuffled": ("the same with the patches of other images: what chance gives", "percent", ""),
        "distinct": ("how many words are nearest to some patch", "words", ""),
        "object_layer_*": ("share of object patches, read at a layer of the language model", "percent", "higher"),
        "ceiling_layer_*": ("the same of perfect visual tokens: what can be read there at all", "percent", ""),
    }

    def __init__(
        self, data: "Data", images: int = 200, words: str | None = None,
        readout: Literal["input", "same-layer", "lens"] = "input",
    ) -> None:  # fmt: skip
        if images < 2:
            raise CheckError(f"alignment: images must be at least 2, got {images}")
        one_of("readout", readout, get_args(ReadoutKind))
        self.data, self.images, self.readout = data, images, readout
        self.words = read_words(words) if words is not None else None
        self.most: int | None = None  # of these images

    def limited(self, items: int) -> "Alignment":
        limited = copy(self)
        limited.most = max(2, items)
        return limited

    def takes(self) -> int:
        return 6 * min(self.images, self.most or self.images)  # a picture is seen whole, questions share theirs

    def measure(self, model: Subject) -> Score:
        if model.grid is None:
            raise CheckError(
                "alignment: the model's visual tokens are no patches", fix="an adapter that keeps the grid"
            )
        images = self._compared(model)
        kinds = {"object": True, "background": False}
        judged = {name: [one.patches(kind) for one in images] for name, kind in kinds.items()}
        metrics: dict[str, float] = {}
        for name, patches in judged.items():
            if name == "object" or any(patches):
                metrics[name] = percent(hits(patches))
                if name == "object":
                    metrics["object_strict"] = percent(hits([one.strictly(one.nearest[0]) for one in images]))
                metrics[f"{name}_shuffled"] = percent(hits(_shuffled(patches)))
        metrics["distinct"] = len({number for one in images for number in one.nearest[0]})
        layers = range(1, len(images[0].nearest))
        ceilings = self._ceilings(model, images, layers) if layers else {}
        for layer in layers:
            metrics[f"object_layer_{layer}"] = percent(hits([one.patches(True, layer) for one in images]))
            metrics[f"ceiling_layer_{layer}"] = ceilings[layer].share
        objects = judged["object"]
        items = {one.key: percent(hits([own])) for one, own in zip(images, objects, strict=True) if own}
        sums = {
            one.key: (100.0 * sum(hits([own])), float(len(own)))
            for one, own in zip(images, objects, strict=True)
            if own
        }
        counts, notes = _counts(images, sum(map(len, objects))), _notes(ceilings, self.readout)
        return Score(metrics, "object", items, counts, notes, parts={"": sums})

    def first(self, model: Subject, count: int) -> "tuple[list[Image], list[Comparison]]":
        """The first `count` of the images, and what is true and right of each; the model has not looked at them."""
        part = self._references()[:count]
        images = list(self._truths(model, part))
        self._judge(model, images)
        return [self.data.image(reference) for _, reference in part], images

    def _compared(self, model: Subject) -> list[Comparison]:
        """What is right is known for all images before the model looks at any."""
        parts = list(_parts(self._references()))
        images = [one for part in parts for one in self._truths(model, part)]
        self._judge(model, images)
        self._check(images)
        nearest = self._nearest(model, Pictures(self.data, [reference for part in parts for _, reference in part]))
        for one, *own in zip(images, *nearest, strict=True):
            one.nearest = own
        return images

    def _check(self, images: Sequence[Comparison]) -> None:
        """A DataError where no patch could ever be right."""
        if any(one.patches(True) for one in images):
            return
        objects = [words for one in images for words, kind in zip(one.words, one.object, strict=True) if kind]
        if not objects:
            what = f"alignment: the data knows of no object in any patch of {len(images)} images"
            raise DataError(what, fix="more images, or other data")
        first = ", ".join(list(dict.fromkeys(word for words in objects for word in words))[:3])
        where = "is in the list" if self.words else "is spelled by the model's tokenizer"
        what = f"alignment: none of the words of {len(objects)} object patches {where}: {first}"
        raise DataError(what, fix="words: a list with the data's own words")

    def _nearest(self, model: Subject, pictures: "Sequence[Image]") -> list[list[list[int]]]:
        """Layer by layer, what is nearest to each visual token of each picture."""
        depths = range(model.depth + 1)
        if self.words is None:
            nearest = model.nearest_tokens(pictures, depths, readout=self.readout)
        else:
            nearest = model.nearest_listed(pictures, self.words, depths, readout=self.readout)
        return [number_BQK[..., 0].tolist() for _, number_BQK in nearest.values()]

    def ceilings(self, model: Subject, layers: Sequence[int]) -> dict[int, "Ceiling"]:
        """What is read right at some layers (0 .. L) of perfect visual tokens, words true of the patches of the data's
        images; the model need not see them."""
        images = [one for part in _parts(self._references()) for one in self._truths(model, part)]
        self._judge(model, images)
        self._check(images)
        return self._ceilings(model, images, layers)

    def _ceilings(self, model: Subject, images: Sequence[Comparison], layers: Sequence[int]) -> dict[int, "Ceiling"]:
        patches = list(accumulate(len(one.patches(True)) for one in images))
        looked = images[: 1 + sum(many < PERFECT for many in patches)]
        random, others = Random(0), sorted({n for one in looked for right in one.right for n in right})
        shown = [one.perfect(random, others) for one in looked]
        right: dict[int, tuple[list[bool], list[bool]]] = {layer: ([], []) for layer in layers}
        for layer, near_BQ in model.nearest_perfect(_tensor(shown), layers, self.words, self.readout).items():
            for one, near in zip(looked, near_BQ.tolist(), strict=True):
                right[layer][0].extend(hits([one.objects(near)]))
                right[layer][1].extend(hits([one.strictly(near)]))
        return {layer: Ceiling(percent(a), percent(b), len(a)) for layer, (a, b) in right.items()}

    def _references(self) -> list[tuple[str, Any]]:
        """(key, reference) of the first images."""
        found: list[tuple[str, Any]] = []
        for record in self.data:
            found += zip(record.keys, record.images, strict=True)
            if len(found) >= self.images:
                return some(found[: self.images], self.most)
        if len(found) < 2:
            raise DataError(f"alignment: the data has {len(found)} images", fix="a data set with images")
        return some(found, self.most)

    def _truths(self, model: Subject, part: "Part") -> Iterator[Comparison]:
        """What is right for the patches of some images; what is nearest is not known yet."""
        frames = model.frames([self.data.image(reference) for _, reference in part])
        for (key, reference), frame in zip(part, frames, strict=True):
            truth, seen = self.data.truth(reference, frame), frame.seen()
            kinds = truth.object or [True if words else None for words in truth.words]
            kinds = [kind if shown else None for kind, shown in zip(kinds, seen, strict=True)]
            yield Comparison(key, truth.words, kinds, seen.count(False))

    def _judge(self, model: Subject, images: Sequence[Comparison]) -> None:
        """What is right where each word is true: tokens, or words of the list."""
        known = sorted({word for one in images for words in one.words for word in words})
        if self.words is None:
            strict, right = model.pieces(known), model.spellings(known)
        else:
            strict = [self._listed.get(word.casefold(), []) for word in known]
            right = [[n for form in forms(word) for n in self._listed.get(form, [])] for word in known]
        strict_of, right_of = (dict(zip(known, numbers, strict=True)) for numbers in (strict, right))
        for one in images:
            one.strict = [{number for word in words for number in strict_of[word]} for words in one.words]
            one.right = [{number for word in words for number in right_of[word]} for words in one.words]

    @cached_property
    def _listed(self) -> dict[str, list[int]]:
        """{word of the list: its numbers there}, upper and lower case alike."""
        listed: dict[str, list[int]] = {}
        for number, word in enumerate(self.words or ()):
            listed.setdefault(word.casefold(), []).append(number)
        return listed


class Pictures(Sequence["Image"]):
    """Images of data, opened when they are asked for: a slice holds as many as it is long."""

    def __init__(self, data: "Data", references: Sequence[Any]) -> None:
        self.data, self.references = data, references

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self.data.image(reference) for reference in self.references[at]]
        return self.data.image(self.references[at])


class Ceiling(NamedTuple):
    """Percent of so many object patches, perfect visual tokens in their place, that are read right: in any spelling,
    and strictly."""

    share: float
    strict: float
    patches: int


def _notes(ceilings: Mapping[int, Ceiling], readout: str) -> list[str]:
    """Which layers say nothing, whatever is nearest there."""
    closed = [str(layer) for layer, ceiling in ceilings.items() if not legible(ceiling.share / 100)]
    what = f"cannot be read by {readout}: less than {LEGIBLE:.0%} of perfect visual tokens are read right there"
    return [f"layer{'s' * (len(closed) > 1)} {', '.join(closed)} {what}"] if closed else []


def _counts(images: Sequence[Comparison], judged: int) -> dict[str, int]:
    """Images and patches. judged: patches of objects that can be right."""
    kinds = [kind for one in images for kind in one.object]
    counts = {"images": len(images), "object_patches": judged, "background_patches": kinds.count(False)}
    apart = {
        "unlisted_patches": kinds.count(True) - judged,
        "padding_patches": sum(one.padding for one in images),
    }
    return counts | {name: count for name, count in apart.items() if count}


Patches = list[tuple[int, set[int]]]
Part = Sequence[tuple[str, Any]]  # (key, reference) of some images


def _parts(references: Part) -> Iterator[Part]:
    return (references[start : start + BATCH] for start in range(0, len(references), BATCH))


def _shuffled(images: Sequence[Patches]) -> Iterator[Patches]:
    """The nearest tokens of each image with what is right in the next; the n-th patch of a kind with the n-th."""
    for own, other in zip(images, [*images[1:], images[0]], strict=True):
        if other:
            yield [(nearest, other[at % len(other)][1]) for at, (nearest, _) in enumerate(own)]


def hits(images: Iterator[Patches] | Sequence[Patches]) -> list[bool]:
    return [nearest in right for patches in images for nearest, right in patches]


def _tensor(numbers: Sequence[Sequence[int]]) -> "Tensor":
    import torch  # here, because scoring stored answers does without it

    return torch.tensor(numbers)


def percent(found: Sequence[bool]) -> float:
    return 100 * sum(found) / len(found) if found else 0.0
