"""Which reader a file or folder is for, by its name, else by its first bytes."""

import posixpath

from mmalign.data import cache, conversations, delimited, patterns, sniff, table, tars
from mmalign.errors import DataError
from mmalign.io import files

ENDINGS = {
    "JSON": conversations.ENDINGS, "parquet or Arrow": table.ENDINGS, "CSV": delimited.ENDINGS, "tar": tars.ENDINGS,
}  # fmt: skip
READERS = {"JSON": "conversations", "parquet or Arrow": "table", "CSV": "table", "tar": "tars"}
MAGIC = {b"PAR1": "table", b"ARROW1": "table"}


def reader_of(spec: str) -> str | None:
    """`conversations`, `table` or `tars`; None for what is no file or folder.

    A DataError for a folder without data, or with files of several kinds.
    """
    if not files.is_url(spec) and cache.path(spec).is_dir():
        is_saved = any((cache.path(spec) / name).exists() for name in table.SAVED)
        return "table" if is_saved else READERS[kind_in(spec)]
    for kind, endings in ENDINGS.items():
        if patterns.ends(spec, endings):
            return READERS[kind]
    if files.is_url(spec):
        return READERS[kind_in(spec)]
    return _by_content(spec) if files.exists(cache.path(spec)) else None


def _by_content(spec: str) -> str:
    with files.open_(spec) as source:
        head = source.read(sniff.HEAD)
    if head[257:262] == b"ustar":
        return "tars"
    return next((reader for magic, reader in MAGIC.items() if head.startswith(magic)), "conversations")


def kind_in(folder: str) -> str:
    """The kind of the files in a folder; a DataError where there are several, or none."""
    names = patterns.below(folder, [ending for endings in ENDINGS.values() for ending in endings]).values()
    names_of = {kind: [name for name in names if patterns.ends(name, endings)] for kind, endings in ENDINGS.items()}
    present = {kind: some for kind, some in names_of.items() if some}
    if not present:
        what = f"no file of data in {folder}: none of {', '.join(endings[0] for endings in ENDINGS.values())}"
        raise DataError(what, at=folder, fix="check the path, $MMALIGN_DATA")
    if len(present) > 1:
        counts = ", ".join(f"{len(some)} {kind} ({some[0]})" for kind, some in present.items())
        patterns_ = " or ".join(f"'{_pattern(folder, some[0])}'" for some in present.values())
        what = f"{folder} has files of several kinds: {counts}"
        raise DataError(what, at=folder, fix=f"name the files of one: {patterns_}")
    return next(iter(present))


def _pattern(folder: str, name: str) -> str:
    """A pattern for the files beside one of a folder."""
    ending = next(ending for endings in ENDINGS.values() for ending in endings if patterns.ends(name, [ending]))
    return posixpath.join(folder, posixpath.dirname(name), f"*{ending}")
