"""`check_data`: data sets of ours and a new one pass, and what breaks a clause is said."""

import json
import time

import pytest
from PIL import Image

from mmalign.data import Data, Record, Truth, Turn
from mmalign.data.conversations import Conversations
from mmalign.errors import DataError
from mmalign.testing import check_data
from mmalign.toyworld.data import Captions, Texts
from tests.data.samples import images, jsonl, row


@pytest.mark.parametrize("kind", [Captions, Texts])
def test_toy_data_passes(kind):
    check_data(lambda: kind(12))


def test_conversations_pass(tmp_path):
    images(tmp_path / "images")
    (tmp_path / "images" / "cut.jpg").write_bytes((tmp_path / "images" / "0.jpg").read_bytes()[:100])
    rows = [row("a", "0.jpg"), row("b", "1.jpg"), row("c", None, "Hello."), '{"id": ', row("e", "cut.jpg")]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(AssertionError, match=r"the image .*cut.jpg.* cannot be read"):
        check_data(lambda: Conversations(path, str(tmp_path / "images")), unusable=[3])
    path = jsonl(tmp_path / "whole.jsonl", rows[:-1])
    check_data(lambda: Conversations(path, str(tmp_path / "images")), ["cut.jpg", "none.jpg"], [3])


def test_a_new_one_passes(start, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    line = {"image": "a.png", "question": "What is this?", "answer": "An example."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(line))
    check_data(lambda: start("data")(str(tmp_path)), ["b.png"])


class Kept(Data):
    """Keeps the contract: four records, one of them without an image, one that cannot be used."""

    def __init__(self):
        self.ids = ["a", "b", "c", "d"]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, number):
        if self.ids[number] == "d":
            raise DataError("no turns")
        marks = "<image>\n" * (self.ids[number] != "c")
        turns = (Turn("user", f"{marks}What is this?"), Turn("assistant", "A star."))
        return Record(self.ids[number], turns, (self.ids[number],) if marks else ())

    def image(self, reference):
        if reference == "none":
            raise DataError("there is no such image")
        return Image.new("RGB", (9, 7), (ord(reference), 0, 0))

    def image_file(self, reference):
        return None

    def truth(self, reference, frame):
        patches = frame.grid[0] * frame.grid[1]
        return Truth([("star",)] * patches, [True] * patches)

    def leave_out(self, ids, at=""):
        self.ids = [one for one in self.ids if one not in set(ids)]
        self.left_out = 4 - len(self.ids)


def record(change):
    """A class whose records are other ones."""

    class Broken(Kept):
        def __getitem__(self, number):
            return change(number, super().__getitem__(number))

    return Broken


def method(name, body):
    return type("Broken", (Kept,), {name: body})


def raising(self, *_):
    raise KeyError("turns")


def late(self, number):
    """Not safe from several threads."""
    self.number = number
    time.sleep(0.001)
    return Kept.__getitem__(self, self.number)


def late_image(self, reference):
    self.reference = reference
    time.sleep(0.001)
    return Kept.image(self, self.reference)


def counting(self, *given):
    self.count = getattr(self, "count", 0) + 1
    return self.count


def drifting(self, number):
    return Record(f"{number}-{counting(self)}", TURNS)


TURNS = (Turn("user", "What?"), Turn("assistant", "A star."))
MARKED = (Turn("user", "<image><image> What?"), Turn("assistant", "A star."))

BROKEN = {
    "nothing": (method("__len__", lambda self: 0), "there are no records"),
    "tuple": (record(lambda n, r: (r.id, r.turns)), "record 0 is a tuple, not a Record"),
    "KeyError": (method("__getitem__", raising), "record 0 raises KeyError, not a DataError"),
    "number": (record(lambda n, r: Record(n, TURNS)), "the id of record 0 is 0, not a text"),
    "nameless": (record(lambda n, r: Record("", TURNS)), "record 0 has no id"),
    "same id": (record(lambda n, r: Record("a", TURNS)), "records 0 and 1 both have the id 'a'"),
    "same key": (
        record(lambda n, r: Record("a", MARKED, ("a", "b")) if n else Record("a#1", TURNS)),
        "records 0 and 1 both have the id 'a#1'",
    ),
    "silent": (record(lambda n, r: Record(r.id, ())), "record 'a' has no turns"),
    "role": (record(lambda n, r: Record(r.id, (Turn("gpt", "A star."),))), "has a turn of 'gpt', not of system"),
    "no text": (record(lambda n, r: Record(r.id, (Turn("user", None),))), "has a turn that is no text: None"),
    "marks": (record(lambda n, r: Record(r.id, MARKED, r.images)), "record 'a' has 2 <image> marks for 1 images"),
    "unmarked": (record(lambda n, r: Record(r.id, TURNS, r.images)), "record 'a' has 0 <image> marks for 1 images"),
    "other id": (method("id_of", lambda self, n: f"row {n}"), r"id_of\(0\) is 'row 0', the record 'a'"),
    "unanswered": (record(lambda n, r: Record(r.id, TURNS[:1])), "no record has an answer"),
    "drifting": (method("__getitem__", drifting), r"id_of\(0\) is '0-\d', the record '0-1'"),
    "no picture": (method("image", lambda self, r: b"png"), "the image 'a' is a bytes, not a picture"),
    "gray": (method("image", lambda self, r: Kept.image(self, r).convert("L")), "the image 'a' is L, not 8-bit RGB"),
    "image KeyError": (method("image", raising), "the image 'a' raises KeyError, not a DataError"),
    "other image": (
        method("image", lambda self, r: Image.new("RGB", (9, 7), (counting(self), 0, 0))),
        "the image 'a' is another one when it is read again",
    ),
    "invented": (
        method("image", lambda self, r: Image.new("RGB", (9, 7))),
        "the image 'none' raises no DataError",
    ),
    "threads": (method("__getitem__", late), "threads that read at once get another record"),
    "image threads": (method("image", late_image), "threads that read at once get another image"),
    "file": (method("image_file", lambda self, r: ("a.png", b"")), r"image_file\('a'\) is no pair of bytes and a name"),
    "truth": (method("truth", lambda self, r, f: Truth([("star",)])), "truth on a grid of 3 x 2 has 1 patches"),
    "object": (
        method("truth", lambda self, r, f: Truth([()] * (f.grid[0] * f.grid[1]), [True])),
        "truth on a grid of 3 x 2 says of 1 patches what they are",
    ),
    "keeps all": (method("leave_out", lambda self, ids, at="": None), r"leave_out\(\) of one record leaves 4 of 4"),
    "left out": (
        method("leave_out", lambda self, ids, at="": self.ids.remove("a")),
        "left_out is 0 after one record was left out",
    ),
}


def test_the_unbroken_data_passes():
    check_data(Kept, ["none"], [3])


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_contract_is_said(name):
    data, said = BROKEN[name]
    with pytest.raises(AssertionError, match=said):
        check_data(data, ["none"], [3])


def test_a_record_that_cannot_be_used_must_say_so():
    with pytest.raises(AssertionError, match="record 3 cannot be read: no turns"):
        check_data(Kept, ["none"])
    with pytest.raises(AssertionError, match="record 0 raises no DataError"):
        check_data(Kept, ["none"], [0, 3])


def test_two_that_are_built_alike_differ():
    made = []

    class Drawn(Kept):
        def __init__(self):
            super().__init__()
            made.append(self)
            self.ids = ["a", "b", "c", "d"] if len(made) == 1 else ["b", "a", "c", "d"]

    with pytest.raises(AssertionError, match="record 0 is another one in a data set built alike"):
        check_data(Drawn, ["none"], [3])


def test_a_record_that_changes():
    class Changing(Kept):
        def __getitem__(self, number):
            found = super().__getitem__(number)
            return Record(found.id, (*found.turns, Turn("user", str(counting(self)))), found.images)

    with pytest.raises(AssertionError, match="record 0 is another one when it is read again"):
        check_data(Changing, ["none"], [3])
