"""`python -m tests.benchmarks [name ...]`: a table of ratios; exit code 1 where one is above its target."""

import os
import statistics
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

from mmalign.errors import nearest

from . import modules


def main(names: list[str]) -> int:
    known = modules()
    for name in names:
        if name not in known:
            print(f"error: no benchmark {name!r}\n  try  {nearest(name, known)}", file=sys.stderr)
            return 2
    print(f"{'name':<12} {'ours':>10} {'reference':>10} {'ratio':>7} {'target':>7}")
    slow = 0
    for name in names or known:
        found, target = known[name].measure(), known[name].TARGET
        ours, reference = (statistics.median(times) for times in (found.ours, found.reference))
        above = found.ratio > target
        slow += above
        line = f"{name:<12} {ours * 1e3:>7.1f} ms {reference * 1e3:>7.1f} ms {found.ratio:>7.2f} {target:>7.2f}"
        print(f"{line}{'   above' if above else ''}", flush=True)
    return min(slow, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
