"""Processes of a test that are ranks of one training."""

import time
from typing import Any

import pytest


def joined(ranks: Any, seconds: float = 300) -> None:
    """Wait for what `torch.multiprocessing.spawn(..., join=False)` began; a test that fails where ranks wait for each
    other. seconds: how long that is waited for."""
    patience = time.monotonic() + seconds
    while not ranks.join(timeout=1):
        if time.monotonic() > patience:
            for process in ranks.processes:
                process.kill()
            pytest.fail("the ranks wait for each other")
