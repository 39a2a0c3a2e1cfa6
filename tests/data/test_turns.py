"""From rows in every dialect to turns and marks."""

import pytest

from mmalign.data import MARK, Turn
from mmalign.data.reasons import Unusable
from mmalign.data.turns import _Parts, _plain, _RawTurn, parse_row
from tests.data.samples import row


def dialogue(*texts, **more):
    roles = ["human", "gpt"]
    return {"conversations": [{"from": roles[n % 2], "value": text} for n, text in enumerate(texts)], **more}


def texts(row):
    return [turn.text for turn in parse_row(row).turns]


@pytest.mark.parametrize("role", ["human", "gpt", "system", "user", "tool", None, 3, ["gpt"]])
@pytest.mark.parametrize("value", ["Hi.", "", "<image>\nHi.", None, 7, [{"type": "text", "text": "Hi."}]])
def test_plain_turns_are_read_as_all_others(role, value):
    """The short way knows nothing of its own: where it says something, it is what the long way says."""
    item = {"from": role, "value": value}
    if (plain := _plain(item)) is None:
        assert not (isinstance(value, str) and role in ("human", "gpt", "system", "user"))
    else:
        assert plain == _RawTurn(item, _Parts([], [])).turn()
    for other in ({"from": "gpt", "value": "Hi.", "loss": False}, {"role": "gpt", "content": "Hi."}, "gpt", ["from"]):
        assert _plain(other) is None


def test_llava():
    conversation = parse_row(row("a", "x.jpg"))
    assert conversation.images == ("x.jpg",)
    assert conversation.turns == (Turn("user", "<image>\nWhat is it?"), Turn("assistant", "A cat."))


@pytest.mark.parametrize(
    ("asked", "normal"),
    [
        ("<image>\nWhat?", "<image>\nWhat?"),
        ("What?\n<image>", "<image>\nWhat?"),
        ("What is <image> it?", "<image>\nWhat is  it?"),  # as LLaVA: the mark is cut out, the rest stays
        ("<image>", "<image>"),
        ("<image>What?", "<image>\nWhat?"),
        ("What?", "<image>\nWhat?"),  # a mark that is missing goes in front
        ("", "<image>"),
    ],
)
def test_the_mark_of_an_image_stands_in_front(asked, normal):
    assert texts(row("a", "x.jpg", asked)) == [normal, "A cat."]


def test_a_mark_in_a_later_turn_stays_in_that_turn():
    assert texts(dialogue("Hello.", "Hi.", "And this? <image>", "A dog.", image="x.jpg"))[2] == "<image>\nAnd this?"


def test_several_marks_in_a_turn_stay_where_they_are():
    row_ = dialogue("First <image>, then <image>?", "Yes.", image=["x.jpg", "y.jpg"])
    assert parse_row(row_).images == ("x.jpg", "y.jpg")
    assert texts(row_)[0] == "First <image>, then <image>?"


def test_marks_that_are_all_missing_go_in_front():
    assert texts(dialogue("Same?", "Yes.", image=["x.jpg", "y.jpg"]))[0] == "<image>\n<image>\nSame?"


@pytest.mark.parametrize("image", [None, "", "None", "none", "nan", [], [None]])
def test_no_image(image):
    conversation = parse_row(dialogue("Hello.", "Hi.", image=image))
    assert conversation.images == ()
    assert MARK not in conversation.turns[0].text


def test_openai_messages():
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    answer = [{"type": "text", "text": "A cat."}]
    contents = {"system": "Be kind.", "user": parts, "assistant": answer}
    messages = [{"role": role, "content": content} for role, content in contents.items()]
    row_ = {"messages": messages, "images": ["x.jpg"]}
    assert parse_row(row_).turns == (
        Turn("system", "Be kind."), Turn("user", "<image>\nWhat?"), Turn("assistant", "A cat.")
    )  # fmt: skip
    assert parse_row(row_).images == ("x.jpg",)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "x.jpg"}},
        {"type": "image_url", "image_url": "x.jpg"},
        {"type": "image", "image": "x.jpg"},
        {"type": "image", "path": "x.jpg"},
        {"type": "image", "url": "x.jpg"},
    ],
)
def test_images_inside_messages(part):
    texts = [{"type": "text", "text": text} for text in ("One:", "Two:")]
    user = {"role": "user", "content": [texts[0], part, texts[1], part]}
    conversation = parse_row({"messages": [user, {"role": "assistant", "content": "Same."}]})
    assert conversation.images == ("x.jpg", "x.jpg")
    assert conversation.turns[0].text == "One:\n<image>\nTwo:\n<image>"


def test_texts_with_images_of_their_own_column():
    pairs = [{"user": "What?", "assistant": "A cat.", "source": "x"}, {"user": "Where?", "assistant": "Here."}]
    conversation = parse_row({"texts": pairs, "images": [{"bytes": b"1", "path": None}]})
    assert [turn.text for turn in conversation.turns] == ["<image>\nWhat?", "A cat.", "Where?", "Here."]


@pytest.mark.parametrize("key", ["caption", "text"])
def test_captions(key):
    assert texts({"image": "x.jpg", key: "a cat"}) == ["<image>", "a cat"]


def test_an_answer_before_the_first_question_is_left_out_as_in_llava():
    row_ = {"conversations": [{"from": "gpt", "value": "Hi."}, *row()["conversations"]], "image": "x.jpg"}
    assert texts(row_) == ["<image>\nWhat is it?", "A cat."]


@pytest.mark.parametrize(
    ("row_", "reason", "message"),
    [
        ({}, "shape", "none of conversations, messages, texts, caption"),
        ({"text": "alone"}, "shape", "none of conversations"),
        ({"conversations": "hello"}, "shape", "conversations is 'hello', not a list of turns"),
        ({"conversations": ["hello"]}, "shape", "a turn is 'hello', not an object"),
        ({"conversations": []}, "unanswered", "no answer in the row"),
        (dialogue("Hello."), "unanswered", "no answer in the row"),
        (dialogue("Hello.", 7), "shape", "a turn's text is 7"),
        (dialogue("Hello.", None), "shape", "a turn's text is None"),
        (dialogue("Hello.", " \n"), "blank", "turn 2, an answer, says nothing"),
        (dialogue(" ", "Hi."), "blank", "turn 1, the user's, says nothing"),
        ({"conversations": [{"from": "bing", "value": "x"}]}, "roles", "no role 'bing'"),
        ({"conversations": [{"value": "x"}]}, "roles", "no role None"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "roles", "no role"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "roles", "twice in a row"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "roles", "later than"),
        (
            {"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "roles", "does not begin with the user",
        ),
        (dialogue("<image> <image>", "Hi.", image="x.jpg"), "marks", "2 <image> marks for 1 images"),
        (dialogue("<image>", "Hi.", image=["x.jpg", "y.jpg"]), "marks", "1 <image> marks for 2 images"),
        (dialogue("The tag <image>?", "Hi."), "marks", "1 <image> marks for 0 images"),
        ({**dialogue("Hello.", "Hi."), "image": "x.jpg", "images": ["y.jpg"]}, "shape", "both `image` and `images`"),
        (dialogue("Hello.", "Hi.", image=7), "shape", "an image is 7, neither a path nor its bytes"),
        (dialogue("Hello.", "Hi.", image=[{}]), "shape", "an image is {}"),
        (dialogue("Hello.", "Hi.", video="x.mp4"), "shape", "the row has video, which are not read"),
        ({"texts": [{"user": "x"}]}, "shape", "not a user's and an assistant's text"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "shape", "neither text nor an image"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}], "image": "y.jpg"},
            "marks", "some images stand in the turns and some in a column",
        ),
    ],
)  # fmt: skip
def test_rows_that_are_no_conversation(row_, reason, message):
    with pytest.raises(Unusable) as caught:
        parse_row(row_)
    assert caught.value.reason == reason
    assert caught.value.what.startswith(f"{reason}: ")
    assert message in caught.value.what
