"""Where the files come from that a card's part reads: hub id or address, sizes, checksums, licence, gate.

    source:                                  # of a card; one, or a list of them
      hub: datasets/liuhaotian/LLaVA-Pretrain
      license: other; the terms of CC-3M and BLIP must be kept
      files:
        - {name: blip_laion_cc_sbu_558k.json, size: 181 MB, to: "data:LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"}
        - {name: images.zip, size: 27.4 GB, unpack: "data:LLaVA-Pretrain/images"}

Data is only written into the user's data folder, whatever a card says; weights go into the hub's own cache.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

from mmalign.io import document

DATASETS = "datasets/"  # what the ids of data sets begin with, as in their addresses
UNKNOWN = "not known"
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) (B|kB|MB|GB|TB)")
_HUB = re.compile(r"(?:datasets/)?[\w.-]+/[\w.-]+")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s]+")


@dataclass(frozen=True)
class File:
    """One file of a source, and where it has to be."""

    name: str  # its path in the hub's repository or behind the url; of a page, in words
    to: str = ""  # what is there afterwards, below data:; left out: the folder it is unpacked in
    size: int | str = UNKNOWN  # bytes, exactly; about so much as in `27 GB`; or not known
    sha256: str = ""  # 64 hex digits; left out: not known
    unpack: str = ""  # an archive: the folder below data: that its tree is put in; left out: it is read as it is
    member: str = ""  # the one file of an archive that is taken out, in place of all

    @property
    def place(self) -> str:
        """What is there once the file is got."""
        return self.to or self.unpack


@dataclass(frozen=True)
class Source:
    """One place that files come from: a repository of the hub, an address, or a page for people."""

    hub: str = ""  # the id of a model; that of a data set begins with datasets/
    revision: str = ""  # a branch, tag or commit of the hub's; left out: its main branch
    url: str = ""  # the address of the folder in which the files lie
    page: str = ""  # where a person gets them: nothing is fetched from there
    like: str = ""  # FAMILY/NAME of a card whose sources count here, too
    without: list[str] = field(default_factory=list)  # names of that card's files that are not wanted here
    size: int | str = UNKNOWN  # of a model: what transformers reads of it, without the copies in other formats
    license: str = UNKNOWN
    gate: str = ""  # what has to be agreed to, and where, before anything can be fetched
    files: list[File] = field(default_factory=list)  # of a model left out: what transformers reads

    @property
    def model(self) -> bool:
        """Whether it is a model of the hub, which goes into the hub's cache."""
        return bool(self.hub) and not self.hub.startswith(DATASETS)

    @property
    def repo(self) -> str:
        """The hub's id without what says that it is a data set."""
        return self.hub.removeprefix(DATASETS)

    def address(self, file: File | None = None) -> str:
        """Where a file, or all of it, comes from, in a line: `hub datasets/...`, a URL, a page."""
        if self.hub:
            return f"hub {self.hub}" + (f" at {self.revision}" if self.revision else "")
        return f"{self.url.rstrip('/')}/{file.name}" if self.url and file else self.url or self.page


def read(raw: Any) -> list[Source]:
    """The sources of a card's `source:`. Raises Wrong with the key for what is none."""
    listed = raw if isinstance(raw, list) else [raw]
    if wrong := document.problem(listed, list[Source]):
        key, what = wrong
        raise Wrong(key if isinstance(raw, list) else key.partition(".")[2], what)
    sources = []
    for number, one in enumerate(listed):
        at = f"{number}." if isinstance(raw, list) else ""
        source = Source(**{**one, "files": [File(**file) for file in one.get("files", [])]})
        for key, what in _problems(source):
            raise Wrong(f"{at}{key}".rstrip("."), what)
        sources.append(source)
    return sources


class Wrong(Exception):
    """A `source:` that is none. key: where, inside of it."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(what)
        self.key, self.what = key, what


def _problems(source: Source) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of a source whose values have their types."""
    given = [key for key in ("hub", "url", "page", "like") if getattr(source, key)]
    if len(given) != 1:
        yield "", f"names one of hub, url, page and like, got {' and '.join(given) or 'none'}"
        return
    if source.hub and not _HUB.fullmatch(source.hub):
        yield "hub", f"must be OWNER/NAME or datasets/OWNER/NAME, got {source.hub!r}"
    for key in ("url", "page"):
        if (address := getattr(source, key)) and not _URL.fullmatch(address):
            yield key, f"must be an address such as https://..., got {address!r}"
    if source.revision and not source.hub:
        yield "revision", "is of the hub, and this is no source of the hub"
    if source.without and not source.like:
        yield "without", "goes with `like`"
    if source.like and (source.files or source.like.count("/") != 1):
        yield "like", f"must be FAMILY/NAME, without files of its own, got {source.like!r}"
    if not source.files and not source.like and not source.model:
        yield "files", "are needed, each with `name` and `to` or `unpack`"
    yield from (("size", what) for what in _size(source.size))
    for number, file in enumerate(source.files):
        yield from ((f"files.{number}.{key}", what) for key, what in _file(file))


def _file(file: File) -> Iterator[tuple[str, str]]:
    if not file.place:
        yield "to", "is needed, or `unpack`: a place below data:"
    for key in ("to", "unpack"):
        spec = getattr(file, key)
        if spec and (not spec.startswith("data:") or ".." in spec[5:].split("/") or spec[5:].startswith("/")):
            yield key, f"must be a place below data:, got {spec!r}"
    if file.sha256 and not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
        yield "sha256", f"must be 64 hex digits, got {file.sha256!r}"
    if file.member and (file.unpack or not file.to):
        yield "member", "goes with `to`, the file that it becomes, and without `unpack`"
    yield from (("size", what) for what in _size(file.size))


def _size(size: int | str) -> Iterator[str]:
    if (isinstance(size, int) and size < 0) or (isinstance(size, str) and size != UNKNOWN and about(size) is None):
        yield f"must be bytes, or about so many as in `27 GB`, or {UNKNOWN!r}, got {size!r}"


def about(size: int | str) -> int | None:
    """A size in bytes, roughly where it is told roughly; None where it is not known."""
    if isinstance(size, int):
        return size
    told = _SIZE.fullmatch(size)
    return round(float(told[1]) * UNITS[told[2]]) if told else None


def told(size: int | str) -> str:
    """A size in a reader's words: `about 27 GB`, `1.99 MB`, `not known`."""
    return human(size) if isinstance(size, int) else size if about(size) is None else f"about {size}"


def human(size: int) -> str:
    """Bytes in three digits: `1.99 MB`."""
    unit = next((unit for unit in reversed(UNITS) if size >= UNITS[unit]), "B")
    value = size / UNITS[unit]
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.3g} {unit}"


def wanted(sources: list[Source], like: Source) -> list[Source]:
    """The sources of a card that another one is like, without the files that it does not want."""
    kept = (replace(one, files=[file for file in one.files if file.name not in like.without]) for one in sources)
    return [one for one in kept if one.files or one.model]


def as_json(source: Source) -> dict[str, Any]:
    """What a source says, without what it leaves open."""
    empty: tuple[object, ...] = ("", [], UNKNOWN)
    plain = {key: value for key, value in vars(source).items() if value not in empty and key != "files"}
    files = [{key: value for key, value in vars(file).items() if value not in empty} for file in source.files]
    return cast("dict[str, Any]", plain | ({"files": files} if files else {}))
