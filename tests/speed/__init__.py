"""Benchmarks: ours against a reference, in turn, medians. A module here is a benchmark; its name is the module's.

A module has a docstring that says what is compared with what, `TARGET`, the ratio that ours / reference should not
exceed, and `measure() -> Pairs`; or, for several rows, `measure() -> dict[str, Pairs]`, each with its own target.
"""

import importlib
import pkgutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType


@dataclass
class Pairs:
    """Seconds (or bytes, or a count) of ours and of the reference, taken in turn."""

    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    target: float | None = None  # None: the module's
    unit: str = "ms"  # or MiB, or M: millions of something

    @property
    def ratio(self) -> float:
        return statistics.median(self.ours) / statistics.median(self.reference)


def modules() -> dict[str, ModuleType]:
    names = [found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_")]
    return {name.replace("_", "-"): importlib.import_module(f"{__name__}.{name}") for name in sorted(names)}


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    call()
    return clock() - began


def in_turn(
    ours: Callable[[], object],
    reference: Callable[[], object],
    times: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Pairs:
    """Each once unmeasured, then `times` pairs; what slows the machine for a while slows both."""
    ours(), reference()
    found = Pairs()
    for _ in range(times):
        found.reference.append(seconds(reference, clock))
        found.ours.append(seconds(ours, clock))
    return found
