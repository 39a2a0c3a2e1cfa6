"""JSON that vouches for itself: its last line holds the SHA-256 of all above it."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from mmalign.errors import MMAlignError, RunError
from mmalign.io import document, files

KEY = "seal"
SEALED = re.compile(rb'(.*,\n) "seal": "([0-9a-f]{64})"\n\}\n', re.DOTALL)
HASHES = "files"  # the key under which such a file lists the hashes of others; one that does is sealed


def write(place: Path, about: dict[str, Any]) -> None:
    """Write a mapping that is not empty, whole or not at all."""
    assert about
    assert KEY not in about
    above = json.dumps(about, indent=1, ensure_ascii=False).removesuffix("\n}") + ",\n"
    files.write(place, f'{above} "{KEY}": "{_hash(above.encode())}"\n}}\n')


def read(
    place: Path, error: type[MMAlignError] = RunError, fix: str = "another file; was it damaged?", kind: Any = Any
) -> Any:
    """The JSON in a file, without its seal, of a type of io/document.py; an `error` that names the file where it is
    not as it was written.

    A file of an mmalign that sealed none is taken as it is.
    """
    files.read_json(place, error, fix)  # says what is wrong with one that is no JSON
    try:
        about = opened(place.read_bytes())
    except ValueError as err:
        raise error(f"{place.name} is damaged: {err}", at=str(place), fix=fix) from err
    document.fit(about, kind, str(place), error, fix)
    return about


def opened(raw: bytes) -> Any:
    """The JSON in the bytes of a file, without its seal; a ValueError for what is not as it was written."""
    about = json.loads(raw)
    if isinstance(about, dict) and (KEY in about or HASHES in about):
        whole = SEALED.fullmatch(raw)
        if not whole or _hash(whole[1]) != whole[2].decode():
            raise ValueError("it is not as it was written (SHA-256)")
        del about[KEY]
    return about


def _hash(above: bytes) -> str:
    return hashlib.sha256(above).hexdigest()
