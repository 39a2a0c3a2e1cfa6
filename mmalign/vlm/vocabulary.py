"""The words nearest to a vector, among the language model's own tokens or those of a list: the one place where that is
computed.

Letters: N vectors, D width of the language model, V its vocabulary, T rows compared with, W words of a list, K kept
(top_k).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import CheckError
from mmalign.io.wordlist import firsts, forms
from mmalign.llms import LLM
from mmalign.objectives import Words

LIMIT = 256 << 20  # bytes of cosines, or of a word list's pieces, at a time


@dataclass
class Nearest:
    """Unit vectors to compare with, fp32, and the number that each stands for. On one device."""

    number_T: Tensor
    unit_TD: Tensor

    def __call__(self, vectors: Tensor, top_k: int = 1) -> tuple[Tensor, Tensor]:
        """(cosine, number) of shape (..., K) for vectors of shape (..., D), nearest first; K is at most T."""
        flat_ND = vectors.reshape(-1, vectors.shape[-1]).to(self.unit_TD.device)
        top_k = min(top_k, len(self.number_T))
        size = max(1, LIMIT // (4 * len(self.number_T)))
        best = [self._cosines(part_ND).topk(top_k, dim=-1) for part_ND in torch.split(flat_ND, size)]
        shape = (*vectors.shape[:-1], top_k)
        cosine_NK, row_NK = (torch.cat(parts).view(shape) for parts in zip(*best, strict=True))
        return cosine_NK, self.number_T[row_NK]

    def _cosines(self, vectors_ND: Tensor) -> Tensor:
        return F.normalize(vectors_ND.float(), dim=-1) @ self.unit_TD.T


def among_tokens(llm: LLM, embed_VD: Tensor) -> Nearest:
    """The tokens of a language model, numbered by their ids. embed_VD: its matrix, whole (under ZeRO-3: gathered).

    Rows behind the last token (padding of the matrix, ids that no token has) and the image mark's are left out: nobody
    trained them, so being near to one says nothing.
    """
    used = sorted({i for i in llm.chat.tokenizer.get_vocab().values() if i < len(embed_VD)} - {llm.chat.mark})
    token_T = torch.tensor(used, device=embed_VD.device)
    return Nearest(token_T, F.normalize(embed_VD.detach()[token_T].float(), dim=-1))


def word_tokens(llm: LLM) -> Tensor:
    """token_T: the tokens that are words by themselves (see `Chat.is_word`), in the order of their ids; all tokens
    where none is."""
    tokens = llm.chat.tokenizer.get_vocab().items()
    used = {i: token for token, i in tokens if i < llm.vocab and i != llm.chat.mark}
    words = [i for i, token in used.items() if llm.chat.is_word(token)]
    return torch.tensor(sorted(words or used))


@torch.no_grad()
def among_words(words: Words, device: torch.device) -> Nearest:
    """The words of a list, numbered by their first place in it: each the mean of its pieces' embeddings (SEA, 4.2).

    Words of which the tokenizer makes nothing are left out; a CheckError where that is all of them. Their pieces are
    never embedded all at once.
    """
    silent = set(words.silent)
    number_T = torch.tensor([n for word, n in firsts(words.words).items() if word not in silent], device=device)
    if not len(number_T):
        what = f"the tokenizer of the language model makes nothing of any of {len(words)} words"
        raise CheckError(what, at="words", fix="another word list")
    width = words.embed(torch.zeros(1, dtype=torch.long, device=device)).shape[-1]
    parts = torch.split(number_T, max(1, LIMIT // (4 * width * words.pieces_WT.shape[1])))
    return Nearest(number_T, torch.cat([F.normalize(words[part_N], dim=-1) for part_N in parts]))


class Spellings:
    """Numbers of tokens, or of words of a list, that are the same word: upper and lower case, with a blank in front or
    without, singular and plural alike (see `wordlist.forms`).

    A token counts that is the whole word in one of these spellings; of a word that is spelled in pieces, there is none.
    """

    def __init__(self, text_of: Mapping[int, str]) -> None:
        self.text_of = text_of
        self.by_text: dict[str, list[int]] = {}
        for number, text in text_of.items():
            self.by_text.setdefault(text.casefold(), []).append(number)

    def of(self, word: str) -> set[int]:
        """The numbers of a word in all its spellings."""
        return {number for form in forms(word) for number in self.by_text.get(form, ())}

    def alike(self, number: int) -> set[int]:
        """The number itself and those of its word's other spellings."""
        return {number} | (self.of(self.text_of[number]) if number in self.text_of else set())


def token_spellings(llm: LLM) -> Spellings:
    """Of a language model's tokens, without those that are no text by themselves. An inner piece keeps its mark, as
    `##ring` does, and so is no word."""
    tokenizer = llm.chat.tokenizer
    ids = [i for i in tokenizer.get_vocab().values() if i != llm.chat.mark]
    texts = tokenizer.backend_tokenizer.decode_batch([[i] for i in ids])  # special tokens: none
    text_of = {i: text.strip() for i, text in zip(ids, texts, strict=True)}
    return Spellings({i: t for i, t in text_of.items() if t and "\ufffd" not in t})


def spelled(tokenizer: Any, token: int) -> str:
    """A vocabulary token as text, without the mark of a word's inner piece."""
    text = str(tokenizer.decode([token])).strip()
    bare = text.removeprefix("##")
    return bare if bare.strip("#") else text or "␣"  # headings of Markdown, `##`, are words of other tokenizers
