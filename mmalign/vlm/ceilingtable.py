"""How far each readout can be trusted at each layer: what it reads of tokens of which it is known what they say.

Text stands in the place of an image, then perfect visual tokens, embeddings of random words, and each readout is asked
for the tokens that stand there. The alignment benchmark does the same with words true of the patches of images. See
readout.py for the readouts and control.py for the tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from mmalign.benchmarks import ReadoutKind
from mmalign.vision import Frame
from mmalign.vision.picture import upright_size
from mmalign.vlm import control
from mmalign.vlm.readout import read_right, readout

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.vlm.model import VLM

TEXT = 2048  # tokens of a text, at most
GRID = (6, 6)  # of an image, for a language model alone
FEW = 8  # layers: all are looked at, of deeper models some

Shown = Literal["text", "perfect", "true"]  # true: perfect visual tokens, words true of the patches of real images


@dataclass(frozen=True)
class Ceiling:
    """What one readout reads at one layer of tokens of one kind. share, strict: that it reads right."""

    shown: Shown
    readout: ReadoutKind
    layer: int
    share: float  # in any spelling of the word
    strict: float  # as the very token
    tokens: int  # that count: same-layer reads words alone


def ceiling_table(
    vlm: "VLM", kinds: Sequence[ReadoutKind], layers: Sequence[int], texts: Sequence[str] = ()
) -> list[Ceiling]:
    """The ceilings of some readouts at some layers (0 .. L), on texts where there are any and on random words.

    texts: such that no lens was fitted on; their first TEXT tokens are shown.
    """
    shown: dict[Shown, Tensor | None] = {"text": control.text(vlm, texts)[:TEXT]} if texts else {}
    shown["perfect"] = None
    reads = {kind: readout(vlm, kind, layers) for kind in kinds}
    return [
        Ceiling(name, kind, layer, *right)
        for name, number_N in shown.items()
        for kind, read in reads.items()
        for layer, right in read_right(vlm, read, number_N).items()
    ]


def known(vlm: "VLM", texts: Sequence[str]) -> float:
    """The share of the tokens of texts that their tokenizer knows."""
    chat = vlm.llm.chat
    ids = [i for text in texts for i in chat.plain(text)[len(chat.begin) :]]
    return 1 - ids.count(chat.tokenizer.unk_token_id) / len(ids) if ids else 0.0


def some_layers(depth: int) -> list[int]:
    """The layers that are looked at where nobody names any: all of FEW, of more the first, the last, some between."""
    return list(range(depth + 1)) if depth <= FEW else [0, 1, *(depth * part // 8 for part in (1, 2, 4, 6, 8))]


class Squares:
    """A language model alone, to which every image is GRID squares: all that `Alignment.ceilings` asks for, since
    perfect visual tokens need no encoder."""

    grid = GRID

    def __init__(self, vlm: "VLM") -> None:
        self.vlm = vlm

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vlm, name)

    def frames(self, images: "Sequence[Image]") -> list[Frame]:
        return [Frame("squash", upright_size(image), self.grid) for image in images]
