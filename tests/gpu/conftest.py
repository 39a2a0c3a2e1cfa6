"""Where these tests run: on a GPU, or nowhere; `python -m tests.gpu --tiny` runs them on the CPU, so that they cannot rot."""

import os

import pytest
import torch

CPU = os.environ.get("MMALIGN_GPU_TESTS") == "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or CPU:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU that torch can use"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu") if CPU else torch.device("cuda", torch.cuda.current_device())
