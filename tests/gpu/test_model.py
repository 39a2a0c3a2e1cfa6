"""The model on a GPU: what is looked at in its layers, rows that samples share, answers from packed passes."""

from copy import deepcopy

import pytest
import torch

from mmalign.adapters.mlp import MLP
from mmalign.llms.causal import CausalLM
from mmalign.objectives import Words
from mmalign.objectives.basic import Direction, Distribution, attention_share, refined_tokens
from mmalign.objectives.lm import NextToken
from mmalign.objectives.sea import SEA
from mmalign.testing import small
from mmalign.vision.hf import HFVision
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import PassLabels, Supervised
from tests import parts
from tests.speed.engine import _alone
from tests.vlm.test_model import build, folders  # noqa: F401
from tests.vlm.test_packing import ROWS, collate
from tests.vlm.test_prefix import Quiz, tokens_told

pytestmark = pytest.mark.gpu


def sharp(model: Supervised) -> Supervised:
    """Weights larger than as initialised, so that attention and answers differ."""
    for name, parameter in model.vlm.llm.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            parameter.data.mul_(4)
    return model


def labelled(model: Supervised, batch, device):
    g = torch.Generator().manual_seed(0)
    model._labels = (PassLabels(Words(["red", "blue"], torch.tensor([[4], [9]]), model.vlm.llm.embed)),)
    batch.words_BPK = torch.randint(2, (batch.images, 25, 2), generator=g)
    batch.scores_BPK = torch.rand(batch.images, 25, 2, generator=g)
    return batch.to(device)


# relative, of shares and of refined tokens
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 6e-2)])
@pytest.mark.parametrize("family", list(parts.FAMILIES))
@torch.no_grad()
def test_what_is_looked_at_is_what_eager_attention_says(device, folders, family, dtype, bound):  # noqa: F811
    model = sharp(build(folders, "clip", family, {"direction": Direction(layers=2)})).to(device)
    model.prepare()
    batch = collate(model, False).batch([0, 2, 3], 3).to(device)
    visual_BQD = model.see(batch)[0]
    exact = deepcopy(model.vlm.llm.lm)
    model.to(dtype)
    places, (look,) = model.places(batch), model.looks
    with model.vlm.llm.watched(model.looks, places) as seen:
        model.vlm.llm(model.embed(batch, visual_BQD.to(dtype)), batch.mask_RS)
    embeds_RSD = model.embed(batch, visual_BQD).float()
    exact.set_attn_implementation("eager")
    out = exact.base_model(
        inputs_embeds=embeds_RSD, attention_mask=batch.mask_RS, use_cache=False, output_attentions=True,
        output_hidden_states=True,
    )  # fmt: skip
    share_BQ = attention_share(
        [weight[places.row_B] for weight in out.attentions[:2]], places.column_BQ, places.text_RS[places.row_B]
    )
    at = (places.row_B[:, None], places.column_BQ)
    refined_BQD = refined_tokens([hidden[at] for hidden in out.hidden_states[1:3]], look.weights)
    for own, want in ((seen.shares[look], share_BQ), (seen.refined[look], refined_BQD)):
        assert own.dtype == torch.float32
        assert (own - want).norm() < bound * want.norm()


@pytest.mark.parametrize("family", list(parts.FAMILIES))
def test_losses_and_gradients_are_those_of_the_cpu_packed_or_not(device, folders, family):  # noqa: F811
    objectives = {"lm": NextToken(), "direction": Direction(layers=2), "distribution": Distribution(layers=2)}
    model = build(folders, "clip", family, objectives)
    model.prepare()
    results = []
    for place, pack in ((torch.device("cpu"), False), (device, False), (device, True)):
        model.to(place).zero_grad()
        terms, _ = model(collate(model, pack).batch(ROWS, 3).to(place))
        sum(terms.values()).backward()
        grads = {name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append(({name: term.item() for name, term in terms.items()}, grads))
    (want, gradients), *others = results
    for terms, own in others:
        assert terms == pytest.approx(want, rel=1e-4, abs=1e-7)  # KL of all but equal distributions is a rounding
        for name, gradient in gradients.items():
            assert torch.allclose(own[name], gradient, atol=1e-6 + 1e-3 * float(gradient.abs().max())), name


def test_sea_online_and_from_a_store_in_bf16(device, folders):  # noqa: F811
    model = build(folders, "clip", "llama", {"lm": NextToken(), "sea": SEA()}).to(device, torch.bfloat16)
    model.prepare()
    batch = labelled(model, collate(model, True).batch(ROWS, 3), device)
    terms, notes = model(batch)
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert notes["pairs"] == 2
    assert all(p.grad.isfinite().all() for p in model.vlm.adapter.parameters())


ANSWERED = ["llama", "gemma", "qwen2", "phi3", "mistral", "gemma3_text"]


@pytest.mark.parametrize("family", ANSWERED)
def test_packed_answers_are_those_of_generate_one_at_a_time(device, folders, family):  # noqa: F811
    llm = CausalLM(folders(f"{family} to ask", lambda place: small.llm(family, place, kind="sentencepiece")))
    eye = HFVision(folders("clip", parts.clip))
    torch.manual_seed(1)
    model = sharp(Supervised(VLM(eye, MLP(eye.dim, llm.dim, eye.grid), llm), {}))
    for name, parameter in llm.named_parameters():
        if any(word in name for word in ("q_proj.weight", "k_proj.weight", "qkv_proj.weight")):
            parameter.data.mul_(8)  # attention that picks, so that answers follow the question
    vlm = tokens_told(model.vlm.float().to(device).eval())
    quiz = Quiz()
    quiz.asked = [question for question in quiz.asked if question.image is not None]
    own = {question.id: text for question, text in vlm.answers(quiz, quiz.questions(), batch=12)}
    assert own == dict(_alone(vlm, quiz))
    assert len(set(own.values())) > 6
