"""Hashes of files: every damage is noticed and named, each file is hashed once, `sha256sum` reads what we write."""

import shutil
import subprocess
import threading

import pytest

from mmalign.errors import RunError
from mmalign.io import sums


def flip(place, at, bit):
    """Turn one bit of a file."""
    data = bytearray(place.read_bytes())
    data[at] ^= 1 << bit
    place.write_bytes(data)
    sums.forget()  # the file's time may be the same still


@pytest.fixture(autouse=True)
def fresh():
    sums.forget()


@pytest.fixture
def folder(tmp_path):
    """A folder with a large file and two small ones, and its SHA256SUMS."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 8192)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "inner" / "a b.txt").write_text("words")
    (tmp_path / ".hidden").write_text("no part of it")
    sums.write(tmp_path)
    return tmp_path


def check(folder):
    sums.verify(sums.read(folder), "mend it")


def test_a_whole_folder(folder):
    check(folder)
    assert {place.relative_to(folder).as_posix() for place in sums.read(folder)} == {
        "weights", "config.json", "inner/a b.txt"
    }  # fmt: skip
    assert sums.read(folder / "inner") == {}  # which has no list


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs coreutils")
def test_the_usual_command_reads_the_list(folder):
    line = ["sha256sum", "--strict", "--check", sums.NAME]
    assert subprocess.run(line, cwd=folder, check=True, capture_output=True).stdout.count(b": OK\n") == 3
    flip(folder / "weights", 5, 5)
    assert subprocess.run(line, cwd=folder, check=False, capture_output=True).returncode == 1


@pytest.mark.parametrize("name", ["weights", "config.json", "inner/a b.txt"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file_is_named(folder, name, damage):
    place = folder / name
    if damage == "flip":
        flip(place, -1, 7)
    elif damage == "cut":
        place.write_bytes(place.read_bytes()[:-1])
    else:
        place.unlink()
    with pytest.raises(RunError) as caught:
        check(folder)
    word = "missing" if damage == "gone" else "damaged: it is not as it was written (SHA-256)"
    assert (caught.value.what, caught.value.fix) == (f"{place.name} is {word}", "mend it")
    assert caught.value.at == str(place)


def test_every_flipped_bit_and_every_cut_of_the_list_is_noticed(folder):
    place = folder / sums.NAME
    whole = place.read_bytes()
    for at in range(len(whole)):
        place.write_bytes(whole[:at])
        with pytest.raises(RunError):
            check(folder)
        for bit in range(8):
            place.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            with pytest.raises(RunError):
                check(folder)
    place.write_bytes(whole)
    check(folder)


@pytest.mark.parametrize("name", ["/etc/hostname", "../b"])
def test_a_list_names_nothing_outside_its_folder(folder, name):
    (folder / sums.NAME).write_text(f"{'0' * 64}  {name}\n# 1 files\n")
    with pytest.raises(RunError, match="SHA256SUMS is damaged"):
        check(folder)


def test_a_file_is_hashed_once_until_it_changes(folder, monkeypatch):
    check(folder)
    with monkeypatch.context() as patched:
        patched.setattr(sums, "_sha256", None)
        check(folder)
        sums.verify(sums.read(folder), "mend it")
    (folder / "weights").write_bytes(b"shorter")
    with pytest.raises(RunError, match="weights is damaged"):
        check(folder)


def test_small_files_are_compared_before_the_body_and_large_ones_by_its_end(folder):
    flip(folder / "config.json", 0, 0)
    ran = []
    with pytest.raises(RunError, match=r"config\.json is damaged"), sums.verifying(sums.read(folder), "fix"):
        ran.append("small")
    flip(folder / "config.json", 0, 0)
    flip(folder / "weights", 0, 0)
    with pytest.raises(RunError, match="weights is damaged"), sums.verifying(sums.read(folder), "fix"):
        ran.append("large")
    assert ran == ["large"]


def test_damage_is_told_in_place_of_what_came_of_it(folder):
    flip(folder / "weights", 0, 0)
    with pytest.raises(RunError, match="weights is damaged"), sums.verifying(sums.read(folder), "fix"):
        raise ValueError("cannot read it")
    flip(folder / "weights", 0, 0)
    with pytest.raises(ValueError, match="cannot read it"), sums.verifying(sums.read(folder), "fix"):
        raise ValueError("cannot read it")


def test_large_files_are_hashed_beside_the_body(folder, monkeypatch):
    may, real = threading.Event(), sums._sha256

    def waits(*args):
        assert may.wait(60)
        return real(*args)

    known = sums.read(folder)
    sums.begin(place for place in known if place.name != "weights")
    monkeypatch.setattr(sums, "_sha256", waits)
    with sums.verifying(known, "fix"):
        may.set()  # never reached if the body had to wait


def test_what_cannot_be_read_is_said(folder, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sums, "_sha256", broken)
    sums.forget()
    with pytest.raises(RunError, match=r"config\.json cannot be read: Input/output error"):
        check(folder)
