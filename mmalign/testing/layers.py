"""The contract of a language model whose layers are seen, as a check: in passing, and with a gradient.

Letters: B samples, S positions, D width, Q visual tokens.
"""

import torch
from torch import Tensor

from mmalign.errors import CheckError
from mmalign.llms import LLM, Look, Places
from mmalign.testing.decoding import token_ids
from mmalign.testing.tensors import APART, refuses, same, shape_is


@torch.no_grad()
def watches(llm: LLM) -> None:
    """An image of two tokens behind one token of text, in each of two rows."""
    embeds_BSD, ones_BS = llm.embed(token_ids(llm, 2, 6)), torch.ones(2, 6, dtype=torch.long)
    text_BS = torch.tensor([[True, False, False, True, True, True]] * 2)
    places = Places(torch.tensor([0, 1]), torch.tensor([[1, 2], [1, 2]]), text_BS)
    plain_BSD = llm(embeds_BSD, ones_BS)
    equal = Look((0.25,) * llm.depth, attention=False)
    llm.prepare_looks([equal])
    with llm.watched([equal], places) as watch:
        watch.kept = []
        watched_BSD = llm(embeds_BSD, ones_BS)
    same(watched_BSD, plain_BSD, APART[torch.float32], "a watched pass gives other hidden states")
    assert len(watch.kept) == llm.depth, f"{len(watch.kept)} layers are shown, depth is {llm.depth}"
    same(watch.kept[-1], plain_BSD[:, 1:3], 1e-5, "the last layer shown is not what forward() gives")
    sum_BQD = sum(0.25 * kept_BQD.float() for kept_BQD in watch.kept)
    assert isinstance(sum_BQD, Tensor)
    same(watch.refined[equal], sum_BQD, 1e-4, "refined is not the weighted sum of the layers")
    _shares(watch.shares[equal])
    attending = Look((1.0,), attention=True)
    try:
        llm.prepare_looks([attending])
    except CheckError:  # a model whose attention cannot be seen says so here
        return
    with llm.watched([attending], places) as watch:
        llm(embeds_BSD, ones_BS)
    _shares(watch.shares[attending])


def keeps(llm: LLM) -> None:
    """What is kept is what was watched, with a gradient."""
    embeds_BSD, ones_BS = llm.embed(token_ids(llm, 2, 4)).detach().requires_grad_(), torch.ones(2, 4, dtype=torch.long)
    places = Places(torch.tensor([0, 1]), torch.arange(4).expand(2, 4), torch.ones(2, 4) > 0)
    every = Look((1.0,) * llm.depth, attention=False)
    inner = range(1, llm.depth)
    with llm.watched([every], places) as watch, llm.keeping(inner) as kept:
        watch.kept = []
        llm(embeds_BSD, ones_BS)
    assert sorted(kept) == list(inner), f"keeping() keeps layers {sorted(kept)}, asked for {list(inner)}"
    for layer, hidden_BSD in kept.items():
        same(hidden_BSD, watch.kept[layer - 1], 1e-5, f"layer {layer} is kept otherwise than it is watched")
        (grad_BSD,) = torch.autograd.grad(hidden_BSD.float().square().sum(), [embeds_BSD], retain_graph=True)
        assert grad_BSD.any(), f"no gradient goes back from layer {layer}"
    shape_is(llm.normed(embeds_BSD), (2, 4, llm.dim), embeds_BSD.dtype)


def _shares(share_BQ: Tensor) -> None:
    assert (share_BQ >= 0).all(), "a token's share of the attention is below 0"
    same(share_BQ.sum(1), torch.ones(len(share_BQ)), 1e-4, "the shares of an image's tokens do not sum to 1")


def not_watched(llm: LLM) -> None:
    look = Look((1.0,), attention=False)
    refuses(CheckError, lambda: llm.prepare_looks([look]), "watchable is False, but prepare_looks()")
