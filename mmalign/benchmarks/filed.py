"""A benchmark whose questions lie in files: finds them, opens their pictures, joins answers to them."""

import os
import types
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from mmalign.benchmarks import Benchmark, Gaps, Question, Score, numbered, reading
from mmalign.benchmarks.answers import AnswerRow, Answers, GapRule, JoinedAnswers, answer_rows, join
from mmalign.benchmarks.layouts import DataLocation, Layout, LayoutFiles, find_layout
from mmalign.benchmarks.pictures import Base64Image, Pictures
from mmalign.benchmarks.reading import ParquetImage
from mmalign.errors import DataError, suggest
from mmalign.io import document

if TYPE_CHECKING:
    from PIL.Image import Image

REFERENCES = (types.NoneType, Base64Image, ParquetImage)  # of pictures, beside names of files
SHORT = "Answer the question using a single word or phrase."  # LLaVA-1.5's suffix for short answers
LETTER = "Answer with the option's letter from the given choices directly."  # and for multiple choice


class NoAnswersError(DataError):
    """The files hold questions and no answers: only a server can score them."""


class FiledBenchmark(Benchmark):
    """data: the folder (or file) with the questions, in any layout this benchmark exists in; or the folder of all
    benchmarks, as LLaVA has it, with one of this benchmark's name in it.

    images: the folder with the pictures; None: where the layout has them.
    """

    picture_folders: ClassVar[tuple[str, ...]] = ()  # below the data
    rgb: ClassVar[bool] = True  # False: the official script hands the picture on as it is in the file
    index_is_id: ClassVar[bool] = False  # VLMEvalKit's index is the id in the other layouts too
    logs_have_ids: ClassVar[bool] = True  # lmms-eval logs the ids that are used here
    official_gaps: ClassVar[GapRule] = GapRule()
    official_protocols: ClassVar[tuple[str, ...]] = ("official",)  # those whose rule is the official one

    def __init__(self, data: str, images: str | None = None) -> None:
        self.location = self._own_folder(DataLocation(data))
        self.pictures = Pictures(self.location, self.picture_folders, images, self.rgb)
        self.files = find_layout(self.location, self.layouts(), type(self).__name__)
        self.data_files = str(self.files)

    @property
    def folder_names(self) -> Sequence[str]:
        """What the benchmark's folder is called, where several lie side by side."""
        return [type(self).__name__.lower()]

    def _own_folder(self, outer: DataLocation) -> DataLocation:
        """The benchmark's own folder below the given one, where it holds as much as can be found from above."""
        folders = [os.path.join(outer.root, name) for name in ([] if outer.is_file else self.folder_names)]
        inner = [DataLocation(folder) for folder in folders if outer.exists(folder)]
        best = min([*inner, outer], key=self._rank)  # the first of equals
        return best if self._rank(best) < len(self.layouts()) else outer

    def _rank(self, location: DataLocation) -> int:
        """The number of the first layout that is there; behind the last where none is."""
        layouts = self.layouts()
        return next((number for number, layout in enumerate(layouts) if layout.find(location)), len(layouts))

    def layouts(self) -> Sequence[Layout]:
        """The layouts to look for, the most complete first."""
        raise NotImplementedError

    @cached_property
    def question_list(self) -> list[Question]:
        """What `questions` gives."""
        raise NotImplementedError

    def questions(self) -> Sequence[Question]:
        return self._typed

    @cached_property
    def _typed(self) -> list[Question]:
        """The question list; DataError where a file has something else than text for a question or its picture."""
        with reading.shape(self.location.root):
            questions = self.question_list
        for one in questions:
            about = {"id": one.id, "text": one.text, "image": one.image}
            for name, value in about.items():
                if not isinstance(value, (str, *REFERENCES) if name == "image" else str):
                    what = f"question {document.shown(one.id)}: its {name} is no text: {document.shown(value)}"
                    raise DataError(what, at=self.location.root, fix="the file may be damaged: fetch it again")
        return questions

    def ready(self) -> None:
        """DataError where questions, labels or pictures are missing or damaged; ask before a model is loaded."""
        self.pictures.expect({question.image: None for question in self.questions() if isinstance(question.image, str)})
        with suppress(NoAnswersError), reading.shape(self.location.root):
            len(self.truth)

    def image(self, reference: Any) -> "Image":
        return self.pictures.open(reference)

    def identity(self, reference: Any) -> str | None:
        return self.pictures.look(reference).content

    def read(self, source: str) -> Answers:
        rows = answer_rows(source)
        return Answers(zip(self.question_ids(rows), (row.text for row in rows), strict=True))

    def question_ids(self, rows: Sequence[AnswerRow]) -> list[str]:
        """The question's id for each row of a file of answers."""
        by_index = self.index_is_id or self.files.layout == "TSV"
        questions = lambda: self.numbered_questions  # noqa: E731
        return numbered.question_ids(rows, questions, self.question_id, by_index, self.logs_have_ids)

    @property
    def numbered_questions(self) -> Sequence[Question]:
        """The questions in the order in which other tools number them, to compare what was asked."""
        return self.questions()

    def question_id(self, row: AnswerRow) -> str:
        """The id of the question a row of a file of answers is about; foreign files may name it otherwise."""
        return row.id

    @cached_property
    def truth(self) -> Mapping[str, Any]:
        """{question id: what its answer is judged by}; DataError where these files hold no answers."""
        raise NotImplementedError

    def score(self, answers: Mapping[str, str], protocol: str = "official", gaps: Gaps = "strict") -> Score:
        """The metric of a protocol; `gaps` says what to do about missing and unknown answers."""
        if protocol not in self.protocols:
            what = f"{type(self).__name__} has no protocol {protocol!r}"
            raise DataError(what, fix=suggest(protocol, self.protocols))
        with reading.shape(self.location.root):
            joined = join(self.truth, answers, gaps, self.official_gaps)
            if protocol not in self.official_protocols:
                joined.notes.append(f"scored by the rule of {protocol}, not the official one")
            return replace(self.score_joined(joined, protocol), protocol=protocol)

    def score_joined(self, joined: JoinedAnswers, protocol: str) -> Score:
        """The metric of one of `protocols`, on answers whose gaps are treated already."""
        raise NotImplementedError


def by_people(answers: Iterable[str]) -> str:
    """What several people said, the most frequent first."""
    said = Counter(answers).most_common()
    return ", ".join(f"{text} ({count})" if count > 1 else text for text, count in said)


def no_answers(benchmark: str, layout_files: LayoutFiles, server: str) -> NoAnswersError:
    what = f"{benchmark}: these files hold no answers ({layout_files})"
    return NoAnswersError(what, fix=f"write a submission for {server}: mmalign score --submission FILE")


def score(bench: Benchmark, answers: Mapping[str, str], protocol: str = "official", gaps: Gaps = "strict") -> Score:
    """The score of any benchmark; one that does not lie in files knows its own rule only; a gap is a wrong answer."""
    if isinstance(bench, FiledBenchmark):
        return bench.score(answers, protocol, gaps)
    if protocol not in bench.protocols:
        raise DataError(f"{type(bench).__name__} has no protocol {protocol!r}", fix=suggest(protocol, bench.protocols))
    joined = join([question.id for question in bench.questions()], answers, gaps, GapRule("skip", "skip"))
    result = bench.score(joined.texts)
    result.counts, result.notes = result.counts | joined.counts, joined.notes + result.notes
    return result
