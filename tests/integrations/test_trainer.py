"""Supervision of a plain transformers LLaVA: its own loss, the terms of our route and of the plain functions, its own
gradients, and every term in the log of transformers' Trainer."""

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoProcessor, Trainer, TrainingArguments

import mmalign
from mmalign.adapters.squares import AveragePool
from mmalign.data import MARK, Turn
from mmalign.errors import CardError, CheckError
from mmalign.integrations.transformers_vlm import wrap
from mmalign.llms import plain
from mmalign.objectives.lm import NextToken
from mmalign.stages import export
from mmalign.toyworld.data import Captions, VisualChat
from mmalign.vlm.pictures import pictures
from tests.cli.conftest import finished
from tests.conftest import TINY

IMAGES = 6
WEIGHTS = {"lm": 1.0, "sea": 0.5, "basic-direction": 2.0, "basic-distribution": 0.01}


@pytest.fixture(autouse=True)
def no_rank(monkeypatch):
    """A process as a reader's is: DeepSpeed, in other tests of this one, names a rank, and accelerate believes it."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A training stage whose adapter is drawn; its encoder has no final norm, as LLaVA's class wants it."""
    place = tmp_path_factory.mktemp("kept")
    (place / "tiny.yaml").write_text(TINY)
    return finished(place / "runs", place / "tiny.yaml", "align", "model.vision.args.norm=false")


@pytest.fixture
def vlm(folder):
    return mmalign.load(folder)


@pytest.fixture
def llava(vlm, tmp_path):
    """(the same model as a LlavaForConditionalGeneration, its processor), in training mode, the encoder frozen."""
    whole = export.llava(vlm).train()
    whole.model.vision_tower.requires_grad_(False).eval()
    export.processor(vlm).save_pretrained(tmp_path / "processor")
    plain.finish(tmp_path / "processor", vlm.llm.chat)  # whose template marks the answers
    return whole, AutoProcessor.from_pretrained(tmp_path / "processor")


@pytest.fixture(scope="module")
def data():
    return Captions(IMAGES)


@pytest.fixture
def inputs(vlm, data):
    """Rows of unlike lengths, padded; one without an image."""
    turns = [record.turns for record in data]
    turns.append((Turn("user", "what is this ?"), Turn("assistant", "a red star")))
    return vlm.inputs(turns, [*([data.image(n)] for n in range(IMAGES)), []])


@pytest.fixture(scope="module")
def labeller(data):
    return mmalign.Labeller("toy-words", top_k=3, images=[data.image(n) for n in range(IMAGES)])


def supervised(model, labeller, **weights):
    weights = weights or WEIGHTS
    model, processor = model if isinstance(model, tuple) else (model, None)
    return mmalign.supervise(model, processor, weights, labels=labeller)


def terms_of(model, inputs, seed=0):
    torch.manual_seed(seed)
    return model(**inputs)


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


def learning(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


# The terms


def test_lm_is_the_loss_of_transformers(llava, inputs):
    whole, processor = llava
    model = mmalign.supervise(whole, processor)
    assert set(terms_of(model, inputs)) == {"loss", "lm"}
    theirs = whole(**inputs).loss
    assert model(**inputs)["lm"].item() == pytest.approx(theirs.item(), rel=1e-5)
    assert model(**inputs)["loss"].item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_batch_of_the_models_own_processor(llava, data):
    """Whatever it pads and however: labels are input_ids but at padding and image marks."""
    whole, processor = llava
    talks = [f"<user>{MARK} what is this ?<assistant>a red star", f"<user>{MARK} what is it ?<assistant>one large ring"]
    batch = dict(processor(images=[data.image(0), data.image(1)], text=talks, return_tensors="pt", padding=True))
    kept = (batch["attention_mask"] > 0) & (batch["input_ids"] != whole.config.image_token_id)
    batch["labels"] = batch["input_ids"].masked_fill(~kept, -100)
    batch = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "labels")}
    lm = mmalign.supervise(whole, processor)(**batch)["lm"].item()
    assert lm == pytest.approx(whole(**batch).loss.item(), rel=1e-5)


def test_all_terms_are_those_of_our_own_model(llava, vlm, inputs, labeller):
    theirs, ours = (terms_of(supervised(model, labeller), inputs) for model in (llava, vlm))
    assert set(theirs) == {"loss", *WEIGHTS}
    for name, term in ours.items():
        assert term.item() > 0
        assert theirs[name].item() == pytest.approx(term.item(), rel=1e-4), name


def test_basic_by_the_plain_functions(llava, inputs, labeller):
    """Hidden states and attention as transformers' eager attention returns them."""
    whole, _ = llava
    terms = terms_of(supervised(llava, labeller), inputs)
    eager = copy.deepcopy(whole)
    eager.set_attn_implementation("eager")
    out = eager(**inputs, output_hidden_states=True, output_attentions=True)
    at = inputs["input_ids"] == whole.config.image_token_id
    row, column = (index.view(IMAGES, -1) for index in torch.where(at))
    tokens = out.hidden_states[0][row, column]
    text = (inputs["attention_mask"] > 0) & ~at
    layers = whole.config.text_config.num_hidden_layers // 2
    refined = mmalign.refined_tokens([hidden[row, column] for hidden in out.hidden_states[1 : layers + 1]])
    attentions = [attention[row[:, 0]] for attention in out.attentions[:layers]]
    share = mmalign.attention_share(attentions, column, text[row[:, 0]])
    direction = mmalign.basic_direction_loss(tokens, refined, share)
    embed_VD = whole.get_input_embeddings().weight
    distribution = mmalign.basic_distribution_loss(tokens, refined, share, embed_VD)
    assert terms["basic-direction"].item() == pytest.approx(direction.item(), rel=1e-4)
    assert terms["basic-distribution"].item() == pytest.approx(distribution.item(), rel=1e-4)


def test_sea_by_the_plain_function(llava, inputs, labeller, data):
    """The labels are those of the pictures as the model is shown them; the draws those of the global generator."""
    whole, _ = llava
    model = supervised(llava, labeller)
    term = terms_of(model, inputs, seed=5)["sea"]
    torch.manual_seed(5)
    random = torch.Generator().manual_seed(int(torch.randint(1 << 31, ())))
    labels = labeller(pictures(model.vlm.vision, inputs["pixel_values"]))
    own = labeller([data.image(n) for n in range(IMAGES)])
    assert torch.equal(labels.words_BPK, own.words_BPK)
    embeds = whole(**inputs, output_hidden_states=True).hidden_states[0]
    tokens = embeds[inputs["input_ids"] == whole.config.image_token_id].view(IMAGES, -1, embeds.shape[-1])
    text = model.vlm.word_embeddings(labels.words)
    assert term.item() == pytest.approx(mmalign.sea_loss(tokens, labels, text, generator=random).item(), rel=1e-4)


def test_the_loss_is_the_weighted_sum(llava, inputs, labeller):
    terms = terms_of(supervised(llava, labeller), inputs)
    assert terms["loss"].item() == pytest.approx(sum(w * terms[name].item() for name, w in WEIGHTS.items()), rel=1e-6)
    terms = terms_of(supervised(llava, labeller, lm=0.0, sea={"weight": 3.0, "window": 3}), inputs)
    assert set(terms) == {"loss", "lm", "sea"}
    assert terms["loss"].item() == pytest.approx(3 * terms["sea"].item(), rel=1e-6)


def test_arguments_of_an_objective(llava, labeller):
    model = supervised(llava, labeller, sea={"weight": 3.0, "window": 3})
    assert model.objectives["sea"].window == 3
    assert model.weights == {"lm": 1.0, "sea": 3.0}


def test_a_batch_without_images_and_one_without_labels(llava, vlm, labeller, inputs):
    model = supervised(llava, labeller)
    terms = model(**vlm.inputs([(Turn("user", "what is it ?"), Turn("assistant", "red"))]))
    assert {name for name, term in terms.items() if term.item()} == {"loss", "lm"}
    del inputs["labels"], inputs["attention_mask"]
    assert model(**inputs)["lm"].item() == 0


# Whose model it is


def test_nothing_of_the_users_model_changes_but_gradients(llava, inputs, labeller):
    """Modes and requires_grad, set unevenly; and the gradients are transformers' own."""
    whole, _ = llava
    whole.lm_head.requires_grad_(False)
    whole.model.language_model.layers[0].requires_grad_(False).eval()
    before = modes(whole), learning(whole)
    twin = copy.deepcopy(whole)
    twin(**inputs).loss.backward()
    terms = terms_of(supervised(llava, labeller), inputs)
    assert (modes(whole), learning(whole)) == before
    terms["lm"].backward(retain_graph=True)
    for (name, ours), theirs in zip(whole.named_parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.allclose(ours.grad, theirs.grad, atol=1e-6), name
    whole.zero_grad()
    terms["sea"].backward()
    assert all(p.grad.abs().sum() > 0 for p in whole.model.multi_modal_projector.parameters())
    assert all(p.grad is None for p in whole.model.vision_tower.parameters())


def test_its_parameters_are_the_users_own(llava, labeller):
    whole, _ = llava
    model = supervised(llava, labeller)
    ours = {id(p) for p in model.parameters()}
    assert {id(p) for p in whole.parameters()} <= ours
    assert len(ours) == len(list(whole.parameters())) + 1  # SEA's temperature


def test_without_basic_attention_is_left_alone(llava, labeller):
    whole, _ = llava
    supervised(llava, labeller, sea=1.0)
    assert whole.model.language_model.config._attn_implementation == "sdpa"


def test_our_own_model(vlm, inputs, labeller):
    vlm.freeze_all_but(["adapter"])
    before = modes(vlm), learning(vlm)
    terms = terms_of(supervised(vlm, labeller), inputs)
    assert (modes(vlm), learning(vlm)) == before
    terms["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in vlm.adapter.parameters())
    assert all(p.grad is None for p in [*vlm.llm.parameters(), *vlm.vision.parameters()])


# transformers' Trainer


class Rows(torch.utils.data.Dataset):
    def __init__(self, size):
        self.chat = VisualChat(size, questions=1)

    def __len__(self):
        return len(self.chat)

    def __getitem__(self, number):
        return self.chat[number]


def train(model, rows, tmp_path, steps=3, batch=3, accumulate=2, **more):
    """Trainer's log of some steps. Batches of `batch` rows; the last of an epoch may be shorter."""
    settings = TrainingArguments(
        str(tmp_path / "out"), max_steps=steps, per_device_train_batch_size=batch, use_cpu=True, report_to=[],
        gradient_accumulation_steps=accumulate, logging_steps=1, remove_unused_columns=False, disable_tqdm=True,
        **{"save_strategy": "no", "learning_rate": 1e-3} | more,
    )  # fmt: skip

    def collate(records):
        return model.vlm.inputs([r.turns for r in records], [[rows.chat.image(i) for i in r.images] for r in records])

    trainer = Trainer(
        model=model, args=settings, train_dataset=rows, eval_dataset=rows, data_collator=collate,
        callbacks=[model.log_terms()],
    )  # fmt: skip
    trainer.train()
    return trainer


def test_the_trainer_logs_every_term_over_what_it_accumulates(llava, labeller, tmp_path):
    """The mean of a term over both passes of a step, by their tokens or images; the second one is shorter."""
    model = supervised(llava, labeller)
    passes = []

    def note(module, args, inputs, terms):
        tokens = int((inputs["labels"][:, 1:] != -100).sum())
        passes.append(({name: term.item() for name, term in terms.items()}, tokens, len(inputs["pixel_values"])))

    model.register_forward_hook(note, with_kwargs=True)
    before = [p.detach().clone() for p in llava[0].model.multi_modal_projector.parameters()]
    log = train(model, Rows(5), tmp_path).state.log_history
    lines = [line for line in log if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [images for _, _, images in passes] == [3, 2] * 3
    assert passes[0][1] != passes[1][1]
    for line, one, other in zip(lines, passes[::2], passes[1::2], strict=True):
        for name in WEIGHTS:
            unit = 1 if name == "lm" else 2
            total = one[0][name] * one[unit] + other[0][name] * other[unit]
            assert line[name] == pytest.approx(total / (one[unit] + other[unit]), rel=1e-5), name
        assert line["loss"] == pytest.approx((one[0]["loss"] + other[0]["loss"]) / 2, rel=1e-3)
    after = llava[0].model.multi_modal_projector.parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_evaluation_between_does_not_enter_the_log(llava, labeller, tmp_path):
    model = supervised(llava, labeller)
    log = train(model, Rows(3), tmp_path, accumulate=1, eval_strategy="steps", eval_steps=1, prediction_loss_only=True)
    log = log.state.log_history
    assert [line["step"] for line in log if "eval_loss" in line] == [1, 2, 3]
    assert not any("sea" in line for line in log if "eval_loss" in line)
    twin = mmalign.supervise(model.vlm, objectives=WEIGHTS, labels=labeller)
    assert twin.means.take() == {}
    twin.eval()
    twin(**model.vlm.inputs([(Turn("user", "what is it ?"), Turn("assistant", "red"))]))
    assert twin.means.take() == {}


def test_what_the_trainer_saves_it_resumes_from(llava, labeller, tmp_path):
    """A tied head is written once, and comes back."""
    whole, _ = llava
    assert whole.lm_head.weight is whole.get_input_embeddings().weight
    model = supervised(llava, labeller)
    trainer = train(model, Rows(4), tmp_path, accumulate=1, save_strategy="steps", save_steps=2)
    ended = {name: p.detach().clone() for name, p in whole.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert trainer.state.global_step == 3
    for name, parameter in whole.named_parameters():
        assert torch.allclose(parameter, ended[name], atol=1e-6), name
    model.load_state_dict(model.state_dict())  # strictly
    assert not any(name.endswith("lm_head.weight") for name in model.state_dict())


# Mistakes


def test_a_model_of_another_kind(llava):
    other = SimpleNamespace(config=SimpleNamespace(model_type="fuyu"))
    with pytest.raises(CheckError, match=r"a fuyu model does not declare config\.image_token_id") as error:
        mmalign.supervise(other, llava[1])
    assert "mmalign new" in error.value.fix
    with pytest.raises(CheckError, match="a Linear model does not declare"):
        mmalign.supervise(torch.nn.Linear(1, 1))
    with pytest.raises(CheckError, match="a fuyu model is no LlavaForConditionalGeneration"):
        wrap(other, llava[1])


def test_no_processor(llava):
    with pytest.raises(CheckError, match="a transformers model comes with its processor"):
        mmalign.supervise(llava[0])


def test_a_model_that_reads_several_layers(llava):
    whole, processor = llava
    whole.config.vision_feature_layer = [-2, -3]
    with pytest.raises(CheckError, match=r"several layers of its encoder, \[-2, -3\]"):
        wrap(whole, processor)


def test_pictures_of_one_size(llava, data):
    with pytest.raises(CheckError, match="pictures of one size"):
        wrap(*llava).vision.pixels(data.image(0), scale=2)


def test_labels_that_are_other_tokens(llava, inputs):
    model = mmalign.supervise(*llava)
    inputs["labels"] = inputs["labels"].roll(-1, dims=1)  # shifted already
    with pytest.raises(CheckError, match="labels are other tokens than input_ids") as error:
        model(**inputs)
    assert "-100 where nothing is trained" in error.value.fix


def test_an_objective_nobody_has(llava):
    with pytest.raises(CardError, match="no objectives card named 'see'"):
        mmalign.supervise(*llava, {"see": 1.0})


def test_a_label_source_nobody_has(llava):
    with pytest.raises(CardError, match="no labels card named 'toy-wrods'") as error:
        mmalign.supervise(*llava, {"sea": 1.0}, labels="toy-wrods")
    assert "toy-words" in error.value.fix


def test_an_argument_it_does_not_take(llava, labeller):
    with pytest.raises(CardError, match="windows"):
        mmalign.supervise(*llava, {"sea": {"windows": 3}}, labels=labeller)


def test_sea_without_labels(llava):
    with pytest.raises(CheckError, match="sea needs labels") as error:
        mmalign.supervise(*llava, {"sea": 1.0})
    assert error.value.at == "objectives.sea"
    assert error.value.fix == 'supervise(..., labels="siglip-words")'


def test_an_adapter_without_a_grid(vlm, labeller):
    vlm.adapter = AveragePool(vlm.vision.dim, vlm.llm.dim, vlm.vision.grid)
    assert vlm.grid is None
    assert set(mmalign.supervise(vlm).objectives) == {"lm"}
    assert isinstance(mmalign.supervise(vlm).objectives["lm"], NextToken)
    with pytest.raises(CheckError, match="sea supervises single patches, and AveragePool does not keep") as error:
        mmalign.supervise(vlm, objectives={"sea": 1.0}, labels=labeller)
    assert "an adapter with keeps_grid" in error.value.fix
