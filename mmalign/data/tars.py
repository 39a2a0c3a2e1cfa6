"""WebDataset: tar archives in which the files of a sample stand together and share a key."""

import bisect
import functools
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import numpy as np

from mmalign.data import cache, patterns, sniff, splits, strict
from mmalign.data.archives import PACKED_TARS, Member, ranges_of, tar_members
from mmalign.data.ranges import Ranges
from mmalign.data.reasons import Unusable, check_size
from mmalign.data.rows import TURNS, Rows
from mmalign.errors import DataError
from mmalign.io.limits import ROW_BYTES

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
TEXTS = ("txt", "caption", "text")
ENDINGS = (".tar", *PACKED_TARS)
SHOWN = 8  # endings in a message
DIGITS = 20  # to which the numbers in names are filled up before they are compared
GROUPED = "a sample is KEY.json or KEY.txt and its images, KEY.jpg or KEY.0.jpg, KEY.1.jpg"
_IMAGE = 2
_KINDS = {"json": 0} | dict.fromkeys(TEXTS, 1) | dict.fromkeys(PICTURES, _IMAGE)
_UNREAD = np.dtype([("ending", "<U16"), ("count", "<i8")])
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

    Every tar is listed once, the list is kept, and a sample is read where it lies. The files of a sample need not stand
    together. What is packed with gzip is unpacked into the cache.

    path: a .tar, .tar.gz or .tgz, a folder of them, a pattern with * or {000..099}, or a list; local or fsspec URLs.
    images: where paths in the JSON of samples without images count from. split: of a folder that holds several,
    `x-train-0000.tar` and `x-test-0000.tar`.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        images: str | Sequence[str] | None = None,
        quarantine: str | None = None,
        split: str | None = None,
    ) -> None:
        paths = patterns.expand(path, ENDINGS, split)
        self.tars = [Tar(spec) for spec in paths]
        self.ends = list(accumulate(len(tar.keys) for tar in self.tars))
        self.remarks = [*splits.missing(paths), *_unread(self.tars)]
        super().__init__(self.ends[-1], images, quarantine, at=str(path))

    def raw(self, row: int) -> Mapping[str, Any]:
        index, sample, key = self._at(row)
        tar = self.tars[index]
        files = {kind: list(group) for kind, group in groupby(tar.files(sample), key=lambda file: int(file["kind"]))}
        for kind, what in ((0, "JSON files"), (1, "captions")):
            if len(files.get(kind, [])) > 1:
                raise Unusable("shape", f"{key} has {len(files[kind])} {what}, and a sample has one", fix=GROUPED)
        if files.keys() == {_IMAGE}:
            raise Unusable(
                "shape", f"{key} has none of conversations, messages, texts, caption beside its image", fix=GROUPED
            )
        content = strict.parse(tar.read(files[0][0], key), f"{key}.json") if 0 in files else {}
        if not any(content.get(name) is not None for name in TURNS):
            content |= {"id": key} | _caption(content, tar.read(files[1][0], key) if 1 in files else None, key)
        elif 1 in files:
            content[".txt"] = key  # a row's turns are what is read; so it gets a note
        if _IMAGE in files:
            content.pop("image", None)
            content["images"] = [TarImage(index, int(file["offset"]), int(file["size"]), key) for file in files[2]]
        return {"id": key} | content

    def id_of(self, number: int) -> str:
        id_ = super().id_of(number)
        return f"{self._at(self.row(number))[2]}{id_}" if id_.startswith("@") else id_

    def _at(self, row: int) -> tuple[int, int, str]:
        """(which tar, the sample's number in it, its key) of a row."""
        index = bisect.bisect_right(self.ends, row)
        sample = row - (self.ends[index] - len(self.tars[index].keys))
        return index, sample, self.tars[index].keys[sample].decode()

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
        caption = text.decode("utf-8-sig").strip()
        other = content.get("caption")
        is_other = isinstance(other, str) and other.strip() not in ("", caption)
        return {"caption": caption} | ({"caption in the .json": other} if is_other else {})
    except UnicodeDecodeError as err:
        raise Unusable("shape", f"{key}.txt is not UTF-8: {err.reason} at byte {err.start}") from err


def _unread(tars: Sequence["Tar"]) -> list[str]:
    """A sentence for the files in tars that are not read, if there are any."""
    total: Counter[str] = Counter()
    for tar in tars:
        total.update({str(ending): int(count) for ending, count in tar.unread})
    endings = ", ".join(f"{count:,} {ending or 'without an ending'}" for ending, count in total.most_common(SHOWN))
    return [f"files in the tars that are not read: {endings}"] if endings else []


class Tar:
    """One archive and the list of its samples; a DataError where it cannot be listed, or has none."""

    def __init__(self, spec: str) -> None:
        self.ranges = ranges_of(spec)
        sniff.check_fetched(self.ranges.read(0, sniff.HEAD), spec)
        tables = functools.cache(lambda: _samples(self.ranges))
        self.table = cache.array("files", self.ranges.key, lambda: tables()[0])
        self.samples = np.ascontiguousarray(self.table["sample"])  # else every search would copy them
        self.keys = cache.array("stems", self.ranges.key, lambda: tables()[1])
        self.unread = cache.array("beside", self.ranges.key, lambda: tables()[2])

    def files(self, sample: int) -> Any:
        """The files of a sample: its JSON, its text, its images in the order of their names."""
        first, last = np.searchsorted(self.samples, [sample, sample + 1])
        return self.table[first:last]

    def read(self, file: Any, key: str) -> bytes:
        """The JSON or text in one of `files`; Unusable when it cannot be read. key: of its sample."""
        check_size(f"the text of {key}", int(file["size"]), ROW_BYTES)
        return self.ranges.read(int(file["offset"]), int(file["offset"]) + int(file["size"]))


def _samples(ranges: Ranges) -> tuple[cache.Array, cache.Array, cache.Array]:
    """(the files of every sample, _FILE each, the keys of the samples, endings that are not read, _UNREAD each)."""
    unread: Counter[str] = Counter()
    rows: list[tuple[int, int, int, int]] = []
    keys: list[bytes] = []
    for key, parts in _by_sample(tar_members(ranges), unread):
        ordered = sorted(parts, key=lambda part: (part.kind, _in_order(part.member.name)))
        rows += [(len(keys), part.kind, part.member.offset, part.member.size) for part in ordered]
        keys.append(key.encode())
    if not keys:
        what = f"no sample in {ranges.spec}: no file ends in {', '.join(_KINDS)}"
        raise DataError(what, at=ranges.spec, fix="is it an archive of images? then name it under `images:`")
    return np.array(rows, _FILE), np.array(keys), np.array(list(unread.items()), _UNREAD)


def _in_order(name: str) -> list[str]:
    """A name as it is sorted: a.2.png stands before a.10.png."""
    return [part.zfill(DIGITS) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


@dataclass(frozen=True, slots=True)
class _Part:
    """A file of a sample. first: its path up to the name's first dot; stem: up to the last one."""

    first: str
    stem: str
    kind: int
    member: Member


def _by_sample(members: Iterator[Member], unread: Counter[str]) -> Iterator[tuple[str, list[_Part]]]:
    """(key, files) of every sample, in the order of their first files.

    Files that share the path up to a name's first dot stand together, as WebDataset has it; those that stand apart
    belong together all the same, unless that would give a sample the same file twice. unread: counts the endings of
    other files.
    """
    groups: dict[str, list[list[_Part]]] = {}
    for first, run in groupby(_parts(members, unread), key=lambda part: part.first):
        groups.setdefault(first, []).append(list(run))
    for runs in groups.values():
        parts = [part for run in runs for part in run]
        is_once = len({part.member.name for part in parts}) == len(parts)
        for together in [parts] if is_once else runs:
            yield from _by_stem(together)


def _parts(members: Iterator[Member], unread: Counter[str]) -> Iterator[_Part]:
    """The files that are read: not those hidden, as macOS packs them."""
    for member in members:
        folder, name = posixpath.split(member.name)
        stem, _, ending = name.rpartition(".")
        kind = _KINDS.get(ending.lower())
        if patterns.is_hidden(posixpath.normpath(member.name)):
            continue
        if not stem or kind is None:
            unread[f".{ending.lower()[:15]}" if stem else ""] += 1
        else:
            yield _Part(posixpath.join(folder, name.partition(".")[0]), posixpath.join(folder, stem), kind, member)


def _by_stem(parts: list[_Part]) -> Iterator[tuple[str, list[_Part]]]:
    """The samples among files with the same path up to the first dot.

    `v1.5.jpg, v1.5.txt, v1.6.jpg, v1.6.txt` are two: an image belongs to the text whose name up to the last dot its own
    begins with. `a.0.jpg, a.1.jpg, a.json` are one, and so is everything where no image belongs to a text in that way.
    """
    texts = sorted({part.stem for part in parts if part.kind != _IMAGE}, key=len, reverse=True)
    owner = {part.stem: next((text for text in texts if f"{part.stem}.".startswith(f"{text}.")), "") for part in parts}
    is_owned = any(owner[part.stem] for part in parts if part.kind == _IMAGE)
    if not is_owned or len(set(owner.values())) == 1:
        yield parts[0].stem if len(owner) == 1 else parts[0].first, parts
        return
    by_key: dict[str, list[_Part]] = {}
    for part in parts:
        by_key.setdefault(owner[part.stem] or part.stem, []).append(part)
    yield from by_key.items()
