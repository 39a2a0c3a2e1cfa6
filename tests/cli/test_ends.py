"""Real trainings that end by success, a loss that is not finite, kill -9, Ctrl-C, and two at once: `status`, `watch`
and `plan` tell each apart."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmalign.pipeline import lock
from tests.conftest import command

pytestmark = pytest.mark.slow
LINE = [sys.executable, "-c", "from mmalign.cli import entry; entry()"]
ONE = """\
name: one
seed: 3
model: {vision: toy-clip, adapter: linear, llm: toy-llama}
stages:
  align:
    kind: train
    data: {card: toy-captions, args: {size: 48}}
    trains: [adapter]
    objectives: {lm: 1.0}
    optim: {lr: 1e-3}
    batch: 8
    micro_batch: 8
    steps: 4
    precision: fp32
    log_every: 1
    engine: {zero: 0, save_every: 1, workers: 1}
"""
ENDLESS = "stages.align.steps=100000"


@pytest.fixture
def one(here):
    (here / "one.yaml").write_text(ONE)
    return here


def told(*words):
    """(state by `status`, state by `plan`) of the only stage of a recipe."""
    rows = json.loads(command("status", "--json").out)["runs"][-1]["stages"]
    planned = json.loads(command("plan", "one.yaml", *words, "--json").out)["stages"]
    return rows[0]["state"], planned[0]["state"]


def watched():
    """What `mmalign watch` leaves on a terminal when nothing runs, without colours."""
    leader, follower = pty.openpty()
    env = {**os.environ, "COLUMNS": "200", "TERM": "dumb"}
    with subprocess.Popen([*LINE, "watch"], stdout=follower, stderr=follower, env=env) as process:
        os.close(follower)
        out = b""
        while True:
            try:
                piece = os.read(leader, 1 << 16)
            except OSError:  # nobody writes to it any more
                break
            if not piece:
                break
            out += piece
    os.close(leader)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.decode())


@contextmanager
def training(*words):
    """`mmalign run` that has trained a few steps."""
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # behind a shell it is deaf
    known = set(Path("runs").glob("train-*"))
    line = [*LINE, "run", "one.yaml", ENDLESS, *words]
    with subprocess.Popen(line, stderr=subprocess.DEVNULL, start_new_session=True, **heard) as process:
        while not any('"step": 3' in place.read_text() for place in metrics(known)):
            assert process.poll() is None
            time.sleep(0.05)
        yield process
        process.kill()
    for place in Path("runs").glob("train-*/lock"):
        while lock.holder(place):
            time.sleep(0.05)


def metrics(known):
    return (folder / "metrics.jsonl" for folder in begun(known) if (folder / "metrics.jsonl").exists())


def begun(known):
    return set(Path("runs").glob("train-*")) - known


def test_success(one):
    assert command("run", "one.yaml").code == 0
    assert told() == ("done", "done")
    assert "one   done: began at " in watched()


def test_a_loss_that_is_not_finite(one):
    said = command("run", "one.yaml", "stages.align.optim.lr=3e37")
    assert said.code == 1
    state, planned = told("stages.align.optim.lr=3e37")
    why = re.fullmatch(r"failed: (the (?:loss term 'lm'|norm of the gradient) is (?:nan|inf) by step \d)", planned)[1]
    assert (state, f"error: stage 'align': {why}" in said.err) == ("failed", True)
    drawn = watched()
    assert "one   failed: began at " in drawn
    assert f": {why}" in drawn
    assert "try  a lower learning rate, or precision: fp32" in drawn


def test_kill_9(one):
    with training() as process:
        process.kill()
    state, planned = told(ENDLESS)
    assert state == "killed"
    assert re.fullmatch(r"killed; goes on from step \d+", planned)
    assert "one   killed: began at " in watched()


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to the command", "to all, as a terminal does"])
def test_ctrl_c(one, send):
    with training("stages.align.engine.save_every=100000") as process:
        send(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    (folder,) = begun(set())
    (saved,) = (folder / "checkpoints").glob("step-*")  # behind the step that was in work
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert saved.name == f"step-{last}"
    state, planned = told(ENDLESS, "stages.align.engine.save_every=100000")
    assert state == "interrupted"
    assert re.fullmatch(r"interrupted \(Ctrl-C\); goes on from step \d+", planned)
    drawn = watched()
    assert "one   interrupted: began at " in drawn
    assert "(Ctrl-C);" in drawn
    assert "goes on from step" in drawn  # folded into the next line of its cell


def test_two_at_once(one):
    """Of one recipe with two seeds; a third that would write where the first does is refused."""
    with training() as first, training("name=two", "seed=4") as second:
        runs = json.loads(command("status", "--json").out)["runs"]
        owners = [run["owner"].split()[1] for run in runs]
        assert [(run["recipe"], run["state"]) for run in runs] == [("one", "running"), ("two", "running")]
        assert owners == [str(first.pid), str(second.pid)]
        for run in runs:
            (row,) = run["stages"]
            assert row["owner"] == run["owner"]
            assert {"loss", "lm", "norm", "lr", "tokens/s", "samples/s", "peak_memory_gib"} <= row["metrics"].keys()
            assert (row["unit"], row["done"] > 0, row["left"] > 0) == ("steps", True, True)
        assert told(ENDLESS, "seed=4", "name=two")[1] == f"running: {runs[1]['owner']}"
        third = command("run", "one.yaml", ENDLESS)
        assert third.code == 2
        assert f"error: {runs[0]['owner']} is working in this folder" in third.err
        second.kill()
        second.wait()
        first.send_signal(signal.SIGINT)
        assert first.wait(60) == 130
    rows = {run["recipe"]: run["stages"][0]["state"] for run in json.loads(command("status", "--json").out)["runs"]}
    assert rows == {"one": "interrupted", "two": "killed"}
