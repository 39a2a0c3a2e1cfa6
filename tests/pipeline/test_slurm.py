"""The Slurm script of the guide, under stand-ins for srun and scontrol."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.test_pipeline import stage
from tests.pipeline.test_together import ENTRY, at_work, ran
from tests.pipeline.test_together import folder as folder
from tests.reader import NOT_A_READERS, blocks

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "many-devices.md"
SRUN = """
# stands for srun: two tasks of one step on one node; SIGTERM goes on to them, and the highest exit code is its own
import os, signal, subprocess, sys
own = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
places = [{"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n), "SLURM_NODEID": "0"} for n in range(2)]
tasks = [subprocess.Popen(sys.argv[1:], env={**os.environ, **own, **place}) for place in places]
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
sys.exit(max(task.wait() % 256 for task in tasks))
"""

SCONTROL = "import sys\nopen('asked.txt', 'a').write(' '.join(sys.argv[1:]))"


@pytest.fixture
def script(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's script for the tiny recipe; `mmalign` there is the command, with stages that are a script."""
    (block,) = [block for block in blocks(PAGE.read_text(encoding="utf-8")) if block.file == "train.sbatch"]
    text, count = re.subn(r"sea_llava_vicuna7b", "tiny.yaml", block.text)
    assert count == 1
    Path("train.sbatch").write_text(text)
    for name in ("bin", ".venv/bin"):
        Path(name).mkdir(parents=True)
    Path(".venv/bin/activate").write_text(f'PATH="{folder / "bin"}:$PATH"\n')
    programs = {
        "mmalign": ENTRY,
        "srun": SRUN,
        "scontrol": SCONTROL,
    }
    for name, program in programs.items():
        Path(f"bin/{name}").write_text(f"#!{sys.executable}\n{program}\n")
        Path(f"bin/{name}").chmod(0o755)
    for name in NOT_A_READERS:
        if name != "PYTHONPATH":
            monkeypatch.delenv(name, raising=False)
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_NODEID": "0"}.items():
        monkeypatch.setenv(name, value)  # as in a script of sbatch
    return folder / "train.sbatch"


def begin(script: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(["bash", str(script)], stderr=subprocess.PIPE, text=True)


def test_the_tasks_of_a_job_run_the_stages_together(script):
    child = begin(script)
    _, err = child.communicate(timeout=240)
    assert (child.returncode, err.count("align: done in")) == (0, 1), err
    assert [one["RANK"] for one in ran("train")] == ["0", "1"]
    assert (stage(script.parent, "align") / "stage.json").exists()
    assert not Path("asked.txt").exists()


def test_a_job_whose_time_is_up_is_queued_again(script, monkeypatch):
    monkeypatch.setenv("HOW_0", "wait")
    monkeypatch.setenv("HOW_1", "wait")
    child = begin(script)
    at_work(2)
    (srun,) = [one for one in children(child.pid) if "srun" in one[1]]
    os.kill(srun[0], signal.SIGTERM)  # as slurm does without `B:`: to the steps, not to the script
    _, err = child.communicate(timeout=240)
    assert (child.returncode, err.splitlines()[-1]) == (143, "interrupted; the same command goes on")
    assert Path("asked.txt").read_text() == "requeue 7"


def test_a_job_fails_as_its_stage_does(script, monkeypatch):
    monkeypatch.setenv("HOW_1", "fail")
    child = begin(script)
    _, err = child.communicate(timeout=240)
    assert (child.returncode, err.count("error: stage 'label' ended with code 1")) == (1, 1), err
    assert not Path("asked.txt").exists()


def test_the_script_itself_is_alone(script):
    Path("train.sbatch").write_text("source .venv/bin/activate\nmmalign run tiny.yaml --devices 2\n")
    child = begin(script)
    _, err = child.communicate(timeout=240)
    assert child.returncode == 0, err
    assert [(one["RANK"], one["words"][0]) for one in ran("train")] == [(None, "--devices=2")]


def children(process: int) -> list[tuple[int, str]]:
    """(id, command line) of the processes it began."""
    import psutil

    return [(one.pid, " ".join(one.cmdline())) for one in psutil.Process(process).children()]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["srun", "torchrun"])
def test_real_stages(script, by):
    """Two processes train under each launcher as `--devices 2` does, to the same labels and the same losses."""
    Path("bin/mmalign").write_text(f"#!{sys.executable}\nfrom mmalign.cli import entry\nentry()\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    line = ["bash", str(script)] if by == "srun" else [*torchrun, "bin/mmalign", "run", "tiny.yaml"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("align: done in") == 1
    plain = [sys.executable, "bin/mmalign", "run", "tiny.yaml", "--devices", "2", "--runs", "plain"]
    assert subprocess.run(plain, timeout=600, check=False).returncode == 0
    for name in ("labels/shard-00000.bin", "labels/shard-00002.bin"):
        places = [stage(script.parent, "label", runs) / name for runs in ("runs", "plain")]
        assert places[0].read_bytes() == places[1].read_bytes()
    places = [stage(script.parent, "align", runs) / "weights" / "adapter.safetensors" for runs in ("runs", "plain")]
    assert places[0].read_bytes() == places[1].read_bytes()
