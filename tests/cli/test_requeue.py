"""The guide's script for Slurm, which time, preemption and `scancel` end with SIGTERM, and which is queued again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.cli.endings import checkpoints, log, numbers, weights, whole
from tests.cli.test_ends import ONE

pytestmark = pytest.mark.slow
GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "many-devices.md"
STEPS = 60


@pytest.fixture
def job(here):
    """The guide's script, with an environment and a `scontrol` of this folder."""
    text = re.search(r'```sh title="train.sbatch"\n(.*?)```', GUIDE.read_text(), re.DOTALL)[1]
    line = f"mmalign run one.yaml stages.align.steps={STEPS} --devices ${{SIZE:-1}} "
    (here / "train.sbatch").write_text(text.replace("mmalign run sea_llava_vicuna7b --devices 8 ", line))
    assert line in (here / "train.sbatch").read_text()
    (here / "one.yaml").write_text(
        ONE.replace("save_every: 1", "save_every: 1000").replace("micro_batch: 8", "micro_batch: 4")
    )
    made = {
        ".venv/bin/activate": f'export PATH="{here}/.venv/bin:$PATH"\n',
        ".venv/bin/mmalign": f"#!{sys.executable}\nfrom mmalign.cli import entry\nentry()\n",
        ".venv/bin/scontrol": f'#!/bin/sh\necho "$@" >> {here}/asked.txt\n',
    }
    for name, text in made.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
        (here / name).chmod(0o755)
    return here


def begun(folder, size):
    """The job as Slurm begins it, in a session of its own; its process."""
    env = {**os.environ, "SLURM_JOB_ID": "42", "SIZE": str(size)}
    with open(folder / "slurm.out", "ab") as out:
        return subprocess.Popen(
            ["bash", "train.sbatch"], cwd=folder, stdout=out, stderr=out, env=env, start_new_session=True
        )


@pytest.mark.parametrize(
    ("size", "send"),
    [(1, os.kill), (1, os.killpg), (2, os.killpg)],  # --signal=B:TERM to the script; preemption, scancel --full
    ids=["script", "all", "all of two ranks"],
)
def test_it_saves_is_queued_again_and_ends_with_the_same_weights(job, size, send):
    process = begun(job, size)
    while not log(job / "runs"):
        assert process.poll() is None, (job / "slurm.out").read_text()
        time.sleep(0.01)
    send(process.pid, signal.SIGTERM)
    assert process.wait(300) == 143
    assert (job / "asked.txt").read_text() == "requeue 42\n"
    (saved,) = checkpoints(job / "runs")  # save_every is far off
    step = int(saved.name.removeprefix("step-"))
    assert whole(saved)
    assert step == log(job / "runs")[-1]["step"] < STEPS
    (error,) = job.glob("runs/train-*/error.json")
    assert json.loads(error.read_text())["interrupted"] is True

    assert begun(job, size).wait(300) == 0
    said = (job / "slurm.out").read_text()
    assert "interrupted; the same command goes on" in said
    assert f"align: goes on from step {step}\n" in said
    assert "Traceback" not in said
    (job / "runs").rename(job / "ended")
    assert begun(job, size).wait(300) == 0
    assert all(torch.equal(value, weights(job / "runs")[name]) for name, value in weights(job / "ended").items())
    assert numbers(job / "ended") == numbers(job / "runs")


SPREAD = """
import pathlib, sys
from mmalign.pipeline import worker
worker.RANK = "tests.pipeline.lingering"
sys.exit(worker._spread(pathlib.Path(sys.argv[1]), 2))
"""


def test_ranks_have_the_time_they_need_to_save(here):
    """Also more than the 30 seconds after which torchrun, told to end, kills them."""
    env = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen([sys.executable, "-c", SPREAD, str(here)], env=env)
    while len(list(here.glob("begun-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(300) == 1
    assert sorted(place.name for place in here.glob("saved-*")) == ["saved-0", "saved-1"]
