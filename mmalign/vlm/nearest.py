"""What is near to visual tokens at each layer: tokens, or words of a list, for some images or laid over them.

Letters: B images, Q visual tokens of an image, D width of the language model, K kept (top_k).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmalign.benchmarks import ReadoutKind
from mmalign.errors import CheckError
from mmalign.vlm.pictures import listed
from mmalign.vlm.readout import Readout, ceilings, readout
from mmalign.vlm.vocabulary import spelled
from mmalign.vlm.wordmap import WordMap

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.vlm.model import VLM

Near = dict[int, tuple[list[list[float]], list[list[int]]]]  # {layer: (cosine_QK, number_QK)}

HELD = 1 << 30  # bytes of hidden states at a time, in fp32, of all layers up to the deepest; of one image all are held


@torch.no_grad()
def by_layer(
    model: "VLM", images: "Tensor | Image | Sequence[Image]", words: Sequence[str] | None, layers: Sequence[int],
    top_k: int, kind: ReadoutKind = "input",
) -> dict[int, tuple[Tensor, Tensor]]:  # fmt: skip
    """{layer: (cosine_BQK, number_BQK)}; see `VLM.nearest_tokens` and, with words, `VLM.nearest_listed`."""
    read, layers = reading(model, kind, layers, words, top_k), list(layers)
    every = images if isinstance(images, Tensor) else listed(images)
    size = max(1, HELD // (4 * max(1, model.tokens * model.llm.dim * (1 + max(layers, default=0)))))
    parts: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    for start in range(0, max(1, len(every)), size):
        for layer, hidden_BQD in model.hidden_states(every[start : start + size], layers).items():
            parts[layer].append(read(layer, hidden_BQD, top_k))
    return {layer: (torch.cat([c for c, _ in each]), torch.cat([n for _, n in each])) for layer, each in parts.items()}


@torch.no_grad()
def perfect(
    model: "VLM", number_BQ: Tensor, words: Sequence[str] | None, layers: Sequence[int], kind: ReadoutKind
) -> dict[int, Tensor]:
    """{layer: number_BQ}; see `VLM.nearest_perfect`."""
    read, layers = reading(model, kind, layers, words, 1), list(layers)
    size = max(1, HELD // (4 * number_BQ.shape[1] * model.llm.dim * (1 + max(layers, default=0))))
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    with model.evaluating():
        for part_BQ in torch.split(number_BQ.to(model.device), size):
            embed_BQD = read.embed(part_BQ.flatten()).view(*part_BQ.shape, -1)
            for layer, hidden_BQD in model.states(embed_BQD, layers).items():
                parts[layer].append(read(layer, hidden_BQD)[1][..., 0])
    return {layer: torch.cat(each) for layer, each in parts.items()}


def reading(model: "VLM", kind: ReadoutKind, layers: Sequence[int], words: Sequence[str] | None, top_k: int) -> Readout:
    """How visual tokens are read, see `readout`. CheckError for no top_k, and for no word."""
    if top_k < 1:
        raise CheckError(f"top_k must be at least 1, got {top_k}", at="top_k")
    if words is not None and not len(words):
        raise CheckError("a list of no words", at="words", fix="some words; None: all single tokens")
    return readout(model, kind, layers, words)


def word_map(
    model: "VLM", images: "Image | Sequence[Image]", layers: Sequence[int], top_k: int,
    names: Sequence[str] | None, words: Sequence[str] | None, kind: ReadoutKind = "input",
) -> WordMap:  # fmt: skip
    """See `VLM.nearest_words`."""
    pictures, text_of = listed(images), texts(model, words)
    read = reading(model, kind, layers, words, top_k)
    said: dict[int, list[list[list[tuple[str, float]]]]] = {layer: [] for layer in layers}
    for near in _each(model, pictures, read, layers, top_k):
        for layer, both in near.items():
            rows = zip(*both, strict=True)
            said[layer].append([[(text_of(n), c) for c, n in zip(*row, strict=True)] for row in rows])
    names = [str(number) for number in range(len(pictures))] if names is None else list(names)
    frames = model.frames(pictures) if model.grid else []
    seen = [frame.seen() for frame in frames] if model.grid else None
    shown_pictures = [model.shown(picture) for picture in pictures]
    ceiling = {layer: share for layer, share in ceilings(model, read).items() if layer} if any(layers) else {}
    return WordMap(names, shown_pictures, model.grid, said, seen, kind, ceiling, frames)


@torch.no_grad()
def numbered(
    model: "VLM", images: "Sequence[Image]", layers: Sequence[int], top_k: int, words: Sequence[str] | None,
    kind: ReadoutKind = "input",
) -> Iterator[Near]:  # fmt: skip
    """Image by image, {layer: (cosine_QK, number_QK)}; what a number says is told by `texts`."""
    yield from _each(model, images, reading(model, kind, layers, words, top_k), layers, top_k)


def texts(model: "VLM", words: Sequence[str] | None) -> Callable[[int], str]:
    """The text of a token by its number; with a list, of a word of it."""
    return words.__getitem__ if words else partial(spelled, model.llm.chat.tokenizer)


def _each(
    model: "VLM", pictures: "Sequence[Image]", read: Readout, layers: Sequence[int], top_k: int
) -> Iterator[Near]:
    for picture in pictures:  # one at a time: all layers of many pictures would be held together
        near = {}
        for layer, hidden_BQD in model.hidden_states(picture, layers).items():
            cosine_QK, number_QK = read(layer, hidden_BQD[0], top_k)
            near[layer] = cosine_QK.tolist(), number_QK.tolist()
        yield near
