"""Damage of every kind: named by the check, an error for who reads it, and never met behind a quarantine."""

import json
from collections import Counter

import pytest

from mmalign.data import check, quarantine
from mmalign.data.conversations import Conversations
from mmalign.data.reasons import REASONS
from mmalign.errors import DataError
from tests.data.corpus import cases
from tests.data.made import jpeg, row


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(the file, the case or None of every row): damaged rows, each between two good ones."""
    folder = tmp_path_factory.mktemp("corpus") / "images"
    folder.mkdir()
    (folder / "good.jpg").write_bytes(jpeg())
    good = json.dumps(row("good", "good.jpg")).encode()
    rows = [one for case in cases(folder) for one in (None, case)] + [None]
    place = folder.parent / "rows.jsonl"
    place.write_bytes(b"".join((case.line if case else good) + b"\n" for case in rows))
    return place, rows


def opened(corpus, **more):
    return Conversations(str(corpus[0]), str(corpus[0].parent / "images"), **more)


def test_it_is_large_and_knows_every_reason(corpus):
    known = Counter(reason for case in corpus[1] if case for reason in case.reasons)
    assert sum(case is not None for case in corpus[1]) >= 200
    assert set(REASONS) - set(known) == {"unreadable", "id", "other"}  # they need more than damaged files


def test_the_check_names_each(corpus):
    found = check.check(lambda: opened(corpus), jobs=1)
    named = {int(bad.id.rpartition("@")[2]): bad for bad in found.bad}
    for number, case in enumerate(corpus[1]):
        if case is None:
            assert number not in named
        else:
            assert named[number].reason in case.reasons, f"{case.name}: {named[number].what}"
            assert named[number].what.startswith(f"{named[number].reason}: ")


def test_reading_raises_data_errors_alone(corpus):
    data = opened(corpus)
    for number, case in enumerate(corpus[1]):
        try:
            record = data[number]
            for reference in record.images:
                data.image(reference)
            assert case is None, case.name
        except DataError:
            assert case is not None


def test_behind_a_quarantine_all_is_well(corpus, tmp_path):
    found = check.check(lambda: opened(corpus), jobs=1)
    quarantine.write(tmp_path / "q.jsonl", ((bad.id, bad.what) for bad in found.bad))
    data = opened(corpus, quarantine=str(tmp_path / "q.jsonl"))
    assert len(data) == sum(case is None for case in corpus[1])
    assert data.left_out == len(found.bad)
    for record in data:
        assert data.image(record.images[0]).mode == "RGB"
    again = check.check(lambda: opened(corpus, quarantine=str(tmp_path / "q.jsonl")), jobs=1)
    assert not again.bad
