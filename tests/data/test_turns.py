"""From rows in every dialect to turns and marks."""

import pytest

from mmalign.data import MARK, Turn
from mmalign.data.reasons import Unusable
from mmalign.data.turns import said
from tests.data.made import row


def talk(*texts, **more):
    roles = ["human", "gpt"]
    return {"conversations": [{"from": roles[n % 2], "value": text} for n, text in enumerate(texts)], **more}


def texts(given):
    return [turn.text for turn in said(given).turns]


def test_llava():
    found = said(row("a", "x.jpg"))
    assert found.images == ("x.jpg",)
    assert found.turns == (Turn("user", "<image>\nWhat is it?"), Turn("assistant", "A cat."))


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
    assert texts(talk("Hello.", "Hi.", "And this? <image>", "A dog.", image="x.jpg"))[2] == "<image>\nAnd this?"


def test_several_marks_in_a_turn_stay_where_they_are():
    given = talk("First <image>, then <image>?", "Yes.", image=["x.jpg", "y.jpg"])
    assert said(given).images == ("x.jpg", "y.jpg")
    assert texts(given)[0] == "First <image>, then <image>?"


def test_marks_that_are_all_missing_go_in_front():
    assert texts(talk("Same?", "Yes.", image=["x.jpg", "y.jpg"]))[0] == "<image>\n<image>\nSame?"


@pytest.mark.parametrize("image", [None, "", "None", "none", "nan", [], [None]])
def test_no_image(image):
    found = said(talk("Hello.", "Hi.", image=image))
    assert found.images == ()
    assert MARK not in found.turns[0].text


def test_openai_messages():
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    answer = [{"type": "text", "text": "A cat."}]
    contents = {"system": "Be kind.", "user": parts, "assistant": answer}
    messages = [{"role": role, "content": content} for role, content in contents.items()]
    given = {"messages": messages, "images": ["x.jpg"]}
    assert said(given).turns == (
        Turn("system", "Be kind."), Turn("user", "<image>\nWhat?"), Turn("assistant", "A cat.")
    )  # fmt: skip
    assert said(given).images == ("x.jpg",)


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
    found = said({"messages": [user, {"role": "assistant", "content": "Same."}]})
    assert found.images == ("x.jpg", "x.jpg")
    assert found.turns[0].text == "One:\n<image>\nTwo:\n<image>"


def test_texts_with_images_of_their_own_column():
    pairs = [{"user": "What?", "assistant": "A cat.", "source": "x"}, {"user": "Where?", "assistant": "Here."}]
    found = said({"texts": pairs, "images": [{"bytes": b"1", "path": None}]})
    assert [turn.text for turn in found.turns] == ["<image>\nWhat?", "A cat.", "Where?", "Here."]


@pytest.mark.parametrize("key", ["caption", "text"])
def test_captions(key):
    assert texts({"image": "x.jpg", key: "a cat"}) == ["<image>", "a cat"]


def test_an_answer_before_the_first_question_is_left_out_as_in_llava():
    given = {"conversations": [{"from": "gpt", "value": "Hi."}, *row()["conversations"]], "image": "x.jpg"}
    assert texts(given) == ["<image>\nWhat is it?", "A cat."]


@pytest.mark.parametrize(
    ("given", "reason", "message"),
    [
        ({}, "shape", "none of conversations, messages, texts, caption"),
        ({"text": "alone"}, "shape", "none of conversations"),
        ({"conversations": "hello"}, "shape", "conversations is 'hello', not a list of turns"),
        ({"conversations": ["hello"]}, "shape", "a turn is 'hello', not an object"),
        ({"conversations": []}, "unanswered", "no answer in the row"),
        (talk("Hello."), "unanswered", "no answer in the row"),
        (talk("Hello.", 7), "shape", "a turn's text is 7"),
        (talk("Hello.", None), "shape", "a turn's text is None"),
        (talk("Hello.", " \n"), "blank", "turn 2, an answer, says nothing"),
        (talk(" ", "Hi."), "blank", "turn 1, the user's, says nothing"),
        ({"conversations": [{"from": "bing", "value": "x"}]}, "roles", "no role 'bing'"),
        ({"conversations": [{"value": "x"}]}, "roles", "no role None"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "roles", "no role"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "roles", "twice in a row"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "roles", "later than"),
        (
            {"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "roles", "does not begin with the user",
        ),
        (talk("<image> <image>", "Hi.", image="x.jpg"), "marks", "2 <image> marks for 1 images"),
        (talk("<image>", "Hi.", image=["x.jpg", "y.jpg"]), "marks", "1 <image> marks for 2 images"),
        (talk("The tag <image>?", "Hi."), "marks", "1 <image> marks for 0 images"),
        ({**talk("Hello.", "Hi."), "image": "x.jpg", "images": ["y.jpg"]}, "shape", "both `image` and `images`"),
        (talk("Hello.", "Hi.", image=7), "shape", "an image is 7, neither a path nor its bytes"),
        (talk("Hello.", "Hi.", image=[{}]), "shape", "an image is {}"),
        (talk("Hello.", "Hi.", video="x.mp4"), "shape", "the row has video, which are not read"),
        ({"texts": [{"user": "x"}]}, "shape", "not a user's and an assistant's text"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "shape", "neither text nor an image"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}], "image": "y.jpg"},
            "marks", "some images stand in the turns and some in a column",
        ),
    ],
)  # fmt: skip
def test_rows_that_are_no_conversation(given, reason, message):
    with pytest.raises(Unusable) as caught:
        said(given)
    assert caught.value.reason == reason
    assert caught.value.what.startswith(f"{reason}: ")
    assert message in caught.value.what
