"""The toy world's benchmarks: hallucination (POPE), attributes, and look-up in text alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from PIL import Image

from mmalign.benchmarks import Benchmark, Question, Score
from mmalign.errors import CheckError, suggest
from mmalign.toyworld import language
from mmalign.toyworld.data import Scenes
from mmalign.toyworld.language import Asked
from mmalign.toyworld.world import SHAPES, Scene, draw

TOPICS = ("color", "shape", "size", "place", "count", "background")


@dataclass(frozen=True)
class Item:
    """A question that knows its answer."""

    question: Question
    group: str  # what it is counted under
    answer: str


class Quiz(Benchmark):
    """Questions about the first `images` scenes of a split; answers are the likeliest option."""

    max_new_tokens = 4
    shows = True  # False: questions come without their image

    def __init__(self, images: int = 200, split: str = "eval", seed: int = 0) -> None:
        if images < 1:
            raise CheckError(f"images must be at least 1, got {images}")
        self.images, self.scenes = images, Scenes(split, seed)

    def asked(self, number: int, scene: Scene) -> Iterable[tuple[str, Asked]]:
        """(group, question) of everything asked about a scene."""
        raise NotImplementedError

    @cached_property
    def items(self) -> list[Item]:
        return [item for number in range(self.images) for item in self._about(number)]

    def _about(self, number: int) -> list[Item]:
        made, image = [], number if self.shows else None
        for at, (group, one) in enumerate(self.asked(number, self.scenes.scene(number))):
            question = Question(f"{number}-{group}-{at}", one.text, image, one.options)
            made.append(Item(question, group, one.answer))
        return made

    def questions(self) -> Sequence[Question]:
        return [item.question for item in self.items]

    def image(self, reference: int) -> Image.Image:
        return self.scenes.image(reference)

    def right(self, answers: Mapping[str, str]) -> dict[str, float]:
        """100 or 0 for every question; one without an answer is wrong."""
        return {i.question.id: 100.0 * (_plain(answers.get(i.question.id, "")) == i.answer) for i in self.items}

    def counts(self, answers: Mapping[str, str]) -> dict[str, int]:
        given = [(item, _plain(answers[item.question.id])) for item in self.items if item.question.id in answers]
        odd = sum(answer not in item.question.options for item, answer in given)
        asked = len(self.items)
        return {"asked": asked, "answered": len(given), "missing": asked - len(given), "unparsable": odd}


class Pope(Quiz):
    """Is there a star in the image? (POPE, arXiv 2305.10355): as many questions to say no to as to say yes to.

    What is not there is drawn at random, is what is frequent (popular), or what often comes with what is there
    (adversarial). The headline is accuracy, not the paper's F1: a model that always says yes has an F1 of 67, and an
    accuracy of 50, which reads as what it is. Both are given.
    """

    splits = ("random", "popular", "adversarial")

    def asked(self, number: int, scene: Scene) -> Iterable[tuple[str, Asked]]:
        there = [shape for shape in SHAPES if shape in scene.shapes]
        absent = language.absent(scene)
        mixed = [absent[int(at)] for at in self.scenes.stream("pope", number).permutation(len(absent))]
        for split, missing in zip(self.splits, (mixed, absent, language.likely(scene)), strict=True):
            for shape in (*there, *missing[: len(there)]):
                yield split, language.exists(scene, shape)

    def score(self, answers: Mapping[str, str]) -> Score:
        right = self.right(answers)
        metrics: dict[str, float] = {}
        for split in self.splits:
            pairs = [(item.answer, right[item.question.id] / 100) for item in self.items if item.group == split]
            metrics |= {f"{split}_{name}": value for name, value in yes_no(pairs).items()}
        for name in ("accuracy", "f1", "yes_share"):
            metrics[name] = mean(metrics[f"{split}_{name}"] for split in self.splits)
        return Score(metrics, "accuracy", right, self.counts(answers))


def yes_no(pairs: Sequence[tuple[str, float]]) -> dict[str, float]:
    """accuracy, F1 of yes and the share of yes answers, in percent, of (true answer, whether it was given) pairs."""
    hit = sum(right for answer, right in pairs if answer == "yes")
    false = sum(1 - right for answer, right in pairs if answer == "no")
    missed = sum(1 - right for answer, right in pairs if answer == "yes")
    f1 = 2 * hit / (2 * hit + false + missed) if hit else 0.0
    accuracy, share = mean(right for _, right in pairs), (hit + false) / len(pairs)
    return {"accuracy": 100 * accuracy, "f1": 100 * f1, "yes_share": 100 * share}


class Attributes(Quiz):
    """What color is the star? Asked only where one answer is true; the headline is the mean over the topics.

    topics: of color, shape, size, place, count and background.
    """

    def __init__(self, images: int = 200, split: str = "eval", seed: int = 0, topics: Sequence[str] = TOPICS) -> None:
        super().__init__(images, split, seed)
        for topic in topics:
            if topic not in TOPICS:
                raise CheckError(f"the toy world has no attribute {topic!r}", fix=suggest(topic, TOPICS))
        self.topics = tuple(topics)

    def asked(self, number: int, scene: Scene) -> Iterable[tuple[str, Asked]]:
        return ((one.topic, one) for one in language.attributes(scene) if one.topic in self.topics)

    def score(self, answers: Mapping[str, str]) -> Score:
        right = self.right(answers)
        metrics = by_group(self.items, right, self.topics)
        metrics["accuracy"] = mean(metrics.values())
        return Score(metrics, "accuracy", right, self.counts(answers))


class Lookup(Quiz):
    """The same questions about scenes told in words: whether the language model can look things up at all.

    The headline, `gate`, is the worse of the accuracies where the answer is yes and where it is no: below 90 a model
    that is shown images answers yes/no at chance, however well its visual tokens are aligned.
    """

    shows = False
    groups = ("yes", "no", *TOPICS)

    def asked(self, number: int, scene: Scene) -> Iterable[tuple[str, Asked]]:
        random = self.scenes.stream("lookup", number)
        there, missing = draw(random, scene.things).shape, draw(random, language.absent(scene))
        topic = draw(random, TOPICS)
        attributes = [one for one in language.attributes(scene) if one.topic == topic]
        for one in (language.exists(scene, there), language.exists(scene, missing), *attributes[:1]):
            told = f"{language.description(random, scene)} {one.text}"
            yield one.answer if one.topic == "exists" else one.topic, replace(one, text=told)

    def score(self, answers: Mapping[str, str]) -> Score:
        right = self.right(answers)
        metrics = by_group(self.items, right, self.groups)
        metrics["gate"] = min(metrics["yes"], metrics["no"])
        metrics["attributes"] = mean(metrics[topic] for topic in TOPICS)
        return Score(metrics, "gate", right, self.counts(answers))


def by_group(items: Sequence[Item], right: Mapping[str, float], groups: Sequence[str]) -> dict[str, float]:
    """Accuracy in percent of each group's questions."""
    return {group: mean(right[item.question.id] for item in items if item.group == group) for group in groups}


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _plain(answer: str) -> str:
    return answer.strip().strip(".").lower()
