"""What visual tokens say, laid over the pictures: as a table, a page, a DataFrame, or in a notebook."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.io import files, pages
from mmalign.io.legible import told

if TYPE_CHECKING:
    from PIL.Image import Image

WIDE = 336  # pixels of the shown picture, at least


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
    ceiling[layer]: the share of perfect visual tokens that is read right so; of layer 0 not measured.
    """

    names: list[str]
    pictures: "Sequence[Image]"
    grid: tuple[int, int] | None
    words: dict[int, list[list[list[tuple[str, float]]]]]
    seen: list[list[bool]] | None = None
    readout: str = "input"
    ceiling: Mapping[int, float] = field(default_factory=dict)

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

    def html(self, title: str = "What visual tokens say", whole: bool = True, below: str = "") -> str:
        """A page that needs nothing else; not `whole`: a piece of one. below: a piece of ours that ends it."""
        pictures = [
            {"name": self.names[number], "png": png(picture), "layers": self._layers(number)}
            for number, picture in enumerate(self.pictures)
        ]
        return pages.page(
            "mmalign.vlm", "wordmap.html", title=title, pictures=pictures, wide=WIDE, whole=whole, readout=self.readout,
            below=below,
        )  # fmt: skip

    def save(self, target: str | Path, title: str = "What visual tokens say", below: str = "") -> None:
        """Write the page, whole or not at all. below: see `html`."""
        files.write(Path(target), self.html(title, below=below))

    def _repr_html_(self) -> str:
        return self.html(whole=False)


def png(picture: "Image") -> str:
    """A picture's PNG file in base64."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
