"""What SIGTERM does: Slurm and others say so that time is up."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_sigterm(act: Callable[[], object]) -> Iterator[None]:
    """In the block SIGTERM calls `act` and does nothing else. Python hears signals in the main thread alone; in another
    one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
