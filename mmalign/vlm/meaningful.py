"""How many visual tokens of a picture mean something: BASIC's count, by a rule that needs no reader, with a control.

The paper (arXiv 2508.06895) counts 74 to 217 of 576 visual tokens whose nearest word means something, as judged by a
reader. The rule here is a proxy. A visual token means something where

- its nearest token is a word by itself (`Chat.is_word`, by which BASIC's premise is watched): three letters or more,
  begun as words are begun; of a list, every entry is one;
- that is no function word of English (`wordlist.STOP`);
- it is nearer than by chance: its cosine is above those of 99 % of tokens without meaning.

A token without meaning is a visual token whose coordinates are shuffled, but for its part along the mean direction of
all that it is compared with. So it has the same norm and nearly the same values, and lies as deep in the cone of
embeddings, where everything is near to something; where it points besides is nobody's choice. The control is the share
of such tokens, others than those the bound is taken from, that the rule calls meaningful.

Its limits: it does not know whether a word is true of the picture (the alignment benchmarks do). A word that tokens of
all pictures are near to counts each time (`distinct` tells). Words of other languages and of program code count, words
spelled in several tokens do not. Where some coordinates of the embeddings are far larger than others, a shuffled token
points less to them than a visual token may, and the rule is generous. Tokens that are all alike are one chance, not
many: the toy encoder behind an adapter of random weights had one picture with 33 of 36 near to one word.

On SmolLM2-135M it counts 571 of 576 embeddings of random words; under noise twice as long as they are 404, eight times
as long 5; of tokens in the cone alone 4, though their cosines with the nearest are 0.81.

Letters: N visual tokens of an image, D width of the language model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.benchmarks import ReadoutKind
from mmalign.io.wordlist import STOP
from mmalign.vlm import nearest
from mmalign.vlm.pictures import named
from mmalign.vlm.vocabulary import Nearest, spelled

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.vlm.model import VLM

CHANCE = 0.01  # share of tokens without meaning that come as near to a word as the bound
DRAWN = 512  # of them at least, for the bound, and as many again for the control
SEED = 0


@dataclass
class Meaning:
    """Of the visual tokens of an image at one layer: how many say a word, and how many one that means something.

    tokens: all of them but padding. words: nearest to a word by itself. meaningful: by the rule above. control: the
    share of tokens without meaning that the rule calls meaningful; words_control: that is nearest to a word. cosine:
    the bound. distinct: different nearest words among the meaningful.
    """

    image: str  # its name
    layer: int
    tokens: int
    words: int
    meaningful: int
    distinct: int
    words_control: float
    control: float
    cosine: float

    def __str__(self) -> str:
        """In a line, without the image's name."""
        return (
            f"layer {self.layer}: {self.meaningful} of {self.tokens} tokens mean something, {self.distinct} different "
            f"word{'s' * (self.distinct != 1)} ({self.control:.1%} of tokens without meaning); nearest to a word "
            f"{self.words} ({self.words_control:.1%})"
        )


@torch.no_grad()
def meaningful(
    model: "VLM", images: "Image | Sequence[Image]", layers: Sequence[int], names: Sequence[str] | None,
    words: Sequence[str] | None, kind: ReadoutKind,
) -> list[Meaning]:  # fmt: skip
    """See `VLM.meaningful`."""
    read = nearest.reading(model, kind, layers, words, 1)
    text_of = words.__getitem__ if words else partial(spelled, model.llm.chat.tokenizer)
    says = cache(lambda number: text_of(number).lower() not in STOP)
    judged: list[Meaning] = []
    for name, picture in named(images, names):
        seen_N = torch.tensor(model.frames(picture)[0].seen()) if model.grid else slice(None)
        for layer, hidden_BQD in model.hidden_states(picture, layers).items():
            token_ND = read.seen(layer, hidden_BQD[0][seen_N])
            judged.append(Meaning(name, layer, len(token_ND), *counts(token_ND, read.near[layer], read.word_T, says)))
    return judged


def counts(
    token_ND: Tensor, near: Nearest, word_T: Tensor, says: Callable[[int], bool]
) -> tuple[int, int, int, float, float, float]:
    """The fields of `Meaning` from `words` on. word_T: the numbers of words. says: whether one is no function word."""
    if not len(token_ND):
        return 0, 0, 0, 0.0, 0.0, 1.0
    cosine_N, number_N = (each[:, 0] for each in near(token_ND))
    random = torch.Generator().manual_seed(SEED)
    bound = float(torch.quantile(near(without_meaning(token_ND, near, random))[0][:, 0], 1 - CHANCE))
    control_N, other_N = (each[:, 0] for each in near(without_meaning(token_ND, near, random)))
    own_N = (cosine_N > bound) & _content(number_N, word_T, says)
    chance_N = (control_N > bound) & _content(other_N, word_T, says)
    words, distinct = int(torch.isin(number_N, word_T).sum()), len(set(number_N[own_N].tolist()))
    words_control = float(torch.isin(other_N, word_T).float().mean())
    return words, int(own_N.sum()), distinct, words_control, float(chance_N.float().mean()), bound


def _content(number_N: Tensor, word_T: Tensor, says: Callable[[int], bool]) -> Tensor:
    """Whether each is a word, and no function word."""
    saying = torch.tensor([says(number) for number in number_N.tolist()], device=number_N.device, dtype=torch.bool)
    return torch.isin(number_N, word_T) & saying


def without_meaning(token_ND: Tensor, near: Nearest, random: torch.Generator) -> Tensor:
    """Tokens without meaning, DRAWN of them or more: each of token_ND as often as another, in fp32."""
    center_D = F.normalize(near.unit_TD.mean(0), dim=-1)
    token_ND = token_ND.to(center_D).repeat(-(-DRAWN // len(token_ND)), 1)
    along_ND = (token_ND @ center_D)[:, None] * center_D
    rest_ND = token_ND - along_ND
    order_ND = torch.rand(rest_ND.shape, generator=random).argsort(1).to(rest_ND.device)
    mixed_ND = rest_ND.gather(1, order_ND)
    mixed_ND = mixed_ND - (mixed_ND @ center_D)[:, None] * center_D
    without_ND: Tensor = along_ND + F.normalize(mixed_ND, dim=-1) * rest_ND.norm(dim=-1, keepdim=True)
    return without_ND
