"""Who works in a folder: locks that end with the last process that holds them, and who holds one."""

import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmalign.errors import RunError
from mmalign.io import disk
from mmalign.pipeline.stalled import state

POLL = 0.05  # seconds between two tries
GRACE = 30  # seconds a stage is given to end after its owner was killed
GLANCE = 0.3  # seconds within which somebody who only asks who holds it lets go
NAME = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a stage folder alone; the lock ends with the last process that holds it, killed or not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError as err:
        raise disk.denied(folder / NAME) from err
    except OSError as err:
        raise RunError(f"cannot write to {folder}: {err.strerror}", at=str(folder), fix="another --runs") from err
    _take(handle, folder)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, owner().encode(), 0)
        yield handle
    finally:
        os.close(handle)


def owner() -> str:
    """This process, as it is named in what it holds."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def holder(place: Path) -> str | None:
    """What stands in a file that somebody holds locked, `process N on HOST` in a stage's; None: nobody does."""
    try:
        handle = os.open(place, os.O_RDONLY)
    except OSError:  # never held
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask are not in each other's way
    except BlockingIOError:
        return _text(handle)
    except OSError:  # a file system without locks, where nothing runs
        return None
    finally:
        os.close(handle)
    return None


def take_soon(handle: int) -> None:
    """Lock an open file that others only ask about; a BlockingIOError where somebody holds it."""
    until = time.monotonic() + GLANCE
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(POLL)


def _text(handle: int) -> str:
    return os.pread(handle, 200, 0).decode(errors="replace") or "another process"


def _take(handle: int, folder: Path) -> None:
    """Lock an open file; wait for it only where its owner was killed and the stage it began is still ending."""
    began = time.monotonic()
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            owner_ = _text(handle)
            process = here(owner_)
            if time.monotonic() - began > (GRACE if state(process) == "gone" else GLANCE):
                os.close(handle)
                what, fix = f"{owner_} is working in this folder", "wait for it, or stop it"
                if state(process) == "stopped":
                    what, fix = f"{what}, but stopped", f"kill -CONT {process} lets it go on"
                raise RunError(what, at=str(folder), fix=fix) from err
            time.sleep(POLL)
        except OSError as err:
            os.close(handle)
            what = f"{folder} lies on a file system without locks ({err.strerror}), so two runs could write into it"
            fix = "another --runs, on a local disk, or mount it with locks (NFS: nolock taken out; Lustre: flock)"
            raise RunError(what, at=str(folder), fix=fix) from err


def here(owner: str) -> int | None:
    """The process of `process N on HOST`; None where that is another machine's."""
    process = re.fullmatch(r"process (\d{1,9}) on (.*)", owner)
    return int(process[1]) if process and process[2] == socket.gethostname() else None
