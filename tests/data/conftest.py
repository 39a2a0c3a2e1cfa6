"""Data tests keep nothing outside their own folders."""

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MMALIGN_CACHE", str(folder))
    return folder / "data"
