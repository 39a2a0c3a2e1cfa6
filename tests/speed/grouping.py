"""Tokens that a pass pads or a device waits for, over real tokens, on two heavy-tailed mixes; then over random batches.

`pass`: padded to its longest sample. `8 devices`: side by side, each step as long as its longest pass.
"""

import numpy as np
from numpy.typing import NDArray

from mmalign.data import order

from . import Pairs

TARGET = 1.02
RANDOM = 0.7  # of what random batches cost
COUNT, BATCH, MICRO, DEVICES = 200_000, 128, 16, 8

Array = NDArray[np.int64]


def measure() -> dict[str, Pairs]:
    found = {}
    for name, (length_N, kind_N) in {"images": _mix(), "texts": _texts()}.items():
        order_N = order.grouped(length_N, MICRO, BATCH, 0, kind_N)
        random_N = np.random.default_rng(0).permutation(COUNT)
        for many, side in (("pass", 1), (f"{DEVICES} devices", DEVICES)):
            ours, real, drawn = _tokens(length_N[order_N], side), int(length_N.sum()), _tokens(length_N[random_N], side)
            found[f"grouping {name}, {many}"] = Pairs([ours], [real], TARGET, "M")
            found[f"  over random {name}, {many}"] = Pairs([ours], [drawn], RANDOM, "M")
    return found


def _mix() -> tuple[Array, Array]:
    """Like LLaVA's mix: 576 visual tokens and talk of very different length, and some texts alone."""
    random = np.random.default_rng(0)
    kind_N = (random.random(COUNT) > 0.06).astype(np.int64)
    text_N = np.exp(random.normal(np.where(kind_N, 4.6, 6.2), 1.0))
    return np.where(kind_N, 576 + text_N, text_N).astype(np.int64).clip(8, 4096), kind_N


def _texts() -> tuple[Array, Array]:
    length_N = np.exp(np.random.default_rng(1).normal(5, 1.2, COUNT)).astype(np.int64).clip(5, 4096)
    return length_N, np.zeros(COUNT, np.int64)


def _tokens(length_N: Array, devices: int) -> int:
    """Tokens computed or waited for, when so many passes run side by side until the longest of them ends."""
    together_N = np.append(length_N, np.zeros(-len(length_N) % (MICRO * devices), np.int64))
    return int(together_N.reshape(-1, MICRO * devices).max(1).sum()) * MICRO * devices
