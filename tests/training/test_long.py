"""A long run takes no more memory, files or threads at its end than at its beginning: the loop, its checkpoints, the
loader over many epochs, and the run that listens to it.

MMALIGN_STEPS says how many steps; each is tiny.
"""

import gc
import io
import json
import os
import sys
import threading
import time
from contextlib import redirect_stderr
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from mmalign.pipeline import run
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.plan.recipe import EngineSettings, Optim
from mmalign.training.batches import Batches
from mmalign.training.engine import Engine
from mmalign.training.events import Events
from mmalign.training.loop import Fit, Term
from mmalign.training.optim import groups
from tests.pipeline.test_run import Script
from tests.training.test_batches import chat, make
from tests.training.test_loop import Pass

__all__ = ["chat"]  # a fixture

pytestmark = pytest.mark.slow
STEPS = int(os.environ.get("MMALIGN_STEPS", "6000"))
ROWS = 10
WARM = 0.3  # of the steps, until which memory may grow
GROWTH = 12.0  # MiB from then on: two or three arenas of malloc for threads; objects are counted, see below


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.adapter = nn.Linear(3, 1)

    def forward(self, batch):
        return {"lm": self.adapter(batch.x).square().mean()}, {"pairs": torch.tensor(float(batch.images))}


class Looks:
    """What this process holds at some of the steps: (objects, MiB, open files, threads)."""

    def __init__(self, steps: int) -> None:
        self.every, self.found = max(1, steps // 20), []

    def __call__(self, done: int) -> bool:
        if done and not done % self.every:
            gc.collect()
            own = psutil.Process()
            self.found.append(
                (len(gc.get_objects()), own.memory_info().rss / 2**20, own.num_fds(), threading.active_count())
            )
        return False

    def assert_flat(self) -> None:
        told = "\n".join(f"{o:9} objects {m:8.1f} MiB {f:4} files {t:3} threads" for o, m, f, t in self.found)
        sys.stderr.write(f"{told}\n")
        later = self.found[int(WARM * len(self.found)) :]
        for number, most in ((0, 1000), (1, GROWTH), (2, 2), (3, 2)):  # a checkpoint may be being written
            # the least of three: lines that came at once are held while they are told
            first, last = (min(row[number] for row in rows) for rows in (later[:3], later[-3:]))
            assert last - first <= most, told


class Makes:
    """Passes of rows that are numbers."""

    def batch(self, numbers, seed):
        return Pass(
            torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 3), 1, seed, tuple(map(str, numbers))
        )


def test_training_with_its_loader_logs_and_checkpoints(tmp_path):
    net, optim = Net(), Optim(lr=1e-4, clip=0.0)
    engine = Engine(net, groups(net.named_parameters(), optim), optim, EngineSettings(zero=0), "fp32", 2, 1)
    batches, looks, began = Batches(Makes(), ROWS, 2, 2, seed=1, workers=2), Looks(STEPS), time.monotonic()
    fit = Fit(
        engine, lambda start: batches.run(start, STEPS), STEPS, optim, {"lm": Term(unit="tokens")}, tmp_path,
        Events(tmp_path), save_every=500, log_every=50, watchers=[looks],
    )  # fmt: skip
    assert fit.run()["step"] == STEPS
    sys.stderr.write(f"{STEPS} steps, {STEPS / (time.monotonic() - began):.0f} a second\n")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == STEPS / 50
    assert [place.name for place in (tmp_path / "checkpoints").iterdir() if place.name.startswith(".")] == []
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    looks.assert_flat()


def test_the_loader_over_many_epochs_of_real_rows(chat):
    steps = STEPS // 5
    looks = Looks(steps)
    for done, passes in enumerate(make(chat, rows=ROWS, workers=2).run(0, steps), 1):
        assert len(passes) == 2
        looks(done)
    assert steps * 4 // ROWS > 100  # epochs
    looks.assert_flat()


TALKS = """
import json, pathlib, sys, time
from mmalign.pipeline import task
folder = pathlib.Path(sys.argv[1])
given = task.load(folder)
for number in range({steps}):
    numbers = {{"loss": number / 7, "lr": 1e-3}} if number % 10 == 0 else {{}}
    line = {{"time": time.time(), "done": number + 1, "total": {steps}, "unit": "steps", "numbers": numbers}}
    with open(folder / "events.jsonl", "a") as out:
        out.write(json.dumps(line) + "\\n")
    if number % 50 == 0:
        time.sleep(0.005)
task.finish(given, {{"metrics": {{}}}}, 0.0, 1)
"""


def test_the_run_that_hears_of_every_step(tiny):
    from cli import live

    node = graph.plan(compose.load(tiny), "runs")[0]
    launch, looks, heard = Script(say={node.name: TALKS.format(steps=STEPS)}), Looks(STEPS), []
    with redirect_stderr(io.StringIO()):
        display = live.Lines(live.Rest([node], launch))

        class Show:
            begin, end = display.begin, display.end

            def event(self, node, event):
                display.event(node, event)
                heard[:] = [event["done"]]
                looks(event["done"])

        run.run([node], launch, Show())
    assert heard == [STEPS]
    looks.assert_flat()
    lines = Path(node.folder / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["done"] == len(lines) == STEPS
