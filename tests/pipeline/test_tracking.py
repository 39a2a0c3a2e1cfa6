"""Trackers: what they get of a stage, that they get it once, and that they cannot harm a run."""

import csv
import json
import math
import os
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mmalign.errors import CheckError, RecipeError, RunError, StageError
from mmalign.pipeline import feeding, recipes, run, task, trackers, tracking
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.plan import trackers as named
from tests.conftest import TINY
from tests.pipeline.test_run import DONE, Script, Told

STUDY = TINY + "matrix: {arms: {a: {}, b: {stages.tune.batch: 16}}, seeds: [1, 2]}\n"
LINES = [{"step": 2 * n, "loss": 1 / n, "lm": math.pi / n, "lr": 1e-3, "time": 1.79e9 + n} for n in range(1, 9)]
LINES[4]["cut_samples"] = 3.0  # a number that comes late, and goes again
TRAINED = f"""
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
if folder.name.startswith("train-"):
    for line in {LINES!r}:
        with open(folder / "metrics.jsonl", "a") as out:
            out.write(json.dumps(line) + "\\n")
        time.sleep(0.05)
{DONE}
"""


@dataclass
class Memory(trackers.Tracker):
    """Keeps what it gets in a list of the class."""

    run: trackers.Run
    sent: int

    rows = []
    closed = 0

    def send(self, rows):
        self.rows += rows

    def close(self):
        Memory.closed += 1


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "memory", Memory)
    monkeypatch.setattr(Memory, "rows", [])
    return Memory


def log(folder: Path, lines) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def nodes(tiny):
    """Two arms, two seeds; the stage.yaml of each is written."""
    tiny.write_text(STUDY)
    nodes = graph.plan(compose.load(tiny), "runs")
    for node in nodes:
        task.save(node)
    return nodes


@pytest.fixture
def stage(nodes) -> Path:
    """`tune` of arm b, seed 2, with its log."""
    (folder,) = (node.folder for node in nodes if (node.name, node.arms) == ("tune", ["b 2"]))
    log(folder, LINES)
    return folder


def feed(folder: Path, name: str, looks=(True,)) -> None:
    feeding.feed(folder, name, iter(looks))


def finish(nodes) -> None:
    scored = {"metrics": {"toy-perplexity": {"perplexity": 3.5}}, "headlines": {"toy-perplexity": "perplexity"}}
    for node in nodes:
        task.finish(task.load(node.folder), scored if node.stage.kind == "evaluate" else {"metrics": {}}, 0, 1)


def table(folder: Path) -> list[dict[str, float]]:
    """metrics.csv as rows of numbers."""
    with open(folder / "metrics.csv", newline="") as source:
        rows = list(csv.DictReader(source))
    return [{name: float(cell) for name, cell in row.items() if cell != ""} for row in rows]


def numbers(lines):
    return [{name: float(value) for name, value in line.items()} for line in lines]


# What is sent


def test_csv_has_every_number_a_line_a_step(stage):
    feed(stage, "csv")
    assert table(stage) == numbers(LINES)
    head = (stage / "metrics.csv").read_text().splitlines()[0]
    assert head == "step,loss,lm,lr,time,cut_samples"


def test_pandas_reads_the_csv(stage):
    pandas = pytest.importorskip("pandas")
    feed(stage, "csv")
    frame = pandas.read_csv(stage / "metrics.csv")
    assert frame["lm"].tolist() == [line["lm"] for line in LINES]
    assert frame["cut_samples"].count() == 1


def test_a_run_is_called_by_its_stage_arm_and_seed(nodes, stage):
    called = feeding.run_of(stage, "id")
    assert (called.project, called.name, called.group) == ("tiny", "tune b seed 2", "b")
    assert called.tags == ["train", "tune", "b"]
    assert called.settings["settings"]["batch"] == 16
    shared = feeding.run_of(next(node.folder for node in nodes if node.name == "align"), "id")
    assert (shared.name, shared.group, shared.tags) == ("align 2 arms seed 1", "2 arms", ["train", "align", "a", "b"])


def test_without_a_study_there_is_no_group(tiny):
    nodes = graph.plan(compose.load(tiny), "runs")
    task.save(nodes[1])
    called = feeding.run_of(nodes[1].folder, "id")
    assert (called.name, called.group, called.tags) == ("align seed 3", "", ["train", "align"])


def test_lines_are_sent_as_they_come_and_half_a_line_waits(stage, memory):
    whole = (stage / "metrics.jsonl").read_bytes()

    def looks():
        for part in (whole[:100], whole[: len(whole) // 2], whole[:-1]):
            (stage / "metrics.jsonl").write_bytes(part)
            yield False
            assert [row["step"] for row in memory.rows] == [2 * (n + 1) for n in range(part.count(b"\n"))]
        (stage / "metrics.jsonl").write_bytes(whole)
        yield True

    feed(stage, "memory", looks())
    assert memory.rows == LINES


def test_what_is_no_number_is_left_out(stage, memory):
    lines = ["nonsense", "[1]", '{"lm": 1}', '{"step": "2"}', '{"step": 1, "lm": 2.5, "name": "x", "on": true}']
    (stage / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    feed(stage, "memory")
    assert memory.rows == [{"step": 1, "lm": 2.5}]


def test_a_stage_without_numbers_opens_no_run(stage, memory, monkeypatch):
    (stage / "metrics.jsonl").unlink()
    monkeypatch.setattr(memory, "__init__", lambda *_: pytest.fail("opened"))
    feed(stage, "memory", [False, True])
    assert memory.rows == []


def test_headlines_of_an_evaluation_are_its_one_row(nodes, memory):
    finish(nodes)
    feed(next(node.folder for node in nodes if node.name == "score"), "memory", [False, True])
    assert memory.rows == [{"step": 0, "toy-perplexity/perplexity": 3.5}]
    feed(nodes[0].folder, "memory")  # of no other stage
    assert len(memory.rows) == 1


# Once, and without a gap


def test_a_resumed_stage_leaves_neither_gap_nor_repeat(stage, memory):
    log(stage, LINES[:5])
    feed(stage, "memory")  # and the run is killed
    log(stage, LINES[:6])  # more was written than was sent
    log(stage, LINES[:3])  # it goes on from an older checkpoint, which cuts its log back

    def looks():
        yield False
        log(stage, LINES[:6])
        yield False
        log(stage, LINES)
        yield True

    feed(stage, "memory", looks())
    assert memory.rows == LINES
    feed(stage, "memory")
    assert memory.rows == LINES


def test_a_log_that_is_cut_back_while_it_is_followed_repeats_nothing(stage, memory):
    def looks():
        yield False
        log(stage, LINES[:2])  # a new file: the worker's trim renames
        yield False
        for count in range(3, 9):
            log(stage, LINES[:count])
            yield count == 8

    log(stage, LINES[:6])
    feed(stage, "memory", looks())
    assert memory.rows == LINES


def test_a_resumed_csv_is_the_log_as_it_is_at_last(stage):
    log(stage, [{**line, "time": 0.0} for line in LINES[:5]])
    feed(stage, "csv")
    log(stage, LINES)
    feed(stage, "csv")
    assert table(stage) == numbers(LINES)


def test_what_was_sent_goes_on_as_the_same_run(stage, memory, monkeypatch):
    runs = []
    monkeypatch.setattr(memory, "__init__", lambda self, run, sent: runs.append((run.id, sent)))
    log(stage, LINES[:5])
    feed(stage, "memory")
    log(stage, LINES)
    feed(stage, "memory")
    assert runs == [(runs[0][0], -1), (runs[0][0], 10)]
    assert runs[0][0].startswith(f"{stage.name}-")


def test_what_a_tracker_only_keeps_once_closed_is_noted_then(stage, memory, monkeypatch):
    monkeypatch.setattr(memory, "keeps", False)
    monkeypatch.setattr(memory, "close", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        feed(stage, "memory")
    assert json.loads((stage / "tracked/memory/sent.json").read_text())["step"] == -1


# The packages


def events(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (place,) = (place for place in (folder / "tracked/tensorboard").iterdir() if place.is_dir())
    assert place.name == "tune b seed 2"
    read = accumulator.EventAccumulator(str(place), {"scalars": 0})
    read.Reload()
    return {tag: [(e.step, e.value, e.wall_time) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def single(value: float) -> float:
    """As a 32-bit number, which TensorBoard's are."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def expected(lines) -> dict[str, list[tuple[int, float, float]]]:
    tags = {name for line in lines for name in line} - {"step", "time"}
    return {tag: [(one["step"], single(one[tag]), one["time"]) for one in lines if tag in one] for tag in tags}


def test_tensorboards_events_are_the_log(stage):
    pytest.importorskip("tensorboard")
    feed(stage, "tensorboard")
    assert events(stage) == expected(LINES)


def test_a_resumed_tensorboard_has_each_step_once(stage):
    pytest.importorskip("tensorboard")
    log(stage, LINES[:5])
    feed(stage, "tensorboard")
    memory = stage / "tracked/tensorboard/sent.json"
    noted = json.loads(memory.read_text())
    memory.write_text(json.dumps({**noted, "step": 6}))  # killed between sending step 10 and noting it
    time.sleep(1.1)  # its files are told apart by the second
    log(stage, LINES)
    feed(stage, "tensorboard")
    assert events(stage) == expected(LINES)


def process(folder: Path, name: str) -> None:
    """As a run does, so that what the package starts ends with it."""
    assert tracking.start(name, folder, -3).wait(120) == 0, (folder / "tracked" / name / "log.txt").read_text()


def test_wandb_is_offline_and_has_the_log(stage, monkeypatch):
    pytest.importorskip("wandb", exc_type=ImportError)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    log(stage, LINES[:5])
    process(stage, "wandb")
    log(stage, LINES)
    process(stage, "wandb")
    places = sorted((stage / "tracked/wandb").glob("offline-run-*/*.wandb"))
    rows, about = zip(*map(wandb_rows, places), strict=True)
    assert [[row["step"] for row in some] for some in rows] == [[2, 4, 6, 8, 10], [12, 14, 16]]
    assert [row for some in rows for row in some] == LINES
    assert {(one.project, one.display_name, one.run_group, one.run_id) for one in about} == {
        ("tiny", "tune b seed 2", "b", json.loads((stage / "tracked/wandb/sent.json").read_text())["run"])
    }
    assert list(about[0].tags) == ["train", "tune", "b"]


def records(file: bytes):
    """Of LevelDB's log: blocks of 32 KB; a piece has a checksum, a length and 1 whole, 2 first, 3 middle, 4 last."""
    at, whole = 7, b""  # behind the file's own head
    while at + 7 <= len(file):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", file[at : at + 7])
        whole += file[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""


def wandb_rows(place: Path):
    """(its rows, its run) of an offline run's file."""
    from wandb.proto import wandb_internal_pb2

    rows, about = [], None
    for raw in records(place.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        if record.HasField("run"):
            about = record.run
        if record.HasField("history"):
            row = {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            step = record.history.step.num or row.get("_step")
            rows.append({"step": step, **{name: value for name, value in row.items() if name[0] != "_"}})
    return rows, about


def test_trackio_is_local_and_has_the_log_once(stage, monkeypatch, tmp_path):
    pytest.importorskip("trackio", exc_type=ImportError)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    log(stage, LINES[:5])
    process(stage, "trackio")
    memory = stage / "tracked/trackio/sent.json"
    memory.write_text(json.dumps({**json.loads(memory.read_text()), "step": 4}))  # killed before it was noted
    log(stage, LINES)
    process(stage, "trackio")
    run_id = json.loads(memory.read_text())["run"]
    code = f"""
import json
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps(SQLiteStorage.get_logs("tiny", "tune b seed 2 {run_id[-6:]}")))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    rows = [{**row, "time": row["wall_time"]} for row in json.loads(said.splitlines()[-1])]
    assert [{name: row[name] for name in line} for row, line in zip(rows, LINES, strict=True)] == LINES


# In a run


@dataclass
class Study(Script):
    say: dict[str, str] = field(default_factory=lambda: dict.fromkeys(["label", "align", "tune", "report"], TRAINED))


def test_a_run_feeds_every_stage_with_numbers(tiny):
    nodes = graph.plan(compose.load(tiny, ["log_to=[csv]"]), "runs")
    told = Told()
    run.run(nodes, Study(), told)
    assert told.ran == ["label", "align", "tune", "score", "report"]
    assert {event["say"] for what, _, *rest in told.heard if what == "event" for event in rest if "say" in event} == {
        "hello"
    }
    for node in nodes:
        assert (node.folder / "metrics.csv").exists() == (node.stage.kind == "train")
        listed = json.loads((node.folder / "stage.json").read_text())["files"]
        assert not [name for name in listed if name.startswith(("tracked", "metrics.csv"))]  # written after it, too
        assert "resumed" not in json.loads((node.folder / "stage.json").read_text())
    assert table(nodes[1].folder) == numbers(LINES)


BROKEN = """
def init(**_):
    raise OSError("no network")
class Settings:
    def __init__(self, **_): ...
"""
SLOW = "import time\ntime.sleep(60)\n"


@pytest.mark.parametrize(
    ("package", "said"),
    [(BROKEN, "wandb gets no more numbers of this stage: OSError no network"), (SLOW, "wandb was too slow; `mmalign")],
    ids=["broken", "slow"],
)
def test_a_tracker_that_fails_says_so_once_and_the_run_goes_on(tiny, monkeypatch, package, said):
    Path("site").mkdir()
    Path("site/wandb.py").write_text(package)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path("site").absolute()), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(tracking, "WAIT", 3.0)
    nodes = graph.plan(compose.load(tiny, ["log_to=[wandb,csv]"]), "runs")
    told = Told()
    run.run(nodes, Study(), told)
    assert told.ran == ["label", "align", "tune", "score", "report"]
    notes = [(name, rest[0]["say"]) for what, name, *rest in told.heard if what == "event" and "say" in rest[0]]
    notes = [(name, text) for name, text in notes if text != "hello"]
    assert [name for name, _ in notes] == ["align", "tune"]
    assert all(text.startswith(said) for _, text in notes)
    assert all(node.done for node in nodes)
    assert table(nodes[1].folder) == numbers(LINES)  # the other one has all


def test_log_to_changes_no_folder(tiny):
    plain, tracked = (
        [node.folder for node in graph.plan(compose.load(tiny, words), "runs")]
        for words in ([], ["log_to=[csv,tensorboard]"])
    )
    assert plain == tracked


# What a user may name


def test_an_unknown_tracker_is_a_mistake_with_its_line(tiny):
    tiny.write_text(TINY + "log_to: [csv, tensorbord]\n")
    with pytest.raises(RecipeError, match="tensorbord") as caught:
        compose.load(tiny)
    assert caught.value.at.startswith(f"{tiny}:{len(TINY.splitlines()) + 1}") or "log_to.1" in caught.value.at
    assert caught.value.fix == "did you mean 'tensorboard'?"
    with pytest.raises(CheckError, match="no tracker 'wanb'") as caught:
        named.listed("csv,wanb")
    assert (caught.value.at, caught.value.fix) == ("--log-to", "did you mean 'wandb'?")
    assert named.listed("csv, wandb,csv") == ["csv", "wandb"]


def test_one_tracker_needs_no_list(tiny):
    tiny.write_text(TINY + "log_to: csv\n")
    assert compose.load(tiny)[0].log_to == ["csv"]


def test_a_missing_package_is_told_before_any_stage_runs(tiny, mmalign, monkeypatch):
    spec = named.packages.spec
    monkeypatch.setattr(named.packages, "spec", lambda name: None if name in named.NAMES else spec(name))
    tiny.write_text(TINY + "log_to: [csv, trackio]\n")
    with pytest.raises(CheckError) as caught:
        recipes.preview(tiny)
    assert caught.value.what == "the tracker trackio needs the package trackio, which is not installed"
    assert caught.value.at == f"{tiny}:{len(TINY.splitlines()) + 1}  log_to"
    assert caught.value.fix == 'pip install "mmalign[trackio]", or without trackio'
    said = mmalign("run", "tiny.yaml", "--log-to", "wandb")
    assert said.code == 2
    assert "needs the package wandb" in said.err
    assert not Path("runs").exists() or not list(Path("runs").glob("*-*"))
    assert recipes.preview(tiny, ahead=True).notes[0].startswith("the tracker trackio needs")


def test_the_command_line_wants_trackers_that_are_there(tiny, mmalign):
    said = mmalign("run", "tiny.yaml", "--log-to", "csw")
    assert said.code == 2
    assert said.err.splitlines() == ["error: no tracker 'csw'", "  at   --log-to", "  try  did you mean 'csv'?"]


# Afterwards


def test_a_report_feeds_finished_stages(nodes, stage, mmalign):
    for node in nodes:
        if node.stage.kind == "train":
            log(node.folder, LINES)
    finish(nodes)
    said = mmalign("report", "runs", "--log-to", "csv")
    assert said.code == 0, said.err
    trained = [node for node in nodes if node.stage.kind == "train"]
    assert all(table(node.folder) == numbers(LINES) for node in trained)
    scores = [node for node in nodes if node.name == "score"]
    assert all(table(node.folder) == [{"step": 0.0, "toy-perplexity/perplexity": 3.5}] for node in scores)
    assert len(said.out.splitlines()) == len(trained) + len(scores)
    assert f"{stage.relative_to(stage.parent.parent)}: its numbers are in csv" in said.out
    assert mmalign("doctor", "runs").code == 0


def test_a_stage_stands_for_all_it_rests_on(nodes, stage):
    finish(nodes)
    align = next(other.folder for node in nodes if node.folder == stage for _, other in node.reads)
    assert list(tracking.stages(stage)) == [align, stage]


def test_a_report_of_nothing_and_a_tracker_that_fails_are_told(nodes, stage, mmalign, tmp_path):
    with pytest.raises(RunError, match="no finished stage with numbers"):
        tracking.afterwards([tmp_path / "elsewhere"], ["csv"])
    finish(nodes)
    (stage / "tracked/csv").mkdir(parents=True)
    (stage / "tracked/csv/sent.json").write_text("[]")
    with pytest.raises(StageError) as caught:
        tracking.afterwards([stage], ["csv"])
    assert caught.value.what.startswith("csv: ")
    assert caught.value.at == str(stage)
    said = mmalign("report", "runs", "elsewhere")
    assert (said.code, said.err.splitlines()[0]) == (2, "error: 2 folders, and one report is printed")
