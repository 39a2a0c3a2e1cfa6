"""Writes checkpoints beside training: the state is copied, and a thread writes the copy while the next steps run."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from mmalign.training import checkpoint
from mmalign.training.checkpoint import State
from mmalign.training.memory import free_bytes

SHARE = 0.5  # of the memory that is free, at most, for the copy


class Writer:
    """Writes the checkpoints of a run into `folder`, one after the other, the newest `keep` of them kept.

    The copy lies in the memory of rank 0's machine: 12 bytes a trained parameter, under AdamW. Where there is no room
    for it the state is written piece by piece, as training waits. Either way a checkpoint is whole or absent, see
    checkpoint.save. What goes wrong in the thread is raised by the next call.
    """

    def __init__(self, folder: Path, rank: int, keep: int, free: Callable[[], int] = free_bytes) -> None:
        self.folder, self.rank, self.keep, self.free = folder, rank, keep, free
        self.writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        """Nothing is being written behind the block; what went wrong in it goes before what went wrong here."""
        with suppress(Exception) if err else nullcontext():
            self.wait()

    def save(self, step: int, state: State, size: int) -> None:
        """Write step-N; every rank iterates the state, tensors of its own. size: its bytes.

        Returns as soon as training may go on; waits for the one before first.
        """
        self.wait()
        write = partial(checkpoint.save, self.folder, step, rank=self.rank, keep=self.keep)
        if self.rank or size > SHARE * self.free():
            write(state)
            return
        self.writing = _begun(partial(write, list(state)))

    def look(self) -> None:
        """Raise what went wrong, where that is known by now."""
        if self.writing and self.writing.done():
            self.wait()

    def wait(self) -> None:
        """Come back when nothing is being written; raise what went wrong."""
        writing, self.writing = self.writing, None
        if writing:
            writing.result()


def _begun(work: Callable[[], None]) -> Future[None]:
    """Work of a thread that the process does not end before."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
            future.set_result(None)
        except BaseException as err:
            future.set_exception(err)

    threading.Thread(target=run, name="checkpoint").start()
    return future
