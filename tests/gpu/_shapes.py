"""Published models as configurations, their weights random and made on the GPU; what they see; the work that it is.

Letters: B images, S positions, P patches, C their width, D width of the language model, V its vocabulary, N trained
tokens, J width of the joint space.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, CLIPConfig, CLIPImageProcessor, SiglipConfig, SiglipImageProcessor

from mmalign.adapters.mlp import MLP
from mmalign.llms.causal import CausalLM
from mmalign.testing.small import tokenizer
from mmalign.vision.hf import HFVision
from mmalign.vlm.batch import Batch, Sample, collate
from mmalign.vlm.model import VLM
from tests.speed._work import made_there

BEFORE = 35  # tokens of text before an image


@dataclass(frozen=True)
class Encoder:
    """kind: clip or siglip. image, patch: pixels."""

    kind: str
    width: int
    layers: int
    heads: int
    inner: int
    image: int
    patch: int
    joint: int

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2


@dataclass(frozen=True)
class Language:
    """family: transformers' model_type. settings: of its configuration."""

    family: str
    width: int
    layers: int
    heads: int
    groups: int
    head: int
    inner: int
    vocab: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def layer(self) -> int:
        """Weights of a layer's matrices."""
        attention = 2 * self.width * self.head * (self.heads + self.groups)
        return attention + 3 * self.width * self.inner

    @property
    def weights(self) -> int:
        """Of all matrices, the head counted where it is no other than the embeddings."""
        return self.layers * self.layer + self.vocab * self.width * (2 - self.family.startswith("gemma"))


CLIP = Encoder("clip", 1024, 24, 16, 4096, 336, 14, 768)
SIGLIP = Encoder("siglip", 1152, 27, 16, 4304, 384, 14, 1152)
SMALL_CLIP = Encoder("clip", 48, 3, 3, 96, 56, 14, 24)
SMALL_SIGLIP = Encoder("siglip", 48, 3, 3, 96, 56, 14, 48)
LLMS = {
    "Vicuna-7B": Language("llama", 4096, 32, 32, 32, 128, 11008, 32_000),
    "Gemma-2B": Language("gemma", 2048, 18, 8, 1, 256, 16384, 256_000),
}
SMALL = {
    "Vicuna-7B": Language("llama", 64, 4, 4, 4, 16, 128, 1024),
    "Gemma-2B": Language("gemma", 64, 4, 4, 1, 32, 256, 4096),
}


def encoder(shape: Encoder) -> HFVision:
    """On the GPU in bf16, where there is one; the checkpoint's folder goes when this returns."""
    tower = {"hidden_size": shape.width, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads}
    vision = {**tower, "intermediate_size": shape.inner, "image_size": shape.image, "patch_size": shape.patch}
    side = {"height": shape.image, "width": shape.image}
    with tempfile.TemporaryDirectory() as folder, made_there():
        if shape.kind == "clip":
            text = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 64}
            CLIPConfig(vision_config=vision, text_config=text, projection_dim=shape.joint).save_pretrained(folder)
            CLIPImageProcessor(size={"shortest_edge": shape.image}, crop_size=side).save_pretrained(folder)
        else:
            text = {"num_hidden_layers": 1, "hidden_size": shape.width, "num_attention_heads": 1}
            SiglipConfig(vision_config=vision, text_config=text).save_pretrained(folder)
            SiglipImageProcessor(size=side).save_pretrained(folder)
        return HFVision(folder, random=True)


def language(shape: Language) -> CausalLM:
    """Its tokenizer is a small one: ids beyond it are never read as text."""
    with tempfile.TemporaryDirectory() as folder, made_there():
        tokenizer("bytelevel", Path(folder))
        AutoConfig.for_model(
            shape.family, hidden_size=shape.width, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
            num_key_value_heads=shape.groups, head_dim=shape.head, intermediate_size=shape.inner,
            vocab_size=shape.vocab, max_position_embeddings=4096, **shape.settings,
        ).save_pretrained(folder)  # fmt: skip
        return CausalLM(folder, random=True)


def model(eye: Encoder, mouth: Language) -> VLM:
    """In bf16, on the GPU if there is one."""
    torch.manual_seed(0)
    vision, llm = encoder(eye), language(mouth)
    vlm = VLM(vision, MLP(vision.dim, llm.dim, vision.grid), llm)
    return vlm.to("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16).eval()


def batch(vlm: VLM, behind: Sequence[int], room: int = 0) -> Batch:
    """Samples of text, an image, and so many trained tokens. room: positions of a row that samples share; 0: none."""
    g = torch.Generator().manual_seed(0)
    known, tokens, side = vlm.llm.chat.mark, vlm.tokens, vlm.vision.image_size
    rows: list[list[Sample]] = [[]]
    used = 0
    for number, answer in enumerate(behind):
        text = torch.randint(3, known, (BEFORE + answer,), generator=g).tolist()
        ids = [*text[:BEFORE], *[known] * tokens, *text[BEFORE:]]
        weights = [0.0] * (BEFORE + tokens) + [1.0] * answer
        sample = Sample(str(number), ids, weights, [torch.randn(3, side, side, generator=g)])
        if rows[-1] and used + len(ids) > room:
            rows.append([])
            used = 0
        rows[-1].append(sample)
        used += len(ids)
    return collate(rows, vlm.llm.chat).to(vlm.device)


@dataclass(frozen=True)
class Work:
    """Floating-point operations of matrix products that a step cannot do without; no padding, nothing done twice.

    behind: trained tokens of each sample, which holds one image.
    """

    eye: Encoder
    mouth: Language
    behind: Sequence[int]

    @property
    def lengths(self) -> list[int]:
        return [BEFORE + self.eye.patches + answer for answer in self.behind]

    def seen(self) -> float:
        """The encoder's layers up to the last but one, forward."""
        eye = self.eye
        positions = eye.patches + (eye.kind == "clip")
        of_weights = 2 * positions * (4 * eye.width**2 + 2 * eye.width * eye.inner)
        return len(self.behind) * (eye.layers - 1) * (of_weights + 4 * positions**2 * eye.width)

    def adapted(self) -> float:
        """The adapter forward, and both of its gradients but that of the patches."""
        rows, first, second = (
            len(self.behind) * self.eye.patches,
            self.eye.width * self.mouth.width,
            self.mouth.width**2,
        )
        return 2 * rows * (2 * first + 3 * second)

    def attention(self) -> float:
        """Both products of all layers, forward, under the causal mask: half of each."""
        squares = sum(length**2 for length in self.lengths)
        return self.mouth.layers * 2 * squares * self.mouth.heads * self.mouth.head

    def step(self, learns: int = 0, of_layers: bool = False) -> float:
        """Forward, the gradient of activations, and of weights. learns: weights that learn beside frozen ones (LoRA).
        of_layers: all of the language model's do."""
        through = 2 * sum(self.lengths) * self.mouth.layers * self.mouth.layer
        head = 2 * sum(self.behind) * self.mouth.vocab * self.mouth.width
        times = 3 if of_layers else 2
        more = 2 * sum(self.lengths) * 3 * learns
        return self.seen() + self.adapted() + times * (through + head) + 3 * self.attention() + more

    def divergence(self) -> float:
        """The three products of BASIC's KL: two logits and a gradient."""
        return 3 * 2 * len(self.behind) * self.eye.patches * self.mouth.vocab * self.mouth.width


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
