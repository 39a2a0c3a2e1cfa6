"""A step of the first stage, only the adapter learning, against the same step as LLaVA makes it: time and peak memory.

LLaVA (arXiv 2304.08485; its train.py, clip_encoder.py and llava_arch.py) runs the whole encoder and keeps all of its
hidden states, recomputes every layer of the frozen language model in the backward pass (gradient_checkpointing=True),
pads captions of any lengths, and makes fp32 logits of every position. Both sides hold the same weights, see the same
samples, and end in the same gradient of the adapter.

bf16. On a CPU: a Llama of 6 layers, 1024 wide, and four captions; on a GPU, Vicuna 7B's own sizes and eight.

Letters: B samples, S positions, P patches, D width, V vocabulary.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, LlamaConfig

from mmalign.adapters.mlp import MLP
from mmalign.io import pretrained
from mmalign.llms.causal import CausalLM
from mmalign.objectives.lm import NextToken
from mmalign.testing.small import tokenizer
from mmalign.vision.hf import HFVision
from mmalign.vlm.batch import Batch
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import Supervised

from . import Pairs, in_turn
from ._work import clock, made_there, peak

TARGET = 1 / 1.9
MEMORY = 0.5
TIMES = 3
BEFORE = 35  # tokens of text before the image
CAPTIONS = [105, 38, 13, 61, 24, 20, 56, 71]  # tokens behind it, all of them trained
IMAGE = 336


def measure() -> dict[str, Pairs]:
    torch.set_num_threads(1)
    model, batch = probe()
    ours, theirs = (lambda: ours_of(model, batch)), (lambda: llavas_of(model, batch))
    found = {"stage-1 step / LLaVA's": in_turn(ours, theirs, TIMES, clock)}
    found["stage-1 step / LLaVA's, memory"] = Pairs([peak(ours)], [peak(theirs)], MEMORY, "MiB")
    return found


def ours_of(model: Supervised, batch: Batch) -> Tensor:
    """The step that training stages make; the loss."""
    model.zero_grad()
    loss = model(batch)[0]["lm"]
    loss.backward()
    return loss


def llavas_of(model: Supervised, batch: Batch) -> Tensor:
    """The same step as LLaVA makes it, on the same weights; the loss."""
    model.zero_grad()
    eye: Any = model.vlm.vision
    lm: Any = model.vlm.llm.lm
    pretrained.recompute(lm.train())
    with torch.no_grad():
        states = eye.tower(batch.pixels_B3SS, output_hidden_states=True).hidden_states
    embeds_BSD = model.embed(batch, model.vlm.adapter(states[-2][:, 1:]))
    logits_BSV = lm(inputs_embeds=embeds_BSD, attention_mask=batch.mask_RS, use_cache=False).logits.float()
    label_BS = batch.ids_RS.masked_fill(batch.weight_RS == 0, -100)
    loss = F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), label_BS[:, 1:].flatten())
    loss.backward()
    pretrained.recompute(lm.eval(), on=False)
    return loss


def probe() -> tuple[Supervised, Batch]:
    """The model, its adapter learning, and the captions."""
    cuda = torch.cuda.is_available()
    images, layers, dim, heads, inner = (8, 32, 4096, 32, 11008) if cuda else (4, 6, 1024, 8, 2752)
    width, deep = (1024, 24) if cuda else (192, 8)
    device = torch.device("cuda" if cuda else "cpu")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, made_there():
        eye = HFVision(str(_clip(Path(folder) / "clip", width, deep)), random=True)
        tokenizer("bytelevel", Path(folder))
        LlamaConfig(
            hidden_size=dim, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=heads, vocab_size=32_000, max_position_embeddings=1024,
        ).save_pretrained(folder)  # fmt: skip
        mouth = CausalLM(folder, random=True)
    vlm = VLM(eye, MLP(eye.dim, dim, eye.grid), mouth)
    model = Supervised(vlm, {"lm": NextToken()}).to(device, torch.bfloat16)
    model.prepare()
    model.freeze_all_but(["adapter"])
    return model, _batch(CAPTIONS[:images], eye.patches, mouth.chat.mark).to(device)


def _clip(folder: Path, width: int, deep: int) -> Path:
    """CLIP ViT-L/14 at 336 pixels, that wide and deep; its text tower is not used."""
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    vision = {**tower, "num_hidden_layers": deep, "image_size": IMAGE, "patch_size": 14}
    CLIPConfig(vision_config=vision, text_config={"num_hidden_layers": 1}).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": IMAGE}, crop_size=IMAGE).save_pretrained(folder)
    return folder


def _batch(captions: list[int], patches: int, known: int) -> Batch:
    """Text, an image, a caption, and padding; the mark is the id behind the tokenizer's."""
    shape = (len(captions), BEFORE + patches + max(captions))
    ids_RS, weight_RS, mask_RS = torch.randint(3, known, shape), torch.zeros(shape), torch.zeros(shape).long()
    ids_RS[:, BEFORE : BEFORE + patches] = known
    for row, behind in enumerate(captions):
        weight_RS[row, BEFORE + patches :][:behind] = 1
        mask_RS[row, : BEFORE + patches + behind] = 1
    return Batch(ids_RS, mask_RS, weight_RS, torch.randn(len(captions), 3, IMAGE, IMAGE).bfloat16())
