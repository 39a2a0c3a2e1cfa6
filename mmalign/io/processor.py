"""What this machine computes on, told by the system: cores, GPUs, and whether its CPU has instructions for bf16."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
WAIT = 20  # seconds for a tool that hangs, as it does where a driver is ill
BF16 = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}  # the last one is ARM's
# what ONEDNN_MAX_CPU_ISA may be that leaves none of them
LIMITS = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> str:
    """Those that NVIDIA's tool tells of; `none`, and why, without any."""
    if not shutil.which("nvidia-smi"):
        return "none"
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        process = subprocess.run(query, capture_output=True, text=True, check=True, timeout=WAIT)
    except (OSError, subprocess.SubprocessError):
        return "none: nvidia-smi fails"
    return process.stdout.strip().replace("\n", "; ") or "none"


def lacks_bf16(cpuinfo: Path = CPUINFO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether it is certain that products in bf16 are emulated here: no GPU, no instruction that is used."""
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
    except OSError:
        return False
    flags = {flag for name, _, told in lines if name.strip() in ("flags", "Features") for flag in told.split()}
    limited = environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in LIMITS
    return bool(flags) and (limited or not flags & BF16) and gpus().startswith("none") and not _amd()


def _amd() -> bool:
    return Path("/dev/kfd").exists()
