"""A benchmark whose questions lie in files: finds them, opens their pictures, joins answers to them."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from mmalign.benchmarks import Benchmark, Gaps, Question, Score, reading
from mmalign.benchmarks.answers import Answers, Joined, Official, Row, join, rows
from mmalign.benchmarks.pictures import Pictures
from mmalign.benchmarks.places import Found, Layout, Place, look
from mmalign.errors import DataError, suggest

if TYPE_CHECKING:
    from PIL.Image import Image

SHORT = "Answer the question using a single word or phrase."  # LLaVA-1.5's suffix for short answers
LETTER = "Answer with the option's letter from the given choices directly."  # and for multiple choice


class NoAnswersError(DataError):
    """The files hold questions and no answers: only a server can score them."""


class FiledBenchmark(Benchmark):
    """data: the folder (or file) with the questions, in any layout this benchmark exists in; or the folder of all
    benchmarks, as LLaVA has it, with one of this benchmark's name in it.

    images: the folder with the pictures; None: where the layout has them.
    """

    folders: ClassVar[tuple[str, ...]] = ()  # of pictures, below the data
    rgb: ClassVar[bool] = True  # False: the official script hands the picture on as it is in the file
    official_gaps: ClassVar[Official] = Official()
    same: ClassVar[tuple[str, ...]] = ("official",)  # protocols whose rule is the official one

    def __init__(self, data: str, images: str | None = None) -> None:
        self.place = self._home(Place(data))
        self.pictures = Pictures(self.place, self.folders, images, self.rgb)
        self.files = self.look()
        self.found = str(self.files)

    @property
    def homes(self) -> Sequence[str]:
        """What the benchmark's folder is called, where several lie side by side."""
        return [type(self).__name__.lower()]

    def _home(self, outer: Place) -> Place:
        """The benchmark's own folder below the given one, where it holds as much as can be found from above."""
        folders = [os.path.join(outer.root, name) for name in ([] if outer.is_file else self.homes)]
        inner = [Place(folder) for folder in folders if outer.exists(folder)]
        best = min([*inner, outer], key=self._rank)  # the first of equals
        return best if self._rank(best) < len(self.layouts()) else outer

    def _rank(self, place: Place) -> int:
        """The number of the first layout that is there; behind the last where none is."""
        layouts = self.layouts()
        return next((number for number, one in enumerate(layouts) if one.look(place)), len(layouts))

    def layouts(self) -> Sequence[Layout]:
        """The layouts to look for, the most complete first."""
        raise NotImplementedError

    def look(self) -> Found:
        return look(self.place, self.layouts(), type(self).__name__)

    @cached_property
    def asked(self) -> list[Question]:
        raise NotImplementedError

    def questions(self) -> Sequence[Question]:
        return self.asked

    def ready(self) -> None:
        """DataError where questions, labels or pictures are missing or damaged; ask before a model is loaded."""
        self.pictures.expect({one.image: None for one in self.questions() if isinstance(one.image, str)})
        with suppress(NoAnswersError), reading.shape(self.place.root):
            len(self.truth)

    def image(self, reference: Any) -> "Image":
        return self.pictures.open(reference)

    def read(self, source: str) -> Answers:
        return Answers((self.own_id(row), row.text) for row in rows(source))

    def own_id(self, row: Row) -> str:
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
        with reading.shape(self.place.root):
            joined = join(self.truth, answers, gaps, self.official_gaps)
            if protocol not in self.same:
                joined.notes.append(f"scored by the rule of {protocol}, not the official one")
            return self.scored(joined, protocol)

    def scored(self, joined: Joined, protocol: str) -> Score:
        raise NotImplementedError


def no_answers(benchmark: str, found: Found, server: str) -> NoAnswersError:
    what = f"{benchmark}: these files hold no answers ({found})"
    return NoAnswersError(what, fix=f"write a submission for {server}: mmalign score --submission FILE")


def score(bench: Benchmark, answers: Mapping[str, str], protocol: str = "official", gaps: Gaps = "strict") -> Score:
    """The score of any benchmark; one that does not lie in files knows its own rule only; a gap is a wrong answer."""
    if isinstance(bench, FiledBenchmark):
        return bench.score(answers, protocol, gaps)
    if protocol not in bench.protocols:
        raise DataError(f"{type(bench).__name__} has no protocol {protocol!r}", fix=suggest(protocol, bench.protocols))
    joined = join([one.id for one in bench.questions()], answers, gaps, Official("skip", "skip"))
    found = bench.score(joined.texts)
    found.counts, found.notes = found.counts | joined.counts, joined.notes + found.notes
    return found
