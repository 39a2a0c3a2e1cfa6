"""Reading on: the decoder that rereads everything says what the one with a cache says; both what one pass says."""

import pytest
import torch

from mmalign.llms.causal import CausalLM
from mmalign.llms.decoding import Rereading
from mmalign.vlm.prefix import Group, Pass
from tests import parts

GROUPS = [
    Group([5, 6, 7, 8], [[9, 10], [11], [12, 13, 14]]),  # three questions behind one prefix
    Group([], [[5, 9, 3]]),  # alone, without one
    Group([7, 7], [[4], [6, 5]]),
]


@pytest.fixture(scope="module", params=["llama", "mistral", "gemma"])
def llm(request, tmp_path_factory):
    torch.manual_seed(0)
    llm = CausalLM(str(parts.llm(request.param, tmp_path_factory.mktemp(request.param)))).eval()
    for name, parameter in llm.named_parameters():  # sharper than as initialised, so that answers differ
        if parameter.dim() > 1 and "embed" not in name:
            parameter.data.mul_(4)
    llm.chat.ends |= set(range(7, llm.vocab, 3))  # answers of a pass end at different times
    return llm


@torch.no_grad()
def test_every_question_is_read_as_it_would_be_alone(llm, monkeypatch):
    for again in (False, True):
        if again:
            monkeypatch.setattr(llm, "decoder", lambda: Rereading(llm))
        prompts = Pass(llm, GROUPS)
        states = prompts.behind(prompts.read())
        alone = [group.prefix + rest for group in GROUPS for rest in group.rests]
        for state, ids in zip(states, alone, strict=True):
            want = llm(llm.embed(torch.tensor([ids])), torch.ones(1, len(ids)).long())[0, -1]
            assert torch.allclose(state, want, atol=1e-5), (again, ids)


@torch.no_grad()
def test_rereading_writes_what_the_cache_writes(llm, monkeypatch):
    cached = Pass(llm, GROUPS).write(6)
    monkeypatch.setattr(llm, "decoder", lambda: Rereading(llm))
    assert Pass(llm, GROUPS).write(6) == cached
    assert len({tuple(ids) for ids in cached}) > 1
    assert len({len(ids) for ids in cached}) > 1


@torch.no_grad()
def test_padding_between_groups_is_no_text(llm, monkeypatch):
    """A short group beside a long one gives what it gives alone."""
    monkeypatch.setattr(llm, "decoder", lambda: Rereading(llm))
    (alone,) = Pass(llm, [GROUPS[1]]).write(4)
    assert Pass(llm, GROUPS).write(4)[3] == alone
