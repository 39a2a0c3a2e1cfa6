"""Archives unpacked: nothing leaves the folder, nothing is a link, and what is there is whole or absent."""

import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mmalign.errors import DataError
from mmalign.io import disk, transfer

TARS = (".tar", ".tar.gz", ".tgz")
ENCRYPTED = 1  # the flag of an encrypted zip member
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError)


@dataclass(frozen=True)
class _Entry:
    """A member. size: its bytes, unpacked; unsafe: why it is not unpacked, or empty; raw: the library's own."""

    name: str
    size: int
    folder: bool
    unsafe: str
    raw: Any


def unpack(archive: Path, folder: Path) -> None:
    """Put the tree of an archive into a folder, over what is there of the same name.

    All of it is unpacked beside the folder first. A DataError for what is no archive, is damaged, or has a member that
    would lie elsewhere, is a link or a device: then nothing is unpacked. NoSpaceError where it does not fit.
    """
    with _opened(archive) as (entries, read):
        unsafe = next((entry for entry in entries if entry.unsafe), None)
        if unsafe:
            what = f"{archive.name} holds {unsafe.name[:80]!r}, {unsafe.unsafe}: nothing of it is unpacked"
            raise DataError(what, at=str(archive), fix="look at it, and unpack it yourself if you trust it")
        folder.mkdir(parents=True, exist_ok=True)
        transfer.room(folder, sum(entry.size for entry in entries))
        beside = folder / f".{archive.name}.{os.getpid()}.part"
        beside.mkdir()
        try:
            for entry in entries:
                place = beside / PurePosixPath(entry.name)
                (place if entry.folder else place.parent).mkdir(parents=True, exist_ok=True)
                if not entry.folder:
                    _write(read(entry), place, entry, archive)
            disk.settle(beside)
            _merge(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def take(archive: Path, member: str, target: Path) -> None:
    """Put one file of an archive where it is to be; a DataError where there is none of that name."""
    with _opened(archive) as (entries, read):
        entry = next((one for one in entries if one.name == member and not one.folder and not one.unsafe), None)
        if entry is None:
            names = ", ".join(one.name for one in entries[:5])
            what = f"{archive.name} has no {member}, but {names} ..."
            raise DataError(what, at=str(archive), fix="another `member:`")
        target.parent.mkdir(parents=True, exist_ok=True)
        transfer.room(target.parent, entry.size)
        beside = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            _write(read(entry), beside, entry, archive)
            disk.sync(beside)
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[list[_Entry], Any]]:
    """(members, how to read one) of an archive; what is wrong with it is a DataError."""
    try:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as pack:
                yield [_of_zip(info) for info in pack.infolist()], lambda entry: pack.open(entry.raw)
        elif archive.name.lower().endswith(TARS):
            with tarfile.open(archive) as tar:
                yield [_of_tar(info) for info in tar], lambda entry: tar.extractfile(entry.raw)
        else:
            what = f"{archive.name} is no archive that is unpacked here"
            raise DataError(what, at=str(archive), fix="a .zip, .tar, .tar.gz or .tgz")
    except DAMAGED as err:
        what = f"{archive.name} is damaged: {err}"
        raise DataError(what, at=str(archive), fix="delete it; the same command fetches it again") from err


def _of_zip(info: zipfile.ZipInfo) -> _Entry:
    kind = stat.S_IFMT(info.external_attr >> 16)
    unsafe = "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "a link or a device"
    unsafe = unsafe or ("which is encrypted" if info.flag_bits & ENCRYPTED else "") or _outside(info.filename)
    return _Entry(info.filename, info.file_size, info.is_dir(), unsafe, info)


def _of_tar(info: tarfile.TarInfo) -> _Entry:
    unsafe = "" if info.isreg() or info.isdir() else "a link or a device"
    return _Entry(info.name, info.size, info.isdir(), unsafe or _outside(info.name), info)


def _outside(name: str) -> str:
    """Why a name does not stay in the folder; empty where it does."""
    parts = name.replace("\\", "/").split("/")
    outside = ".." in parts or name.startswith(("/", "\\")) or ":" in parts[0] or "\0" in name
    return "outside of its folder" if outside else ""


def _write(source: IO[bytes], place: Path, entry: _Entry, archive: Path) -> None:
    """A member's bytes; not more than the archive says, whatever it holds."""
    left = entry.size
    with source, open(place, "wb") as out:
        while data := source.read(min(transfer.CHUNK, left + 1)):
            left -= len(data)
            if left < 0:
                break
            out.write(data)
    if left:
        what = f"{archive.name} is damaged: {entry.name} has not the {entry.size:,} bytes that it says"
        raise DataError(what, at=str(archive), fix="delete it; the same command fetches it again")


def _merge(source: Path, folder: Path) -> None:
    """Move what is in one folder into another, files over those of the same name."""
    for place in sorted(source.iterdir()):
        target = folder / place.name
        if place.is_dir() and target.is_dir():
            _merge(place, target)
        elif target.is_dir() or (place.is_dir() and target.exists()):
            here, comes = ("a folder", "a file") if target.is_dir() else ("a file", "a folder")
            raise DataError(f"{target} is {here}, and {comes} is to be there", at=str(target), fix="move it away")
        else:
            os.replace(place, target)
