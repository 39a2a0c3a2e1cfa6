"""A real training that is interrupted and goes on: every tracker holds the numbers of metrics.jsonl, each step once."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import command
from tests.pipeline.test_tracking import expected, numbers, table, wandb_rows

STEPS = 10
ONE = f"""\
name: one
seed: 3
model: {{vision: toy-clip, adapter: linear, llm: toy-llama}}
log_to: [tensorboard, wandb, trackio, csv]
stages:
  align:
    kind: train
    data: {{card: toy-captions, args: {{size: 48}}}}
    trains: [adapter]
    objectives: {{lm: 1.0}}
    optim: {{lr: 1e-3}}
    batch: 8
    micro_batch: 8
    steps: {STEPS}
    precision: fp32
    log_every: 1
    engine: {{zero: 0, save_every: 4, workers: 1}}
"""
LINE = [sys.executable, "-c", "from mmalign.cli import entry; entry()", "run", "one.yaml"]
TRACKIO = """
import json
from trackio.sqlite_storage import SQLiteStorage
(name,) = SQLiteStorage.get_runs("one")
name = name["name"] if isinstance(name, dict) else name
print(json.dumps(SQLiteStorage.get_logs("one", name)))
"""


def rows(folder):
    place = folder / "metrics.jsonl"
    return [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []


@pytest.mark.slow
def test_an_interrupted_training_is_in_every_tracker_once(here, monkeypatch):
    pytest.importorskip("wandb", exc_type=ImportError)
    pytest.importorskip("trackio", exc_type=ImportError)
    read = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TRACKIO_DIR", str(here / "trackio"))
    for name in ("WANDB_MODE", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    (here / "one.yaml").write_text(ONE)

    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # behind a shell it is deaf
    with subprocess.Popen(LINE, stderr=subprocess.PIPE, text=True, **heard) as process:
        while not (folders := [one for one in here.glob("runs/train-*") if len(rows(one)) >= 3]):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    assert process.returncode == 130, err
    (folder,) = folders
    before = rows(folder)
    assert 3 <= len(before) < STEPS
    said = command("run", "one.yaml")
    assert said.code == 0, said.err
    assert "goes on from step" in said.err
    assert "gets no" not in said.err

    lines = rows(folder)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[: len(before)] == before
    assert table(folder) == numbers(lines)

    (place,) = (place for place in (folder / "tracked/tensorboard").iterdir() if place.is_dir())
    events = read.EventAccumulator(str(place), {"scalars": 0})
    events.Reload()
    held = {tag: [(e.step, e.value, e.wall_time) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert held == expected(lines)

    offline = sorted((folder / "tracked/wandb").glob("offline-run-*/*.wandb"))
    parts, about = zip(*map(wandb_rows, offline), strict=True)
    assert {one.run_id for one in about} == {json.loads((folder / "tracked/wandb/sent.json").read_text())["run"]}
    sent = [row for some in parts for row in some]
    once = {row["step"]: row for row in reversed(sent)}  # a step that a run has already is none of wandb's news
    assert [once[step] for step in sorted(once)] == lines
    if "wandb was too slow" not in err:
        assert sent == lines

    out = subprocess.run([sys.executable, "-c", TRACKIO], capture_output=True, text=True, check=True).stdout
    kept = [{**row, "time": row["wall_time"]} for row in json.loads(out.splitlines()[-1])]
    assert [{name: row[name] for name in line} for row, line in zip(kept, lines, strict=True)] == lines
