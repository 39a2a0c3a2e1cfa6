"""The whole pipeline through the real command: once, killed anywhere, on two processes; it ends in the same result."""

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import TINY, Said, command
from tests.io.test_sums import flip
from tests.test_layers import loads

RUN = [sys.executable, "-c", "from mmalign.cli import entry; entry()", "run", "tiny.yaml"]
TIMING = {"steps_per_second", "time", "peak_memory_gib"}
ALIGN = ["stages.tune=~", "stages.score=~", "stages.report=~"]


def run(folder: Path, *words: str) -> Said:
    said = command("run", "tiny.yaml", *words, cwd=folder)
    assert said.code == 0, said.err
    return said


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny recipe ran without a pause; `said` holds what it printed."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "tiny.yaml").write_text(TINY)
    said = run(folder)
    (folder / "out.txt").write_text(said.out)
    (folder / "err.txt").write_text(said.err)
    return folder


@pytest.fixture
def copied(reference: Path, here: Path) -> Path:
    shutil.copytree(reference, here, dirs_exist_ok=True)
    return here


def stage(folder: Path, name: str, runs: str = "runs") -> Path:
    """The folder of a finished or begun stage, by its name."""
    places = (folder / runs).glob("*-*/stage.yaml")
    return next(place.parent for place in places if f"\nname: {name}\n" in place.read_text())


def rows(place: Path) -> list[dict[str, Any]]:
    """A JSONL log, without what only says how fast it went."""
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def result(folder: Path) -> dict[str, Any]:
    """Everything a stage left that must not depend on how it was run."""
    found: dict[str, Any] = {}
    for place in sorted(folder.rglob("*")):
        name = str(place.relative_to(folder))
        if place.suffix in (".safetensors", ".bin", ".npy", ".txt") and "checkpoints" not in name and name != "log.txt":
            found[name] = place.read_bytes()
        elif name == "metrics.jsonl":
            found[name] = rows(place)
        elif name in ("report.json", "labels/header.json") or name.startswith("labels/shard"):
            found[name] = json.loads(place.read_text())
            if name == "report.json":  # when and how long
                unlike = {"finished", "seconds", "device_hours"}
                stages = found[name]["stages"]
                found[name]["stages"] = [{k: v for k, v in one.items() if k not in unlike} for one in stages]
    about = json.loads((folder / "stage.json").read_text())
    found["metrics"] = {key: value for key, value in about["metrics"].items() if key not in TIMING}
    return found | {key: about.get(key) for key in ("what", "parts", "reads", "seed", "bad")}


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {place.parent.name: result(place.parent) for place in (folder / "runs").glob("*-*/stage.json")}


def test_every_stage_leaves_what_it_should(reference):
    assert set(results(reference)) == {stage(reference, n).name for n in ("label", "align", "tune", "score", "report")}
    align, tune = stage(reference, "align"), stage(reference, "tune")
    assert {path.name for path in (align / "weights").iterdir()} == {"adapter.safetensors", "objectives.safetensors"}
    assert {path.name for path in (tune / "weights").iterdir()} == {"adapter.safetensors", "llm"}
    assert [row["step"] for row in rows(align / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "lm", "sea", "pairs", "temperature", "lr", "norm"} <= rows(align / "metrics.jsonl")[0].keys()
    page = (stage(reference, "report") / "report.html").read_text()
    assert "toy-perplexity" in page
    assert "<svg" in page
    assert not list((reference / "runs").rglob("*.part"))


def test_what_the_command_prints(reference):
    out, err = (reference / "out.txt").read_text(), (reference / "err.txt").read_text()
    assert "toy-perplexity" in out
    assert out.splitlines()[-1] == "done: 5 stages in runs"
    for name in ("label", "align", "tune", "score", "report"):
        assert f"{name}: begins   runs/" in err
        assert f"{name}: done in" in err
    assert "adapter            12,416 parameters  trains" in err


def test_the_same_command_again_has_nothing_to_do_and_is_quick(reference):
    before = {place: place.stat().st_mtime_ns for place in (reference / "runs").rglob("*/*")}
    began = time.monotonic()
    said = run(reference)
    seconds = time.monotonic() - began
    assert said.err == ""
    assert said.out == (reference / "out.txt").read_text()
    assert {place: place.stat().st_mtime_ns for place in (reference / "runs").rglob("*/*")} == before
    assert seconds < 2, f"{seconds:.1f} s"


def test_nor_does_it_load_anything_heavy(reference, monkeypatch):
    monkeypatch.chdir(reference)
    assert loads("run", "tiny.yaml") == {"code": 0, "heavy": []}


def test_a_setting_of_the_second_training_changes_only_what_rests_on_it(copied):
    before = results(copied)
    said = run(copied, "stages.tune.steps=2")
    assert [line.split(":")[0] for line in said.err.splitlines() if ": begins" in line] == ["tune", "score", "report"]
    after = results(copied)
    assert {name: after[name] for name in before} == before
    assert len(after) == 8
    assert "done" in command("plan", "tiny.yaml", "--json", cwd=copied).out


# Killed


def kill(root: psutil.Process) -> None:
    """kill -9 of a process and all below it."""
    for process in [root, *root.children(recursive=True)]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def marks(folder: Path) -> int:
    """How far a pipeline is, in things that appear on the disk."""
    logs = [place.read_text().count("\n") for place in folder.glob("runs/*/metrics.jsonl")]
    others = ["runs/*/stage.json", "runs/*/stage.yaml", "runs/*/labels/shard-*.json", "runs/*/checkpoints/.step-*"]
    return sum(logs) + sum(1 for pattern in others for _ in folder.glob(pattern))


def until_killed(folder: Path, how: random.Random, most: int) -> bool:
    """Run the command until a random moment: a few seconds in, or just behind the next signs of progress."""
    with open(folder / "said.txt", "w") as said, subprocess.Popen(RUN, cwd=folder, stdout=said, stderr=said) as child:
        began, start = time.monotonic(), marks(folder)
        seconds = how.uniform(0.1, 5) if how.random() < 0.3 else 600
        more, late = how.randint(1, most), how.uniform(0, 0.2)
        while child.poll() is None:
            if time.monotonic() - began > seconds or marks(folder) >= start + more:
                time.sleep(late)  # the moment is to be random, nothing is awaited
                kill(psutil.Process(child.pid))
                return True
            time.sleep(0.005)
        assert child.returncode == 0, (folder / "said.txt").read_text()
        return False


def kill_and_compare(folder: Path, reference: Path, kills: int, most: int, seed: int) -> None:
    """Kill a pipeline so many times on its way; if it ends before that, the rest are for another one."""
    (folder / "tiny.yaml").write_text(TINY)
    how, killed = random.Random(seed), 0
    while killed < kills:
        if until_killed(folder, how, most):
            killed += 1
        else:
            assert_same(folder, reference)
            shutil.rmtree(folder / "runs")
    run(folder)
    assert_same(folder, reference)


def assert_same(folder: Path, reference: Path) -> None:
    found, want = results(folder), results(reference)
    assert found.keys() == want.keys()
    for name in want:
        assert found[name].keys() == want[name].keys(), name
        for key in want[name]:
            assert found[name][key] == want[name][key], f"{name}: {key}"
    assert not list((folder / "runs").rglob("*.part"))


def test_killed_anywhere_it_goes_on_to_the_same_result(reference, here):
    kill_and_compare(here, reference, kills=4, most=8, seed=1)


@pytest.mark.slow
def test_killed_twenty_times_it_goes_on_to_the_same_result(reference, here):
    kill_and_compare(here, reference, kills=20, most=2, seed=2)


# Damaged


def damaged_after_step_5(folder: Path, name: str, runs: str = "runs") -> Path:
    """A finished stage as if it had been killed after its checkpoint of step 5, one bit of which then turned."""
    place = stage(folder, name, runs)
    (place / "stage.json").unlink()
    shutil.rmtree(place / "weights")
    flip(place / "checkpoints" / "step-5" / "state-00000.safetensors", -40, 6)
    return place


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before_it(copied, reference):
    """To the same weights, logs and scores, bit by bit."""
    place = damaged_after_step_5(copied, "tune")
    assert sorted(p.name for p in (place / "checkpoints").iterdir()) == ["step-4", "step-5"]
    said = run(copied)
    what = "tune: checkpoint step-5: state-00000.safetensors is damaged: it is not as it was written (SHA-256)"
    assert f"{what}; goes on from the one before it" in said.err
    assert "tune: goes on from step 4" in said.err
    assert_same(copied, reference)
    assert sorted(p.name for p in (place / "checkpoints").iterdir()) == ["step-4", "step-5"]
    assert command("doctor", "runs", cwd=copied).code == 0


def test_damaged_weights_end_the_stage_that_reads_them_and_doctor_names_them(copied):
    place = stage(copied, "tune") / "weights" / "llm" / "model.safetensors"
    (stage(copied, "score") / "stage.json").unlink()
    flip(place, -40, 6)
    said = command("run", "tiny.yaml", cwd=copied)
    assert said.code == 1
    what = "model.safetensors is damaged: it is not as it was written (SHA-256)"
    assert f"error: stage 'score': {what}" in said.err
    assert f"at   {place.relative_to(copied)}" in said.err
    assert "--force tune" in said.err
    said = command("doctor", "runs", cwd=copied)
    assert said.code == 2
    assert f"weights/llm/model.safetensors: {what}" in said.out
    assert said.err.startswith("error: 1 of the files are not as they were written, such as model.safetensors\n")
    assert f"at   {place.relative_to(copied)}" in said.err
    rows = json.loads(command("doctor", "runs", "--json", cwd=copied).out)
    assert [row["state"] for row in rows if row["state"] != "whole"] == [f"weights/llm/model.safetensors: {what}"]


def test_what_a_run_leaves_follows_the_umask(reference):
    mode = 0o666 & ~files_umask()
    for place in (reference / "runs").rglob("*"):
        assert place.is_dir() or place.stat().st_mode & 0o777 == mode, place


def files_umask() -> int:
    os.umask(umask := os.umask(0))
    return umask


# Several processes


ZERO_3 = "stages.align.engine.zero=3"


def trace(folder: Path, runs: str) -> dict[str, list[float]]:
    lines = rows(stage(folder, "align", runs) / "metrics.jsonl")
    return {key: [line[key] for line in lines] for key in ("step", "loss", "lm", "sea", "tokens", "images", "lr")}


def train(folder: Path, runs: str, *words: str) -> Said:
    """20 steps of the align stage in a runs folder of its own, with the labels of the reference."""
    label = stage(folder, "label")
    if not (folder / runs).exists():
        shutil.copytree(label, folder / runs / label.name)
    return run(folder, *ALIGN, "stages.align.steps=20", "--runs", runs, *words)


@pytest.fixture(scope="module")
def alone(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's labels and a training of 20 steps on one process, without ZeRO, in runs `alone`."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(reference, folder, dirs_exist_ok=True)
    train(folder, "alone")
    return folder


def assert_equal_traces(found: dict[str, list[float]], want: dict[str, list[float]]) -> None:
    assert found["step"] == want["step"] == list(range(1, 21))
    for key in ("tokens", "images", "lr"):
        assert found[key] == want[key]
    for key in ("loss", "lm", "sea"):
        assert found[key] == pytest.approx(want[key], rel=1e-5), key


@pytest.mark.parametrize("zero", [0, *(pytest.param(zero, marks=pytest.mark.slow) for zero in (1, 2)), 3])
def test_two_processes_reach_the_losses_of_one(alone, zero):
    runs = f"two-zero-{zero}"
    train(alone, runs, "--devices", "2", f"stages.align.engine.zero={zero}")
    about = json.loads((stage(alone, "align", runs) / "stage.json").read_text())
    assert (about["devices"], about["hosts"]) == (2, [socket.gethostname()])
    assert_equal_traces(trace(alone, runs), trace(alone, "alone"))


@pytest.mark.slow
def test_one_process_goes_on_from_a_checkpoint_of_two(alone):
    """Killed after some steps under ZeRO 3 on two processes; ends on one, without ZeRO."""
    label = stage(alone, "label")
    shutil.copytree(label, alone / "mixed" / label.name)
    words = [*ALIGN, "stages.align.steps=20", "--runs", "mixed"]
    more = ["--devices", "2", "stages.align.engine.zero=3"]
    with subprocess.Popen([*RUN, *words, *more], cwd=alone, stderr=subprocess.DEVNULL) as child:
        while child.poll() is None and not list(alone.glob("mixed/train-*/checkpoints/step-[5-9]")):
            time.sleep(0.01)
        kill(psutil.Process(child.pid))
    assert not list(alone.glob("mixed/train-*/stage.json"))
    said = run(alone, *words)
    assert "align: goes on from step" in said.err
    (told,) = [line for line in said.err.splitlines() if "from here on" in line]
    assert told.startswith("align: 1 process from here on, 2 before: the same samples in the same steps; ")
    (account,) = json.loads((stage(alone, "align", "mixed") / "stage.json").read_text())["account"]
    assert re.fullmatch(r"trained by 2 processes from step 0 on, 1 process from step \d+ on", account)
    assert_equal_traces(trace(alone, "mixed"), trace(alone, "alone"))


@pytest.mark.parametrize("more", [[], pytest.param(["--devices", "2", ZERO_3], marks=pytest.mark.slow)])
def test_sigterm_ends_training_with_a_checkpoint(alone, more):
    """As Slurm says that time is up: long before the next checkpoint, and in the midst of a line of the log."""
    runs, whole = f"told-{len(more)}", f"not-told-{len(more)}"
    long = ["stages.align.steps=200", "stages.align.log_every=200", "stages.align.engine.save_every=500"]
    train(alone, whole, *long)
    shutil.copytree(stage(alone, "label"), alone / runs / stage(alone, "label").name)
    words = [*ALIGN, *long, "--runs", runs]
    with subprocess.Popen([*RUN, *words, *more], cwd=alone, stderr=subprocess.PIPE, text=True) as child:
        while child.poll() is None and not any('"done":' in place.read_text() for place in events(alone / runs)):
            time.sleep(0.01)
        child.terminate()
        err = child.stderr.read()
    assert child.returncode == 143, err
    assert err.splitlines()[-1] == "interrupted; the same command goes on"
    assert "Traceback" not in err
    (saved,) = alone.glob(f"{runs}/train-*/checkpoints/step-*")
    step = int(saved.name.removeprefix("step-"))
    assert 1 <= step < 200
    (said,) = json.loads(command("status", runs, "--json", cwd=alone).out)["runs"]
    found = {row["stage"]: (row["state"], row["why"]) for row in said["stages"]}
    assert found["align"] == ("interrupted", f"(SIGTERM); goes on from step {step}")

    said = run(alone, *words)  # on one process, whatever it was on
    assert f"align: goes on from step {step}" in said.err
    (line,) = rows(stage(alone, "align", runs) / "metrics.jsonl")
    (want,) = rows(stage(alone, "align", whole) / "metrics.jsonl")
    for key in ("step", "loss", "lm", "sea", "tokens", "images"):
        assert line[key] == pytest.approx(want[key], rel=1e-4), key


def events(runs: Path) -> Iterator[Path]:
    return runs.glob("train-*/events.jsonl")


@pytest.mark.slow
def test_two_processes_go_on_from_the_same_older_checkpoint(alone):
    train(alone, "older", "--devices", "2", "stages.align.steps=6")
    whole = trace(alone, "older")
    damaged_after_step_5(alone, "align", "older")
    said = train(alone, "older", "--devices", "2", "stages.align.steps=6")
    assert "align: goes on from step 4" in said.err
    assert trace(alone, "older") == whole


@pytest.mark.slow
def test_two_hosts_through_a_shell_that_stands_for_ssh(alone, monkeypatch):
    shell = alone / "bin" / "ssh"
    shell.parent.mkdir()
    shell.write_text('#!/bin/sh\nwhile [ "$1" = "-o" ]; do shift 2; done\nshift\nexec sh -c "$*"\n')
    shell.chmod(0o755)
    (alone / "hosts").write_text("node2 slots=1\nlocalhost slots=1\n")
    monkeypatch.setenv("PATH", f"{shell.parent}{os.pathsep}{os.environ['PATH']}")
    train(alone, "hosted", "--hosts", "hosts")
    assert json.loads((stage(alone, "align", "hosted") / "stage.json").read_text())["devices"] == 2
    assert_equal_traces(trace(alone, "hosted"), trace(alone, "alone"))


@pytest.mark.slow
def test_the_whole_pipeline_on_two_processes(reference, here):
    (here / "tiny.yaml").write_text(TINY)
    run(here, "--devices", "2")
    found, want = results(here), results(reference)
    assert found.keys() == want.keys()
    label = stage(here, "label").name
    assert found[label] == want[label]
    for name in found:
        for bench, metrics in found[name]["metrics"].items() if name.startswith("evaluate") else ():
            assert metrics == pytest.approx(want[name]["metrics"][bench], rel=1e-4)
