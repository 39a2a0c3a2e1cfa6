"""What an explorer holds, as small as a page can carry it: words by number, cosines in thousandths, deflated.

Numbers of two or three bytes stand in planes, all lowest bytes first, which deflates better. Letters: see the package.
"""

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmalign.explore import Explorer, Pane, Picture, Ranked, Truth
from mmalign.io import pages
from mmalign.io.visible import visible

UNKNOWN = -(1 << 15)  # a cosine that is no number
KINDS = {None: 0, False: 1, True: 2}


class Words:
    """Texts by number, in the order of their first use; 0 is no word."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {"": 0}

    def __call__(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))

    def list(self) -> list[str]:
        """As they may be shown: see `visible`."""
        return [visible(text) for text in self.numbers]


def packed(explorer: Explorer) -> dict[str, Any]:
    """All of an explorer as JSON; each picture file stands in it once. A ValueError for one that is no PNG."""
    words, files = Words(), Words()
    pictures = [_picture(one, words, files) for one in explorer.pictures]
    shares = {visible(name): [_shares(*layer) for layer in each.items()] for name, each in explorer.shares().items()}
    images = [_image(text) for text in list(files.numbers)[1:]]
    return {
        "told": visible(explorer.told), "measure": visible(explorer.measure),
        "colour": explorer.colour, "words": words.list(), "images": images,
        "pictures": pictures, "shares": shares,
    }  # fmt: skip


def _shares(layer: int, own: Mapping[bool, tuple[int, int]]) -> list[Any]:
    return [layer, {str(KINDS[kind]): share for kind, share in own.items()}]


def _picture(picture: Picture, words: Words, files: Words) -> dict[str, Any]:
    return {
        "name": visible(picture.name),
        "texts": [[visible(what), visible(text)] for what, text in picture.texts],
        "panes": [_pane(pane, words, files) for pane in picture.panes],
    }


def _pane(pane: Pane, words: Words, files: Words) -> dict[str, Any]:
    made = {
        "name": visible(pane.name),
        "image": files(pane.png) - 1,
        "grid": pane.grid,
        "tokens": pane.tokens,
        "layers": list(pane.layers),
        "remarks": [visible(pane.remarks.get(layer, "")) for layer in pane.layers],
        **ranked(list(pane.layers.values()), words),
    }
    if pane.seen is not None:
        made["seen"] = deflated(np.array(pane.seen, np.uint8))
    if pane.labels is not None:
        made["labels"] = ranked([pane.labels], words)
    if pane.attention is not None:
        made["attention"] = [float(f"{share:.4g}") for share in pane.attention]
    return made | (_truth(pane.truth, pane.layers, words) if pane.truth else {})


def _truth(truth: Truth, layers: Iterable[int], words: Words) -> dict[str, Any]:
    """right_LP: 0 where nothing could be right, else 1 for wrong, 2 for right; object_P: 1 background, 2 object."""
    none = [None] * len(truth.words)
    right_LP = [[KINDS[right] for right in truth.right.get(layer, none)] for layer in layers]
    return {
        "truth": [[words(word) for word in own] for own in truth.words],
        "object": deflated(np.array([KINDS[kind] for kind in truth.object], np.uint8)),
        "right": deflated(np.array(right_LP, np.uint8)),
    }


def ranked(layers: Sequence[Ranked], words: Words) -> dict[str, Any]:
    """words_LPK and cosines_LPK of the same number of words for each patch; word 0 where there are fewer."""
    keep = max((len(own) for layer in layers for own in layer), default=0)
    rows = [own for layer in layers for own in layer]
    number_NK, cosine_NK = np.zeros((len(rows), keep), np.uint32), np.zeros((len(rows), keep), np.int32)
    for row, own in enumerate(rows):
        for rank, (word, cosine) in enumerate(own):
            number_NK[row, rank] = words(word)
            cosine_NK[row, rank] = thousandths(cosine)
    wide = 2 if number_NK.max(initial=0) < 1 << 16 else 3
    return {"k": keep, "wide": wide, "word": planes(number_NK, wide), "cosine": planes(cosine_NK + (1 << 15), 2)}


def thousandths(cosine: float) -> int:
    """A cosine or score times 1,000, to the nearest, of 16 bits; UNKNOWN for one that is no number."""
    return UNKNOWN if not math.isfinite(cosine) else max(UNKNOWN + 1, min((1 << 15) - 1, round(cosine * 1000)))


def planes(numbers: Any, wide: int) -> str:
    """Whole numbers of `wide` bytes: their lowest bytes, then the next."""
    return deflated(np.stack([numbers.ravel() >> (8 * place) & 255 for place in range(wide)]).astype(np.uint8))


def deflated(values: Any) -> str:
    """Bytes in zlib's format and base64."""
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()


def _image(text: str) -> Mapping[str, Any]:
    """A PNG file with the pixels of its sides, which stand in its bytes 16 to 24."""
    checked = pages.png(text)
    width, height = struct.unpack(">II", base64.b64decode(checked[:32])[16:24])
    return {"png": checked, "width": width, "height": height}
