"""Files: what a spec means, writes that are whole or absent, hashes that notice every change of content."""

import errno
import os
from pathlib import Path

import pytest

from mmalign.errors import RunError
from mmalign.io import files


def test_specs(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.anchored("./a/b", tmp_path) == f"{tmp_path}/a/b"
    assert files.anchored("../b", tmp_path) == f"{tmp_path.parent}/b"
    assert files.anchored({"a": ["./b", 1, None]}, tmp_path) == {"a": [f"{tmp_path}/b", 1, None]}
    assert files.anchored("~/b", Path("/elsewhere")) == f"{tmp_path}/b"
    for spec in ("openai/clip", "word", "/abs/path", "s3://bucket/key", "pkg:mmalign/x", "2.5"):
        assert files.anchored(spec, tmp_path) == spec
    assert files.local("openai/clip") is None
    assert files.local("s3://bucket/key") is None
    assert files.local("/abs/path") == Path("/abs/path")


def test_a_path_inside_a_package_and_inside_one_that_is_not_there():
    found = files.local("pkg:mmalign.toyworld/words/clean.txt")
    assert found is not None
    assert found.is_file()
    for spec in ("pkg:no_such_package/x", "pkg:mmalign.no_such/x", "pkg:", "pkg:../x"):
        missing = files.local(spec)
        assert missing is not None
        assert not files.exists(missing)


def test_names_that_no_file_can_have_do_not_exist():
    assert not files.exists(Path("/" + "a" * 5000))
    assert not files.exists(Path("/a\0b"))


def test_write_makes_folders_and_replaces_the_whole(tmp_path):
    place = tmp_path / "new" / "a.txt"
    files.write(place, "first")
    files.write(place, b"second")
    assert place.read_bytes() == b"second"
    assert os.listdir(place.parent) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, call):
    place = tmp_path / "a.txt"
    files.write(place, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        files.write(place, "new")
    assert place.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_is_whole_or_absent(tmp_path):
    target = tmp_path / "in" / "it"
    with pytest.raises(KeyError), files.made(target) as beside:
        (beside / "half").touch()
        raise KeyError
    assert not list(target.parent.iterdir())
    with files.made(target) as beside:
        (beside / "all").touch()
        assert not target.exists()
    assert [place.name for place in target.parent.rglob("*")] == ["it", "all"]
    with pytest.raises(OSError, match="not empty"), files.made(target) as beside:
        (beside / "other").touch()
    assert [place.name for place in target.parent.rglob("*")] == ["it", "all"]


def test_sweep_removes_what_killed_writes_left_and_nothing_else(tmp_path):
    (tmp_path / "checkpoints" / ".step-3.part").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-3.part" / "state").touch()
    (tmp_path / "checkpoints" / "step-2").mkdir()
    (tmp_path / ".a.json.123.part").touch()
    (tmp_path / "a.part").touch()
    files.sweep(tmp_path)
    left = sorted(str(place.relative_to(tmp_path)) for place in tmp_path.rglob("*"))
    assert left == ["a.part", "checkpoints", "checkpoints/step-2"]


@pytest.mark.parametrize(("text", "what"), [("{", "not valid JSON"), ("", "not valid JSON"), (None, "cannot read")])
def test_damaged_json_is_named(tmp_path, text, what):
    place = tmp_path / "a.json"
    if text is not None:
        place.write_text(text)
    with pytest.raises(RunError) as caught:
        files.read_json(place, fix="try this")
    assert what in caught.value.what
    assert caught.value.at == str(place)
    assert caught.value.fix == "try this"


def test_hashes_change_with_the_content_and_with_nothing_else(tmp_path):
    place = tmp_path / "words.txt"
    place.write_text("star")
    first = files.Hashes().of(str(place))
    os.utime(place, (1, 1))
    assert files.Hashes().of(str(place)) == first
    place.write_text("ring")
    assert files.Hashes().of(str(place)) != first


def test_hashes_of_a_checkpoint_folder_notice_every_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("a")
    seen = [files.Hashes().of(str(tmp_path))]
    (tmp_path / "model.safetensors").write_text("b")
    seen.append(files.Hashes().of(str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text("{}")
    seen.append(files.Hashes().of(str(tmp_path)))
    (tmp_path / ".cache").write_text("not part of it")
    seen.append(files.Hashes().of(str(tmp_path)))
    assert len(set(seen)) == 3
    assert seen[2] == seen[3]


def test_what_is_not_hashed(tmp_path):
    hashes = files.Hashes()
    assert hashes.of("openai/clip") is None
    assert hashes.of(str(tmp_path / "missing")) is None
    assert hashes.of(str(tmp_path)) is None  # a folder of images


def test_hashes_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    big, memory = tmp_path / "big.bin", tmp_path / ".hashes.json"
    big.write_text("a")
    one = files.Hashes(memory)
    first = one.of(str(big))
    one.save()
    two = files.Hashes(memory)
    with monkeypatch.context() as patched:
        patched.setattr("hashlib.file_digest", None)
        assert two.of(str(big)) == first
    big.write_text("bb")
    assert files.Hashes(memory).of(str(big)) != first


@pytest.mark.parametrize("damage", ["{", "[]", '{"x": 1}', "\x00"])
def test_a_damaged_memory_of_hashes_is_read_again(tmp_path, damage):
    big, memory = tmp_path / "big.bin", tmp_path / ".hashes.json"
    big.write_text("a")
    memory.write_text(damage)
    assert files.Hashes(memory).of(str(big)) == files.Hashes().of(str(big))


def test_a_hash_that_was_turned_in_the_memory_is_not_believed(tmp_path):
    """It would be another fingerprint, and a stage would begin anew in another folder."""
    big, memory = tmp_path / "big.bin", tmp_path / ".hashes.json"
    big.write_text("a")
    hashes = files.Hashes(memory)
    right = hashes.of(str(big))
    hashes.save()
    text = memory.read_text()
    for at in range(len(text)):
        memory.write_text(text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :])
        assert files.Hashes(memory).of(str(big)) == right
    memory.write_text(text)
    assert files.Hashes(memory).known == hashes.known


def test_hashes_are_only_a_cache_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("a")
    hashes = files.Hashes(tmp_path / ".hashes.json")
    hashes.of(str(tmp_path / "a"))
    monkeypatch.setattr(files, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
    hashes.save()
    assert os.listdir(tmp_path) == ["a"]


def test_the_cache_is_where_the_user_says_else_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "mine"))
    assert files.cache("banks") == tmp_path / "mine" / "banks"
    monkeypatch.setenv("MMALIGN_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache("data") == tmp_path / ".cache" / "mmalign" / "data"
