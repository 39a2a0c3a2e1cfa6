"""`doctor`: what is installed, and a machine whose GPU tool is there and fails."""

import json
import subprocess

import pytest
from mmalign.cli import doctor

from mmalign.io import seal
from tests.plan.test_mistakes import assert_mistake


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


@pytest.mark.parametrize(
    ("printed", "found", "use"),
    [
        ("[36e9, 8e9]", "fp32 36, bf16 8 GFLOP/s a core",
         "training; bf16 is 4.5 times slower than fp32: precision=fp32 in stages that train on this CPU"),
        ("[100e9, 370e9]", "fp32 100, bf16 370 GFLOP/s a core", "training; bf16 is 3.7 times as fast as fp32"),
    ],
)  # fmt: skip
def test_it_says_where_bf16_is_slow(printed, found, use, monkeypatch, capsys):
    """As the probe prints its rates, in a process of its own."""
    run, asked = subprocess.run, []

    def probed(line, **options):
        asked.append(line[1:])
        return run([line[0], "-c", f"print('{printed}')"], **options)

    monkeypatch.setattr(doctor.subprocess, "run", probed)
    doctor.examine(as_json=True)
    row = next(row for row in json.loads(capsys.readouterr().out) if row["what"] == "CPU")
    assert row == {"what": "CPU", "found": found, "for": use}
    assert ["-m", "mmalign.labels.throughput"] in asked


def test_without_torch_it_says_nothing_of_rates(monkeypatch, capsys):
    run = subprocess.run
    monkeypatch.setattr(doctor.subprocess, "run", lambda line, **options: run([line[0], "-c", "import no"], **options))
    doctor.examine(as_json=True)
    assert "CPU" not in [row["what"] for row in json.loads(capsys.readouterr().out)]


def test_the_rates_are_measured(mmalign):
    row = next(row for row in json.loads(mmalign("doctor", "--json").out) if row["what"] == "CPU")
    assert row["found"].startswith("fp32 ")
    assert row["found"].endswith(" GFLOP/s a core")


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("none", "no folder none", "mmalign doctor runs"),
        (".", "nothing that mmalign wrote lies in .", "a folder of runs"),
    ],
)
def test_a_folder_with_nothing_of_ours(here, mmalign, name, what, fix):
    assert_mistake(mmalign("doctor", name), what, name, fix)


def test_what_is_no_store_is_named_and_the_rest_looked_at(here, mmalign):
    (here / "a").mkdir()
    (here / "a" / "header.json").write_text("[]")
    checkpoint = here / "b" / "step-5"
    checkpoint.mkdir(parents=True)
    seal.write(checkpoint / "step.json", {"step": 5, "tensors": 0, "files": {}})
    said = mmalign("doctor", ".", "--json")
    assert said.code == 2
    damaged, whole = json.loads(said.out)
    assert damaged["state"].startswith("header.json: header.json is damaged: it must be a mapping, got []")
    assert whole == {"kind": "checkpoint", "where": "b/step-5", "state": "whole"}
    assert said.err.startswith("error: 1 of the files are not as they were written, such as header.json\n")
