"""What transformers declares is enough: visual tokens, their number and the layers, of every family, by hand."""

import re
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    BertConfig,
    BertLMHeadModel,
    MllamaForConditionalGeneration,
)

from mmalign.errors import CheckError
from mmalign.integrations import declared
from mmalign.pipeline import new
from tests.integrations import families

family_ = pytest.mark.parametrize("family", families.FAMILIES)
made = cache(families.make)
ROWS = [("what is this ?", [(40, 30)]), ("is it red ?", [(20, 50), (40, 30)]), ("yes", [(33, 33)])]


def picture(width, height, seed=0):
    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (height, width, 3), dtype=np.uint8))


def batch(processor, rows=ROWS):
    """The processor's own batch, padded; images stand side by side."""
    talks = [
        [{"role": "user", "content": [*({"type": "image"} for _ in sizes), {"type": "text", "text": text}]}]
        for text, sizes in rows
    ]
    texts = [processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) for talk in talks]
    images = [[picture(*size, seed=n) for n, size in enumerate(sizes)] for _, sizes in rows]
    inputs = processor(text=texts, images=images, return_tensors="pt", padding=True)
    inputs.pop("labels", None)
    return inputs


def alone(processor, size, seed):
    """Q of a picture, alone in a row."""
    inputs = processor(text=[processor.image_token], images=[[picture(*size, seed=seed)]], return_tensors="pt")
    return int((inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<image>")).sum())


def by_hand(model, inputs):
    """(visual tokens, out): what the language model is called with, caught where it is called."""
    lm = {name: module for name, module in model.named_modules() if name.endswith(("language_model", "text_model"))}
    lm = lm.get("model.language_model") or lm["model.text_model"]
    kept, forward = {}, lm.forward

    def call(*args, **kwargs):
        kept.update(kwargs)
        return forward(*args, **kwargs)

    lm.forward = call
    try:
        out = model(**inputs, output_hidden_states=True)
    finally:
        del lm.forward
    return kept["inputs_embeds"][inputs["input_ids"] == model.config.image_token_id], out


def hooks(model):
    return [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]


@family_
def test_visual_tokens_are_what_the_language_model_is_called_with(family):
    model, processor = made(family)
    inputs = batch(processor)
    slow_ND, out = by_hand(model, inputs)
    parts, before = declared.parts(model, processor), hooks(model)
    with declared.entering(parts) as entry, declared.layer_outputs(parts, [1, 2, parts.depth]) as layers:
        model(**inputs)
    assert torch.equal(entry.tokens_ND, slow_ND)
    assert torch.equal(entry.embeds_RSD, out.hidden_states[0])
    for number, hidden_RSD in layers.items():
        assert torch.allclose(hidden_RSD[entry.at_RS], out.hidden_states[number][entry.at_RS], atol=1e-6), number
    assert set(layers) == {1, 2, len(out.hidden_states) - 1}
    assert hooks(model) == before


class Oddly(torch.nn.Module):
    """A language model that calls its final norm something else, as LFM2 does."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
        self.embedding_norm = torch.nn.LayerNorm(4)

    def forward(self, inputs_embeds):
        return (self.embedding_norm(self.layers[1](self.layers[0](inputs_embeds))),)


def test_the_last_layer_is_behind_the_final_norm_whatever_its_name():
    lm, embeds_RSD = Oddly(), torch.randn(1, 3, 4)
    parts = declared.Parts(None, None, 0, lm, lm.layers, None, None)
    with declared.layer_outputs(parts, [1, 2]) as layers:
        (out_RSD,) = lm(embeds_RSD)
    assert torch.equal(layers[1], lm.layers[0](embeds_RSD))
    assert torch.equal(layers[2], out_RSD)


class Several(torch.nn.Module):
    """A layer with several states of each token, of which one goes on, as Gemma 3n has them."""

    def forward(self, hidden_RSD):
        return torch.stack([hidden_RSD, hidden_RSD])


def test_layers_of_several_states():
    lm, embeds_RSD = Oddly(), torch.randn(1, 3, 4)
    lm.layers[0] = torch.nn.Sequential(lm.layers[0], Several())
    parts = declared.Parts(None, None, 0, lm, lm.layers, None, None)
    with (
        declared.layer_outputs(parts, [1]),
        pytest.raises(CheckError, match=r"layer 1 makes several states of each token, \(2, 1, 3, 4\)") as error,
    ):
        lm(embeds_RSD)
    assert error.value.fix == "layer 0, or 2, the last"


@family_
def test_they_carry_the_gradient(family):
    model, processor = made(family)
    parts = declared.parts(model, processor)
    with declared.entering(parts) as entry:
        model(**batch(processor))
    slope = torch.autograd.grad(entry.tokens_ND.pow(2).sum(), [*model.parameters()], allow_unused=True)
    reached = {n for (n, _), g in zip(model.named_parameters(), slope, strict=True) if g is not None and g.abs().sum()}
    assert any("vision" in name or "visual" in name for name in reached)
    assert not any(
        "lm_head" in name or "language_model.layers" in name or "text_model.layers" in name for name in reached
    )


@family_
def test_how_many_tokens_each_image_has(family):
    model, processor = made(family)
    inputs = batch(processor)
    told = declared.counts(declared.parts(model, processor), inputs)
    slow = [alone(processor, size, n) for _, sizes in ROWS for n, size in enumerate(sizes)]
    if family == "llava_onevision":  # it tiles no image that has another beside it
        slow[1:3] = [17, 17]
    assert told == slow
    if family in ("llava_onevision", "qwen2_5_vl", "idefics3", "smolvlm", "internvl"):
        assert len(set(told)) > 1


@family_
def test_a_batch_without_images(family):
    model, processor = made(family)
    parts = declared.parts(model, processor)
    ids = torch.tensor([[1, 30, 31]])
    kinds = {"token_type_ids": torch.zeros_like(ids)} if family in ("gemma3", "paligemma") else {}
    with declared.entering(parts) as entry, torch.no_grad():
        model(input_ids=ids, **kinds)
    assert entry.tokens_ND.shape == (0, 32)
    assert declared.counts(parts, {"input_ids": ids}) == []


# Refused


def test_marks_that_are_no_image_of_the_batch():
    model, processor = made("llava")
    inputs = batch(processor)
    inputs["input_ids"][0, -1] = model.config.image_token_id
    with pytest.raises(CheckError, match=r"65 visual tokens in a batch, and the processor expands .*\[16, 16") as error:
        declared.counts(declared.parts(model, processor), inputs)
    assert "own processor" in error.value.fix


def test_a_model_without_an_image_token():
    model = BertLMHeadModel(
        BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, is_decoder=True)
    )
    with pytest.raises(CheckError, match="a bert model does not declare config.image_token_id") as error:
        declared.parts(model, made("llava")[1])
    assert "mmalign new vision NAME, mmalign new adapter NAME" in error.value.fix
    with pytest.raises(CheckError, match="a Linear model does not declare config.image_token_id"):
        declared.parts(torch.nn.Linear(1, 1), None)


def test_a_model_that_looks_across():
    tower = {"hidden_size": 8, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 1, "image_size": 4}
    text = {"hidden_size": 8, "num_hidden_layers": 2, "cross_attention_layers": [1], "num_attention_heads": 1}
    config = AutoConfig.for_model(
        "mllama",
        vision_config={**tower, "patch_size": 2, "intermediate_size": 8, "intermediate_layers_indices": [0]},
        text_config={**text, "num_key_value_heads": 1, "intermediate_size": 8, "vocab_size": 9, "pad_token_id": 0},
        image_token_index=8,
    )
    with torch.device("meta"):
        model = MllamaForConditionalGeneration(config)
    with pytest.raises(CheckError, match="a mllama model looks at its images by cross-attention"):
        declared.parts(model, made("llava")[1])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"get_decoder": lambda: None}, "a llava model does not declare get_decoder"),
        ({"get_input_embeddings": lambda: None}, "does not declare get_input_embeddings"),
        ({"get_decoder": lambda: torch.nn.Linear(1, 1)}, "does not declare inputs_embeds: Linear is handed"),
        ({"get_output_embeddings": lambda: None}, "does not declare get_output_embeddings"),
    ],
)
def test_the_part_that_lacks_is_named(monkeypatch, change, what):
    model, processor = made("llava")
    for name, value in change.items():
        monkeypatch.setattr(model, name, value)
    with pytest.raises(CheckError, match=what.replace("(", r"\(")):
        declared.parts(model, processor)


def test_what_the_message_says_to_write_is_enough():
    """A class that says less of itself than transformers' own."""
    model, processor = families.make("gemma3")
    lm, head, image_id = model.get_decoder(), model.lm_head, model.config.image_token_id
    for lacking, mend in (
        ("image_token_id", "model.config.image_token_id = "), ("get_decoder", "model.get_decoder = lambda: "),
        ("get_output_embeddings", "model.get_output_embeddings = lambda: "),
    ):  # fmt: skip
        owner = model.config if lacking == "image_token_id" else model
        setattr(owner, lacking, None)
        with pytest.raises(CheckError, match=lacking) as error:
            declared.parts(model, processor)
        assert error.value.fix.startswith(mend)
        assert "mmalign.supervise" in error.value.fix
        own = {"image_token_id": image_id, "get_decoder": lambda: lm, "get_output_embeddings": lambda: head}[lacking]
        setattr(owner, lacking, own)
        assert declared.parts(model, processor).head is head


def test_what_it_says_to_start_can_be_started(tmp_path):
    for kind in re.findall(r"mmalign new (\w+) NAME", declared.OWN):
        assert new.start(kind, f"my-{kind}", tmp_path)


def test_a_processor_that_lacks_something():
    model, processor = made("llava")
    with pytest.raises(CheckError, match="comes with its processor"):
        declared.parts(model, None)
    with pytest.raises(CheckError, match="SimpleNamespace.tokenizer"):
        declared.parts(model, SimpleNamespace())
    with pytest.raises(CheckError, match="SimpleNamespace.image_token"):
        declared.parts(model, SimpleNamespace(tokenizer=processor.tokenizer))


def test_an_encoder_reads_the_images():
    tower = {"depths": [1], "embed_dim": [8], "num_heads": [1], "num_groups": [1], "projection_dim": 8}
    text = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 60, "encoder_attention_heads": 1}
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            AutoConfig.for_model(
                "florence2", image_token_id=50,
                vision_config={**tower, "patch_size": [2], "patch_stride": [2], "patch_padding": [0],
                    "patch_prenorm": [False], "window_size": 2},
                text_config={"model_type": "bart", **text, "decoder_attention_heads": 1},
            )
        )  # fmt: skip
    with pytest.raises(CheckError, match="a florence2 model reads its images in an encoder"):
        declared.parts(model, made("llava")[1])


def test_visual_tokens_that_depend_on_the_question():
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {"model_type": "llama", "vocab_size": 60, "num_key_value_heads": 1, **tower}
    with torch.device("meta"):
        config = AutoConfig.for_model(
            "instructblip", image_token_index=50, vision_config={**tower, "image_size": 28, "patch_size": 14},
            qformer_config={**tower, "encoder_hidden_size": 8, "vocab_size": 60}, text_config=text,
        )  # fmt: skip
        config.image_token_id = 50
        model = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(CheckError, match="an? instructblip model reads the question beside the picture"):
        declared.parts(model, None)
