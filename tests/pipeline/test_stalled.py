"""A stage that stands still: processes that are stopped, anywhere below it, and silence; each told once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mmalign.pipeline import stalled
from mmalign.pipeline.stalled import Stalled

CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"  # a process and one below it


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(stalled, "LOOK", 0.0)


@pytest.fixture
def folder(tmp_path):
    for name in stalled.SIGNS:
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def running():
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE) as process:
        while len(list(stalled.below(process.pid))) < 2:
            time.sleep(0.01)
        yield process
        process.send_signal(signal.SIGCONT)
        process.stdin.close()


def until(process, want):
    while stalled.state(process) != want:
        time.sleep(0.01)


@pytest.mark.parametrize("which", [0, 1])
def test_a_stopped_process_is_told_once_and_that_it_goes_on(quick, folder, running, which):
    looks, process = Stalled(folder, running.pid), list(stalled.below(running.pid))[which]
    assert list(looks.look()) == []
    os.kill(process, signal.SIGSTOP)
    until(process, "stopped")
    assert list(looks.look()) == []  # it may be a Ctrl-Z that stops us too
    assert list(looks.look()) == [f"process {process} is stopped; kill -CONT {process} lets it go on"]
    assert list(looks.look()) == []
    os.kill(process, signal.SIGCONT)
    until(process, "there")
    assert list(looks.look()) == [f"process {process} goes on"]
    assert list(looks.look()) == []


def test_one_that_ended_while_it_was_stopped_does_not_go_on(quick, folder, running):
    looks, (_, process) = Stalled(folder, running.pid), stalled.below(running.pid)
    os.kill(process, signal.SIGSTOP)
    until(process, "stopped")
    assert len([*looks.look(), *looks.look()]) == 1
    os.kill(process, signal.SIGKILL)
    until(process, "gone")
    assert list(looks.look()) == []


def test_the_state_of_a_process(running):
    assert stalled.state(running.pid) == "there"
    assert stalled.state(None) == "there"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert stalled.state(gone.pid) == "gone"
    assert list(stalled.below(gone.pid)) == [gone.pid]


def test_silence_is_told_at_growing_distances(folder, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(stalled.time, "monotonic", lambda: now[0])
    looks = Stalled(folder, os.getpid())

    def said(seconds):
        told = []
        for _ in range(seconds // 10):
            now[0] += 10
            told += [(now[0] - 1000, what) for what in looks.look()]
        return told

    log = folder / "log.txt"
    assert said(590) == []
    assert said(1300) == [
        (600, f"nothing heard of it for 10 minutes; it may be stuck, see {log}"),
        (1200, f"nothing heard of it for 20 minutes; it may be stuck, see {log}"),
    ]
    log.write_text("a line")
    assert said(600) == []
    assert [at for at, _ in said(10)] == [2500]  # ten minutes after the line was seen
    now[0] += 5000  # we ourselves were stopped
    assert said(500) == []
