"""BASIC's premise where the adapter is perfect: each visual token an embedding of a word true of its patch.

Nobody is warned of such tokens, neither where the layers can be read nor where they leave the input embeddings' space.
"""

import pytest
import torch

from mmalign.adapters.mlp import MLP
from mmalign.objectives.basic import Direction
from mmalign.plan import building
from mmalign.plan.cards import Registry
from mmalign.toyworld.data import Captions
from mmalign.training.batches import BadSamples, Collate
from mmalign.training.premise import Premise
from mmalign.vision.hf import HFVision
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import Supervised
from tests import parts

IMAGES = 24


@pytest.fixture(scope="module", params=["toy", "moved"])
def premise(request, tmp_path_factory):
    """Of the toy world's Llama; and of one whose first layer turns all states and moves them far away, as SmolLM2's."""
    torch.manual_seed(0)
    vision = HFVision(str(parts.clip(tmp_path_factory.mktemp("clip"))))
    llm = building.build(Registry().card("llms", "toy-llama"))
    model = Supervised(VLM(vision, MLP(vision.dim, llm.dim, vision.grid), llm), {"basic": Direction(2)}).eval().float()
    model.prepare()
    if request.param == "moved":
        turned, _ = torch.linalg.qr(torch.randn(llm.dim, llm.dim))
        far = 20 * torch.randn(llm.dim) * llm.vocabulary().detach().std()
        llm.lm.base_model.layers[0].register_forward_hook(lambda _module, _inputs, out: out @ turned + far)
    data = Captions(IMAGES, split="eval")
    collate = Collate(data, llm.chat, vision, model.vlm.tokens, 200, BadSamples(0))
    batch = collate.batch(list(range(IMAGES)), seed=0)
    frames = model.vlm.frames([data.image(n) for n in range(IMAGES)])
    truths = [data.truth(n, frame).words for n, frame in enumerate(frames)]
    right = [[{i for ids in model.vlm.pieces(words) for i in ids} for words in truth] for truth in truths]
    place = tmp_path_factory.mktemp("premise") / "premise.jsonl"
    return Premise(model, batch, right, place, every=1, steps=1)


def shown(premise, monkeypatch, token_BQ):
    """The last look at visual tokens that are these tokens' embeddings."""
    embed = premise.model.vlm.llm.embed
    monkeypatch.setattr(premise.model, "see", lambda batch: (embed(token_BQ).detach(), None))
    premise(1)


def test_perfect_tokens_warn_nobody(premise, monkeypatch):
    """Words that are true of each patch, of a patch without one some other. Without a ceiling it would warn."""
    true = [[min(right) if right else 50 for right in row] for row in premise.right_BQ]
    shown(premise, monkeypatch, torch.tensor(true))
    assert premise.last["right"]["layer 0"] == 1
    assert premise.last["right"]["refined"] < 1
    assert premise.warning() is None
    assert "cannot be read from nearest tokens here" in premise.remark()
    del premise.last["ceiling"]
    assert premise.warning() is not None
