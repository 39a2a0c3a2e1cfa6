"""What `python -m tests.gpu` runs, part by part."""

import importlib
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.speed import Pairs

from ._sheet import Sheet

ROOT = Path(__file__).parents[2]
SPEED = (
    "adamw",
    "compiled",
    "kl",
    "lm_loss",
    "topn",
    "attention",
    "basic_step",
    "sea_step",
    "stage1",
)  # those that look for a GPU


@dataclass(frozen=True)
class Part:
    """seconds: after so many it is cut off. run: writes its rows into a sheet, at tiny sizes if told so."""

    seconds: int
    run: Callable[[Sheet, bool], None]


def correctness(sheet: Sheet, tiny: bool) -> None:
    """pytest on tests/gpu: how many passed, and which did not."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider"]
    counts: dict[str, int] = {}
    said = ""
    command += ["-o", "addopts=--strict-markers"]
    there = {} if torch.cuda.is_available() else {"MMALIGN_GPU_TESTS": "cpu"}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": os.environ | there}
    with subprocess.Popen(command, cwd=ROOT, text=True, **piped) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            if at := re.match(r"(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)", line):
                counts[at[2].lower()] = counts.get(at[2].lower(), 0) + 1
                if at[2] in ("FAILED", "ERROR"):
                    sheet.add("Correctness: what failed", test=at[1])
            elif at := re.match(r"(?:FAILED|ERROR) (tests/\S+(?:\[.*?\])?)(?: - (.*))?$", line):
                sheet.add("Correctness: why", test=at[1], said=at[2])
            said = line
    outcome = {name: counts.get(name, 0) for name in ("passed", "failed", "error", "skipped")}
    sheet.add("Correctness (tests/gpu)", what="pytest -m gpu", **outcome, ended=said.strip(" =\n"))


def speed(sheet: Sheet, tiny: bool) -> None:
    """The benchmarks of tests/speed that find a GPU by themselves; without one, the two that take no time."""
    for name in ("topn", "lm_loss") if tiny else SPEED:
        table, rows = "Benchmarks of tests/speed", dict[str, Pairs]()
        try:
            module = importlib.import_module(f"tests.speed.{name}")
            made = _small(module) if tiny else module.measure()
            rows = made if isinstance(made, dict) else {name: made}
        except Exception as err:
            sheet.failed(table, name, err)
        for row, pairs in rows.items():
            scale = {"ms": 1e3, "MiB": 2**-20, "M": 1e-6}[pairs.unit]
            ours, reference = (statistics.median(values) * scale for values in (pairs.ours, pairs.reference))
            target = module.TARGET if pairs.target is None else pairs.target
            sheet.add(
                table, what=row, ours=ours, reference=reference, unit=pairs.unit, ratio=pairs.ratio, target=target
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _small(module: object) -> object:
    """The same benchmark with hardly any work in it."""
    from unittest.mock import patch

    sizes = {"WORDS": 3000, "PATCHES": 40, "TIMES": 1, "POSITIONS": 60,
             "SIZES": {"cpu": [(1, 500, 32, 1)], "cuda": [(1, 500, 32, 1)]}}  # fmt: skip
    mine = {name: value for name, value in sizes.items() if hasattr(module, name)}
    with patch.multiple(module, **mine):
        return module.measure()  # type: ignore[attr-defined]


def _training(name: str) -> Callable[[Sheet, bool], None]:
    def run(sheet: Sheet, tiny: bool) -> None:
        from ._training import training

        training(sheet, name, tiny)

    return run


def _labels(sheet: Sheet, tiny: bool) -> None:
    from ._evaluation import labels

    labels(sheet, tiny)


def _evaluation(sheet: Sheet, tiny: bool) -> None:
    from ._evaluation import evaluation

    evaluation(sheet, tiny)


def _switches(sheet: Sheet, tiny: bool) -> None:
    from ._switches import switches

    switches(sheet, tiny)


PARTS = {
    "correctness": Part(150, correctness),
    "vicuna": Part(100, _training("Vicuna-7B")),
    "gemma": Part(90, _training("Gemma-2B")),
    "switches": Part(90, _switches),
    "labels": Part(60, _labels),
    "evaluation": Part(110, _evaluation),
    "speed": Part(140, speed),
}


def run(name: str, rows: Path, tiny: bool) -> None:
    """One part; what ends it is a row, too."""
    sheet = Sheet(rows)
    try:
        PARTS[name].run(sheet, tiny)
    except Exception as err:
        import traceback

        traceback.print_exc()
        sheet.failed("What broke off", name, err)
