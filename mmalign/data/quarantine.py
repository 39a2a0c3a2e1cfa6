"""The quarantine file: rows that a check found unusable, so that training never meets them. JSONL of id and reason."""

import json
from collections.abc import Iterable
from pathlib import Path

from mmalign.data import cache
from mmalign.errors import DataError
from mmalign.io import document, files, whole

MAKE = "make it again: mmalign data check ... --quarantine FILE"


def write(target: Path, bad: Iterable[tuple[str, str]]) -> None:
    """Write (id, what is wrong) of every row left out."""
    lines = (json.dumps({"id": id_, "reason": reason}, ensure_ascii=False) + "\n" for id_, reason in bad)
    files.write(target, "".join(lines))


def read(spec: str) -> list[str]:
    """The ids in a quarantine file; a DataError where it is none."""
    return [id_ for id_, _ in entries(spec)]


def entries(spec: str) -> list[tuple[str, str]]:
    """(id, what is wrong) of every line of a quarantine file; a DataError where it is none."""
    try:
        lines = whole.read(spec if files.is_url(spec) else str(cache.path(spec))).decode("utf-8").splitlines()
    except DataError:
        raise
    except Exception as err:  # a file system of fsspec raises whatever its library does
        raise DataError(f"cannot read the quarantine {spec}: {err}", at=spec, fix=MAKE) from err
    return [_entry(line, f"{spec}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _entry(line: str, at: str) -> tuple[str, str]:
    try:
        entry = document.parse(line, at, DataError, MAKE)
        return str(entry["id"]), str(entry.get("reason", ""))
    except (DataError, TypeError, KeyError, AttributeError) as err:
        raise DataError(f"not a line of a quarantine: {line[:60]!r}", at=at, fix=MAKE) from err


def rows(ids: Iterable[str], total: int, at: str) -> dict[int, str]:
    """{row number: id}, read from the ids' ends: `000000033471@17`; a DataError where a row is beyond `total`."""
    id_of_row: dict[int, str] = {}
    for id_ in ids:
        row = id_.rpartition("@")[2]
        if not (row.isascii() and row.isdigit() and "@" in id_):
            raise DataError(f"a quarantined id must end in @ and its row, got {id_!r}", at=at, fix=MAKE)
        if int(row) >= total:
            what = f"the quarantine is of other data: it names row {row}, and there are {total}"
            raise DataError(what, at=at, fix=MAKE)
        id_of_row[int(row)] = id_
    return id_of_row
