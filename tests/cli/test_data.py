"""`data check` and `data show` as verbs: what they print, and their exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest

from tests.data.samples import images, jsonl, row
from tests.plan.test_mistakes import assert_mistake


def test_a_data_set_without_faults(mmalign):
    result = mmalign("data", "check", "toy-chat", "size=5", "--jobs", "1")
    assert result.code == 0
    assert "every record can be used" in result.out


def test_faults_are_code_1_until_a_quarantine_leaves_them_out(here, mmalign):
    images(here, 1)
    talk = ("<image>\nis there a cross in the image?", "no")
    place = jsonl(here / "x.jsonl", [row("a", "0.jpg", *talk), row("gone", "none.jpg", *talk)])
    result = mmalign("data", "check", place, "--jobs", "1", "--json")
    assert result.code == 1
    assert json.loads(result.out)["bad"] == 1
    result = mmalign("data", "check", place, "--jobs", "1", "--quarantine", "q.jsonl")
    assert result.code == 0
    assert "gone" in (here / "q.jsonl").read_text()


CHECK = """
import multiprocessing
from mmalign.data import check
check._context = lambda: multiprocessing.get_context({context!r})
from mmalign.cli import entry
entry()
"""


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_ctrl_c_is_one_line(here, context):
    """As soon as there are workers, which import what they need; a terminal tells all of its processes."""
    line = [sys.executable, "-c", CHECK.format(context=context), "data", "check", "toy-chat", "size=9000", "--jobs=2"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are deaf to it
    ran = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heard)
    while len(psutil.Process(ran.pid).children()) < 2:
        assert ran.poll() is None
        time.sleep(0.01)
    os.killpg(ran.pid, signal.SIGINT)
    said = ran.communicate(timeout=300)[1]
    assert ran.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted; the same command goes on"
    assert "Traceback" not in said, said


def test_show(mmalign):
    result = mmalign("data", "show", "toy-chat", "size=5", "--vision", "toy-clip", "--rows", "2", "--json")
    (one,) = json.loads(result.out)
    assert one["images"][0]["grid"] == [6, 6]


def test_mistakes(here, mmalign):
    assert_mistake(mmalign("data", "show", "toy-chat", "size=5", "--rows", "9"), "has 5 records", "", "--rows 0:5")
    place = jsonl(here / "x.jsonl", [row("a")])
    result = mmalign("data", "check", place, "--quarantine", here / "x.jsonl" / "q")
    assert_mistake(result, f"cannot write to {here / 'x.jsonl'}", "x.jsonl", "another folder")
    assert_mistake(mmalign("data", "check", place, "--quarantine", here), "is a folder", "", "--quarantine FILE")
    assert_mistake(mmalign("data", "check", "toy-chats"), "no data card named 'toy-chats'", "", "'toy-chat'")


def test_the_time_left_of_a_check_leaves_its_start_out(monkeypatch, capsys):
    """A minute for processes to start, then 200 records a second."""
    from mmalign.cli import data

    now = [0.0]
    monkeypatch.setattr(data.time, "monotonic", lambda: now[0])
    lines = data._Lines("mine")
    for now[0], done in ((60.0, 200), (61.0, 400), (70.0, 2200)):
        lines(done, 4000, (done, 4000))
    assert capsys.readouterr().err.splitlines() == ["mine: 200/4000 records", "mine: 2200/4000 records  9 s left"]
