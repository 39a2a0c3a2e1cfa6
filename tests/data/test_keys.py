"""What stands beside a row's turns: its system turn, what is refused, what is named."""

import pytest

from mmalign.data import Turn, keys
from mmalign.data.reasons import Unusable
from mmalign.data.turns import parse_row
from tests.data.samples import row


def talk(*more, **beside):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return {"messages": [*more, *turns], **beside}


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("key", keys.SYSTEM)
def test_a_rows_own_system_turn(key):
    assert parse_row(talk(**{key: "Answer in French."})).turns[0] == Turn("system", "Answer in French.")
    assert parse_row(row("a", "x.jpg") | {key: "Be brief."}).turns[0].role == "system"
    assert parse_row({"image": "x.jpg", "caption": "a cat", key: "Be brief."}).turns[0] == Turn("system", "Be brief.")
    assert parse_row(talk(SYSTEM, **{key: "Be brief."})).turns[0] == Turn("system", "Be brief.")
    for nothing in ("", " ", None):
        assert parse_row(talk(**{key: nothing})).turns[0].role == "user"
    late = {"conversations": [{"from": "gpt", "value": "Hi."}, *row(asked="What?")["conversations"]], key: "Be brief."}
    assert [turn.role for turn in parse_row(late).turns] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("row_", "reason", "said"),
    [
        (talk(SYSTEM, system="Be long."), "roles", "a system turn of its own, and another one"),
        (talk(system="a", system_prompt="b"), "keys", "several system turns: system, system_prompt"),
        (talk(system=["a"]), "shape", "the row's system turn is \"['a']\", not a text"),
        (talk({"role": "user", "from": "gpt", "content": "a"}), "shape", "both `from` and `role`, and they differ"),
        (talk({"role": "user", "value": "b", "content": "a"}), "shape", "both `value` and `content`"),
    ],
)
def test_rows_that_say_two_things(row_, reason, said):
    with pytest.raises(Unusable) as caught:
        parse_row(row_)
    assert caught.value.reason == reason
    assert said in caught.value.what


@pytest.mark.parametrize("key", ["tools", "tool_calls", "functions", "reasoning_content", "thinking", "rejected",
                                 "chosen"])  # fmt: skip
def test_what_changes_what_is_learned_is_refused(key):
    for row_, what in ((talk(**{key: "x"}), "row"), (talk() | {"messages": [{**SYSTEM, key: [{"a": 1}]}]}, "turn")):
        with pytest.raises(Unusable, match=f"^keys: the {what} has {key}, which is not read") as caught:
            parse_row(row_)
        assert caught.value.fix
    for nothing in (None, "", [], {}, "[]"):
        assert parse_row(talk(**{key: nothing})).notes == ()


def test_an_undesired_answer_is_refused():
    with pytest.raises(Unusable, match="kto_tag"):
        parse_row(talk(kto_tag=False))


def test_every_other_key_is_named():
    beside = {"source": "x", "width": 0, "empty": [], "gone": None, "caption": "unused"}
    parts = [{"type": "image_url", "image_url": {"url": "x.jpg", "detail": "low"}}, {"type": "text", "text": "a"}]
    turn = {"role": "user", "content": parts, "name": "Ann"}
    notes = parse_row({"messages": [turn, {"role": "assistant", "content": "b"}], **beside}).notes
    assert notes == (
        "rows with the key 'caption', which is not read",
        "rows with the key 'source', which is not read",
        "rows with the key 'width', which is not read",
        "rows whose turns have the key 'name', which is not read",
        "rows whose turns have parts with the key 'detail', which is not read",
    )


def test_many_keys_are_named_together():
    notes = parse_row(talk(**{f"key{n:03}": 1 for n in range(300)})).notes
    assert len(notes) == keys.NAMED + 1
    assert notes[-1] == "rows with the key (and others), which is not read"


def test_an_answer_that_is_left_out_is_told():
    row_ = {"conversations": [{"from": "gpt", "value": "Hi."}, *row(asked="What?")["conversations"]]}
    assert parse_row(row_).notes == ("rows that begin with an answer, which is left out",)


@pytest.mark.parametrize("key", ["rejected_answer", "conversations_rejected", "Rejected"])
def test_other_spellings_of_pairs(key):
    with pytest.raises(Unusable, match=f"^keys: the row has {key}, which is not read"):
        parse_row(talk(**{key: "x"}))
    assert parse_row(talk(**{key: None})).notes == ()


def test_a_label_that_says_whether_an_answer_is_wanted():
    for label in (True, False):
        with pytest.raises(Unusable, match="^keys: the row has label, which says whether its answer is wanted"):
            parse_row(talk(label=label))
    assert parse_row(talk(label="cat")).notes == ("rows with the key 'label', which is not read",)


@pytest.mark.parametrize("key", ["image", "images", "video", "audio"])
def test_pictures_that_stand_beside_a_turns_content(key):
    turn = {"role": "user", "content": "What?", key: ["x.jpg"]}
    with pytest.raises(Unusable, match=f"^shape: the turn has {key}, which are not read"):
        parse_row({"messages": [turn, {"role": "assistant", "content": "b"}]})
    assert parse_row({"messages": [turn | {key: None}, {"role": "assistant", "content": "b"}]}).notes == ()


def test_the_key_under_which_an_image_stands():
    with pytest.raises(Unusable, match="1 <image> marks for 0 images") as told:
        parse_row(row("a") | {"image_path": "x.jpg"})
    assert told.value.fix == "write `image`, or `images`, for 'image_path'"


@pytest.mark.parametrize("part", [{"type": "text", "text": "a", "image": "x.jpg"},
                                  {"type": "image", "image": "x.jpg", "text": "a"}])  # fmt: skip
def test_a_part_that_is_two_things(part):
    turns = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "b"}]
    with pytest.raises(Unusable, match="^shape: a part of a turn is an? (image|text) and has") as told:
        parse_row({"messages": turns})
    assert told.value.fix == "a part of its own for each"
    assert parse_row({"messages": [{"role": "user", "content": [part | {"text": "a", "image": None, "type": "text"}]},
                                   turns[1]]}).images == ()  # fmt: skip


@pytest.mark.parametrize(("row_", "said"), [
    ({"caption": "a cat"}, "and no image for its caption"),
    ({"image": "x.jpg", "caption": ["a", "b"]}, "the row's caption is ['a', 'b'], not a text"),
])  # fmt: skip
def test_captions_that_cannot_be_trained(row_, said):
    with pytest.raises(Unusable) as told:
        parse_row(row_)
    assert said in told.value.what


def test_a_caption_of_several_images_is_told():
    assert parse_row({"images": ["a.jpg", "b.jpg"], "caption": "c"}).notes == (
        "rows with one caption for several images",
    )
