"""The first of several commands that run one plan together: it tells the others which stage begins, and hears how it
ended there."""

import hmac
import json
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mmalign.errors import RunError, StageError, Stopped, Terminated
from mmalign.pipeline.launched import HERE, Launched, placed
from mmalign.pipeline.lock import POLL
from mmalign.pipeline.wire import Wire

JOIN = 300.0  # seconds in which all have to come
LEAVE = 30.0  # seconds in which those that did not come yet are waited for, to be told that all is over
GRACE = 30.0  # seconds in which the others end by themselves where one failed


class Leader:
    """Knows the others of `size` commands. address: where they reach it. devices: processes of a stage, of each of them
    in turn; 0: the command itself starts the one."""

    def __init__(self, size: int, address: str = HERE, devices: Mapping[int, int] | None = None) -> None:
        self.size, self.address, self.devices = size, address, devices or {}
        self.token = secrets.token_hex(16)
        self.codes: dict[int, int] = {}  # exit codes of a stage's processes at the others
        self.absent: Callable[[], None] = lambda: None  # raises where somebody will not come
        self._others: dict[int, tuple[Wire, str]] = {}  # with the host's name
        self._door = socket.create_server((HERE if address == HERE else "", 0), backlog=size)
        self.port: int = self._door.getsockname()[1]
        threading.Thread(target=self._welcome, daemon=True).start()

    def _welcome(self) -> None:
        while True:
            try:
                wire = Wire(self._door.accept()[0])
            except OSError:  # closed
                return
            with suppress(ValueError, KeyError, IndexError, TypeError):
                hello = wire.hear(5)[0]
                if hmac.compare_digest(str(hello["token"]), self.token):
                    wire.send({"welcome": self.size})
                    self._others[int(hello["number"])] = wire, str(hello["host"])
                    continue
            wire.close()

    def wait(self, seconds: float = JOIN) -> None:
        """Until all came; a RunError where some do not."""
        until = time.monotonic() + seconds
        while len(self._others) < self.size - 1:
            self.absent()
            if time.monotonic() > until:
                lacking = sorted(set(range(1, self.size)) - self._others.keys())
                names = ", ".join(map(str, lacking[:8])) + (" ..." if len(lacking) > 8 else "")
                what = f"{len(lacking)} of {self.size} processes did not come within {seconds:.0f} s: {names}"
                fix = "start the same command in all of them, with one --runs that all see; or in one alone"
                raise RunError(what, at=f"{self.address}:{self.port}", fix=fix)
            time.sleep(POLL)

    def begin(self, folder: Path, written: str, env: Mapping[str, str]) -> dict[str, str]:
        """Have the others begin a stage; the environment of the process that this one begins."""
        self.wait()
        self.codes = {}
        with socket.create_server(("", 0)) as free:  # where the ranks meet
            port = free.getsockname()[1]
        for number, (wire, _) in self._others.items():
            place = {"number": number, "size": self.size, "address": self.address, "port": port}
            devices = self.devices.get(number, 0)
            wire.send({"begin": folder.name, "written": written, "devices": devices, "place": place})
        return placed(env, 0, self.size, 0, self.address, port)

    def signal(self, number: int) -> None:
        """Send a signal to the stage's processes at the others."""
        for wire, _ in self._others.values():
            wire.send({"signal": number})

    def look(self, log: Path) -> list[int | None]:
        """Exit codes of the stage's processes at the others, None while one runs; what they wrote goes into the log."""
        for number, (wire, host) in list(self._others.items()):
            came: list[str] = []
            for message in wire.hear():
                came += [message["log"]] if "log" in message else []
                if code := self.codes.setdefault(number, message["ended"]) if "ended" in message else 0:
                    came.append(f"process {number} on {host} ended with code {code}\n")
            if not wire.open and number not in self.codes:
                self.codes[number] = StageError.exit_code
                came.append(f"process {number} on {host} is gone\n")
            if came:
                with open(log, "a", encoding="utf-8") as out:
                    out.write("".join(came))
        return [self.codes.get(number) for number in self._others]

    def end(self, code: int, seconds: float = LEAVE) -> None:
        """Tell the others that all is over, those too that come within so many seconds."""
        with suppress(RunError):
            self.wait(seconds)
        self._door.close()
        for wire, _ in list(self._others.values()):
            wire.send({"end": code})
            wire.close()


class Crew:
    """The processes of a stage, here and at the others, as one: what run.py asks of a Popen.

    Where one fails the others have GRACE to end by themselves. Its exit code is that of the first that failed.
    """

    def __init__(self, own: "subprocess.Popen[bytes]", leader: Leader, log: Path) -> None:
        self.own, self.leader, self.log, self.pid = own, leader, log, own.pid
        self.returncode: int | None = None
        self._failed, self._until = 0, float("inf")

    def poll(self) -> int | None:
        if self.returncode is not None:
            return self.returncode
        codes = [self.own.poll(), *self.leader.look(self.log)]
        if not self._failed and (bad := [code for code in codes if code]):
            self._failed, self._until = bad[0], time.monotonic() + GRACE
        late = time.monotonic() - self._until
        if late > 0:
            self.kill()
        if None not in codes or late > GRACE:
            self.returncode = self._failed
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("the stage", timeout or 0)
            time.sleep(POLL)
        return code

    def send_signal(self, number: int) -> None:
        self.own.send_signal(number)
        self.leader.signal(number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def meeting(runs: Path, key: str) -> Path:
    """The file in a folder of runs that says where the first of several commands is reached."""
    return runs / ".runs" / f"{key}.meet"


@contextmanager
def leading(own: Launched | None, runs: Path, devices: int = 1, hosts: Path | None = None) -> Iterator[Leader | None]:
    """In the block the others of this command find its Leader; behind it they are told how it ended. None: it is alone.

    A RunError where devices, for each of them, or a host file do not go with how they were started.
    """
    if own is None:
        yield None
        return
    leader = Leader(own.size, own.address, dict.fromkeys(range(own.size), devices) if devices > 1 else {})
    with _published(meeting(runs, own.key), leader), ended(leader):
        if hosts:
            what = f"--hosts {hosts} and {own.by} both say how many processes there are"
            raise RunError(what, fix=f"--hosts without {own.by}, or {own.by} alone")
        if devices > 1 and own.hosts < own.size:
            what = f"--devices {devices} in each of {own.size} processes that {own.by} started on {own.hosts} hosts"
            raise RunError(what, fix="one process a host with --devices, or as many as devices without it")
        yield leader


@contextmanager
def ended(leader: Leader) -> Iterator[None]:
    """Behind the block the others are told how it ended."""
    try:
        yield
    except BaseException as err:
        interrupted = isinstance(err, (KeyboardInterrupt, Terminated))
        leader.end(_code(err), 0 if interrupted else LEAVE)
        raise
    leader.end(0)


def _code(err: BaseException) -> int:
    """The exit code of a command that ends with an error."""
    known = {KeyboardInterrupt: 130, Terminated: Stopped.exit_code}
    return int(getattr(err, "exit_code", known.get(type(err), 1)))


@contextmanager
def _published(place: Path, leader: Leader) -> Iterator[None]:
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    about = {"address": leader.address, "port": leader.port, "token": leader.token}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
            json.dump(about, out)
        part.replace(place)
    except OSError as err:
        raise RunError(f"cannot write to {place.parent}: {err.strerror}", at=str(place), fix="another --runs") from err
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        for folder in (place.parent, place.parent.parent):  # of a run that was refused
            with suppress(OSError):
                folder.rmdir()
