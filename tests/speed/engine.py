"""The packed engine against transformers' generate one question at a time, its image and all, 6 and 18 questions an
image, fp32; answers must be equal. A POPE-like shape: 576 visual tokens, questions of some 20 tokens, 2 new ones.

The toy model is small and its images are 36 tokens, so there it is calls that are saved, not tokens.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmalign.adapters.mlp import MLP
from mmalign.benchmarks import Benchmark, Question
from mmalign.data import MARK, Turn
from mmalign.llms.causal import CausalLM
from mmalign.toyworld.benchmarks import Attributes
from mmalign.vision.hf import HFVision
from mmalign.vlm.model import VLM
from tests import parts

from . import Pairs, in_turn

TARGET = 1 / 9  # of 18 questions an image
FEWER = 1 / 4  # of 6
TIMES, IMAGES = 3, 1
TOY = "pkg:mmalign.toyworld/"
OBJECTS = "kettle urn vase ring star bottle chair table dog cat bird boat lamp cup spoon fork clock book".split()  # noqa: SIM905


def measure() -> dict[str, Pairs]:
    torch.set_num_threads(1)
    found: dict[str, Pairs] = {}
    with tempfile.TemporaryDirectory() as folder:
        large, toy = _large(Path(folder)), _asked(f"{TOY}clip", f"{TOY}llama")
        for each, target in ((18, TARGET), (6, FEWER)):
            found[f"engine 576 tokens, {each}"] = _pairs(large, Objects(each), target)
            found[f"engine toy model, {each}"] = _pairs(toy, Scenes(each), target)
    return found


def _pairs(model: VLM, bench: Benchmark, target: float) -> Pairs:
    """Both ways in turn, once it is clear that they answer alike."""
    questions = bench.questions()
    packed = {one.id: text for one, text in model.answers(bench, questions, batch=len(questions))}
    assert packed == dict(_alone(model, bench)), "the answers differ"
    ours = lambda: list(model.answers(bench, questions, batch=len(questions)))  # noqa: E731
    pairs = in_turn(ours, lambda: list(_alone(model, bench)), TIMES)
    pairs.target = target
    return pairs


@torch.no_grad()
def _alone(model: VLM, bench: Benchmark) -> Iterator[tuple[str, str]]:
    """LLaVA's way: each question with an image pass, a prefill and a decoding of its own."""
    chat, lm = model.llm.chat, model.llm.lm
    for question in bench.questions():
        visual_1QD = model.visual_tokens(bench.image(question.image))
        ids = chat.prompt([Turn("user", f"{MARK}\n{question.text}")], [visual_1QD.shape[1]])
        ids_1S = torch.tensor([ids], device=visual_1QD.device)
        seen_1S = ids_1S == chat.mark
        embeds_1SD = model.llm.embed(ids_1S.masked_fill(seen_1S, 0))
        embeds_1SD[seen_1S] = visual_1QD[0].to(embeds_1SD.dtype)
        made = lm.generate(
            inputs_embeds=embeds_1SD, attention_mask=torch.ones_like(ids_1S), do_sample=False, pad_token_id=chat.pad,
            max_new_tokens=bench.max_new_tokens, eos_token_id=list(chat.ends),
        )  # fmt: skip
        yield question.id, chat.text(made[0].tolist())


class Objects(Benchmark):
    """Is there such an object, asked `each` times about each image."""

    max_new_tokens = 2

    def __init__(self, each: int) -> None:
        text = "Is there a {} in the image?"  # the tokenizer has few words: this is as long as with LLaVA's suffix
        self.asked = [Question(f"{n}-{one}", text.format(one), n) for n in range(IMAGES) for one in OBJECTS[:each]]

    def questions(self) -> Sequence[Question]:
        return self.asked

    def image(self, reference: int) -> Image.Image:
        return Image.new("RGB", (336, 336), (reference * 90, 120, 30)).effect_spread(20)


class Scenes(Attributes):
    """The toy world's questions without their options, so that answers are written; those of the first scenes again
    where a scene has fewer than `each`."""

    max_new_tokens = 2

    def __init__(self, each: int) -> None:
        super().__init__(images=40)
        self.each = each

    def questions(self) -> Sequence[Question]:
        texts = list(dict.fromkeys(item.question.text for item in self.items))[: self.each]
        return [Question(f"{n}-{m}", text, n) for n in range(IMAGES) for m, text in enumerate(texts)]


def _large(folder: Path) -> VLM:
    """576 visual tokens, and a language model wide enough that most of the time is arithmetic."""
    eye = parts.clip(folder / "clip", size=336, patch=14)
    sizes: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4}
    mouth = parts.llm("llama", folder / "llm", num_attention_heads=6, num_key_value_heads=6, **sizes,
                      max_position_embeddings=2048)  # fmt: skip
    return _asked(str(eye), str(mouth))


def _asked(eye: str, mouth: str) -> VLM:
    torch.manual_seed(0)
    vision, llm = HFVision(eye).float(), CausalLM(mouth).float()
    return VLM(vision, MLP(vision.dim, llm.dim, vision.grid), llm).eval()
