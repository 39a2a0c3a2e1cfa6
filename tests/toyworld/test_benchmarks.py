"""The toy benchmarks, against counts made by hand."""

import pytest

from mmalign.errors import CheckError
from mmalign.toyworld.benchmarks import Attributes, Lookup, Pope, Quiz, yes_no
from mmalign.toyworld.language import absent, likely
from mmalign.toyworld.world import scene

ALL = [Pope(40), Attributes(40), Lookup(40)]


def truth(quiz: Quiz) -> dict[str, str]:
    return {item.question.id: item.answer for item in quiz.items}


@pytest.mark.parametrize("quiz", ALL, ids=lambda quiz: type(quiz).__name__)
def test_right_answers_score_100(quiz: Quiz):
    score = quiz.score(truth(quiz))
    assert score.metrics[score.headline] == 100
    assert set(score.items.values()) == {100.0}
    assert score.counts["asked"] == score.counts["answered"] == len(quiz.questions())


@pytest.mark.parametrize("quiz", ALL, ids=lambda quiz: type(quiz).__name__)
def test_questions_are_always_the_same_and_offer_the_answer(quiz: Quiz):
    again = type(quiz)(40)
    assert list(again.questions()) == list(quiz.questions())
    assert len({question.id for question in quiz.questions()}) == len(quiz.questions())
    assert all(item.answer in item.question.options for item in quiz.items)


@pytest.mark.parametrize("quiz", ALL, ids=lambda quiz: type(quiz).__name__)
def test_a_missing_answer_is_wrong_and_counted(quiz: Quiz):
    answers = truth(quiz)
    lost = next(iter(answers))
    answers[lost] = "perhaps"
    score = quiz.score(answers)
    assert score.items[lost] == 0
    assert score.counts["unparsable"] == 1
    del answers[lost]
    score = quiz.score(answers)
    assert score.items[lost] == 0
    assert score.counts["missing"] == 1


def test_pope_counted_by_hand():
    pairs = [("yes", 1.0), ("yes", 1.0), ("yes", 0.0), ("no", 1.0), ("no", 0.0), ("no", 0.0)]
    metrics = yes_no(pairs)  # said yes: 2 right, 2 wrong; said no: 1 right, 1 wrong
    assert metrics["accuracy"] == pytest.approx(100 * 3 / 6)
    assert metrics["f1"] == pytest.approx(100 * 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert metrics["yes_share"] == pytest.approx(100 * 4 / 6)
    assert yes_no([("no", 1.0), ("yes", 0.0)]) == {"accuracy": 50, "f1": 0, "yes_share": 0}


def test_pope_of_a_model_that_always_says_yes():
    pope = Pope(30)
    metrics = pope.score({question.id: "yes" for question in pope.questions()}).metrics
    for split in Pope.splits:
        assert metrics[f"{split}_accuracy"] == 50
        assert metrics[f"{split}_f1"] == pytest.approx(200 / 3)
        assert metrics[f"{split}_yes_share"] == 100


def test_pope_asks_for_what_is_absent_frequent_and_likely():
    absent_shapes: dict[tuple[int, str], list[str]] = {}
    for item in Pope(40).items:
        if item.answer == "no":
            absent_shapes.setdefault((item.question.image, item.group), []).append(item.question.text.split()[3])
    for number in range(40):
        scene_ = scene(0, "eval", number)
        count = len(scene_.shapes)
        assert absent_shapes[number, "popular"] == list(absent(scene_)[:count])
        assert absent_shapes[number, "adversarial"] == list(likely(scene_)[:count])
        assert set(absent_shapes[number, "random"]) <= set(absent(scene_))
        assert len(absent_shapes[number, "random"]) == count


def test_the_gate_is_the_worse_of_yes_and_no():
    quiz = Lookup(40)
    metrics = quiz.score({question.id: "yes" for question in quiz.questions()}).metrics
    assert (metrics["yes"], metrics["no"], metrics["gate"]) == (100, 0, 0)


def test_lookup_needs_no_image():
    assert all(question.image is None for question in Lookup(10).questions())


def test_a_quiz_about_no_image_is_refused():
    with pytest.raises(CheckError, match="images must be at least 1, got 0"):
        Lookup(0)


def test_attributes_may_be_chosen():
    quiz = Attributes(20, topics=["color", "count"])
    assert set(quiz.score(truth(quiz)).metrics) == {"color", "count", "accuracy"}
    with pytest.raises(CheckError, match="no attribute 'colour'\n  try  did you mean 'color'"):
        Attributes(20, topics=["colour"])
