"""Objectives that need hidden states, on eight families of transformers: what they are handed is transformers' own."""

import copy

import pytest
import torch
from torch.nn import functional as F

import mmalign
from mmalign.integrations import declared, shown
from mmalign.integrations.whole import WholeVLM
from mmalign.llms import LLM, head, rows, vocabulary
from mmalign.objectives import Step
from tests.integrations import families
from tests.integrations.test_declared import ROWS, picture
from tests.integrations.test_supervising import family_, fresh, labelled, texts_alone

EACH = {
    "next-embedding": 0.1,
    "visual-words": 0.1,
    "caption-contrast": {"weight": 1.0, "layer": 1},
    "assignment": {"weight": 1.0, "temperature": 0.5, "epsilon": 0.5},
}


def handed(supervised, name):
    """The steps that an objective is handed."""
    steps = []
    supervised.objectives[name].register_forward_pre_hook(lambda module, args: steps.append(args[0]))
    return steps


def states_by_hand(model, processor, inputs):
    """[(image, row, columns)] and transformers' hidden_states, in its graph."""
    out = model(**inputs, output_hidden_states=True)
    told, images = declared.counts(declared.parts(model, processor), inputs), []
    row_N, column_N = torch.where(inputs["input_ids"] == model.config.image_token_id)
    for image, count in enumerate(told):
        start = sum(told[:image])
        images.append((image, int(row_N[start]), column_N[start : start + count].tolist()))
    return images, out.hidden_states


@family_
def test_states_and_captions_are_those_of_transformers(family):
    model, processor = fresh(family)
    inputs = labelled(model, processor)
    images, hidden = states_by_hand(model, processor, inputs)
    supervised = mmalign.supervise(model, processor, EACH)
    steps = {name: handed(supervised, name) for name in EACH}
    terms = supervised(**inputs)
    last = len(hidden) - 1
    for step, layer in (
        (steps["next-embedding"][0], last),
        (steps["caption-contrast"][0], 1),
        (steps["assignment"][0], 0),
    ):
        for image, row, columns in images:
            own_QD = step.states[layer][image]
            assert torch.allclose(own_QD[: len(columns)], hidden[layer][row, columns], atol=1e-5)
            assert not own_QD[len(columns) :].any()
    (step,) = steps["caption-contrast"]
    assert step.sample_B.tolist() == [row for _, row, _ in images]
    said = [
        (row, column)
        for row, own in enumerate(inputs["labels"].tolist())
        for column in range(len(own))
        if own[column] != -100
    ]
    assert step.caption_M.tolist() == [row for row, _ in said]
    assert step.caption_id_M.tolist() == [int(inputs["input_ids"][at]) for at in said]
    want_MD = torch.stack([hidden[1][at] for at in said])
    assert torch.allclose(step.captions[1], want_MD, atol=1e-5)
    assert all(terms[name].item() > 0 for name in EACH)
    terms["loss"].backward()
    assert supervised.objectives["next-embedding"].regress.weight.grad.any()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@family_
def test_gradient_checkpointing_changes_nothing(family):
    model, processor = fresh(family)
    inputs, twin = labelled(model, processor), copy.deepcopy(model)
    torch.manual_seed(0)
    mmalign.supervise(twin.train(), processor, EACH)(**inputs)["loss"].backward()
    model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(0)
    mmalign.supervise(model, processor, EACH)(**inputs)["loss"].backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4), name


@family_
def test_texts_alone_go_back_through_all_layers(family):
    model, processor = fresh(family)
    inputs = texts_alone(processor)
    terms = mmalign.supervise(model, processor, EACH).train()(**inputs, labels=inputs["input_ids"])
    assert {name for name, term in terms.items() if term.item()} == {"loss", "lm"}
    terms["caption-contrast"].backward()


@pytest.mark.parametrize("layer", ["last", 1, 0])
def test_the_logit_lens_reads_each_tile_where_it_lies(layer):
    """By hand, view by view and place by place, from the pass that has no views."""
    model, processor = fresh("llava_onevision")
    inputs = labelled(model, processor)
    labeller = mmalign.Labeller("toy-words", top_k=3, images=[picture(40, 30)])
    supervised = mmalign.supervise(model, processor, {"logit-lens": {"weight": 1.0, "layer": layer}}, labels=labeller)
    steps = handed(supervised, "logit-lens")
    loss = supervised(**inputs)["logit-lens"]
    _, hidden = states_by_hand(model, processor, inputs)
    (step,), number = steps, {"last": len(hidden) - 1}.get(layer, layer)
    visual_ND = hidden[0].flatten(0, 1)
    views, places = step.visual_BPD.shape[:2]
    words_NK, scores_NK = step.labels(torch.arange(views * places))
    body, weight = WholeVLM(model, processor).llm.body, model.get_output_embeddings().weight
    total = torch.zeros(())
    for view in range(views):
        patches = []
        for place in range(places):
            n = view * places + place
            if not (scores_NK[n] > 0).any():
                continue
            own = int((visual_ND - step.visual_BPD[view, place]).norm(dim=-1).argmin())  # which token stands there
            state = hidden[number].flatten(0, 1)[own]
            log_V = F.log_softmax(weight @ (state if layer == "last" else body.norm(state)), -1)
            nll, whole = 0, scores_NK[n].clamp(min=0).sum()
            for word, score in zip(words_NK[n].tolist(), scores_NK[n].clamp(min=0), strict=True):
                pieces = [piece for piece in step.words.pieces_WT[word].tolist() if piece >= 0]
                nll = nll - score / whole * sum(log_V[piece] for piece in pieces) / max(1, len(pieces))
            patches.append(nll)
        total = total + (sum(patches) / len(patches) if patches else 0)
    assert views > len(ROWS)  # tiles
    assert loss.item() == pytest.approx((total / views).item(), rel=1e-4)


@pytest.mark.parametrize("count", [0, 5, 12])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_losses_under_the_models_own_head_never_hold_all_rows(count, softcap, monkeypatch):
    """The head's class and its hooks are what they were; chunks of five rows equal all rows."""
    model, processor = families.make("qwen2_5_vl")
    llm = WholeVLM(model, processor).llm
    llm.softcap, kind, calls = softcap, type(llm.out), []
    hook = llm.out.register_forward_hook(lambda module, args, out: calls.append(out.shape))
    monkeypatch.setattr(rows, "LEAST", 5)
    for limits in (head.LIMIT, vocabulary.LIMIT):
        monkeypatch.setitem(limits, "cpu", 1)
    hidden_ND, target_ND = (torch.randn(count, llm.dim, requires_grad=True) for _ in range(2))
    token_NT, weight_NT = torch.randint(llm.vocab, (count, 2)), torch.rand(count, 2)
    target_VD = torch.randn(llm.vocab, llm.dim, requires_grad=True)
    losses = {"nll": (token_NT, weight_NT), "kl": (target_ND, target_VD, weight_NT[:, 0])}
    for name, args in losses.items():
        wanted = [hidden_ND, llm.out.weight] + ([target_ND, target_VD] if name == "kl" else [])
        own, plain = getattr(llm, name)(hidden_ND, *args), getattr(LLM, name)(llm, hidden_ND, *args)
        assert own.item() == pytest.approx(plain.item(), rel=1e-5)
        for one, other in zip(torch.autograd.grad(own, wanted), torch.autograd.grad(plain, wanted), strict=True):
            assert torch.allclose(one, other, atol=1e-5)
    assert calls == [torch.Size([]), torch.Size([count, llm.vocab])] * 2
    assert type(llm.out) is kind
    assert "forward" not in vars(llm.out)
    hook.remove()


def test_a_head_with_a_bias_is_read_as_it_is():
    layer = torch.nn.Linear(4, 7)
    assert head.ask(layer, torch.randn(2, 4), lambda hidden, weight: hidden.sum()) is None
    layer = torch.nn.Linear(4, 7, bias=False)
    with pytest.raises(ValueError, match="broken"):
        head.ask(layer, torch.randn(2, 4), lambda hidden, weight: (_ for _ in ()).throw(ValueError("broken")))
    assert layer(torch.randn(2, 4)).shape == (2, 7)


def test_without_a_final_norm_it_says_so(monkeypatch):
    model, processor = fresh("qwen2_5_vl")
    monkeypatch.setattr(type(declared.parts(model, processor).language_model), "norm", None, raising=False)
    del declared.parts(model, processor).language_model._modules["norm"]
    with pytest.raises(mmalign.errors.CheckError, match="next-embedding needs hidden states with a gradient"):
        mmalign.supervise(model, processor, {"next-embedding": 1.0})


def test_nothing_is_kept_that_nobody_asked_for():
    model, processor = fresh("qwen2_5_vl")
    supervised = mmalign.supervise(model, processor, {"basic-direction": 1.0})
    steps = handed(supervised, "basic-direction")
    supervised(**labelled(model, processor))
    assert not {"states", "captions", "nll"} & set(vars(steps[0]))
    assert isinstance(steps[0], Step)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision", "gemma3"])
def test_an_encoders_features_lie_under_the_tokens_of_each_view(family):
    """By hand, view by view: the patch of the encoder under each token's centre."""
    model, processor = fresh(family)
    inputs = labelled(model, processor)
    args = {"weight": 1.0, "encoder": "toy-clip", "width": 8, "layer": 1}
    supervised = mmalign.supervise(model, processor, {"representation": args})
    steps = handed(supervised, "representation")
    loss = supervised(**inputs)["representation"]
    (step,), (encoder,) = steps, supervised.encoders
    sizes = [size for _, own in ROWS for size in own]
    parts, told = declared.parts(model, processor), declared.counts(declared.parts(model, processor), inputs)
    images, hidden = states_by_hand(model, processor, inputs)
    shown_ = shown.pictures(
        parts, inputs, told, [row for _, row, _ in images], sizes if "image_sizes" in inputs else None
    )
    total, views = torch.zeros(()), [(one, image, view) for image, one in enumerate(shown_) for view in one.views]
    assert len(views) == len(step.visual_BPD) >= len(sizes)
    for number, (one, image, view) in enumerate(views):
        patches_PC = encoder(encoder.pixels(one.picture)[None])[0]
        under, gaps = encoder.frame(one.picture.size).onto(view.frame), []
        _, row, columns = images[image]
        for place, (patch, token) in enumerate(zip(under, view.token_P, strict=True)):
            high, wide = divmod(place, view.frame.grid[1])
            at = high * step.grid[1] + wide
            counts = patch >= 0 and bool(step.counted_BP[number, at])
            assert bool(step.targets[encoder].known_BP[number, at] & step.counted_BP[number, at]) == counts
            if counts:
                state = hidden[1][row, columns[token]]
                gaps.append(
                    1
                    - F.cosine_similarity(
                        supervised.objectives["representation"].project(state), patches_PC[patch], dim=0
                    )
                )
        total = total + (sum(gaps) / len(gaps) if gaps else 0)
    assert loss.item() == pytest.approx((total / len(views)).item(), rel=1e-4)
    loss.backward()
    assert not any(p.requires_grad for p in encoder.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
    assert not any("toy" in name or "encoder" in name for name in dict(supervised.objectives.named_parameters()))
