"""Parts written by `mmalign new`, imported: what keeps a contract and nothing else."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmalign.pipeline import new


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """start(kind): the class in the package that `mmalign new KIND NAME` writes, which can be imported by its name."""
    folder, written = tmp_path_factory.mktemp("starts"), {}

    def get(kind: str) -> Any:
        if kind not in written:
            _, module, _ = new.start(kind, f"own-{kind}", folder)
            written[kind] = _imported(module)
        return getattr(written[kind], f"Own{kind.title()}")

    return get


def _imported(place: Path) -> Any:
    spec = importlib.util.spec_from_file_location(place.stem, place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[place.stem] = module  # as if it were installed: cards name it
    return module
