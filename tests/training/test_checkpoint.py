"""Checkpoints: whole or absent, the newest two kept, damage named and gone round."""

import json
import os
import random
from pathlib import Path

import pytest
import torch

from mmalign.errors import RunError
from mmalign.io import files, sums
from mmalign.io.steps import complete
from mmalign.training import checkpoint
from tests.io.test_sums import flip


def state(seed):
    g = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 4), "a/exp_avg": (3, 4), "b": (1,)}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of the steps 5 and 10."""
    for step in (5, 10):
        checkpoint.save(tmp_path, step, iter(state(step).items()), 0)
    return tmp_path


def assert_goes_on_from(folder, step, *told):
    heard = []
    place, found, loaded = checkpoint.last(folder, heard.append)
    assert (place.name, found) == (f"step-{step}", step)
    assert all(torch.equal(loaded[k], v) for k, v in state(step).items())
    assert len(heard) == len(told)
    assert all(part in said for said, part in zip(heard, told, strict=True))


def names(folder):
    return sorted(place.name for place in folder.iterdir())


def test_the_newest_is_gone_on_from_and_two_stay(saved):
    assert_goes_on_from(saved, 10)
    checkpoint.save(saved, 15, iter(state(15).items()), 0)
    assert names(saved) == ["step-10", "step-15"]
    assert_goes_on_from(saved, 15)


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_stay_as_are_asked_for(tmp_path, keep):
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, iter(state(step).items()), 0, keep)
        assert names(tmp_path) == [f"step-{step - number}" for number in reversed(range(min(keep, step)))]


def test_one_that_was_being_removed_is_not_taken_for_damaged(saved, monkeypatch):
    """Killed as its files go, the first of them gone."""

    def killed(place, **_):
        if "step-5" in place.name and place.exists():
            (place / SHARD).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(saved, 15, iter(state(15).items()), 0)
    assert [place.name for place in complete(saved)] == ["step-15", "step-10"]
    checkpoint.save(saved, 20, iter(state(20).items()), 0)
    files.sweep(saved)
    assert names(saved) == ["step-15", "step-20"]


def test_a_damaged_byte_anywhere_in_any_file_is_noticed(saved):
    """Turned in one to eight bits, or all from it on cut off: two hundred times, the one before is gone on from."""
    how = random.Random(5)
    newest = saved / "step-10"
    for _ in range(200):
        place = how.choice(sorted(newest.iterdir()))
        whole = place.read_bytes()
        at = how.randrange(len(whole))
        turned = whole[:at] + bytes([whole[at] ^ how.randrange(1, 256)]) + whole[at + 1 :]
        place.write_bytes(whole[:at] if how.random() < 0.2 else turned)
        sums.forget()  # its time may be the same still
        assert_goes_on_from(saved, 5, "checkpoint step-10: ")
        (saved / "step-10.damaged").rename(newest)
        place.write_bytes(whole)
    sums.forget()
    assert_goes_on_from(saved, 10)


def test_no_hash_of_a_checkpoint_that_is_gone_is_remembered(tmp_path):
    sums.forget()
    for step in range(1, 5):
        checkpoint.save(tmp_path, step, iter(state(step).items()), 0)
    assert sums._begun == {}


def test_none_at_all(tmp_path):
    assert checkpoint.last(tmp_path / "none", print) is None


def test_many_files_when_one_would_be_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD", 50)
    checkpoint.save(tmp_path, 1, iter(state(0).items()), 0)
    shards = list((tmp_path / "step-1").glob("state-*.safetensors"))
    assert len(shards) > 1
    assert set(checkpoint.load(tmp_path / "step-1")[1]) == set(state(0))
    assert json.loads((tmp_path / "step-1" / "step.json").read_text())["files"].keys() == {s.name for s in shards}


def test_other_ranks_take_part_and_write_nothing(tmp_path):
    gathered = []
    checkpoint.save(tmp_path, 1, (gathered.append(k) or (k, v) for k, v in state(0).items()), 1)
    assert len(gathered) == 3
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_was_being_written_does_not_count(tmp_path):
    (tmp_path / ".step-7.part").mkdir()
    (tmp_path / "step-3").mkdir()
    assert complete(tmp_path) == []


def half(place):
    place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])


SHARD = "state-00000.safetensors"


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: half(c / SHARD), f"{SHARD} is damaged"),
        (lambda c: (c / SHARD).unlink(), ""),  # missing, or not whole
        (lambda c: half(c / "step.json"), "not valid JSON"),
        (lambda c: (c / "step.json").write_text("[]"), "step.json is damaged: it must be a mapping, got []"),
        (lambda c: (c / "step.json").write_text('{"step": "ten"}'), "step.json is damaged: it lacks 'tensors'"),
        (lambda c: (c / "step.json").write_text('{"step": 10, "tensors": 4}'), "the checkpoint step-10 is not whole"),
    ],
)
def test_a_damaged_newest_is_told_and_the_one_before_it_used(saved, damage, said, hashed):
    newest = saved / "step-10"
    if not hashed:  # as 0.1.0 wrote it
        (newest / "step.json").write_text('{"step": 10, "tensors": 3}')
    damage(newest)
    assert_goes_on_from(saved, 5, f"checkpoint step-10: {said}")
    assert names(saved) == ["step-10.damaged", "step-5"]
    assert_goes_on_from(saved, 5)
    checkpoint.save(saved, 10, iter(state(10).items()), 0)
    assert names(saved) == ["step-10", "step-5"]


def test_a_flipped_bit_is_noticed(saved):
    flip(saved / "step-10" / SHARD, -1, 0)
    assert_goes_on_from(saved, 5, f"checkpoint step-10: {SHARD} is damaged: it is not as it was written")


def test_where_every_one_is_damaged_nothing_is_lost(saved):
    for step in (5, 10):
        flip(saved / f"step-{step}" / SHARD, 200, 3)
    with pytest.raises(RunError) as caught:
        checkpoint.last(saved, print)
    assert caught.value.what.startswith(f"no checkpoint is whole: step-10: {SHARD} is damaged")
    assert f"step-5: {SHARD} is damaged" in caught.value.what
    assert (caught.value.at, caught.value.fix) == (str(saved), f"delete {saved} to begin anew")
    assert names(saved) == ["step-10", "step-5"]


def test_one_written_without_hashes_is_read(saved):
    (saved / "step-10" / "step.json").write_text('{"step": 10, "tensors": 3}')
    assert_goes_on_from(saved, 10)


def test_what_another_process_compared_is_not_compared_again(saved):
    flip(saved / "step-10" / SHARD, -1, 0)
    assert checkpoint.load(saved / "step-10", check=False)[0] == 10
    with pytest.raises(sums.Damaged, match="it is not as it was written"):
        checkpoint.load(saved / "step-10")


def test_a_step_that_is_written_again_replaces_the_old_one(saved):
    checkpoint.save(saved, 5, iter(state(7).items()), 0)  # as a run does that went on from before it
    assert names(saved) == ["step-5"]
    assert torch.equal(checkpoint.load(saved / "step-5")[1]["a"], state(7)["a"])


def test_all_is_on_the_disk_before_the_marker_and_before_an_older_one_goes(saved, monkeypatch):
    """In the order of the calls: the shards and their folder, step.json, the rename and its folder, then the old."""
    calls = []

    def told(module, name):
        real = getattr(module, name)

        def call(*args, **options):
            at = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else args[0]
            calls.append((name, Path(at).name))
            return real(*args, **options)

        monkeypatch.setattr(module, name, call)

    told(os, "fsync")
    told(os, "replace")
    told(checkpoint.shutil, "rmtree")
    told(Path, "rename")
    checkpoint.save(saved, 15, iter(state(15).items()), 0)
    order = [call for call in calls if call[0] != "rmtree" or call[1].startswith("step")]
    assert order[:2] == [("fsync", SHARD), ("fsync", ".step-15.part")]
    assert ("replace", f".step.json.{os.getpid()}.part") in order[2:5]
    assert order[-3:] == [("rename", ".step-15.part"), ("fsync", saved.name), ("rename", "step-5")]


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 5}\n{"step": 10}\n{"step": 15}\n{"step": 2')
    assert checkpoint.trim(log, 10) == 0
    assert log.read_text() == '{"step": 5}\n{"step": 10}\n'
    assert checkpoint.trim(tmp_path / "none.jsonl", 3) == 0


@pytest.mark.parametrize("damage", ["{", "[]", '{"stop": 3}', '{"step": "x"}', "\0"])
def test_damaged_lines_of_the_log_are_counted(tmp_path, damage):
    log = tmp_path / "metrics.jsonl"
    log.write_text(f'{{"step": 5}}\n{damage}\n{damage}\n{{"step": 15}}\n')
    assert checkpoint.trim(log, 10) == 2
    assert log.read_text() == '{"step": 5}\n'
