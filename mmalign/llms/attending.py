"""Which kernel computes a language model's attention, through transformers' own switch: `engine.attention`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mmalign.errors import CheckError

KERNELS = {"sdpa": "sdpa", "flash": "flash_attention_2", "eager": "eager"}  # as transformers calls them
AT, FIX = "engine.attention", "engine: {attention: sdpa}"


def attend(lm: Any, kind: str) -> None:
    """Have a model of transformers compute attention so. kind: of KERNELS, or auto: as it does by itself. CheckError
    for flash attention without a GPU or its package, and for a model that has no such switch."""
    if kind == "auto":
        return
    if kind == "flash" and not torch.cuda.is_available():
        raise CheckError("flash attention runs on a GPU, and here is none", at=AT, fix=FIX)
    try:
        lm.set_attn_implementation(KERNELS[kind])
    except Exception as err:  # of transformers, or of the package that it loads
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        fix = f"pip install flash-attn, or {FIX}" if kind == "flash" else "engine: {attention: auto}"
        raise CheckError(f"{kind} attention of {type(lm).__name__}: {reason[:300]}", at=AT, fix=fix) from err
    if lm.config._attn_implementation == "sdpa" != KERNELS[kind]:  # with no more than a warning
        raise CheckError(f"{type(lm).__name__} has no {kind} attention", at=AT, fix=FIX)


@contextmanager
def masked(config: Any) -> Iterator[None]:
    """For a pass with a mask of our own, which no flash attention takes: by sdpa meanwhile."""
    kernel = config._attn_implementation
    if "flash" not in (kernel or ""):
        yield
        return
    config._attn_implementation_internal = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation_internal = kernel
