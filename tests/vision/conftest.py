"""One checkpoint of every kind, written once."""

from pathlib import Path

import pytest

from tests.vision import tiny


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: tiny.checkpoint(kind, tmp_path_factory.mktemp(kind)) for kind in tiny.KINDS}
