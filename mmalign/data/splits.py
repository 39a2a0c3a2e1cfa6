"""Which files of a folder are which split: `train-00000-of-00008.parquet`, `validation/0.parquet`, `test.json`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from mmalign.errors import DataError, suggest

SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}\.")  # as `datasets` names the shards of any split
NUMBER = re.compile(r"-(\d{5,6})-of-(\d{5,6})(?:-[0-9a-f]+)?\.[\w.]+$")  # some with a hash behind
WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
SHOWN = 8  # names of splits in a message


def split_of(name: str) -> str | None:
    """The split that a file's path below its folder names, as `datasets` reads such names; None where it names none."""
    *folders, last = PurePosixPath(name).parts
    shard = SHARD.match(last)
    if shard and _named(shard[1]):
        return WORDS.get(shard[1], shard[1])  # train_sft-00000-of-00001.parquet is of train_sft
    by_word = next(filter(None, map(_named, [last, *reversed(folders)])), None)
    return by_word or (shard[1] if shard else None)


def _named(part: str) -> str | None:
    """The split that a word in a part of a path means."""
    return next((WORDS[word] for word in re.split(r"[^a-z]+", part.lower()) if word in WORDS), None)


def choose(name_of: Mapping[str, str], folder: str, split: str | None) -> list[str]:
    """The files of a folder that are of a split; all, where they are of one and none is named.

    name_of: {file: its path below the folder}. A DataError where there are several splits and none is named, and where
    there is none of that name.
    """
    split_of_file = {file: split_of(name) for file, name in name_of.items()}
    names = sorted({name for name in split_of_file.values() if name})
    others = sum(name is None for name in split_of_file.values())
    if split is None and len(names) + bool(others) <= 1:
        return list(name_of)
    if not names:
        refuse(split, folder, "no file is named after a split, as train-00000-of-00001.parquet is")
    check(split, names, folder, f", and {others} of no split" if others else "")
    return [file for file, name in split_of_file.items() if name == canonical(split, names)]


def missing(paths: Sequence[str]) -> list[str]:
    """A sentence for each row of numbered shards, `train-00000-of-00008.parquet`, of which some are not there."""
    shards_of: dict[tuple[str, int], set[str]] = {}
    for path in paths:
        if number := NUMBER.search(path):
            shards_of.setdefault((path[: number.start()], int(number[2])), set()).add(number[1])
    return [
        f"{len(shards)} of the {total} shards of {PurePosixPath(name).name} are there"
        for (name, total), shards in shards_of.items()
        if len(shards) < total
    ]


def check(split: str | None, names: Sequence[str], at: str, more: str = "") -> None:
    """A DataError where no split is named, or none of these. more: what stands beside them, for the message."""
    known = ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "") + more
    if split is None:
        first = min(names, key=lambda name: (name != "train", not name.startswith("train")))
        raise DataError(
            f"{at} has several splits: {known}",
            at=at,
            fix=f"name one: split={first}" + (", or name the files" if more else ""),
        )
    if canonical(split, names) not in names:
        raise DataError(f"no split {split!r} among {known}", at=at, fix=f"split: {suggest(split, names)}")


def canonical(split: str | None, names: Sequence[str]) -> str | None:
    """A split's name as it stands among the names: `val` is `validation` where there is no `val`."""
    return split if split in names else WORDS.get(str(split), split)


def refuse(split: str | None, at: str, why: str) -> None:
    """A DataError where a split is named and there is nothing it could choose from. why: as a sentence."""
    if split is not None:
        raise DataError(f"split={split} cannot apply: {why}", at=at, fix="leave split= out")
