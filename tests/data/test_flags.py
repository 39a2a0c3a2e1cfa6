"""Loss flags of a turn, in the spellings of peers."""

import pytest

from mmalign.data import flags
from mmalign.data.reasons import Unusable
from mmalign.data.turns import parse_row


@pytest.mark.parametrize(
    ("turn", "weight"),
    [
        ({}, None),
        *(({key: value}, 0.0) for key in ("loss", "loss_mask", "train", "train_on_turn", "trainable", "loss_weight",
                                          "loss_scale", "weight") for value in (False, 0, 0.0)),
        *(({key: value}, 1.0) for key in ("loss", "loss_mask", "train", "weight") for value in (True, 1, 1.0)),
        *(({key: 0.25}, 0.25) for key in ("weight", "loss_weight", "loss_scale", "loss", "loss_mask")),
        ({"loss_scale": 2}, 2.0),
        ({"masked": True}, 0.0), ({"masked": 1}, 0.0), ({"masked": False}, 1.0), ({"mask": True}, 0.0),
        ({"weight": None, "loss": None}, None),  # a column of a table that other rows fill
        ({"loss": True, "loss_weight": 0.5}, 0.5), ({"loss": False, "weight": 0}, 0.0),
        ({"masked": False, "train": True}, 1.0),
    ],
)  # fmt: skip
def test_known_spellings(turn, weight):
    assert flags.weight(turn) == weight


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"loss": True, "weight": 0}, "contradict each other (loss: True, weight: 0)"),
        ({"masked": True, "train": True}, "contradict each other"),
        ({"weight": 0.5, "loss_weight": 0.25}, "contradict each other"),
        ({"loss": "false"}, "loss: 'false' is no such flag"),
        ({"weight": -1}, "weight: '-1' is no such flag"),
        ({"weight": float("inf")}, "is no such flag"),
        ({"loss_mask": 2}, "is no such flag"),
        ({"weight": [1, 0]}, "is no such flag"),
        ({"mask": 1}, "mask: '1' does not say which way round it is"),
    ],
)
def test_what_is_not_plain_is_refused(turn, said):
    with pytest.raises(Unusable) as caught:
        flags.weight(turn)
    assert (caught.value.reason, caught.value.fix) == ("flags", flags.FIX)
    assert said in caught.value.what


def talk(*turns, **row):
    roles = ("user", "assistant")
    return {**row, "messages": [{"role": roles[n % 2], "content": "a", **turn} for n, turn in enumerate(turns)]}


def test_a_turn_has_its_weight():
    turns = parse_row(talk({}, {"weight": 0.5}, {"loss": False}, {"loss_mask": 0}, {}, {})).turns
    assert [turn.weight for turn in turns] == [1, 0.5, 0, 0, 1, 1]
    pairs = {"texts": [{"user": "a", "assistant": "b", "train": False}, {"user": "c", "assistant": "d"}]}
    assert [turn.weight for turn in parse_row(pairs).turns if turn.role == "assistant"] == [0, 1]


@pytest.mark.parametrize(
    ("row", "reason", "said"),
    [
        (talk({"train": True}, {}), "flags", "train on what the user says"),
        (talk({}, {"weight": 0}), "unanswered", "no answer in the row is trained"),
        (talk({}, {"train_detail": [{"begin_offset": 0}]}), "keys", "the turn has train_detail"),
        (talk({}, {}, loss_mask=[0, 1]), "flags", "the row has loss_mask: '[0, 1]'"),
        (talk({}, {}, weight=[0, 1]), "flags", "the row has weight"),
        (talk({}, {}, loss=False), "flags", "read in its turns only"),
        *(
            (talk({}, {}, **{key: off}), "flags", f"the row has {key}")
            for key in ("loss", "train", "weight")
            for off in (0, 0.0, "false", "False", "0")
        ),
        (talk({}, {}, mask="Assistant"), "flags", "the row has mask: 'Assistant'"),
    ],
)
def test_flags_that_cannot_be_kept(row, reason, said):
    with pytest.raises(Unusable) as caught:
        parse_row(row)
    assert caught.value.reason == reason
    assert said in caught.value.what


def test_flags_of_a_row_that_change_nothing():
    assert parse_row(talk({}, {}, mask="User", weight=0.3)).notes == (
        "rows with the key 'mask', which is not read", "rows with the key 'weight', which is not read",
    )  # fmt: skip
