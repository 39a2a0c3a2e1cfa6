"""`check_benchmark` and `check_probe`: ours and new ones pass, and what breaks a clause is said."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from mmalign.benchmarks import Benchmark, Probe, Question, Score
from mmalign.benchmarks.alignment import Alignment
from mmalign.benchmarks.perplexity import Perplexity
from mmalign.benchmarks.textvqa import TextVQA
from mmalign.errors import DataError
from mmalign.testing import check_benchmark, check_probe, small
from mmalign.testing.benchmarks import StandIn
from mmalign.toyworld.benchmarks import Attributes, Lookup, Pope
from mmalign.toyworld.data import Captions, Texts
from tests.benchmarks.test_benchmarks import textvqa


@pytest.mark.parametrize("kind", [Pope, Attributes, Lookup])
def test_toy_benchmarks_pass(kind):
    right = {item.question.id: item.answer for item in kind(20).items}
    check_benchmark(lambda: kind(20), right)


def test_one_that_lies_in_files_passes(tmp_path):
    folder = textvqa(tmp_path)
    for name in ("00ab", "00ac"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.jpg")
    ids = [question.id for question in TextVQA(folder).questions()]
    right = dict(zip(ids, ["a plug", "a plug", "me"], strict=True))
    check_benchmark(lambda: TextVQA(folder, images=folder), right, damaged=lambda: TextVQA(str(tmp_path / "nowhere")))


def test_a_new_one_passes(start):
    own = start("benchmark")
    check_benchmark(own, {question.id: question.image for question in own().questions()})


class Kept(Benchmark):
    """Keeps the contract: two questions, a picture each."""

    max_new_tokens = 4
    right = {"q1": "yes", "q2": "no"}
    asked = (Question("q1", "Is it red?", "red"), Question("q2", "Is it blue?", "red", ("yes", "no")))

    def questions(self):
        return list(self.asked)

    def image(self, reference):
        return Image.new("RGB", (4, 4), reference)

    def score(self, answers):
        items = {key: 100.0 * (answers.get(key) == own) for key, own in self.right.items()}
        return Score({"accuracy": sum(items.values()) / len(items)}, "accuracy", items, {"asked": 2})


def method(name, body):
    return type("Broken", (Kept,), {name: body})


def asking(*questions):
    return method("questions", lambda self: list(questions))


def scoring(change):
    return method("score", lambda self, answers: change(Kept.score(self, answers), answers))


def counting(self, *_):
    self.count = getattr(self, "count", 0) + 1
    return self.count


def clearing(self, answers):
    found = Kept.score(self, answers)
    answers.clear()
    return found


def by_position(self, answers):
    right = sum(given == own for given, own in zip(answers.values(), ("yes", "no"), strict=False))
    return Score({"accuracy": 50.0 * right}, "accuracy")


def of_the_answered(self, answers):
    known = [given == self.right[key] for key, given in answers.items() if key in self.right]
    return Score({"accuracy": 100 * sum(known) / len(known) if known else 100.0}, "accuracy")


def needs_all(self, answers):
    return Kept.score(self, {key: answers[key] for key in self.right})


def nothing_written(self, answers, target):
    return None


ONE, TWO = Kept.asked
BROKEN = {
    "nothing": (asking(), "there are no questions"),
    "drawn": (
        method("questions", lambda self: [replace(ONE, text=f"Is it {counting(self)}?"), TWO]),
        r"questions\(\) gives others when it is called again",
    ),
    "number": (asking(replace(ONE, id=1)), "a question's id is 1, not a text"),
    "same id": (asking(ONE, replace(TWO, id="q1")), "two questions have the id 'q1'"),
    "silent": (asking(replace(ONE, text=" ")), "question 'q1' asks nothing"),
    "mark": (asking(replace(ONE, text="<image> Is it?")), "question 'q1' has a <image> mark"),
    "list": (asking(replace(ONE, options=["yes"])), "the options of 'q1' are a list, not a tuple"),
    "options": (asking(replace(ONE, options=("a", "a"))), "question 'q1' has the same option twice"),
    "no option": (asking(replace(ONE, options=("a", ""))), "question 'q1' has an empty option"),
    "tokens": (type("Broken", (Kept,), {"max_new_tokens": 0}), "max_new_tokens is 0"),
    "protocols": (type("Broken", (Kept,), {"protocols": ()}), "protocols is empty"),
    "no picture": (method("image", lambda self, r: r), "the image 'red' is a str, not a picture"),
    "no image": (method("image", lambda self, r: {}[r]), "the image 'red' cannot be read: KeyError"),
    "other image": (
        method("image", lambda self, r: Image.new("RGB", (4, 4), (counting(self), 0, 0))),
        "the image 'red' is another one when it is read again",
    ),
    "other short": (method("shorter", lambda self, q: TWO), "the shorter form of 'q1' has the id 'q2'"),
    "long short": (
        method("shorter", lambda self, q: replace(q, text=q.text + " Really?")),
        "the shorter form of 'q1' is no shorter",
    ),
    "clears": (method("score", clearing), r"score\(\) changes the answers"),
    "number alone": (method("score", lambda self, answers: 50.0), "the score is a float, not a Score"),
    "headline": (scoring(lambda s, a: replace(s, headline="f1")), "the headline 'f1' is no metric; there are accuracy"),
    "nan": (scoring(lambda s, a: replace(s, metrics={"accuracy": float("nan")})), "accuracy is nan, not a finite"),
    "range": (scoring(lambda s, a: replace(s, metrics={"accuracy": 101.0})), "accuracy is 101, outside of 0 to 100"),
    "counts": (scoring(lambda s, a: replace(s, counts={"asked": 0.5})), "the count 'asked' is 0.5, not a whole number"),
    "below 0": (scoring(lambda s, a: replace(s, counts={"asked": -1})), "the count 'asked' is -1"),
    "printed": (scoring(lambda s, a: replace(s, printed={"f1": 1.0})), "printed holds a metric that is none of"),
    "foreign": (scoring(lambda s, a: replace(s, items={"q9": 1.0})), "items is about 'q9', which is no question's id"),
    "taken": (scoring(lambda s, a: replace(s, taken={"q9": "yes"})), "taken is about 'q9'"),
    "unknown": (
        scoring(lambda s, a: replace(s, items=s.items | dict.fromkeys(a, 1.0))),
        "items is about 'no such question'",
    ),
    "gaps": (method("score", needs_all), r"score\(\) of 0 answers to 2 questions raises KeyError"),
    "by position": (method("score", by_position), "the score depends on the order of the answers"),
    "its own": (
        method("score", lambda self, answers: replace(Kept.score(self, answers), counts={"of": id(self)})),
        "two benchmarks built alike give other scores",
    ),
    "never right": (
        scoring(lambda s, a: replace(s, metrics={"accuracy": s.metrics["accuracy"] / 2})),
        "accuracy of right answers is 50, not 100",
    ),
    "of the answered": (method("score", of_the_answered), "accuracy with no answer is 100"),
    "read": (method("read", lambda self, source: {}), r"read\(\) gives other answers than the file holds"),
    "submission": (method("submission", nothing_written), r"submission\(\) writes no file"),
}


def test_the_unbroken_benchmark_passes():
    check_benchmark(Kept, Kept.right)


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_contract_is_said(name):
    bench, said = BROKEN[name]
    with pytest.raises(AssertionError, match=said):
        check_benchmark(bench, Kept.right)


def test_gaps_may_be_refused():
    def strict(self, answers):
        if set(answers) != set(self.right):
            raise DataError("answers are missing")
        return Kept.score(self, answers)

    check_benchmark(method("score", strict), Kept.right)


def test_a_benchmark_may_have_another_range():
    class Share(Kept):
        def score(self, answers):
            found = super().score(answers)
            return replace(found, metrics={"accuracy": found.metrics["accuracy"] / 100})

    check_benchmark(Share, Kept.right, bounds=(0, 1))
    with pytest.raises(AssertionError, match="accuracy of right answers is 1, not 100"):
        check_benchmark(Share, Kept.right)


def test_two_that_are_built_alike_differ_or_damage_is_not_told():
    made = []

    class Drawn(Kept):
        def __init__(self):
            made.append(self)
            self.asked = Kept.asked if len(made) == 1 else Kept.asked[::-1]

    with pytest.raises(AssertionError, match="two benchmarks built alike ask different questions"):
        check_benchmark(Drawn)
    with pytest.raises(AssertionError, match=r"questions\(\) of damaged files raises no DataError"):
        check_benchmark(Kept, damaged=Kept)


# Probes


@pytest.mark.parametrize(
    "make", [lambda: Alignment(Captions(8), 6), lambda: Perplexity(Texts(8), 4)], ids=["alignment", "perplexity"]
)
def test_our_probes_pass(make):
    check_probe(make)


def test_a_probe_of_a_real_model(tmp_path):
    from mmalign.plan.cards import Card
    from mmalign.vlm.folder import build

    adapter = {"adapter": Card("linear", "mmalign.adapters.mlp.MLP", {"depth": 1})}
    parts = {**small.encoder("siglip", tmp_path), "llm": small.llm_card("llama", tmp_path), **adapter}
    check_probe(lambda: Alignment(Captions(4), 3), build(parts).eval())


class Steady(Probe):
    """Keeps the contract: how many tokens are near to anything."""

    def measure(self, model):
        nearest = model.nearest_tokens([Image.new("RGB", (4, 4), color) for color in ("red", "blue")], (model.depth,))
        return Score({"distinct": len(nearest[model.depth][1].unique())}, "distinct")


class Random(Steady):
    def measure(self, model):
        return Score({"distinct": float(torch.rand(()))}, "distinct")


class Curious(Steady):
    def measure(self, model):
        return Score({"parameters": len(list(model.llm.parameters()))}, "parameters")


class Deep(Steady):
    def measure(self, model):
        model.nearest_tokens([Image.new("RGB", (4, 4))], (2,))
        return super().measure(model)


class Square(Steady):
    def measure(self, model):
        return Score({"patches": model.grid[0] * model.grid[1]}, "patches")


class Before(Steady):
    def measure(self, model):
        return Score({"before": model.untrained().perplexity(["a"])}, "before")


class Blind(Steady):
    shows = False


class Nameless(Steady):
    def measure(self, model):
        return Score({"a": 1.0}, "b")


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        (Random, "the same model gets another score"),
        (Curious, "it asks the model for 'llm'; a Subject has untrained, grid"),
        (Deep, "it looks at layer 2 of a model that shows 0"),
        (Square, "a model whose grid is None dies with TypeError"),
        (Before, "a model whose untrained is None dies with TypeError"),
        (Blind, "shows is False, and a model that sees nothing dies with TypeError"),
        (Nameless, "the headline 'b' is no metric; there are a"),
    ],
)
def test_what_breaks_the_contract_of_a_probe_is_said(probe, said):
    check_probe(Steady)
    with pytest.raises(AssertionError, match=said):
        check_probe(probe)


def test_the_stand_in_looks_at_the_picture():
    red, blue = (StandIn().nearest_tokens([Image.new("RGB", (4, 4), color)])[0][1] for color in ("red", "navy"))
    assert red.shape == (1, 6, 1)
    assert not torch.equal(red, blue)
