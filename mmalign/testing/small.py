"""Checkpoints of every class the registry names, a few thousand random weights each: for tests of parts.

    cards = {**small.encoder("siglip", folder), "llm": small.llm_card("gemma", folder), "adapter": mine}
    check_model(cards, folder / "saved")

They are what the real classes write, with the shapes of the published ones (registers, grouped keys, sliding windows,
tokenizers of both kinds), but have learned nothing.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from mmalign.plan.cards import Card

TEXT = """USER: ASSISTANT: What colour is the star? The red star is left of a large blue ring.
A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,
and polite answers to the user's questions. Describe this image. Yes No 1234567890 ünïcödé 東京 é 😀
internationalization tokenization ice cream photograph"""


def sentencepiece(vocab: int = 400) -> Any:
    """Unigram with a blank in front of every word, bytes for the rest: the shape of Llama 2's."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    trainer = trainers.UnigramTrainer(vocab_size=vocab, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>")
    made.train_from_iterator([*TEXT.splitlines()] * 20, trainer)
    return made


def bytelevel(vocab: int = 400) -> Any:
    """Byte-level BPE, the shape of Llama 3's and Qwen's."""
    made = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    made.train_from_iterator([*TEXT.splitlines()] * 20, trainer)
    return made


KINDS: dict[str, Callable[[], Any]] = {"sentencepiece": sentencepiece, "bytelevel": bytelevel}

# Turns as `user: ... assistant: ...`, the answers marked.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}ASSISTANT: "
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% elif m.role == 'system' %}{{ m.content }} {% else %}USER: {{ m.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


def tokenizer(kind: str, folder: Path, template: str = TEMPLATE) -> Any:
    """A tokenizer of one of `KINDS` with a chat template, saved in a folder."""
    made = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"pad_token": "<pad>"})
    made.chat_template = template
    made.save_pretrained(folder)
    return made


_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
_LLM = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
LLMS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 64},
    "gemma": {"head_dim": 8, "num_key_value_heads": 1},
    "phi": {},
    "phi3": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "layer_types": _LAYERS, "sliding_window": 24},
    "gemma3_text": {"head_dim": 8, "layer_types": _LAYERS, "sliding_window": 24},
}


def llm(family: str, folder: Path, kind: str = "bytelevel", seed: int = 0, **more: Any) -> Path:
    """A causal LM of a family (transformers' model_type) and its tokenizer, as a checkpoint folder."""
    words = tokenizer(kind, folder)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **(_LLM | LLMS[family] | more), vocab_size=len(words) + 3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def llm_card(family: str, folder: Path, dim: int = 32) -> Card:
    """The card of a small causal LM of that width (a multiple of 8), made in a folder of its own."""
    odd = family == "phi" and dim % 16  # half of a head turns, which must be an even number
    turns: dict[str, Any] = {"partial_rotary_factor": 1.0} if odd else {}
    place = llm(family, folder / f"{family}-{dim}", hidden_size=dim, **turns)
    return Card(f"a small {family}", "mmalign.llms.causal.CausalLM", {"checkpoint": str(place)})


_TOWER = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
_TEXT = {**_TOWER, "intermediate_size": 32}


def _side(size: int) -> dict[str, int]:
    return {"height": size, "width": size}


def _words(folder: Path) -> int:
    """A text tower's tokenizer; how many tokens it knows."""
    words = PreTrainedTokenizerFast(tokenizer_object=bytelevel(), bos_token="<s>", eos_token="</s>", pad_token="</s>")
    words.save_pretrained(folder)
    return len(words)


def clip(folder: Path, seed: int = 0, size: int = 30, patch: int = 6) -> Path:
    """A CLIP, 5 x 5 patches unless told otherwise."""
    torch.manual_seed(seed)
    ends = {"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
    config = CLIPConfig(
        vision_config={**_TEXT, "image_size": size, "patch_size": patch},
        text_config={**_TEXT, "vocab_size": _words(folder), **ends},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size=_side(size)).save_pretrained(folder)
    return folder


def siglip(folder: Path, seed: int = 0, size: int = 18, patch: int = 6) -> Path:
    """A SigLIP, 3 x 3 patches unless told otherwise."""
    torch.manual_seed(seed)
    config = SiglipConfig(
        vision_config={**_TEXT, "image_size": size, "patch_size": patch},
        text_config={**_TEXT, "vocab_size": _words(folder), "pad_token_id": 1, "max_position_embeddings": 16},
    )
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessor(size=_side(size)).save_pretrained(folder)
    return folder


def dinov2(folder: Path, seed: int = 0, size: int = 18, patch: int = 6) -> Path:
    """A DINOv2, 3 x 3 patches unless told otherwise."""
    torch.manual_seed(seed)
    Dinov2Model(Dinov2Config(**_TOWER, mlp_ratio=2, image_size=size, patch_size=patch)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": size}, crop_size=_side(size)).save_pretrained(folder)
    return folder


def _dinov2_registers(folder: Path, size: int, patch: int) -> Path:
    config = Dinov2WithRegistersConfig(**_TOWER, mlp_ratio=2, image_size=size, patch_size=patch, num_register_tokens=4)
    Dinov2WithRegistersModel(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": size}, crop_size=_side(size)).save_pretrained(folder)
    return folder


def _dinov3(folder: Path, size: int, patch: int) -> Path:
    config = DINOv3ViTConfig(**{**_TEXT, "hidden_size": 48}, image_size=size, patch_size=patch, num_register_tokens=2)
    DINOv3ViTModel(config).save_pretrained(folder)
    DINOv3ViTImageProcessor(size=_side(size)).save_pretrained(folder)
    return folder


def _hf(make: Callable[..., Path], dim: int = 24) -> Callable[[Path], dict[str, Card]]:
    def cards(folder: Path) -> dict[str, Card]:
        args = {"checkpoint": str(make(folder, size=24, patch=6))}
        return {"vision": Card(folder.name, "mmalign.vision.hf.HFVision", args, {"dim": dim})}

    return cards


def _s2(folder: Path) -> dict[str, Card]:
    inner = _hf(clip)(folder)["vision"]
    s2 = Card("s2", "mmalign.vision.s2.S2", {"scales": [1, 2]}, {"dim": 48})
    return {"vision": s2, "vision.encoder": inner}


def _timm(folder: Path) -> dict[str, Card]:
    import timm

    folder.mkdir(parents=True)
    made = timm.create_model("test_vit", num_classes=0, img_size=64)
    save_file(made.state_dict(), folder / "model.safetensors", {"format": "pt"})
    args = {"model": "test_vit", "checkpoint": str(folder), "image_size": 64}
    return {"vision": Card("timm", "mmalign.vision.timm.TimmVision", args, {"dim": 64})}


def _openclip(folder: Path) -> dict[str, Card]:
    """open_clip knows a model by the name of its configuration file."""
    import open_clip

    folder.mkdir(parents=True)
    vision = {"image_size": 24, "layers": 3, "width": 32, "head_width": 8, "patch_size": 6}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2}
    about = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (folder / "mmalign-small.json").write_text(json.dumps(about))
    open_clip.add_model_config(folder / "mmalign-small.json")
    made = open_clip.create_model("mmalign-small")
    save_file(made.state_dict(), folder / "open_clip_model.safetensors")
    args = {"model": "mmalign-small", "checkpoint": str(folder)}
    return {"vision": Card("open_clip", "mmalign.vision.openclip.OpenCLIPVision", args, {"dim": 32})}


ENCODERS: dict[str, Callable[[Path], dict[str, Card]]] = {
    "clip": _hf(clip),
    "siglip": _hf(siglip),
    "dinov2": _hf(dinov2),
    "dinov2_registers": _hf(_dinov2_registers),
    "dinov3": _hf(_dinov3, dim=48),
    "timm": _timm,
    "open_clip": _openclip,
    "s2": _s2,
}


def encoder(kind: str, folder: Path) -> dict[str, Card]:
    """{role: card} of a small encoder with 4 x 4 patches, made in a folder of its own; S2 brings the one it wraps."""
    torch.manual_seed(0)
    return ENCODERS[kind](folder / kind)
