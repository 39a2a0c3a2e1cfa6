"""SIGTERM is how Slurm and others say that time is up: the step in work is ended and saved before the stage ends."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def heard() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM came; it does nothing else in the block. Only the main thread hears it."""
    said = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield said.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: said.set())
    try:
        yield said.is_set
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
