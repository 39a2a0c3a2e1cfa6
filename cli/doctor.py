"""`doctor`: what this machine can run, and how fast; whether a folder of runs is as it was written."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from mmalign import __version__
from mmalign.errors import RunError
from mmalign.io import files, processor

NEEDED = {
    "torch": "training and evaluation",
    "transformers": "vision encoders and language models",
    "deepspeed": "training",
    "safetensors": "weights",
    "torchvision": "image processors",
    "matplotlib": "the report's curves",
}
OPTIONAL = {"timm": "timm encoders", "open-clip-torch": "open_clip encoders", "peft": "LoRA", "pyarrow": "parquet"}


def examine(as_json: bool) -> None:
    """Print versions, memory, disk and GPUs, and what training lacks."""
    from . import cleaning, dump
    from .lines import say
    from .listing import table

    rows = [{"what": "mmalign", "found": __version__, "for": ""}]
    rows += [{"what": name, "found": _version(name), "for": use} for name, use in NEEDED.items()]
    rows += [{"what": name, "found": _version(name), "for": f"{use} (optional)"} for name, use in OPTIONAL.items()]
    rows.append({"what": "cores", "found": str(os.cpu_count()), "for": ""})
    rows.append({"what": "memory", "found": _memory(), "for": ""})
    rows.append({"what": "disk here", "found": f"{shutil.disk_usage('.').free >> 30} GiB free", "for": "runs"})
    rows.append({"what": "cache", "found": cleaning.state(), "for": "mmalign doctor --clean empties it"})
    rows.append({"what": "GPUs", "found": processor.gpus(), "for": "models beyond the toy world"})
    if rates := _rates():
        found = f"fp32 {rates[0] / 1e9:.0f}, bf16 {rates[1] / 1e9:.0f} GFLOP/s a core"
        rows.append({"what": "CPU", "found": found, "for": _compared(*rates)})
    if as_json:
        dump(rows)
        return
    table(rows)
    missing = [name for name in NEEDED if _version(name) == "missing"]
    say(f"missing: {', '.join(missing)}   pip install mmalign[train]" if missing else "ready: mmalign run quickstart")


def compare(folder: Path, as_json: bool) -> None:
    """Print what lies in a folder and what of it is damaged; a RunError where anything is."""
    from mmalign.pipeline import whole

    from . import dump
    from .listing import table

    if not files.exists(folder):
        raise RunError(f"no folder {folder}", at=str(folder), fix="mmalign doctor runs")
    rows: list[dict[str, str]] = []
    damaged: list[Path] = []
    for look in whole.looks(folder):
        row = {"kind": look.kind, "where": str(look.place), "state": look.note or "whole"}
        rows += [{**row, "state": f"{place.relative_to(look.place)}: {what}"} for place, what in look.damage] or [row]
        damaged += [place for place, _ in look.damage if place not in damaged]
    dump(rows) if as_json else table(rows)
    if damaged:
        what = f"{len(damaged)} of the files are not as they were written, such as {damaged[0].name}"
        fix = "take them from a copy, or --force the stages that wrote them; a checkpoint's older neighbour is used"
        raise RunError(what, at=str(damaged[0]), fix=fix)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') >> 30} GiB"


def _rates() -> tuple[float, float] | None:
    """Operations a second of a core, in fp32 and in bf16, that a process with torch measures; None where none can."""
    line = [sys.executable, "-m", "mmalign.labels.throughput"]
    process = subprocess.run(line, capture_output=True, text=True, check=False)
    if process.returncode:
        return None
    full, half = json.loads(process.stdout.splitlines()[-1])
    return full, half


def _compared(full: float, half: float) -> str:
    """What training on this CPU should know of its rates."""
    if half >= full:
        return f"training; bf16 is {half / full:.1f} times as fast as fp32"
    return (
        f"training; bf16 is {full / half:.1f} times slower than fp32: precision=fp32 in stages that train on this CPU"
    )
