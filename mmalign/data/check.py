"""The data doctor: reads every record and every image of a data set, and says what cannot be used and why."""

import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.data import Data, Record, decode
from mmalign.data.ahead import Ahead
from mmalign.data.mixture import Mixture
from mmalign.data.reasons import Unusable, reason_of
from mmalign.data.rows import Rows
from mmalign.errors import DataError
from mmalign.io import processor
from mmalign.io.pictures import orientation

CHUNK = 200  # records a process takes at once
FEW = 400  # records for which no further process is started
AHEAD = 4  # chunks waiting for every process
NOTED = 100  # records of each note whose ids are kept
TINY, HUGE = 16, 4096  # pixels of a side that are worth a note

ENDINGS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}
AGAIN = "rows with the id of an earlier row"
MORE = "notes of other kinds"

MakeData = Callable[[], Data]
Render = Callable[[Record], Counter[str]]  # a record as a model gets it: {note: count}; a DataError: it cannot
MakeRender = Callable[[], Render]
Progress = Callable[[int, int, tuple[int, int]], None]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used. id: what a quarantine calls it. what: the message, which begins with the reason.

    fix: what to try.
    """

    id: str
    reason: str
    what: str
    fix: str = ""


@dataclass
class CheckResult:
    """What is wrong with some records of a data set, or with all of them.

    notes: usable, but worth knowing: {note: how many}. noted: the ids of the first of them.
    """

    rows: int = 0
    images: int = 0  # references to images in the rows
    files: int = 0  # images decoded: one that several rows refer to counts once for every process
    bad: list[BadRecord] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    noted: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)  # of the files as a whole, as sentences
    seconds: float = 0.0

    @property
    def fixes(self) -> dict[str, int]:
        """{what to try: bad records it is said of}, the most frequent first."""
        return dict(Counter(record.fix for record in self.bad if record.fix).most_common())

    @property
    def reasons(self) -> dict[str, int]:
        """{reason: bad records}, the most frequent first."""
        return dict(Counter(record.reason for record in self.bad).most_common())

    def add(self, other: "CheckResult") -> None:
        """Add the result for other records."""
        self.rows += other.rows
        self.images += other.images
        self.files += other.files
        self.bad += other.bad
        for note, count in other.notes.items():
            self.note(note, count, other.noted.get(note, ()))

    def note(self, note: str, count: int, ids: Iterable[str]) -> None:
        """Count a note; there are no more than NOTED kinds of them, beside MORE. ids: of records that have it."""
        known = note if note in self.notes or len(self.notes) < NOTED else MORE
        self.notes[known] += count
        self.keep_ids(known, ids)

    def keep_ids(self, note: str, ids: Iterable[str]) -> None:
        """Keep the ids of records with a note, if there are not enough already."""
        kept = self.noted.setdefault(note, [])
        kept += islice(ids, NOTED - len(kept))


Chunk = tuple[CheckResult, Hashes]
Fault = tuple[str, str, str] | None  # the reason, the message, what to try; None for an image that can be used
_examiner: "Examiner"  # of a process of the pool


def check(
    make: MakeData, jobs: int | None = None, progress: Progress | None = None, make_render: MakeRender | None = None
) -> CheckResult:
    """Check the data set that `make` builds; `make` is sent to other processes, so it must be picklable.

    jobs: processes; None: one for each core. make_render: as `make`, of what renders each record that can be read;
    None: none is. progress: called with the records done, their number, and both as they take time, see Ahead. A
    DataError where a process dies; what is wrong with a record is no error, but in the result.
    """
    began = time.monotonic()
    data = make()
    if not len(data):
        raise DataError("there is no record to check", fix="is all of it left out by a quarantine?")
    result, hashes_of_chunks = CheckResult(), []
    ahead = Ahead(len(data))
    jobs = 1 if len(data) <= FEW else jobs or processor.cores()
    starts = range(0, len(data), CHUNK)
    alone = jobs == 1 and map(Examiner(data, make_render and make_render()).chunk, starts)
    for chunk, hashes in alone or _in_processes(make, jobs, starts, make_render):
        result.add(chunk)
        hashes_of_chunks.append(hashes)
        if progress:
            progress(result.rows, len(data), ahead.work(result.rows, result.files))
    _note_repeated_ids(data, hashes_of_chunks, result)
    result.remarks = list(data.remarks)
    result.seconds = time.monotonic() - began
    return result


def _in_processes(make: MakeData, jobs: int, starts: range, make_render: MakeRender | None) -> Iterator[Chunk]:
    """The chunks in order, from processes of their own: a decoder that crashes cannot take the check with it."""
    waiting: deque[tuple[int, Future[Chunk]]] = deque()
    left = iter(starts)
    pool = ProcessPoolExecutor(jobs, _context(), initializer=_init_process, initargs=(make, make_render))
    try:
        for _ in starts:
            while len(waiting) < jobs * AHEAD and (start := next(left, None)) is not None:
                with _deaf():  # a submit may start a process
                    waiting.append((start, pool.submit(_check_chunk, start)))
            yield waiting[0][1].result()
            waiting.popleft()
    except BrokenProcessPool as err:
        what = f"a process died while it checked records from {waiting[0][0]} on"
        raise DataError(what, fix="fewer --jobs if memory ran out; --jobs 1 shows where it crashes") from err
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C waits, and processes that are started meanwhile never hear it: the first process stops the others."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _context() -> Any:
    """Forked, where no other thread could hold a lock: what is imported is not imported again, half a second."""
    alone = sys.platform == "linux" and threading.active_count() == 1
    return multiprocessing.get_context("fork" if alone else "spawn")


def _init_process(make: MakeData, make_render: MakeRender | None) -> None:
    """In a process of the pool."""
    global _examiner
    _examiner = Examiner(make(), make_render and make_render())


def _check_chunk(start: int) -> Chunk:
    return _examiner.chunk(start)


class Examiner:
    """Examines records; the image of several records once."""

    def __init__(self, data: Data, render: Render | None = None) -> None:
        self.data, self.render = data, render
        self.faults: dict[int, Fault] = {}  # by the hash of a reference

    def chunk(self, start: int) -> Chunk:
        """(the result of CHUNK records from `start` on, the hashes of their own ids)."""
        result = CheckResult()
        numbers = range(start, min(start + CHUNK, len(self.data)))
        records = [self._read(number) for number in numbers]  # all before any image: in turns, both are slower
        with warnings.catch_warnings():  # of damaged EXIF; harmless here, where one thread runs
            warnings.simplefilter("ignore")
            ids = [self._check_record(*pair, result) for pair in zip(numbers, records, strict=True)]
        return result, np.array(ids, np.uint64)

    def _read(self, number: int) -> Record | DataError:
        try:
            return self.data[number]
        except DataError as err:
            return err

    def _check_record(self, number: int, record: Record | DataError, result: CheckResult) -> int:
        """Examine one record; returns the hash of its own id."""
        result.rows += 1
        if isinstance(record, DataError):
            id_ = self.data.id_of(number)
            result.bad.append(BadRecord(id_, reason_of(record), record.what, record.fix))
            return _hash(_own_id(self.data, id_))
        result.images += len(record.images)
        faults = [self._check_image(reference, record.id, result) for reference in record.images]
        if first := next(filter(None, faults), None):
            result.bad.append(BadRecord(record.id, *first))
        elif record.notes or self.render:
            self._note(record, result)
        return _hash(_own_id(self.data, record.id))

    def _note(self, record: Record, result: CheckResult) -> None:
        """What the reader noticed, and what the model makes of a record that can be read."""
        try:
            notes = (self.render(record) if self.render else Counter()) + Counter(record.notes)
        except DataError as err:
            result.bad.append(BadRecord(record.id, reason_of(err), err.what, err.fix))
            return
        for note, count in notes.items():
            result.note(note, count, [record.id])

    def _check_image(self, reference: Any, id_: str, result: CheckResult) -> Fault:
        key = _hash(repr(reference))
        if key not in self.faults:
            result.files += 1
            self.faults[key] = self._decode(reference, id_, result)
        return self.faults[key]

    def _decode(self, reference: Any, id_: str, result: CheckResult) -> Fault:
        """Decode an image as training would."""
        try:
            file = self.data.image_file(reference)
            if file is None:
                self.data.image(reference)
            else:
                image = decode.open_image(*file)
                decode.load_rgb(image, file[1])
                for note in _notes(image, file[1]):
                    result.notes[note] += 1
                    result.keep_ids(note, [id_])
        except DataError as err:
            return reason_of(err), err.what, err.fix
        return None


def _notes(image: Any, name: str) -> Iterator[str]:
    """What is worth knowing of an image that can be used."""
    ending = os.path.splitext(name)[1].lower().lstrip(".")
    format_ = "JPEG" if image.format == "MPO" else image.format  # of a camera: a JPEG with a preview behind it
    if ENDINGS.get(ending, format_) != format_:
        yield f"{format_} named .{ending}"
    if image.mode in ("P", "CMYK", "1", "F") or image.mode.startswith("I"):
        yield {"P": "with a palette", "CMYK": "in CMYK", "1": "in black and white"}.get(image.mode, "of 16 or 32 bits")
    if image.mode in ("RGBA", "LA", "PA"):
        yield "with transparency, which is dropped"
    if max(image.size) > HUGE or min(image.size) < TINY:
        yield f"wider or higher than {HUGE} pixels" if max(image.size) > HUGE else f"smaller than {TINY} pixels"
    if orientation(image) != 1:
        yield "to be turned upright by its EXIF"


def _own_id(data: Data, id_: str) -> str:
    """A record's id as its row gives it: without the row's number, which readers of files add; empty: it gives none."""
    id_in_row = id_.rpartition("@")[0] if isinstance(data, (Rows, Mixture)) else id_
    return "" if id_in_row.endswith("/") else id_in_row  # a mixture puts the member's number in front


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "little")


def _note_repeated_ids(data: Data, chunks: list[Hashes], result: CheckResult) -> None:
    """Ids that several records have. Readers of files tell them apart by the row's number; elsewhere it is a fault."""
    hash_N = np.concatenate(chunks) if chunks else np.zeros(0, np.uint64)
    order = np.argsort(hash_N, kind="stable")
    repeats = order[1:][np.diff(hash_N[order]) == 0]  # all but the first of each
    repeats = repeats[hash_N[repeats] != _hash("")]
    numbers = sorted(map(int, repeats))
    if not numbers:
        return
    if isinstance(data, (Rows, Mixture)):
        result.notes[AGAIN] += len(numbers)
        result.keep_ids(AGAIN, map(data.id_of, numbers))
        return
    for number in numbers:
        id_ = data.id_of(number)
        err = Unusable("id", f"record {number} has the id of an earlier one, {id_}")
        result.bad.append(BadRecord(id_, err.reason, err.what))
