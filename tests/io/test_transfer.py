"""One file from an address: whole or absent, whatever the server does."""

import errno
import hashlib
import random
from collections import namedtuple

import pytest

from mmalign.errors import DataError
from mmalign.io import transfer
from mmalign.io.transfer import NoSpaceError, fetch
from tests.loopback import Loopback

CONTENT = random.Random(3).randbytes(700_001)
SUM = hashlib.sha256(CONTENT).hexdigest()
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(transfer, "PAUSE", 0.001)
    with Loopback(files={"/a.bin": CONTENT}) as server:
        yield server


def test_a_whole_file(server, here):
    told = []
    fetch(f"{server.url}/a.bin", here / "x/a.bin", len(CONTENT), SUM, lambda *now: told.append(now))
    assert (here / "x/a.bin").read_bytes() == CONTENT
    assert [place.name for place in (here / "x").iterdir()] == ["a.bin"]
    assert told[-1] == (len(CONTENT), len(CONTENT))


def test_a_connection_that_breaks_goes_on_where_it_broke(server, here):
    server.cuts["/a.bin"] = [200_000, 131_072, 7]
    fetch(f"{server.url}/a.bin", here / "a.bin")
    assert (here / "a.bin").read_bytes() == CONTENT
    assert server.got("/a.bin") == [None, "bytes=200000-", "bytes=331072-", "bytes=331079-"]


def test_a_server_without_ranges_begins_again(server, here):
    server.ranges, server.cuts["/a.bin"] = False, [200_000]
    fetch(f"{server.url}/a.bin", here / "a.bin", sha256=SUM)
    assert (here / "a.bin").read_bytes() == CONTENT


def test_a_slow_server(server, here):
    server.slow = 0.02
    fetch(f"{server.url}/a.bin", here / "a.bin", sha256=SUM)
    assert (here / "a.bin").read_bytes() == CONTENT


def test_a_server_that_says_nothing_counts_as_broken(server, here, monkeypatch):
    monkeypatch.setattr(transfer, "PATIENCE", 0.05)
    monkeypatch.setattr(transfer, "TRIES", 2)
    server.slow = 0.5
    with pytest.raises(DataError, match="broke off 2 times"):
        fetch(f"{server.url}/a.bin", here / "a.bin")
    assert not (here / "a.bin").exists()


def test_what_breaks_again_and_again_waits_for_the_same_command(server, here):
    server.cuts["/a.bin"] = [131_072, *[0] * transfer.TRIES]
    with pytest.raises(DataError) as caught:
        fetch(f"{server.url}/a.bin", here / "a.bin", sha256=SUM)
    assert caught.value.fix == "the same command goes on at 131,072 bytes"
    assert (here / "a.bin.part").stat().st_size == 131_072
    server.asked.clear()
    fetch(f"{server.url}/a.bin", here / "a.bin", sha256=SUM)
    assert server.got("/a.bin") == ["bytes=131072-"]
    assert (here / "a.bin").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_begins_again(server, here):
    server.cuts["/a.bin"] = [131_072, *[0] * transfer.TRIES]
    with pytest.raises(DataError):
        fetch(f"{server.url}/a.bin", here / "a.bin")
    server.files["/a.bin"] = CONTENT[::-1]
    fetch(f"{server.url}/a.bin", here / "a.bin")
    assert (here / "a.bin").read_bytes() == CONTENT[::-1]


def test_a_rest_of_which_nothing_is_known_is_not_gone_on_with(server, here):
    (here / "a.bin.part").write_bytes(b"of something else")
    fetch(f"{server.url}/a.bin", here / "a.bin")
    assert (here / "a.bin").read_bytes() == CONTENT


def test_more_than_the_server_has_begins_again(server, here):
    (here / "a.bin.part").write_bytes(CONTENT + b"x")
    fetch(f"{server.url}/a.bin", here / "a.bin", sha256=SUM)
    assert (here / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("size", "sha256", "what"),
    [(len(CONTENT) + 1, "", "700,001 bytes came, and it should be 700,002"),
     (len(CONTENT), "0" * 64, f"its SHA-256 is {SUM}, and should be {'0' * 64}")],
)  # fmt: skip
def test_another_file_than_was_meant_is_removed(server, here, size, sha256, what):
    with pytest.raises(DataError) as caught:
        fetch(f"{server.url}/a.bin", here / "a.bin", size, sha256)
    assert what in caught.value.what
    assert not list(here.iterdir())


@pytest.mark.parametrize(("code", "fix"), [(404, "has it moved?"), (403, "a login"), (401, "a login")])
def test_what_a_server_refuses_is_asked_for_once(server, here, code, fix):
    server.refused["/a.bin"] = code
    with pytest.raises(DataError, match=f"the server says {code}") as caught:
        fetch(f"{server.url}/a.bin", here / "a.bin")
    assert fix in caught.value.fix
    assert len(server.asked) == 1


def test_a_server_that_is_busy_is_asked_again(server, here):
    server.refused["/a.bin"] = 503
    with pytest.raises(DataError, match="broke off 5 times"):
        fetch(f"{server.url}/a.bin", here / "a.bin")
    assert len(server.asked) == transfer.TRIES


def test_a_disk_without_room_is_told_before_anything_comes(server, here, monkeypatch):
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: Usage(1, 1, transfer.SPARE + 700_000))
    with pytest.raises(NoSpaceError) as caught:
        fetch(f"{server.url}/a.bin", here / "a.bin")
    assert caught.value.what.startswith("700,001 bytes are to come, and 700,000 are free")
    assert not (here / "a.bin.part").exists()


def test_a_disk_that_becomes_full_meanwhile(server, here, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "_copy", full)
    with pytest.raises(NoSpaceError, match="no space left"):
        fetch(f"{server.url}/a.bin", here / "a.bin")


def test_any_other_scheme_through_fsspec(here):
    import fsspec

    with fsspec.open("memory://transfer/a.bin", "wb") as out:
        out.write(CONTENT)
    (here / "a.bin.part").write_bytes(CONTENT[:1000])
    fetch("memory://transfer/a.bin", here / "a.bin", sha256=SUM)
    assert (here / "a.bin").read_bytes() == CONTENT
    with pytest.raises(DataError, match="memory://transfer/none"):
        fetch("memory://transfer/none", here / "b.bin")
