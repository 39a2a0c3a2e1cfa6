"""Host files, and hosts that are reached by a shell that stands for ssh."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mmalign.errors import RunError
from mmalign.pipeline import hosts
from mmalign.pipeline.hosts import Host
from mmalign.pipeline.run import Launch
from tests.conftest import Said
from tests.pipeline.test_together import folder as folder
from tests.pipeline.test_together import ran

HERE = socket.gethostname()
SSH = """#!/bin/sh
# stands for ssh: `host2` is this machine, too; `host3` wants a password, `host4` has no such environment
while [ "$1" = "-o" ]; do echo "$2" >> options.txt; shift 2; done
host=$1; shift
[ $host = host3 ] && { echo "ann@host3: Permission denied (publickey,password)." >&2; exit 255; }
[ $host = host4 ] && { echo "env: 'python': No such file or directory" >&2; exit 127; }
echo "$*" >> line.txt
exec sh -c "$(echo "$*" | sed 's/-m mmalign.pipeline.following/remote.py/')"
"""
REMOTE = """
import sys
from mmalign.pipeline import following, launched
launched.WORKER = [sys.executable, "worker.py"]
sys.exit(following.main())
"""
LOCAL = REMOTE.replace("following, launched", "launched").replace("sys.exit(following.main())", "") + (
    "from mmalign.cli import entry\nentry()\n"
)


def write(text: str) -> Path:
    place = Path("hosts")
    place.write_text(text)
    return place


def test_a_file_in_its_usual_forms(here):
    place = write(f"# ours\n\nann@node2 slots=4  # half of it\n{HERE}\tslots=2\n   \nnode3   slots=8\n")
    assert hosts.read(place) == [Host(HERE, 2), Host("ann@node2", 4), Host("node3", 8)]  # this one runs the stages
    launch = Launch(hosts=place)
    assert (launch.size, launch.here) == (14, 2)


@pytest.mark.parametrize(
    ("text", "why", "line"),
    [
        ("", "it names no host", ""),
        ("# nobody\n\n", "it names no host", ""),
        ("one\n", "'one' says no host and its slots", ":1"),
        ("\none 8\n", "'one 8' says no host and its slots", ":2"),
        ("one slots=many\n", "'one slots=many' says no host and its slots", ":1"),
        ("one slots=0\n", "'one slots=0' says no host and its slots", ":1"),
        ("one slots=-2\n", "'one slots=-2' says no host and its slots", ":1"),
        ("one slots=2 max_slots=4\n", "'one slots=2 max_slots=4' says no host and its slots", ":1"),
        ("slots=2\n", "'slots=2' says no host and its slots", ":1"),
        ("-oProxyCommand=x slots=2\n", "'-oProxyCommand=x' is no host", ":1"),
        ("one slots=2\ntwo slots=2\none slots=4\n", "one stands there twice", ":3"),
    ],
)
def test_a_file_that_is_none(here, text, why, line):
    with pytest.raises(RunError) as caught:
        Launch(hosts=write(text)).size  # noqa: B018
    assert caught.value.what == f"hosts is no host file: {why}"
    assert str(caught.value).splitlines()[1:] == [
        f"  at   hosts{line}",
        "  try  a file with lines like `host1 slots=8`",
    ]


def test_no_file_and_a_file_that_is_no_text(here):
    with pytest.raises(RunError, match="hosts is no host file: No such file or directory"):
        hosts.read(Path("hosts"))
    Path("hosts").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="hosts is no host file: it is no text"):
        hosts.read(Path("hosts"))


def test_one_machine_by_two_names(here):
    with pytest.raises(RunError) as caught:
        hosts.read(write(f"localhost slots=2\n{HERE} slots=2\n"))
    assert (caught.value.what, caught.value.at) == (f"localhost and {HERE} are one machine", "hosts:2")


@pytest.fixture
def by_hosts(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """`mmalign run tiny.yaml --hosts hosts` of some lines; its stages are the script, here and by ssh."""
    Path("bin").mkdir()
    Path("bin/ssh").write_text(SSH)
    Path("bin/ssh").chmod(0o755)
    Path("local.py").write_text(LOCAL)
    Path("remote.py").write_text(REMOTE)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MMALIGN_CACHE", "a secret place")

    def go(lines: str) -> Said:
        write(lines)
        line = [sys.executable, "local.py", "run", "tiny.yaml", "--hosts", "hosts"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
        return Said(done.returncode, done.stdout, done.stderr)

    return go


def test_two_hosts_take_part(by_hosts):
    said = by_hosts(f"{HERE} slots=1\nhost2 slots=1\n")
    assert said.code == 0, said.err
    first, second = ran("train")
    assert [(one["RANK"], one["WORLD_SIZE"], "--devices=1" in one["words"]) for one in (first, second)] == [
        ("0", "2", True), ("1", "2", True),
    ]  # fmt: skip
    assert (first["MASTER_ADDR"], first["MASTER_PORT"]) == (second["MASTER_ADDR"], second["MASTER_PORT"])
    assert second["MMALIGN_CACHE"] == "a secret place"
    line = Path("line.txt").read_text()
    assert "secret" not in line  # what stands on a command line, everybody on that host can read
    assert "BatchMode=yes" in Path("options.txt").read_text().split()


CANNOT = {
    "host3": ("cannot reach host3: ann@host3: Permission denied (publickey,password).", "`ssh host3 true`"),
    "host4": ("host4 cannot take part: env: 'python': No such file or directory", "the same environment and folder"),
}


@pytest.mark.parametrize("name", CANNOT)
def test_a_host_that_cannot_take_part_is_told_before_any_work(by_hosts, name):
    said = by_hosts(f"{HERE} slots=1\n{name} slots=1\n")
    what, fix = CANNOT[name]
    told, at, try_ = said.err.splitlines()
    assert (said.code, told, at) == (2, f"error: {what}", "  at   hosts")
    assert try_.startswith(f"  try  {fix}")
    assert not Path("runs").exists()


def test_no_ssh(here, monkeypatch):
    monkeypatch.setattr(hosts.shutil, "which", lambda _: None)
    place = write(f"{HERE} slots=2\nhost2 slots=2\n")
    with pytest.raises(RunError) as caught, hosts.reached(place, here / "runs"):
        pass
    assert (caught.value.what, caught.value.fix) == ("hosts names 2 hosts, and there is no ssh", "install ssh")


@pytest.mark.parametrize("lines", ["host2 slots=2\n", "host2 slots=2\nhost3 slots=2\n"])
def test_a_file_without_this_machine(here, lines):
    with pytest.raises(RunError) as caught, hosts.reached(write(lines), here / "runs"):
        pass
    assert caught.value.what == f"hosts does not name this machine, {HERE}"
    assert caught.value.fix == "start the command on one of its hosts, such as host2"


def test_one_host_needs_no_ssh(here, monkeypatch):
    monkeypatch.setattr(hosts.shutil, "which", lambda _: None)
    with hosts.reached(write("localhost slots=2\n"), here / "runs") as leader:
        assert leader is None
