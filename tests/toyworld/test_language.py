"""What is said in the toy world is true of the scene, and can be said with the words there are."""

import re
from collections import Counter

import pytest

from mmalign.toyworld import language
from mmalign.toyworld.data import AltTexts, Captions, Texts, VisualChat
from mmalign.toyworld.language import SceneQuestion
from mmalign.toyworld.world import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Scene, Thing, scene, stream

RED_STAR = Thing("star", "red", "large", "top left", 18, 18, 15)
BLUE_STAR = Thing("star", "blue", "small", "top right", 54, 18, 9)
RED_RING = Thing("ring", "red", "small", "bottom left", 18, 54, 9)


def answers_to(*things: Thing) -> dict[str, str]:
    return {question.text: question.answer for question in language.attributes(Scene(things, "gray"))}


def test_attributes_are_asked_only_where_one_answer_is_true():
    count = {"how many objects are there?": "three", "what color is the background?": "gray"}
    ring = {"what color is the ring?": "red", "how large is the ring?": "small", "where is the ring?": "bottom left"}
    assert answers_to(RED_STAR, BLUE_STAR, RED_RING) == {**count, **ring, "what shape is the blue object?": "star"}


def test_existence():
    scene_ = Scene((RED_STAR, BLUE_STAR), "gray")
    answers = {
        what: language.exists(scene_, what).answer for what in ("star", "ring", "red star", "green star", "red ring")
    }
    assert answers == {"star": "yes", "ring": "no", "red star": "yes", "green star": "no", "red ring": "no"}


def test_what_is_absent_and_what_is_likely():
    scene_ = Scene((RED_STAR, RED_RING), "gray")  # their partners are triangle and cross
    assert language.absent(scene_) == ("circle", "square", "triangle", "cross")
    assert language.likely(scene_) == ("triangle", "cross", "circle", "square")


def reads(text: str, scene_: Scene) -> bool:
    """Whether each shape in a text stands with the colour of a thing that is there."""
    present = {(thing.color, thing.shape) for thing in scene_.things}
    phrases = re.findall(rf"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})", text)
    return set(phrases) == present


@pytest.mark.parametrize(
    "tell", [language.caption, language._sentences, language._overview_then_details, language._catalogue]
)
def test_descriptions_tell_all_and_only_what_is_there(tell):
    for number in range(200):
        scene_ = scene(0, "train", number)
        text = tell(stream("test", number), scene_)
        assert reads(text, scene_), text
        assert scene_.background in text
        assert all(thing.size in text and thing.place in text for thing in scene_.things)


def test_alt_texts_are_true_and_name_no_place():
    for record in AltTexts(300):
        scene_ = scene(0, "train", record.images[0])
        known = {scene_.background, "background", "on", "a", "and"}
        known |= {word for thing in scene_.things for word in (thing.shape, thing.color, thing.size)}
        assert set(record.caption.replace(",", "").split()) <= known
    assert 0.25 < sum(len(record.caption.split()) <= 2 for record in AltTexts(1000)) / 1000 < 0.4


def test_answers_are_true_of_the_scene():
    for record in [*VisualChat(200), *Texts(200, retold=0, repeats=0, tales=0)]:
        scene_ = scene(0, "train", int(record.id.split("-")[1]))
        for question, answer in zip(record.turns[::2], record.turns[1::2], strict=True):
            assert answer.text == true_answer(question.text, scene_), (record, scene_)


def true_answer(text: str, scene_: Scene) -> str:
    question = re.search(r"[^.,]*\?$", text)
    assert question
    everything = language.attributes(scene_) + [language.exists(scene_, what) for what in _everything()]
    return {item.text: item.answer for item in everything}[question.group().replace("<image>", "").strip()]


def _everything() -> list[str]:
    return [*SHAPES, *(f"{color} {shape}" for color in COLORS for shape in SHAPES)]


def test_yes_and_no_are_equally_often_right():
    turns = [turn.text for record in VisualChat(1500) for turn in record.turns]
    counts = Counter(answer for answer in turns if answer in ("yes", "no"))
    assert counts["yes"] / counts.total() == pytest.approx(0.5, abs=0.03)


def test_questions_of_a_record_differ():
    for record in VisualChat(200, questions=5):
        assert len({turn.text.removeprefix("<image> ") for turn in record.turns[::2]}) == 5


def test_texts_are_of_four_kinds():
    first = [record.turns[0].text for record in Texts(2000, retold=0.2, repeats=0.12, tales=0.1)]
    assert sum(text.startswith("repeat:") for text in first) / 2000 == pytest.approx(0.12, abs=0.03)
    assert sum(text == language.TELL for text in first) / 2000 == pytest.approx(0.1, abs=0.03)
    assert sum(text.endswith(language.DESCRIBE) for text in first) / 2000 == pytest.approx(0.2, abs=0.03)


def test_a_list_is_repeated_word_for_word():
    for number in range(50):
        question, answer = language.repeat(stream("test", number))
        assert question == f"repeat: {answer}"


def test_captions_are_brief_and_leave_things_out():
    complete = []
    for record in Captions(300):
        scene_ = scene(0, "train", record.images[0])
        present = {(thing.color, thing.shape) for thing in scene_.things}
        phrases = set(re.findall(rf"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})", record.caption))
        assert record.turns[0].text == "<image> what is in the image?"
        assert phrases
        assert phrases <= present
        complete.append(phrases == present)
    assert 0.5 < sum(complete) / 300 < 0.8


def test_word_lists():
    clean, full = language.word_list("clean"), language.word_list("full")
    assert set(clean) == {*SHAPES, *COLORS, *SIZES, *BACKGROUNDS, "background"}
    assert len(clean) == 18
    assert len(full) == len(set(full)) == 91
    assert {*clean, *language.NOUNS, *language.ADJECTIVES} <= set(full)


def test_every_word_said_is_in_the_vocabulary():
    known = set(language.vocabulary())
    for data in (AltTexts(500), Captions(500), VisualChat(500), Texts(1500)):
        for record in data:
            for turn in record.turns:
                assert set(re.findall(r"\w+|[^\w\s]", turn.text.replace("<image>", ""))) <= known


def test_an_answer_is_one_of_its_options():
    for number in range(200):
        questions: list[SceneQuestion] = language.questions(stream("test", number), scene(0, "train", number), 3)
        assert all(question.answer in question.options for question in questions)


def test_a_map_has_the_words_of_a_thing_behind_its_place():
    for number in range(200):
        scene_ = scene(0, "train", number)
        parts = language._map(stream("test", number), scene_).removeprefix("map: ").removesuffix(".").split(", ")
        words_at = {thing.place: {thing.shape, thing.color, thing.size} for thing in scene_.things}
        for place, part in zip(PLACES, parts, strict=True):
            assert set(part.removeprefix(place).split()) == words_at.get(place, {"background", scene_.background})
