"""What the numbers of a report are: as benchmarks and objectives say it, in cards or classes, or nobody does."""

import json

import pytest

from mmalign.plan.cards import Registry
from mmalign.stages import measures
from mmalign.stages.measures import Measure
from tests.stages.test_report import finished, study

REGISTRY = Registry()
POPE = {"target": "mmalign.benchmarks.pope.POPE"}
POPE_F1 = Measure("F1 of `yes`, the mean of the kinds of questions", "fraction", "higher is better")
SAYS = {"facts": {"meanings": {"b*": ["some", "percent", "lower"], "best": ["the best", "none", ""]}}}


def test_a_class_says_it_and_a_pattern_stands_for_several():
    assert measures.of(POPE, "f1") == POPE_F1
    assert measures.of(POPE, "random/f1").what == "the same of one kind of questions"
    assert measures.of(POPE, "random/FP") == Measure(
        "objects not there, and said to be: hallucinated", "questions", "lower is better"
    )
    assert measures.of(POPE, "unheard") == Measure()


def test_a_card_says_it_for_a_class_that_does_not():
    assert measures.of(SAYS, "best") == Measure("the best", "none")  # the name itself, not the first that fits
    assert measures.of(SAYS, "big") == Measure("some", "percent", "lower is better")
    assert measures.of({**POPE, **SAYS}, "big").what == "some"


@pytest.mark.parametrize(
    "card",
    [None, {}, {"target": "no.such.Thing"}, {"target": 7}, {"facts": 3}, {"facts": {"meanings": [1]}},
     {"facts": {"meanings": {"f1": "x"}}}, {"facts": {"meanings": {"f1": ["a", "b", 3]}}}],
)  # fmt: skip
def test_where_nobody_says_it_there_is_nothing(card):
    assert measures.of(card, "f1") == Measure()


def test_every_shipped_benchmark_says_what_its_headline_is():
    for name in REGISTRY.names("benchmarks"):
        card = REGISTRY.card("benchmarks", name)
        about = {"target": card.target, "facts": card.facts}
        said = measures.of(about, card.facts.get("headline", "accuracy"))
        if not said.what:
            said = next(filter(lambda one: one.what, (measures.of(about, m) for m in ("object", "gate", "perplexity"))))
        assert said.what, name
        assert said.unit in ("percent", "fraction", "none"), name
        assert said.better, name
        assert said.unit == card.facts.get("unit", said.unit), name


def test_a_loss_is_what_its_objectives_card_says():
    card = REGISTRY.card("objectives", "lm")
    said = measures.of_loss({"target": card.target, "summary": card.summary})
    assert said == Measure("predict the next token of the answer", "mean per token", "lower is better")
    assert measures.of_loss({"target": "mmalign.objectives.sea.SEA"}).unit == "mean per image"
    assert measures.of_loss(None) == Measure(better="lower is better")


def test_of_a_report(tmp_path):
    scores, arms = study(tmp_path, {"base": [50.0]})
    assert {*measures.known(scores, arms).values()} == {Measure(), Measure(better="lower is better")}  # no cards
    card = {**POPE, "summary": "is it there?"}
    (scores[0] / "stage.yaml").write_text(json.dumps({"cards": {"bench.pope": card}}))
    measures.cards.cache_clear()
    assert measures.known(scores, arms)["pope", "f1"] == POPE_F1
    assert measures.summaries(scores, arms) == {"pope": "is it there?"}


@pytest.mark.parametrize("text", ["", "[]", "cards: 3", "cards: {a: 1}", "{"])
def test_cards_that_cannot_be_read_explain_nothing(text, tmp_path):
    place = finished(tmp_path / "evaluate", "score", "evaluate")
    (place / "stage.yaml").write_text(text)
    assert measures.cards(place) == {}


def test_axes():
    assert Measure(unit="percent").axis("object") == "object (percent)"
    assert Measure(unit="none").axis("perplexity") == "perplexity"
