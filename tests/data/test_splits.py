"""Which split a file's path names, and which shards are not there."""

import pytest

from mmalign.data import splits
from mmalign.errors import DataError


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00008.parquet", "train"),
        ("data/train_sft-00000-of-00001.parquet", "train_sft"),
        ("data/val-00000-of-00001.parquet", "validation"),
        ("default/train/0000.parquet", "train"),
        ("test/data-00000-of-00001.arrow", "test"),
        ("lima/part-00000-of-00001.parquet", "part"),
        ("default/partial-train/0000.parquet", "train"),
        ("VQA/Testing/0.arrow", "test"),
        ("cc3m-validation-0007.tar", "validation"),
        ("train/test.json", "test"),
        ("dev.jsonl", "validation"),
        ("latest/trainer/testament.parquet", None),
        ("0000.parquet", None),
        ("train2017.json", "train"),
    ],
)
def test_the_split_of_a_path(name, split):
    assert splits.split_of(name) == split


def test_shards_that_are_not_there():
    paths = [f"/x/{split}-{n:05}-of-00003.parquet" for split, last in (("train", 3), ("test", 2)) for n in range(last)]
    assert splits.missing(paths) == ["2 of the 3 shards of test are there"]
    assert splits.missing(["/x/train-00000-of-00002-0123abcd.parquet"]) == ["1 of the 2 shards of train are there"]
    assert splits.missing(["/x/a.parquet", "/y/train-00000-of-00001.arrow"]) == []


def test_the_split_that_is_named_for_an_example():
    for names, split in ((["test_sft", "train_sft"], "train_sft"), (["dev", "test"], "dev"), (["a", "train"], "train")):
        with pytest.raises(DataError) as told:
            splits.check(None, names, "x")
        assert told.value.fix == f"name one: split={split}"
    with pytest.raises(DataError) as told:
        splits.choose({"test.json": "test.json", "pretrain.json": "pretrain.json"}, "x", None)
    assert told.value.fix == "name one: split=test, or name the files"
