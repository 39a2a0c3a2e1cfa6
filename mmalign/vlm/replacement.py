"""The replacement experiment: every visual token replaced by the word nearest to it, and the model asked again.

BASIC (arXiv 2508.06895, figures 3 and 9) looks at what the model says of words in the place of visual tokens: if it
still describes the picture, the words say what the tokens say.

Letters: Q visual tokens of an image, D width of the language model, T words, M different words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmalign.benchmarks import ReadoutKind
from mmalign.errors import CheckError
from mmalign.io import pages
from mmalign.vlm import nearest
from mmalign.vlm.control import lists
from mmalign.vlm.pictures import named
from mmalign.vlm.vocabulary import spelled

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.vlm.model import VLM

QUESTION = "Describe this image."
SEED = 0  # of the words of the control


@dataclass
class Replaced:
    """The answers of a model about an image, as it sees it and by the words that its visual tokens are nearest to.

    words: what stands in the place of each of the Q visual tokens, the nearest word; others: what stands there in the
    control, see `others`. A word stands there as its input embedding, with the embedding's own norm: what a visual
    token has beside its word, its norm with it, is what the experiment takes away (the choice is ours).
    """

    image: str  # its name
    layer: int  # where the words were read; they stand in front of the language model whatever it is
    question: str
    answer: str  # with the visual tokens as they are
    replaced: str  # with the words
    control: str  # with other words
    words: list[str]
    others: list[str]


@torch.no_grad()
def replaced(
    model: "VLM", images: "Image | Sequence[Image]", question: str, layers: Sequence[int],
    names: Sequence[str] | None, words: Sequence[str] | None, kind: ReadoutKind, max_new_tokens: int,
) -> list[Replaced]:  # fmt: skip
    """See `VLM.replaced`."""
    read, tokenizer = nearest.reading(model, kind, layers, words, 1), model.llm.chat.tokenizer
    text_of = words.__getitem__ if words else partial(spelled, tokenizer)
    alike = cache(read.spellings().alike)
    answers: list[Replaced] = []
    for name, picture in named(images, names):
        with model.evaluating():
            states = model.hidden_states(picture, [0, *layers])
        ask = partial(model.ask_about, question, picture, max_new_tokens=max_new_tokens)
        answer = ask(states[0][0])
        for layer in layers:
            number_Q = read(layer, states[layer][0])[1][:, 0]
            other_Q = others(number_Q, read.word_T, alike, SEED)
            said, control = (ask(read.embed(own_Q)) for own_Q in (number_Q, other_Q))
            own, other = ([text_of(number) for number in one_Q.tolist()] for one_Q in (number_Q, other_Q))
            answers.append(Replaced(name, layer, question, answer, said, control, own, other))
    return answers


def html(answers: Sequence[Replaced]) -> str:
    """The answers side by side: a piece of a page."""
    return pages.page("mmalign.vlm", "replacement.html", answers=answers)


def others(number_Q: Tensor, word_T: Tensor, alike: Callable[[int], set[int]], seed: int) -> Tensor:
    """other_Q: for each word another one, drawn from word_T; the same for the same word, and none of those in number_Q
    in any spelling (`Spellings.alike`).

    So the control has as many different words, each as often and at the same places: only what they mean is gone. An
    answer that is as good with it was never read from the words. (The same words at other places would not do: what is
    in the picture is still said. Nor do those of another picture: visual tokens of all pictures have words in common.)
    Where too few words are left, some stand for several. Raises CheckError where none is left.
    """
    own_M, at_Q = torch.unique(number_Q, return_inverse=True)
    taken = torch.tensor(sorted({n for own in own_M.tolist() for n in alike(own)}), device=word_T.device)
    free_T = word_T[~torch.isin(word_T, taken)]
    if not len(free_T):
        what = f"all {len(word_T)} words are nearest to some visual token: none is left for the control"
        raise CheckError(what, at="words", fix="a longer list of words; None: all single tokens")
    return lists(free_T, len(own_M), seed)[at_Q]
