"""One stage in one process (group): stage.yaml in, stage.json out."""

import argparse
import ctypes
import errno
import importlib
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from mmalign.errors import DataError, MMAlignError, StageError, Stopped
from mmalign.io import beats, disk, environment
from mmalign.io.signals import on_sigterm
from mmalign.io.visible import visible
from mmalign.pipeline import ended, hardware, memory, ranks, task, weights
from mmalign.pipeline.stalled import children


def main() -> int:
    args = argparse.ArgumentParser(prog="mmalign.pipeline.worker")
    args.add_argument("folder", type=Path)
    args.add_argument("--written", default="")  # the hash of the stage.yaml that our parent wrote
    args.add_argument("--devices", type=int, default=0)  # start that many of us with torchrun
    given = args.parse_args()
    _die_with_parent()
    if os.environ.get(
        "MMALIGN_PARENT"
    ):  # a terminal's Ctrl-C reaches us, too: it is the command that says what follows
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if given.devices:
        return _spread(given.folder, given.devices, given.written)
    rank = int(os.environ.get("RANK", "0"))
    _log(logging.INFO if rank == 0 else logging.WARNING)
    beats.begin(given.folder, rank)
    try:
        run(given.folder, rank, given.written)
    except MMAlignError as err:
        return _fail(given.folder, err)
    except Exception as err:
        if (short := memory.short(err)) is not None:
            return _fail(given.folder, memory.error(short, task.load(given.folder, given.written), rank))
        at = str(getattr(err, "filename", None) or given.folder)
        if _code(err) in DENIED:
            return _fail(given.folder, disk.denied(at))
        if _code(err) not in FULL:
            beats.end(environment.hidden(f"raised {type(err).__name__}: {err}", SECRETS))
            raise
        fix = "free some, or another --runs; the same command goes on"
        return _fail(given.folder, StageError(f"no space left: {err}", at=at, fix=fix), task.FULL)
    beats.end()
    return 0


SECRETS: dict[str, str] = {}  # {reference: value} of the environment in the arguments of this stage


class _Lines(logging.Formatter):
    """Lines that begin with the time (UTC), whose control characters are written out, and which say nothing of the
    environment."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        return visible(environment.hidden(super().format(record), SECRETS))


def _log(level: int) -> None:
    """Log from this level on to stderr, which is log.txt; an error that nothing catches there, too."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ"))
    logging.basicConfig(level=level, handlers=[handler])
    sys.excepthook = lambda *error: logging.critical("the stage ends here", exc_info=error)
    threading.excepthook = lambda error: logging.error("a thread ends here", exc_info=_of_thread(error))


def _of_thread(error: Any) -> Any:
    return error.exc_type, error.exc_value, error.exc_traceback


FULL, DENIED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (errno.EACCES, errno.EPERM)


def _code(err: Exception) -> int | None:
    """What the system said of a file; safetensors has its own exception for it."""
    code = getattr(err, "errno", None)
    if type(err).__name__ == "SafetensorError" and (match := re.search(r"os error (\d+)", str(err))):
        code = int(match[1])
    return code


def run(folder: Path, rank: int, written: str = "") -> None:
    """Run the stage in a folder; rank 0 writes its stage.json. written: see task.load."""
    began = time.time()
    given = task.load(folder, written)
    SECRETS.update(environment.values({role: card.args for role, card in given.cards.items()}))
    weights.begin(given)
    resumed = {place.name for place in folder.iterdir()} - {"stage.yaml", *task.RUNNING}
    stage = importlib.import_module(f"mmalign.stages.{given.stage.kind}")
    results: dict[str, Any] = stage.run(given)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    hosts = _hosts(size)
    if rank == 0:
        again = {"resumed": True} if resumed else {}  # what it took is not the whole time
        task.finish(given, {**results, **again}, began, size, hosts)


def _hosts(size: int) -> dict[str, str]:
    """{host: its GPUs} of all ranks, in their order; every rank asks."""
    own = socket.gethostname(), hardware.used().get("gpus", "")
    if size == 1:
        return dict([own])
    import torch.distributed as dist

    of_rank: list[tuple[str, str]] = [own] * size
    dist.all_gather_object(of_rank, own)
    return dict(of_rank)


RANK = "mmalign.pipeline.worker"
OTHERS = ("SIGHUP", "SIGQUIT")  # than SIGTERM; what torchrun hears. Ctrl-C is for the command, see run.py


def _pass_on() -> None:
    """SIGTERM for every rank, which end by themselves; for this process where it began none yet."""
    ranks = children(os.getpid())
    for rank in ranks:
        with suppress(ProcessLookupError):
            os.kill(rank, signal.SIGTERM)
    if not ranks:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _spread(folder: Path, devices: int, written: str = "") -> int:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    os.environ["MMALIGN_PARENT"] = str(os.getpid())
    where = ["--standalone"]
    if (nodes := os.environ.get("WORLD_SIZE", "1")) != "1":  # as many hosts do the same, each counted as one process
        env = {name: os.environ.pop(name) for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")}
        where = [f"--nnodes={nodes}", f"--node-rank={env['RANK']}"]
        where += [f"--master-addr={env['MASTER_ADDR']}", f"--master-port={env['MASTER_PORT']}"]
    try:
        how = [*where, f"--nproc-per-node={devices}"]
        # told to end, torchrun would kill ranks after 30 s, however long their checkpoint takes
        own = [f"--signals-to-handle={','.join(OTHERS)}"] if sys.platform == "linux" else []
        with on_sigterm(_pass_on) if own else nullcontext():
            torchrun([*how, *own, "-m", RANK, str(folder), f"--written={written}"])
    except ChildFailedError as err:  # its own summary of who failed first; the workers wrote what went wrong
        logging.error("%s", err)
        _, first = err.get_first_failure()
        # it ends the others, with SIGTERM and half a minute later with SIGKILL, and counts them as failures, too
        soon = {rank: each for rank, each in err.failures.items() if each.timestamp <= first.timestamp + 1}
        ranks.left(folder, {r: each.exitcode for r, each in soon.items() if each.exitcode != -signal.SIGTERM})
        return task.FULL if first.exitcode == task.FULL else 1
    except Exception as err:
        logging.error("%s", err)
        return 1
    return 0


def _fail(folder: Path, err: MMAlignError, code: int = 0) -> int:
    logging.error("%s", err)
    what, at, fix = (environment.hidden(text, SECRETS) for text in (err.what, err.at, err.fix))
    beats.end(f"raised {type(err).__name__}: {what}")
    asked: dict[str, Any] = {}
    if isinstance(err, (DataError, Stopped)):  # data that cannot give what is asked; SIGTERM
        asked = {"exit_code": err.exit_code} | ({"interrupted": True} if isinstance(err, Stopped) else {})
    ended.write(folder, what, at, fix, **asked)
    return code or err.exit_code


def _die_with_parent() -> None:
    """Where the system can (Linux): a worker whose parent is killed is killed too, and frees its folder."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if (parent := os.environ.get("MMALIGN_PARENT")) and os.getppid() != int(parent):
            os._exit(1)  # it died before we could ask


if __name__ == "__main__":
    sys.exit(main())
