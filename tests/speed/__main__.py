"""`python -m tests.speed [name ...]`: a table of ratios; exit code 1 where one is above its target."""

import os
import statistics
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

from mmalign.errors import suggest

from . import Pairs, modules


def main(names: list[str]) -> int:
    known = modules()
    for name in names:
        if name not in known:
            print(f"error: no benchmark {name!r}\n  try  {suggest(name, known)}", file=sys.stderr)
            return 2
    print(f"{'name':<30} {'ours':>11} {'reference':>11} {'ratio':>7} {'target':>7}")
    slow = 0
    for name in names or [name for name, module in known.items() if getattr(module, "ALL", True)]:
        made = known[name].measure()
        for row, found in (made if isinstance(made, dict) else {name: made}).items():
            slow += _row(row, found, known[name].TARGET if found.target is None else found.target)
    return min(slow, 1)


def _row(name: str, found: Pairs, target: float) -> bool:
    """Print one line; whether its ratio is above the target."""
    scale = {"ms": 1e3, "MiB": 2**-20, "M": 1e-6}[found.unit]
    ours, reference = (statistics.median(values) * scale for values in (found.ours, found.reference))
    above = found.ratio > target
    sides = f"{ours:>8.1f} {found.unit:<3} {reference:>7.1f} {found.unit:<3}"
    line = f"{name:<30} {sides} {found.ratio:>6.2f} {target:>7.2f}"
    print(f"{line}{'   above' if above else ''}", flush=True)
    return above


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
