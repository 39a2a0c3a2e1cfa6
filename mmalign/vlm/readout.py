"""Readouts: ways to turn what is at a visual token, at some layer, into a word; and how far each can be trusted.

input: the nearest input embedding, the papers' way. It presumes that hidden states lie where input embeddings lie.
same-layer: the nearest state of a word at the same layer, from a list of words in the place of an image.
lens: the input embedding whose expected state is nearest, by a linear model of the layer, see lens.py.

The ceiling of a readout is the share of perfect visual tokens (see control.py) that it reads right. Where it is low
the layer cannot be read so, and what it gives there of an image means nothing.

Letters: N tokens, T tokens or words to choose from, D width of the language model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.benchmarks import ReadoutKind
from mmalign.errors import one_of
from mmalign.vlm import control, lens
from mmalign.vlm.kept import kept
from mmalign.vlm.vocabulary import Nearest, Spellings, among_tokens, among_words, token_spellings, word_tokens

if TYPE_CHECKING:
    from mmalign.vlm.model import VLM

States = Callable[[int, Tensor], Tensor]  # (layer, hidden states (..., D)) -> (..., D)
SHOWN = 1024  # perfect visual tokens that a ceiling is measured on
STATES = 4  # lists that a word's state at a layer is the mean of; fewer where they were more than lens.TOKENS tokens


@dataclass
class Readout:
    """near: of each layer, what is chosen from. seen: what of a layer's states is compared with it. back: what they are
    where input embeddings lie, if anything."""

    near: Mapping[int, Nearest]
    embed: control.Embed  # what the numbers of `near` stand for, as input embeddings
    word_T: Tensor  # those of them that are words
    spellings: Callable[[], Spellings]  # which of them are the same word
    back: States
    seen: States

    def __call__(self, layer: int, hidden: Tensor, top_k: int = 1) -> tuple[Tensor, Tensor]:
        """(cosine, number) of shape (..., K) for hidden states (..., D) of a layer, the nearest first."""
        return self.near[layer](self.seen(layer, hidden), top_k)


def readout(
    vlm: "VLM", kind: ReadoutKind, layers: Iterable[int], words: Sequence[str] | None = None, texts: Sequence[str] = ()
) -> Readout:
    """A readout of some layers (0 .. L), among all tokens or the words of a list, numbered as `VLM.nearest_tokens` and
    `nearest_listed` number them; same-layer, without a list, among the tokens that are words.

    texts: a lens is fitted on them, too. Lenses and words' states are kept in the cache; made, they take as long as
    reading some 16,000 tokens, or each word once, and words' states 4 D bytes of each word and layer. A CheckError for
    another kind.
    """
    one_of("readout", kind, get_args(ReadoutKind))
    layers = sorted(set(layers))
    vlm.check_layers(layers)
    listed = vlm.word_embeddings(words) if words is not None else None
    embed = vlm.llm.embed if listed is None else listed.embeddings
    if listed is not None:
        among = among_words(listed, vlm.device)
    else:
        with vlm.vocabulary() as embed_VD:
            among = among_tokens(vlm.llm, embed_VD)
    word_T = among.number_T if listed is not None else word_tokens(vlm.llm).to(vlm.device)
    near: dict[int, Nearest] = dict.fromkeys(layers, among)
    back: States = _as_it_is
    if kind == "lens" and any(layers):
        fitted = lens.lens_of(vlm, layers, texts)
        back, near = fitted, near | {n: lens.expected(fitted, n, among, embed) for n in layers if n}
    if kind == "same-layer" and any(layers):
        about = ["states", layers, None if words is None else list(words), word_T.tolist()]
        own = kept(vlm.llm, about, partial(_states, vlm, word_T, embed, layers))
        near |= {layer: Nearest(word_T, own[str(layer)]) for layer in layers if layer}
    spellings = partial(token_spellings, vlm.llm) if words is None else partial(Spellings, dict(enumerate(words)))
    return Readout(near, embed, word_T, spellings, back, seen=_as_it_is)


def _as_it_is(layer: int, hidden: Tensor) -> Tensor:
    return hidden


def _states(vlm: "VLM", number_T: Tensor, embed: control.Embed, layers: Sequence[int]) -> dict[str, Tensor]:
    """{layer: unit_TD}: the mean direction of each word's states in STATES random lists; not of layer 0."""
    row_T = number_T.new_full((int(number_T.max()) + 1,), -1)
    row_T[number_T] = torch.arange(len(number_T), device=number_T.device)
    total = {n: torch.zeros(len(number_T), vlm.llm.dim, device=vlm.device) for n in layers if n}
    rounds = max(1, min(STATES, lens.TOKENS // len(number_T)))
    shown_N = control.lists(number_T, rounds * len(number_T), seed=1)
    for number_N, _, hidden in control.states(vlm, shown_N, embed, list(total)):
        for layer, hidden_ND in hidden.items():
            total[layer].index_add_(0, row_T[number_N], F.normalize(hidden_ND.float(), dim=-1))
    return {str(layer): F.normalize(total_TD, dim=-1) for layer, total_TD in total.items()}


class Right(NamedTuple):
    """Of `tokens` that could be read right, the share that is: share, as the word that they are in any of its
    spellings; strict, as the very token or word of the list."""

    share: float
    strict: float
    tokens: int


def read_right(vlm: "VLM", read: Readout, number_N: Tensor | None = None) -> dict[int, Right]:
    """{layer: how much of perfect visual tokens is read right}: nearest is the word that they are.

    number_N: these words (or, without a list, tokens, of a text for example), ROW of them at a time in the place of an
    image; None: SHOWN words at random. Those that are not among what is chosen from at a layer do not count there.
    A word counts in any of its spellings, see `Spellings`.
    """
    number_N = control.lists(read.word_T, SHOWN, seed=2) if number_N is None else number_N
    pairs: dict[int, list[tuple[int, int]]] = {layer: [] for layer in read.near}  # (what stands there, what is nearest)
    for own_N, _, hidden in control.states(vlm, number_N, read.embed, list(read.near)):
        for layer, hidden_ND in hidden.items():
            among_N = torch.isin(own_N, read.near[layer].number_T)
            nearest_N = read(layer, hidden_ND)[1][:, 0]
            pairs[layer] += zip(own_N[among_N].tolist(), nearest_N[among_N].tolist(), strict=True)
    alike = cache(read.spellings().alike)
    return {layer: _right(own, alike) for layer, own in pairs.items()}


def _right(pairs: Sequence[tuple[int, int]], alike: Callable[[int], set[int]]) -> Right:
    many = max(1, len(pairs))
    right, strict = sum(near in alike(own) for own, near in pairs), sum(near == own for own, near in pairs)
    return Right(right / many, strict / many, len(pairs))


def ceilings(vlm: "VLM", read: Readout, number_N: Tensor | None = None) -> dict[int, float]:
    """{layer: the share of perfect visual tokens that is read right, in any spelling}, see `read_right`."""
    return {layer: right.share for layer, right in read_right(vlm, read, number_N).items()}
