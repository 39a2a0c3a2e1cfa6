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
