"""A benchmark whose questions lie in files: finds them, opens their pictures, joins answers to them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from mmalign.benchmarks import Benchmark, Gaps, Question, Score, reading
from mmalign.benchmarks.answers import Answers, Joined, Official, Row, join, rows
from mmalign.benchmarks.pictures import Pictures
from mmalign.benchmarks.places import Found, Layout, Place, look
from mmalign.errors import DataError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image

SHORT = "Answer the question using a single word or phrase."  # LLaVA-1.5's suffix for short answers
LETTER = "Answer with the option's letter from the given choices directly."  # and for multiple choice


class FiledBenchmark(Benchmark):
    """data: the folder (or file) with the questions, in any layout this benchmark exists in.

    images: the folder with the pictures; None: where the layout has them.
    """

    folders: ClassVar[tuple[str, ...]] = ()  # of pictures, below the data
    rgb: ClassVar[bool] = True  # False: the official script hands the picture on as it is in the file
    official_gaps: ClassVar[Official] = Official()
    same: ClassVar[tuple[str, ...]] = ("official",)  # protocols whose rule is the official one

    def __init__(self, data: str, images: str | None = None) -> None:
        self.place = Place(data)
        self.pictures = Pictures(self.place, self.folders, images, self.rgb)
        self.files = self.look()
        self.found = str(self.files)

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
            raise DataError(what, fix=nearest(protocol, self.protocols))
        with reading.shape(self.place.root):
            joined = join(self.truth, answers, gaps, self.official_gaps)
            if protocol not in self.same:
                joined.notes.append(f"scored by the rule of {protocol}, not the official one")
            return self.scored(joined, protocol)

    def scored(self, joined: Joined, protocol: str) -> Score:
        raise NotImplementedError


def no_answers(benchmark: str, found: Found, server: str) -> DataError:
    return DataError(f"{benchmark}: these files hold no answers ({found})", fix=f"write a submission for {server}")
