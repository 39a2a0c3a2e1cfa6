"""A port for the processes of a test: still free when they come to bind it."""

import os
import random
import socket

FIRST, EACH, PARTS = 20_000, 1_000, 12  # below the ports that systems lend to connections, 32,768 and up on Linux


def free() -> int:
    """One of this test worker's thousand, so that no connection takes it in between, nor another worker: of more than
    PARTS some share one, and hardly ever a port."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = FIRST + EACH * (worker % PARTS)
    for port in random.sample(range(first, first + EACH), EACH):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port from {first} on")
