"""What visual tokens say, laid over the pictures: as a table, a page, a DataFrame, or in a notebook."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.errors import CheckError
from mmalign.explore import Explorer, Pane, Picture, page
from mmalign.io import files
from mmalign.io.legible import told
from mmalign.io.pictures import base64_png

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.labels import PatchLabels
    from mmalign.vision.frame import Frame

NEAREST = {
    "input": "whose embedding is nearest",
    "same-layer": "whose state at the same layer is nearest",
    "lens": "whose state is expected nearest by the layer's lens",
}


@dataclass
class LayerWords:
    """One image at one layer. words: of every visual token, the nearest first, each with its cosine."""

    image: str  # its name
    layer: int  # 0: as the adapter makes it; i: hidden_states[i] of transformers
    grid: tuple[int, int] | None  # rows, columns; None where a token is no patch
    words: list[list[tuple[str, float]]]
    seen: list[bool] | None = None  # whether each token's patch shows picture, not padding; None: all do
    ceiling: float | None = None  # the share of perfect visual tokens that is read right here; None: not measured

    @property
    def remark(self) -> str:
        """How far these words can be trusted; empty where nothing is to be said."""
        return told(self.ceiling)


@dataclass
class WordMap:
    """The words nearest to the visual tokens of some images, layer by layer.

    names: of the images. pictures: as the encoder was given them. grid: (rows, columns) of the tokens, None where a
    token is no patch. words[layer][image][token]: (word, cosine) pairs, the nearest first. seen[image][token]: whether
    its patch shows picture; None: all do, or a token is no patch. readout: how layers were read, see readout.py.
    ceiling[layer]: the share of perfect visual tokens that is read right so; of layer 0 not measured. frames: of each
    image, where its patches lie. labels: what a label source says of the same patches, see `with_labels`. attention:
    how much the text looks at each token, see `with_attention`.
    """

    names: list[str]
    pictures: "Sequence[Image]"
    grid: tuple[int, int] | None
    words: dict[int, list[list[list[tuple[str, float]]]]]
    seen: list[list[bool]] | None = None
    readout: str = "input"
    ceiling: Mapping[int, float] = field(default_factory=dict)
    frames: "Sequence[Frame]" = ()
    labels: "PatchLabels | None" = None
    attention: Sequence[Sequence[float]] = ()

    def __iter__(self) -> Iterator[LayerWords]:
        """Image by image, and of each the layers in the order asked for."""
        for number in range(len(self.names)):
            yield from self._layers(number)

    def _layers(self, number: int) -> list[LayerWords]:
        """One image, layer by layer."""
        name = self.names[number]
        seen = self.seen[number] if self.seen else None
        return [
            LayerWords(name, layer, self.grid, images[number], seen, self.ceiling.get(layer))
            for layer, images in self.words.items()
        ]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a word: image, layer, token, row and column of its patch, whether that is padding, rank, word,
        cosine."""
        for one in self:
            for token, words in enumerate(one.words):
                patch = divmod(token, self.grid[1]) if self.grid else (None, None)
                for rank, (word, cosine) in enumerate(words):
                    yield {
                        "image": one.image, "layer": one.layer, "token": token, "row": patch[0], "column": patch[1],
                        "padding": one.seen is not None and not one.seen[token], "rank": rank, "word": word,
                        "cosine": cosine,
                    }  # fmt: skip

    def to_pandas(self) -> Any:
        """The rows as a pandas.DataFrame; a RunError where pandas is not installed."""
        return files.data_frame(list(self.rows()))

    def beside(self, *others: "WordMap", names: Sequence[str] = ()) -> "SideBySide":
        """This and what other models say of the same images, in panes of one page. names: of the models.

        A CheckError where others are of other images, or names are not one for each.
        """
        return SideBySide([self, *others], names)

    def with_labels(self, labels: "PatchLabels") -> "WordMap":
        """The same, and on each patch the words of a label source (`mmalign.label`) for the same images.

        A CheckError where tokens are no patches, or labels are of another number of images.
        """
        if self.grid is None:
            raise CheckError("labels lie on patches, and these visual tokens are none", at="labels")
        if len(labels) != len(self.names):
            raise CheckError(f"labels of {len(labels)} images, and words of {len(self.names)}", at="labels")
        labels = labels.onto(self.frames) if self.frames and labels.frames is not None else labels.on(self.grid)
        return replace(self, labels=labels)

    def with_attention(self, share_BQ: Any) -> "WordMap":
        """The same, and how much each visual token counts by BASIC: `mmalign.attention_share`, of the same images.

        share_BQ: a tensor, or lists of numbers. A CheckError for another number of images or tokens.
        """
        shares = [[float(share) for share in own] for own in share_BQ]
        tokens = [len(one.words) for one in (self._layers(number)[0] for number in range(len(self.names)))]
        if [len(own) for own in shares] != tokens:
            what = f"shares of {[len(own) for own in shares]} tokens, and the images have {tokens}"
            raise CheckError(what, at="share_BQ", fix="one for each visual token of each image")
        return replace(self, attention=shares)

    def pane(self, number: int, name: str = "") -> Pane:
        """What is said of one image, for an explorer; `name` is the model's."""
        layers = self._layers(number)
        return Pane(
            name,
            base64_png(self.pictures[number]),
            self.grid,
            {one.layer: one.words for one in layers},
            layers[0].seen if layers else None,
            _ranked(self.labels, number) if self.labels else None,
            self.attention[number] if self.attention else None,
            remarks={one.layer: one.remark for one in layers},
        )

    @property
    def told(self) -> str:
        """How its words came to be the nearest, for a reader."""
        return (
            f"On each visual token, the word {NEAREST[self.readout]} by cosine, of those it was compared with. "
            "The picture is what the encoder was given."
        )

    def html(self, title: str = "What visual tokens say", whole: bool = True, below: str = "") -> str:
        """A page that needs nothing else; not `whole`: a piece of one. below: a piece of ours that ends it."""
        return SideBySide([self]).html(title, whole, below)

    def save(self, target: str | Path, title: str = "What visual tokens say", below: str = "") -> None:
        """Write the page, whole or not at all. below: see `html`."""
        files.write(Path(target), self.html(title, below=below))

    def _repr_html_(self) -> str:
        return self.html(whole=False)


@dataclass
class SideBySide:
    """What several models say of the same images; see `WordMap.beside`."""

    maps: Sequence[WordMap]
    names: Sequence[str] = ()  # of the models; none: their numbers

    def __post_init__(self) -> None:
        first = self.maps[0]
        if odd := next((one for one in self.maps if one.names != first.names), None):
            raise CheckError(f"words of the images {odd.names} beside those of {first.names}", at="others")
        if self.names and len(self.names) != len(self.maps):
            raise CheckError(f"{len(self.names)} names of {len(self.maps)} models", at="names")

    def html(self, title: str = "What visual tokens say", whole: bool = True, below: str = "") -> str:
        """A page that needs nothing else, a pane for each model; not `whole`: a piece of one. below: as in WordMap."""
        numbers = [str(number) for number in range(1, len(self.maps) + 1)] if len(self.maps) > 1 else [""]
        models = list(zip(self.maps, self.names or numbers, strict=True))
        pictures = [
            Picture(image, [words.pane(number, name) for words, name in models])
            for number, image in enumerate(self.maps[0].names)
        ]
        explained = " ".join(dict.fromkeys(words.told for words in self.maps))
        return page.html(Explorer(pictures, explained), title, whole, below)

    def save(self, target: str | Path, title: str = "What visual tokens say", below: str = "") -> None:
        """Write the page, whole or not at all. below: see `html`."""
        files.write(Path(target), self.html(title, below=below))

    def _repr_html_(self) -> str:
        return self.html(whole=False)


def _ranked(labels: "PatchLabels", number: int) -> list[list[tuple[str, float]]]:
    """The words of each patch of one image that has any, best first."""
    rows = zip(labels.words_BPK[number].tolist(), labels.scores_BPK[number].tolist(), strict=True)
    return [[(labels.words[n], score) for n, score in zip(*row, strict=True) if score > 0] for row in rows]
