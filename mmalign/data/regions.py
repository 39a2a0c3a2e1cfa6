"""Boxes that people drew: many pictures' in a few arrays, and what each patch of a picture shows by them.

Letters: N pictures, M boxes, P patches of a picture.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.data import Truth
from mmalign.io.wordlist import read_words

Array = NDArray[Any]
Names = tuple[str, ...]

COVERS = 0.5  # of the picture that a patch shows: a box over so much of it covers it
SLIVER = 1e-6  # of a patch: less is the rounding of coordinates

# How a stored point (x, y) of a picture, 0 to 1, lies in the upright one, by EXIF's orientation: whether x and y change
# places, and then which of them count from the other side
TURNS = {
    1: (False, False, False), 2: (False, True, False), 3: (False, True, True), 4: (False, False, True),
    5: (True, False, False), 6: (True, True, False), 7: (True, True, True), 8: (True, False, True),
}  # fmt: skip


@dataclass
class Regions:
    """The boxes of N pictures, those of a picture side by side in the order of the file.

    box_M4: x0, y0, x1, y1 in the pixels the file counts in. name_M: number in `names`, the words of what is in a box;
    none of them: nobody said. loose_M: a box around many things at once (COCO's crowds), which says little of a patch.
    """

    start_N: Array  # N + 1: the boxes of picture n are those from start_N[n] to start_N[n + 1]
    box_M4: Array
    name_M: Array
    loose_M: Array
    names: list[Names]

    @classmethod
    def grouped(cls, picture_M: Array, count: int, box_M4: Array, name_M: Array, loose_M: Array,
                names: list[Names]) -> "Regions":  # fmt: skip
        """From boxes in any order. picture_M: whose each is, of `count` pictures."""
        order = np.argsort(picture_M, kind="stable")
        start_N = np.searchsorted(picture_M[order], np.arange(count + 1))
        return cls(start_N, box_M4[order].astype(np.float32), name_M[order].astype(np.int32), loose_M[order], names)

    def said(self, number: int) -> list[str]:
        """The first name of everything in a picture, the largest first, each once."""
        of = self._of(number)
        largest = np.argsort(-_area(self.box_M4[of]), kind="stable")
        return list(dict.fromkeys(names[0] for m in largest if (names := self.names[self.name_M[of][m]])))

    def named(self) -> Array:
        """named_N: whether anything in a picture has a name."""
        named = np.array([bool(names) for names in self.names], bool)
        return np.diff(np.concatenate([[0], np.cumsum(named[self.name_M])])[self.start_N]) > 0

    def truth(self, number: int, size: tuple[float, float], orientation: int, frame: Any) -> Truth:
        """What each patch of a frame of a picture shows, by the smallest box that covers it.

        size: width and height of what the boxes are in. orientation: EXIF's number for how that is turned upright.

        A box covers a patch that shows picture for at least half (`frame.seen`) if it lies over at least half of the
        picture in it. The patch shows what is in the smallest box that covers it: its words are that box's. Where no
        box touches it, it is background, and has no words, for nobody said what that is. Neither, without words:
        a patch that boxes touch and none covers, one whose smallest box is around a crowd, or around what nobody named,
        and padding.
        """
        of = self._of(number)
        box_M4 = turned(self.box_M4[of].astype(float) / (*size, *size), orientation).clip(0, 1)
        order = np.argsort(_area(box_M4), kind="stable")
        share_MP = shares(box_M4[order], np.array(frame.patch_boxes()))
        covers_MP = share_MP >= COVERS - SLIVER
        is_covered_P, is_touched_P = (np.atleast_1d(over_MP.any(0)) for over_MP in (covers_MP, share_MP > SLIVER))
        truth = Truth([])
        for patch, is_seen in enumerate(frame.seen()):
            words = self._words(of.start + order[covers_MP[:, patch].argmax()]) if is_covered_P[patch] else ()
            is_background = is_seen and not is_touched_P[patch]
            truth.words.append(words if is_seen else ())
            truth.object.append(True if words and is_seen else False if is_background else None)
        return truth

    def _of(self, number: int) -> slice:
        return slice(int(self.start_N[number]), int(self.start_N[number + 1]))

    def _words(self, box: int) -> Names:
        return () if self.loose_M[box] else self.names[self.name_M[box]]


def shares(box_M4: Array, patch_P4: Array) -> Array:
    """share_MP: how much of the picture that each patch shows lies in each box; 0 where it shows none. All in 0..1."""
    shown_P4 = patch_P4.clip(0, 1)
    low_MP2 = np.maximum(box_M4[:, None, :2], shown_P4[None, :, :2])
    high_MP2 = np.minimum(box_M4[:, None, 2:], shown_P4[None, :, 2:])
    both_MP: Array = (high_MP2 - low_MP2).clip(0).prod(-1)
    shown_P = _area(shown_P4)
    return both_MP / np.where(shown_P > 0, shown_P, np.inf)


def turned(box_M4: Array, orientation: int) -> Array:
    """Boxes of a stored picture, in 0..1, as they lie in the upright one. orientation: EXIF's number, 1 to 8."""
    swaps, *mirrors = TURNS[orientation]
    point_M22 = box_M4.reshape(-1, 2, 2)
    point_M22 = point_M22[:, :, ::-1] if swaps else point_M22
    point_M22 = np.where(np.array(mirrors), 1 - point_M22, point_M22)
    return np.concatenate([point_M22.min(1), point_M22.max(1)], 1)


def _area(box_M4: Array) -> Array:
    side_M2 = box_M4[:, 2:] - box_M4[:, :2]
    area_M: Array = side_M2[:, 0] * side_M2[:, 1]
    return area_M


def said_as(name: str) -> str:
    """A name as a word: lower case, one blank between its parts, no underscores."""
    return " ".join(name.replace("_", " ").lower().split())


def read_aliases(spec: str) -> dict[str, Names]:
    """{name: all that means the same} of a file with a group on each line, its words divided by commas.

    Visual Genome's object_alias.txt is such a file, and so are the synonyms of COCO's categories that CHAIR counts by.
    A name on several lines means what all of them say. Raises DataError for what is no list.
    """
    groups = [[word for part in line.split(",") if (word := said_as(part))] for line in read_words(spec)]
    alias: dict[str, Names] = {}
    for group in groups:
        alias |= {name: tuple(dict.fromkeys((*alias.get(name, ()), *group))) for name in group}
    return alias


def with_aliases(names: Iterable[str], alias: Mapping[str, Sequence[str]]) -> Names:
    """Names as words, what they are called first and what means the same behind; each once."""
    own = [word for name in names if (word := said_as(name))]
    return tuple(dict.fromkeys([*own, *(same for word in own for same in alias.get(word, ()))]))
