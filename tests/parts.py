"""Small parts for tests: random-weight configurations of the real classes, tokenizers built on the spot."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

TEXT = """USER: ASSISTANT: What colour is the star? The red star is left of a large blue ring.
A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,
and polite answers to the user's questions. Describe this image. Yes No 1234567890 ünïcödé 東京 é 😀
internationalization tokenization ice cream photograph"""


def sentencepiece(vocab: int = 400) -> Tokenizer:
    """Unigram with a blank in front of every word, bytes for the rest: the shape of Llama 2's."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    trainer = trainers.UnigramTrainer(vocab_size=vocab, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>")
    made.train_from_iterator([*TEXT.splitlines()] * 20, trainer)
    return made


def bytelevel(vocab: int = 400) -> Tokenizer:
    """Byte-level BPE, the shape of Llama 3's and Qwen's."""
    made = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    made.train_from_iterator([*TEXT.splitlines()] * 20, trainer)
    return made


KINDS = {"sentencepiece": sentencepiece, "bytelevel": bytelevel}

# Turns as `user: ... assistant: ...`, the answers marked.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}ASSISTANT: "
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% elif m.role == 'system' %}{{ m.content }} {% else %}USER: {{ m.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


def tokenizer(kind: str, folder: Path, template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"pad_token": "<pad>"})
    made.chat_template = template
    made.save_pretrained(folder)
    return made


SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 64},
    "gemma": {"head_dim": 8, "num_key_value_heads": 1},
    "phi3": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "qwen2": {},
}


def llm(family: str, folder: Path, kind: str = "bytelevel", seed: int = 0, **more: Any) -> Path:
    """A causal LM of a family with random weights, and its tokenizer, as a checkpoint folder."""
    words = tokenizer(kind, folder)
    torch.manual_seed(seed)
    from transformers import AutoModelForCausalLM

    config = AutoConfig.for_model(family, **(SMALL | FAMILIES[family] | more), vocab_size=len(words) + 3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def clip(folder: Path, seed: int = 0, size: int = 30, patch: int = 6) -> Path:
    """A CLIP with random weights, 5 x 5 patches unless told otherwise."""
    torch.manual_seed(seed)
    words = PreTrainedTokenizerFast(tokenizer_object=bytelevel(), bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 3}
    config = CLIPConfig(
        vision_config={**tower, "image_size": size, "patch_size": patch},
        text_config={**tower, "vocab_size": len(words), "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    side = {"height": size, "width": size}
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size=side).save_pretrained(folder)
    return folder


def siglip(folder: Path, seed: int = 0, size: int = 18, patch: int = 6) -> Path:
    """A SigLIP with random weights, 3 x 3 patches unless told otherwise."""
    torch.manual_seed(seed)
    words = PreTrainedTokenizerFast(tokenizer_object=bytelevel(), bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 3}
    config = SiglipConfig(
        vision_config={**tower, "image_size": size, "patch_size": patch},
        text_config={**tower, "vocab_size": len(words), "pad_token_id": 1, "max_position_embeddings": 16},
    )
    SiglipModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    SiglipImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    return folder


def dinov2(folder: Path, seed: int = 0, size: int = 18, patch: int = 6) -> Path:
    """A DINOv2 with random weights, 3 x 3 patches unless told otherwise."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, mlp_ratio=2, image_size=size, patch_size=patch
    )
    Dinov2Model(config).save_pretrained(folder)
    side = {"height": size, "width": size}
    BitImageProcessor(size={"shortest_edge": size}, crop_size=side).save_pretrained(folder)
    return folder
