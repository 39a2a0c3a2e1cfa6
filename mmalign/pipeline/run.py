"""Runs a plan: starts each stage that is not done as its own process, watches it, and says how it went."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmalign.errors import MMAlignError, RunError, StageError, Terminated, suggest
from mmalign.io import beats, files
from mmalign.io.signals import on_sigterm
from mmalign.pipeline import ended, hosts, launched, memory, progress, ranks, task
from mmalign.pipeline.leading import Crew, Leader
from mmalign.pipeline.lock import POLL, locked
from mmalign.pipeline.records import recorded
from mmalign.pipeline.stalled import Stalled
from mmalign.pipeline.tracking import Tracking
from mmalign.plan.graph import Node
from mmalign.plan.recipe import Language, Train, uneven

SECONDS = 10.0  # for a stage to end by itself
TAIL = 15  # lines of the log shown when a stage fails
END = 1 << 16  # bytes of it that are looked at


class Show(Protocol):
    """What a front end is told while a plan runs."""

    def begin(self, node: Node) -> None: ...
    def event(self, node: Node, event: dict[str, Any]) -> None: ...
    def end(self, node: Node, seconds: float) -> None: ...


class Child(Protocol):
    """The process of a stage, or several as one."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


@dataclass
class Launch:
    """Where a stage runs: processes on this machine, on the hosts of a DeepSpeed host file, or at all the commands that
    torchrun or srun started together, so many at each.

    leader: knows the others.
    """

    devices: int = 1
    hosts: Path | None = None
    leader: Leader | None = None

    @property
    def size(self) -> int:
        """Processes of a stage; a RunError when the host file is none, or the two contradict each other."""
        if not self.hosts:
            return self.devices * (self.leader.size if self.leader else 1)
        if self.devices > 1:
            what = f"--devices {self.devices} and --hosts {self.hosts} both say how many processes there are"
            raise RunError(what, fix="--hosts alone: a host's slots are its processes")
        return sum(host.slots for host in hosts.read(self.hosts))

    @property
    def here(self) -> int:
        """Processes of a stage on this machine that its one process starts; 0: it is the only one."""
        if self.leader:
            return self.leader.devices.get(0, 0)
        devices = hosts.read(self.hosts)[0].slots if self.hosts else self.devices
        return devices if devices > 1 else 0

    def command(self, node: Node) -> list[str]:
        worker = [*launched.WORKER, str(node.folder)]
        return worker if node.stage.alone or not self.here else [*worker, f"--devices={self.here}"]

    @contextmanager
    def reached(self, nodes: Sequence[Node]) -> Iterator[None]:
        """In the block the hosts that some stages run on take part; a RunError where one cannot."""
        if not self.hosts or all(node.stage.alone for node in nodes):
            yield
            return
        with hosts.reached(self.hosts, nodes[0].folder.parent) as self.leader:
            yield


class Failed(StageError):
    """A stage process ended badly; `tail` holds the last lines of its log, exit_code says whose mistake it was."""

    def __init__(
        self, what: str, at: str, fix: str, log: Path, tail: list[str], exit_code: int = StageError.exit_code
    ) -> None:
        super().__init__(what, at=at, fix=fix)
        self.log, self.tail, self.exit_code = log, tail, exit_code


def run(nodes: Sequence[Node], launch: Launch, show: Show, force: Sequence[str] = ()) -> None:
    """Run every stage that is not done, in order. Raises Failed at the first stage that fails.

    SIGTERM goes on to the stage that runs, which ends by itself: training saves a checkpoint first. Then Terminated.
    """
    for name in force:
        if name not in {node.name for node in nodes}:
            raise RunError(f"--force {name}: no such stage", fix=suggest(name, {node.name for node in nodes}))
    for node in nodes:
        if node.name in force or not node.done:
            _divides(node, launch)
    left = [node for node in nodes if node.name in force or not node.done]
    devices = launch.size if left else 1
    with on_sigterm(_terminate), launch.reached(left), recorded(nodes, devices) as record:
        for node in left:
            if node.name in force:
                set_aside(node)
        for node in left:
            _run_one(node, launch, show, record)


def _terminate() -> None:
    raise Terminated


def _divides(node: Node, launch: Launch) -> None:
    if not isinstance(node.stage, (Train, Language)):
        return
    if problem := uneven(node.stage.batch, getattr(node.stage, "micro_batch", 1), launch.size):
        at = node.recipe.where(f"stages.{node.name}.batch")
        raise RunError(f"stage {node.name!r}: {problem}", at=at, fix="another --devices, micro_batch or batch")


def set_aside(node: Node) -> Path | None:
    """Rename a stage's folder out of the way; nothing is deleted. Where it is now; None: there was none."""
    kept = None
    if node.folder.exists():
        with locked(node.folder):
            number = 1
            while (old := node.folder.with_name(f"{node.folder.name}.old-{number}")).exists():
                number += 1
            kept = node.folder.rename(old)
    node.__dict__.pop("done", None)  # it was a cached answer
    return kept


def _run_one(node: Node, launch: Launch, show: Show, record: Callable[[], None]) -> None:
    node.__dict__.pop("done", None)
    with locked(node.folder) as lock:
        if node.done:  # another process finished it while we waited for our turn
            return
        damage = ""
        if node.begun:
            damage = task.damage(node.folder)  # refuses a folder of another format before anything is touched
            files.sweep(node.folder)
        written = task.save(node)
        record()
        (node.folder / ended.NAME).unlink(missing_ok=True)
        shutil.rmtree(node.folder / beats.FOLDER, ignore_errors=True)  # of another number of ranks, perhaps
        files.write(node.folder / "events.jsonl", "")
        began = time.monotonic()
        try:
            show.begin(node)
            if damage:
                show.event(node, {"say": f"stage.yaml was damaged and is written anew: {damage}"})
            with Tracking(node, lambda said: show.event(node, {"say": said})) as trackers:
                child = _start(node, launch, lock, written)
                _watch(node, child, lambda event: show.event(node, event), trackers.look, launch.size)
        except BaseException as err:
            _leave_word(node, err)
            raise
        shutil.rmtree(node.folder / beats.FOLDER, ignore_errors=True)
        show.end(node, time.monotonic() - began)
    node.__dict__.pop("done", None)


def _start(node: Node, launch: Launch, lock: int, written: str) -> Child:
    env = launched.alone(os.environ) | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}  # of log.txt
    if not {"", os.getcwd()} & set(sys.path):  # as here: a torch.py beside a recipe is not imported
        env["PYTHONSAFEPATH"] = "1"
    env["MMALIGN_PARENT"] = str(os.getpid())
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    if launch.here:
        env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // launch.here)))
    leader = None if node.stage.alone else launch.leader
    if leader:
        env = leader.begin(node.folder, written, env)
    command, place = [*launch.command(node), f"--written={written}"], node.folder / "log.txt"
    try:
        with open(place, "ab") as log:
            own = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, pass_fds=[lock])
    except OSError as err:
        raise RunError(f"cannot start {command[0]!r}: {err.strerror}", at=str(place), fix="free memory") from err
    return Crew(own, leader, place) if leader else own


def _watch(
    node: Node, child: Child, tell: Callable[[dict[str, Any]], None], look: Callable[[], None], devices: int
) -> None:
    """Tell what the stage says until it ends. look: is called again and again meanwhile."""
    events = _events(node.folder / "events.jsonl")
    stalled = Stalled(node.folder, child.pid)
    try:
        while child.poll() is None:
            for event in next(events):
                tell(event)
            for said in stalled.look():
                tell({"say": said})
            look()
            time.sleep(POLL)
    except BaseException as err:
        _end_by_itself(node, child, err, tell)
        raise
    for event in next(events):
        tell(event)
    if child.returncode or not (node.folder / "stage.json").exists():
        raise _failure(node, child.returncode, devices)


def _end_by_itself(node: Node, child: Child, err: BaseException, tell: Callable[[dict[str, Any]], None]) -> None:
    """Have a stage end behind its step. How long that may take is up to whoever sent the signal; with others that end
    for the same Ctrl-C, or for an error, it has a few seconds. A second Ctrl-C kills it."""
    asked = isinstance(err, KeyboardInterrupt) and not isinstance(child, Crew)
    try:
        child.terminate()
        child.send_signal(signal.SIGCONT)  # a stopped one hears nothing else
        if asked and hasattr(node.stage, "engine"):
            tell({"say": "saves what it has learnt, and ends; Ctrl-C again ends it at once"})
        with suppress(subprocess.TimeoutExpired):
            child.wait(None if asked or isinstance(err, Terminated) else SECONDS)
    finally:
        child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(SECONDS)


def _events(place: Path) -> Iterator[list[dict[str, Any]]]:
    """Endless: the events written since the last look, whole lines only; those that a full disk cut are left out."""
    seen = 0
    while True:
        with open(place, "rb") as source:
            source.seek(seen)
            whole, newline, _ = source.read().rpartition(b"\n")
        seen += len(whole) + len(newline)
        yield [event for line in whole.splitlines() if (event := progress.event(line))]


def _failure(node: Node, code: int | None, devices: int) -> Failed:
    log = node.folder / "log.txt"
    tail = _end(log).splitlines()[-TAIL:]
    if said := ended.read(node.folder):  # which says it all; behind it the log has what launchers say of it
        what, at = f"stage {node.name!r}: {said['what']}", said["at"] or str(log)
        return Failed(what, at, said["fix"], log, [], said.get("exit_code", StageError.exit_code))
    if code == task.FULL:
        what, fix = "found no space left", "free some, or another --runs; the same command goes on"
    elif code and code < 0:
        what, fix = f"killed by signal {-code}", "the same command goes on"
    else:
        what, fix = f"ended with code {code}", "the last lines of its log are below"
    if first := ranks.fate(node.folder):
        what = f"{what}: {first}"
    if code == -signal.SIGKILL or ranks.KILLED_9 in first:
        fix = memory.perhaps(node.stage, node.cards, devices)
    ended.write(node.folder, what, str(log), fix.replace("are below", f"(mmalign logs {node.folder})"))
    return Failed(f"stage {node.name!r} {what}", str(log), fix, log, tail)


def _leave_word(node: Node, err: BaseException) -> None:
    """Remember why a stage is not done; what it said of it already stays, but that we told it to end."""
    if isinstance(err, Failed) or ((said := ended.read(node.folder)) and not said.get("interrupted")):
        return
    if isinstance(err, MMAlignError):
        ended.write(node.folder, err.what, err.at, err.fix)
        return
    known = {KeyboardInterrupt: "Ctrl-C", Terminated: "SIGTERM"}
    what = known.get(type(err)) or f"{type(err).__name__} {err}".strip()
    ended.write(node.folder, what, str(node.folder / "log.txt"), "the same command goes on", interrupted=True)


def _end(log: Path) -> str:
    """The end of a log, which may be of any size."""
    with open(log, "rb") as source:
        source.seek(max(0, source.seek(0, os.SEEK_END) - END))
        return source.read().decode(errors="replace")
