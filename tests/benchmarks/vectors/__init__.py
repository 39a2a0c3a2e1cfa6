"""Answers and the numbers the official scorers gave them, packed: one archive a benchmark, unpacked once a session.

python -m tests.benchmarks.vectors FOLDER   packs FOLDER/<benchmark>/ into the archives here (README.md).
"""

import shutil
import tarfile
import tempfile
from functools import cache
from pathlib import Path

PACKED = Path(__file__).parent
BESIDE = PACKED.parents[2].parent / "shared" / "vectors"  # where a clone may have more sets, of the same form
_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # folders that go when the process ends


@cache
def unpacked() -> Path:
    """A temporary folder with the packed sets: <benchmark>/<set>/expected.json and more."""
    _KEPT.append(tempfile.TemporaryDirectory(prefix="mmalign-vectors-"))
    folder = Path(_KEPT[-1].name)
    unpack(PACKED, folder)
    return folder


def unpack(packed: Path, folder: Path) -> None:
    for place in sorted(packed.glob("*.json")):
        shutil.copy(place, folder)
    for place in sorted(packed.glob("*.tar.xz")):
        with tarfile.open(place) as archive:
            archive.extractall(folder, filter="data")


def pack(folder: Path, packed: Path) -> None:
    """The same bytes for the same files, whoever packs them and when."""
    for place in sorted(folder.glob("*.json")):
        shutil.copyfile(place, packed / place.name)
    for bench in sorted(place for place in folder.iterdir() if place.is_dir()):
        with tarfile.open(packed / f"{bench.name}.tar.xz", "w:xz", preset=9, format=tarfile.USTAR_FORMAT) as archive:
            for place in sorted(place for place in bench.rglob("*") if place.is_file()):
                member = tarfile.TarInfo(place.relative_to(folder).as_posix())  # owner, mode and time: TarInfo's own
                member.size = place.stat().st_size
                with place.open("rb") as content:
                    archive.addfile(member, content)


def sets(folder: Path, beside: Path = BESIDE) -> list[Path]:
    """<benchmark>/<set> of the unpacked folder, and those beside that are other or not the same."""
    ours = {place.relative_to(folder): place for place in _sets(folder)}
    others = {place.relative_to(beside): place for place in _sets(beside)}
    more = [place for name, place in others.items() if name not in ours or _files(place) != _files(ours[name])]
    return sorted([*ours.values(), *more], key=lambda place: (place.parts[-2:], place))


def _sets(folder: Path) -> list[Path]:
    return [place.parent for place in folder.glob("*/*/expected.json")]


def _files(folder: Path) -> dict[Path, bytes]:
    return {place.relative_to(folder): place.read_bytes() for place in folder.rglob("*") if place.is_file()}
