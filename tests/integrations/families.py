"""Vision-language models of transformers with random weights, a few thousand each, and their real processors.

model, processor = families.make("qwen2_5_vl")
"""

import re
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PaliGemmaProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.smolvlm import processing_smolvlm

WORDS = """user assistant what is this colour of the star ring red blue green large small left right above a and in
one two picture there yes no describe ? . : , circle square it are same where how many""".split()  # noqa: SIM905
MARKS = ["<image>", "<video>", "<boi>", "<eoi>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
MARKS += [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)]
# Turns with content that is text, or a list of images and texts.
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}MARK{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def tokenizer(mark: str = "<image>", **more: str) -> Any:
    """Whole words, and the marks that processors want; a chat template in which `mark` is an image."""
    specials = ["<unk>", "<s>", "</s>", "<pad>", *MARKS]
    known = {word: number for number, word in enumerate([*specials, *WORDS])}
    core = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"} | more,
    )  # fmt: skip
    made.add_special_tokens({"additional_special_tokens": MARKS}, replace_extra_special_tokens=False)
    made.chat_template = TEMPLATE.replace("MARK", mark)
    return made


_TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048, "initializer_range": 0.3,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
}  # fmt: skip
_TOWER = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4,
    "initializer_range": 0.3,
}  # fmt: skip
SIDE = 16  # pixels; 4 x 4 patches


def _square(side: int = SIDE) -> dict[str, int]:
    return {"height": side, "width": side}


def _llava(text: dict[str, Any], layers: int) -> tuple[dict[str, Any], Any]:
    words = tokenizer()
    config = {
        "vision_config": {"model_type": "clip_vision_model", **_TOWER, "num_hidden_layers": layers, "image_size": SIDE},
        "text_config": {"model_type": "llama", **text}, "vision_feature_layer": -1,
    }  # fmt: skip
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=_square())
    own = LlavaProcessor(images, words, 4, "default", num_additional_image_tokens=1, chat_template=words.chat_template)
    return config, own


def _onevision(text: dict[str, Any], layers: int) -> tuple[dict[str, Any], Any]:
    words = tokenizer()
    pinpoints = [[SIDE * r, SIDE * c] for r in (1, 2, 3) for c in (1, 2, 3)]
    config = {
        "vision_config": {
            "model_type": "siglip_vision_model", **_TOWER, "num_hidden_layers": layers, "image_size": SIDE,
            "vision_use_head": False,
        },
        "text_config": {"model_type": "qwen2", **text}, "image_grid_pinpoints": pinpoints,
    }  # fmt: skip
    images = LlavaOnevisionImageProcessor(size=_square(), image_grid_pinpoints=pinpoints)
    video = LlavaOnevisionVideoProcessor(size=_square())
    own = LlavaOnevisionProcessor(
        images, words, video, num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=words.chat_template,
    )  # fmt: skip
    return config, own


def _qwen(text: dict[str, Any], layers: int) -> tuple[dict[str, Any], Any]:
    words = tokenizer()
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    config = {
        "vision_config": {
            "depth": layers, "hidden_size": 24, "intermediate_size": 32, "num_heads": 3, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16, "out_hidden_size": 32,
            "fullatt_block_indexes": [1], "initializer_range": 0.3,
        },
        "text_config": {**text, "rope_parameters": rope},
        "vision_start_token_id": words.convert_tokens_to_ids("<boi>"),
        "vision_end_token_id": words.convert_tokens_to_ids("<eoi>"),
    }  # fmt: skip
    sizes = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 8 * 8, "max_pixels": 48 * 48}
    images, video = Qwen2VLImageProcessor(**sizes), Qwen2VLVideoProcessor(**sizes)
    words.chat_template = TEMPLATE.replace("MARK", "<boi><image><eoi>")
    return config, Qwen2_5_VLProcessor(images, words, video, chat_template=words.chat_template)


def _idefics(text: dict[str, Any], layers: int) -> tuple[dict[str, Any], Any]:
    words = tokenizer()
    config = {
        "vision_config": {**_TOWER, "num_hidden_layers": layers, "image_size": SIDE},
        "text_config": {"model_type": "llama", **text}, "scale_factor": 2,
    }  # fmt: skip
    images = Idefics3ImageProcessor(size={"longest_edge": 3 * SIDE}, max_image_size={"longest_edge": SIDE})
    return config, Idefics3Processor(images, words, image_seq_len=4, chat_template=words.chat_template)


def _smolvlm(text: dict[str, Any], layers: int) -> tuple[dict[str, Any], Any]:
    words = tokenizer()
    processing_smolvlm.num2words = processing_smolvlm.num2words or str  # a package that only videos need
    config, _ = _idefics(text, layers)
    sizes = {"size": {"longest_edge": 3 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    images, video = SmolVLMImageProcessor(**sizes), SmolVLMVideoProcessor(**sizes)
    return config, SmolVLMProcessor(images, words, video, image_seq_len=4, chat_template=words.chat_template)


def _gemma(text: dict[str, Any], layers: int) -> tuple[dict[str, Any], Any]:
    words = tokenizer("<boi>", boi_token="<boi>", eoi_token="<eoi>")
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = {
        "vision_config": {
            "model_type": "siglip_vision_model", **_TOWER, "num_hidden_layers": layers, "image_size": 2 * SIDE,
            "vision_use_head": False,
        },
        "text_config": {**text, "layer_types": kinds, "sliding_window": 24}, "mm_tokens_per_image": 16,
        "boi_token_index": words.convert_tokens_to_ids("<boi>"),
        "eoi_token_index": words.convert_tokens_to_ids("<eoi>"),
    }  # fmt: skip
    images = Gemma3ImageProcessor(size=_square(2 * SIDE), image_seq_length=16)
    return config, Gemma3Processor(images, words, chat_template=words.chat_template, image_seq_length=16)


def _internvl(text: dict[str, Any], layers: int) -> tuple[dict[str, Any], Any]:
    names = {"start_image_token": "<boi>", "end_image_token": "<eoi>", "context_image_token": "<image>"}
    words = tokenizer(**names)
    config = {
        "vision_config": {
            **_TOWER, "num_hidden_layers": layers, "image_size": [SIDE, SIDE], "patch_size": [4, 4],
        },
        "text_config": {"model_type": "qwen2", **text}, "image_seq_length": 4, "downsample_ratio": 0.5,
    }  # fmt: skip
    images = GotOcr2ImageProcessor(size=_square(), crop_to_patches=True, min_patches=1, max_patches=6)
    video = InternVLVideoProcessor(size=_square())
    return config, InternVLProcessor(images, words, video, image_seq_length=4, chat_template=words.chat_template)


def _paligemma(text: dict[str, Any], layers: int) -> tuple[dict[str, Any], Any]:
    words = tokenizer()
    config = {
        "vision_config": {
            "model_type": "siglip_vision_model", **_TOWER, "num_hidden_layers": layers, "image_size": SIDE,
            "vision_use_head": False, "projection_dim": 32,
        },
        "text_config": {"model_type": "gemma", **text}, "projection_dim": 32, "hidden_size": 32,
    }  # fmt: skip
    images = SiglipImageProcessor(size=_square())
    images.image_seq_length = 16
    return config, PaliGemmaProcessor(images, words, chat_template=words.chat_template)


def _next(text: dict[str, Any], layers: int) -> tuple[dict[str, Any], Any]:
    words = tokenizer()
    pinpoints = [[SIDE * r, SIDE * c] for r, c in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    config, _ = _llava(text, layers)
    images = LlavaNextImageProcessor(size={"shortest_edge": SIDE}, crop_size=_square(), image_grid_pinpoints=pinpoints)
    own = LlavaNextProcessor(
        images, words, 4, "default", num_additional_image_tokens=1, chat_template=words.chat_template
    )
    return config | {"image_grid_pinpoints": pinpoints}, own


def _qwen3(text: dict[str, Any], layers: int) -> tuple[dict[str, Any], Any]:
    words = tokenizer(vision_start_token="<boi>", vision_end_token="<eoi>")
    config, _ = _qwen(text, layers)
    config["vision_config"] = {
        "depth": layers, "hidden_size": 24, "intermediate_size": 32, "num_heads": 3, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0], "initializer_range": 0.3,
    }  # fmt: skip
    config["text_config"]["rope_parameters"]["mrope_interleaved"] = True
    pixels = {"shortest_edge": 8 * 8, "longest_edge": 48 * 48}
    sizes = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "size": pixels}
    images, video = Qwen2VLImageProcessor(**sizes), Qwen3VLVideoProcessor(**sizes)
    words.chat_template = TEMPLATE.replace("MARK", "<boi><image><eoi>")
    return config, Qwen3VLProcessor(images, words, video, chat_template=words.chat_template)


def _mistral(text: dict[str, Any], layers: int) -> tuple[dict[str, Any], Any]:
    words = tokenizer()
    ends = ["[IMG_BREAK]", "[IMG_END]"]
    words.add_special_tokens({"additional_special_tokens": ends}, replace_extra_special_tokens=False)
    config = {
        "vision_config": {
            "model_type": "pixtral", **_TOWER, "head_dim": 8, "num_hidden_layers": layers, "image_size": 48,
        },
        "text_config": {"model_type": "mistral", **text}, "spatial_merge_size": 2,
    }  # fmt: skip
    images = PixtralImageProcessor(size={"longest_edge": 48}, patch_size=4)
    own = PixtralProcessor(
        images, words, 4, spatial_merge_size=2, chat_template=words.chat_template, image_token="<image>"
    )
    return config, own


FAMILIES = {
    "llava": _llava, "llava_onevision": _onevision, "qwen2_5_vl": _qwen, "idefics3": _idefics, "smolvlm": _smolvlm,
    "gemma3": _gemma, "internvl": _internvl, "paligemma": _paligemma,
}  # fmt: skip

MORE = {"llava_next": _next, "qwen3_vl": _qwen3, "mistral3": _mistral}  # which share most of it with these


def make(family: str, layers: int = 2, seed: int = 0) -> tuple[Any, Any]:
    """(model, processor) of transformers' model_type; layers: of its vision tower; 0: one that changes nothing."""
    config, processor = (FAMILIES | MORE)[family](dict(_TEXT), max(1, layers))
    words = processor.tokenizer
    config["text_config"]["vocab_size"] = len(words) + 2
    config["image_token_id"] = words.convert_tokens_to_ids("<image>")
    if family in ("llava_onevision", "qwen2_5_vl", "qwen3_vl"):
        config["video_token_id"] = words.convert_tokens_to_ids("<video>")
    torch.manual_seed(seed)
    model: Any = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(family, **config, tie_word_embeddings=False)
    ).eval()
    for weight in model.parameters():  # some begin at zero
        if weight.dim() > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.3)
    for name, weight in model.named_parameters():
        if not layers and re.search(r"visi.*(layers?|blocks)\.0\.|visual\.blocks\.0\.", name):
            torch.nn.init.zeros_(weight)
    return model, processor
