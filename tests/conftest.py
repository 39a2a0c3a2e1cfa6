"""What every test may use: the command in this process or as a real one, and a tiny recipe of the toy world."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ.pop("MMALIGN_REGISTRY", None)

TINY = """\
name: tiny
seed: 3
model: {vision: toy-clip, adapter: linear, llm: toy-llama}
stages:
  label: {kind: label, source: toy-words, data: {card: toy-captions, args: {size: 48}}, keep: 3, shard: 16}
  align:
    kind: train
    reads: {labels: label}
    data: {card: toy-captions, args: {size: 48}}
    trains: [adapter]
    objectives: {lm: 1.0, sea: 1.0}
    optim: {lr: 1e-3}
    batch: 8
    micro_batch: 4
    steps: 6
    precision: fp32
    log_every: 1
    engine: {zero: 0, save_every: 1, workers: 1}
  tune:
    kind: train
    reads: {weights: align}
    data: {card: toy-chat, args: {size: 48}}
    trains: [adapter, llm]
    objectives: {lm: 1.0}
    optim: {lr: 1e-3, lr_llm: 1e-4}
    batch: 8
    micro_batch: 4
    steps: 6
    precision: fp32
    log_every: 1
    engine: {zero: 0, save_every: 1, workers: 1}
  score: {kind: evaluate, reads: {weights: tune}, bench: [toy-perplexity], precision: fp32}
  report: {kind: report, reads: {scores: score}}
"""


@dataclass
class Said:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def command(*words: str | Path, cwd: Path | None = None, **options: object) -> Said:
    """`mmalign words ...` as a process of its own."""
    line = [sys.executable, "-c", "from mmalign.cli import entry; entry()", *map(str, words)]
    options = {"timeout": 600, "check": False, **options}
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, **options)
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def mmalign(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`mmalign words ...` in this process."""
    from mmalign.cli import main

    def run(*words: str | Path) -> Said:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Said(code or 0, out, err)

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of the test's own, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny(here: Path) -> Path:
    """The tiny recipe as a file in the working folder."""
    (here / "tiny.yaml").write_text(TINY)
    return here / "tiny.yaml"
