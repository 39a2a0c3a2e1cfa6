"""Checkpoints written beside training: the same files, training not kept waiting, no error lost."""

import errno
import os
import threading

import pytest
import torch

from mmalign.training import checkpoint, writer
from mmalign.training.writer import Writer
from tests.training.test_checkpoint import SHARD, state
from tests.training.test_loop import fit, log, passes

PLENTY = 1 << 40


def writes(folder, rank=0, keep=2, free=PLENTY):
    return Writer(folder, rank, keep, free=lambda: free)


def save(to, step, size=1000):
    to.save(step, iter(state(step).items()), size)


@pytest.fixture
def held(monkeypatch):
    """Nothing is written until this is set."""
    may, real = threading.Event(), checkpoint.save

    def later(*args, **options):
        assert may.wait(30)
        real(*args, **options)

    monkeypatch.setattr(checkpoint, "save", later)
    yield may
    may.set()


def test_the_files_are_those_of_a_write_that_is_waited_for(tmp_path):
    with writes(tmp_path / "beside") as beside:
        save(beside, 5)
    checkpoint.save(tmp_path / "waited", 5, iter(state(5).items()), 0)
    for name in (SHARD, "step.json"):
        pair = [(tmp_path / place / "step-5" / name).read_bytes() for place in ("beside", "waited")]
        assert pair[0] == pair[1]


def test_training_goes_on_meanwhile_and_the_block_ends_behind_it(tmp_path, held):
    with writes(tmp_path) as to:
        save(to, 5)
        to.look()
        assert not list(tmp_path.iterdir())
        threading.Timer(0.2, held.set).start()
    assert checkpoint.load(tmp_path / "step-5")[0] == 5


def test_one_is_written_after_the_other(tmp_path, held):
    with writes(tmp_path, keep=3) as to:
        save(to, 5)
        threading.Timer(0.2, held.set).start()
        save(to, 6)
        assert (tmp_path / "step-5" / "step.json").exists()
    assert sorted(place.name for place in tmp_path.iterdir()) == ["step-5", "step-6"]


@pytest.mark.parametrize(("size", "free"), [(1000, 1999), (1, 0)])
def test_without_room_for_the_copy_it_is_written_at_once(tmp_path, size, free):
    with writes(tmp_path, free=free) as to:
        save(to, 5, size)
        assert to.writing is None
        assert (tmp_path / "step-5" / "step.json").exists()


def test_with_room_for_the_copy_it_is_not(tmp_path, held):
    with writes(tmp_path, free=2000) as to:
        save(to, 5, 1000)
        assert to.writing is not None
        held.set()


def test_other_ranks_take_part_and_write_nothing(tmp_path):
    gathered = []
    with writes(tmp_path, rank=1) as to:
        to.save(5, (gathered.append(name) or (name, value) for name, value in state(5).items()), 1000)
        assert to.writing is None
    assert gathered == list(state(5))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def full(monkeypatch):
    def fails(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fails)


@pytest.mark.parametrize("then", ["look", "save", "leave"])
def test_a_full_disk_is_told_by_the_next_call(tmp_path, full, then):
    with pytest.raises(OSError, match="No space left"), writes(tmp_path) as to:
        save(to, 5)
        if then == "look":
            while not to.writing.done():
                to.look()
            to.look()
            pytest.fail("look raised nothing")
        if then == "save":
            save(to, 6)
            pytest.fail("save raised nothing")
    assert not (tmp_path / "step-5").exists()
    assert to.writing is None


def test_what_went_wrong_in_the_block_goes_first(tmp_path, full):
    with pytest.raises(ValueError, match="the other"), writes(tmp_path) as to:
        save(to, 5)
        raise ValueError("the other")
    assert not [one for one in threading.enumerate() if one.name == "checkpoint"]


def test_a_disk_that_fills_in_training_ends_it_and_nothing_is_lost(tmp_path, monkeypatch):
    """The run ends with the error of the disk; with room again it goes on from the checkpoint before, to the same."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    net, run = fit(one, steps=12, save_every=3)
    run.run()
    real, calls = checkpoint.save_file, []

    def fills(*args):
        calls.append(args)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    monkeypatch.setattr(checkpoint, "save_file", fills)
    with pytest.raises(OSError, match="No space left"):
        fit(two, steps=12, save_every=3)[1].run()
    assert sorted(place.name for place in (two / "checkpoints").glob("step-*")) == ["step-3", "step-6"]
    monkeypatch.setattr(checkpoint, "save_file", real)
    again, rest = fit(two, steps=12, save_every=3)
    rest.run()
    assert "goes on from step 6" in (two / "events.jsonl").read_text()
    assert torch.equal(again.adapter.weight, net.adapter.weight)
    assert [line["loss"] for line in log(two)] == [line["loss"] for line in log(one)]


def test_a_checkpoint_holds_the_step_it_was_asked_for_whatever_training_does_meanwhile(tmp_path, held):
    """Training is at its end before a byte of it is written."""

    def made(step):
        if step == 11:
            held.set()
        return passes(step)

    fit(tmp_path, steps=12, save_every=6, make=made)[1].run()
    first = tmp_path / "first"
    first.mkdir()
    net, run = fit(first, steps=12, save_every=100, stop=lambda done: done == 6)
    run.run()
    step, saved = checkpoint.load(tmp_path / "checkpoints" / "step-6")
    assert step == 6
    assert torch.equal(saved["adapter.weight"], net.adapter.weight)


def test_the_thread_is_not_left_when_the_run_is_interrupted(tmp_path, held):
    def broken(step):
        if step == 5:
            threading.Timer(0.1, held.set).start()
            raise KeyboardInterrupt
        return passes(step)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, steps=9, save_every=3, make=broken)[1].run()
    assert checkpoint.load(tmp_path / "checkpoints" / "step-3")[0] == 3
    assert writer.SHARE < 1
    assert os.listdir(tmp_path / "checkpoints") == ["step-3"]
