"""Mixtures: so much of each member, the same record under the same number every time."""

from collections import Counter

import pytest

from mmalign.data import Data, Record, Truth, Turn
from mmalign.data.mixture import Mixture
from mmalign.errors import DataError
from mmalign.toyworld.data import Captions
from mmalign.vision import Frame
from tests.data.samples import images, is_picture, jsonl, row


class Rows(Data):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        return Record(str(number), (Turn("user", "?"), Turn("assistant", "!")))


def ids(data):
    return [data[n].id for n in range(len(data))]


def test_everything_once():
    assert ids(Mixture([Rows(2), Rows(3)])) == ["0/0", "0/1", "1/0", "1/1", "1/2"]


@pytest.mark.parametrize(
    ("weights", "counts", "expected"),
    [
        ([1, 0.5], None, [4, 3]),
        ([2, 0], None, [8, 0]),
        ([0.25, 1.5], None, [1, 9]),
        (None, [1, 2], [1, 2]),
        (None, [9, 13], [9, 13]),
        (None, [0, 1], [0, 1]),
    ],
)
def test_so_much_of_each(weights, counts, expected):
    all_ids = ids(Mixture([Rows(4), Rows(6)], weights, counts))
    assert [sum(id_.startswith(f"{n}/") for id_ in all_ids) for n in (0, 1)] == expected
    for member, size, count in ((0, 4, expected[0]), (1, 6, expected[1])):
        often = Counter(id_ for id_ in all_ids if id_.startswith(f"{member}/"))
        assert set(often.values()) <= {count // size, -(-count // size)}  # none much more often than another


def test_a_part_is_spread_over_the_whole_member():
    assert ids(Mixture([Rows(100)], [0.04])) == ["0/0", "0/25", "0/50", "0/75"]
    assert ids(Mixture([Rows(4)], counts=[6])) == ["0/0", "0/1", "0/2", "0/3", "0/0", "0/2"]


def test_members_written_in_a_recipe(tmp_path):
    images(tmp_path)
    a, b = (jsonl(tmp_path / f"{n}.jsonl", [row(f"{n}{m}", f"{m}.jpg") for m in range(2)]) for n in "ab")
    inner = {"kind": "mixture", "data": [{"kind": "conversations", "path": b}], "weights": [2]}
    data = Mixture([{"kind": "conversations", "path": a}, inner])
    assert ids(data) == ["0/a0@0", "0/a1@1", "1/0/b0@0", "1/0/b1@1", "1/0/b0@0", "1/0/b1@1"]
    assert is_picture(data.image(data[3].images[0]), 1, "JPEG")
    file = data.image_file(data[3].images[0])
    assert file
    assert file[1] == "1.jpg"


def test_truth_comes_from_the_member():
    data = Mixture([Rows(1), Captions(3)])
    reference = data[2].images[0]
    assert isinstance(data.truth(reference, Frame("squash", (1, 1), (2, 2))), Truth)
    assert data.image(reference).tobytes() == Captions(3).image(1).tobytes()
    assert data.image_file(reference) is None


def test_a_quarantine_reaches_the_members(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [row(f"a{n}", None, "Hello.") for n in range(4)])
    (tmp_path / "q.jsonl").write_text('{"id": "1/0/a2@2"}\n{"id": "1/0/a0@0"}\n')
    inner = {"kind": "mixture", "data": [{"kind": "conversations", "path": path}], "weights": [2]}
    data = Mixture([Rows(1), inner], quarantine=str(tmp_path / "q.jsonl"))
    assert ids(data) == ["0/0", "1/0/a1@1", "1/0/a3@3", "1/0/a1@1", "1/0/a3@3"]
    assert data.left_out == 2


def test_names_of_rows_that_cannot_be_read(tmp_path):
    data = Mixture([{"kind": "conversations", "path": jsonl(tmp_path / "a.jsonl", ["{"])}])
    assert data.id_of(0) == "0/@0"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture([]), "a mixture of nothing"),
        (lambda: Mixture([Rows(1)], [1], [1]), "weights or counts, not both"),
        (lambda: Mixture([Rows(1)], [1, 2]), "2 numbers for 1 data sets"),
        (lambda: Mixture([Rows(1)], counts=[1.5]), r"counts are whole numbers of records: \[1.5\]"),
        (lambda: Mixture([Rows(1)], ["all"]), r"weights and counts are lists of numbers, got \['all'\]"),
        (lambda: Mixture([Rows(1)], counts=[True]), "weights and counts are lists of numbers"),
        (lambda: Mixture([Rows(1)], 2), "weights and counts are lists of numbers, got 2"),
        (lambda: Mixture({"kind": "conversations"}), "is no list of data sets"),
        (lambda: Mixture("a.jsonl"), "'a.jsonl' is no list of data sets"),
        (lambda: Mixture(["toy-chat"]), "'toy-chat' is no data set"),
        (lambda: Mixture([Rows(1)], [-1]), r"cannot be negative: \[-1\]"),
        (lambda: Mixture([Rows(1)], [float("nan")]), "cannot be negative"),
        (lambda: Mixture([Rows(0)], counts=[1]), "data set 0 of the mixture is empty"),
        (lambda: Mixture([Rows(2)])[2], "no record 2"),
        (lambda: Mixture([{"path": "x"}]), "no kind of data None"),
        (lambda: Mixture([{"kind": "tar", "path": "x"}]), "no kind of data 'tar'"),
        (lambda: Mixture([{"kind": "conversations"}]), "a member of kind conversations: .*path"),
        (lambda: Mixture([Rows(1)]).leave_out(["7/x@1"]), "no member of the mixture has '7/x@1'"),
        (lambda: Mixture([Rows(1)]).leave_out(["x@1"]), "no member of the mixture has 'x@1'"),
        (lambda: Mixture([Rows(1)]).leave_out(["0/0"]), "this data cannot leave records out"),
    ],
)
def test_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()
