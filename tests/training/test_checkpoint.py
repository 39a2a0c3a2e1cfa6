"""Checkpoints: whole or absent, the newest kept, damage named."""

import pytest
import torch

from mmalign.errors import RunError
from mmalign.training import checkpoint


def state(seed):
    g = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 4), "a/exp_avg": (3, 4), "b": (1,)}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}


def test_save_load_and_only_the_newest_stays(tmp_path):
    for step in (5, 10):
        checkpoint.save(tmp_path, step, iter(state(step).items()), 0)
    assert [p.name for p in tmp_path.iterdir()] == ["step-10"]
    step, loaded = checkpoint.load(checkpoint.newest(tmp_path))
    assert step == 10
    assert all(torch.equal(loaded[k], v) for k, v in state(10).items())


def test_many_files_when_one_would_be_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD", 50)
    checkpoint.save(tmp_path, 1, iter(state(0).items()), 0)
    assert len(list((tmp_path / "step-1").glob("state-*.safetensors"))) > 1
    assert set(checkpoint.load(tmp_path / "step-1")[1]) == set(state(0))


def test_other_ranks_take_part_and_write_nothing(tmp_path):
    gathered = []
    checkpoint.save(tmp_path, 1, (gathered.append(k) or (k, v) for k, v in state(0).items()), 1)
    assert len(gathered) == 3
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_was_being_written_does_not_count(tmp_path):
    (tmp_path / ".step-7.part").mkdir()
    (tmp_path / "step-3").mkdir()
    assert checkpoint.newest(tmp_path) is None


def test_a_damaged_checkpoint_is_named(tmp_path):
    checkpoint.save(tmp_path, 1, iter(state(0).items()), 0)
    shard = next((tmp_path / "step-1").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(RunError, match=r"state-00000\.safetensors is damaged"):
        checkpoint.load(tmp_path / "step-1")


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 5}\n{"step": 10}\n{"step": 15}\n{"step": 2')
    checkpoint.trim(log, 10)
    assert log.read_text() == '{"step": 5}\n{"step": 10}\n'
    checkpoint.trim(tmp_path / "none.jsonl", 3)
