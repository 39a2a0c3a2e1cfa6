"""Where these tests run: on a GPU or nowhere; `python -m tests.gpu --tiny` runs them on a CPU, so that they last."""

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


@pytest.fixture(autouse=True)
def whole_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch lets convolutions of fp32 round to TF32: an encoder's patches would be 1e-3 off the CPU's."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu") if CPU else torch.device("cuda", torch.cuda.current_device())
