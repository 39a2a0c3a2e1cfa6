"""The command and its stages without the seconds in which Python imports: forks of a process that has imported it all.

Everything else is as it is with processes that are begun anew: arguments, environment, files, signals and exit codes.
`python -m tests.cli.warm` forks on demand, see Warm; what a forked `mmalign run` begins is forked of it in turn.
"""

import atexit
import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

WORKER = "mmalign.pipeline.worker"
IMPORTED = ("torch.distributed.run", "deepspeed", "mmalign.stages.train", "mmalign.pipeline.run", "mmalign.cli",
            "mmalign.toyworld.parts", "mmalign.toyworld.data", "mmalign.vision.hf", "mmalign.llms.causal", WORKER,
            "torch._dynamo", "torch.distributed.elastic.multiprocessing.errors")  # fmt: skip


class Forked(subprocess.Popen):  # type: ignore[type-arg]
    """A Popen of which a stage's process is a fork of this one."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):  # type: ignore[no-untyped-def]
        if WORKER not in list(args):
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
            return
        _, _, _, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *_ = rest
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            for theirs, own in ((p2cread, 0), (c2pwrite, 1), (errwrite, 2)):
                if theirs >= 0:
                    os.dup2(theirs, own)
            if rest[14]:  # start_new_session
                os.setsid()
            _close(pass_fds)
            os.environ.clear()
            os.environ.update(env)
            _become(list(args)[list(args).index(WORKER) :], lambda: importlib.import_module(WORKER).main())
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def _close(but: Sequence[int]) -> None:
    at = 3
    for kept in [*sorted(but), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(at, kept)
        at = kept + 1


def _become(line: list[str], main: Callable[[], Any]) -> NoReturn:
    """Do what a new Python would with a command line, and end as it would."""
    sys.argv = line
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        code = main()
    except SystemExit as err:
        code = err.code if isinstance(err.code, int) else int(err.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code or 0)


def _serve() -> None:
    """Answer lines of JSON: {argv, cwd, said, limit} begins a command and gives its process, {poll} its exit code."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    subprocess.Popen = Forked  # type: ignore[misc]
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    print("ready", flush=True)
    while line := sys.stdin.readline():
        asked = json.loads(line)
        if "poll" in asked:
            ended, status = os.waitpid(asked["poll"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if ended else None), flush=True)
            continue
        if not (process := os.fork()):
            _begin(**asked)
        print(process, flush=True)


def _begin(argv: list[str], cwd: str, said: str, limit: int) -> NoReturn:
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    _close(())
    os.chdir(cwd)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    entry = importlib.import_module("mmalign.cli").entry
    _become(argv, entry)


class Command:
    """A command that Warm began, with what is asked of a Popen."""

    def __init__(self, warm: "Warm", pid: int) -> None:
        self.warm, self.pid = warm, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.warm.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int:
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("mmalign", timeout)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Warm:
    """A process that has imported everything, as long as the block lasts."""

    def __enter__(self) -> "Warm":
        line = [sys.executable, "-m", "tests.cli.warm"]
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, what: dict[str, Any]) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def begin(self, argv: Sequence[str], cwd: Path, said: Path, limit: int = 0) -> Command:
        """`mmalign argv ...` in a folder. said: where what it prints goes. limit: bytes of a file; 0: none."""
        return Command(self, self.ask({"argv": ["mmalign", *argv], "cwd": str(cwd), "said": str(said), "limit": limit}))


if __name__ == "__main__":
    _serve()
