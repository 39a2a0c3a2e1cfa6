"""What a benchmark is: questions about images, and the official score of the answers. Scoring never needs a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from mmalign.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from mmalign.vision import Frame


@dataclass(frozen=True)
class Question:
    """What a model is asked."""

    id: str  # unique in its benchmark; answers are joined by it, never by position
    text: str  # the user's turn, without the image's mark
    image: Any = None  # a reference `Benchmark.image` understands; None: no image
    options: tuple[str, ...] = ()  # not empty: the answer is the likeliest of these, not generated text
    plain: bool = False  # asked as it is, without the chat template
    family: str = ""  # questions of one family begin with the same words, which are then read once


# {part: {question id: (numerator, denominator)}}: the headline is the mean over parts of Σ numerators / Σ denominators
Parts = Mapping[str, Mapping[str, tuple[float, float]]]


class Cut(str):
    """An answer that ends at `max_new_tokens`, not where the model would have ended it."""

    __slots__ = ()


# {metric, or a pattern with * for several: (what it is, its unit, whether `higher` or `lower` is better, or neither)}
Meanings = Mapping[str, tuple[str, str, str]]

# What to do about questions without an answer and answers without a question. strict: DataError. lenient: a missing
# answer is an empty one, an unknown one is left out. official: as the official tool does, where it goes on at all.
Gaps = Literal["strict", "lenient", "official"]


@dataclass
class Score:
    """What a benchmark or a probe gives."""

    metrics: dict[str, float]  # in the unit of the official tool (percent or fraction), not rounded; empty: not scored
    headline: str  # the name of the metric the papers mean
    items: dict[str, float] = field(default_factory=dict)  # question id: its value, for paired comparisons
    counts: dict[str, int] = field(default_factory=dict)  # asked, answered, missing, duplicate, unparsable, ...
    notes: list[str] = field(default_factory=list)  # what a reader of the number has to know
    printed: dict[str, float] = field(default_factory=dict)  # the metrics the official tool rounds, rounded as it does
    taken: dict[str, str] = field(default_factory=dict)  # question id: what the rule took the answer for
    parts: Parts = field(default_factory=dict)  # what the headline is made of, see headline.py; empty: mean of items
    least: bool = False  # the headline is the smallest of its parts, not their mean
    protocol: str = "official"  # whose rules it follows


class Benchmark:
    """A benchmark asked in words. `data` is the folder or file with its official files, where it has any."""

    max_new_tokens: ClassVar[int] = 128
    shows: ClassVar[bool] = True  # False: no question has a picture, so that a language model alone can be asked
    protocols: ClassVar[tuple[str, ...]] = ("official",)  # whose rules `score` can follow, where there are several
    joint: ClassVar[bool] = False  # whether several questions count as one, so that not any choice of them has a score
    submits: ClassVar[str] = "json"  # the kind of file its server takes
    meanings: ClassVar[Meanings] = {}  # of its metrics, in a literal, for it is read from the text; the first that fits
    data_files: str = ""  # which files were read, and in which layout

    def questions(self) -> Sequence[Question]:
        """Every question, in the official order; DataError when the files are missing or damaged."""
        raise NotImplementedError

    def shorter(self, question: Question) -> Question | None:
        """The question for a model whose context it does not fit; None: there is no shorter form."""
        return None

    def image(self, reference: Any) -> "Image":
        """The picture behind a question's reference: RGB, or as it lies in the file where the official script does
        not convert it (MMBench, ScienceQA)."""
        raise NotImplementedError

    def identity(self, reference: Any) -> str | None:
        """What tells a picture's content without decoding it, the same wherever it lies; None: only its reference is
        known."""
        return None

    def references(self) -> Mapping[str, Any]:
        """{question id: the reference of its picture, or None}: questions about one picture fare alike."""
        return {question.id: question.image for question in self.questions()}

    def read(self, source: str) -> Mapping[str, str]:
        """{question id: answer text} of a file of answers, in any form that is handed around."""
        from mmalign.benchmarks import numbered  # they import this module
        from mmalign.benchmarks.answers import Answers, answer_rows

        rows = answer_rows(source)
        ids = numbered.question_ids(rows, self.questions, lambda row: row.id)
        return Answers(zip(ids, (row.text for row in rows), strict=True))

    def score(self, answers: Mapping[str, str]) -> Score:
        """The official metric on {question id: answer text}."""
        raise NotImplementedError

    def right(self, qid: str) -> str:
        """What the answer to a question is judged by, for a reader of it; empty: it is not told."""
        return ""

    def submission(self, answers: Mapping[str, str], target: Path) -> None:
        """Write the file that the benchmark's server takes; DataError where there is no server."""
        raise DataError(f"{type(self).__name__} has no server to submit to", fix="score the answers: mmalign score")


class Probe:
    """A measurement of the model itself, not of its answers."""

    shows: ClassVar[bool] = True  # False: it shows no picture, so that a language model alone can be measured
    meanings: ClassVar[Meanings] = {}  # as a benchmark's

    def limited(self, items: int) -> "Probe":
        """The same on at most so many items, from all over; itself where it does not measure items."""
        return self

    def takes(self) -> int:
        """How many questions of a benchmark take about as long as all of it: for the time left of an evaluation."""
        return 1

    def measure(self, model: "Subject") -> Score:
        """The score of a model. Raises CheckError for a model it cannot look at."""
        raise NotImplementedError


ReadoutKind = Literal["input", "same-layer", "lens"]  # see vlm/readout.py


class Subject(Protocol):
    """What a probe may ask of a model: a VLM keeps it. Letters: B images, Q visual tokens, K kept."""

    @property
    def untrained(self) -> "Callable[[], Subject] | None":
        """Gives the model as it was before any training here; None: not known."""

    @property
    def grid(self) -> tuple[int, int] | None:
        """(rows, columns) of the visual tokens; None where a token is no patch."""

    @property
    def depth(self) -> int:
        """Layers of the language model that can be looked at; 0: none."""

    def nearest_tokens(
        self, images: "Sequence[Image]", layers: Sequence[int] = (0,), top_k: int = 1, readout: ReadoutKind = "input"
    ) -> "dict[int, tuple[Tensor, Tensor]]":
        """{layer: (cosine_BQK, token_BQK)}: the vocabulary tokens nearest to each visual token; layer 0: as the
        adapter makes them. readout: how the others are read."""

    def nearest_listed(
        self, images: "Sequence[Image]", words: Sequence[str], layers: Sequence[int] = (0,), top_k: int = 1,
        readout: ReadoutKind = "input",
    ) -> "dict[int, tuple[Tensor, Tensor]]":  # fmt: skip
        """{layer: (cosine_BQK, word_BQK)}: the words of a list nearest to each visual token, by their numbers in it."""

    def nearest_perfect(
        self, number_BQ: "Tensor", layers: Sequence[int], words: Sequence[str] | None = None,
        readout: ReadoutKind = "input",
    ) -> "dict[int, Tensor]":  # fmt: skip
        """{layer: number_BQ}: what is nearest to perfect visual tokens, embeddings of these tokens, or of these
        words of a list, in the place of an image's: how far a readout can be trusted."""

    def frames(self, images: "Sequence[Image]") -> "list[Frame]":
        """Where the visual tokens lie in each picture; only for a model with a grid."""

    def pieces(self, words: Sequence[str]) -> list[list[int]]:
        """The token ids each word has inside a sentence."""

    def spellings(self, words: Sequence[str]) -> list[list[int]]:
        """The token ids that speak of each word: its pieces, and tokens that are the word in another spelling."""

    def perplexity(self, texts: Sequence[str]) -> float:
        """exp of the mean loss per token over texts without images."""
