"""One plan run by several commands that torchrun, srun or ssh started; stages are a few lines of Python."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from mmalign.errors import RunError
from mmalign.pipeline import following, leading
from mmalign.pipeline.launched import HERE, Launched, launched
from mmalign.pipeline.leading import Leader
from mmalign.pipeline.run import Launch
from mmalign.pipeline.wire import Wire
from tests.conftest import Said
from tests.pipeline.test_pipeline import stage
from tests.reader import NOT_A_READERS

ENTRY = """
import sys
from mmalign.pipeline import launched, leading
launched.WORKER = [sys.executable, "worker.py"]
leading.GRACE = 1.0
from mmalign.cli import entry
entry()
"""
WORKER = """
import json, os, pathlib, sys, time
from mmalign.pipeline import task, worker
worker._die_with_parent()
folder, rank = pathlib.Path(sys.argv[1]), os.environ.get("RANK", "none")
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "MMALIGN_CACHE")
about = {name: os.environ.get(name) for name in names} | {"words": sys.argv[2:]}
kind = folder.name.split("-")[0]
(folder.parent / f"ran-{kind}-{rank}.json").write_text(json.dumps(about))
print(f"rank {rank} was here", flush=True)
how = os.environ.get(f"HOW_{rank}")
if how == "wait":
    time.sleep(600)
if how == "fail":
    sys.exit("rank broke")
if rank in ("0", "none"):
    task.finish(task.load(folder), {"metrics": {"n": 1.0}}, 0.0, int(os.environ.get("WORLD_SIZE", "1")))
"""


def torchrun(number: int, size: int) -> dict[str, str]:
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    more = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none"}
    return {name: str(value) for name, value in (place | more).items()}


def srun(number: int, size: int) -> dict[str, str]:
    place = {"PROCID": number, "LOCALID": number, "STEP_NUM_TASKS": size, "STEP_NUM_NODES": 1}
    return {f"SLURM_{name}": str(value) for name, value in (place | {"JOB_ID": 7, "STEP_ID": 0}).items()}


@pytest.fixture
def folder(tiny: Path) -> Path:
    """Where the tiny recipe's labels and first training lie, as the script."""
    text = tiny.read_text()
    tiny.write_text(text[: text.index("  tune:")])
    Path("worker.py").write_text(WORKER)
    return tiny.parent


def begin(by: Any, number: int, size: int, *words: str, **env: str) -> "subprocess.Popen[str]":
    clean = {name: value for name, value in os.environ.items() if name not in NOT_A_READERS or name == "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, "-c", ENTRY, "run", "tiny.yaml", *words],
        env=clean | by(number, size) | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # behind a shell's & it is deaf
    )


def ended(processes: Sequence["subprocess.Popen[str]"]) -> list[Said]:
    said = []
    for process in processes:
        out, err = process.communicate(timeout=240)
        said.append(Said(process.returncode, out, err))
    return said


def together(by: Any, size: int, *words: str, **env: str) -> list[Said]:
    """What each of several equal commands said; the first is the last to start."""
    return ended([begin(by, number, size, *words, **env) for number in reversed(range(size))])[::-1]


def ran(kind: str) -> list[dict[str, Any]]:
    """Where each process of a stage found itself."""
    return [json.loads(place.read_text()) for place in sorted(Path("runs").glob(f"ran-{kind}-*.json"))]


@pytest.mark.parametrize("by", [torchrun, srun])
def test_all_take_part_in_every_stage_and_the_first_alone_speaks(folder, by):
    key = (own := launched(by(0, 2))) and own.key
    leading.meeting(Path("runs"), str(key)).parent.mkdir(parents=True)
    stale = {"address": HERE, "port": 9, "token": "of one that was killed"}
    leading.meeting(Path("runs"), str(key)).write_text(json.dumps(stale))
    first, second = together(by, 2)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert [line for line in first.err.splitlines() if "done in" in line][-1].startswith("align: done")
    assert second.out + second.err == ""
    for kind in ("label", "train"):
        ranks = ran(kind)
        assert [(one["RANK"], one["LOCAL_RANK"]) for one in ranks] == [("0", "0"), ("1", "1")]
        assert {one["WORLD_SIZE"] for one in ranks} == {"2"}
        assert len({one["MASTER_PORT"] for one in ranks}) == 1
        assert {one["TORCHELASTIC_RUN_ID"] for one in ranks} == {None}
        assert ranks[0]["words"] == ranks[1]["words"]  # by which a worker knows its stage.yaml
    log = (stage(folder, "align") / "log.txt").read_text()
    assert sorted(log.splitlines()) == ["rank 0 was here", "rank 1 was here"]
    assert not list(Path("runs").rglob("*.meet"))
    again = together(by, 2)
    assert [(said.code, said.err) for said in again] == [(0, ""), (0, "")]


def test_where_one_fails_all_end(folder):
    first, second = together(srun, 2, HOW_0="wait", HOW_1="fail")
    assert (first.code, second.code) == (1, 1)
    assert "error: stage 'label' ended with code 1" in first.err
    assert "  | rank broke\n" in first.err
    assert f"  | process 1 on {socket.gethostname()} ended with code 1\n" in first.err
    assert second.err == ""
    assert json.loads((stage(folder, "label") / "error.json").read_text())["what"] == "ended with code 1"


def test_what_is_refused_is_refused_once_and_leaves_nothing(folder):
    first, second = together(torchrun, 2, "stages.align.optim.lr=-1")
    assert (first.code, second.code) == (2, 2)
    assert first.err.startswith("error: optim.lr must be at least 0")
    assert second.out + second.err == ""
    assert not Path("runs").exists()


def at_work(count: int) -> list[psutil.Process]:
    """The processes of the stage, once so many are there."""
    until = time.monotonic() + 240
    while len(list(Path("runs").glob("ran-label-*.json"))) < count:
        assert time.monotonic() < until
        time.sleep(0.1)
    below = psutil.Process().children(recursive=True)
    return [one for one in below if one.cmdline()[1:2] == ["worker.py"]]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_interrupts_the_first_ends_all(folder, sent, code):
    commands = [begin(torchrun, number, 2, HOW_0="wait", HOW_1="wait") for number in range(2)]
    workers = at_work(2)
    commands[0].send_signal(sent)
    first, second = ended(commands)
    assert (first.code, second.code) == (code, code)
    assert first.err.splitlines()[-1] == "interrupted; the same command goes on"
    assert second.err in ("", "interrupted; the same command goes on\n")
    gone, left = psutil.wait_procs(workers, timeout=30)
    assert (len(gone), left) == (2, [])


def test_sigterm_to_all_at_once_as_slurm_sends_it(folder):
    commands = [begin(srun, number, 2, HOW_0="wait", HOW_1="wait") for number in range(2)]
    at_work(2)
    for command in reversed(commands):
        command.send_signal(signal.SIGTERM)
    assert [said.code for said in ended(commands)] == [143, 143]


def test_the_others_outlive_the_first_by_nothing(folder):
    commands = [begin(srun, number, 2, HOW_0="wait", HOW_1="wait") for number in range(2)]
    workers = at_work(2)
    commands[0].kill()
    first, second = ended(commands)
    assert (first.code, second.code) == (-9, 1)
    assert second.err.startswith("error: the first process is gone\n")
    gone, left = psutil.wait_procs(workers, timeout=30)
    assert (len(gone), left) == (2, [])


def test_one_that_is_killed_ends_the_stage(folder):
    commands = [begin(srun, number, 2, HOW_0="wait", HOW_1="wait") for number in range(2)]
    at_work(2)
    commands[1].kill()
    first, second = ended(commands)
    assert (first.code, second.code) == (1, -9)
    assert f"  | process 1 on {socket.gethostname()} is gone\n" in first.err


API = """
import sys
from pathlib import Path
from mmalign.pipeline import launched
launched.WORKER = [sys.executable, "worker.py"]
import mmalign
results = mmalign.run("tiny.yaml")
print([(name, (folder / "stage.json").exists()) for name, folder in results.folders.items()])
"""


def test_every_process_of_a_script_gets_the_results(folder):
    env = {name: value for name, value in os.environ.items() if name not in NOT_A_READERS or name == "PYTHONPATH"}
    line = [sys.executable, "-c", API]
    said = ended([
        subprocess.Popen(line, env=env | torchrun(number, 2), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for number in range(2)
    ])  # fmt: skip
    assert [(one.code, one.out) for one in said] == [(0, "[('label', True), ('align', True)]\n")] * 2, said[0].err


# One at a time


def place(**changed: Any) -> Launched:
    usual = {"by": "srun", "number": 0, "size": 4, "local": 0, "hosts": 2, "address": HERE, "key": "k"}
    return Launched(**usual | changed)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"devices": 2}, "--devices 2 in each of 4 processes that srun started on 2 hosts"),
        ({"hosts": Path("hosts")}, "--hosts hosts and srun both say how many processes there are"),
    ],
)
def test_what_says_twice_how_many_there_are(here, monkeypatch, given, what):
    monkeypatch.setattr(leading, "LEAVE", 0.0)
    with pytest.raises(RunError) as caught, leading.leading(place(), here / "runs", **given):
        pass
    assert caught.value.what == what
    assert not (here / "runs").exists()


def test_devices_of_one_process_a_host(here, monkeypatch):
    monkeypatch.setattr(leading, "LEAVE", 0.0)
    with leading.leading(place(size=2), here / "runs", devices=8) as leader:
        assert leader is not None
        launch = Launch(8, None, leader)
        assert (launch.size, launch.here) == (16, 8)


def test_a_meeting_that_another_user_arranged_is_not_gone_to(here, monkeypatch):
    leader, meeting = Leader(2), leading.meeting(here, "k")
    meeting.parent.mkdir()
    meeting.write_text(json.dumps({"address": HERE, "port": leader.port, "token": leader.token}))
    monkeypatch.setattr(following, "JOIN", 1.0)
    monkeypatch.setattr(following.os, "geteuid", lambda: meeting.stat().st_uid + 1)
    with pytest.raises(RunError) as caught:
        following.follow(place(number=1, size=2), here)
    assert caught.value.what == "process 1 of 2: the first did not come within 1 s"
    with pytest.raises(RunError):
        leader.wait(0)
    monkeypatch.undo()
    threading.Thread(target=lambda: leader.end(7)).start()
    assert following.follow(place(number=1, size=2), here) == 7


def test_nobody_waits_for_ever():
    with pytest.raises(RunError) as caught:
        Leader(3).wait(0.1)
    assert caught.value.what == "2 of 3 processes did not come within 0 s: 1, 2"


STRANGERS = [b'{"token": "guessed", "number": 1, "host": "x"}\n', b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b""]


@pytest.mark.parametrize("hello", STRANGERS)
def test_a_stranger_is_shown_the_door(hello):
    leader = Leader(2)
    with socket.create_connection((HERE, leader.port)) as stranger:
        stranger.sendall(hello)
        stranger.shutdown(socket.SHUT_WR)
        stranger.settimeout(30)
        assert stranger.recv(100) == b""
    with pytest.raises(RunError):
        leader.wait(0)


def test_messages_come_whole_however_they_are_cut():
    with socket.create_server((HERE, 0)) as door:
        here, there = socket.create_connection(door.getsockname()), door.accept()[0]
    with here, there:
        wire = Wire(here)
        there.sendall(b'{"a": 1}\n{"b"')
        assert wire.hear(5) == [{"a": 1}]
        there.sendall(b": 2}\n")
        assert wire.hear(5) == [{"b": 2}]
        there.close()
        assert (wire.hear(5), wire.open) == ([], False)
        wire.send({"c": 3})
        assert not wire.open
