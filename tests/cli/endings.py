"""A tiny training as real processes that end in every way there is, at random moments, and what must hold after each.

A session is one `mmalign run`: it begins, reaches a random moment, and ends in one of the ways of ENDINGS, or is left
to its own end. What it may go on from is found out here from the bytes on the disk alone, so that no session can begin
with a damaged checkpoint, or with an older one than the newest whole one, unnoticed.
"""

import hashlib
import json
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from safetensors.torch import load_file
from torch import Tensor

from tests.cli.warm import Command, Warm

LINE = [sys.executable, "-c", "from mmalign.cli import entry; entry()"]
COLD = 20  # of so many sessions one begins with a new Python; the others are forked, see warm.py
ONE = """\
name: one
seed: 3
model: {{vision: toy-clip, adapter: linear, llm: toy-llama}}
stages:
  align:
    kind: train
    data: {{card: toy-captions, args: {{size: 48}}}}
    trains: [adapter]
    objectives: {{lm: 1.0}}
    optim: {{lr: 1e-3}}
    batch: 2
    micro_batch: 1
    steps: {steps}
    precision: fp32
    log_every: 1
    engine: {{zero: 0, save_every: 2, workers: 1}}
"""
PACE = 2  # steps that a session goes on by, about
SLOW = 600  # seconds after which a session that should have ended is a failure
TIMES = ("time", "steps_per_second", "peak_memory_gib")  # of a line of the log; not the same twice


Process = Command | subprocess.Popen

# ------------------------------------------------------------------------------------------------------- how it ends


def _descendants(process: Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def _send(number: int, *processes: psutil.Process | Process) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            process.send_signal(number)


def _to_all(number: int) -> Callable[[Process, random.Random], None]:
    return lambda process, how: _send(number, process, *_descendants(process))


def _to_command(number: int) -> Callable[[Process, random.Random], None]:
    return lambda process, how: _send(number, process)


def _to_a_rank(number: int) -> Callable[[Process, random.Random], None]:
    """To one of the processes that train; to the command where none was begun."""

    def send(process: Process, how: random.Random) -> None:
        below = [one for one in _descendants(process) if not one.children()]
        _send(number, how.choice(below) if below else process)

    return send


@dataclass(frozen=True)
class Ending:
    """act: what ends the session; None: its limit of file size does. codes: of the command that may come of it.

    spoils: what is damaged behind it: a checkpoint, or a marker or record.
    """

    act: Callable[[Process, random.Random], None] | None
    codes: tuple[int, ...]
    spoils: str = ""


KILLED = Ending(_to_all(signal.SIGKILL), (-9,))
# -2 and -15: the signal came before the command listened, as it was still being imported
ENDINGS = {
    "kill -9": KILLED,
    "kill -9 of the command": Ending(_to_command(signal.SIGKILL), (-9,)),
    "kill -9 of a rank": Ending(_to_a_rank(signal.SIGKILL), (1, -9)),
    "SIGTERM": Ending(_to_command(signal.SIGTERM), (143, -15)),
    "SIGTERM to all": Ending(_to_all(signal.SIGTERM), (143, -15, 1)),
    "SIGTERM to a rank": Ending(_to_a_rank(signal.SIGTERM), (143, -15, 1)),
    "Ctrl-C": Ending(_to_all(signal.SIGINT), (130, -2)),
    "SIGINT": Ending(_to_command(signal.SIGINT), (130, -2)),
    "full disk": Ending(None, (1, 2)),
    "checkpoint cut": Ending(KILLED.act, KILLED.codes, "cut"),
    "checkpoint flipped": Ending(KILLED.act, KILLED.codes, "flipped"),
    "marker of a checkpoint": Ending(KILLED.act, KILLED.codes, "marker"),
    "record": Ending(KILLED.act, KILLED.codes, "record"),
}


# ------------------------------------------------------------------------------------------------ what is on the disk


def whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is as it was written, by its hashes and by nothing of mmalign."""
    try:
        raw = (checkpoint / "step.json").read_bytes()
        above, _, below = raw.rpartition(b' "seal": ')
        files = json.loads(raw)["files"]
        sealed = below == f'"{hashlib.sha256(above).hexdigest()}"\n}}\n'.encode()
        return sealed and all(
            hashlib.sha256((checkpoint / n).read_bytes()).hexdigest() == digest for n, digest in files.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def checkpoints(runs: Path) -> list[Path]:
    """Those with a marker, the newest first."""
    return sorted(runs.glob("train-*/checkpoints/step-*[0-9]"), key=lambda p: int(p.name[5:]), reverse=True)


def log(runs: Path) -> list[dict[str, float]]:
    """The lines of the log that are whole."""
    rows = []
    for line in b"".join(place.read_bytes() for place in runs.glob("train-*/metrics.jsonl")).splitlines():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def numbers(runs: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in log(runs)]


def weights(runs: Path) -> dict[str, Tensor]:
    (place,) = runs.glob("train-*/weights/adapter.safetensors")
    return load_file(place)


def spoil(place: Path, how: random.Random, cut: bool) -> None:
    data = place.read_bytes()
    at = how.randrange(len(data)) if data else 0
    flipped = data[:at] + bytes([data[at] ^ 1 << how.randrange(8)]) + data[at + 1 :] if data else b"\0"
    place.write_bytes(data[:at] if cut else flipped)


RECORDS = ("train-*/stage.yaml", "train-*/error.json", "train-*/events.jsonl", "train-*/lock", "train-*/log.txt",
           ".runs/*.json", ".hashes.json")  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the sessions


@dataclass
class Run:
    """One training, ended `count` times. sizes: the numbers of processes it may be begun with.

    over: is called when it came to its own end, and compares; where that was too early another one begins.
    """

    folder: Path
    count: int
    sizes: tuple[int, ...]
    seed: int
    warm: Warm
    over: Callable[["Run"], None]
    patience: float = 10.0  # seconds from the command to the first step, measured
    ends: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    resumed: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.how = random.Random(self.seed)
        self.runs = self.folder / "runs"
        self.steps = 40 + PACE * self.count
        self.folder.mkdir(exist_ok=True)
        (self.folder / "one.yaml").write_text(ONE.format(steps=self.steps))

    def whole(self, devices: int, place: str) -> Path:
        """The folder of the same run, left alone."""
        began = time.monotonic()
        process = self._begin(["--devices", str(devices), "--runs", place], cold=False)
        assert process.wait(900) == 0, self._said()
        first = log(self.folder / place)[0]["time"]
        self.patience = first - (time.time() - (time.monotonic() - began))
        return self.folder / place

    def through(self) -> None:
        """All endings, then the session that is left to its own end."""
        kinds = [list(ENDINGS)[number % len(ENDINGS)] for number in range(self.count)]
        self.how.shuffle(kinds)
        while kinds:
            before = self.ends.total() - self.ends["its own"]
            self.session(kinds[-1], (before + 1) * PACE)
            if self.ends.total() - self.ends["its own"] > before:
                kind = kinds.pop()
                sys.stderr.write(f"{time.strftime('%H:%M:%S')} {before + 1:4} {kind:24} at step {self._reached()}\n")
                sys.stderr.flush()
        self.session("", self.steps)

    def session(self, kind: str, up_to: int) -> None:
        """Begin, reach a random moment before the step `up_to`, end in the way of this kind, and look at what is left.

        Without a kind it is left alone.
        """
        ending = ENDINGS.get(kind)
        newest = next((int(p.name[5:]) for p in checkpoints(self.runs) if whole(p)), 0)
        damaged = {p.name for p in checkpoints(self.runs) if (p / "step.json").exists() and int(p.name[5:]) > newest}
        cold = self.how.random() < 1 / COLD
        limit = self._limit() if kind == "full disk" else 0
        process = self._begin(["--devices", str(self.how.choice(self.sizes))], cold, limit)
        try:
            if ending and ending.act:
                self._await(process, up_to)
                if process.poll() is None:
                    ending.act(process, self.how)
            code = process.wait(SLOW)
        finally:
            _send(signal.SIGKILL, *_descendants(process), process)
        if code == 0:
            kind, ending = "", None
        self._check(kind, code, newest, damaged)
        if ending and ending.spoils:
            self._spoil(ending.spoils)
        self.ends[kind or "its own"] += 1
        if not kind:
            self.over(self)
            shutil.rmtree(self.runs)

    def _begin(self, words: list[str], cold: bool, limit: int = 0) -> Process:
        """`mmalign run`. limit: bytes that no file may outgrow; 0: none."""
        self.moments["a new Python" if cold else "forked"] += 1
        if not cold:
            return self.warm.begin(["run", "one.yaml", *words], self.folder, self.folder / "said.txt", limit)

        def prepare() -> None:
            for number in (signal.SIGINT, signal.SIGTERM):  # behind a shell's & it is deaf
                signal.signal(number, signal.SIG_DFL)
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        line = [*LINE, "run", "one.yaml", *words]
        with open(self.folder / "said.txt", "wb") as said:
            return subprocess.Popen(line, cwd=self.folder, stdout=said, stderr=said, preexec_fn=prepare)

    def _limit(self) -> int:
        """Bytes that no file may outgrow: a checkpoint does, at its start, its middle or its last byte, or the log."""
        sizes = [place.stat().st_size for place in self.runs.glob("train-*/checkpoints/*/state-*")] or [1 << 17]
        return self.how.choice([1 << 10, self.how.randrange(1 << 12, max(sizes)), max(sizes) - 1])

    def _await(self, process: Process, up_to: int) -> None:
        """A random moment: while it starts, behind some step, or as a checkpoint is being written."""
        moment = self.how.choice(["start", "step", "saving", "saving"])
        self.moments[moment] += 1
        if moment == "start":
            time.sleep(self.how.uniform(0.0, self.patience))
            return
        start = self._reached()
        step = self.how.randint(max(1, up_to - PACE), up_to)
        late = self.how.choice([0.0, self.how.uniform(0.0, 0.02)])
        began = time.monotonic()
        while process.poll() is None and time.monotonic() - began < SLOW:
            reached = self._reached()
            if reached != start and reached >= step:
                if moment == "step" or any(self.runs.glob("train-*/checkpoints/.step-*")):
                    time.sleep(late)
                    return
                if reached >= step + 4:  # the moments in which it writes one are short
                    return
            time.sleep(0.001)

    def _reached(self) -> int:
        rows = log(self.runs)
        return int(rows[-1]["step"]) if rows else 0

    def _said(self) -> str:
        return (self.folder / "said.txt").read_text(errors="replace")

    def _check(self, kind: str, code: int, newest: int, damaged: set[str]) -> None:
        """What it went on from, how it ended, and that nothing done was lost."""
        said = self._said()
        assert len(list(self.runs.glob("train-*"))) <= 1, f"{kind}: another folder: {said}"
        told = re.findall(r"goes on from step (\d+)", said)
        assert "Traceback" not in said, f"{kind}: {said}"
        assert code in (ENDINGS[kind].codes if kind else (0,)), f"{kind}: {code}: {said}"
        begun = self._trained_since(said)
        if told:
            assert told == [str(newest)], f"{kind}: from {told}, and {newest} is whole: {said}"
            self.resumed["from a checkpoint" if not damaged else "past a damaged one"] += 1
            for name in damaged:
                assert f"checkpoint {name}:" in said, said
        elif begun and newest:
            raise AssertionError(f"{kind}: it began anew, though step {newest} is whole: {said}")
        if code == 143 and begun:  # it saved what it had
            assert whole(checkpoints(self.runs)[0]), kind
            assert checkpoints(self.runs)[0].name == f"step-{self._reached()}", kind
        left = [place for place in checkpoints(self.runs) if whole(place)]
        assert not newest or int(left[0].name[5:]) >= newest, f"{kind}: {newest} is gone, there is {left}"

    def _trained_since(self, said: str) -> bool:
        return bool(re.search(r"\d+/\d+ steps", said))

    def _spoil(self, what: str) -> None:
        places: Iterator[Path]
        if what == "record":
            places = (place for pattern in RECORDS for place in self.runs.glob(pattern))
            for place in sorted(places):
                if self.how.random() < 0.5:
                    spoil(place, self.how, self.how.random() < 0.5)
            return
        saved = checkpoints(self.runs)
        if len(saved) < 2 or not whole(saved[1]):  # all may not be lost: then there is nothing to go on from
            return
        name = "step.json" if what == "marker" else "state-00000.safetensors"
        spoil(saved[0] / name, self.how, self.how.random() < 0.5 if what == "marker" else what == "cut")
        assert not whole(saved[0])
