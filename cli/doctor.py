"""`doctor`: what this machine can run. Looks at what is installed without importing it."""

import os
import shutil
import subprocess
from importlib import metadata

from mmalign import __version__

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
    from . import dump
    from .lines import say
    from .listing import table

    rows = [{"what": "mmalign", "found": __version__, "for": ""}]
    rows += [{"what": name, "found": _version(name), "for": use} for name, use in NEEDED.items()]
    rows += [{"what": name, "found": _version(name), "for": f"{use} (optional)"} for name, use in OPTIONAL.items()]
    rows.append({"what": "cores", "found": str(os.cpu_count()), "for": ""})
    rows.append({"what": "memory", "found": _memory(), "for": ""})
    rows.append({"what": "disk here", "found": f"{shutil.disk_usage('.').free >> 30} GiB free", "for": "runs"})
    rows.append({"what": "GPUs", "found": _gpus(), "for": "models beyond the toy world"})
    if as_json:
        dump(rows)
        return
    table(rows)
    missing = [name for name in NEEDED if _version(name) == "missing"]
    say(f"missing: {', '.join(missing)}   pip install mmalign[train]" if missing else "ready: mmalign run quickstart")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') >> 30} GiB"


def _gpus() -> str:
    if not shutil.which("nvidia-smi"):
        return "none"
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    process = subprocess.run(query, capture_output=True, text=True, check=False)
    if process.returncode:
        return "none: nvidia-smi fails"
    return process.stdout.strip().replace("\n", "; ") or "none"
