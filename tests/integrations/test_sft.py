"""TRL's SFTTrainer trains the weighted sum of the terms; what it lays over a model is also made here, without TRL."""

import types
from types import SimpleNamespace

import pytest
import torch

import mmalign
from mmalign.errors import CheckError
from mmalign.integrations import sft
from tests.integrations.test_declared import picture
from tests.integrations.test_supervising import BASIC, fresh, labelled
from tests.integrations.test_supervising_trainer import TERMS, labeller, no_rank, same, trained

__all__ = ["no_rank"]
WORDS = ("what is this ?", "a red star")


def lay_head(supervised):
    """As TRL 1.16 patches a model: its own head where it is asked for, else the forward pass there was."""
    forward = supervised.forward

    def patched(self, *args, fused_lm_head=False, labels=None, **inputs):
        if not fused_lm_head:
            return forward(*args, labels=labels, **inputs)
        return self.base_model(*args, use_cache=False, **inputs)

    supervised.forward = types.MethodType(patched, supervised)


@trained
def test_what_trl_computes_is_the_loss(family):
    """Entropy and accuracy are those of the model's own logits at the trained tokens."""
    model, processor = fresh(family)
    inputs = labelled(model, processor)
    supervised = mmalign.supervise(model, processor, BASIC)
    lay_head(supervised)
    terms = supervised(**inputs)
    out = supervised(**inputs, fused_lm_head=True, use_cache=False)
    loss = (-out.log_probs).sum() / out.label_mask.sum()
    assert loss.item() == pytest.approx(terms["loss"].item(), rel=1e-6)
    loss.backward()
    assert any(value.grad is not None and value.grad.any() for value in model.parameters())
    trained_RS = inputs["labels"][:, 1:] != -100
    logp_NV = model(**inputs).logits[:, :-1][trained_RS].log_softmax(-1)
    goal_N = inputs["labels"][:, 1:][trained_RS]
    assert out.label_mask.item() == len(goal_N)
    assert out.entropy.item() == pytest.approx(-(logp_NV.exp() * logp_NV).sum().item(), rel=1e-4)
    assert out.is_top1.item() == (logp_NV.argmax(-1) == goal_N).sum()


@trained
def test_a_pass_that_trains_no_token(family):
    model, processor = fresh(family)
    inputs = labelled(model, processor)
    inputs["labels"][:] = -100
    supervised = mmalign.supervise(model, processor, BASIC)
    out = supervised(**inputs, fused_lm_head=True)
    assert out.label_mask.item() == out.entropy.item() == out.is_top1.item() == 0
    assert -out.log_probs.item() == pytest.approx(supervised(**inputs)["loss"].item(), rel=1e-6)


def test_scores_of_many_tokens(monkeypatch):
    monkeypatch.setattr(sft, "ROWS", 3)
    torch.manual_seed(0)
    logits_NV, token_N = torch.randn(7, 5), torch.randint(5, (7,))
    scores = sft.scores(logits_NV, token_N)
    assert scores["entropy"].item() == pytest.approx(
        torch.distributions.Categorical(logits=logits_NV).entropy().sum().item(), rel=1e-5
    )
    assert scores["right"].item() == sum(int(logits_NV[n].argmax()) == token_N[n] for n in range(7))


# Refused


def test_lora_around_a_supervised_model():
    """peft calls `forward` itself, past what adds the terms."""
    model, processor = fresh("gemma3")
    supervised = mmalign.supervise(model, processor, BASIC)
    lay_head(supervised)
    with pytest.raises(CheckError, match="LoRA lies around a supervised model") as error:
        supervised.forward(**labelled(model, processor), fused_lm_head=True)
    assert "mmalign.supervise(peft.get_peft_model(model, lora), ...)" in error.value.fix
    with pytest.raises(CheckError, match="LoRA lies around a supervised model"):
        _ = supervised.base_model_prefix
    assert not hasattr(supervised, "base_model_prefix")


def test_a_loss_of_single_tokens():
    model, processor = fresh("gemma3")
    callback = mmalign.supervise(model, processor, BASIC).log_terms()
    callback.on_train_begin(SimpleNamespace(loss_type="nll"), None, None)
    callback.on_train_begin(SimpleNamespace(), None, None)
    with pytest.raises(CheckError, match="loss_type: dft weighs single tokens") as error:
        callback.on_train_begin(SimpleNamespace(loss_type="dft"), None, None)
    assert error.value.fix == 'loss_type="nll"'


# TRL itself, where it is installed


def data(kind):
    """Six rows as TRL documents them: `messages`, or `prompt` and `completion`."""
    datasets = pytest.importorskip("datasets")
    asked, said = WORDS
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": said}]}
    talk = {"messages": [user, answer]} if kind == "messages" else {"prompt": [user], "completion": [answer]}
    return datasets.Dataset.from_list([{**talk, "images": [picture(40, 30, seed=n)]} for n in range(6)])


def sft_trained(supervised, processor, place, kind="messages", peft_config=None, **more):
    trl = pytest.importorskip("trl")
    settings = {
        "max_steps": 10, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1, "use_cpu": True,
        "bf16": False, "report_to": [], "save_strategy": "no", "max_length": None, "disable_tqdm": True,
    }  # fmt: skip
    trainer = trl.SFTTrainer(
        model=supervised, args=trl.SFTConfig(str(place), **settings | more), processing_class=processor,
        train_dataset=data(kind), callbacks=[supervised.log_terms()], peft_config=peft_config,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.fixture
def offline(monkeypatch):
    """TRL counts its users."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("CI", "1")


@trained
def test_sft_trains_ten_steps(family, tmp_path, offline):
    """Every line's loss is the weighted sum; what is saved loads in plain transformers, and is resumed from."""
    model, processor = fresh(family)
    supervised = mmalign.supervise(model, processor, TERMS, labels=labeller())
    trainer = sft_trained(supervised, processor, tmp_path / "out", save_strategy="steps", save_steps=8)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 10
    for line in lines:
        assert line["loss"] == pytest.approx(sum(supervised.weights[n] * line[n] for n in ("lm", *TERMS)), rel=1e-4)
        assert 0 < line["entropy"] < 5
        assert 0 <= line["mean_token_accuracy"] <= 1
    assert lines[-1]["lm"] < lines[0]["lm"]
    model.save_pretrained(tmp_path / "plain")
    same(model, type(model).from_pretrained(tmp_path / "plain"), labelled(model, processor))
    ended = {name: value.detach().clone() for name, value in supervised.named_parameters()}
    with torch.no_grad():
        for value in supervised.parameters():
            value.zero_()
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-8"))
    for name, value in supervised.named_parameters():
        assert torch.allclose(value, ended[name], atol=1e-5), name


def test_sft_with_lora_and_completions(tmp_path, offline):
    """peft inside; laid around by the trainer it is refused."""
    peft = pytest.importorskip("peft")
    pytest.importorskip("trl")
    model, processor = fresh("llava_onevision")
    lora = peft.LoraConfig(
        r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=["multi_modal_projector"]
    )
    tuned = peft.get_peft_model(model, lora)
    supervised = mmalign.supervise(tuned, processor, BASIC)
    sft_trained(supervised, processor, tmp_path / "out", "completion")
    tuned.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(fresh("llava_onevision")[0], tmp_path / "adapter")
    same(tuned, loaded, labelled(tuned, processor))
    for family in ("llava_onevision", "gemma3"):
        model, processor = fresh(family)
        supervised = mmalign.supervise(model, processor, BASIC)
        with pytest.raises(CheckError, match="LoRA lies around a supervised model"):
            sft_trained(supervised, processor, tmp_path / "no", peft_config=lora)
