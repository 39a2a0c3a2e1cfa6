"""The rights that the umask leaves, what reaches the disk, and why something is denied."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from mmalign.io import disk, files


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_what_is_written_follows_the_umask(tmp_path, umask):
    with files.made(tmp_path / "folder") as beside:
        (beside / "llm").mkdir()
        save_file({"a": torch.zeros(2)}, beside / "llm" / "model.safetensors")  # which makes it 0600
        files.write(beside / "a.json", "{}")
    for place in (tmp_path / "folder").rglob("*"):
        mode = stat.S_IMODE(place.stat().st_mode)
        assert mode == (0o777 if place.is_dir() else 0o666) & ~umask, place
    assert sorted(p.name for p in (tmp_path / "folder").rglob("*")) == ["a.json", "llm", "model.safetensors"]


def test_nothing_is_taken_from_what_others_may_do_already(tmp_path):
    (tmp_path / "run.sh").touch()
    (tmp_path / "run.sh").chmod(0o777)
    disk.settle(tmp_path)
    assert stat.S_IMODE((tmp_path / "run.sh").stat().st_mode) == 0o777


def test_a_link_is_left_alone(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").touch(mode=0o600)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "broken").symlink_to(tmp_path / "none")
    disk.settle(tmp_path / "in")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600


def test_every_file_and_folder_is_synced_the_folder_last(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").touch()
    (tmp_path / "b").touch()
    seen = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(os.readlink(f"/proc/self/fd/{handle}")))
    disk.settle(tmp_path)
    assert seen == [str(tmp_path / name) for name in ("in/a", "in", "b")] + [str(tmp_path)]


def test_a_folder_that_cannot_be_synced_is_no_error_and_a_full_disk_is(tmp_path, monkeypatch):
    def fails(code):
        def fsync(_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fsync)

    fails(disk.errno.EINVAL)
    disk.sync(tmp_path)
    fails(disk.errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        disk.sync(tmp_path)


def test_whose_it_is_is_said(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir(mode=0o755)
    monkeypatch.setattr(disk, "_name", lambda user: "ann" if user == tmp_path.stat().st_uid else "bob")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    err = disk.denied(tmp_path / "runs" / "train-1" / "lock")
    assert err.what == f"permission denied: {tmp_path}/runs is ann's (drwxr-xr-x), and this is bob"
    assert err.at == f"{tmp_path}/runs/train-1/lock"
    assert err.fix == f"ann: umask 002; chmod -R g+rwX {tmp_path}/runs   or another --runs"


def test_a_file_is_blamed_itself_where_it_is_closed(tmp_path, monkeypatch):
    place = tmp_path / "a.safetensors"
    place.touch(mode=0o600)
    monkeypatch.setattr(os, "access", lambda *_: False)
    err = disk.denied(place)
    assert f"{place} is " in err.what
    assert "(-rw-------)" in err.what
    assert err.fix.endswith(f"chmod -R g+rwX {tmp_path}   or another --runs")
