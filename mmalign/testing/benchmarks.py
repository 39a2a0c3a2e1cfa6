"""The contracts of a benchmark, which asks, and of a probe, which looks, as checks.

Letters: B images, Q visual tokens, K kept.
"""

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmalign.benchmarks import Benchmark, Probe, Question, ReadoutKind, Score, Subject
from mmalign.data import MARK
from mmalign.errors import CheckError, DataError
from mmalign.testing.tensors import refuses
from mmalign.vision import Frame

MOST = 100  # questions whose pictures are opened
BOUNDS = (0.0, 100.0)
ODD = ["", " ", "yes", "\n\n", "🙂" * 50, "I do not know."]  # what a model may answer to anything


def check_benchmark(
    make: Callable[[], Benchmark],
    right: Mapping[str, str] | None = None,
    bounds: tuple[float, float] = BOUNDS,
    damaged: Callable[[], Benchmark] | None = None,
) -> None:
    """A benchmark keeps its contract.

    make: builds it, the same every time. right: {question id: an answer that is right}, where they are known: they give
    the upper of the `bounds` of the headline. damaged: builds it on files that are damaged or missing.
    """
    bench = make()
    questions = _questions(bench, make())
    ids = [question.id for question in questions]
    _images(bench, questions)
    _shorter(bench, questions)
    replies = {question.id: _reply(question, number) for number, question in enumerate(questions)}
    score = _scored(bench, replies, ids, bounds)
    for answers in ({}, dict.fromkeys(ids, ""), {**replies, "no such question": "yes"}, _without_last(replies)):
        _scored_or_refused(bench, answers, ids, bounds)
    _repeats(bench, make(), replies, score)
    if right is not None:
        _best(bench, right, ids, bounds)
    _files(bench, replies)
    if damaged is not None:
        refuses(DataError, lambda: damaged().questions(), "questions() of damaged files")


def _questions(bench: Benchmark, twin: Benchmark) -> Sequence[Question]:
    questions = bench.questions()
    assert questions, "there are no questions"
    assert list(bench.questions()) == list(questions), "questions() gives others when it is called again"
    assert list(twin.questions()) == list(questions), "two benchmarks built alike ask different questions"
    seen: set[str] = set()
    for question in questions:
        assert isinstance(question.id, str), f"a question's id is {question.id!r}, not a text"
        assert question.id not in seen, f"two questions have the id {question.id!r}"
        seen.add(question.id)
        assert question.text.strip(), f"question {question.id!r} asks nothing"
        assert MARK not in question.text, f"question {question.id!r} has a {MARK} mark: its image is put before it"
        options = question.options
        assert isinstance(options, tuple), f"the options of {question.id!r} are a {type(options).__name__}, not a tuple"
        assert len(set(options)) == len(options), f"question {question.id!r} has the same option twice"
        assert all(options), f"question {question.id!r} has an empty option"
    assert bench.max_new_tokens >= 1, f"max_new_tokens is {bench.max_new_tokens}"
    pictured = any(question.image is not None for question in questions)
    assert bench.shows or not pictured, "shows is False, and a question has a picture"
    assert bench.protocols, "protocols is empty; scores follow 'official' where there is one"
    return questions


def _images(bench: Benchmark, questions: Sequence[Question]) -> None:
    references = [question.image for question in questions if question.image is not None]
    for reference in references[:MOST]:
        try:
            picture = bench.image(reference)
        except Exception as err:
            raise AssertionError(f"the image {reference!r} cannot be read: {type(err).__name__}: {err}") from err
        assert isinstance(picture, Image.Image), f"the image {reference!r} is a {type(picture).__name__}, not a picture"
        same = bench.image(reference).tobytes() == picture.tobytes()
        assert same, f"the image {reference!r} is another one when it is read again"


def _shorter(bench: Benchmark, questions: Sequence[Question]) -> None:
    for question in questions[:MOST]:
        if (shorter := bench.shorter(question)) is not None:
            assert shorter.id == question.id, f"the shorter form of {question.id!r} has the id {shorter.id!r}"
            assert len(shorter.text) < len(question.text), f"the shorter form of {question.id!r} is no shorter"


def _reply(question: Question, number: int) -> str:
    return question.options[number % len(question.options)] if question.options else ODD[number % len(ODD)]


def _without_last(replies: Mapping[str, str]) -> dict[str, str]:
    return dict(list(replies.items())[:-1])


def _scored(bench: Benchmark, answers: Mapping[str, str], ids: Sequence[str], bounds: tuple[float, float]) -> Score:
    before = dict(answers)
    score = bench.score(answers)
    assert dict(answers) == before, "score() changes the answers it is given"
    _whole(score, ids)
    value, (low, high) = score.metrics[score.headline], bounds
    assert low <= value <= high, f"{score.headline} is {value:g}, outside of {low:g} to {high:g}"
    return score


def _scored_or_refused(
    bench: Benchmark, answers: Mapping[str, str], ids: Sequence[str], bounds: tuple[float, float]
) -> None:
    """Gaps are scored, or refused with what is wrong."""
    try:
        _scored(bench, answers, ids, bounds)
    except (DataError, AssertionError) as err:
        if isinstance(err, AssertionError):
            raise
    except Exception as err:
        what = f"score() of {len(answers)} answers to {len(ids)} questions raises {type(err).__name__}"
        raise AssertionError(f"{what}: score missing and unknown answers, or raise a DataError") from err


def _whole(score: Score, ids: Sequence[str] | None = None) -> None:
    """A score is complete and made of finite numbers; ids: of the questions that its items are about."""
    assert isinstance(score, Score), f"the score is a {type(score).__name__}, not a Score"
    named = ", ".join(score.metrics)
    assert score.headline in score.metrics, f"the headline {score.headline!r} is no metric; there are {named}"
    for name, value in {**score.metrics, **score.items, **score.printed}.items():
        number = isinstance(value, (int, float)) and math.isfinite(value)
        assert number, f"{name} is {value!r}, not a finite number"
    for name, count in score.counts.items():
        assert isinstance(count, int), f"the count {name!r} is {count!r}, not a whole number"
        assert count >= 0, f"the count {name!r} is {count}"
    assert set(score.printed) <= set(score.metrics), "printed holds a metric that is none of metrics"
    for name, by_id in (("items", score.items), ("taken", score.taken)) if ids is not None else ():
        foreign = set(by_id) - set(ids or ())
        assert not foreign, f"{name} is about {sorted(foreign)[0]!r}, which is no question's id"


def _repeats(bench: Benchmark, twin: Benchmark, replies: Mapping[str, str], score: Score) -> None:
    turned = dict(reversed(list(replies.items())))
    assert bench.score(turned) == score, "the score depends on the order of the answers: join them by id"
    assert twin.score(replies) == score, "two benchmarks built alike give other scores"


def _best(bench: Benchmark, right: Mapping[str, str], ids: Sequence[str], bounds: tuple[float, float]) -> None:
    score = _scored(bench, right, ids, bounds)
    value = score.metrics[score.headline]
    assert math.isclose(value, bounds[1]), f"{score.headline} of right answers is {value:g}, not {bounds[1]:g}"
    for lacking, what in ((_without_last(right), "one right answer missing"), ({}, "no answer")):
        try:
            found = bench.score(lacking)
        except DataError:
            continue
        lower = found.metrics[found.headline]
        assert lower < value if not lacking else lower <= value, f"{score.headline} with {what} is {lower:g}"


def _files(bench: Benchmark, replies: Mapping[str, str]) -> None:
    """Files of answers are read, and those for a server written, where there is one."""
    with tempfile.TemporaryDirectory() as folder:
        place, target = Path(folder) / "answers.jsonl", Path(folder) / f"submission.{bench.submits}"
        lines = [json.dumps({"id": key, "text": text}, ensure_ascii=False) for key, text in replies.items()]
        place.write_text("\n".join(lines) + "\n", encoding="utf-8")
        assert dict(bench.read(str(place))) == dict(replies), "read() gives other answers than the file holds"
        try:
            bench.submission(replies, target)
        except DataError:
            return
        assert target.is_file(), "submission() writes no file; a DataError says that there is no server"


def check_probe(make: Callable[[], Probe], model: Subject | None = None) -> None:
    """A probe keeps its contract.

    make: builds it, the same every time. model: what it looks at; None: a stand-in that shows random words. It may ask
    of a model what `Subject` has, and nothing else.
    """
    shown = StandIn() if model is None else model
    score = make().measure(_Only(shown))
    _whole(score)
    assert make().measure(_Only(shown)) == score, "the same model gets another score"
    if not make().shows:
        _unseeing(make(), shown)
    for lacking in ({"grid": None}, {"depth": 0}, {"untrained": None}):
        (name,) = lacking
        try:
            _whole(make().measure(_Only(shown, **lacking)))
        except CheckError:
            continue
        except AssertionError:
            raise
        except Exception as err:
            what = f"a model whose {name} is {lacking[name]} dies with {type(err).__name__}: {err}"
            raise AssertionError(f"{what}; raise a CheckError for what cannot be looked at") from err


def _unseeing(probe: Probe, model: Subject) -> None:
    """A probe that shows no picture measures a language model alone."""
    try:
        probe.measure(_Only(model, **dict.fromkeys(PICTURED)))
    except Exception as err:
        what = f"shows is False, and a model that sees nothing dies with {type(err).__name__}: {err}"
        raise AssertionError(what) from err


PICTURED = ("nearest_tokens", "nearest_listed", "nearest_perfect", "frames", "grid")
SUBJECT = (
    "untrained", "grid", "depth", "nearest_tokens", "nearest_listed", "nearest_perfect", "frames", "pieces",
    "spellings", "perplexity",
)  # fmt: skip


class _Only:
    """A model reduced to what a Subject has; some of it replaced."""

    def __init__(self, model: Any, **replaced: Any) -> None:
        self._model, self._replaced = model, replaced

    def __getattr__(self, name: str) -> Any:
        assert name in SUBJECT, f"it asks the model for {name!r}; a Subject has {', '.join(SUBJECT)}"
        if name in self._replaced:
            return self._replaced[name]
        if name == "nearest_tokens":
            return self._tokens
        if name == "nearest_listed":
            return self._listed
        value = getattr(self._model, name)
        return (lambda: _Only(value())) if name == "untrained" and value is not None else value

    def _tokens(
        self,
        images: Sequence[Image.Image],
        layers: Sequence[int] = (0,),
        top_k: int = 1,
        readout: ReadoutKind = "input",
    ) -> Any:
        self._check(layers)
        return self._model.nearest_tokens(images, layers, top_k, readout)

    def _listed(
        self, images: Sequence[Image.Image], words: Sequence[str], layers: Sequence[int] = (0,), top_k: int = 1,
        readout: ReadoutKind = "input",
    ) -> Any:  # fmt: skip
        self._check(layers)
        return self._model.nearest_listed(images, words, layers, top_k, readout)

    def _check(self, layers: Sequence[int]) -> None:
        deepest = self._replaced.get("depth", self._model.depth)
        beyond = [layer for layer in layers if not 0 <= layer <= deepest]
        assert not beyond, f"it looks at layer {beyond[0]} of a model that shows {deepest}"


class StandIn:
    """Keeps `Subject` without a model: a picture's bytes decide which tokens are near to it."""

    grid, depth, vocab = (3, 2), 2, 50

    @property
    def untrained(self) -> "Callable[[], StandIn] | None":
        return StandIn

    def nearest_tokens(
        self,
        images: Sequence[Image.Image],
        layers: Sequence[int] = (0,),
        top_k: int = 1,
        readout: ReadoutKind = "input",
    ) -> dict[int, tuple[Tensor, Tensor]]:
        return self._drawn(images, self.vocab, layers, top_k)

    def nearest_listed(
        self, images: Sequence[Image.Image], words: Sequence[str], layers: Sequence[int] = (0,), top_k: int = 1,
        readout: ReadoutKind = "input",
    ) -> dict[int, tuple[Tensor, Tensor]]:  # fmt: skip
        return self._drawn(images, len(words), layers, min(top_k, len(words)))

    def nearest_perfect(
        self, number_BQ: Tensor, layers: Sequence[int], words: Sequence[str] | None = None,
        readout: ReadoutKind = "input",
    ) -> dict[int, Tensor]:  # fmt: skip
        count = self.vocab if words is None else len(words)
        return {layer: (number_BQ + layer * (number_BQ % 2)) % count for layer in layers}

    def _drawn(
        self, images: Sequence[Image.Image], count: int, layers: Sequence[int], top_k: int
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Numbers below `count` for every patch."""
        shape = (len(images), self.grid[0] * self.grid[1], top_k)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for layer in layers:
            seeds = [sum(image.convert("RGB").resize((4, 4)).tobytes()) + layer for image in images]
            drawn = [torch.randperm(count * 9, generator=torch.Generator().manual_seed(s)) for s in seeds]
            number_BQK = torch.stack([each[: shape[1] * top_k].view(shape[1:]) % count for each in drawn])
            found[layer] = (torch.linspace(1, 0, top_k).expand(shape), number_BQK)
        return found

    def frames(self, images: Sequence[Image.Image]) -> list[Frame]:
        return [Frame("squash", image.size, self.grid) for image in images]

    def pieces(self, words: Sequence[str]) -> list[list[int]]:
        return [[sum(word.encode()) % self.vocab] for word in words]

    def spellings(self, words: Sequence[str]) -> list[list[int]]:
        return self.pieces(words)

    def perplexity(self, texts: Sequence[str]) -> float:
        return 1.0 + len(set(" ".join(texts).split()))
