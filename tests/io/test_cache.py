"""The cache: one root, a size, an age; nothing of anybody else's is ever removed from it."""

import gzip
import os
import time

import numpy as np
import pytest

from mmalign.data import cache as data
from mmalign.io import cache
from mmalign.labels.bank import text_bank
from tests.labels.test_words import Tower


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache._Written, "bytes", None)
    return tmp_path / "cache"


def entry(root, number, size=100, days=0.0, room="data"):
    """An entry of the cache, last used so many days ago."""
    name = f"plain-{number:032x}" if room == "data" else f"{number:024x}.safetensors"
    place = root / room / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(bytes(size))
    then = time.time() - days * cache.DAY
    os.utime(place, (then, then))
    return place


def test_what_was_not_used_for_long_goes(root):
    old, young = entry(root, 1, days=91), entry(root, 2, days=89, room="banks")
    assert [gone.place for gone in cache.trim()] == [old]
    assert young.exists()
    assert not old.exists()


def test_the_longest_unused_goes_first_where_it_is_too_much(root, monkeypatch):
    places = [entry(root, number, days=10 - number) for number in range(10)]
    monkeypatch.setenv("MMALIGN_CACHE_BYTES", "450")
    cache.used(places[0])
    cache.trim()
    assert [place.exists() for place in places] == [True] + [False] * 6 + [True] * 3


def test_what_is_in_use_stays_however_large(root, monkeypatch):
    place = entry(root, 1, size=5000)
    monkeypatch.setenv("MMALIGN_CACHE_BYTES", "10")
    assert cache.trim() == []
    assert place.exists()


def test_room_is_made_at_the_first_write_and_now_and_then(root, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE_BYTES", "1600")
    first = entry(root, 1, days=100)
    cache.added(entry(root, 2))
    assert not first.exists()
    second = entry(root, 3, days=100)
    cache.added(entry(root, 4, size=60))
    assert second.exists()  # a look costs as much as there are files
    cache.added(entry(root, 5, size=60))
    assert not second.exists()


def strangers(root):
    """Files in the cache's folders that are not the cache's, were $MMALIGN_CACHE somebody's home."""
    names = ["data/photos.npy", "data/plain-x", "data/rows.txt", "banks/money.safetensors", "thesis.pdf", "data/sub/x"]
    places = [root / name for name in names]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("dear")
        os.utime(place, (0, 0))
    (root / "data" / f"plain-{7:032x}").symlink_to(root / "thesis.pdf")
    return places


def test_nothing_else_is_touched(root, mmalign):
    places = strangers(root)
    entry(root, 1, days=100)
    cache.trim()
    mmalign("doctor", "--clean")
    assert all(place.read_text() == "dear" for place in places)


def test_doctor_cleans(root, mmalign):
    entry(root, 1, size=3 << 20)
    entry(root, 2, room="banks")
    (root / "data" / f".plain-{3:032x}.123.part").write_bytes(bytes(10))  # of a write that was killed
    assert f"3 MiB of 100 GiB in {root}" in mmalign("doctor").out
    said = mmalign("doctor", "--clean")
    assert (said.code, said.out) == (0, f"removed: 3 files, 3 MiB, from {root}\n")
    assert cache.entries() == []
    assert '"files": 0' in mmalign("doctor", "--clean", "--json").out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove everything")
def test_what_cannot_be_removed_is_said(root, mmalign):
    entry(root, 1).parent.chmod(0o500)
    said = mmalign("doctor", "--clean")
    assert said.code == 2
    assert "1 files of the cache cannot be removed" in said.err


def test_whoever_keeps_something_says_when_it_is_used(root, tmp_path, monkeypatch):
    stale = entry(root, 1, days=100)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    kept = [data.plain(str(tmp_path / "x.jsonl.gz")), *root.glob("data/*.npy")]
    assert not stale.exists()  # room was made
    data.array("rows", "0" * 32, lambda: np.zeros(3))
    text_bank(Tower(), ["red"])
    kept += [*root.glob("data/*.npy"), *root.glob("banks/*")]
    assert len(kept) == 3
    assert {one.place for one in cache.entries()} == set(kept)
    for place in kept:
        os.utime(place, (0, 0))
    data.plain(str(tmp_path / "x.jsonl.gz"))
    data.array("rows", "0" * 32, lambda: pytest.fail("it is kept"))
    text_bank(Tower(), ["red"])
    assert all(time.time() - one.used < 60 for one in cache.entries())


def model(root, number, days=0.0, name="{:032x}"):
    """An imported model, 300 bytes."""
    place = root / "models" / name.format(number)
    place.mkdir(parents=True)
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        (place / file).write_bytes(bytes(100))
    then = time.time() - days * cache.DAY
    os.utime(place, (then, then))
    return place


def test_a_model_is_one_entry_and_goes_as_one(root, monkeypatch):
    old, young, other = model(root, 1, days=3), model(root, 2, days=2), model(root, 3, name="mine-{}")
    killed = model(root, 4, days=1, name=".{:032x}.77.part")
    assert [(one.place, one.size) for one in cache.entries()] == [(old, 300), (young, 300), (killed, 300)]
    monkeypatch.setenv("MMALIGN_CACHE_BYTES", "700")
    assert [gone.place for gone in cache.trim()] == [old]
    cache.remove(cache.entries())
    assert list((root / "models").iterdir()) == [other]
    monkeypatch.setattr(cache._Written, "bytes", 0)
    cache.added(model(root, 5))
    assert cache._Written.bytes in (0, 300)


def test_a_model_is_never_seen_half_removed(root, monkeypatch):
    place = model(root, 1)
    monkeypatch.setattr(cache.shutil, "rmtree", lambda aside: (_ for _ in ()).throw(OSError("busy")))
    assert cache.remove(cache.entries()) == []
    assert not place.exists()
    assert len(cache.entries()) == 1  # what is left of it can be removed another time
