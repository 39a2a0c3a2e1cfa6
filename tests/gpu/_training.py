"""Steps of training at the sizes of published models: align beside LLaVA's way in the same rounds, and tune.

MFU counts the matrix products that a step cannot do without (tests/gpu/_shapes.py): no padding, no recomputation, no
attention rows, no labels; BASIC's distribution adds its three products.
"""

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from mmalign.io import pretrained
from mmalign.labels import LabelSource
from mmalign.labels.rank import Bank
from mmalign.llms.lora import Lora
from mmalign.llms.watch import NAME
from mmalign.objectives import Objective, Words
from mmalign.objectives.basic import Direction, Distribution
from mmalign.objectives.lm import NextToken
from mmalign.objectives.sea import SEA
from mmalign.vlm.batch import Batch
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import PassLabels, Supervised
from tests.speed.stage1 import CAPTIONS, llavas_of
from tests.speed.topn import KEEP, cone

from ._shapes import CLIP, LLMS, SMALL, SMALL_CLIP, Work, batch, model, parameters
from ._sheet import Sheet, in_rounds, peak_rate, product_rate

WEIGHTS = {"direction": 1.0, "distribution": 0.01}
CONVERSATIONS = [190, 330, 75, 250, 120, 410, 160, 95]  # trained tokens of the samples of a tune step
ROOM = 2048  # positions of a packed row
RANK = 128  # of LoRA, as LLaVA-1.5 has it
WHOLE = 18  # bytes a weight that all learn: bf16 weight and gradient, fp32 weight and both moments, and room
WORDS = 41_242


class Nearest(LabelSource):
    """The nearest of 41,242 words to patches, by a bank of random ones on a cone."""

    def __init__(self, words: int, width: int, device: torch.device) -> None:
        self.bank = Bank.of(cone(words, width=width).to(device))

    def label(self, dense_NJ: Tensor) -> tuple[Tensor, Tensor]:
        return self.bank.best(nn.functional.normalize(dense_NJ.float(), dim=-1), KEEP)


def training(sheet: Sheet, name: str, tiny: bool) -> None:
    """Both stages of one language model."""
    eye, mouth = (SMALL_CLIP, SMALL[name]) if tiny else (CLIP, LLMS[name])
    words, times = (300, 1) if tiny else (WORDS, 7)
    captions, conversations = (CAPTIONS[-2:], [20, 40, 10]) if tiny else (CAPTIONS, CONVERSATIONS)
    vlm = model(eye, mouth)
    rate, of_what = peak_rate()
    own = f"{product_rate() / 1e12:.3g} TFLOP/s"
    sheet.add("What MFU is a share of", during=name, rate=of_what, measured_on_a_large_bf16_product=own)
    align(sheet, name, vlm, Work(eye, mouth, captions), words, times, rate)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    tune(sheet, name, vlm, Work(eye, mouth, conversations), max(1, times - 2), rate, tiny)


def align(sheet: Sheet, name: str, vlm: VLM, work: Work, words: int, times: int, rate: float) -> None:
    """The adapter learns: the arms in turn, LLaVA's step among them."""
    table = f"{name}: align step, {len(work.behind)} images of {work.eye.patches} tokens, bf16, the adapter learns"
    seen = batch(vlm, work.behind)
    stored = replace(seen, **_stored(seen, work.eye.patches, words))
    pieces = Words([""] * words, torch.randint(3, vlm.llm.chat.mark, (words, 3), device=vlm.device), vlm.llm.embed)
    source = Nearest(words, work.eye.joint, vlm.device)
    plain = arm(vlm, {"lm": NextToken()}, seen)
    basic = {"direction": Direction(), "distribution": Distribution()}
    arms = {
        "LLaVA's step": lambda: _llavas(vlm, plain),
        "lm": plain,
        "lm + SEA, online": arm(vlm, {"lm": NextToken(), "sea": SEA()}, seen, PassLabels(pieces, source)),
        "lm + SEA, from a store": arm(vlm, {"lm": NextToken(), "sea": SEA()}, stored, PassLabels(pieces)),
        "lm + BASIC (both terms)": arm(vlm, {"lm": NextToken(), **basic}, seen),
    }
    found = in_rounds(arms, times, partial(sheet.failed, table))
    targets = {
        "lm": ("LLaVA's step", 0.55), "lm + SEA, online": ("lm", 1.02), "lm + SEA, from a store": ("lm", 1.02),
        "lm + BASIC (both terms)": ("lm", 1.08),
    }  # fmt: skip
    for what, (seconds, memory) in found.items():
        flops = work.step() + (work.divergence() if "BASIC" in what else 0)
        beside, target = targets.get(what, ("", None))
        ratio = seconds / found[beside][0] if beside in found else None
        row = _row(seconds, memory, work, flops / rate, 0.45 if what == "lm" else None)
        to = None if ratio is None else f"{ratio:.3f} of {beside}"
        sheet.add(table, what=what, **row, ratio=to, target=target)


def _stored(seen: Batch, patches: int, words: int) -> dict[str, Tensor]:
    shape, device = (seen.images, patches, KEEP), seen.ids_RS.device
    return {"words_BPK": torch.randint(words, shape, device=device), "scores_BPK": torch.rand(shape, device=device)}


def _row(seconds: float, memory: float | None, work: Work, mfu: float, target: float | None) -> dict[str, object]:
    return {
        "step_ms": 1e3 * seconds,
        "tokens/s": sum(work.lengths) / seconds,
        "images/s": len(work.behind) / seconds,
        "MFU_%": 100 * mfu / seconds,
        "MFU_target": None if target is None else f"{100 * target:.0f} %",
        "peak_GiB": memory,
    }


class Arm:
    """A step of some objectives: gradients, then AdamW on what learns."""

    def __init__(self, supervised: Supervised, seen: Batch, adam: "Optimizer") -> None:
        self.supervised, self.seen, self.adam = supervised, seen, adam

    def __call__(self) -> None:
        attend(self.supervised)
        self.step()

    def step(self) -> None:
        """Attention as it is."""
        self.supervised.zero_grad()
        terms, _ = self.supervised(self.seen)
        sum(WEIGHTS.get(name, 1.0) * term for name, term in terms.items()).backward()
        self.adam.step()


def arm(vlm: VLM, objectives: dict[str, Objective], seen: Batch, labels: PassLabels | None = None) -> Arm:
    supervised = Supervised(vlm, objectives, labels)
    supervised.objectives.to(vlm.device)
    supervised.prepare()
    supervised.freeze_all_but(["adapter"])
    return Arm(supervised, seen, Optimizer(supervised))


def attend(supervised: Supervised) -> None:
    """Attention seen row by row only where somebody looks: arms share one language model."""
    kernel = NAME if any(look.attention for look in supervised.looks) else "sdpa"
    lm = supervised.vlm.llm.lm
    if lm.config._attn_implementation != kernel:
        lm.set_attn_implementation(kernel)


def _llavas(vlm: VLM, plain: Arm) -> None:
    attend(plain.supervised)
    llavas_of(plain.supervised, plain.seen)
    plain.adam.step()


class Optimizer:
    """AdamW on fp32 copies of what learns, a parameter at a time: one fp32 gradient is held, not all."""

    def __init__(self, module: nn.Module, fused: bool = True) -> None:
        self.pairs = [(p, p.detach().float()) for p in module.parameters() if p.requires_grad]
        self.adams = [torch.optim.AdamW([own], lr=1e-6, fused=fused) for _, own in self.pairs]

    @torch.no_grad()
    def step(self) -> None:
        for (parameter, own), adam in zip(self.pairs, self.adams, strict=True):
            if parameter.grad is not None:
                own.grad = parameter.grad.float()
                adam.step()
                parameter.copy_(own)
                own.grad = None


def tune(sheet: Sheet, name: str, vlm: VLM, work: Work, times: int, rate: float, tiny: bool) -> None:
    """The language model and the adapter learn, packed rows; LoRA where all of its weights' state does not fit."""
    whole = tiny or WHOLE * parameters(vlm.llm) + (12 << 30) < torch.cuda.get_device_properties(0).total_memory
    kinds: list[bool] = [*[True] * whole, False] if tiny else [whole]
    for all_learn in kinds:
        _tune(sheet, name, vlm, work, times, rate, all_learn)


def _tune(sheet: Sheet, name: str, vlm: VLM, work: Work, times: int, rate: float, whole: bool) -> None:
    how = "all weights learn" if whole else f"LoRA of rank {RANK} on every layer learns"
    table = f"{name}: tune step, {len(work.behind)} packed samples of one image, bf16, {how}"
    if not whole and vlm.llm.lora is None:
        vlm.llm.lora = Lora(RANK, 2 * RANK, 0.0, "all-linear")
    supervised = Supervised(vlm, {"lm": NextToken()})
    supervised.prepare()
    supervised.freeze_all_but(["adapter", "llm"])
    vlm.to(vlm.device, torch.bfloat16)
    learning = sum(p.numel() for p in vlm.llm.parameters() if p.requires_grad)
    packed, single = batch(vlm, work.behind, ROOM), batch(vlm, work.behind)
    flops = work.step(of_layers=True) if whole else work.step(learns=learning)
    adam = Optimizer(supervised)
    arms: dict[str, Callable[[], None]] = {
        "packed, recomputed": partial(_recomputed, Arm(supervised, packed, adam), True),
        "packed, all kept": partial(_recomputed, Arm(supervised, packed, adam), False),
        "a row a sample, recomputed": partial(_recomputed, Arm(supervised, single, adam), True),
    }
    for what, (seconds, memory) in in_rounds(arms, times, partial(sheet.failed, table)).items():
        sheet.add(table, what=what, **_row(seconds, memory, work, flops / rate, 0.40))
    del adam, arms, supervised
    gc.collect()
    vlm.zero_grad()


def _recomputed(step: Arm, on: bool) -> None:
    """transformers recomputes in training mode alone."""
    lm = step.supervised.vlm.llm.lm
    pretrained.recompute(lm.train(), on)
    try:
        step()
    finally:
        pretrained.recompute(lm, False)
