"""BASIC against the paper's sums, written out; the attention of every family against eager; who gets a gradient."""

from itertools import product

import pytest
import torch

from mmalign.adapters.mlp import MLP
from mmalign.data import Data, Record, Turn
from mmalign.errors import CheckError, StageError
from mmalign.llms import Look, Places, watch
from mmalign.llms.causal import CausalLM
from mmalign.objectives import Context, Step
from mmalign.objectives.basic import (
    Direction,
    Distribution,
    attention_share,
    basic_direction_loss,
    basic_distribution_loss,
    layer_weights,
    refined_tokens,
)  # fmt: skip
from mmalign.objectives.lm import NextToken
from mmalign.training.batches import BadSamples, Collate
from mmalign.vision.hf import HFVision
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import Supervised
from tests import parts
from tests.vlm.test_model import picture

KINDS = ("increasing", "constant", "decreasing")


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_eq_4_weights(layers):
    total = sum(i * i for i in range(1, layers + 1))
    assert layer_weights(layers, "increasing") == pytest.approx([i * i / total for i in range(1, layers + 1)])
    assert layer_weights(layers, "constant") == pytest.approx([1 / layers] * layers)
    assert layer_weights(layers, "decreasing") == pytest.approx([i * i / total for i in range(layers, 0, -1)])


def make_step(images, patches, dim, vocab, dtype=torch.float32, seed=0):
    from contextlib import nullcontext

    g = torch.Generator().manual_seed(seed)
    visual = torch.randn(images, patches, dim, generator=g).to(dtype).requires_grad_()
    seen = torch.promote_types(dtype, torch.float32)  # what a pass adds up is never narrower
    refined = torch.randn(images, patches, dim, generator=g).to(seen)
    share = torch.rand(images, patches, generator=g).to(seen)
    share /= share.sum(1, keepdim=True)
    embed = torch.randn(vocab, dim, generator=g).to(dtype)
    look = Look((1.0,), True)
    every = torch.ones(images, patches, dtype=torch.bool)
    step = Step(visual_BPD=visual, seen_BP=every, refined={look: refined}, shares={look: share})
    step.vocabulary = lambda: nullcontext(embed)
    return step, look, visual, refined, share, embed


def by_hand(visual, refined, share, embed):
    """Equations 6 and 7, patch by patch and word by word; fp64, for autograd to go through."""
    visual, refined, share, embed = (tensor.double() for tensor in (visual, refined, share, embed))
    direction = distribution = 0.0
    for b in range(len(visual)):
        for i in range(visual.shape[1]):
            v, s = visual[b, i], refined[b, i]
            direction = direction + share[b, i] * (v / v.norm() - s / s.norm()).square().sum()
            p, q = (embed @ s).softmax(0), (embed @ v).softmax(0)
            distribution = distribution + share[b, i] * sum(p[n] * (p[n] / q[n]).log() for n in range(len(embed)))
    return direction / len(visual), distribution / len(visual)


# value, gradient: relative. In bf16 v and E are rounded before we see them; what is left is the logits' rounding.
BOUNDS = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-5, 1e-5), torch.bfloat16: (3e-2, 4e-2)}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(2, 15, 8, 11), (1, 1, 4, 7), (3, 9, 16, 33)])
@pytest.mark.parametrize("term", [0, 1])
def test_eq_6_and_7_and_their_gradients(shape, dtype, term):
    step, look, visual, refined, share, embed = make_step(*shape, dtype)
    objective = (Direction(), Distribution())[term]
    objective.look = look
    exact = visual.detach().double().requires_grad_()
    want, loss = by_hand(exact, refined, share, embed)[term], objective(step)
    want.backward()
    loss.backward()
    value, gradient = BOUNDS[dtype]
    assert loss.item() == pytest.approx(want.item(), rel=value)
    assert (visual.grad.double() - exact.grad).norm() <= gradient * exact.grad.norm()


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(2, 15, 8, 11), (1, 1, 4, 7), (3, 9, 16, 33)])
@pytest.mark.parametrize("term", [0, 1])
@pytest.mark.parametrize("shared", [True, False])
def test_the_losses_as_functions_of_plain_tensors(shape, dtype, term, shared):
    step, look, visual, refined, share, embed = make_step(*shape, dtype)
    objective = (Direction(), Distribution())[term]
    objective.look = look
    if not shared:
        share = step.shares[look] = torch.full_like(share, 1 / shape[1])
    exact = visual.detach().double().requires_grad_()
    want = by_hand(exact, refined, share, embed)[term]
    want.backward()
    refined, share, embed = (tensor.requires_grad_() for tensor in (refined, share, embed))
    weight = share if shared else None
    losses = basic_direction_loss, basic_distribution_loss
    loss = losses[term](visual, refined, weight, *[embed] * term)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(loss, objective(step))
    loss.backward()
    value, gradient = BOUNDS[dtype]
    assert loss.item() == pytest.approx(want.item(), rel=value)
    assert (visual.grad.double() - exact.grad).norm() <= gradient * exact.grad.norm()
    assert all(constant.grad is None for constant in (refined, share, embed))


def test_cosine_logits_as_a_function():
    step, look, visual, refined, share, embed = make_step(2, 6, 8, 11)
    cosine = Distribution(logits="cosine", temperature=0.5)
    cosine.look = look
    loss = basic_distribution_loss(visual, refined, share, embed, logits="cosine", temperature=0.5)
    assert torch.equal(loss, cosine(step))
    assert loss.item() != pytest.approx(basic_distribution_loss(visual, refined, share, embed).item(), rel=1e-2)


def test_without_images_the_functions_give_zero_with_a_gradient():
    none = torch.zeros(0, 6, 8, requires_grad=True)
    for loss in (basic_direction_loss(none, none), basic_distribution_loss(none, none, None, torch.ones(5, 8))):
        none.grad = None
        loss.backward()
        assert loss.item() == 0
        assert none.grad is not None


@pytest.mark.parametrize("kind", [*KINDS, (0.5, -0.25, 2.0)])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_eq_4_as_a_function(kind, dtype):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 2, 15, 8, generator=g).to(dtype).requires_grad_()
    weights = layer_weights(3, kind) if isinstance(kind, str) else kind
    want = torch.zeros(2, 15, 8, dtype=torch.float64)
    for i, b, q in product(range(3), range(2), range(15)):
        want[b, q] += weights[i] * hidden[i, b, q].detach().double()
    refined = refined_tokens(hidden, kind)
    assert refined.dtype == torch.promote_types(dtype, torch.float32)
    assert not refined.requires_grad
    assert torch.allclose(refined.double(), want, atol=1e-6)
    assert torch.equal(refined, refined_tokens(tuple(hidden), weights))


@pytest.mark.parametrize("dtype", BOUNDS)
def test_eq_5_as_a_function(dtype):
    """5 text rows among 9, 7 positions looked at, 3 layers; the last image is looked at by nobody."""
    g = torch.Generator().manual_seed(0)
    layers, images, heads, rows, positions = 3, 4, 2, 9, 7
    attention = torch.rand(layers, images, heads, rows, positions, generator=g).to(dtype)
    column = torch.stack([torch.randperm(positions, generator=g)[:3] for _ in range(images)])
    text = torch.zeros(images, rows, dtype=torch.bool)
    for b in range(images - 1):
        text[b, torch.randperm(rows, generator=g)[:5]] = True
    share = attention_share(attention, column, text)
    assert share.dtype == torch.promote_types(dtype, torch.float32)
    for b in range(images):
        rows_of_text = text[b].nonzero()[:, 0].tolist()
        looked = [
            sum(float(attention[i, b, h, t, s]) for i, h, t in product(range(layers), range(heads), rows_of_text))
            for s in column[b].tolist()
        ]
        want = [weight / sum(looked) if sum(looked) else 0 for weight in looked]
        assert share[b].tolist() == pytest.approx(want, rel=1e-5)
    assert torch.equal(attention_share(tuple(attention), column, text), share)
    every = attention_share(attention, column)
    assert torch.equal(every, attention_share(attention, column, torch.ones_like(text)))
    assert not torch.allclose(every, share)


ROWS = torch.zeros(2, 6, 8)
ATTENTION = torch.zeros(3, 2, 4, 5, 9)  # 3 layers, 2 images, 4 heads, 5 rows, 9 positions


@pytest.mark.parametrize(
    ("call", "at", "message"),
    [
        (lambda: basic_direction_loss(ROWS, ROWS[:1]), "args.refined_BQD", r"\(2, 6, 8\), refined ones \(1, 6, 8\)"),
        (lambda: basic_direction_loss(ROWS[0], ROWS[0]), "args.refined_BQD", r"visual tokens have the shape \(6, 8\)"),
        (lambda: basic_direction_loss(ROWS, ROWS, torch.ones(6)), "args.share_BQ", r"their shares \(6,\)"),
        (lambda: basic_distribution_loss(ROWS, ROWS, None, torch.ones(5, 9)), "args.embed_VD", "have 9 numbers each"),
        (lambda: refined_tokens([]), "args.weights", "0 weights for the outputs of 0 layers"),
        (lambda: refined_tokens([ROWS, ROWS], [1.0]), "args.weights", "1 weights for the outputs of 2 layers"),
        (lambda: attention_share([], torch.zeros(2, 3).long()), "args.attention_LBHTS", "attention of no layer"),
        (lambda: attention_share(ATTENTION, torch.zeros(3, 3).long()), "args.column_BQ", "2 images, and columns of 3"),
        (
            lambda: attention_share(ATTENTION, torch.zeros(2, 3).long(), torch.ones(2, 9)),
            "args.text_BT",
            r"2 images from 5 rows each, text_BT of the shape \(2, 9\)",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call, at, message):
    with pytest.raises(CheckError, match=message) as caught:
        call()
    assert caught.value.at == at
    assert caught.value.fix


def test_the_repairs():
    step, look, visual, refined, share, embed = make_step(2, 6, 8, 11)
    direction = Direction(subtract_mean=True)
    direction.look = look
    centred = refined - refined.mean(1, keepdim=True)
    assert direction(step).item() == pytest.approx(by_hand(visual.detach(), centred, share, embed)[0].item(), rel=1e-5)
    cosine = Distribution(logits="cosine", temperature=0.5)
    cosine.look = look
    unit = torch.nn.functional.normalize
    args = (unit(visual.detach(), dim=-1) / 0.5, unit(refined, dim=-1) / 0.5, share, unit(embed, dim=-1))
    assert cosine(step).item() == pytest.approx(by_hand(*args)[1].item(), rel=1e-4)
    cosine(step).backward()
    assert (visual.grad * visual.detach()).sum(-1).abs().max() < 1e-6  # a length changes nothing


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Direction(layers=0), "layers must be a whole number of at least 1, got 0"),
        (lambda: Direction(weights="up"), "weights must be one of increasing, constant, decreasing, got 'up'"),
        (lambda: Direction(attention="some"), "attention must be one of auto, equal"),
        (lambda: Distribution(logits="soft"), "logits must be one of plain, cosine"),
        (lambda: Distribution(temperature=0.0), "temperature must be above 0"),
        (lambda: refined_tokens([ROWS], "up"), "weights must be one of increasing, constant, decreasing, got 'up'"),
        (lambda: basic_distribution_loss(ROWS, ROWS, None, ROWS[0], logits="soft"), "logits must be one of plain"),
        (lambda: basic_distribution_loss(ROWS, ROWS, None, ROWS[0], temperature=0.0), "temperature must be above 0"),
        (lambda: Direction(layers=9).prepare(Context(layers=4)), "layers is 9, and the language model has 4"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(CheckError, match=message):
        make()


def test_half_of_the_layers_is_the_default():
    direction = Direction()
    direction.prepare(Context(layers=32))
    assert len(direction.look.weights) == 16
    direction.prepare(Context(layers=1))
    assert len(direction.look.weights) == 1


class Rows(Data):
    """One image, none, two images, text before the image, different lengths."""

    users = (
        "<image>\nWhat colour is the star?",
        "Describe this image.",
        "<image> or <image>\nYes or No?",
        "Is <image> red?",
    )

    def __len__(self):
        return 4

    def __getitem__(self, number):
        images = self.users[number].count("<image>")
        turns = [Turn("user", self.users[number]), Turn("assistant", "a large blue ring" if number % 2 else "Yes")]
        if number == 2:
            turns.insert(0, Turn("system", "A chat between a curious user and an assistant."))
        return Record(f"row-{number}", tuple(turns), tuple(range(number, number + images)))

    def image(self, reference):
        return picture(reference)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    places = {"clip": parts.clip(tmp_path_factory.mktemp("clip"))}
    for family in parts.FAMILIES:
        places[family] = parts.llm(family, tmp_path_factory.mktemp(family), num_hidden_layers=4)
    return places


def build(folders, family, **objectives):
    torch.manual_seed(0)
    vision, llm = HFVision(str(folders["clip"])), CausalLM(str(folders[family]))
    model = Supervised(VLM(vision, MLP(vision.dim, llm.dim, vision.grid), llm), objectives).eval()
    model.prepare()
    return model


def batch_of(model, numbers, left=False):
    collate = Collate(Rows(), model.vlm.llm.chat, model.vlm.vision, model.vlm.adapter.tokens, 200, BadSamples(0))
    batch = collate.batch(numbers, seed=0)
    if left:  # the same rows, padded in front
        for n, length in enumerate(batch.mask_RS.sum(1).tolist()):
            for field in ("ids_RS", "mask_RS", "weight_RS"):
                row = getattr(batch, field)[n]
                row.copy_(row.roll(len(row) - length))
    return batch


def eager(model, batch, layers):
    """hidden_states and attentions of transformers' own eager pass, with the same inputs."""
    lm = model.vlm.llm.lm
    before = lm.config._attn_implementation
    lm.set_attn_implementation("eager")
    position_RS = (batch.mask_RS.long().cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        embeds = model.embed(batch, model.see(batch)[0])
        out = lm.base_model(
            inputs_embeds=embeds, attention_mask=batch.mask_RS, position_ids=position_RS, use_cache=False,
            output_attentions=True, output_hidden_states=True,
        )  # fmt: skip
    lm.set_attn_implementation(before)
    return out.hidden_states[1 : layers + 1], out.attentions[:layers]


def slow(model, batch, layers, kind, attention):
    """refined and share of every image, by loops over images, layers, heads and text positions."""
    hidden, attentions = eager(model, batch, layers)
    weights = layer_weights(layers, kind)
    refined, shares = [], []
    tokens = model.vlm.adapter.tokens
    for row in range(len(batch.ids_RS)):
        columns = (batch.ids_RS[row] == model.vlm.llm.chat.mark).nonzero()[:, 0].tolist()
        text = [s for s, real in enumerate(batch.mask_RS[row].tolist()) if real and s not in columns]
        for start in range(0, len(columns), tokens):
            own = columns[start : start + tokens]
            refined.append(sum(w * h[row, own].float() for w, h in zip(weights, hidden, strict=True)))
            look = sum(a[row, head, t, own].float() for a in attentions for head in range(a.shape[1]) for t in text)
            shares.append(look / look.sum() if attention else torch.full((tokens,), 1 / tokens))
    return torch.stack(refined), torch.stack(shares)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("family", list(parts.FAMILIES))
@pytest.mark.parametrize(("layers", "kind"), [(2, "increasing"), (4, "constant"), (3, "decreasing")])
def test_what_is_seen_in_passing_equals_eager(folders, family, layers, kind, left):
    model = build(folders, family, a=Direction(layers, kind), b=Direction(layers, kind, attention="equal"))
    batch = batch_of(model, [0, 1, 2, 3], left)
    step = {}
    for name in ("a", "b"):
        model.objectives[name].register_forward_pre_hook(lambda _m, inputs: step.update(it=inputs[0]))
    with torch.no_grad():
        model(batch)
    for name, attention in (("a", True), ("b", False)):
        refined, share = slow(model, batch, layers, kind, attention)
        look = model.objectives[name].look
        assert torch.allclose(step["it"].refined[look], refined, rtol=1e-5, atol=1e-5)
        assert torch.allclose(step["it"].shares[look], share, rtol=1e-5, atol=1e-6)
        assert torch.allclose(step["it"].refined[look], plain(model, batch, layers, kind)[0], rtol=1e-5, atol=1e-5)
        if attention:
            assert torch.allclose(step["it"].shares[look], plain(model, batch, layers, kind)[1], rtol=1e-5, atol=1e-6)


def plain(model, batch, layers, kind):
    """refined and share from transformers' eager pass, by the functions that one's own loop would call."""
    hidden, attentions = eager(model, batch, layers)
    visual_RS = batch.ids_RS == model.vlm.llm.chat.mark
    rows, columns = (index.view(batch.images, -1) for index in torch.where(visual_RS))
    refined = refined_tokens([hidden_RSD[rows, columns] for hidden_RSD in hidden], kind)
    text_RS = (batch.mask_RS > 0) & ~visual_RS
    own_B = rows[:, 0]  # the sample of each image
    return refined, attention_share([weight[own_B] for weight in attentions], columns, text_RS[own_B])


def test_eq_4_as_a_function_equals_what_is_added_up_in_passing():
    hidden = [torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(n)).bfloat16() for n in range(3)]
    places = Places(torch.tensor([0, 1]), torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.ones(2, 9) > 0)
    look = Look(layer_weights(3, "increasing"), attention=False)
    seen = watch.Watch(places, (look,))
    for number, layer in enumerate(hidden, 1):
        seen.layer(number, layer)
    at = places.row_B[:, None], places.column_BQ
    assert torch.equal(refined_tokens([layer[at] for layer in hidden]), seen.refined[look])


def test_a_sliding_window_counts(folders, tmp_path):
    narrow = {**folders, "mistral": parts.llm("mistral", tmp_path, num_hidden_layers=4, sliding_window=20)}
    seen = {}
    for name, checkpoints in (("wide", folders), ("narrow", narrow)):
        model = build(checkpoints, "mistral", a=Direction(2))
        batch = batch_of(model, [0, 3])
        model.objectives["a"].register_forward_pre_hook(lambda _m, step, n=name: seen.update({n: step[0]}))
        with torch.no_grad():
            model(batch)
        refined, share = slow(model, batch, 2, "increasing", True)
        look = model.objectives["a"].look
        assert torch.allclose(seen[name].refined[look], refined, rtol=1e-5, atol=1e-5)
        assert torch.allclose(seen[name].shares[look], share, rtol=1e-5, atol=1e-6)
    first = {name: step.shares[look] for name, step in seen.items()}
    assert not torch.allclose(first["wide"], first["narrow"], atol=1e-3)
    assert (first["narrow"][:, 0] == 0).all()  # the first token lies before every window of the text behind the image


def test_an_image_that_no_window_reaches_counts_nothing(folders, tmp_path):
    narrow = {**folders, "mistral": parts.llm("mistral", tmp_path, num_hidden_layers=4, sliding_window=4)}
    model = build(narrow, "mistral", a=Direction(2))
    batch = batch_of(model, [2])  # image, " or ", image
    first = int((batch.ids_RS[0] == model.vlm.llm.chat.mark).nonzero()[0])
    batch.ids_RS[0, first:] = 5  # any word
    batch.ids_RS[0, first : first + 2 * model.vlm.adapter.tokens] = (
        model.vlm.llm.chat.mark
    )  # side by side, no word between them
    with torch.no_grad():
        terms, _ = model(batch)
    assert torch.isfinite(terms["a"])


@pytest.mark.parametrize("family", list(parts.FAMILIES))
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_reaches_the_adapter_alone(folders, family, checkpointing):
    model = build(folders, family, direction=Direction(), distribution=Distribution())
    model.freeze_all_but(["adapter", "llm"])
    model.train()
    if checkpointing:
        model.vlm.llm.checkpoint_activations()
    terms, _ = model(batch_of(model, [0, 2, 3]))
    (terms["direction"] + terms["distribution"]).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.vlm.adapter.parameters())
    assert all(p.grad is None for p in [*model.vlm.llm.parameters(), *model.vlm.vision.parameters()])


def test_what_feeds_the_adapter_learns_when_it_is_trained(folders):
    model = build(folders, "llama", direction=Direction())
    model.freeze_all_but(["vision", "adapter"])
    terms, _ = model(batch_of(model, [0]))
    terms["direction"].backward()
    assert any(p.grad is not None and p.grad.any() for p in model.vlm.vision.parameters())


def test_lm_beside_it_is_unchanged(folders):
    alone = build(folders, "llama", lm=NextToken())
    both = build(folders, "llama", lm=NextToken(), direction=Direction(), distribution=Distribution())
    with torch.no_grad():
        one, two = alone(batch_of(alone, [0, 2]))[0]["lm"], both(batch_of(both, [0, 2]))[0]["lm"]
    assert torch.equal(one, two)


def test_samples_without_an_image_and_padding_change_nothing(folders):
    model = build(folders, "llama", direction=Direction(), distribution=Distribution())
    with torch.no_grad():
        alone = [model(batch_of(model, [number]))[0] for number in (0, 3)]  # an image each
        together = model(batch_of(model, [0, 3]))[0]
        beside = model(batch_of(model, [1, 0, 1, 3]))[0]
    for name in ("direction", "distribution"):
        mean = (alone[0][name] + alone[1][name]) / 2
        assert together[name].item() == pytest.approx(mean.item(), rel=1e-5)
        assert beside[name].item() == pytest.approx(mean.item(), rel=1e-5)


def test_a_pass_without_images_gives_zero(folders):
    model = build(folders, "llama", direction=Direction(), distribution=Distribution())
    terms, _ = model(batch_of(model, [1]))
    assert terms["direction"].item() == terms["distribution"].item() == 0


def test_attention_in_chunks_of_text_is_the_same(folders, monkeypatch):
    model = build(folders, "llama", a=Direction())
    with torch.no_grad():
        whole = model(batch_of(model, [0, 2, 3]))[0]["a"]
        monkeypatch.setattr(watch, "LIMIT", 1)
        bits = model(batch_of(model, [0, 2, 3]))[0]["a"]
    assert torch.allclose(whole, bits, rtol=1e-6)


def test_an_image_behind_all_text_is_refused(folders):
    model = build(folders, "llama", a=Direction())
    batch = batch_of(model, [0])
    last = int((batch.ids_RS[0] == model.vlm.llm.chat.mark).nonzero()[-1])
    batch.mask_RS[0, last + 1 :] = 0
    with pytest.raises(StageError, match="an image has no text behind it"):
        model(batch)


def test_capped_attention_is_refused(folders, tmp_path):
    parts.llm("llama", tmp_path)
    llm = CausalLM(str(tmp_path))
    llm.lm.config.attn_logit_softcapping = 50.0
    with pytest.raises(CheckError, match="caps its attention logits"):
        llm.prepare_looks([Look((1.0,), True)])
    llm.prepare_looks([Look((1.0,), False)])


def test_a_model_without_a_list_of_layers_is_refused(folders):
    class Odd(torch.nn.Module):
        base_model = torch.nn.Linear(2, 2)

    with pytest.raises(CheckError, match="Odd has no list of decoder layers"):
        watch.layers(Odd())
