"""Checkpoints of every kind, a few thousand random weights each, as the real classes write them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mmalign.vision.hf import HFVision

WORDS = ("dog", "red", "car", "a", "house", "photo", "of")
EOS = len(WORDS) + 2
SHARED = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 6}
VISION = {**SHARED, "intermediate_size": 64}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": EOS + 1,
    "max_position_embeddings": 9,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": EOS,
}
KINDS = ("clip", "siglip", "dinov2", "dinov2-reg", "dinov3")
TEXTED = ("clip", "siglip")


def checkpoint(kind: str, folder: Path) -> Path:
    """A folder with configuration, random weights, processor and, where the kind has one, tokenizer."""
    torch.manual_seed(len(kind))
    model, processor = MAKE[kind]()
    with torch.no_grad():
        for parameter in model.parameters():  # away from zeros and ones, so that nothing cancels or is skipped unseen
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if kind in TEXTED:
        tokenizer().save_pretrained(folder)
    return folder


def clip() -> tuple[Any, Any]:
    vision = {**VISION, "image_size": 30}
    config = hf.CLIPConfig(text_config=dict(TEXT), vision_config=vision, projection_dim=24)
    square = {"height": 30, "width": 30}
    return hf.CLIPModel(config), hf.CLIPImageProcessor(size={"shortest_edge": 30}, crop_size=square)


def siglip() -> tuple[Any, Any]:
    """28 pixels in patches of 6: 4 x 4, and a margin no patch sees, as SigLIP's 384 in patches of 14."""
    config = hf.SiglipConfig(text_config={**TEXT, "hidden_size": 32}, vision_config={**VISION, "image_size": 28})
    return hf.SiglipModel(config), hf.SiglipImageProcessor(size={"height": 28, "width": 28})


def dinov2() -> tuple[Any, Any]:
    """Trained at 30 pixels, read at 24, as DINOv2's 518 and 224."""
    return hf.Dinov2Model(hf.Dinov2Config(**SHARED, mlp_ratio=2, image_size=30)), bit()


def dinov2_registers() -> tuple[Any, Any]:
    config = hf.Dinov2WithRegistersConfig(**SHARED, mlp_ratio=2, image_size=30, num_register_tokens=4)
    return hf.Dinov2WithRegistersModel(config), bit()


def dinov3() -> tuple[Any, Any]:
    config = hf.DINOv3ViTConfig(**VISION, image_size=24, num_register_tokens=2)
    return hf.DINOv3ViTModel(config), hf.DINOv3ViTImageProcessor(size={"height": 24, "width": 24})


def bit() -> Any:
    return hf.BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 24, "width": 24})


MAKE = dict(zip(KINDS, (clip, siglip, dinov2, dinov2_registers, dinov3), strict=True))


def tokenizer() -> Any:
    """Words and an end mark; like SigLIP 2's it keeps the case it is given."""
    ids = {word: number for number, word in enumerate(("<pad>", "<unk>", *WORDS, "<eos>"))}
    tokenizer_ = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer_.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer_.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", EOS)])
    marks = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer_, model_max_length=9, **marks)


def encoder(folder: Path, **settings: Any) -> HFVision:
    return HFVision(str(folder), **settings).eval()


def picture(width: int = 50, height: int = 40, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height))


def pixels(vision: Any, images: int = 2) -> torch.Tensor:
    return torch.stack([vision.pixels(picture(50 + 9 * n, 40, n)) for n in range(images)])
