"""The cards tell the truth: every encoder built at its published size, weights not allocated, against its facts."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from mmalign.plan import building
from mmalign.plan.cards import Card, Registry
from mmalign.vision import Vision

REGISTRY = Registry()
CARDS = {card.name: card for card in REGISTRY.every("vision") if card.origin == "mmalign"}

BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
DINO = {key: value for key, value in LARGE.items() if key != "intermediate_size"}
SMALL_TEXT = {**BASE, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}


def clip(vision: dict[str, int], text: dict[str, int], joint: int, size: int, patch: int) -> tuple[Any, Any]:
    vision = {**vision, "image_size": size, "patch_size": patch}
    config = hf.CLIPConfig(vision_config=vision, text_config={**text, "vocab_size": 49408}, projection_dim=joint)
    square = {"height": size, "width": size}
    return config, hf.CLIPImageProcessor(size={"shortest_edge": size}, crop_size=square)


def siglip(sizes: dict[str, int], size: int, patch: int, vocab: int = 32000) -> tuple[Any, Any]:
    vision, text = {**sizes, "image_size": size, "patch_size": patch}, {**sizes, "vocab_size": vocab}
    config = hf.SiglipConfig(vision_config=vision, text_config=text)
    return config, hf.SiglipImageProcessor(size={"height": size, "width": size})


def dinov2(kind: Any, **more: int) -> tuple[Any, Any]:
    processor = hf.BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224})
    return kind(**DINO, mlp_ratio=4, image_size=518, patch_size=14, **more), processor


def dinov3() -> tuple[Any, Any]:
    config = hf.DINOv3ViTConfig(**LARGE, image_size=224, patch_size=16, num_register_tokens=4)
    return config, hf.DINOv3ViTImageProcessor(size={"height": 224, "width": 224})


PUBLISHED = {  # what the config.json and preprocessor_config.json of each checkpoint say
    "openai/clip-vit-large-patch14-336": lambda: clip(LARGE, BASE, 768, 336, 14),
    "openai/clip-vit-large-patch14": lambda: clip(LARGE, BASE, 768, 224, 14),
    "openai/clip-vit-base-patch16": lambda: clip(BASE, SMALL_TEXT, 512, 224, 16),
    "google/siglip-so400m-patch14-384": lambda: siglip(SO400M, 384, 14),
    "google/siglip-base-patch16-256": lambda: siglip(BASE, 256, 16),
    "google/siglip2-so400m-patch14-384": lambda: siglip(SO400M, 384, 14, vocab=256000),
    "facebook/dinov2-large": lambda: dinov2(hf.Dinov2Config),
    "facebook/dinov2-with-registers-large": lambda: dinov2(hf.Dinov2WithRegistersConfig, num_register_tokens=4),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": dinov3,
}
# the same architectures as timm and open_clip know them: (library, name, parameters only transformers' has)
ELSEWHERE = {
    "clip-vit-l-336": ("open_clip", "ViT-L-14-336", 0),
    "clip-vit-l-224": ("open_clip", "ViT-L-14", 0),
    "clip-vit-b-16": ("open_clip", "ViT-B-16", 0),
    "siglip-so400m-384": ("timm", "vit_so400m_patch14_siglip_384", 0),
    "siglip-b-256": ("timm", "vit_base_patch16_siglip_256", 0),
    "siglip2-so400m-384": ("timm", "vit_so400m_patch14_siglip_378", 0),
    "dinov2-l": ("timm", "vit_large_patch14_dinov2", 1024),  # the mask token
    "dinov2-l-reg": ("timm", "vit_large_patch14_reg4_dinov2", 2048),  # and a position of the class token
    "dinov3-l": ("timm", "vit_large_patch16_dinov3_qkvb", 1024),
}


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights without memory; open_clip would copy them to the CPU."""
    if find_spec("open_clip"):
        monkeypatch.setattr("open_clip.factory._set_model_device_and_precision", lambda *_: None)


def build(card: Card, folder: Path) -> Vision:
    args = dict(card.args)
    if inner := args.pop("encoder", None):
        return building.build(replace(card, args=args), encoder=build(CARDS[inner], folder))
    if (checkpoint := args.get("checkpoint")) in PUBLISHED:
        for part in PUBLISHED[checkpoint]():
            part.save_pretrained(folder)
        args["checkpoint"] = str(folder)
    with torch.device("meta"):
        return building.build(replace(card, args={**args, "random": True}))


@pytest.mark.parametrize("name", CARDS)
def test_facts(name: str, tmp_path: Path, meta: None):
    card = CARDS[name]
    pytest.importorskip({"TimmVision": "timm", "OpenCLIPVision": "open_clip"}.get(card.target.split(".")[-1], "torch"))
    vision = build(card, tmp_path)
    facts = {
        "dim": vision.dim,
        "grid": list(vision.grid),
        "image_size": vision.image_size,
        "text": bool(vision.joint),
        "joint": vision.joint,
        "layers": getattr(vision, "encoder", vision).layers,
        "parameters": sum(p.numel() for p in vision.parameters()),
    }
    declared = {"joint": 0, **card.facts}
    assert {key: facts[key] for key in declared} == declared
    assert set(declared) == set(facts) or name.startswith("toy-")
    assert name.startswith("toy-") or (card.paper and card.license)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_facts_agree_with_other_libraries(name: str, meta: None):
    open_clip, timm = pytest.importorskip("open_clip"), pytest.importorskip("timm")
    library, other, more = ELSEWHERE[name]
    with torch.device("meta"):
        tower = timm.create_model(other, num_classes=0) if library == "timm" else open_clip.create_model(other).visual
    assert CARDS[name].facts["parameters"] == sum(p.numel() for p in tower.parameters()) + more


def test_tags_exist():
    open_clip, timm = pytest.importorskip("open_clip"), pytest.importorskip("timm")
    for card in CARDS.values():
        pair = card.args.get("model"), card.args.get("pretrained")
        if card.target.endswith("TimmVision"):
            assert ".".join(pair) in timm.list_pretrained()
        if card.target.endswith("OpenCLIPVision"):
            assert pair in open_clip.list_pretrained()
