"""A training step of a whole model of transformers, supervised with both of BASIC's terms, against the model's own
step: time, and peak memory, also with a vocabulary of 32 times as many words.

A Qwen2.5-VL whose language model has 6 layers, 512 wide, and a tower of one layer; fp32, two images of 576 tokens with
text before and behind; what merges patches into tokens learns. It is measured on a CPU only.
"""

from collections.abc import Callable

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2VLImageProcessor

import mmalign
from tests.integrations import families

from . import Pairs, in_turn
from ._work import clock, peak

TARGET = 1.10
TIMES = 5
SIDE = 24 * 8  # pixels; 24 x 24 tokens of 2 x 2 patches of 4 x 4 pixels
BEFORE, BEHIND = 30, 50  # words around the image; those behind it are trained


def measure() -> dict[str, Pairs]:
    torch.set_num_threads(1)
    found = {}
    for words in (1024, 32 * 1024):
        both, alone = _step(words, supervised=True), _step(words, supervised=False)
        if words == 1024:
            found["whole step + basic / own"] = in_turn(both, alone, TIMES, clock)
        found[f"the same, memory, {words} words"] = Pairs([peak(both)], [peak(alone)], unit="MiB")
    return found


def _step(words: int, supervised: bool) -> Callable[[], None]:
    """Forward and backward, the gradients thrown away."""
    model, processor = _model(words)
    inputs = _batch(model, processor)
    basic = {"basic-direction": 1.0, "basic-distribution": 0.01}
    called = mmalign.supervise(model, processor, basic) if supervised else model

    def step() -> None:
        called(**inputs)["loss"].backward()
        model.zero_grad()

    return step


def _model(words: int) -> tuple[torch.nn.Module, object]:
    small, processor = families.make("qwen2_5_vl")
    processor.image_processor = Qwen2VLImageProcessor(
        patch_size=4, temporal_patch_size=2, merge_size=2, min_pixels=SIDE * SIDE, max_pixels=SIDE * SIDE
    )
    config = small.config.to_dict()
    config["vision_config"] |= {"depth": 1, "out_hidden_size": 512}
    config["text_config"] |= {
        "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8, "head_dim": 64,
        "num_key_value_heads": 8, "vocab_size": words, "initializer_range": 0.02, "layer_types": None,
        "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e4},
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config)).train()
    model.requires_grad_(False)
    model.model.visual.merger.requires_grad_(True)
    return model, processor


def _batch(model: torch.nn.Module, processor: object) -> dict[str, torch.Tensor]:
    text = "red " * BEFORE + "<boi><image><eoi>" + " blue" * BEHIND
    pictures = [[Image.new("RGB", (SIDE, SIDE), colour)] for colour in ("red", "blue")]
    inputs = dict(processor(text=[text, text], images=pictures, return_tensors="pt"))
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 2 * 24 * 24
    labels_RS = inputs["input_ids"].clone()
    labels_RS[:, :-BEHIND] = -100
    return {**inputs, "labels": labels_RS}
