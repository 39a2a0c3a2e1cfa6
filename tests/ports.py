"""A port for the processes of a test: still free when they come to bind it."""

import os
import random
import socket

FIRST, EACH = 20_000, 1_000  # below the ports that systems lend to connections, 32,768 and up on Linux


def free() -> int:
    """Of this test worker's own thousand, so that no other worker and no connection takes it in between."""
    first = FIRST + EACH * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in random.sample(range(first, first + EACH), EACH):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port from {first} on")
