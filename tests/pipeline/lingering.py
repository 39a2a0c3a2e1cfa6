"""A rank that takes longer to end, once it is told to, than torchrun waits: as one with a large checkpoint."""

import os
import signal
import sys
import time
from pathlib import Path

SECONDS = 33.0  # torchrun kills after 30


def end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun says it again when another rank has ended
    time.sleep(SECONDS)
    (Path(sys.argv[1]) / f"saved-{os.environ['RANK']}").touch()
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    (Path(sys.argv[1]) / f"begun-{os.environ['RANK']}").touch()
    while True:
        time.sleep(0.1)
