"""What stands on the disk: the rights the umask leaves, bytes that outlive a power cut, and why something is denied."""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from mmalign.errors import RunError

NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # of file systems that cannot sync a folder


def sync(place: Path) -> None:
    """Send a file's bytes, or a folder's names, to the disk; an OSError where a file's do not get there."""
    try:
        handle = os.open(place, os.O_RDONLY)
    except PermissionError:
        return  # somebody else's, who synced it
    try:
        os.fsync(handle)
    except OSError as err:
        if err.errno not in NO_SYNC:
            raise
    finally:
        os.close(handle)


def settle(folder: Path) -> None:
    """Give what is in a folder the rights that the umask leaves, and send all of it to the disk, the folder last.

    safetensors writes files that only their owner may read, whatever the umask says.
    """
    usual = _usual(folder)
    for above, _, names in os.walk(folder, topdown=False):
        for place in (Path(above, name) for name in names):
            with suppress(FileNotFoundError):  # a tracker renamed it meanwhile
                _settle(place, usual)
        with suppress(FileNotFoundError):
            sync(Path(above))


def _settle(place: Path, usual: int) -> None:
    about = place.lstat()
    if stat.S_ISREG(about.st_mode):
        if about.st_uid == os.geteuid() and usual & ~about.st_mode:
            place.chmod(stat.S_IMODE(about.st_mode) | usual)
        sync(place)


def _usual(folder: Path) -> int:
    """The rights of a new file in a folder: what the umask, or the folder's own list of rights, leaves."""
    probe = folder / f".{os.getpid()}.part"
    handle = os.open(probe, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        probe.unlink()


def denied(place: str | Path) -> RunError:
    """The RunError for a file or folder that this user may not read, or not write: whose it is, and what to ask for."""
    closed = Path(place).absolute()
    while not _seen(closed) or (closed.is_file() and os.access(closed, os.R_OK | os.W_OK)):
        closed = closed.parent
    about = closed.stat()
    owner, mode = _name(about.st_uid), stat.filemode(about.st_mode)
    what = f"permission denied: {closed} is {owner}'s ({mode}), and this is {_name(os.geteuid())}"
    fix = f"{owner}: umask 002; chmod -R g+rwX {closed if closed.is_dir() else closed.parent}   or another --runs"
    return RunError(what, at=str(place), fix=fix)


def _seen(place: Path) -> bool:
    try:
        return place.exists()
    except OSError:
        return False


def _name(user: int) -> str:
    import pwd  # not on every system, and only for a message

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
