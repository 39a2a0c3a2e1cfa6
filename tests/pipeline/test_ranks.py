"""Which rank hangs or died, from what ranks leave in the folder of their stage."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from mmalign.io import beats
from mmalign.pipeline import ranks, stalled
from tests.conftest import TINY, command

HOST = "node2"


def leave(folder: Path, rank: int, done: int = 40, doing: str = "trains", **more: object) -> None:
    (folder / beats.FOLDER).mkdir(exist_ok=True)
    beat = {"rank": rank, "host": HOST, "process": 70 + rank, "done": done, "unit": "steps", "doing": doing}
    beats.place(folder, rank).write_bytes(beats.as_bytes({**beat, "time": 1.0 + rank, "alive": 1.0, **more}))


def test_a_rank_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(beats, "EVERY", 0.05)
    beats.tell(1)  # no rank yet: nothing
    before = time.time()
    beats.begin(tmp_path, 3)
    (beat,) = beats.of(tmp_path)
    assert (beat["rank"], beat["process"], beat["done"], beat["doing"]) == (3, os.getpid(), 0, "begins")
    beats.tell(7, "images", "a much longer word than the one before")
    beats.tell(doing="reads")
    (beat,) = beats.of(tmp_path)
    assert (beat["done"], beat["unit"], beat["doing"]) == (7, "images", "reads")
    assert before <= beat["time"] <= time.time()
    while beats.of(tmp_path)[0]["alive"] <= beat["alive"]:  # its thread
        time.sleep(0.01)
    assert beats.of(tmp_path)[0]["time"] == beat["time"]
    beats.end("why " * 1000 + "é")
    (beat,) = beats.of(tmp_path)
    assert beat["ended"] == ("why " * 75)
    assert beats.place(tmp_path, 3).stat().st_size == beats.SIZE
    beats.tell(9)
    assert beats.of(tmp_path)[0]["done"] == 7


def test_a_disk_without_room_ends_nothing(tmp_path):
    (tmp_path / beats.FOLDER).write_text("no folder")
    beats.begin(tmp_path, 0)
    beats.tell(1)
    beats.end()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rank": -1}', "\x00", "[" * 100_000])
def test_what_is_no_heartbeat_is_left_out(tmp_path, text):
    leave(tmp_path, 1)
    beats.place(tmp_path, 0).write_text(text)
    assert [beat["rank"] for beat in beats.of(tmp_path)] == [1]


def test_where_the_ranks_are(tmp_path):
    assert ranks.standing(tmp_path) == ""
    leave(tmp_path, 0)
    assert ranks.standing(tmp_path) == "40 steps done, trains"
    assert ranks.where(tmp_path, 0) == "40 steps done, trains"
    assert ranks.where(tmp_path, 1) == ""
    for rank in (1, 2, 3):
        leave(tmp_path, rank)
    assert ranks.standing(tmp_path) == "all 4 ranks: 40 steps done, trains"
    leave(tmp_path, 2, doing="waits for samples")
    said = "rank 2 (process 72 on node2): 40 steps done, waits for samples"
    assert ranks.where(tmp_path, 2) == said
    assert ranks.standing(tmp_path) == f"{said}; the others: 40 steps done, trains"
    assert ranks.of_process(tmp_path, 72) == " (rank 2: 40 steps done, waits for samples)"
    assert ranks.of_process(tmp_path, 1) == ""
    for rank in range(4, 20):
        leave(tmp_path, rank, done=41)
    assert ranks.standing(tmp_path).endswith("; the others: 41 steps done, trains")
    for rank in range(4, 8):
        leave(tmp_path, rank, done=rank)
    assert "; 4 more; the others: 41 steps done, trains" in ranks.standing(tmp_path)


def test_which_rank_ended_first(tmp_path):
    assert ranks.fate(tmp_path) == ""
    leave(tmp_path, 0, ended="raised RuntimeError: Connection closed by peer")
    assert ranks.fate(tmp_path) == ""  # alone, its log says it all
    leave(tmp_path, 1)
    silent = "rank 1 (process 71 on node2) ended without a word; 40 steps done, trains"
    assert ranks.fate(tmp_path) == silent
    leave(tmp_path, 2, ended="")
    assert ranks.fate(tmp_path) == silent
    ranks.left(tmp_path, {0: 1})
    why = "rank 0 (process 70 on node2) raised RuntimeError: Connection closed by peer; 40 steps done, trains"
    assert ranks.fate(tmp_path) == why  # the others were ended for it
    leave(tmp_path, 1, done=41, ended="raised ValueError: a bug")  # later, but not because a peer is gone
    assert ranks.fate(tmp_path) == "rank 1 (process 71 on node2) raised ValueError: a bug; 41 steps done, trains"
    leave(tmp_path, 3)
    ranks.left(tmp_path, {0: 1, 3: -9})
    assert ranks.fate(tmp_path) == "rank 3 (process 73 on node2) killed by signal 9; 40 steps done, trains"


def test_a_rank_whose_signs_of_life_end_is_named_once(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(ranks.time, "monotonic", lambda: now[0])
    absent = ranks.Absent(tmp_path)

    def passed(seconds, alive):
        told = []
        for _ in range(0, seconds, 10):
            now[0] += 10
            for rank in alive:
                leave(tmp_path, rank, done=41, alive=now[0])
            told += absent.look()
        return told

    leave(tmp_path, 1, alive=1.0)
    assert passed(170, [0, 2]) == []
    said = "no sign of life of rank 1 (process 71 on node2) for 3 minutes; 40 steps done, trains"
    assert passed(600, [0, 2]) == [said]
    assert passed(300, [0, 1, 2]) == []
    assert len(passed(300, [0, 2])) == 1
    assert passed(600, []) == []  # the folder lags: of none is there a sign


def test_silence_is_told_with_where_the_ranks_are(tmp_path, monkeypatch):
    for name in stalled.SIGNS:
        (tmp_path / name).touch()
    now = [1000.0]
    monkeypatch.setattr(stalled.time, "monotonic", lambda: now[0])
    looks, told = stalled.Stalled(tmp_path, os.getpid()), []
    for rank in range(2):
        leave(tmp_path, rank, done=9 + rank, alive=1.0)
    while not told:
        now[0] += 10
        for rank in range(2):
            leave(tmp_path, rank, done=9 + rank, alive=now[0])
        told = list(looks.look())
    where = "rank 0 (process 70 on node2): 9 steps done, trains; the other: 10 steps done, trains"
    assert told == [f"nothing heard of it for 10 minutes ({where}); it may be stuck, see {tmp_path / 'log.txt'}"]


STUCK = '''"""A data part that harms the second of two ranks at its third step."""

import os
import signal
from pathlib import Path

from mmalign.toyworld.data import Captions


class Stuck(Captions):
    def __init__(self, size: int, how: str) -> None:
        super().__init__(size)
        self.how, self.read = how, 0

    def __getitem__(self, number: int):
        self.read += 1
        if os.environ.get("RANK") == "1" and self.read > 30:
            Path("harmed").touch()
            if self.how == "raises":
                raise ZeroDivisionError("a bug of the plugin's own")
            os.kill(os.getpid(), signal.SIGSTOP if self.how == "stopped" else signal.SIGKILL)
        return super().__getitem__(number)
'''


@pytest.fixture
def two(tiny):
    """two(how): the tiny recipe's first training with two processes, of which the second comes to harm."""
    (tiny.parent / "stuck.py").write_text(STUCK)
    (tiny.parent / "shelf" / "data").mkdir(parents=True)
    (tiny.parent / "shelf" / "data" / "stuck.yaml").write_text("summary: stuck\ntarget: stuck.Stuck\n")
    tiny.write_text(TINY + "registry: [./shelf]\n")
    path = os.pathsep.join(filter(None, [str(tiny.parent), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path}
    words = ["stages.label=~", "stages.align=~", "stages.score=~", "stages.report=~", "stages.tune.reads=~"]
    words += ["stages.tune.steps=30", "--devices", "2"]

    def run(how: str):
        data = f"stages.tune.data={{card: stuck, args: {{size: 64, how: {how}}}}}"
        return command("run", "tiny.yaml", data, *words, cwd=tiny.parent, env=env)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "why"),
    [("killed", "killed by signal 9; "), ("raises", "raised ZeroDivisionError: a bug of the plugin's own; ")],
)
def test_a_rank_that_dies_is_named_with_its_last_step(two, here, how, why):
    said = two(how)
    assert said.code == 1, said.err
    (error,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: stage 'tune' ended with code 1: rank 1 (process "), said.err
    assert f") {why}" in error
    done = int(error.split(why)[1].split()[0])
    assert 1 <= done <= 8
    assert ("signal 9 often means out of memory: engine.workers: 1 -> 0, or " in said.err) == (how == "killed")
    (folder,) = here.glob("runs/train-*")
    assert json.loads((folder / "error.json").read_text())["what"] in error


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="stopped processes are seen in /proc")
def test_a_rank_that_is_stopped_is_named_and_the_run_goes_on_with_it(two, here):
    import threading

    said = []
    thread = threading.Thread(target=lambda: said.append(two("stopped")))
    thread.start()
    stopped = ranks_of(here, "harmed")[1]
    while stalled.state(stopped["process"]) != "stopped":
        time.sleep(0.1)
    time.sleep(4 * stalled.LOOK)
    (folder,) = here.glob("runs/train-*")
    by_rank = {beat["rank"]: beat for beat in beats.of(folder)}
    assert by_rank[1]["doing"] in ("waits for samples", "trains")
    while thread.is_alive():  # each record it reads stops it again
        if stalled.state(stopped["process"]) == "stopped":
            os.kill(stopped["process"], signal.SIGCONT)
        time.sleep(0.02)
    thread.join()
    assert said[0].code == 0, said[0].err
    told = f"process {stopped['process']} (rank 1: "
    assert told in said[0].err
    assert f" is stopped; kill -CONT {stopped['process']} lets it go on" in said[0].err
    assert not (folder / beats.FOLDER).exists()


def ranks_of(here: Path, mark: str) -> dict[int, beats.Beat]:
    until = time.monotonic() + 300
    while not (here / mark).exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    (folder,) = here.glob("runs/train-*")
    return {beat["rank"]: beat for beat in beats.of(folder)}
