"""Host files, and the machines in them: reached by ssh, each takes part in the stages that the first one runs."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mmalign.errors import RunError
from mmalign.pipeline.launched import HERE
from mmalign.pipeline.leading import Leader, ended

CONNECT = 15  # seconds ssh tries to reach a host
LEAVE = 10  # seconds a host is given to end when all is over
UNREACHED = 255  # exit code of ssh where it did not get there
# how names of the environment begin that the other hosts get too
HANDED = (
    "MMALIGN_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "TORCH", "PYTORCH_", "NCCL_", "GLOO_", "DS_",
    "OMP_", "PYTHON", "LD_LIBRARY_PATH", "CUDA_HOME", "UCX_", "FI_", "http_proxy", "https_proxy", "no_proxy",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip
FIX = "a file with lines like `host1 slots=8`"


@dataclass(frozen=True)
class Host:
    """name: as ssh knows it. slots: processes of a stage there."""

    name: str
    slots: int

    @property
    def here(self) -> bool:
        """Whether it is this machine, by its name."""
        name = self.name.rpartition("@")[2]
        own = socket.gethostname()
        return name in {"localhost", HERE, "::1", own, own.partition(".")[0], socket.getfqdn()}


def read(place: Path) -> list[Host]:
    """The hosts of a DeepSpeed host file; a RunError with the line where it is none."""
    try:
        lines = place.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        why = getattr(err, "strerror", None) or "it is no text"
        raise RunError(f"{place} is no host file: {why}", at=str(place), fix=FIX) from err
    hosts: dict[str, Host] = {}
    for number, line in enumerate(lines, 1):
        if not (words := line.partition("#")[0].split()):
            continue
        name, slots = words[0], words[1].removeprefix("slots=") if len(words) == 2 else ""
        why = ""
        if len(words) != 2 or not words[1].startswith("slots=") or not slots.isdecimal() or int(slots) < 1:
            why = f"{line.strip()!r} says no host and its slots"
        elif name.startswith("-"):
            why = f"{name!r} is no host"
        elif name in hosts:
            why = f"{name} stands there twice"
        if why:
            raise RunError(f"{place} is no host file: {why}", at=f"{place}:{number}", fix=FIX)
        if (host := Host(name, int(slots))).here and (same := [other.name for other in hosts.values() if other.here]):
            raise RunError(f"{same[0]} and {name} are one machine", at=f"{place}:{number}", fix="name it once")
        hosts[name] = host
    if not hosts:
        raise RunError(f"{place} is no host file: it names no host", at=str(place), fix=FIX)
    return sorted(hosts.values(), key=lambda host: not host.here)  # this one first, for it runs the stages


@dataclass
class Remote:
    """A host that was asked to take part. said: what ssh and the command there wrote."""

    host: Host
    process: "subprocess.Popen[bytes]"
    said: IO[bytes] = field(repr=False)

    def gone(self, file: Path) -> None:
        """A RunError where it will not come."""
        if (code := self.process.poll()) is None:
            return
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        last = lines[-1].strip() if lines else f"exit code {code}"
        name = self.host.name
        what, fix = f"{name} cannot take part: {last}", "the same environment and folder on each host"
        if code == UNREACHED:
            what, fix = f"cannot reach {name}: {last}", f"`ssh {name} true` must work without a password"
        raise RunError(what, at=str(file), fix=fix)


@contextmanager
def reached(file: Path, runs: Path) -> Iterator[Leader | None]:
    """In the block all hosts of a file take part in stages; None: this machine is the only one there.

    A RunError where one does not come; the first of them has to be this machine.
    """
    own, *others = read(file)
    if not others:
        _here(own, file)
        yield None
        return
    _here(own, file)
    if not (ssh := shutil.which("ssh")):
        raise RunError(f"{file} names {len(others) + 1} hosts, and there is no ssh", at=str(file), fix="install ssh")
    name = own.name.rpartition("@")[2]
    address = socket.gethostname() if name in ("localhost", HERE, "::1") else name
    leader = Leader(len(others) + 1, address, dict(enumerate(host.slots for host in (own, *others))))
    remotes: list[Remote] = []
    try:
        with ended(leader):
            remotes += [_start(ssh, number, host, leader, runs) for number, host in enumerate(others, 1)]
            leader.absent = lambda: _all(remotes, file)
            leader.wait()
            yield leader
    finally:
        for remote in remotes:
            _leave(remote)


def _here(host: Host, file: Path) -> None:
    if not host.here:
        what = f"{file} does not name this machine, {socket.gethostname()}"
        raise RunError(what, at=str(file), fix=f"start the command on one of its hosts, such as {host.name}")


def _all(remotes: Sequence[Remote], file: Path) -> None:
    for remote in remotes:
        remote.gone(file)


def _start(ssh: str, number: int, host: Host, leader: Leader, runs: Path) -> Remote:
    """Ask a host to take part. What nobody else may read, the token and the environment, goes through ssh's stdin."""
    env = {name: value for name, value in os.environ.items() if name.startswith(HANDED)}
    path = [f"PYTHONPATH={env['PYTHONPATH']}"] if "PYTHONPATH" in env else []
    words = ["exec", "env", *path, sys.executable, "-m", "mmalign.pipeline.following", str(runs)]
    line = f"cd {shlex.quote(os.getcwd())} && {shlex.join(words)}"
    said = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        [ssh, "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT}", host.name, line],
        stdin=subprocess.PIPE,
        stdout=said,
        stderr=said,
        start_new_session=True,  # Ctrl-C is ours to pass on
    )
    about = {"address": leader.address, "port": leader.port, "token": leader.token, "number": number, "env": env}
    assert process.stdin is not None
    with suppress(OSError):  # it has ended; `gone` says why
        process.stdin.write(json.dumps(about).encode() + b"\n")
        process.stdin.close()
    return Remote(host, process, said)


def _leave(remote: Remote) -> None:
    try:
        remote.process.wait(LEAVE)
    except subprocess.TimeoutExpired:
        remote.process.kill()
        remote.process.wait()
    remote.said.close()
