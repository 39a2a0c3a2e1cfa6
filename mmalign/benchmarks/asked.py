"""What an evaluation asked: every question and its picture by their content, so that others know the same ones again.

It lies beside the answers, as <benchmark>.asked.json.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from mmalign.benchmarks import Benchmark, Question
from mmalign.benchmarks.answers import FEW, few
from mmalign.benchmarks.filed import FiledBenchmark
from mmalign.benchmarks.pictures import DIGITS, Base64Image, Look
from mmalign.benchmarks.reading import ParquetImage
from mmalign.errors import DataError
from mmalign.io import files

READERS = 8  # files read at once
SAMPLE = 64  # pictures of files that are decoded
DRAWN = 8  # pictures that are opened of a benchmark which opens them itself, or draws them


class Record(TypedDict):
    """<benchmark>.asked.json."""

    questions: dict[str, str]  # id: hash of its text and options, and behind a blank the name of its picture
    pictures: dict[str, tuple[str | None, int | None, int | None]]  # name: hash of its bytes, size, time


@dataclass
class Asked:
    """Questions and pictures by their content."""

    questions: dict[str, tuple[str, str | None]]  # id: hash of its text and options, name of its picture
    pictures: dict[str, Look]  # by name

    def write(self, place: Path) -> None:
        questions = {qid: text if name is None else f"{text} {name}" for qid, (text, name) in self.questions.items()}
        record = {"questions": questions, "pictures": self.pictures}
        files.write(place, json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")

    @classmethod
    def read(cls, place: Path, fix: str) -> "Asked":
        """A RunError for a file that is damaged."""
        record: Record = files.read_json(place, kind=Record, fix=fix)
        parts = {qid: line.partition(" ") for qid, line in record["questions"].items()}
        questions = {qid: (text, name if blank else None) for qid, (text, blank, name) in parts.items()}
        return cls(questions, {name: Look(*look) for name, look in record["pictures"].items()})

    @property
    def by_content(self) -> bool:
        """Whether the content of every picture is known."""
        return all(name is None or self.content(name) for _, name in self.questions.values())

    def content(self, name: str) -> str | None:
        return self.pictures[name].content if name in self.pictures else None

    def picture(self, qid: str, by_content: bool) -> str | None:
        """A question's picture: by its content, or by its name; None where it has none, or is not known."""
        name = self.questions[qid][1] if qid in self.questions else None
        return self.content(name) if by_content and name is not None else name

    def key(self, qid: str, by_content: bool) -> tuple[str, str | None]:
        """What makes a question the same as another: its text, its options and its picture."""
        return self.questions[qid][0], self.picture(qid, by_content)

    def changed(self, now: "Asked") -> list[str]:
        """The ids of questions that are not what they were, and of those about a picture that is not."""
        contents = self.by_content and now.by_content
        return [
            qid for qid in self.questions if qid in now.questions and self.key(qid, contents) != now.key(qid, contents)
        ]


Problem = tuple[str, str]  # what is wrong with a picture, and where it lies


def look(bench: Benchmark, share: tuple[int, int] = (0, 1)) -> tuple[Asked, list[Problem]]:
    """What is asked, and what is wrong with its pictures; before any model is loaded.

    Of every picture the header is read, and of some the pixels. share: of several processes, which one looks, so that
    each looks at a part of the pictures.
    """
    questions = bench.questions()
    references = {name_of(question.image): question.image for question in questions if question.image is not None}
    part = list(references.items())[share[0] :: share[1]]
    most = SAMPLE if isinstance(bench, FiledBenchmark) else DRAWN
    sample = {name for name, _ in part[:: max(1, len(part) // most)]}
    one = _filed(bench, sample) if isinstance(bench, FiledBenchmark) else _foreign(bench, sample)
    named = [(name, reference) for name, reference in part if isinstance(reference, str)]
    others = [(name, reference) for name, reference in part if not isinstance(reference, str)]
    with ThreadPoolExecutor(READERS) as readers:
        seen = dict(readers.map(one, named)) if isinstance(bench, FiledBenchmark) else dict(map(one, named))
    seen |= dict(map(one, others))  # in the order of their table, whose parts are kept for a moment only
    problems = [(found.what, found.at) for found in seen.values() if isinstance(found, DataError)]
    pictures = {name: found for name, found in seen.items() if isinstance(found, Look)}
    return Asked({question.id: _question(question) for question in questions}, pictures), problems


Seen = tuple[str, Look | DataError]


def _filed(bench: FiledBenchmark, sample: set[str]) -> Callable[[tuple[str, Any]], Seen]:
    def one(named: tuple[str, Any]) -> Seen:
        name, reference = named
        if isinstance(reference, str) and bench.pictures.remote:
            return name, Look(None)
        try:
            return name, bench.pictures.look(reference, decode=name in sample)
        except DataError as err:
            return name, err
        except OSError as err:
            return name, DataError(f"{name}: {err.strerror or err}", at=str(err.filename or ""))

    return one


def _foreign(bench: Benchmark, sample: set[str]) -> Callable[[tuple[str, Any]], Seen]:
    """One that opens its pictures itself: only the sample is opened."""

    def one(named: tuple[str, Any]) -> Seen:
        name, reference = named
        try:
            if name in sample:
                bench.image(reference)
            return name, Look(bench.identity(reference))
        except DataError as err:
            return name, DataError(f"{name}: {err.what}", at=err.at)

    return one


def refuse(problems: Sequence[Problem], pictures: int, bench: str) -> None:
    """DataError where pictures cannot be read."""
    if problems:
        told = "; ".join(what for what, _ in problems[:FEW])
        more = f" and {len(problems) - FEW} more" if len(problems) > FEW else ""
        what = f"{bench}: {len(problems)} of {pictures} pictures cannot be read: {told}{more}"
        raise DataError(what, at=problems[0][1], fix="fetch these again, then the same command")


def name_of(reference: Any) -> str:
    """A picture's reference, without the folder it lies in."""
    if isinstance(reference, ParquetImage):
        return f"{Path(reference.path).name} row {reference.row}"
    if isinstance(reference, Base64Image):
        return f"base64 {_hash(reference.cell)}"
    return str(reference)


def _question(question: Question) -> tuple[str, str | None]:
    text = json.dumps([question.text, question.options, question.plain])
    return _hash(text), None if question.image is None else name_of(question.image)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


def of_items(keys: Iterable[str]) -> Asked:
    """Of a probe, whose items are pictures."""
    return Asked({key: (_hash(key), key) for key in keys}, {})


def clusters(references: Mapping[str, Any]) -> dict[str, str]:
    """{question id: its picture}, without questions that have none."""
    return {qid: name_of(reference) for qid, reference in references.items() if reference is not None}


@dataclass
class Renewal:
    """How the pictures of a finished evaluation are now; as text empty: as they were."""

    seen: int  # how many have files of their own
    changed: list[str]
    gone: list[str]

    def __str__(self) -> str:
        both = ((self.changed, "have changed"), (self.gone, "are not there any more"))
        return "; ".join(f"{len(names)} of {self.seen} {have} ({few(names)})" for names, have in both if names)


def renewal(before: Asked, bench: FiledBenchmark) -> "Renewal | str":
    """Which pictures are no longer what they were: by size and time, and where these differ by content.

    A text says why they are not looked at.
    """
    timed = {name: its for name, its in before.pictures.items() if its.time is not None}
    if bench.pictures.remote:
        return "they are not on this machine"
    now = {name: bench.pictures.stat(name) for name in timed}
    gone = [name for name in timed if now[name] is None]
    suspects = [name for name, its in timed.items() if now[name] not in (None, (its.size, its.time))]
    changed = [name for name in suspects if _content(bench, name) != timed[name].content]
    return Renewal(len(timed), changed, gone)


def _content(bench: FiledBenchmark, name: str) -> str | None:
    """None: it cannot be read any more."""
    try:
        return bench.identity(name)
    except (DataError, OSError):
        return None
