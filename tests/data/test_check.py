"""The data doctor: what it counts, in one process or several, and what the command prints."""

import json
import os
import threading
from collections import Counter
from functools import partial

import pytest
from mmalign.cli import data as verbs
from PIL import Image

from mmalign.data import Data, Record, Turn, ahead, check
from mmalign.data.conversations import Conversations
from mmalign.data.mixture import Mixture
from mmalign.data.reasons import Unusable
from mmalign.errors import CardError, DataError
from mmalign.toyworld.data import Captions
from tests.data.samples import encode, images, jpeg, jsonl, picture, row


@pytest.fixture
def folder(tmp_path):
    """Six rows: two good ones, one of them with an id that was there, and four of three kinds of damage."""
    images(tmp_path, 2)
    (tmp_path / "cut.jpg").write_bytes(jpeg()[:-30])
    rows = [row("a", "0.jpg"), row("b", "none.jpg"), row("a", "1.jpg"), "{", row("c", "cut.jpg"), row("d", "cut.jpg")]
    jsonl(tmp_path / "rows.jsonl", rows)
    return tmp_path


def test_what_is_found(folder):
    result = check.check(lambda: Conversations(str(folder / "rows.jsonl")))
    assert (result.rows, result.images, result.files) == (6, 5, 4)  # cut.jpg is decoded once
    assert result.reasons == {"truncated": 2, "missing": 1, "json": 1}
    assert [(record.id, record.reason) for record in result.bad] == [
        ("b@1", "missing"), ("@3", "json"), ("c@4", "truncated"), ("d@5", "truncated")
    ]  # fmt: skip
    assert result.notes == {"rows with the id of an earlier row": 1}


def test_rows_without_ids_repeat_none(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", [{"conversations": row()["conversations"]} for _ in range(2)])
    for make in (lambda: Conversations(path), lambda: Mixture([{"kind": "conversations", "path": path}])):
        assert not check.check(make).notes


@pytest.mark.parametrize(
    ("name", "image", "note"),
    [
        ("x.jpg", encode(picture((24, 24)), "GIF"), "GIF named .jpg"),
        ("x.JPG", encode(picture((24, 24)), "PNG"), "PNG named .jpg"),
        ("x.gif", encode(picture((24, 24)), "GIF"), "with a palette"),
        ("x.png", encode(picture((24, 24)).convert("P"), "PNG"), "with a palette"),
        ("x.png", encode(picture((24, 24)).convert("1"), "PNG"), "in black and white"),
        ("x.jpg", encode(picture((24, 24)).convert("CMYK"), "JPEG"), "in CMYK"),
        ("x.tif", encode(Image.new("I;16", (24, 24)), "TIFF"), "of 16 or 32 bits"),
        ("x.png", encode(picture((24, 24)).convert("RGBA"), "PNG"), "with transparency, which is dropped"),
        ("x.png", encode(picture((24, 3)), "PNG"), "smaller than 16 pixels"),
        ("x.png", encode(picture((5000, 24)), "PNG"), "wider or higher than 4096 pixels"),
    ],
)
def test_notes_of_images_that_can_be_used(tmp_path, name, image, note):
    (tmp_path / name).write_bytes(image)
    result = check.check(lambda: Conversations(jsonl(tmp_path / "rows.jsonl", [row("a", name)])))
    assert not result.bad
    assert result.notes[note] == 1
    assert result.noted[note] == ["a@0"]


def test_images_to_be_turned(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "0.jpg").write_bytes(encode(picture((24, 24)), "JPEG", exif=exif))
    (tmp_path / "1.jpg").write_bytes(encode(picture((24, 24)), "JPEG", exif=b"Exif\0\0broken"))
    result = check.check(lambda: Conversations(jsonl(tmp_path / "x.jsonl", [row(n, f"{n}.jpg") for n in range(2)])))
    assert result.notes == {"to be turned upright by its EXIF": 1}


def many(folder, count=1000):
    images(folder, 50)
    rows = [row(f"r{n}", f"{n % 60}.jpg") for n in range(count)]  # ten names of which there is no file
    return jsonl(folder / "many.jsonl", rows)


@pytest.mark.parametrize(("jobs", "threads"), [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_several_processes_find_the_same(tmp_path, monkeypatch, jobs, threads):
    if threads > 1:  # then spawned; else forked, if these tests run in one thread
        monkeypatch.setattr(threading, "active_count", lambda: threads)
    path, progress = many(tmp_path), []
    result = check.check(partial(Conversations, path), jobs, lambda *told: progress.append(told))
    assert [record.id for record in result.bad] == [f"r{n}@{n}" for n in range(1000) if n % 60 >= 50]
    assert (result.rows, result.images) == (1000, 1000)
    assert [told[:2] for told in progress] == [(n, 1000) for n in range(200, 1001, 200)]
    assert next(done for _, _, (done, _) in progress) == 200 + ahead.ROWS * 60
    assert progress[-1][2][0] == progress[-1][2][1]


def test_what_is_noted_is_named_as_far_as_anybody_reads(tmp_path):
    (tmp_path / "i").mkdir()
    for number in range(300):
        (tmp_path / "i" / f"{number}.jpg").write_bytes(encode(picture((24, 24)), "PNG"))
    path = jsonl(tmp_path / "x.jsonl", [row(f"r{n}", f"i/{n}.jpg") for n in range(300)])
    result = check.check(partial(Conversations, path))
    assert result.notes == {"PNG named .jpg": 300}
    assert result.noted == {"PNG named .jpg": [f"r{n}@{n}" for n in range(100)]}


class Dies(Data):
    """Its images end the process, as a decoder that crashes does."""

    def __len__(self):
        return check.FEW + 1

    def __getitem__(self, number):
        return Record(str(number), (Turn("user", "<image>"), Turn("assistant", "x")), (number,))

    def image(self, reference):
        os._exit(1)


def test_a_process_that_dies(tmp_path):
    with pytest.raises(DataError, match="a process died while it checked records from 0 on"):
        check.check(Dies, jobs=2)


def test_data_without_files():
    result = check.check(partial(Captions, 5))
    assert (result.rows, result.images, result.bad) == (5, 5, [])


class Twice(Captions):
    def __getitem__(self, number):
        record = super().__getitem__(number)
        return Record(f"id-{number // 2}", record.turns, record.images)


def test_ids_of_several_records_are_a_fault_where_no_row_number_tells_them_apart():
    result = check.check(partial(Twice, 5))
    assert [(record.id, record.reason) for record in result.bad] == [("id-0", "id"), ("id-1", "id")]
    assert result.bad[0].what == "id: record 1 has the id of an earlier one, id-0"


def test_mixtures(folder):
    data = Mixture([{"kind": "conversations", "path": str(folder / "rows.jsonl")}, Captions(2)])
    result = check.check(lambda: data)
    assert [record.id for record in result.bad] == ["0/b@1", "0/@3", "0/c@4", "0/d@5"]


def run(capsys, *args, **more):
    code = verbs.check(*args, **{"jobs": 1, "quarantine": None, "as_json": False} | more)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command(folder, capsys):
    code, out, _ = run(capsys, str(folder / "rows.jsonl"), [])
    assert code == 1
    assert "6 records, 5 images" in out
    assert "4 records cannot be used (67 %)" in out
    assert "truncated  2        an image that ends too early" in out
    assert "b@1  no image none.jpg" in out
    assert "note: 1 rows with the id of an earlier row, the first: a@2" in out
    assert "leave them out: --quarantine FILE" in out


def test_all_and_nearly_all(tmp_path, capsys):
    for count, told in ((0, "100 %"), (1, "100 %"), (10, "95 %")):
        jsonl(tmp_path / "rows.jsonl", [{}] * 200 + [row(str(n), "0.jpg") for n in range(count)])
        images(tmp_path, 1)
        _, out, _ = run(capsys, str(tmp_path / "rows.jsonl"), [])
        assert f"cannot be used ({told})" in out


def test_a_misspelt_argument_of_the_reader(folder):
    with pytest.raises(CardError, match="takes no argument 'image'") as told:
        verbs.check(str(folder / "rows.jsonl"), ["image=."], jobs=1, quarantine=None, as_json=False)
    assert told.value.fix == "did you mean 'images'?"


def test_the_quarantine_file(folder, capsys):
    target = folder / "q.jsonl"
    code, out, _ = run(capsys, str(folder / "rows.jsonl"), [], quarantine=target)
    assert code == 0
    assert f"args: {{quarantine: {target}}}" in out
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert lines[0] == {"id": "b@1", "reason": "missing: no image none.jpg"}
    assert [line["id"] for line in lines] == ["b@1", "@3", "c@4", "d@5"]
    code, out, _ = run(capsys, str(folder / "rows.jsonl"), [f"quarantine={target}"])
    assert code == 0
    assert "2 records, 4 more left out by a quarantine" in out
    assert "every record can be used" in out
    (folder / "0.jpg").unlink()
    run(capsys, str(folder / "rows.jsonl"), [f"quarantine={target}"], quarantine=target)
    assert [json.loads(line)["id"] for line in target.read_text().splitlines()] == ["b@1", "@3", "c@4", "d@5", "a@0"]


def test_json(folder, capsys):
    code, out, _ = run(capsys, str(folder / "rows.jsonl"), [], as_json=True)
    printed = json.loads(out)
    assert code == 1
    assert printed["reasons"] == {"truncated": 2, "missing": 1, "json": 1}
    assert printed["listed"]["missing"] == [{"id": "b@1", "what": "missing: no image none.jpg"}]
    assert printed["noted"] == {"rows with the id of an earlier row": ["a@2"]}
    assert (printed["rows"], printed["images"], printed["bad"], printed["left_out"]) == (6, 5, 4, 0)


def test_cards_and_their_arguments(capsys):
    code, out, _ = run(capsys, "toy-chat", ["size=7"])
    assert code == 0
    assert "toy-chat: 7 records, 7 images" in out


def test_arguments_may_be_paths_and_lists(folder, capsys, monkeypatch):
    images(folder / "more", 3)
    monkeypatch.chdir(folder)
    jsonl(folder / "b.jsonl", [row("a", "2.jpg")])
    assert run(capsys, "b.jsonl", ["images=[./more, .]"])[0] == 0
    assert run(capsys, "conversations", ["path=./b.jsonl", "images=./more"])[0] == 0


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (("toy-chatt", []), CardError, "no data card named 'toy-chatt'"),
        (("toy-chat", ["size"]), DataError, "'size' is not key=value"),
        (("toy-chat", ["length=3"]), CardError, "length"),
        (("none.jsonl", []), DataError, "no file "),
        (("nosuch://x/y", []), DataError, "cannot read nosuch://x/y"),
    ],
)
def test_mistakes(args, error, message, capsys):
    with pytest.raises(error) as caught:
        run(capsys, *args)
    assert message in caught.value.what


def test_a_quarantine_nobody_would_read(capsys, tmp_path):
    with pytest.raises(DataError, match="this data cannot leave records out"):
        run(capsys, "toy-chat", ["size=3"], quarantine=tmp_path / "q.jsonl")


def test_a_card_that_is_no_data(tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "odd.yaml").write_text("summary: x\ntarget: collections.Counter\n")
    monkeypatch.setenv("MMALIGN_REGISTRY", str(tmp_path))
    with pytest.raises(CardError, match="data 'odd': collections.Counter is no class of mmalign.data.Data"):
        run(capsys, "odd", [])


def test_progress_without_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmalign.cli.live.EVERY", 0.0)
    _, _, err = run(capsys, many(tmp_path, 450), [])
    assert "many.jsonl: 200/450" in err


class Short:
    """Refuses long answers, counts words."""

    def __call__(self, record):
        if len(record.turns[-1].text) > 20:
            raise Unusable("template", "too long")
        return Counter({"words": len(record.turns[-1].text.split())})


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_a_model_makes_of_records_is_counted(tmp_path, jobs):
    rows = [row(str(n), asked="What?", answer="a b c" if n % 2 else "a cat " * 9) for n in range(450)]
    path = jsonl(tmp_path / "x.jsonl", rows)
    result = check.check(partial(Conversations, path), jobs, make_render=Short)
    assert result.reasons == {"template": 225}
    assert result.notes == {"words": 675}
    assert result.noted["words"][0] == "1@1"


def test_kinds_of_notes_are_bounded(tmp_path):
    rows = [row(str(n), asked="What?") | {f"key{n}": 1} for n in range(900)]
    result = check.check(partial(Conversations, jsonl(tmp_path / "x.jsonl", rows)), jobs=1)
    assert len(result.notes) == check.NOTED + 1
    assert result.notes[check.MORE] == 900 - check.NOTED
    assert result.notes["rows with the key 'key7', which is not read"] == 1
