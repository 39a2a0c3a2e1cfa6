"""WebDataset: tar archives in which the files of a sample stand together and share a key."""

import bisect
import functools
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import numpy as np

from mmalign.data import cache, patterns, strict
from mmalign.data.archives import Member, tar_members
from mmalign.data.ranges import Ranges
from mmalign.data.reasons import Unusable, check_size
from mmalign.data.rows import Rows
from mmalign.errors import DataError
from mmalign.io.limits import ROW_BYTES

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
TEXTS = ("txt", "caption", "text")
CONVERSATIONS = ("conversations", "messages", "texts")
_KINDS = {"json": 0} | dict.fromkeys(TEXTS, 1) | dict.fromkeys(PICTURES, 2)
_FILE = np.dtype([("sample", "<u4"), ("kind", "<u1"), ("offset", "<i8"), ("size", "<i8")])


@dataclass(frozen=True)
class TarImage:
    """An image in one of the tars. tar: which. offset, size: in bytes. key: of its sample."""

    tar: int
    offset: int
    size: int
    key: str


class Tars(Rows):
    """A sample is a .json with `conversations`, `messages` or `texts`, or a .txt with a caption, and its images.

    Every tar is listed once, the list is kept, and a sample is read where it lies.

    path: a .tar, a folder of them, a pattern with * or {000..099}, or a list; local or fsspec URLs. images: where
    paths in the JSON of samples without images count from.
    """

    def __init__(
        self, path: str | Sequence[str], images: str | Sequence[str] | None = None, quarantine: str | None = None
    ) -> None:
        self.tars = [Tar(spec) for spec in patterns.expand(path, [".tar"])]
        self.ends = list(accumulate(len(tar.keys) for tar in self.tars))
        super().__init__(self.ends[-1], images, quarantine)

    def raw(self, row: int) -> Mapping[str, Any]:
        index = bisect.bisect_right(self.ends, row)
        tar = self.tars[index]
        sample = row - (self.ends[index] - len(tar.keys))
        key = tar.keys[sample].decode()
        files = {kind: list(group) for kind, group in groupby(tar.files(sample), key=lambda file: int(file["kind"]))}
        content = strict.parse(tar.read(files[0][0], key), f"{key}.json") if 0 in files else {}
        if not any(name in content for name in CONVERSATIONS):
            content = {"id": key} | _caption(content, tar.read(files[1][0], key) if 1 in files else None, key)
        if 2 in files:
            content.pop("image", None)
            content["images"] = [TarImage(index, int(file["offset"]), int(file["size"]), key) for file in files[2]]
        return {"id": key} | content

    def image_file(self, reference: Any) -> tuple[bytes, str]:
        if not isinstance(reference, TarImage):
            return super().image_file(reference)
        name = f"the image of {reference.key}"
        check_size(name, reference.size)
        return self.tars[reference.tar].ranges.read(reference.offset, reference.offset + reference.size), name


def _caption(content: Mapping[str, Any], text: bytes | None, key: str) -> dict[str, Any]:
    """The caption in a .txt, else in a .json; img2dataset writes both."""
    if text is None:
        return {"caption": content["caption"]} if "caption" in content else {}
    try:
        return {"caption": text.decode().strip()}
    except UnicodeDecodeError as err:
        raise Unusable("shape", f"{key}.txt is not UTF-8: {err.reason} at byte {err.start}") from err


class Tar:
    """One archive and the list of its samples; a DataError where it cannot be listed, or has none."""

    def __init__(self, spec: str) -> None:
        self.ranges = Ranges(spec)
        tables = functools.cache(lambda: _samples(self.ranges))
        self.table = cache.array("samples", self.ranges.key, lambda: tables()[0])
        self.samples = np.ascontiguousarray(self.table["sample"])  # else every search would copy them
        self.keys = cache.array("keys", self.ranges.key, lambda: tables()[1])

    def files(self, sample: int) -> Any:
        """The files of a sample: its JSON, its text, its images in the order of their names."""
        first, last = np.searchsorted(self.samples, [sample, sample + 1])
        return self.table[first:last]

    def read(self, file: Any, key: str) -> bytes:
        """The JSON or text in one of `files`; Unusable when it cannot be read. key: of its sample."""
        check_size(f"the text of {key}", int(file["size"]), ROW_BYTES)
        return self.ranges.read(int(file["offset"]), int(file["offset"]) + int(file["size"]))


def _samples(ranges: Ranges) -> tuple[cache.Array, cache.Array]:
    """(the files of every sample, _FILE each, the keys of the samples)."""
    rows: list[tuple[int, int, int, int]] = []
    keys: list[bytes] = []
    for key, members in groupby(_sample_files(tar_members(ranges)), key=lambda item: item[0]):
        ordered = sorted(members, key=lambda item: (item[1], item[2].name))
        rows += [(len(keys), kind, member.offset, member.size) for _, kind, member in ordered]
        keys.append(key.encode())
    if not keys:
        what = f"no sample in {ranges.spec}: no file ends in {', '.join(_KINDS)}"
        raise DataError(what, at=ranges.spec, fix="is it an archive of images? then name it under `images:`")
    return np.array(rows, _FILE), np.array(keys)


def _sample_files(members: Iterator[Member]) -> Iterator[tuple[str, int, Member]]:
    """(key, kind, member) of the files that are read. The key is the path up to the name's first dot."""
    for member in members:
        folder, name = posixpath.split(member.name)
        key, _, ending = name.partition(".")
        kind = _KINDS.get(ending.rpartition(".")[2].lower())
        if key and kind is not None:
            yield posixpath.join(folder, key), kind, member
