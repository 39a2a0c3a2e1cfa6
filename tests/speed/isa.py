"""What depends on a CPU's instructions, as this CPU is and as one without any for bf16 or AVX-512: the nearest words of
patches, a step that makes its labels, the vocabulary KL, and the quickstart, whose reference is the same on this CPU as
it is.

`python -m tests.speed isa`, and only where it is named: it takes as long as those together, twice. The variables are
read when a process starts, so each is one.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from . import Pairs

TARGET = float("inf")  # each row has its own
ROOT = Path(__file__).parents[2]
ALL = False  # not among those of `python -m tests.speed`
LIMITED = {"as it is": {}, "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}}
BENCHMARKS = ("topn", "sea-step", "kl")
ASKED = """
import json, sys
from tests.speed import modules
module = modules()[sys.argv[1]]
made = module.measure()
made = made if isinstance(made, dict) else {sys.argv[1]: made}
print(json.dumps({row: [p.ours, p.reference, module.TARGET if p.target is None else p.target, p.unit]
                  for row, p in made.items()}))
"""


def measure() -> dict[str, Pairs]:
    found: dict[str, Pairs] = {}
    for name, variables in LIMITED.items():
        for benchmark in BENCHMARKS:
            rows = json.loads(_run([sys.executable, "-c", ASKED, benchmark], variables).splitlines()[-1])
            found |= {f"{row}, {name}": Pairs(*row_of) for row, row_of in rows.items() if row_of[3] == "ms"}
    first, *others = (_spent(lambda v=variables: _quickstart(v)) for variables in LIMITED.values())
    for name, seconds in zip([*LIMITED][1:], others, strict=True):
        found[f"quickstart, {name}"] = Pairs([seconds], [first], TARGET)
    return found


def _run(line: list[str], variables: Mapping[str, str], folder: Path = ROOT) -> str:
    """What a command prints, in a process of one thread that the variables limit."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **variables}
    return subprocess.run(line, env=env, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout


def _quickstart(variables: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _run(
            [sys.executable, "-c", "from mmalign.cli import entry; entry()", "run", "quickstart"],
            variables,
            Path(folder),
        )


def _spent(call: Callable[[], object]) -> float:
    """Seconds on the CPU of the processes that a call starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
