"""What the switches of `engine:` are worth: kernels of attention, compiled layers, recomputation, AdamW's kernel."""

import shutil
from collections.abc import Callable
from functools import partial

import torch

from mmalign.io import pretrained
from mmalign.llms import watch
from mmalign.objectives.lm import NextToken
from mmalign.vlm.supervised import Supervised

from ._shapes import CLIP, LLMS, SMALL, SMALL_CLIP, Work, batch, model
from ._sheet import Sheet, in_rounds
from ._training import CONVERSATIONS, Arm, Optimizer

NAME = "Gemma-2B"
Forwards = list[Callable[..., object]]


def switches(sheet: Sheet, tiny: bool) -> None:
    """A tune step of one language model under each; then a step of AdamW alone."""
    eye, mouth = (SMALL_CLIP, SMALL[NAME]) if tiny else (CLIP, LLMS[NAME])
    vlm = model(eye, mouth)
    work = Work(eye, mouth, [20, 40] if tiny else CONVERSATIONS)
    supervised = Supervised(vlm, {"lm": NextToken()})
    supervised.prepare()
    supervised.freeze_all_but(["adapter", "llm"])
    lm = vlm.llm.lm.train()
    layers = list(watch.layers(lm))
    plain: Forwards = [layer.forward for layer in layers]
    pretrained.compile_layers(layers, torch.compile, torch.is_grad_enabled)
    fast: Forwards = [layer.forward for layer in layers]
    step = Arm(supervised, batch(vlm, work.behind), Optimizer(supervised))

    def under(kernel: str, forwards: Forwards, again: bool = False) -> None:
        vlm.llm.attend(kernel)
        for layer, forward in zip(layers, forwards, strict=True):
            layer.forward = forward
        pretrained.recompute(lm, again)
        step.step()

    cuda = torch.cuda.is_available()
    kernels = ("sdpa", "eager", *["flash"] * cuda)
    arms = {f"attention: {kernel}": partial(under, kernel, plain) for kernel in kernels}
    if cuda or shutil.which("g++"):
        arms["compile: true"] = partial(under, "sdpa", fast)
        arms["compile: true, checkpointing: true"] = partial(under, "sdpa", fast, True)
    arms["checkpointing: true"] = partial(under, "sdpa", plain, True)
    table = f"{NAME}: switches of a tune step, {len(work.behind)} samples, bf16, all weights learn"
    times = 1 if tiny else 5
    measured = in_rounds(arms, times, partial(sheet.failed, table))
    for what, (seconds, memory) in measured.items():
        ratio = seconds / measured["attention: sdpa"][0]
        sheet.add(table, what=what, step_ms=1e3 * seconds, peak_GiB=memory, ratio=f"{ratio:.3f} of attention: sdpa")
    under("sdpa", plain)
    _adam(sheet, supervised, times)


def _adam(sheet: Sheet, supervised: Supervised, times: int) -> None:
    """Of the same gradients: torch's default, and one kernel a tensor."""
    steps = {f"fused: {str(fused).lower()}": Optimizer(supervised, fused).step for fused in (False, True)}
    table = f"{NAME}: a step of AdamW on the fp32 copies of its weights"
    for what, (seconds, _) in in_rounds(steps, times, partial(sheet.failed, table)).items():
        sheet.add(table, what=what, step_ms=1e3 * seconds)
