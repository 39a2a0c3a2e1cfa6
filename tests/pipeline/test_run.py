"""The orchestrator, with stages that are a few lines of Python: order, progress, failures, locks, --force."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest

from mmalign.errors import RunError
from mmalign.pipeline import launched, run, stalled, task, worker
from mmalign.pipeline.run import Failed, Launch
from mmalign.plan import graph
from mmalign.plan import read as compose
from tests.conftest import TINY

DONE = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
with open(folder.parent / "ran.txt", "a") as out:
    out.write(folder.name.split("-")[0] + "\\n")
from mmalign.pipeline import task
given = task.load(folder)
with open(folder / "events.jsonl", "a") as out:
    out.write(json.dumps({"say": "hello"}) + "\\n" + json.dumps({"done": 1, "total": 1, "numbers": {}}) + "\\n")
task.finish(given, {"metrics": {"n": 1.0}}, 0.0, 1)
"""


@dataclass
class Script(Launch):
    """Stages are a script; `say` overrides it for some."""

    say: dict[str, str] = field(default_factory=dict)

    def command(self, node):
        return [sys.executable, "-c", self.say.get(node.name, DONE), str(node.folder)]


@dataclass
class Told:
    """A front end that remembers."""

    heard: list[tuple] = field(default_factory=list)
    on_event: object = None

    def begin(self, node):
        self.heard.append(("begin", node.name))

    def event(self, node, event):
        self.heard.append(("event", node.name, event))
        if self.on_event:
            self.on_event()

    def end(self, node, seconds):
        self.heard.append(("end", node.name))
        assert seconds >= 0

    @property
    def ran(self) -> list[str]:
        return [name for what, name, *_ in self.heard if what == "begin"]


@pytest.fixture
def plan(tiny):
    return lambda *words: graph.plan(compose.load(tiny, words), "runs")


ORDER = ["label", "align", "tune", "score", "report"]


def test_stages_run_in_order_and_once(plan):
    told = Told()
    run.run(plan(), Script(), told)
    assert told.ran == ORDER
    assert told.heard[:4] == [
        ("begin", "label"),
        ("event", "label", {"say": "hello"}),
        ("event", "label", {"done": 1, "total": 1, "numbers": {}}),
        ("end", "label"),
    ]
    again = Told()
    run.run(plan(), Script(), again)
    assert again.heard == []
    assert Path("runs/ran.txt").read_text().split() == ["label", "train", "train", "evaluate", "report"]


def test_only_what_changed_and_what_reads_it_runs_again(plan):
    run.run(plan(), Script(), Told())
    told = Told()
    run.run(plan("stages.tune.optim.lr=0.5"), Script(), told)
    assert told.ran == ["tune", "score", "report"]
    told = Told()
    run.run(plan(), Script(), told)  # and back: nothing was overwritten
    assert told.ran == []


def test_a_study_runs_shared_stages_once(tiny, plan):
    tiny.write_text(TINY + "matrix: {arms: {a: {}, b: {stages.tune.batch: 16}}, seeds: [1, 2]}\n")
    told = Told()
    run.run(plan(), Script(), told)
    assert sorted(told.ran) == sorted(["label"] + ["align"] * 2 + ["tune"] * 4 + ["score"] * 4 + ["report"])


def failing(say: str) -> Script:
    return Script(say={"align": f"import os, pathlib, sys, json; folder = pathlib.Path(sys.argv[1])\n{say}"})


@pytest.mark.parametrize(
    ("say", "what", "fix"),
    [
        ("print('last words'); sys.exit(3)", "stage 'align' ended with code 3", "the last lines of its log"),
        ("print('last words', flush=True); os.kill(os.getpid(), 9)", "killed by signal 9", "the same command goes on"),
        ("print('last words')", "stage 'align' ended with code 0", "the last lines of its log"),
        (f"print('last words'); sys.exit({task.FULL})", "found no space left", "free some"),
    ],
)
def test_a_stage_that_fails_ends_the_run_with_its_last_words(plan, say, what, fix):
    told = Told()
    with pytest.raises(Failed) as caught:
        run.run(plan(), failing(say), told)
    assert told.ran == ["label", "align"]
    assert ("end", "align") not in told.heard
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.at.endswith("log.txt")
    assert caught.value.tail == ["last words"]
    assert caught.value.exit_code == 1
    assert {node.name for node in plan() if node.done} == {"label"}
    told = Told()
    run.run(plan(), Script(), told)
    assert told.ran == ORDER[1:]


def test_what_a_stage_says_of_its_failure_is_the_message(plan):
    say = "(folder / 'error.json').write_text(json.dumps({'what': 'bad', 'at': 'here', 'fix': 'this'})); sys.exit(1)"
    with pytest.raises(Failed) as caught:
        run.run(plan(), failing(say), Told())
    assert (caught.value.what, caught.value.at, caught.value.fix) == ("stage 'align': bad", "here", "this")
    assert caught.value.exit_code == 1
    with pytest.raises(Failed) as caught:  # data that cannot give what is asked of it: running again mends nothing
        run.run(plan(), failing(say.replace("'fix': 'this'", "'fix': 'this', 'exit_code': 2")), Told())
    assert caught.value.exit_code == 2
    with pytest.raises(Failed) as caught:  # the next failure is another one
        run.run(plan(), failing("sys.exit(1)"), Told())
    assert caught.value.what == "stage 'align' ended with code 1"


def test_only_the_end_of_a_long_log_is_shown(plan):
    with pytest.raises(Failed) as caught:
        run.run(plan(), failing("print('\\n'.join(map(str, range(1000)))); sys.exit(1)"), Told())
    assert caught.value.tail == [str(n) for n in range(1000 - run.TAIL, 1000)]


def test_a_line_that_is_half_written_is_not_read_yet(tmp_path):
    place = tmp_path / "events.jsonl"
    place.write_text('{"say": "a"}\n{"say"')
    events = run._events(place)
    assert next(events) == [{"say": "a"}]
    assert next(events) == []
    with open(place, "a") as out:
        out.write(': "b"}\n\n{"say": "c"}\n')
    assert next(events) == [{"say": "b"}, {"say": "c"}]


@pytest.mark.parametrize(
    "line", ['{"say": "a', "[1]", '{"say": 1}', '{"done": 1, "total": 2}', '{"done": -1}', "\0" * 9]
)
def test_a_line_that_a_full_disk_cut_is_left_out(plan, line):
    """Another one was written behind it."""
    told = Told()
    say = f"open(folder / 'events.jsonl', 'a').write({line!r} + '\\n')\n"
    run.run(plan()[:1], Script(say={"label": DONE.replace("given =", f"{say}given =")}), told)
    heard = [event for what, _, *event in told.heard if what == "event"]
    assert heard == [[{"say": "hello"}], [{"done": 1, "total": 1, "numbers": {}}]]


def test_an_interruption_ends_the_stage_too(plan):
    """Ctrl-C in the front end: the child is gone when the run returns, and the lock is free."""
    event = json.dumps({"say": "here"}) + "\n"
    say = f"(folder / 'pid').write_text(str(os.getpid())); open(folder / 'events.jsonl', 'a').write({event!r})"
    told = Told(on_event=lambda: (_ for _ in ()).throw(KeyboardInterrupt) if told.heard[-1][1] == "align" else None)
    with pytest.raises(KeyboardInterrupt):
        run.run(plan(), failing(f"{say}\nimport threading; threading.Event().wait()"), told)
    align = plan()[1]
    with pytest.raises(ProcessLookupError):
        os.kill(int((align.folder / "pid").read_text()), 0)
    run.run(plan(), Script(), Told())


WAITS = "import threading; threading.Event().wait()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@pytest.mark.parametrize(("before", "times"), [("", 1), (DEAF, 2)], ids=["once", "twice"])
def test_ctrl_c_says_what_is_waited_for_and_a_second_one_ends_it(plan, before, times):
    """A stage that trains has the time it needs to save; only a second Ctrl-C ends one that does not end."""
    event = json.dumps({"say": "here"}) + "\n"
    left = [KeyboardInterrupt] * times

    def interrupts():
        if left and told.heard[-1][1] == "align":
            raise left.pop()

    told = Told(on_event=interrupts)
    say = f"open(folder / 'events.jsonl', 'a').write({event!r})"
    with pytest.raises(KeyboardInterrupt):
        run.run(plan(), failing(f"{before}\n{say}\n{WAITS}"), told)
    said = [event["say"] for what, _, *rest in told.heard if what == "event" for event in rest if "say" in event]
    assert said[-2:] == ["here", "saves what it has learnt, and ends; Ctrl-C again ends it at once"]


def test_a_worker_ends_with_the_process_that_began_it(tiny):
    """kill -9 of the orchestrator: its stage does not work on alone."""
    code = "from mmalign.cli import entry; entry()"
    line = [sys.executable, "-c", code, "run", "tiny.yaml"]
    with subprocess.Popen(line, cwd=tiny.parent, stderr=subprocess.PIPE, text=True) as orchestrator:
        assert orchestrator.stderr.readline().startswith("label: begins")
        import psutil

        while not (workers := psutil.Process(orchestrator.pid).children()):
            assert orchestrator.poll() is None
            time.sleep(0.01)
        (worker,) = workers
        orchestrator.kill()
        orchestrator.wait()
        worker.wait(30)  # raises where it lives on


def test_ctrl_c_is_no_traceback(tiny):
    line = [sys.executable, "-c", "from mmalign.cli import entry; entry()", "run", "tiny.yaml"]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # behind a shell it is deaf
    with subprocess.Popen(line, cwd=tiny.parent, stderr=subprocess.PIPE, text=True, **heard) as orchestrator:
        assert orchestrator.stderr.readline().startswith("label: begins")
        orchestrator.send_signal(signal.SIGINT)
        err = orchestrator.stderr.read()
    assert orchestrator.returncode == 130, err
    assert err.splitlines()[-1] == "interrupted; the same command goes on"
    assert "Traceback" not in err
    (folder,) = Path("runs").glob("label-*")
    with run.locked(folder):
        assert not (folder / "stage.json").exists()


# Locks


def test_a_folder_that_somebody_works_in_is_refused(plan):
    folder = plan()[0].folder
    with run.locked(folder), pytest.raises(RunError) as caught:
        run.run(plan(), Script(), Told())
    assert caught.value.what == f"process {os.getpid()} on {socket.gethostname()} is working in this folder"
    assert caught.value.at == str(folder)
    run.run(plan(), Script(), Told())  # the lock ended with its holder


def test_a_stage_whose_killed_owner_is_gone_is_waited_for(plan):
    """Its last process still holds the lock; it ends by itself."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder = plan()[0].folder
    folder.mkdir(parents=True)
    told = Told()
    with open(folder / "lock", "w") as lock:
        lock.write(f"process {gone.pid} on {socket.gethostname()}")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=run.run, args=(plan(), Script(), told))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert told.heard == []
    thread.join(60)
    assert told.ran == ORDER


@pytest.mark.parametrize("owner", ["process 1 on elsewhere", "somebody", ""])
def test_an_owner_elsewhere_is_not_waited_for(plan, owner):
    folder = plan()[0].folder
    folder.mkdir(parents=True)
    with open(folder / "lock", "w") as lock:
        lock.write(owner)
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match=owner or "another process"):
            run.run(plan(), Script(), Told())


def test_a_stage_that_another_process_finished_meanwhile_is_not_run_again(plan):
    mine = plan()
    assert not mine[0].done  # looked at, and remembered
    run.run(plan(), Script(), Told())
    told = Told()
    run.run(mine, Script(), told)
    assert told.ran == []


def test_a_lock_follows_the_umask(plan):
    before = os.umask(0o002)
    try:
        run.run(plan()[:1], Script(), Told())
    finally:
        os.umask(before)
    assert (plan()[0].folder / "lock").stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_with_the_folder(plan, monkeypatch, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RunError) as caught:
        run.run(plan(), Script(), Told())
    folder = plan()[0].folder
    assert caught.value.what.startswith(f"{folder} lies on a file system without locks ({os.strerror(code)})")
    assert caught.value.at == str(folder)
    assert "another --runs" in caught.value.fix
    assert os.listdir(folder) == ["lock"]


def test_an_owner_that_is_stopped_is_said_to_be(plan):
    folder = plan()[0].folder
    folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        (folder / "lock").write_text(f"process {owner.pid} on {socket.gethostname()}")
        owner.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, owner.pid, os.WSTOPPED)
        with open(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(RunError) as caught:
                run.run(plan(), Script(), Told())
        owner.kill()
    assert caught.value.what.endswith("is working in this folder, but stopped")
    assert caught.value.fix == f"kill -CONT {owner.pid} lets it go on"


# A stage that stands still


def test_a_stage_that_is_stopped_is_told_and_goes_on(plan, monkeypatch):
    monkeypatch.setattr(stalled, "LOOK", 0.02)
    say = f"import os, signal, sys\nos.kill(os.getpid(), signal.SIGSTOP)\n{DONE}"
    told = Told()

    def goes_on():
        event = told.heard[-1][2]
        if "is stopped" in str(event.get("say")):
            os.kill(int(event["say"].split()[1]), signal.SIGCONT)

    told.on_event = goes_on
    run.run(plan()[:1], Script(say={"label": say}), told)
    said = [event["say"] for what, _, *rest in told.heard if what == "event" for event in rest if "say" in event]
    process = said[0].split()[1]
    assert said[0] == f"process {process} is stopped; kill -CONT {process} lets it go on"
    assert said[-1] == "hello"


def test_an_interruption_ends_a_stopped_stage_at_once(plan, monkeypatch):
    monkeypatch.setattr(stalled, "LOOK", 0.02)
    told = Told(on_event=lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    say = "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nimport threading; threading.Event().wait()"
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run.run(plan()[:1], Script(say={"label": say}), told)
    assert time.monotonic() - began < 8  # else it was waited for, and killed


def test_what_may_not_be_written_or_read_is_no_traceback(tmp_path, monkeypatch, caplog):
    def run_(folder, rank, written):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a.safetensors"))

    monkeypatch.setattr(worker, "run", run_)
    monkeypatch.setattr(worker, "_die_with_parent", lambda: None)
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path)])
    assert worker.main() == 2
    error = json.loads((tmp_path / "error.json").read_text())
    assert error["what"].startswith(f"permission denied: {tmp_path} is ")
    assert error["at"] == f"{tmp_path}/a.safetensors"
    assert "exit_code" not in error


def test_a_line_of_a_log_begins_with_the_time():
    script = "import logging; from mmalign.pipeline import worker; worker._log(20); logging.info('hello')"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    when, said = ran.stderr.split(maxsplit=1)
    assert said == "INFO hello\n"
    assert when.endswith("Z")
    assert -1 < time.time() - datetime.fromisoformat(when).timestamp() < 60


# --force


def test_force_keeps_the_old_folder_aside(plan):
    run.run(plan(), Script(), Told())
    for number in (1, 2):
        told = Told()
        run.run(plan(), Script(), told, ["align"])
        assert told.ran == ["align"]
        align = plan()[1]
        assert (align.folder.with_name(f"{align.folder.name}.old-{number}") / "stage.json").exists()


def test_force_of_a_stage_that_never_ran_and_of_none(plan):
    told = Told()
    run.run(plan(), Script(), told, ["align"])
    assert told.ran == ORDER
    with pytest.raises(RunError) as caught:
        run.run(plan(), Script(), told, ["algn"])
    assert (caught.value.what, caught.value.fix) == ("--force algn: no such stage", "did you mean 'align'?")


@pytest.mark.parametrize("damage", ["", "{", "- 1", "name: [", "format: x", "format: 1\nname: align", "\0"])
def test_a_damaged_stage_yaml_of_a_stage_that_was_begun_is_written_anew(plan, damage):
    """By the recipe, which it was made from; what else lies in the folder stays."""
    label = plan()[0]
    task.save(label)
    right = (label.folder / "stage.yaml").read_bytes()
    (label.folder / "kept.txt").write_text("kept")
    (label.folder / "stage.yaml").write_text(damage)
    told = Told()
    run.run(plan()[:1], Script(), told)
    (said,) = [
        event["say"] for what, _, *rest in told.heard if what == "event" for event in rest if "anew" in str(event)
    ]
    assert said.startswith("stage.yaml was damaged and is written anew: ")
    assert (label.folder / "stage.yaml").read_bytes() == right
    assert (label.folder / "kept.txt").read_text() == "kept"
    assert plan()[0].done


def test_the_stage_yaml_of_another_format_is_refused_and_left(plan):
    label = plan()[0]
    task.save(label)
    other = (label.folder / "stage.yaml").read_text().replace("format: 1", "format: 2").replace("cards:", "parts:")
    (label.folder / "stage.yaml").write_text(other)
    with pytest.raises(RunError, match="was begun in format 2; this mmalign reads format 1"):
        run.run(plan()[:1], Script(), Told())
    assert (label.folder / "stage.yaml").read_text() == other


def test_force_mends_a_damaged_stage(plan):
    run.run(plan(), Script(), Told())
    align = plan()[1]
    (align.folder / "stage.json").write_text("{")
    with pytest.raises(RunError, match="not valid JSON"):
        run.run(plan(), Script(), Told())
    told = Told()
    run.run(plan(), Script(), told, ["align"])
    assert told.ran == ["align"]
    assert (align.folder.with_name(f"{align.folder.name}.old-1") / "stage.json").read_text() == "{"


def test_a_folder_set_aside_is_neither_the_newest_model_nor_the_newest_report(plan, mmalign):
    from mmalign.pipeline import existing

    run.run(plan(), Script(), Told())
    tune = plan()[2]
    os.utime(plan()[1].folder / "stage.json", (1, 1))
    assert existing.newest(Path("runs")).name == tune.folder.name
    run.set_aside(tune)
    assert existing.newest(Path("runs")).name == plan()[1].folder.name


# How a stage is launched


def test_commands(plan, monkeypatch):
    label, align, _, _, report = plan()
    python = [sys.executable, "-m", "mmalign.pipeline.worker"]
    assert Launch().command(align) == [*python, str(align.folder)]
    assert Launch(devices=4).command(align) == [*python, str(align.folder), "--devices=4"]
    assert Launch(devices=4).command(label)[-1] == "--devices=4"
    assert Launch(devices=4).command(report) == [*python, str(report.folder)]  # one process does it all
    Path("hosts").write_text("localhost slots=3\nnode2 slots=2\n")
    assert Launch(hosts=Path("hosts")).command(align) == [*python, str(align.folder), "--devices=3"]
    assert Launch(hosts=Path("hosts")).command(report) == [*python, str(report.folder)]


@pytest.mark.parametrize(
    ("env", "where"),
    [
        ({}, ["--standalone"]),
        (
            {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "node1", "MASTER_PORT": "4000"},
            ["--nnodes=3", "--node-rank=1", "--master-addr=node1", "--master-port=4000"],
        ),
    ],
)
def test_processes_of_one_host_and_of_several(monkeypatch, env, where):
    from torch.distributed import run as elastic

    given = []
    monkeypatch.setattr(elastic, "main", given.extend)
    monkeypatch.setenv("MMALIGN_PARENT", "0")
    for name in launched.PLACE:
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert worker._spread(Path("runs/train-abc"), 2, "hash") == 0
    module = ["-m", "mmalign.pipeline.worker", "runs/train-abc", "--written=hash"]
    assert given == [*where, "--nproc-per-node=2", "--signals-to-handle=SIGHUP,SIGQUIT", *module]


@pytest.mark.parametrize(("code", "given"), [(task.FULL, task.FULL), (2, 1), (-9, 1)])
def test_a_full_disk_is_known_from_one_of_several_processes(monkeypatch, code, given):
    from torch.distributed import run as elastic
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    def fail(words):
        raise ChildFailedError("worker", {1: ProcessFailure(1, 1234, code, "none")})

    monkeypatch.setattr(elastic, "main", fail)
    monkeypatch.setenv("MMALIGN_PARENT", "0")
    assert worker._spread(Path("runs/train-abc"), 2) == given


@pytest.mark.parametrize(("devices", "fits"), [(1, True), (2, True), (3, False), (4, False)])
def test_devices_have_to_divide_the_passes(plan, devices, fits):
    nodes = plan()  # 8 samples in passes of 4
    if fits:
        run.run(nodes, Script(devices=devices), Told())
        return
    with pytest.raises(RunError) as caught:
        run.run(nodes, Script(devices=devices), Told())
    assert caught.value.what == f"stage 'align': batch 8 is no multiple of micro_batch 4 x {devices} devices"
    assert caught.value.at.endswith("tiny.yaml:13  stages.align.batch")
    assert not list(Path("runs").glob("*-*"))
    run.run(plan(), Script(), Told())
    run.run(plan(), Script(devices=devices), Told())  # what is done needs no devices


def test_the_environment_of_a_stage(plan):
    say = "(folder / 'env.json').write_text(json.dumps(dict(os.environ)))"
    run.run(plan()[:1], Script(say={"label": f"import os, json, pathlib, sys\n{DONE}\n{say}"}), Told())
    env = json.loads((plan()[0].folder / "env.json").read_text())
    assert env["MMALIGN_PARENT"] == str(os.getpid())
    assert env["TOKENIZERS_PARALLELISM"] == "false"
