"""What the layers of an evaluated model make of visual tokens, against transformers' own hidden states."""

import pytest
import torch

from mmalign.vlm.answering import Asked
from tests import parts
from tests.objectives.test_basic import batch_of, build, folders  # noqa: F401
from tests.vlm.test_model import picture


@torch.no_grad()
@pytest.mark.parametrize("family", list(parts.FAMILIES))
def test_every_layer_of_an_evaluated_model(folders, family):  # noqa: F811
    model = build(folders, family)
    asked = Asked(model.vision, model.adapter, model.llm, torch.device("cpu"))
    images = [picture(n) for n in (0, 3)]
    found = asked.layers(images)
    batch = batch_of(model, [0])  # the image comes first in it
    columns = (batch.ids_RS[0] == batch.mark).nonzero()[:, 0]
    for n, visual_QD in enumerate(asked.visual(images)):
        embeds = model.embed(batch, visual_QD[None])
        want = model.llm.lm.base_model(inputs_embeds=embeds, use_cache=False, output_hidden_states=True).hidden_states
        assert len(found) == len(want) - 1 == model.llm.depth
        for layer, hidden in zip(found, want[1:], strict=True):
            assert torch.allclose(layer[n], hidden[0, columns], rtol=1e-5, atol=1e-5)


def test_a_model_that_lists_no_layers_shows_none(folders):  # noqa: F811
    model = build(folders, "llama")
    asked = Asked(model.vision, model.adapter, model.llm, torch.device("cpu"))
    model.llm.lm.base_model.layers = None
    assert asked.layers([picture(0)]) == []
