"""The others of several commands that run one plan together: each takes part in the stages that the first announces.

python -m mmalign.pipeline.following RUNS   is what --hosts starts by ssh; where the first is reached comes on stdin.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmalign.errors import RunError, StageError, Terminated
from mmalign.io.signals import on_sigterm
from mmalign.pipeline import launched
from mmalign.pipeline.launched import Launched
from mmalign.pipeline.leading import JOIN, meeting
from mmalign.pipeline.lock import POLL
from mmalign.pipeline.wire import Wire

AGAIN = 0.25  # seconds between two tries to reach the first


def follow(own: Launched, runs: Path) -> int:
    """Take part in the stages of a folder of runs until the first command ends; its exit code.

    A RunError where it is not reached within JOIN, a StageError where it is gone without a word.
    """
    place, until = meeting(runs, own.key), time.monotonic() + JOIN
    while True:
        with suppress(OSError, ValueError, KeyError, TypeError):  # not there yet, or left behind by one that was killed
            wire = _join(_ours(place), own.number)
            break
        if time.monotonic() > until:
            what = f"process {own.number} of {own.size}: the first did not come within {JOIN:.0f} s"
            fix = "start the same command in all of them, with one --runs that all see"
            raise RunError(what, at=str(place), fix=fix)
        time.sleep(AGAIN)
    return _serve(wire, runs, own.local)


def _ours(place: Path) -> dict[str, Any]:
    """Where the first command is reached, as this user wrote it; a ValueError where it was another one."""
    with open(place, encoding="utf-8") as source:
        if os.fstat(source.fileno()).st_uid != os.geteuid():
            raise ValueError("another's")
        about: dict[str, Any] = json.load(source)
    return about


def _join(about: Mapping[str, Any], number: int) -> Wire:
    """The wire to the first command; a ValueError where who listens there is another."""
    wire = Wire(socket.create_connection((about["address"], about["port"]), timeout=5))
    wire.send({"token": about["token"], "number": number, "host": socket.gethostname()})
    if not any("welcome" in message for message in wire.hear(5)):
        wire.close()
        raise ValueError("another")
    return wire


class Member:
    """The process of a stage here, and what it writes, which the log of the stage gets."""

    def __init__(self, order: Mapping[str, Any], runs: Path, local: int) -> None:
        name = str(order["begin"])
        if not re.fullmatch(r"[\w.-]+", name):
            raise StageError(f"{name!r} is no stage", at=str(runs))
        command = [*launched.WORKER, str(runs / name), f"--written={order['written']}"]
        command += [f"--devices={order['devices']}"] if order["devices"] else []
        env = launched.placed(os.environ, local=local, **order["place"])
        env |= {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "MMALIGN_PARENT": str(os.getpid())}
        env.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.said, self._seen = tempfile.TemporaryFile(), 0  # noqa: SIM115
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said, env=env)

    def tell(self, wire: Wire) -> bool:
        """Send what it wrote since; whether it has ended, which is sent, too."""
        code = self.process.poll()
        came = os.pread(self.said.fileno(), 1 << 20, self._seen)
        whole = came[: came.rfind(b"\n") + 1] if code is None else came
        if whole:
            self._seen += len(whole)
            wire.send({"log": whole.decode(errors="replace")})
        if code is None or len(came) == 1 << 20:
            return False
        wire.send({"ended": code})
        return True

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.said.close()


def _serve(wire: Wire, runs: Path, local: int) -> int:
    """Do what the first command says, to its end; SIGTERM goes on to the stage that runs."""
    member: Member | None = None

    def asked_to_end() -> None:
        if member is None:
            raise Terminated
        member.process.terminate()

    try:
        with on_sigterm(asked_to_end):
            while wire.open:
                for order in wire.hear(POLL if member else 1.0):
                    if "end" in order:
                        return int(order["end"])
                    if "begin" in order:
                        member = Member(order, runs, local)
                    elif "signal" in order and member:
                        member.process.send_signal(order["signal"])
                if member and member.tell(wire):
                    member.stop()
                    member = None
    finally:
        if member:
            member.stop()
        wire.close()
    raise StageError("the first process is gone", at=str(runs), fix="the same command goes on")


@contextmanager
def _quiet() -> Iterator[None]:
    """Errors as a line on stderr, which the first command reads."""
    try:
        yield
    except (RunError, StageError) as err:
        sys.exit(str(err))
    except Terminated:
        sys.exit(128 + signal.SIGTERM)


def main() -> int:
    about = json.loads(sys.stdin.readline())
    os.environ.update(about["env"])
    with _quiet():
        return _serve(_join(about, about["number"]), Path(sys.argv[1]), 0)


if __name__ == "__main__":
    sys.exit(main())
