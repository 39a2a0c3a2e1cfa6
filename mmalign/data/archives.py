"""Images inside tar and zip archives: the members are listed once, the list is kept, each is read where it lies."""

import hashlib
import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmalign.data import kept
from mmalign.data.kept import Array
from mmalign.data.ranges import Ranges
from mmalign.data.reasons import BYTES, Unusable, large
from mmalign.errors import DataError

HEADER = struct.Struct("<4s22xHH")  # a zip member's own header: its mark, the lengths of its name and extra field
EXTRA = 512  # bytes read beyond the header, so that one read is nearly always enough
PLAIN = 0xFFFF  # a member of a tar, whose bytes lie as they are at its offset
PACKED = 1  # the flag of an encrypted zip member

_MEMBER = np.dtype([("hash", "<u8"), ("offset", "<i8"), ("size", "<i8"), ("full", "<i8"), ("how", "<u2")])


@dataclass(frozen=True)
class Member:
    """A file in an archive. size, full: bytes there and unpacked. how: PLAIN, or zip's number of the compression."""

    name: str
    offset: int
    size: int
    full: int
    how: int = PLAIN


class Archive:
    """An uncompressed .tar, or a .zip; local or an fsspec URL."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.ranges = Ranges(spec)
        self.members = kept.array("members", self.ranges.key, self._list)
        self.hashes = np.ascontiguousarray(self.members["hash"])  # else every search would copy them

    def read(self, name: str) -> bytes:
        inside = plain_name(name)
        hashed = np.uint64(_hash(inside))
        at = int(np.searchsorted(self.hashes, hashed, side="right")) - 1
        if at < 0 or self.hashes[at] != hashed:
            raise Unusable("missing", f"no image {inside[:80]}", at=self.spec)
        _, offset, size, full, how = map(int, self.members[at])
        if full > BYTES:
            raise large(inside, full)
        member = Member(inside, offset, size, full, how)
        return self.ranges.read(offset, offset + size) if how == PLAIN else self._unzipped(member)

    def _unzipped(self, member: Member) -> bytes:
        """The member of a zip archive; what precedes it tells where it really begins."""
        ahead = HEADER.size + len(member.name.encode(errors="surrogatepass")) + EXTRA
        data = self.ranges.read(member.offset, member.offset + ahead + member.size)
        if len(data) < HEADER.size or (mark := HEADER.unpack_from(data))[0] != b"PK\3\4":
            raise Unusable("broken", f"{member.name} is not where the archive says", at=self.spec)
        start = HEADER.size + mark[1] + mark[2]
        if len(data) < start + member.size:
            data = self.ranges.read(member.offset, member.offset + start + member.size)
        return self._inflated(member, data[start : start + member.size])

    def _inflated(self, member: Member, data: bytes) -> bytes:
        if member.how == zipfile.ZIP_STORED:
            return data
        if member.how != zipfile.ZIP_DEFLATED:
            raise Unusable("unreadable", f"{member.name} is packed by method {member.how}", at=self.spec)
        try:
            made = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.full + 1)
        except zlib.error as err:
            raise Unusable("broken", f"{member.name} cannot be unpacked: {err}", at=self.spec) from err
        if len(made) != member.full:
            raise Unusable("truncated", f"{member.name} unpacks to {len(made)} of {member.full} bytes", at=self.spec)
        return made

    def _list(self) -> Array:
        found = zip_members(self.ranges) if self.spec.endswith(".zip") else tar_members(self.ranges)
        rows = [(_hash(plain_name(m.name)), m.offset, m.size, m.full, m.how) for m in found]
        table = np.array(rows, dtype=_MEMBER)
        return table[np.argsort(table["hash"], kind="stable")]  # of two members of one name, the later one counts


def tar_members(ranges: Ranges) -> Iterator[Member]:
    """The files of a tar archive, in order."""
    try:
        with ranges.open() as source, tarfile.open(fileobj=source, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep every one of them
                if member.isreg():
                    yield Member(member.name, member.offset_data, member.size, member.size)
            if ranges.read(archive.offset, archive.offset + tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("cut off in the header of a file")  # which tarfile takes for the end
    except (tarfile.TarError, EOFError, OSError) as err:
        raise DataError(f"not a readable tar archive: {err}", at=ranges.spec, fix=_tar_fix(ranges)) from err


def _tar_fix(ranges: Ranges) -> str:
    packed = ranges.read(0, 3).startswith((b"\x1f\x8b", b"BZh", b"\xfd7z"))
    return "unpack it: a compressed tar cannot be read at random" if packed else "fetch the archive again"


def zip_members(ranges: Ranges) -> Iterator[Member]:
    """The files of a zip archive."""
    try:
        with ranges.open() as source, zipfile.ZipFile(source) as archive:
            for info in archive.infolist():
                if info.flag_bits & PACKED:
                    raise DataError(f"{info.filename} is encrypted", at=ranges.spec, fix="unpack the archive yourself")
                if not info.is_dir():
                    size, full = info.compress_size, info.file_size
                    yield Member(info.filename, info.header_offset, size, full, info.compress_type)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as err:
        raise DataError(f"not a readable zip archive: {err}", at=ranges.spec, fix="fetch the archive again") from err


def plain_name(name: str) -> str:
    """A member's name as it is looked for: without `./` and double slashes."""
    return posixpath.normpath(name)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
