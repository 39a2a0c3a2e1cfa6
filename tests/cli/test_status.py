"""`mmalign status` and `mmalign logs`: success, failure, kill -9, Ctrl-C and two runs at once, each told apart."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from mmalign.cli import live, show
from mmalign.cli import status as verb

from mmalign.io import beats
from mmalign.pipeline import ended, lock, records, run, status, task
from mmalign.pipeline.standing import Standing
from mmalign.pipeline.status import Row, Run
from mmalign.plan import graph
from mmalign.plan import read as compose
from tests.pipeline.test_run import DONE, ORDER, Script

FAILS = "from mmalign.pipeline import ended; print('last words'); ended.write({}, 'lm is nan', 'samples a', 'less')"
ALIGN = f"import pathlib, sys; {FAILS.format('pathlib.Path(sys.argv[1])')}; sys.exit(1)"
TOOK = DONE.replace("0.0, 1)", "__import__('time').time() - 60, 1)")  # a minute
REPORT = f"import pathlib, sys; (pathlib.Path(sys.argv[1]) / 'report.json').write_text('{{\"cells\": []}}')\n{TOOK}"
RUN = [sys.executable, "-c", "from mmalign.cli import entry; entry()", "run", "tiny.yaml"]


@pytest.fixture
def plan(tiny):
    return lambda *words: graph.plan(compose.load(tiny, words), "runs")


@pytest.fixture
def scripted(monkeypatch):
    """`mmalign run` whose stages are scripts."""

    def stages(**say):
        monkeypatch.setattr(
            run.Launch, "command", Script(say={**dict.fromkeys(ORDER, TOOK), "report": REPORT, **say}).command
        )

    stages()
    return stages


def states(mmalign, command="status"):
    """{stage: state} by both verbs."""
    said = mmalign("status", "--json") if command == "status" else mmalign("plan", "tiny.yaml", "--json")
    assert said.code == 0, said.err
    content = json.loads(said.out)
    rows = [row for one in content["runs"] for row in one["stages"]] if command == "status" else content["stages"]
    return {row["stage"]: row["state"] for row in rows}


@pytest.fixture
def watched(monkeypatch, capsys):
    """What `mmalign watch runs` draws last, in lines: until it ends by itself, or of what goes on once."""

    def once(_):
        raise KeyboardInterrupt

    def draw():
        capsys.readouterr()
        with monkeypatch.context() as patched:
            patched.setattr(sys.stdout, "isatty", lambda: True)
            patched.setattr(verb.time, "sleep", once)
            try:
                verb.watch(Path("runs"))
                goes_on = False
            except KeyboardInterrupt:
                goes_on = True
        return goes_on, squeezed(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out).strip())

    return draw


def finish(nodes, seconds=60):
    """As if the stages had taken so long."""
    for node in nodes:
        task.save(node)
        task.finish(task.load(node.folder), {"metrics": {}}, time.time() - seconds, 1)


def squeezed(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_after_success(tiny, mmalign, scripted, plan, watched):
    assert mmalign("run", "tiny.yaml").code == 0
    assert states(mmalign) == dict.fromkeys(ORDER, "done")
    assert states(mmalign, "plan") == dict.fromkeys(ORDER, "done")
    lines = squeezed(mmalign("status", "runs").out)
    assert re.fullmatch(r"tiny done: began at [-\d]{10} [:\d]{8}, 5 of 5 stages done", lines[0])
    assert lines[1] == "stage how far time folder"
    assert re.fullmatch(rf"done align \d+ s {plan()[1].folder}", lines[3])
    assert len(lines) == 7
    assert watched() == (False, lines)


def test_after_a_failure(tiny, mmalign, scripted, plan, watched):
    scripted(align=ALIGN)
    said = mmalign("run", "tiny.yaml")
    folder = plan()[1].folder
    log = folder / "log.txt"
    assert said.code == 1
    told = ["error: stage 'align': lm is nan", "  at   samples a", "  try  less", f"  log  {log}"]
    assert said.err.splitlines()[-4:] == told  # a message of its own needs no end of the log behind it
    expected = {"label": "done", "align": "failed", "tune": "not run", "score": "not run", "report": "not run"}
    assert states(mmalign) == expected
    planned = {"align": "failed: lm is nan", "tune": "after align", "score": "after tune", "report": "after score"}
    assert states(mmalign, "plan") == {"label": "done", **planned}
    for words in (["status"], ["plan", "tiny.yaml"]):
        lines = mmalign(*words).out.splitlines()
        (at,) = (number for number, line in enumerate(lines) if line.startswith("align failed at "))
        assert re.fullmatch(r"align failed at [-\d]{10} [:\d]{8}: lm is nan", lines[at])
        assert lines[at + 1 : at + 4] == ["  at   samples a", "  try  less", f"  log  {log}"]
    lines = squeezed(mmalign("status").out)
    assert lines[0].startswith("tiny failed: began at ")
    assert lines[0].endswith(", 1 of 5 stages done")
    assert f"not run tune after align {plan()[2].folder}" in lines
    assert watched() == (False, lines)
    for words in (["status"], ["plan", "tiny.yaml"]):
        content = json.loads(mmalign(*words, "--json").out)
        rows = content["stages"] if words[0] == "plan" else content["runs"][0]["stages"]
        failed = rows[1]["failed"]
        assert 0 <= time.time() - failed.pop("time") < 60
        assert failed == {
            "what": "lm is nan", "at": "samples a", "fix": "less", "log": str(log), "folder": str(folder),
        }  # fmt: skip
        assert rows[0]["failed"] is None
    scripted()
    assert mmalign("run", "tiny.yaml").code == 0
    assert states(mmalign) == dict.fromkeys(ORDER, "done")


def test_a_place_that_is_the_log_itself_is_said_once(tiny, mmalign, scripted, plan):
    scripted(align="import sys; sys.exit(3)")
    said = mmalign("run", "tiny.yaml")
    log = plan()[1].folder / "log.txt"
    fix = "the last lines of its log"
    assert said.err.splitlines()[-3:] == [
        "error: stage 'align' ended with code 3", f"  at   {log}", f"  try  {fix} are below",
    ]  # fmt: skip
    lines = mmalign("status").out.splitlines()
    (at,) = (number for number, line in enumerate(lines) if line.startswith("align failed at "))
    assert lines[at + 1 :] == [f"  try  {fix} (mmalign logs {log.parent})", f"  log  {log}"]


def free():
    """Wait until the stage that was begun has ended, too: it outlives the run by a moment."""
    while lock.holder(next(Path("runs").glob("label-*/lock"))):
        time.sleep(0.01)


def test_while_it_runs_beside_another_and_after_kill_9_and_ctrl_c(tiny, mmalign, watched):
    """With the real command and its real first stage."""
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # behind a shell it is deaf

    def begun():
        process = subprocess.Popen(RUN, cwd=tiny.parent, stderr=subprocess.PIPE, text=True, **heard)
        assert process.stderr.readline().startswith("label: begins   runs/label-")
        return process

    waits = dict.fromkeys(ORDER[1:], "waits")
    with begun() as one:
        owner = f"process {one.pid} on {socket.gethostname()}"
        assert states(mmalign) == {"label": "running", **waits}
        assert states(mmalign, "plan")["label"] == f"running: {owner}"
        two = mmalign("run", "tiny.yaml")
        assert two.code == 2
        assert two.err.splitlines()[-3] == f"error: {owner} is working in this folder"
        lines = squeezed(mmalign("status").out)
        assert re.fullmatch(rf"tiny running: {owner} since .*, 0 of 5 stages done, time left not known yet", lines[0])
        assert lines[2].startswith(f"running label {owner}")
        assert lines[3].startswith("waits align after label runs/train-")
        goes_on, drawn = watched()
        assert goes_on
        assert any(line.startswith(f"running label {owner}") or "/48 records" in line for line in drawn)
        one.kill()
    free()
    not_run = dict.fromkeys(ORDER[1:], "not run")
    assert states(mmalign) == {"label": "killed", **not_run}
    assert states(mmalign, "plan")["label"] == "killed; goes on"
    assert squeezed(mmalign("status").out)[0].startswith("tiny killed: began at ")
    goes_on, drawn = watched()
    assert (goes_on, drawn[0].partition(":")[0]) == (False, "tiny killed")
    assert any(line.startswith("killed label ") for line in drawn)
    with begun() as one:
        one.send_signal(signal.SIGINT)
        assert one.wait() == 130
    free()
    assert states(mmalign) == {"label": "interrupted", **not_run}
    assert states(mmalign, "plan")["label"] == "interrupted (Ctrl-C); goes on"
    goes_on, drawn = watched()
    assert (goes_on, drawn[0].partition(":")[0]) == (False, "tiny interrupted")
    assert any(line.startswith("interrupted label ") and "(Ctrl-C); goes on" in line for line in drawn)


def test_two_runs_of_different_recipes_in_one_folder(tiny, mmalign, plan, monkeypatch):
    """Each has its own plan; the older of a recipe is forgotten once it is over."""
    one, two = plan(), plan("name=other", "stages.tune.batch=16")
    with records.recorded(one, 1) as begin, records.recorded(two, 1) as too:
        begin(), too()
        content = json.loads(mmalign("status", "--json").out)["runs"]
        assert [(run_["recipe"], run_["state"], run_["owner"]) for run_ in content] == [
            ("tiny", "running", lock.owner()), ("other", "running", lock.owner()),
        ]  # fmt: skip
        with records.recorded(plan("seed=9"), 1) as three:
            three()
            assert len(records.of(Path("runs"))) == 3  # one of them still runs
    with records.recorded(plan("seed=10"), 1) as four:
        four()
    assert [(r.run["recipe"], r.live) for r in records.of(Path("runs"))] == [("other", False), ("tiny", False)]


def test_an_equal_run_beside_leaves_the_first_ones_plan(plan):
    with records.recorded(plan(), 1) as one, records.recorded(plan(), 2) as two:
        one()
        (before,) = records.of(Path("runs"))
        two()
        assert records.of(Path("runs")) == [before]


def test_a_run_goes_on_where_its_plan_cannot_be_kept(tiny, mmalign, scripted):
    Path("runs").mkdir()
    Path("runs/.runs").touch()
    assert mmalign("run", "tiny.yaml").code == 0
    assert states(mmalign) == dict.fromkeys(ORDER, "done")  # by their own files


ELSEWHERE = json.dumps({
    "recipe": "evil", "owner": "", "began": 0,
    "stages": [{"name": "a", "kind": "a", "arms": [], "folder": "/etc", "reads": [], "what": {}, "devices": 1}],
})  # fmt: skip


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recipe": 1}', ELSEWHERE])
def test_a_plan_that_cannot_be_read_is_passed_over(tiny, mmalign, plan, text):
    finish(plan())
    Path("runs/.runs").mkdir()
    Path("runs/.runs/a.json").write_text(text)
    assert states(mmalign) == dict.fromkeys(ORDER, "done")


def test_stages_of_no_known_run_stand_under_their_recipe(tiny, mmalign, plan):
    nodes = plan()
    for node in nodes[:2]:
        task.save(node)
    ended.write(nodes[1].folder, "lm is nan", "", "")
    set_aside = nodes[0].folder.with_name(f"{nodes[0].folder.name}.old-1")
    set_aside.mkdir()
    (set_aside / "stage.yaml").touch()
    Path("runs/label-111111111111").mkdir()
    Path("runs/label-111111111111/stage.yaml").write_text("{")
    content = json.loads(mmalign("status", "--json").out)["runs"]
    rows = {run_["recipe"]: [(row["stage"], row["state"]) for row in run_["stages"]] for run_ in content}
    assert rows == {"tiny": [("label", "killed"), ("align", "failed")], "": [("label-111111111111", "killed")]}
    assert "of no recipe   killed: 0 of 1 stages done" in mmalign("status").out


def test_no_folder_and_an_empty_one(here, mmalign):
    said = mmalign("status")
    assert said.code == 2
    assert said.err == "error: no folder runs\n  at   runs\n  try  mmalign run quickstart, or another --runs\n"
    Path("runs").mkdir()
    assert mmalign("status").out == "nothing ran in runs\n"
    assert json.loads(mmalign("status", "--json").out)["runs"] == []


# The time left


def row(state, left=None, **more):
    return Row("tune", "train", [], Path("runs/train-a"), Standing(state), left=left, **more)


@pytest.mark.parametrize(
    ("rows", "unknown", "text"),
    [
        ([row("running", 30.0), row("waits", 60.0)], [], "about 90 s left"),
        (
            [row("running", 30.0), row("waits", 6000.0), row("waits")],
            ["score", "score"],
            "over 1 h 40 min left (of score not known yet)",
        ),
        ([row("running"), row("waits")], ["tune", "score"], "time left not known yet"),
    ],
)
def test_time_left_is_over_all_stages_and_says_of_which_it_is_not_known(rows, unknown, text):
    assert verb.left(Run("tiny", rows, live=True, unknown=unknown)) == text


def test_a_number_out_of_a_damaged_file_ends_no_look():
    for number in (float("inf"), float("nan"), -1.0, 1e300):
        assert show.clock(number) == "?"


def test_silence_is_told_and_is_no_state(tiny, mmalign, plan):
    node = plan()[0]
    with lock.locked(node.folder):
        task.save(node)
        (node.folder / "log.txt").touch()
        os.utime(node.folder / "log.txt", (time.time() - 1200,) * 2)
        (node.folder / "events.jsonl").touch()
        assert "nothing heard" not in mmalign("status").out
        os.utime(node.folder / "events.jsonl", (time.time() - 900,) * 2)
        assert f"running label {lock.owner()}; nothing heard of it for 15 min" in " ".join(
            mmalign("status").out.split()
        )


def test_of_a_silent_stage_its_ranks_are_told(tiny, mmalign, plan):
    node = plan()[0]
    with lock.locked(node.folder):
        task.save(node)
        (node.folder / "events.jsonl").touch()
        os.utime(node.folder / "events.jsonl", (time.time() - 900,) * 2)
        (node.folder / beats.FOLDER).mkdir()
        for rank in range(3):
            doing = "waits for samples" if rank == 1 else "trains"
            beat = {"rank": rank, "host": "node2", "process": 7, "done": 40, "unit": "steps", "doing": doing}
            beats.place(node.folder, rank).write_bytes(beats.as_bytes({**beat, "time": 1.0, "alive": 1.0}))
        said = "rank 1 (process 7 on node2): 40 steps done, waits for samples; the others: 40 steps done, trains"
        assert f"nothing heard of it for 15 min ({said})" in " ".join(mmalign("status").out.split())


def test_spikes_of_a_stage_that_runs_are_counted(tiny, mmalign, plan):
    node = plan()[0]
    with lock.locked(node.folder):
        task.save(node)
        (node.folder / "events.jsonl").touch()
        lines = [{"step": step, "what": "loss", "value": 4.0, "usual": 2.0, "samples": []} for step in (80, 410)]
        assert json.loads(mmalign("status", "--json").out)["runs"][0]["stages"][0]["spikes"] == 0
        (node.folder / "spikes.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        said = " ".join(mmalign("status").out.split())
        assert f"{lock.owner()}; 2 spikes, the last of the loss by step 410" in said
        assert json.loads(mmalign("status", "--json").out)["runs"][0]["stages"][0]["spikes"] == 2
        (node.folder / "spikes.jsonl").write_text(json.dumps(lines[0]) + "\nnonsense")
        assert "1 spike, the last of the loss by step 80" in " ".join(mmalign("status").out.split())


def test_the_time_of_stages_that_wait_is_that_of_their_like(tiny, mmalign, plan):
    finish(plan())
    again = plan("seed=4", "stages.tune.steps=12")
    with records.recorded(again, 1) as begin, lock.locked(again[1].folder):
        begin()
        (run_,) = json.loads(mmalign("status", "--json").out)["runs"][-1:]
        left = [stage["left"] and round(stage["left"]) for stage in run_["stages"]]
        assert left == [None, 60, 120, 60, 60]  # nothing is done yet of align
        assert (round(run_["left"]), run_["unknown"]) == (300, [])
        assert "about 5 min left" in mmalign("status").out
        task.save(again[1])
        os.utime(again[1].folder / "stage.yaml", (time.time() - 20,) * 2)
        assert status.of(Path("runs"))[-1].rows[1].left == pytest.approx(40, abs=2)
        moments = [{"time": time.time() - 20 + n, "done": n, "total": 40, "numbers": {}} for n in (10, 20)]
        (again[1].folder / "events.jsonl").write_text("".join(f"{json.dumps(moment)}\n" for moment in moments))
        (run_,) = json.loads(mmalign("status", "--json").out)["runs"][-1:]
        assert run_["stages"][1]["left"] == pytest.approx(20, abs=2)
        assert (run_["stages"][1]["done"], run_["stages"][1]["total"]) == (20, 40)


def test_the_command_itself_says_the_time_left_of_all_stages(plan):
    finish(plan())
    for words, told in (
        (["seed=4"], "40 s left, 4 min in all"), (["stages.tune.batch=16"], "40 s left, over 3 min in all"),
    ):  # fmt: skip
        nodes = plan("seed=4", *words)
        rest = live.Rest(nodes, run.Launch())
        rest.begin(nodes[1])
        assert rest.text(40.0) == told
        assert rest.text(None) == ""
        rest.begin(nodes[4])
        assert rest.text(40.0) == "40 s left"


def test_the_newest_losses_of_a_stage_that_runs(tiny, mmalign, plan):
    folder = plan()[1].folder
    finish(plan()[:1])
    with records.recorded(plan(), 1) as begin, lock.locked(folder):
        begin()
        (folder / "metrics.jsonl").write_text('{"step": 2, "lm": 2.5, "lr": 0.001, "time": 1e9}\n')
        (folder / "events.jsonl").write_text('{"done": 2, "total": 6, "unit": "steps"}\n')
        assert "2/6 steps; process" in mmalign("status").out
        assert json.loads(mmalign("status", "--json").out)["runs"][0]["stages"][1]["unit"] == "steps"
        assert mmalign("status").out.splitlines()[-1] == "align: lm 2.5  lr 0.001"
        (run_,) = json.loads(mmalign("status", "--json").out)["runs"]
        assert [row["metrics"] for row in run_["stages"][:3]] == [{}, {"lm": 2.5, "lr": 0.001}, {}]
    assert "lm 2.5" not in mmalign("status").out


# Watching


def test_watch_needs_a_terminal(here, mmalign):
    said = mmalign("watch", "runs")
    assert said.code == 2
    what = "error: watch draws on a terminal, and here is none\n  at   stdout\n  try  mmalign status runs\n"
    assert said.err == what


def test_watch_draws_until_nothing_runs(tiny, capsys, plan, monkeypatch):
    node = plan()[0]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with ExitStack() as stack:
        begin = stack.enter_context(records.recorded(plan()[:1], 1))
        stack.enter_context(lock.locked(node.folder))
        begin()

        def end(seconds):
            assert seconds == verb.EVERY
            finish([node])
            stack.close()

        monkeypatch.setattr(verb.time, "sleep", end)
        verb.watch(Path("runs"))
    out = capsys.readouterr().out
    assert "tiny   done: began at " in out
    assert f"done  label           60 s  {node.folder}" in out


# Logs


def test_a_log_by_its_name_or_its_folder(tiny, mmalign, scripted, plan):
    scripted(label=f"print('one\\x1b[31m'){TOOK}")
    assert mmalign("run", "tiny.yaml").code == 0
    folder = plan()[0].folder
    for word in ("label", folder.name, str(folder), f"{folder.absolute()}/"):
        said = mmalign("logs", word)
        assert (said.code, said.out, said.err) == (0, "one\\u001b[31m\n", "")
    said = mmalign("logs", "label", "-f")
    assert (said.out, said.err) == ("one\\u001b[31m\n", "label: done\n")


def test_of_several_logs_that_of_the_stage_that_runs_else_the_newest(tiny, mmalign, plan):
    one, two = plan()[0], plan("stages.label.keep=1")[0]
    for number, node in enumerate((one, two)):
        task.save(node)
        (node.folder / "log.txt").write_text(f"{number}\n")
        os.utime(node.folder / "log.txt", (number, number))
    said = mmalign("logs", "label")
    assert said.out == "1\n"
    assert said.err == f"note: {two.folder / 'log.txt'}, of 2 stages with this name: {one.folder.name}\n"
    with lock.locked(one.folder):
        assert mmalign("logs", "label").out == "0\n"


def test_a_log_that_is_not_there(tiny, mmalign, plan):
    nodes = plan()
    with records.recorded(nodes, 1) as begin:
        begin()
    task.save(nodes[0])
    said = mmalign("logs", "lable")
    assert said.code == 2
    assert said.err == "error: no stage 'lable' in runs\n  at   runs\n  try  did you mean 'label'?\n"
    said = mmalign("logs", "align")
    assert said.code == 2
    what = f"error: stage 'align' has no log: it was not begun\n  at   {nodes[1].folder}\n  try  mmalign status runs\n"
    assert said.err == what


def test_a_log_is_followed_until_its_folder_is_free(tiny, mmalign, plan, monkeypatch):
    from mmalign.pipeline import logs

    node = plan()[0]
    go_on = threading.Event()

    def work():
        with lock.locked(node.folder):
            task.save(node)
            with open(node.folder / "log.txt", "a") as log:
                log.write("one\n")
                log.flush()
                go_on.set()
                looked.wait(20)
                log.write("two\n")
            ended.write(node.folder, "lm is nan", "", "")

    looked = threading.Event()
    monkeypatch.setattr(logs.time, "sleep", lambda _: looked.set())
    thread = threading.Thread(target=work)
    thread.start()
    go_on.wait(20)
    said = mmalign("logs", "label", "--follow")
    thread.join()
    assert (said.code, said.out, said.err) == (0, "one\ntwo\n", "label: failed: lm is nan\n")


def test_a_letter_that_is_cut_between_two_pieces_is_whole(tmp_path, monkeypatch):
    from mmalign.pipeline import logs

    monkeypatch.setattr(logs, "CHUNK", 1)
    (tmp_path / "log.txt").write_text("é\n", encoding="utf-8")
    assert "".join(logs.text(tmp_path, False)) == "é\n"
