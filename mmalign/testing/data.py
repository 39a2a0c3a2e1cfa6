"""The contract of a data set, as a check: records, pictures, errors, and threads that read at once."""

import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from PIL import Image

from mmalign.data import MARK, Data, Record
from mmalign.errors import DataError
from mmalign.testing.tensors import refuses
from mmalign.vision import Frame

MOST = 200  # records looked at
GRIDS = ((3, 2), (4, 4))
ROLES = ("system", "user", "assistant")


def check_data(make: Callable[[], Data], unreadable: Sequence[Any] = (), unusable: Sequence[int] = ()) -> None:
    """A data set keeps its contract.

    make: builds it, the same every time; a few records are enough, of every kind there is. unreadable: references to
    pictures that are not there or damaged. unusable: numbers of records that cannot be used.
    """
    data = make()
    assert len(data) > 0, "there are no records"
    assert len(data) == len(make()), "two data sets built alike have different lengths"
    numbers = [n for n in range(min(MOST, len(data))) if n not in set(unusable)]
    records = {number: _record(data, number) for number in numbers}
    _ids(data, records)
    _repeats(data, make(), records)
    assert any(record.caption for record in records.values()), "no record has an answer, so nothing would be trained"
    references = [reference for record in records.values() for reference in record.images]
    images = [_image(data, reference) for reference in references]
    _says_what_is_wrong(data, unreadable, unusable)
    _threads(make(), records, references, images)
    _files(data, references)
    for reference in references[:4]:
        _truth(data, reference)
    _leaves_out(make, records)


def _record(data: Data, number: int) -> Record:
    record = _only_data_errors(lambda: data[number], f"record {number}")
    assert isinstance(record, Record), f"record {number} is a {type(record).__name__}, not a Record"
    assert isinstance(record.id, str), f"the id of record {number} is {record.id!r}, not a text"
    assert record.id, f"record {number} has no id"
    assert record.turns, f"record {record.id!r} has no turns"
    for turn in record.turns:
        assert turn.role in ROLES, f"record {record.id!r} has a turn of {turn.role!r}, not of {', '.join(ROLES)}"
        assert isinstance(turn.text, str), f"record {record.id!r} has a turn that is no text: {turn.text!r}"
    marks = sum(turn.text.count(MARK) for turn in record.turns)
    assert marks == len(record.images), f"record {record.id!r} has {marks} {MARK} marks for {len(record.images)} images"
    return record


def _only_data_errors(call: Callable[[], Any], what: str) -> Any:
    try:
        return call()
    except DataError as err:
        raise AssertionError(f"{what} cannot be read: {err}") from err
    except Exception as err:
        raise AssertionError(f"{what} raises {type(err).__name__}, not a DataError: {err}") from err


def _ids(data: Data, records: dict[int, Record]) -> None:
    once: dict[str, int] = {}
    for number, record in records.items():
        assert data.id_of(number) == record.id, f"id_of({number}) is {data.id_of(number)!r}, the record {record.id!r}"
        for key in {record.id, *record.keys}:
            assert key not in once, f"records {once[key]} and {number} both have the id {key!r}"
            once[key] = number


def _repeats(data: Data, twin: Data, records: dict[int, Record]) -> None:
    for number, record in records.items():
        assert data[number] == record, f"record {number} is another one when it is read again"
        assert twin[number] == record, f"record {number} is another one in a data set built alike"


def _image(data: Data, reference: Any) -> Image.Image:
    picture = _only_data_errors(lambda: data.image(reference), f"the image {reference!r}")
    assert isinstance(picture, Image.Image), f"the image {reference!r} is a {type(picture).__name__}, not a picture"
    assert picture.mode == "RGB", f"the image {reference!r} is {picture.mode}, not 8-bit RGB"
    again = data.image(reference)
    assert again.tobytes() == picture.tobytes(), f"the image {reference!r} is another one when it is read again"
    return picture


def _says_what_is_wrong(data: Data, unreadable: Sequence[Any], unusable: Sequence[int]) -> None:
    for reference in unreadable:
        refuses(DataError, lambda reference=reference: data.image(reference), f"the image {reference!r}")  # type: ignore[misc]
    for number in unusable:
        refuses(DataError, lambda number=number: data[number], f"record {number}")  # type: ignore[misc]
        assert data.id_of(number), f"id_of({number}) of a record that cannot be used is empty"


def _threads(data: Data, records: dict[int, Record], references: Sequence[Any], images: Sequence[Image.Image]) -> None:
    """Eight reader threads, in no order."""
    numbers = [*records, *reversed(records)] * 2
    every = [*range(len(references)), *reversed(range(len(references)))]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(data.__getitem__, numbers))
        seen = list(pool.map(lambda number: data.image(references[number]).tobytes(), every))
    for number, record in zip(numbers, read, strict=True):
        assert record == records[number], f"threads that read at once get another record {number}"
    for number, pixels in zip(every, seen, strict=True):
        same = pixels == images[number].tobytes()
        assert same, f"threads that read at once get another image {references[number]!r}"


def _files(data: Data, references: Iterable[Any]) -> None:
    for reference in references:
        if (found := data.image_file(reference)) is None:
            continue
        content, name = found
        what = f"image_file({reference!r}) is no pair of bytes and a name"
        assert isinstance(content, bytes), what
        assert isinstance(name, str), what
        Image.open(io.BytesIO(content)).verify()


def _truth(data: Data, reference: Any) -> None:
    """What each patch shows, where the data knows it."""
    for rows, columns in GRIDS:
        with suppress(DataError):
            truth = data.truth(reference, Frame("squash", (1, 1), (rows, columns)))
            what = f"truth on a grid of {rows} x {columns} has {len(truth.words)} patches"
            assert len(truth.words) == rows * columns, what
            what = f"truth on a grid of {rows} x {columns} says of {len(truth.object)} patches what they are"
            assert len(truth.object) in (0, rows * columns), what


def _leaves_out(make: Callable[[], Data], records: dict[int, Record]) -> None:
    """Data that can shrink loses the records it is told to, and no other."""
    data, first = make(), next(iter(records.values()))
    size = len(data)
    try:
        data.leave_out([first.id])
    except DataError:
        return
    assert len(data) == size - 1, f"leave_out() of one record leaves {len(data)} of {size}"
    assert data.left_out == 1, f"left_out is {data.left_out} after one record was left out"
    assert all(data.id_of(n) != first.id for n in range(min(MOST, len(data)))), "leave_out() keeps what it was told"
