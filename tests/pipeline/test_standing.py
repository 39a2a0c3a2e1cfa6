"""How a stage stands, each state from the files that make it: no clock is asked."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from mmalign.errors import RunError
from mmalign.pipeline import ended, lock, recipes, run, standing, task
from mmalign.plan import graph, relief
from mmalign.plan import read as compose
from tests.pipeline.test_run import DONE, Script, Told, failing


@pytest.fixture
def plan(tiny):
    return lambda: graph.plan(compose.load(tiny), "runs")


@pytest.fixture
def align(plan):
    """A stage that was begun, and of which nothing else is known."""
    node = plan()[1]
    task.save(node)
    return node


def text(node) -> str:
    return standing.told(node, standing.of(node.folder))


@contextmanager
def held(folder, owner):
    with open(folder / "lock", "w") as handle:
        handle.write(owner)
        handle.flush()
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def gone() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_that_was_not_begun_has_a_reason(plan):
    node = plan()[1]
    assert standing.of(node.folder) is None
    assert text(node) == "after label"


def test_done(plan):
    run.run(plan()[:1], Script(), Told())
    node = plan()[0]
    assert text(node) == "done"
    stands = standing.of(node.folder)
    assert (stands.state, stands.text, stands.about["name"]) == ("done", "done", "label")
    assert standing.failure(stands, node.folder) is None


def test_killed_is_begun_with_no_word_and_no_owner(align):
    """kill -9 of everything, or a power cut: what is left is what was written before."""
    (align.folder / "lock").write_text("process 1 on elsewhere")  # of a lock that ended with its holder
    assert text(align) == "killed; goes on"
    for step in (4, 16, 8):
        (align.folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (align.folder / "checkpoints" / f"step-{step}" / "step.json").touch()
    (align.folder / "checkpoints" / "step-32").mkdir()  # not whole
    assert text(align) == "killed; goes on from step 16"


def test_running_is_a_lock_that_is_held(align):
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    with lock.locked(align.folder):
        assert text(align) == f"running: {owner}"
        assert standing.of(align.folder).owner == owner
        ended.write(align.folder, "of the time before", "", "")
        assert standing.of(align.folder).state == "running"
    assert standing.of(align.folder).state == "failed"
    with held(align.folder, "process 7 on elsewhere"):
        assert text(align) == "running: process 7 on elsewhere"
    with held(align.folder, ""):
        assert text(align) == "running: another process"


def test_running_though_it_has_said_nothing_for_a_year(align):
    with lock.locked(align.folder):
        for name in ("stage.yaml", "lock"):
            os.utime(align.folder / name, (1, 1))
        assert standing.of(align.folder).state == "running"


def test_ending_is_a_lock_whose_owner_is_gone(align):
    owner = f"process {gone()} on {socket.gethostname()}"
    with held(align.folder, owner):
        assert text(align) == f"ending: {owner} is gone"


def test_stopped_is_a_process_of_it_that_is_stopped(align):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        owner.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, owner.pid, os.WSTOPPED)
        with held(align.folder, f"process {owner.pid} on {socket.gethostname()}"):
            assert text(align) == f"stopped: kill -CONT {owner.pid} lets it go on"
        owner.kill()


def test_failed_says_with_what_until_it_runs_again(plan):
    say = "from mmalign.pipeline import ended; ended.write(folder, 'lm is nan', 'samples a', 'lower'); sys.exit(1)"
    with pytest.raises(run.Failed) as caught:
        run.run(plan(), failing(say), Told())
    node = plan()[1]
    log = node.folder / "log.txt"
    assert caught.value.log == log
    assert text(node) == "failed: lm is nan"
    stands = standing.of(node.folder)
    assert standing.failure(stands, node.folder) == {
        "what": "lm is nan", "at": "samples a", "fix": "lower", "log": str(log), "folder": str(node.folder),
        "time": stands.time,
    }  # fmt: skip
    assert "failed: lm is nan" in recipes.Preview(plan(), [])._repr_html_()
    states = []

    class Looks(Told):
        def begin(self, node):
            states.append(standing.of(node.folder).text)

    run.run(plan()[:2], Script(), Looks())
    assert states == [f"running: {lock.owner()}"]
    assert text(plan()[1]) == "done"


@pytest.mark.parametrize(
    ("say", "what", "fix"),
    [
        ("sys.exit(3)", "ended with code 3", "the last lines of its log (mmalign logs {folder})"),
        (
            "os.kill(os.getpid(), 9)",
            "killed by signal 9",
            "the same command goes on; signal 9 often means out of memory: engine.workers: 1 -> 0, or {proposals}",
        ),
        ("sys.exit(28)", "found no space left", "free some, or another --runs; the same command goes on"),
    ],
)
def test_a_stage_that_said_nothing_is_remembered_by_its_run(plan, say, what, fix):
    with pytest.raises(run.Failed):
        run.run(plan(), failing(say), Told())
    folder = plan()[1].folder
    stands = standing.of(folder)
    assert stands.text == f"failed: {what}"
    fix = fix.format(folder=folder, proposals=relief.told(plan()[1].stage, plan()[1].cards))
    assert (stands.at, stands.fix) == (str(folder / "log.txt"), fix)


def test_a_run_that_cannot_start_a_stage_is_no_kill(plan):
    class Nothing(Script):
        def command(self, node):
            return ["/no/such/program"]

    with pytest.raises(RunError, match="cannot start"):
        run.run(plan(), Nothing(), Told())
    assert text(plan()[0]) == "failed: cannot start '/no/such/program': No such file or directory"


@pytest.mark.parametrize(
    ("error", "why"), [(KeyboardInterrupt(), "Ctrl-C"), (BrokenPipeError(32, "Broken pipe"), "BrokenPipeError")]
)
def test_interrupted_is_by_whoever_ran_it(plan, error, why):
    def stop():
        raise error

    with pytest.raises(type(error)):
        run.run(
            plan()[:1],
            Script(say={"label": f"{DONE}\nimport threading; threading.Event().wait()"}),
            Told(on_event=stop),
        )
    node = plan()[0]
    (node.folder / "stage.json").unlink(missing_ok=True)  # it may have come as far
    stands = standing.of(node.folder)
    assert stands.state == "interrupted"
    assert text(node).startswith(f"interrupted ({why}")
    assert text(node).endswith("); goes on")


def test_what_it_said_of_its_failure_is_not_said_over_by_an_interruption(align):
    ended.write(align.folder, "lm is nan", "", "")
    run._leave_word(align, KeyboardInterrupt())
    assert text(align) == "failed: lm is nan"


def test_files_that_cannot_be_read_end_no_look(align):
    (align.folder / ended.NAME).write_text('{"what": 3}')
    assert text(align) == "failed: error.json is damaged: it lacks 'at'"
    (align.folder / "stage.json").write_text("{")
    stands = standing.of(align.folder)
    assert stands.text.startswith("damaged: not valid JSON")
    assert standing.failure(stands, align.folder)["what"] == stands.why


def test_a_look_does_not_refuse_a_run_that_begins(align, monkeypatch):
    """The lock that a look takes for a moment is shared, and a run waits that long for it."""
    handle = os.open(align.folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_SH)
    assert lock.holder(align.folder / "lock") is None  # another look
    monkeypatch.setattr(lock.time, "sleep", lambda _: fcntl.flock(handle, fcntl.LOCK_UN))
    with lock.locked(align.folder):
        pass
    os.close(handle)
