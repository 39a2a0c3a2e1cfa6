"""The label store: words and scores of every patch on disk, a fixed number of bytes an image, found by key.

    header.json           what the labels were made from, and the checksums of all below; sealed, see io/seal.py
    words.txt             the word list, one a line; labels are line numbers
    shard-00000.bin       rows of P x K word numbers (u16, or u32 for longer lists), P x K scores (fp16), and of the
                          picture its width and height (u32) and what of it the patches cover (fp64 x 4, see Frame)
    shard-00000.json      the keys of its rows, and the images that could not be read, with the reason
    index.npy             (hash of the key, shard, row), sorted by hash

Letters: P patches, K words kept for a patch, W words in the list.
"""

import hashlib
import io
import json
import mmap
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from mmalign.errors import DataError, RunError
from mmalign.io import disk, document, files, seal
from mmalign.io.document import Count, Side
from mmalign.io.sums import Damaged
from mmalign.vision import Frame

FORMAT = 2  # 2: rows say where in the picture their patches lie
_SCORE = np.dtype("<f2")
_FRAME = np.dtype("<u4, <u4, <f8, <f8, <f8, <f8")  # width and height; x0, y0, x1, y1
_INDEX = np.dtype([("hash", "<u8"), ("shard", "<u4"), ("row", "<u4")])
FAR = 1e6  # sides of a picture: no padding reaches so far out
AGAIN = "delete the label stage's folder and run again"


class Shard(TypedDict):
    """An entry of the header."""

    file: str
    rows: Count
    crc32: Count
    bad: list[tuple[str, str]]  # images that could not be read: their keys, and why


class ShardFile(Shard):
    """What is written beside a shard."""

    keys: list[str]


@dataclass
class Header:
    encoder: str  # what made the features
    words: str  # sha256 of the word list
    grid: tuple[Side, Side]  # of the encoder's patches
    keep: Side  # K
    settings: dict[str, Any]  # of the label source
    data: str  # the data's card, and a hash of its arguments and of the files they name
    fit: str = "squash"  # how pictures became squares
    format: int = FORMAT
    size: Count = 0  # W
    index: str = ""  # sha256 of index.npy
    shards: list[Shard] = field(default_factory=list)

    @property
    def word_type(self) -> np.dtype[Any]:
        return np.dtype("<u2") if self.size <= 1 << 16 else np.dtype("<u4")

    @property
    def entries(self) -> int:
        return self.grid[0] * self.grid[1] * self.keep

    @property
    def stride(self) -> int:
        """Bytes an image."""
        return self.entries * (self.word_type.itemsize + _SCORE.itemsize) + _FRAME.itemsize


def _name(number: int) -> str:
    """A shard's files without their endings."""
    return f"shard-{number:05d}"


def words_hash(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def key_hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def pack(header: Header, words_PK: NDArray[Any], scores_PK: NDArray[Any], frame: Frame) -> bytes:
    """One image's row."""
    place = np.array((*frame.size, *frame.region), _FRAME)
    return words_PK.astype(header.word_type).tobytes() + scores_PK.astype(_SCORE).tobytes() + place.tobytes()


def _covers(frame_N: NDArray[Any]) -> NDArray[np.bool_]:
    """sound_N: whether these are pictures of some size, and a part of each that has one."""
    width_N, height_N, x0_N, y0_N, x1_N, y1_N = (frame_N[name] for name in _FRAME.names or ())
    near_N = (np.abs([x0_N, y0_N, x1_N, y1_N]) < FAR).all(0)  # what is no number is not
    sound_N: NDArray[np.bool_] = (width_N > 0) & (height_N > 0) & (x1_N > x0_N) & (y1_N > y0_N) & near_N
    return sound_N


def write_shard(
    folder: Path, number: int, header: Header, rows: Sequence[bytes], keys: Sequence[str], bad: Sequence[Sequence[str]]
) -> None:
    """A shard, whole or absent: its JSON is written last."""
    data = b"".join(rows)
    assert len(data) == len(keys) * header.stride
    name = _name(number)
    files.write(folder / f"{name}.bin", data)
    about = {"file": f"{name}.bin", "rows": len(keys), "crc32": zlib.crc32(data), "keys": list(keys), "bad": list(bad)}
    files.write(folder / f"{name}.json", json.dumps(about))


def finish(folder: Path, header: Header, words: Sequence[str], shards: int) -> Header:
    """Gather the shards into header.json, written last. Raises DataError where two images share a key."""
    index: list[tuple[int, int, int]] = []
    header.size, header.shards = len(words), []
    owner: dict[int, str] = {}
    for number in range(shards):
        about = files.read_json(folder / f"{_name(number)}.json", kind=ShardFile)
        for row, key in enumerate(about["keys"]):
            if (hashed := key_hash(key)) in owner:
                both = {owner[hashed], key}
                raise DataError(f"two images share the key {' and '.join(both)}", fix="give every record its own id")
            owner[hashed] = key
            index.append((hashed, number, row))
        header.shards.append(Shard(file=about["file"], rows=about["rows"], crc32=about["crc32"], bad=about["bad"]))
    table = np.array(index, dtype=_INDEX)
    table.sort(order="hash")
    buffer = io.BytesIO()
    np.save(buffer, table)
    files.write(folder / "index.npy", buffer.getvalue())
    header.index = hashlib.sha256(buffer.getvalue()).hexdigest()
    files.write(folder / "words.txt", "".join(f"{word}\n" for word in words))
    seal.write(folder / "header.json", asdict(header))
    return header


class Store:
    """A finished store, read by key. Safe to read from threads; what is in a shard is checked when it is first touched.

    folder: a local folder or any fsspec URL. lengths: Damaged at once for a shard that is not there or of another
    length; False where all shards will be looked at anyway.
    """

    def __init__(self, folder: str | Path, lengths: bool = True) -> None:
        self.folder = str(folder)
        self.header = self._header()
        self.words = self._bytes("words.txt").decode(errors="replace").split("\n")[:-1]
        if words_hash(self.words) != self.header.words or len(self.words) != self.header.size:
            fix = "label again, or fetch the whole folder"
            raise Damaged("words.txt is not the list this store was made with", at=f"{self.folder}/words.txt", fix=fix)
        self.index = self._index()
        for number, shard in enumerate(self.header.shards):
            self._check(f"{_name(number)}.bin", shard, lengths)
        self._open: dict[int, tuple[NDArray[Any], NDArray[np.float16], NDArray[Any]]] = {}
        # a read is a few microseconds, so what every one needs is worked out once
        self._hashes = np.ascontiguousarray(self.index["hash"])

    def _header(self) -> Header:
        at, raw = f"{self.folder}/header.json", self._bytes("header.json")
        try:
            document.parse(raw, at)  # says what is wrong with what is no JSON
            about = seal.opened(raw)
        except (RunError, ValueError) as err:
            raise self._damaged("header.json", err.what if isinstance(err, RunError) else str(err)) from err
        document.fit(about, dict, at, fix=AGAIN)
        if (version := document.version(about)) != FORMAT:
            what = f"label store of format {document.shown(version)}; this mmalign reads format {FORMAT}"
            if version == 1:
                what = "label store of format 1, which does not say where in a picture its patches lie"
            fix = "label again: a recipe's stage of kind: label makes another; or name another store"
            raise RunError(what, at=self.folder, fix=fix)
        document.fit(about, Header, at, fix=AGAIN)
        return Header(**{**about, "grid": tuple(about["grid"])})

    def _check(self, name: str, shard: Shard, length: bool) -> None:
        """A shard's file by its name and, in a local folder, its length; what is in it is read when it is asked for."""
        if shard["file"] != name:
            raise self._damaged("header.json", f"it names the file {shard['file']!r} where {name} belongs")
        if length and not files.is_url(self.folder):
            place, bytes_ = (files.local(self.folder) or Path(self.folder)) / name, shard["rows"] * self.header.stride
            if not place.is_file() or place.stat().st_size != bytes_:
                what = f"it has {place.stat().st_size:,} bytes, not {bytes_:,}" if place.exists() else "it is not there"
                raise self._damaged(name, what)

    def _index(self) -> NDArray[Any]:
        """The index, if it is sorted and leads to every row of every shard once."""
        data = self._bytes("index.npy")
        if hashlib.sha256(data).hexdigest() != self.header.index:
            raise self._damaged("index.npy", "its checksum differs")
        try:
            table = cast(NDArray[Any], np.load(io.BytesIO(data), allow_pickle=False))
            hashes, shard, row = (table[name] for name in ("hash", "shard", "row"))
            rows = np.array([about["rows"] for about in self.header.shards])
            met = np.bincount((rows.cumsum() - rows)[shard] + row, minlength=rows.sum())
            whole = bool((row < rows[shard]).all() and (met == 1).all() and (hashes[1:] > hashes[:-1]).all())
        except Exception as err:  # numpy reads its header as Python
            raise self._damaged("index.npy", str(err)) from err
        if not whole:
            raise self._damaged("index.npy", "it does not lead to every image once")
        return table

    def _damaged(self, name: str, why: str) -> Damaged:
        return Damaged(f"{name} is damaged: {why}", at=f"{self.folder}/{name}", fix=AGAIN)

    def __len__(self) -> int:
        return len(self.index)

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not None

    @property
    def bad(self) -> list[tuple[str, str]]:
        """[key, reason] of every image that could not be read."""
        return [pair for shard in self.header.shards for pair in shard["bad"]]

    def __getitem__(self, key: str) -> tuple[NDArray[Any], NDArray[np.float16], Frame]:
        """words_PK, numbers into `words`, scores_PK, and where the patches lie; DataError for a key without labels."""
        if (place := self._find(key)) is None:
            fix = "label the same data, or raise `max_bad` to go on without"
            raise DataError(f"no labels for {key!r}", at=self.folder, fix=fix)
        return self.row(*place)

    def shards(self) -> Iterator[tuple[NDArray[Any], NDArray[np.float16]]]:
        """words_NPK and scores_NPK of one shard after the other."""
        for number, about in enumerate(self.header.shards):
            if about["rows"]:
                yield self._shard(number)[:2]

    def damage(self) -> Iterator[tuple[str, str]]:
        """(file, what is wrong) of every shard that is not as it was written; all of them are read."""
        for number, about in enumerate(self.header.shards):
            try:
                self._shard(number)
            except Damaged as err:
                yield about["file"], err.what

    def row(self, shard: int, row: int) -> tuple[NDArray[Any], NDArray[np.float16], Frame]:
        words_NPK, scores_NPK, frame_N = self._open.get(shard) or self._shard(shard)
        width, height, x0, y0, x1, y1 = frame_N[row].item()
        frame = Frame(self.header.fit, (width, height), self.header.grid, (x0, y0, x1, y1))
        return words_NPK[row], scores_NPK[row], frame

    def _find(self, key: str) -> tuple[int, int] | None:
        hashed = np.uint64(key_hash(key))
        at = int(self._hashes.searchsorted(hashed))
        if at == len(self._hashes) or self._hashes[at] != hashed:
            return None
        _, shard, row = self.index[at].item()
        return shard, row

    def _shard(self, number: int) -> tuple[NDArray[Any], NDArray[np.float16], NDArray[Any]]:
        """words_NPK, scores_NPK and frame_N of a shard, views of its file."""
        if number not in self._open:
            header, about = self.header, self.header.shards[number]
            data = self._map(about["file"])
            if len(data) != about["rows"] * header.stride or zlib.crc32(data) != about["crc32"]:
                raise self._damaged(about["file"], "its checksum differs")
            shape, size = (about["rows"], header.entries // header.keep, header.keep), header.word_type.itemsize
            words_NPK = np.ndarray(shape, header.word_type, data, 0, (header.stride, header.keep * size, size))
            after = header.entries * size
            scores_NPK = np.ndarray(shape, _SCORE, data, after, (header.stride, header.keep * 2, 2))
            if words_NPK.max(initial=0) >= header.size:
                what = f"it holds the word {words_NPK.max()}, and the list has {header.size}"
                raise self._damaged(about["file"], what)
            after += header.entries * _SCORE.itemsize
            frame_N = np.ndarray(shape[:1], _FRAME, data, after, (header.stride,))
            if len(wrong_M := np.flatnonzero(~_covers(frame_N))):
                width, height, *region = frame_N[wrong_M[0]].item()
                what = f"its patches cover {region} of a picture of {width} x {height} pixels"
                raise self._damaged(about["file"], what)
            self._open[number] = words_NPK, scores_NPK, frame_N
        return self._open[number]

    def _map(self, name: str) -> Any:
        place = files.local(self.folder)
        if files.is_url(self.folder):
            return self._bytes(name)
        try:
            with open((place or Path(self.folder)) / name, "rb") as source:
                source.seek(0, io.SEEK_END)
                return mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) if source.tell() else b""
        except FileNotFoundError as err:
            raise self._damaged(name, "it is missing") from err
        except PermissionError as err:
            raise disk.denied((place or Path(self.folder)) / name) from err

    def _bytes(self, name: str) -> bytes:
        try:
            with files.open_(f"{self.folder}/{name}") as source:
                return bytes(source.read())
        except OSError as err:
            fix = "read labels from a finished stage of kind label"
            raise RunError(f"no label store here: {name}: {err.strerror or err}", at=self.folder, fix=fix) from err
