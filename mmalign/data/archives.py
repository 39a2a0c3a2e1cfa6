"""Images inside tar and zip archives: the members are listed once, the list is kept, each is read where it lies."""

import hashlib
import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from mmalign.data import cache, sniff
from mmalign.data.cache import Array
from mmalign.data.ranges import Ranges
from mmalign.data.reasons import Unusable, check_size
from mmalign.errors import DataError

HEADER = struct.Struct("<4s22xHH")  # a zip member's own header: its mark, the lengths of its name and extra field
PACKED_TARS = (".tar.gz", ".tgz")
EXTRA = 512  # bytes read beyond the header, so that one read is nearly always enough
UNCOMPRESSED = 0xFFFF  # a member of a tar, whose bytes lie as they are at its offset
ENCRYPTED = 1  # the flag of an encrypted zip member
LISTED = 1 << 20  # bytes of a tar's header of one member, with its long name
DIRECTORY = 1 << 30  # bytes of a zip's list of its members, some 100 each

_MEMBER = np.dtype([("hash", "<u8"), ("offset", "<i8"), ("size", "<i8"), ("full", "<i8"), ("how", "<u2")])


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive. offset, size, unpacked: in bytes, as it lies there and unpacked.

    compression: UNCOMPRESSED, or zip's number of the method.
    """

    name: str
    offset: int
    size: int
    unpacked: int
    compression: int = UNCOMPRESSED


class Archive:
    """A .tar, .tar.gz or .zip; local or an fsspec URL. A DataError where it cannot be listed."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.ranges = ranges_of(spec)
        self.members = cache.array("members", self.ranges.key, self._list)
        self.hashes = np.ascontiguousarray(self.members["hash"])  # else every search would copy them

    def read(self, name: str) -> bytes:
        """The content of a member; Unusable, with `missing` where there is none of that name."""
        plain = plain_name(name)
        name_hash = np.uint64(_hash(plain))
        index = int(np.searchsorted(self.hashes, name_hash, side="right")) - 1
        if index < 0 or self.hashes[index] != name_hash:
            raise Unusable("missing", f"no image {plain[:80]}", at=self.spec)
        _, offset, size, unpacked, compression = map(int, self.members[index])
        check_size(plain, max(size, unpacked))
        member = Member(plain, offset, size, unpacked, compression)
        return self.ranges.read(offset, offset + size) if compression == UNCOMPRESSED else self._unzipped(member)

    def _unzipped(self, member: Member) -> bytes:
        """The member of a zip archive; what precedes it tells where it really begins."""
        header_size = HEADER.size + len(member.name.encode(errors="surrogatepass")) + EXTRA
        data = self.ranges.read(member.offset, member.offset + header_size + member.size)
        if len(data) < HEADER.size or (header := HEADER.unpack_from(data))[0] != b"PK\3\4":
            raise Unusable("broken", f"{member.name} is not where the archive says", at=self.spec)
        start = HEADER.size + header[1] + header[2]
        if len(data) < start + member.size:
            data = self.ranges.read(member.offset, member.offset + start + member.size)
        return self._inflated(member, data[start : start + member.size])

    def _inflated(self, member: Member, data: bytes) -> bytes:
        if member.compression == zipfile.ZIP_STORED:
            return data
        if member.compression != zipfile.ZIP_DEFLATED:
            raise Unusable("unreadable", f"{member.name} is packed by method {member.compression}", at=self.spec)
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.unpacked + 1)
        except zlib.error as err:
            raise Unusable("broken", f"{member.name} cannot be unpacked: {err}", at=self.spec) from err
        if len(content) != member.unpacked:
            what = f"{member.name} unpacks to {len(content)} of {member.unpacked} bytes"
            raise Unusable("truncated", what, at=self.spec)
        return content

    def _list(self) -> Array:
        """members_M, sorted by the hash of the name."""
        members = zip_members(self.ranges) if self.spec.lower().endswith(".zip") else tar_members(self.ranges)
        rows = [(_hash(plain_name(m.name)), m.offset, m.size, m.unpacked, m.compression) for m in members]
        table = np.array(rows, dtype=_MEMBER)
        return table[np.argsort(table["hash"], kind="stable")]  # of two members of one name, the later one counts


def ranges_of(spec: str) -> Ranges:
    """An archive as it is read at random: where it is a tar packed with gzip, its unpacked copy in the cache."""
    return Ranges(str(cache.plain(spec))) if spec.lower().endswith(PACKED_TARS) else Ranges(spec)


def tar_members(ranges: Ranges) -> Iterator[Member]:
    """The files of a tar archive, in order; a DataError where it is damaged."""
    try:
        with ranges.open() as source, tarfile.open(fileobj=_Listing(source, LISTED), mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep every one of them
                if member.isreg():
                    yield Member(member.name, member.offset_data, member.size, member.size)
            if ranges.read(archive.offset, archive.offset + tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("cut off in the header of a file")  # which tarfile takes for the end
    except (tarfile.TarError, EOFError, OSError) as err:
        raise DataError(f"not a readable tar archive: {err}", at=ranges.spec, fix=_tar_fix(ranges)) from err


def _tar_fix(ranges: Ranges) -> str:
    head = ranges.read(0, sniff.HEAD)
    if head.startswith(b"\x1f\x8b"):
        return "name it .tar.gz, or unpack it: a compressed tar cannot be read at random"
    if head.startswith((b"BZh", b"\xfd7z", b"\x28\xb5\x2f\xfd")):
        return "unpack it: a compressed tar cannot be read at random"
    known = sniff.of(head)
    return f"the file is {known[0]}: {known[1]}" if known and "tar" not in known[0] else "fetch the archive again"


class _Listing:
    """An archive while its members are listed: what reads more than so many bytes at once reads no list."""

    def __init__(self, source: IO[bytes], most: int) -> None:
        self.source, self.most = source, most

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.most:
            size = self.most + 1
        data = self.source.read(size)
        if len(data) > self.most:
            raise OSError(f"a header of more than {self.most:,} bytes")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


def zip_members(ranges: Ranges) -> Iterator[Member]:
    """The files of a zip archive; a DataError where it is damaged or encrypted."""
    try:
        with ranges.open() as source, zipfile.ZipFile(_Listing(source, DIRECTORY)) as archive:
            for info in archive.infolist():
                if info.flag_bits & ENCRYPTED:
                    raise DataError(f"{info.filename} is encrypted", at=ranges.spec, fix="unpack the archive yourself")
                if not info.is_dir():
                    size, unpacked = info.compress_size, info.file_size
                    yield Member(info.filename, info.header_offset, size, unpacked, info.compress_type)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as err:
        raise DataError(f"not a readable zip archive: {err}", at=ranges.spec, fix="fetch the archive again") from err


def plain_name(name: str) -> str:
    """A member's name as it is looked for: without `./` and double slashes."""
    return posixpath.normpath(name)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
