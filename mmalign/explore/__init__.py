"""Words on the patches of pictures, to be looked at: what is shown of each picture, by one model or several.

Letters: P patches of a picture (or visual tokens that are no patches), K words of each, L layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Ranked = Sequence[Sequence[tuple[str, float]]]  # words_PK: of every patch, the nearest first, each with its cosine
Right = Sequence[bool | None]  # right_P; None: of this patch nothing could be right


@dataclass
class Truth:
    """What is true of each patch, and whether what was nearest to it is.

    words: P of them. object: True: an object, False: background, None: neither, or padding. right: {layer: right_P}.
    """

    words: Sequence[Sequence[str]]
    object: Sequence[bool | None]
    right: Mapping[int, Right] = field(default_factory=dict)


@dataclass
class Pane:
    """What one model says of a picture.

    name: of the model. png: the picture as its encoder was given it, base64. grid: (rows, columns) of its patches;
    None: tokens are no patches. layers: {layer: words_PK}; 0: as the adapter makes them. seen: whether each patch shows
    picture, not padding; None: all do. labels: words of each patch by a label source, with their scores. attention:
    how much the text looks at each patch, of any sum. remarks: {layer: how far its words can be trusted}.
    """

    name: str
    png: str
    grid: tuple[int, int] | None
    layers: Mapping[int, Ranked]
    seen: Sequence[bool] | None = None
    labels: Ranked | None = None
    attention: Sequence[float] | None = None
    truth: Truth | None = None
    remarks: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """A ValueError where these do not fit each other."""
        patches = self.grid[0] * self.grid[1] if self.grid else self.tokens
        each = {f"layer {layer}": len(words) for layer, words in self.layers.items()}
        optional = {"seen": self.seen, "labels": self.labels, "attention": self.attention}
        each |= {name: len(values) for name, values in optional.items() if values is not None}
        if self.truth:
            each |= {"truth.words": len(self.truth.words), "truth.object": len(self.truth.object)}
            each |= {f"truth.right of layer {layer}": len(right) for layer, right in self.truth.right.items()}
        for name, count in each.items():
            if count != patches:
                raise ValueError(f"{name} of {count} patches, and {self.name or 'the picture'} has {patches}")

    @property
    def tokens(self) -> int:
        """P."""
        shown = next(iter(self.layers.values()), self.labels)
        return len(shown) if shown is not None else 0


@dataclass
class Picture:
    """A picture in the panes of one model or several. texts: what is told of it: (question, ...), (answer, ...)."""

    name: str
    panes: Sequence[Pane]
    texts: Sequence[tuple[str, str]] = ()


@dataclass
class Explorer:
    """Pictures to be looked at, one at a time. told: how a word came to be the nearest. measure: what is written beside
    the words. colour: of the patches at first, where it can be had: cosine, word, truth or attention."""

    pictures: Sequence[Picture]
    told: str = ""
    measure: str = "cosine"
    colour: str = "cosine"

    def shares(self) -> dict[str, dict[int, dict[bool, tuple[int, int]]]]:
        """{pane: {layer: {object or background: (right, of so many)}}} over all pictures, as the alignment metric
        counts."""
        shares: dict[str, dict[int, dict[bool, tuple[int, int]]]] = {}
        for pane in (pane for picture in self.pictures for pane in picture.panes if pane.truth):
            assert pane.truth is not None
            for layer, right_P in pane.truth.right.items():
                own = shares.setdefault(pane.name, {}).setdefault(layer, {})
                for right, kind in zip(right_P, pane.truth.object, strict=True):
                    if right is not None and kind is not None:
                        before = own.get(kind, (0, 0))
                        own[kind] = before[0] + right, before[1] + 1
        return shares
