"""A training step with lm and both of BASIC's terms against one with lm alone: time, and peak memory; and the same
through a lens (`space: lens`) against that without one.

On a CPU: a Llama of 6 layers, 512 wide, whose vocabulary is to its layers as Vicuna 7B's is (2 to 3 % of the weights),
an adapter of two layers, fp32, two images of 576 tokens with 50 trained words each; the language model is frozen, as in
the first stage. On a GPU: Vicuna 7B's own layers and vocabulary, bf16, eight images.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from unittest.mock import patch

import torch
from transformers import LlamaConfig

from mmalign.adapters.mlp import MLP
from mmalign.llms.causal import CausalLM
from mmalign.objectives.basic import Direction, Distribution
from mmalign.objectives.lm import NextToken
from mmalign.vision import Vision
from mmalign.vlm.batch import Batch
from mmalign.vlm.lens import Lens
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import Supervised
from tests.parts import tokenizer

from . import Pairs, in_turn
from ._work import clock, made_there, peak

TARGET = 1.10
LENS_TARGET = 1.15
GRID, WIDE = (24, 24), 1024  # of CLIP ViT-L at 336 pixels
BEFORE, BEHIND = 35, 50  # tokens of text around the image; those behind it are trained
TIMES = 5


class Seen(Vision):
    """An encoder whose patches are there already: it is the same work in both steps."""

    def __init__(self, patches_BPC: torch.Tensor) -> None:
        super().__init__()
        self.dim, self.grid, self.image_size, self.joint = WIDE, GRID, 336, 0
        self.patches_BPC = patches_BPC

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        return self.patches_BPC


def measure() -> dict[str, Pairs]:
    torch.set_num_threads(1)
    both = _step({"lm": NextToken(), "direction": Direction(), "distribution": Distribution()})
    alone = _step({"lm": NextToken()})
    found = {"step lm + basic / lm": in_turn(both, alone, TIMES, clock)}
    found["step lm + basic / lm, memory"] = Pairs([peak(both)], [peak(alone)], unit="MiB")
    del alone
    looking = {"direction": Direction(space="lens"), "distribution": Distribution(space="lens")}
    with patch.object(Supervised, "_lens", _lens):
        through = _step({"lm": NextToken(), **looking})
    found["step lm + basic, lens / basic"] = replace(in_turn(through, both, TIMES, clock), target=LENS_TARGET)
    return found


def _lens(model: Supervised, layers: Sequence[int], texts: Sequence[str], distributed: bool) -> Lens:
    """Any map of each layer: what a lens is fitted on does not change what it costs."""
    dim, device = model.vlm.llm.dim, model.vlm.device
    return Lens({layer: torch.randn(dim + 1, dim, device=device) * dim**-0.5 for layer in layers})


def _step(objectives: dict[str, torch.nn.Module]) -> Callable[[], None]:
    """Forward and backward, the adapter's gradient thrown away."""
    model, batch = probe(objectives)
    weights = {"lm": 1.0, "direction": 1.0, "distribution": 0.01}

    def step() -> None:
        terms, _ = model(batch)
        sum(weights[name] * term for name, term in terms.items()).backward()
        model.zero_grad()

    return step


def probe(objectives: dict[str, torch.nn.Module]) -> tuple[Supervised, Batch]:
    """The model whose steps are timed, the adapter learning, and what it sees in every one of them."""
    cuda = torch.cuda.is_available()
    images, layers, dim, heads, inner, vocab = (8, 32, 4096, 32, 11008, 32_000) if cuda else (2, 6, 512, 8, 1408, 1024)
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=dim, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, vocab_size=vocab, max_position_embeddings=1024,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        tokenizer("bytelevel", folder)
        config.save_pretrained(folder)
        with made_there():
            mouth = CausalLM(folder, random=True)
    patches = GRID[0] * GRID[1]
    eye = Seen(torch.randn(images, patches, WIDE, device=device, dtype=dtype))
    model = Supervised(VLM(eye, MLP(WIDE, dim, GRID), mouth), objectives).to(device, dtype)
    model.prepare()
    model.freeze_all_but(["adapter"])
    return model, _batch(images, patches, mouth.chat.mark).to(torch.device(device))


def _batch(images: int, patches: int, mark: int) -> Batch:
    length = BEFORE + patches + BEHIND
    ids_RS = torch.randint(3, 300, (images, length))
    ids_RS[:, BEFORE : BEFORE + patches] = mark
    weight_RS = torch.zeros(images, length)
    weight_RS[:, -BEHIND:] = 1
    return Batch(ids_RS, torch.ones_like(ids_RS), weight_RS, torch.zeros(images, 3, 1, 1))
