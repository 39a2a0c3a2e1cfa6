"""`python -m tests.gpu [--tiny] [--out FILE] [--only NAME,...]`: what a GPU can tell, as a page of Markdown.

Every part runs in a process of its own with a time of its own; the page is written again after every part, so that a
machine that is taken away leaves what was measured.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch

from mmalign.errors import suggest

from . import _parts
from ._parts import PARTS, ROOT
from ._sheet import Row, Sheet, page

RESULTS = ROOT / "tests" / "speed" / "RESULTS.md"


def main(words: list[str]) -> int:
    args = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    args.add_argument("--tiny", action="store_true", help="tiny sizes, parts in this process; so without a GPU")
    args.add_argument("--out", type=Path, help=f"where the page goes; on a GPU {RESULTS.relative_to(ROOT)}")
    args.add_argument("--only", help="parts, with commas: " + ", ".join(PARTS))
    args.add_argument("--minutes", type=float, default=9.0, help="of the wall, for everything (9)")
    args.add_argument("--apart", action="store_true", help="with --tiny: parts in processes of their own all the same")
    args.add_argument("--part", help=argparse.SUPPRESS)
    args.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    given = args.parse_args(words)
    tiny = given.tiny or not torch.cuda.is_available()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # of so little work; threads that wait for each other take longer
    if given.part:
        _parts.run(given.part, given.rows, tiny)
        return 0
    names = given.only.split(",") if given.only else list(PARTS)
    for name in names:
        if name not in PARTS:
            print(f"error: no part {name!r}\n  try  {suggest(name, PARTS)}", file=sys.stderr)
            return 2
    out = given.out or (RESULTS if not tiny else Path(tempfile.mkdtemp()) / "RESULTS.md")
    out.parent.mkdir(parents=True, exist_ok=True)
    return Run(names, out, tiny, not tiny or given.apart, 60 * given.minutes).run()


class Run:
    """Parts one after the other, and the page."""

    def __init__(self, names: list[str], out: Path, tiny: bool, apart: bool, seconds: float) -> None:
        self.names, self.out, self.tiny, self.apart = names, out, tiny, apart
        self.ends = time.monotonic() + seconds
        self.about = about(tiny)
        self.times: list[tuple[str, Row]] = []
        self.folder = Path(tempfile.mkdtemp())

    def run(self) -> int:
        for name in self.names:
            began = time.monotonic()
            print(f"-- {name}", flush=True)
            ended = self._apart(name) if self.apart else self._here(name)
            row = {"part": name, "seconds": round(time.monotonic() - began, 1), "ended": ended}
            self.times.append(("How long it took", row))
            self._write()
        print(self.out.read_text(encoding="utf-8"), flush=True)
        return 0

    def _here(self, name: str) -> str:
        _parts.run(name, self._rows(name), self.tiny)
        return "whole"

    def _apart(self, name: str) -> str:
        left = min(float(PARTS[name].seconds), self.ends - time.monotonic())
        if left < 10:
            return "left out: no time"
        line = [
            sys.executable,
            "-m",
            "tests.gpu",
            "--part",
            name,
            "--rows",
            str(self._rows(name)),
            *["--tiny"] * self.tiny,
        ]
        with open(self.out.with_suffix(".log"), "ab") as log:
            running = subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                return self._watched(running, left)
            finally:
                if running.poll() is None:
                    os.killpg(running.pid, 9)
                    running.wait()

    def _watched(self, running: "subprocess.Popen[bytes]", left: float) -> str:
        """Until it ends or its time does; the page grows meanwhile."""
        until, rows = time.monotonic() + left, 0
        while running.poll() is None:
            if time.monotonic() > until:
                return f"cut off after {left:.0f} s"
            time.sleep(0.2)
            if (now := len(self._measured())) != rows:
                rows = now
                self._write()
        return "whole" if running.returncode == 0 else f"broke with code {running.returncode}, see the log"

    def _rows(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def _measured(self) -> list[tuple[str, Row]]:
        return [row for name in self.names for row in Sheet(self._rows(name)).rows()]

    def _write(self) -> None:
        title = "Measured on a GPU" if not self.tiny else "Tiny sizes: these numbers say nothing"
        text = page(title, self.about, [*self._measured(), *self.times])
        beside = self.out.with_name(f".{self.out.name}.part")
        beside.write_text(text, encoding="utf-8")
        beside.replace(self.out)


def about(tiny: bool) -> list[str]:
    """Hardware, versions, date, and how it was measured."""
    cuda = torch.cuda.is_available()
    device = _asked_driver() if cuda else "no GPU"
    return [
        f"- date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"- device: {device}; {os.cpu_count()} CPU cores",
        f"- versions: {versions()}",
        f"- command: `python -m tests.gpu{' --tiny' * tiny}`",
        "- weights are random, in bf16 unless a row says fp32; nothing is downloaded",
        "- times are medians of runs in turn, each until the device has done its work, after one to warm up and one "
        "for memory; peak GiB is all that torch has allocated at the worst moment, the weights among it",
        "- MFU counts the matrix products a step cannot do without, of real positions: forward, gradients of "
        "activations, of weights only where they learn; the causal half of attention; the head of trained tokens; the "
        "encoder forward; three products of BASIC's KL. Neither padding, recomputation, labels nor attention rows",
    ]


def _asked_driver() -> str:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,power.limit", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "nvidia-smi does not answer"


def versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = [f"Python {sys.version.split()[0]}", f"CUDA {torch.version.cuda}"]
    for name in ("torch", "transformers", "deepspeed", "peft", "triton"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
