"""What `data show` says: the very tokens the model is trained on, by what they are for."""

import json

import pytest
from mmalign.cli import data as verbs

from mmalign.data import Turn
from mmalign.errors import CardError, DataError
from mmalign.llms.chat import Chat
from mmalign.toyworld.data import VisualChat
from tests import parts
from tests.data.samples import images, jsonl, row


def run(capsys, *args, llm="toy-llama", vision=None, rows="0:1", as_json=False):
    verbs.look(*args, llm, vision, rows, as_json)
    return capsys.readouterr().out


def test_the_tokens_of_a_record(capsys):
    out = run(capsys, "toy-chat", ["size=5"], vision="toy-clip", rows="2:4")
    assert "record 2  train-2" in out
    assert "image: 72 x 72 pixels, 6 x 6 patches" in out
    assert "  image   | <image> x 36" in out
    turns = VisualChat(5)[2].turns
    shown = [line for line in out.splitlines() if line.startswith("  trained | ")]
    assert [line.removeprefix("  trained | ").split() for line in shown[:3]] == [
        [*turn.text.split(), "<eos>"] for turn in turns if turn.role == "assistant"
    ]
    assert "record 3  train-3" in out


def test_json(capsys):
    (record,) = json.loads(run(capsys, "toy-chat", ["size=5"], rows="4", as_json=True))
    assert (record["row"], record["id"]) == (4, "train-4")
    assert record["images"] == [{"width": 72, "height": 72, "grid": None}]
    assert record["tokens"]["all"] == sum(len(part["tokens"]) for part in record["parts"])
    assert record["tokens"]["image"] == 1
    assert {part["state"] for part in record["parts"]} == {"read", "trained", "image"}


@pytest.mark.parametrize("kind", ["bytelevel", "sentencepiece"])
def test_the_parts_put_together_are_the_text(tmp_path, kind):
    parts.tokenizer(kind, tmp_path)
    chat = Chat(str(tmp_path))
    turns = [Turn("user", "<image>\nWhat  is it? éü 😀"), Turn("assistant", "A red  square. Yes.")]
    encoding = chat.encode(turns, [3])
    states = ["image" if i == chat.mark else "trained" if t else "read" for i, t in zip(encoding.ids, encoding.trained)]
    runs = verbs._runs(chat, encoding.ids, states)
    assert [text for part in runs for text in part["tokens"] if part["state"] == "image"] == [""] * 3
    trained = "".join(text for part in runs for text in part["tokens"] if part["state"] == "trained")
    assert trained.replace("\ufffd", "").strip().startswith("A red  square. Yes.")


def test_records_that_cannot_be_used(tmp_path, capsys):
    images(tmp_path, 1)
    path = jsonl(tmp_path / "x.jsonl", ["{", row("gone", "none.jpg", "<image>\nis there a cross in the image?", "no")])
    out = run(capsys, path, [], rows="0:2")
    assert "record 0  @0\n  cannot be used: json: row 0 is not valid JSON" in out
    assert "image: missing: no image none.jpg" in out


@pytest.mark.parametrize(
    ("rows", "message"),
    [("9", "the data has 5 records"), ("-1", "the data has 5 records"), ("3:3", "the data has 5 records"),
     ("5:9", "the data has 5 records"), ("x", "--rows 'x' is not a number, or first:last")],
)  # fmt: skip
def test_rows_outside(capsys, rows, message):
    with pytest.raises(DataError) as caught:
        run(capsys, "toy-chat", ["size=5"], rows=rows)
    assert message in caught.value.what


def test_open_ranges(capsys):
    assert run(capsys, "toy-chat", ["size=3"], rows="1:").count("record ") == 2
    assert run(capsys, "toy-chat", ["size=3"], rows=":2").count("record ") == 2
    assert run(capsys, "toy-chat", ["size=2"], rows="0:3").count("record ") == 2


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    for family, card in (("llms", "summary: x\ntarget: x.Y\n"), ("vision", "summary: x\ntarget: x.Y\n")):
        (tmp_path / family).mkdir()
        (tmp_path / family / "odd.yaml").write_text(card)
    monkeypatch.setenv("MMALIGN_REGISTRY", str(tmp_path))


def test_cards_that_do_not_say_enough(shelf, capsys):
    with pytest.raises(CardError, match="llms 'odd' names no checkpoint"):
        run(capsys, "toy-chat", ["size=3"], llm="odd")
    with pytest.raises(CardError, match="the card of 'odd' gives no grid"):
        run(capsys, "toy-chat", ["size=3"], vision="odd")
