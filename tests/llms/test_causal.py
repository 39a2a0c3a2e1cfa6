"""The language model's wrapper: RoPE under casts, heads, saving."""

import pytest
import torch

from mmalign.llms.causal import CausalLM
from mmalign.testing import small


@pytest.mark.parametrize("family", list(small.LLMS))
def test_rope_keeps_its_precision_when_weights_are_cast(tmp_path, family):
    small.llm(family, tmp_path)
    mouth = CausalLM(str(tmp_path))
    exact = frequencies(mouth)
    torch.nn.ModuleDict({"llm": mouth}).bfloat16()  # as DeepSpeed casts the whole model
    assert mouth.lm.get_input_embeddings().weight.dtype == torch.bfloat16
    found = frequencies(mouth)
    assert found
    assert found.keys() == exact.keys()
    assert all(value.dtype == torch.float32 and torch.equal(value, exact[name]) for name, value in found.items())


def frequencies(mouth):
    """Every buffer that holds a RoPE's frequencies, under whatever name."""
    return {name: value.clone() for name, value in mouth.named_buffers() if "inv_freq" in name}


@pytest.mark.parametrize("family", list(small.LLMS))
def test_save_and_load(tmp_path, family):
    small.llm(family, tmp_path / "a")
    mouth = CausalLM(str(tmp_path / "a"))
    state = {name: value + 1 if "norm" in name else value for name, value in mouth.state_dict().items()}
    mouth.save(tmp_path / "b", state)
    again = CausalLM(str(tmp_path / "b"))
    assert again.chat.template == mouth.chat.template
    for name, value in again.state_dict().items():
        assert torch.equal(value, state[name])


@torch.no_grad()
@pytest.mark.parametrize("family", list(small.LLMS))
def test_padding_on_either_side_and_batch_size_change_nothing(tmp_path, family):
    small.llm(family, tmp_path)
    mouth = CausalLM(str(tmp_path)).eval()
    rows = [[3, 7, 9, 11, 4], [5, 6], [8, 9, 10]]
    alone = [mouth.head(mouth(mouth.embed(torch.tensor([r])), torch.ones(1, len(r)).long()))[0] for r in rows]
    for left in (False, True):
        ids, mask = torch.zeros(3, 5).long(), torch.zeros(3, 5).long()
        for n, row in enumerate(rows):
            at = slice(5 - len(row), None) if left else slice(0, len(row))
            ids[n, at], mask[n, at] = torch.tensor(row), 1
        both = mouth.head(mouth(mouth.embed(ids), mask))
        for n, want in enumerate(alone):
            assert torch.allclose(both[n][mask[n] > 0], want, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", list(small.LLMS))
def test_padding_behind_needs_no_mask(tmp_path, family, monkeypatch):
    """Nothing real looks at it, and layers keep to their windows: as where transformers is handed the mask."""
    small.llm(family, tmp_path)
    mouth = CausalLM(str(tmp_path)).eval()
    ids, mask = torch.randint(3, 300, (2, 90), generator=torch.Generator().manual_seed(0)), torch.ones(2, 90).long()
    mask[1, 70:] = 0
    embeds, given, plain = mouth.embed(ids), [], mouth.lm.base_model.forward
    want = plain(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state

    def watched(**how):
        given.append(how["attention_mask"])
        return plain(**how)

    monkeypatch.setattr(mouth.lm.base_model, "forward", watched)
    assert torch.allclose(mouth(embeds, mask)[mask > 0], want[mask > 0], atol=1e-5)
    mouth(embeds, mask.flip(1))
    assert given[0] is None
    assert given[1] is not None
