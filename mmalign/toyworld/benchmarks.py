"""The toy world's benchmarks: hallucination (POPE), attributes, and look-up in text alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from PIL import Image

from mmalign.benchmarks import Benchmark, Parts, Question, Score
from mmalign.errors import CheckError, suggest
from mmalign.toyworld import language
from mmalign.toyworld.data import Scenes
from mmalign.toyworld.language import SceneQuestion
from mmalign.toyworld.world import SHAPES, Scene, draw

TOPICS = ("color", "shape", "size", "place", "count", "background")


@dataclass(frozen=True)
class QuizItem:
    """A question that knows its answer."""

    question: Question
    group: str  # what it is counted under
    answer: str


class Quiz(Benchmark):
    """Questions about the first scenes of a split; answers are the likeliest option.

    images: how many scenes. split, seed: which world's, as for its data.

    A CheckError for less than one image, or a split that is not there.
    """

    max_new_tokens = 4

    def __init__(self, images: int = 200, split: str = "eval", seed: int = 0) -> None:
        if images < 1:
            raise CheckError(f"images must be at least 1, got {images}")
        self.images, self.scenes = images, Scenes(split, seed)

    def scene_questions(self, number: int, scene: Scene) -> Iterable[tuple[str, SceneQuestion]]:
        """(group, question) of every question about a scene."""
        raise NotImplementedError

    @cached_property
    def items(self) -> list[QuizItem]:
        """Every question of every scene, in order."""
        return [item for number in range(self.images) for item in self._items_of(number)]

    def _items_of(self, number: int) -> list[QuizItem]:
        items, image = [], number if self.shows else None
        for index, (group, scene_question) in enumerate(self.scene_questions(number, self.scenes.scene(number))):
            question = Question(f"{number}-{group}-{index}", scene_question.text, image, scene_question.options)
            items.append(QuizItem(question, group, scene_question.answer))
        return items

    def questions(self) -> Sequence[Question]:
        return [item.question for item in self.items]

    def right(self, qid: str) -> str:
        return self._right[qid]

    @cached_property
    def _right(self) -> dict[str, str]:
        return {item.question.id: item.answer for item in self.items}

    def image(self, reference: int) -> Image.Image:
        return self.scenes.image(reference)

    def identity(self, reference: int) -> str:
        return f"scene {reference} of {self.scenes.split}, world {self.scenes.seed}"

    def correctness(self, answers: Mapping[str, str]) -> dict[str, float]:
        """100 or 0 for every question; one without an answer is wrong."""
        normalized = ((item, _normalize(answers.get(item.question.id, ""))) for item in self.items)
        return {item.question.id: 100.0 * (answer == item.answer) for item, answer in normalized}

    def counts(self, answers: Mapping[str, str]) -> dict[str, int]:
        answered = [(item, _normalize(answers[item.question.id])) for item in self.items if item.question.id in answers]
        unparsable = sum(answer not in item.question.options for item, answer in answered)
        total = len(self.items)
        return {"asked": total, "answered": len(answered), "missing": total - len(answered), "unparsable": unparsable}


class Pope(Quiz):
    """Is there a star in the image? (POPE, arXiv 2305.10355): as many questions to say no to as to say yes to.

    What is not there is drawn at random, is what is frequent (popular), or what often comes with what is there
    (adversarial). The headline is accuracy, not the paper's F1: a model that always says yes has an F1 of 67, and an
    accuracy of 50, which reads as what it is. Both are given.
    """

    splits = ("random", "popular", "adversarial")
    meanings = {
        "accuracy": ("share of right answers, the mean of three kinds of questions; chance 50", "percent", "higher"),
        "f1": ("F1 of `yes`, the mean of three kinds of questions; always yes: 67", "percent", "higher"),
        "yes_share": ("share of answers `yes`; half of the true ones are", "percent", ""),
        "*_yes_share": ("the same of one kind of questions", "percent", ""),
        "*": ("the same of one kind of questions", "percent", "higher"),
    }

    def scene_questions(self, number: int, scene: Scene) -> Iterable[tuple[str, SceneQuestion]]:
        present = [shape for shape in SHAPES if shape in scene.shapes]
        absent = language.absent(scene)
        shuffled = [absent[int(index)] for index in self.scenes.stream("pope", number).permutation(len(absent))]
        for split, absent_shapes in zip(self.splits, (shuffled, absent, language.likely(scene)), strict=True):
            for shape in (*present, *absent_shapes[: len(present)]):
                yield split, language.exists(scene, shape)

    def score(self, answers: Mapping[str, str]) -> Score:
        correct = self.correctness(answers)
        metrics: dict[str, float] = {}
        for split in self.splits:
            pairs = [(item.answer, correct[item.question.id] / 100) for item in self.items if item.group == split]
            metrics |= {f"{split}_{name}": value for name, value in yes_no(pairs).items()}
        for name in ("accuracy", "f1", "yes_share"):
            metrics[name] = mean(metrics[f"{split}_{name}"] for split in self.splits)
        return Score(metrics, "accuracy", correct, self.counts(answers), parts=parts(self.items, correct, self.splits))


def yes_no(pairs: Sequence[tuple[str, float]]) -> dict[str, float]:
    """accuracy, F1 of yes and the share of yes answers, in percent, of (true answer, 1 where it was given) pairs."""
    true_yes = sum(correct for answer, correct in pairs if answer == "yes")
    false_yes = sum(1 - correct for answer, correct in pairs if answer == "no")
    missed_yes = sum(1 - correct for answer, correct in pairs if answer == "yes")
    f1 = 2 * true_yes / (2 * true_yes + false_yes + missed_yes) if true_yes else 0.0
    accuracy, share = mean(correct for _, correct in pairs), (true_yes + false_yes) / len(pairs)
    return {"accuracy": 100 * accuracy, "f1": 100 * f1, "yes_share": 100 * share}


class Attributes(Quiz):
    """What color is the star? Asked only where one answer is true; the headline is the mean over the topics.

    topics: of color, shape, size, place, count and background.
    """

    meanings = {
        "accuracy": ("share of right answers, the mean of the topics", "percent", "higher"),
        "*": ("share of right answers of one topic", "percent", "higher"),
    }

    def __init__(self, images: int = 200, split: str = "eval", seed: int = 0, topics: Sequence[str] = TOPICS) -> None:
        super().__init__(images, split, seed)
        for topic in topics:
            if topic not in TOPICS:
                raise CheckError(f"the toy world has no attribute {topic!r}", fix=suggest(topic, TOPICS))
        self.topics = tuple(topics)

    def scene_questions(self, number: int, scene: Scene) -> Iterable[tuple[str, SceneQuestion]]:
        return ((question.topic, question) for question in language.attributes(scene) if question.topic in self.topics)

    def score(self, answers: Mapping[str, str]) -> Score:
        correct = self.correctness(answers)
        metrics = by_group(self.items, correct, self.topics)
        metrics["accuracy"] = mean(metrics.values())
        return Score(metrics, "accuracy", correct, self.counts(answers), parts=parts(self.items, correct, self.topics))


class Lookup(Quiz):
    """The same questions about scenes told in words: whether the language model can look things up at all.

    The headline, `gate`, is the worse of the accuracies where the answer is yes and where it is no: below 90 a model
    that is shown images answers yes/no at chance, however well its visual tokens are aligned.
    """

    shows = False
    groups = ("yes", "no", *TOPICS)
    meanings = {
        "gate": ("the worse of the accuracies where the answer is yes and where it is no", "percent", "higher"),
        "attributes": ("share of right answers, the mean of the topics", "percent", "higher"),
        "*": ("share of right answers of one group of questions", "percent", "higher"),
    }

    def scene_questions(self, number: int, scene: Scene) -> Iterable[tuple[str, SceneQuestion]]:
        random = self.scenes.stream("lookup", number)
        present, absent = draw(random, scene.things).shape, draw(random, language.absent(scene))
        topic = draw(random, TOPICS)
        attributes = [question for question in language.attributes(scene) if question.topic == topic]
        for question in (language.exists(scene, present), language.exists(scene, absent), *attributes[:1]):
            text = f"{language.description(random, scene)} {question.text}"
            yield question.answer if question.topic == "exists" else question.topic, replace(question, text=text)

    def score(self, answers: Mapping[str, str]) -> Score:
        correct = self.correctness(answers)
        metrics = by_group(self.items, correct, self.groups)
        metrics["gate"] = min(metrics["yes"], metrics["no"])
        metrics["attributes"] = mean(metrics[topic] for topic in TOPICS)
        gate = parts(self.items, correct, ("yes", "no"))
        return Score(metrics, "gate", correct, self.counts(answers), parts=gate, least=True)


def by_group(items: Sequence[QuizItem], correct: Mapping[str, float], groups: Sequence[str]) -> dict[str, float]:
    """Accuracy in percent of each group's questions."""
    return {group: mean(correct[item.question.id] for item in items if item.group == group) for group in groups}


def parts(items: Sequence[QuizItem], correct: Mapping[str, float], groups: Sequence[str]) -> Parts:
    """The groups' questions, whose accuracies the headline is made of."""
    return {
        group: {i.question.id: (correct[i.question.id], 1.0) for i in items if i.group == group} for group in groups
    }


def mean(values: Iterable[float]) -> float:
    """The mean; 0 of nothing."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0


def _normalize(answer: str) -> str:
    return answer.strip().strip(".").lower()
