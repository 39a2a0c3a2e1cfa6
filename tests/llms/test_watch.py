"""What the layers of an evaluated model make of visual tokens, against transformers' own hidden states."""

import pytest
import torch

from mmalign.errors import CheckError
from mmalign.llms import watch
from tests import parts
from tests.objectives.test_basic import batch_of, build, folders  # noqa: F401
from tests.vlm.test_model import picture


@torch.no_grad()
@pytest.mark.parametrize("family", list(parts.FAMILIES))
def test_every_layer_of_an_evaluated_model(folders, family):  # noqa: F811
    model = build(folders, family)
    images = [picture(n) for n in (0, 3)]
    states = model.vlm.hidden_states(images)
    batch = batch_of(model, [0])  # the image comes first in it
    columns = (batch.ids_RS[0] == model.vlm.llm.chat.mark).nonzero()[:, 0]
    for n, visual_QD in enumerate(states[0]):
        embeds = model.embed(batch, visual_QD[None])
        want = model.vlm.llm.lm.base_model(
            inputs_embeds=embeds, use_cache=False, output_hidden_states=True
        ).hidden_states
        assert list(states) == list(range(len(want))) == list(range(model.vlm.depth + 1))
        for layer, hidden in enumerate(want[1:], 1):
            assert torch.allclose(states[layer][n], hidden[0, columns], rtol=1e-5, atol=1e-5)


def test_a_model_that_lists_no_layers_shows_none(folders):  # noqa: F811
    model = build(folders, "llama")
    model.vlm.llm.watchable = False
    assert model.vlm.depth == 0
    assert list(model.vlm.hidden_states(picture(0))) == [0]
    with pytest.raises(CheckError, match="CausalLM shows none of its layers"):
        model.vlm.hidden_states(picture(0), [1])


def test_a_last_layer_without_a_norm_of_a_known_name_is_not_shown(folders, monkeypatch):  # noqa: F811
    model = build(folders, "llama")
    monkeypatch.setattr(watch, "NORMS", ("ending",))
    assert set(model.vlm.hidden_states(picture(0), [1])) == {1}
    with pytest.raises(CheckError, match="LlamaForCausalLM has no ending behind its last layer"):
        model.vlm.hidden_states(picture(0))
