"""The contract of a language model, as a check: with it a model trains, is evaluated, talks and is inspected.

Letters: B samples, S positions, T new positions, D width, V vocabulary, N rows, Q visual tokens.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.data import MARK, Turn
from mmalign.errors import DataError
from mmalign.llms import LLM
from mmalign.llms.chat import Chat
from mmalign.testing import layers
from mmalign.testing.decoding import decodes, read_alone, token_ids
from mmalign.testing.tensors import (
    APART,
    TOLERANCE,
    learns_as_before,
    no_scalars,
    refuses,
    same,
    shape_is,
    uses_modules,
)


def check_llm(make: Callable[[], LLM], folder: Path, reload: Callable[[Path], LLM], answer: str = "red") -> None:
    """A language model keeps its contract.

    make: builds it, the same weights every time. folder: where it may be saved. reload: builds it from such a folder,
    as its card does with `checkpoint: folder`. answer: a text its tokenizer can spell. It is built with a small
    configuration: this runs it some fifty times.
    """
    torch.manual_seed(0)
    llm = make().float().eval()
    no_scalars(llm)
    _declares(llm)
    for dtype in (torch.float32, torch.bfloat16):
        cast = make().eval().to(dtype)
        _embeds(cast, dtype)
        _heads(cast, dtype)
        _reads(cast, dtype)
        _apart(cast, dtype)
    _gathers(llm)
    _kl(make().float().train())
    _nll(make().float().train())
    decodes(llm)
    _chats(llm.chat, llm.vocab, answer)
    (layers.watches if llm.watchable else layers.not_watched)(llm)
    if llm.keeps_states:
        layers.keeps(llm)
    _learns(make().float())
    _saves(make().eval(), folder, reload)


def _declares(llm: LLM) -> None:
    for name in ("dim", "depth", "vocab", "context"):
        value = getattr(llm, name, None)
        assert isinstance(value, int), f"{name} is {value!r}, not a whole number"
        assert value > 0, f"{name} is {value}"
    assert isinstance(getattr(llm, "chat", None), Chat), "chat is no mmalign.llms.chat.Chat"
    embed_VD = llm.vocabulary()
    assert embed_VD.shape == (llm.vocab, llm.dim), (
        f"vocabulary() is {tuple(embed_VD.shape)}, vocab and dim say {(llm.vocab, llm.dim)}"
    )
    own = any(embed_VD is parameter for parameter in llm.parameters())
    assert own, "vocabulary() is a copy, not the parameter itself: it would not be gathered, nor follow training"


@torch.no_grad()
def _embeds(llm: LLM, dtype: torch.dtype) -> None:
    ids_BS = token_ids(llm, 2, 3)
    for ids in (ids_BS, ids_BS[0], ids_BS[:, None]):
        shape_is(llm.embed(ids), (*ids.shape, llm.dim), dtype)
    alike = F.cosine_similarity(llm.embed(ids_BS).float(), llm.vocabulary()[ids_BS].float(), dim=-1)
    assert (alike > 0.99).all(), "embed() and vocabulary() disagree: row i of the matrix is not what token i becomes"


@torch.no_grad()
def _heads(llm: LLM, dtype: torch.dtype) -> None:
    hidden_ND = torch.randn(5, llm.dim).to(dtype)
    shape_is(logits_NV := llm.head(hidden_ND), (5, llm.vocab), dtype)
    shape_is(llm.head(hidden_ND[:0]), (0, llm.vocab), dtype)
    same(llm.head(hidden_ND[:2]), logits_NV[:2], TOLERANCE[dtype], "head() makes a row's logits depend on the others")


@torch.no_grad()
def _reads(llm: LLM, dtype: torch.dtype) -> None:
    embeds_BSD = llm.embed(token_ids(llm, 2, 6))
    ones_BS, before = torch.ones(2, 6, dtype=torch.long), embeds_BSD.clone()
    hidden_BSD = llm(embeds_BSD, ones_BS)
    shape_is(hidden_BSD, (2, 6, llm.dim), dtype)
    assert torch.equal(embeds_BSD, before), "forward() changes the embeddings it is given"
    assert torch.equal(llm(embeds_BSD, ones_BS), hidden_BSD), "the same input gives another output in eval mode"
    later_BSD = embeds_BSD.clone()
    later_BSD[:, -1] = embeds_BSD.flip(0)[:, 0]
    what = "a position sees what comes behind it"
    same(llm(later_BSD, ones_BS)[:, :-1], hidden_BSD[:, :-1], APART[dtype], what)


@torch.no_grad()
def _apart(llm: LLM, dtype: torch.dtype) -> None:
    """Two samples, of 5 and of 8 positions, beside each other in every way that a mask can say."""
    short_SD, long_SD, noise_SD = (llm.embed(ids_S) for ids_S in torch.split(token_ids(llm, 1, 20)[0], [5, 8, 7]))
    alone = {5: read_alone(llm, short_SD), 8: read_alone(llm, long_SD)}
    right = torch.stack([torch.cat([short_SD, noise_SD[:3]]), long_SD])
    left = torch.stack([torch.cat([noise_SD[:3], short_SD]), long_SD])
    packed = torch.stack([torch.cat([short_SD, long_SD, noise_SD]), torch.cat([long_SD, short_SD, noise_SD])])
    mask_5, mask_8 = torch.ones(5, dtype=torch.long), torch.ones(8, dtype=torch.long)
    ways = {
        "padded on the right, ": (right, [[mask_5, 0 * mask_5[:3]], [mask_8]], [(0, 0, 5), (1, 0, 8)]),
        "padded on the left, ": (left, [[0 * mask_5[:3], mask_5], [mask_8]], [(0, 3, 5), (1, 0, 8)]),
        "packed, mask 1 and 2, ": (
            packed,
            [[mask_5, 2 * mask_8, 0 * mask_8[:7]], [mask_8, 2 * mask_5, 0 * mask_8[:7]]],
            [(0, 0, 5), (0, 5, 8), (1, 0, 8), (1, 8, 5)],
        ),
    }  # fmt: skip
    for way, (embeds_BSD, masks, places) in ways.items():
        hidden_BSD = llm(embeds_BSD, torch.stack([torch.cat(mask) for mask in masks]))
        for row, start, size in places:
            what = f"{way}a sample is not read as it is alone: it must see itself only, and begin at position 0"
            same(hidden_BSD[row, start : start + size], alone[size], APART[dtype], what)


def _gathers(llm: LLM) -> None:
    ids_BS = token_ids(llm, 2, 6)
    with torch.no_grad():
        embeds_BSD = llm.embed(ids_BS)
        hidden_BSD = llm(embeds_BSD, torch.ones_like(ids_BS))
    uses_modules(llm, lambda: llm.embed(ids_BS), "embed()")
    uses_modules(llm, lambda: llm(embeds_BSD, torch.ones_like(ids_BS)), "forward()")
    uses_modules(llm, lambda: llm.head(hidden_BSD[0]), "head()")
    uses_modules(llm, lambda: llm.nll(hidden_BSD[0], ids_BS[0], torch.ones(6)), "nll()")
    own_VD = torch.randn(llm.vocab, llm.dim)
    uses_modules(llm, lambda: llm.kl(hidden_BSD[0], hidden_BSD[1], own_VD, torch.ones(6)), "kl()")


def _nll(llm: LLM) -> None:
    hidden_ND, token_N = torch.randn(6, llm.dim), token_ids(llm, 1, 6)[0]
    weight_N = torch.tensor([1.0, 0.5, 0.0, 1.0, 2.0, 1.0])

    def definition(rows_ND: Tensor) -> Tensor:
        return (F.cross_entropy(llm.head(rows_ND).float(), token_N, reduction="none") * weight_N).sum()

    loss = lambda rows_ND: llm.nll(rows_ND, token_N[: len(rows_ND)], weight_N[: len(rows_ND)])  # noqa: E731
    _is(loss, definition, hidden_ND, "nll()", "the sum of weight * -log p(token)")
    found = llm.to(torch.bfloat16).nll(hidden_ND.bfloat16(), token_N, weight_N)
    assert found.dtype == torch.float32, f"nll() in bf16 is {found.dtype}, not fp32"


def _kl(llm: LLM) -> None:
    hidden_ND, target_ND = torch.randn(2, 6, llm.dim)
    target_VD, weight_N = torch.randn(llm.vocab, llm.dim), torch.tensor([1.0, 0.5, 0.0, 1.0, 2.0, 1.0])
    log_target_NV = (target_ND @ target_VD.T).log_softmax(-1)

    def definition(rows_ND: Tensor) -> Tensor:
        each_NV = F.kl_div(llm.head(rows_ND).float().log_softmax(-1), log_target_NV, reduction="none", log_target=True)
        return (each_NV.sum(-1) * weight_N).sum()

    loss = lambda rows_ND: llm.kl(rows_ND, target_ND[: len(rows_ND)], target_VD, weight_N[: len(rows_ND)])  # noqa: E731
    _is(loss, definition, hidden_ND, "kl()", "the sum of weight * KL(target || p)")


def _is(
    loss: Callable[[Tensor], Tensor], definition: Callable[[Tensor], Tensor], hidden_ND: Tensor, name: str, words: str
) -> None:
    """A loss of hidden states is what its definition says, and so is its gradient; without rows it is 0."""
    found, gradient = _with_gradient(hidden_ND, loss, name)
    assert found.shape == (), f"{name} is {tuple(found.shape)}, not a scalar"
    assert found.dtype == torch.float32, f"{name} is {found.dtype}, not fp32"
    right, right_gradient = _with_gradient(hidden_ND, definition, name)
    same(found[None], right[None], 1e-4, f"{name} is not {words}")
    same(gradient, right_gradient, 1e-4, f"the gradient of {name} is not that of its definition")
    empty, _ = _with_gradient(hidden_ND[:0], loss, name)
    assert empty == 0, f"{name} without rows is {float(empty)}, not 0"


def _with_gradient(hidden_ND: Tensor, loss: Callable[[Tensor], Tensor], name: str) -> tuple[Tensor, Tensor]:
    rows_ND = hidden_ND.clone().requires_grad_(True)
    value = loss(rows_ND)
    assert value.requires_grad, f"no gradient goes through {name}"
    torch.autograd.backward(value)
    assert rows_ND.grad is not None, f"{name} gives the hidden states no gradient, not even of 0 rows"
    return value.detach(), rows_ND.grad


def _chats(chat: Chat, vocab: int, answer: str) -> None:
    turns = [Turn("user", f"{MARK}\nWhat is this?"), Turn("assistant", answer)]
    assert chat.marks_answers, "the chat template marks no answers, so the model cannot be trained"
    encoded = chat.encode(turns, [3])
    assert len(encoded.ids) == len(encoded.trained), "chat.encode: not every id is trained or not"
    assert encoded.ids.count(chat.mark) == 3, f"chat.encode: {encoded.ids.count(chat.mark)} places for 3 visual tokens"
    trained = [i for i, t in zip(encoded.ids, encoded.trained, strict=True) if t]
    assert chat.text(trained) == answer, f"trained is {chat.text(trained)!r}, the answer is {answer!r}"
    assert chat.ends & set(trained), "no token that ends an answer is trained, so an answer would never end"
    prompt = chat.prompt(turns[:1], [3])
    assert prompt.count(chat.mark) == 3, f"chat.prompt: {prompt.count(chat.mark)} places for 3 visual tokens"
    assert chat.text(chat.answer(answer)) == answer, f"chat.answer({answer!r}) says {chat.text(chat.answer(answer))!r}"
    (pieces,) = chat.pieces([answer])
    beyond = [i for i in {*encoded.ids, *prompt, *pieces, *chat.ends, chat.pad} - {chat.mark} if not 0 <= i < vocab]
    assert not beyond, f"the tokenizer has ids {beyond}, the vocabulary {vocab} rows"
    refuses(DataError, lambda: chat.prompt(turns[:1], []), f"chat.prompt with a {MARK} mark and no image")


def _learns(llm: LLM) -> None:
    llm.prepare_training()
    names = [name for name, _ in llm.named_parameters()]
    llm.prepare_training()
    assert names == [name for name, _ in llm.named_parameters()], "prepare_training() twice adds parameters"
    llm.requires_grad_(True)
    embeds_BSD, ones_BS = llm.embed(token_ids(llm, 2, 6)).detach(), torch.ones(2, 6, dtype=torch.long)
    embeds_BSD.requires_grad_(True)
    torch.autograd.backward(llm.train().head(llm(embeds_BSD, ones_BS).flatten(0, 1)).square().sum())
    assert embeds_BSD.grad is not None, "no gradient reaches the embeddings, so no adapter would learn"
    unseen = int((embeds_BSD.grad.abs().sum(-1) == 0).sum())
    assert not unseen, f"no gradient reaches {unseen} of 12 positions"
    assert any(p.grad is not None and p.grad.any() for p in llm.parameters()), "no gradient reaches the weights"
    llm.zero_grad()
    learns_as_before(_Reading(llm), embeds_BSD.detach(), llm.checkpoint_activations)


class _Reading(torch.nn.Module):
    """A language model that reads whole rows."""

    def __init__(self, llm: LLM) -> None:
        super().__init__()
        self.llm = llm

    def forward(self, embeds_BSD: Tensor) -> Tensor:
        embeds_BSD = embeds_BSD.clone().requires_grad_(True)
        hidden_BSD: Tensor = self.llm(embeds_BSD, torch.ones(embeds_BSD.shape[:2], dtype=torch.long))
        return hidden_BSD


@torch.no_grad()
def _saves(llm: LLM, folder: Path, reload: Callable[[Path], LLM]) -> None:
    llm.save(folder / "own")
    again = reload(folder / "own").eval()
    assert torch.equal(_logits(again), _logits(llm)), "a saved language model differs"
    turns = [Turn("user", f"{MARK}\nWhat is this?")]
    alike = again.chat.prompt(turns, [2]) == llm.chat.prompt(turns, [2]) and again.chat.template == llm.chat.template
    assert alike, "a saved language model has another chat format"
    state = {name: value * 1.25 for name, value in llm.state_dict().items()}
    llm.save(folder / "trained", state)
    llm.load_state_dict(state)
    found = reload(folder / "trained").eval()
    assert torch.equal(_logits(found), _logits(llm)), "a language model saved with trained weights differs"


def _logits(llm: LLM) -> Tensor:
    ids_BS = torch.arange(8).view(1, 8) % llm.vocab
    return llm.head(llm(llm.embed(ids_BS), torch.ones_like(ids_BS)).flatten(0, 1))
