"""Supervision of eight families of transformers: their own loss and gradients, BASIC by what eager attention returns,
SEA by the plain function."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments

import mmalign
from mmalign.errors import CheckError, StageError
from mmalign.integrations import declared, layouts, shown
from mmalign.integrations.whole import WholeVLM
from mmalign.objectives.basic import Direction
from tests.integrations import families, test_declared
from tests.integrations.test_declared import ROWS, batch, picture

made = cache(families.make)
BASIC = {"basic-direction": 2.0, "basic-distribution": 0.01}
INCLUDING = {name: {"weight": weight, "padding": "include"} for name, weight in BASIC.items()}  # padding, as the paper
OTHERS = [family for family in families.FAMILIES if family != "llava"]
family_ = pytest.mark.parametrize("family", OTHERS)


def fresh(family):
    return copy.deepcopy(made(family)[0]), made(family)[1]


def labelled(model, processor, rows=ROWS):
    """A batch with labels: input_ids but at padding and visual tokens, behind the first five positions."""
    inputs = dict(batch(processor, rows))
    kept = (inputs["attention_mask"] > 0) & (inputs["input_ids"] != model.config.image_token_id)
    kept[:, :5] = False
    inputs["labels"] = inputs["input_ids"].masked_fill(~kept, -100)
    return inputs


def texts_alone(processor):
    """A batch without a picture."""
    words = processor.tokenizer("what is this ? a red star", return_tensors="pt", return_token_type_ids=True)
    names = ["input_ids", "attention_mask", *{"token_type_ids"}.intersection(processor.model_input_names)]
    return {name: words[name] for name in names}


def naive(model, processor, inputs, weights=None):
    """(direction, distribution) of the paper, image by image, from what eager attention returns."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    told = declared.counts(declared.parts(model, processor), inputs)
    out = eager(**inputs, output_hidden_states=True, output_attentions=True)
    at_RS = inputs["input_ids"] == model.config.image_token_id
    rows, columns = torch.where(at_RS)
    layers = (len(out.hidden_states) - 1) // 2
    weight_L = torch.arange(1, layers + 1).float() ** 2
    embed_VD = model.get_input_embeddings().weight
    direction, distribution, start = [], [], 0
    for count in told:
        row, column_Q = rows[start], columns[start : start + count]
        start += count
        text_S = (inputs["attention_mask"][row] > 0) & ~at_RS[row]
        first = torch.where(at_RS[row])[0][0]
        text_S &= torch.arange(len(text_S)) > first
        looked_Q = sum(out.attentions[n][row, :, text_S][:, :, column_Q].sum((0, 1)) for n in range(layers))
        share_Q = looked_Q / looked_Q.sum()
        states = [out.hidden_states[n + 1][row, column_Q] for n in range(layers)]
        refined_QD = sum(w * state for w, state in zip(weight_L / weight_L.sum(), states, strict=True))
        token_QD = out.hidden_states[0][row, column_Q]
        unit, goal = token_QD / token_QD.norm(dim=-1, keepdim=True), refined_QD / refined_QD.norm(dim=-1, keepdim=True)
        direction.append((share_Q * (unit - goal).square().sum(-1)).sum())
        own, other = (torch.log_softmax(x @ embed_VD.T, -1) for x in (token_QD, refined_QD))
        distribution.append((share_Q * (other.exp() * (other - own)).sum(-1)).sum())
    return torch.stack(direction).mean().item(), torch.stack(distribution).mean().item()


@family_
def test_basic_is_the_papers_on_every_family(family):
    """Images of different numbers of tokens, one and two a row, rows padded."""
    model, processor = fresh(family)
    inputs = labelled(model, processor)
    direction, distribution = naive(model, processor, inputs)
    loss = model(**inputs).loss.item()
    terms = mmalign.supervise(model, processor, INCLUDING)(**inputs)
    assert terms["lm"].item() == pytest.approx(loss, rel=1e-5)
    assert terms["basic-direction"].item() == pytest.approx(direction, rel=1e-5)
    assert terms["basic-distribution"].item() == pytest.approx(distribution, rel=1e-5)
    assert terms["loss"].item() == pytest.approx(loss + 2 * direction + 0.01 * distribution, rel=1e-5)


@family_
def test_equal_attention_and_no_mean(family):
    """Places that are empty count nothing, whatever is done with the others."""
    model, processor = fresh(family)
    inputs = labelled(model, processor)
    args = {"attention": "equal", "subtract_mean": True, "layers": 2}
    own = [{"weight": 1.0, "padding": padding, **args} for padding in ("exclude", "include")]
    terms = [mmalign.supervise(model, processor, {"basic-direction": one})(**inputs) for one in own]
    assert "mmalign_rows" not in str(declared.parts(model, processor).language_model.config._attn_implementation)
    parts = declared.parts(model, processor)
    told = declared.counts(parts, inputs)
    out = model(**inputs, output_hidden_states=True)
    states = [torch.split(h[inputs["input_ids"] == model.config.image_token_id], told) for h in out.hidden_states[:3]]
    sizes = [size for _, own in ROWS for size in own]
    for one, exclude in zip(terms, (True, False), strict=True):
        losses = []
        for token_QD, one_QD, two_QD, size in zip(*states, sizes, strict=True):
            kept_Q = torch.ones(len(token_QD), dtype=torch.bool)
            if exclude and "image_sizes" in inputs:  # LLaVA-OneVision, which pads one picture beside another
                for view in layouts.views(parts, size, len(token_QD)):
                    kept_Q[list(view.token_P)] = torch.tensor(view.frame.seen())
            refined_BQD = mmalign.refined_tokens([one_QD[None], two_QD[None]])[:, kept_Q]
            goal_BQD = refined_BQD - refined_BQD.mean(1, keepdim=True)
            losses.append(mmalign.basic_direction_loss(token_QD[None, kept_Q], goal_BQD).item())
        assert one["basic-direction"].item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert (terms[0]["basic-direction"] == terms[1]["basic-direction"]) == ("image_sizes" not in inputs)


def test_shares_of_empty_places():
    """What another objective is told: 0 where there is no token, and 1 in all."""
    model, processor = fresh("qwen2_5_vl")
    steps = []
    for attention in ("auto", "equal"):
        supervised = mmalign.supervise(model, processor, {"basic-direction": {"attention": attention}})
        supervised.objectives["basic-direction"].register_forward_pre_hook(lambda module, args: steps.append(args[0]))
        supervised(**labelled(model, processor))
    for step in steps:
        (share_BQ,) = step.shares.values()
        assert share_BQ.sum(1).tolist() == pytest.approx([1] * 4)
        assert torch.equal(share_BQ > 0, step.real_BP)
        assert step.real_BP.sum(1).tolist() == [20, 12, 20, 16]


# Whose model it is


@family_
def test_gradients_are_the_models_own(family):
    """Of the loss; and BASIC's reach what makes visual tokens, never the language model."""
    model, processor = fresh(family)
    inputs, twin = labelled(model, processor), copy.deepcopy(model)
    twin(**inputs).loss.backward()
    terms = mmalign.supervise(model, processor, BASIC)(**inputs)
    terms["lm"].backward(retain_graph=True)
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4), name
    model.zero_grad()
    (terms["basic-direction"] + terms["basic-distribution"]).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("vis" in name for name in moved)
    assert not any("lm_head" in name or "language_model.layers" in name for name in moved)
    assert not any("text_model.layers" in name and "vision" not in name for name in moved)


@family_
def test_gradient_checkpointing_and_bf16(family):
    model, processor = fresh(family)
    inputs, twin = labelled(model, processor), copy.deepcopy(model)
    plain = mmalign.supervise(twin.train(), processor, BASIC)(**inputs)
    plain["loss"].backward()
    model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    terms = mmalign.supervise(model, processor, BASIC)(**inputs)
    terms["loss"].backward()
    for name, term in terms.items():
        assert term.item() == pytest.approx(plain[name].item(), rel=1e-5), name
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert ours.grad is None or torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4), name
    half = mmalign.supervise(model.bfloat16(), processor, BASIC)(
        **{k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    )
    assert half["basic-direction"].item() == pytest.approx(terms["basic-direction"].item(), rel=0.1)


@pytest.mark.parametrize("family", families.FAMILIES)  # LLaVA, too
def test_with_lora(family):
    peft = pytest.importorskip("peft")
    model, processor = fresh(family)
    inputs, (direction, distribution) = labelled(model, processor), naive(model, processor, labelled(model, processor))
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "qkv"]))
    terms = mmalign.supervise(tuned, processor, INCLUDING)(**inputs)
    assert terms["basic-direction"].item() == pytest.approx(direction, rel=1e-5)
    assert terms["basic-distribution"].item() == pytest.approx(distribution, rel=1e-5)
    terms["loss"].backward()
    learned = [p for name, p in tuned.named_parameters() if "lora_B" in name and p.grad is not None]
    assert learned
    assert all(p.grad.abs().sum() > 0 for p in learned)


def test_what_load_gives():
    model, processor = fresh("qwen2_5_vl")
    inputs = labelled(model, processor)
    terms = mmalign.supervise(WholeVLM(model, processor), objectives=BASIC)(**inputs)
    for name, term in mmalign.supervise(model, processor, BASIC)(**inputs).items():
        assert terms[name].item() == term.item(), name


# Batches


@family_
def test_texts_alone_and_nothing_to_train(family):
    model, processor = fresh(family)
    inputs = texts_alone(processor)
    supervised = mmalign.supervise(model, processor, BASIC).train()
    terms = supervised(**inputs, labels=inputs["input_ids"])
    assert {name for name, term in terms.items() if term.item()} == {"loss", "lm"}
    assert terms["lm"].item() == pytest.approx(model(**inputs, labels=inputs["input_ids"]).loss.item(), rel=1e-5)
    supervised.means.take()
    pictured = labelled(model, processor)
    pictured["labels"][:] = -100
    assert supervised(**pictured)["lm"].item() == 0
    del pictured["labels"]
    terms = supervised(**pictured)
    assert terms["lm"].item() == 0
    assert terms["basic-direction"].item() > 0
    terms["loss"].backward()
    assert supervised.means.take().keys() == {"lm", *BASIC}


# SEA


@pytest.fixture(scope="module")
def labeller():
    return mmalign.Labeller("toy-words", top_k=3, images=[picture(40, 30)])


COLOURS = {(0.25, 0.25): (250, 20, 20), (0.75, 0.25): (20, 250, 20), (0.25, 0.75): (20, 20, 250)}


def quarters(width, height, seed):
    """A picture of four colours; that of the last quarter is black."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for (x, y), colour in COLOURS.items():
        top, left = int(y > 0.5) * height // 2, int(x > 0.5) * width // 2
        pixels[top : top + height // 2, left : left + width // 2] = colour
    return Image.fromarray(pixels)


@family_
def test_pictures_as_they_are_shown(family, monkeypatch):
    """All of each picture, in its colours, whether it was cut up or not; several a row, rows without one."""
    model, processor = made(family)
    monkeypatch.setattr(test_declared, "picture", quarters)
    rows = [("what is this ?", [(40, 30)]), ("yes", []), ("is it red ?", [(20, 50), (40, 30)])]
    parts, inputs = declared.parts(model, processor), batch(processor, rows)
    sizes = [size for _, own in rows for size in own]
    own = shown.pictures(parts, inputs, declared.counts(parts, inputs), [0, 2, 2], sizes)
    assert len(own) == 3
    for (one, views), size in zip(own, sizes, strict=True):
        pixels = np.asarray(one).astype(int)
        padded = family == "llava_onevision" and len(views) == 1  # to a square, beside another picture
        shares = [side / max(size) if padded else 1 for side in size]
        for at, colour in {**COLOURS, (0.75, 0.75): (0, 0, 0)}.items():
            x, y = (0.5 + (t - 0.5) * share for t, share in zip(at, shares, strict=True))
            assert abs(pixels[int(y * len(pixels)), int(x * len(pixels[0]))] - colour).max() < 30, (at, colour)


@pytest.mark.parametrize(("family", "size"), [("llava", (16, 16)), ("gemma3", (32, 32)), ("qwen2_5_vl", (40, 32))])
def test_pixels_of_a_picture_that_need_no_resizing(family, size):
    model, processor = made(family)
    inputs = batch(processor, [("yes", [size, size])])
    parts = declared.parts(model, processor)
    own = shown.pictures(parts, inputs, declared.counts(parts, inputs), [0, 0], None)
    for seed, (one, _) in enumerate(own):
        assert abs(np.asarray(one).astype(int) - np.asarray(picture(*size, seed=seed))).max() <= 1


@pytest.mark.parametrize("family", ["gemma3", "paligemma", "qwen2_5_vl"])
def test_sea_is_the_plain_function(family, labeller):
    """Pictures of one size, so that all have one grid."""
    model, processor = fresh(family)
    rows = [("what is this ?", [(40, 30)]), ("is it red ?", [(40, 30)])]
    inputs = labelled(model, processor, rows)
    supervised = mmalign.supervise(model, processor, {"sea": 1.0}, labels=labeller)
    torch.manual_seed(5)
    terms = supervised(**inputs)
    torch.manual_seed(5)
    random = torch.Generator().manual_seed(int(torch.randint(1 << 31, ())))
    parts = declared.parts(model, processor)
    own = shown.pictures(parts, inputs, declared.counts(parts, inputs), [0, 1], None)
    embeds = model(**inputs, output_hidden_states=True).hidden_states[0]
    tokens = embeds[inputs["input_ids"] == model.config.image_token_id].view(2, -1, embeds.shape[-1])
    labels = labeller([one.picture for one in own])
    frames = [one.views[0].frame for one in own]
    text = supervised.vlm.word_embeddings(labels.words)
    plain = mmalign.sea_loss(tokens, labels, text, frames=frames, generator=random)
    assert plain.item() > 0
    assert terms["sea"].item() == pytest.approx(plain.item(), rel=1e-5)
    assert model.model.get_decoder().config._attn_implementation == "sdpa"
    terms["sea"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for name, p in model.named_parameters() if "vis" in name)


@family_
def test_labels_lie_where_the_views_say(family, labeller):
    """Every view of every picture, on one grid: tokens and the words of what is under their centres."""
    model, processor = fresh(family)
    inputs = labelled(model, processor)
    sizes = [size for _, own in ROWS for size in own]
    supervised = mmalign.supervise(model, processor, {"sea": 1.0}, labels=labeller)
    steps, objective = [], supervised.objectives["sea"]
    objective.register_forward_pre_hook(lambda module, args: steps.append(args[0]))
    assert supervised(**inputs, picture_sizes=torch.tensor([size[::-1] for size in sizes]))["sea"].item() > 0
    (step,) = steps
    parts = declared.parts(model, processor)
    told = declared.counts(parts, inputs)
    with declared.entering(parts) as entry:
        model(**inputs)
    tokens = torch.split(entry.tokens_ND, told)
    own, view = shown.pictures(parts, inputs, told, [0, 1, 1, 2], sizes), 0
    labelled_patches = 0
    assert len(step.visual_BPD) == sum(len(one.views) for one in own)
    assert (sum(len(one.views) for one in own) > 4) == (family not in ("gemma3", "paligemma", "qwen2_5_vl"))
    for one, token_QD, size in zip(own, tokens, sizes, strict=True):
        labels, side = labeller([one.picture]), labeller.encoder.grid[0]
        for frame, token_P in one.views:
            for patch, (token, box) in enumerate(zip(token_P, frame.patch_boxes(), strict=True)):
                y, x = divmod(patch, frame.grid[1])
                place = y * step.grid[1] + x
                assert torch.equal(step.visual_BPD[view, place], token_QD[token])
                words_1K, scores_1K = step.labels(torch.tensor([view * step.visual_BPD.shape[1] + place]))
                if family == "llava_onevision" and len(one.views) == 1:  # padded
                    seen = layouts.views(parts, size, len(token_QD))[0].frame.seen()[patch]
                    assert seen or not scores_1K.any()
                    continue
                (cx, cy) = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
                (x0, y0, x1, y1) = labeller.encoder.frame(one.picture.size).region
                if min(abs(cx - x0), abs(cx - x1), abs(cy - y0), abs(cy - y1)) < 1e-6:  # on the edge
                    continue
                if not (x0 < cx < x1 and y0 < cy < y1):  # cropped away when labels are made
                    assert not scores_1K.any()
                    continue
                under = int((cy - y0) / (y1 - y0) * side) * side + int((cx - x0) / (x1 - x0) * side)
                assert torch.equal(words_1K[0], labels.words_BPK[0, under].to(words_1K.dtype))
                labelled_patches += bool(scores_1K.any())
            empty = [y * step.grid[1] + x for y in range(step.grid[0]) for x in range(step.grid[1])
                     if y >= frame.grid[0] or x >= frame.grid[1]]  # fmt: skip
            assert not step.labels(torch.tensor(empty, dtype=torch.long) + view * step.visual_BPD.shape[1])[1].any()
            assert not step.visual_BPD[view, empty].any()
            view += 1
    assert labelled_patches > 10


# transformers' Trainer


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, number):
        return ROWS[number % len(ROWS)]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "idefics3"])
def test_the_trainer_trains_saves_and_resumes(family, labeller, tmp_path, monkeypatch):
    """Every term in the log; the parameters of the model and of the objectives come back, each written once."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    model, processor = fresh(family)
    supervised = mmalign.supervise(model, processor, {"sea": 1.0, **BASIC}, labels=labeller)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = TrainingArguments(
        str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=2, use_cpu=True, report_to=[], logging_steps=1,
        gradient_accumulation_steps=2, remove_unused_columns=False, disable_tqdm=True, learning_rate=1e-3,
        save_strategy="steps", save_steps=2,
    )  # fmt: skip
    passes = []
    supervised.register_forward_hook(lambda module, args, out: passes.append(out["loss"].item()))
    trainer = Trainer(
        model=supervised, args=settings, train_dataset=Rows(),
        data_collator=lambda rows: labelled(model, processor, rows), callbacks=[supervised.log_terms()],
    )  # fmt: skip
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all({"lm", "sea", *BASIC} <= line.keys() for line in lines)
    for line, one, other in zip(lines, passes[::2], passes[1::2], strict=True):  # divided by what is accumulated
        assert line["loss"] == pytest.approx((one + other) / 2, rel=1e-3)
    ended = {name: p.detach().clone() for name, p in supervised.named_parameters()}
    assert sum(not torch.equal(p, before[name]) for name, p in model.named_parameters()) > len(before) / 2
    with torch.no_grad():
        for parameter in supervised.parameters():
            parameter.zero_()
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for name, parameter in supervised.named_parameters():
        assert torch.allclose(parameter, ended[name], atol=1e-5), name
    model.save_pretrained(tmp_path / "plain")
    inputs = labelled(model, processor)
    loaded = type(model).from_pretrained(tmp_path / "plain")
    assert loaded(**inputs).loss.item() == pytest.approx(model(**inputs).loss.item(), rel=1e-5)


# Mistakes


def test_an_image_with_no_text_behind_it():
    model, processor = fresh("qwen2_5_vl")
    inputs = batch(processor, [("what is this ?", [(40, 30)])])
    end = int(torch.where(inputs["input_ids"][0] == model.config.image_token_id)[0][-1]) + 1
    inputs = {
        k: v[:, :end] if k in ("input_ids", "attention_mask", "mm_token_type_ids") else v for k, v in inputs.items()
    }
    with pytest.raises(StageError, match="an image has no text behind it") as error:
        mmalign.supervise(model, processor, BASIC)(**inputs)
    assert "attention: equal" in error.value.fix


def test_sizes_of_other_pictures():
    model, processor = fresh("qwen2_5_vl")
    with pytest.raises(CheckError, match="4 images in a batch, and the sizes of 1 pictures") as error:
        mmalign.supervise(model, processor, BASIC)(**labelled(model, processor), picture_sizes=torch.tensor([[1, 2]]))
    assert error.value.at == "picture_sizes"


def test_pixels_that_are_not_the_processors(labeller):
    model, processor = fresh("gemma3")
    own, inputs = declared.parts(model, processor), labelled(model, processor)
    with pytest.raises(CheckError, match="4 images in a batch whose tokens do not lie as patches of 3 pictures"):
        shown.pictures(own, {"pixel_values": inputs["pixel_values"][:3]}, [16] * 4, [0, 1, 1, 2], None)
    with pytest.raises(CheckError, match="4 images in a batch whose tokens do not lie as patches of 4 pictures"):
        shown.pictures(own, inputs, [16, 16, 16, 15], [0, 1, 1, 2], None)


def test_sea_where_tokens_are_no_patches_and_without_labels(labeller, monkeypatch):
    model, processor = fresh("gemma3")
    with pytest.raises(CheckError, match="sea needs labels") as error:
        mmalign.supervise(model, processor, {"sea": 1.0})
    assert error.value.at == "objectives.sea"
    monkeypatch.setattr(model.config, "perceiver_config", {}, raising=False)
    with pytest.raises(CheckError, match="single patches, and where those of a gemma3 model lie is not known") as error:
        mmalign.supervise(model, processor, {"sea": 1.0}, labels=labeller)
    assert "basic-direction" in error.value.fix
    assert mmalign.supervise(model, processor, BASIC)(**labelled(model, processor))["basic-direction"].item() > 0


def test_an_objective_on_answers(monkeypatch):
    model, processor = fresh("gemma3")
    monkeypatch.setattr(Direction, "needs", frozenset({"answers"}))
    with pytest.raises(CheckError, match="basic-direction looks at the answers, and a gemma3 model keeps them"):
        mmalign.supervise(model, processor, BASIC)
