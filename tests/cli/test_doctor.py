"""`doctor`: what is installed, and a machine whose GPU tool is there and fails."""

import json

import pytest


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'H200, 143771 MiB'; echo 'H200, 143771 MiB'", "H200, 143771 MiB; H200, 143771 MiB"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", "none: nvidia-smi fails"),
        ("true", "none"),
    ],
)
def test_gpus(here, mmalign, monkeypatch, script, expected):
    tool = here / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(here), prepend=":")
    rows = {row["what"]: row["found"] for row in json.loads(mmalign("doctor", "--json").out)}
    assert rows["GPUs"] == expected
    assert rows["torch"] != "missing"
