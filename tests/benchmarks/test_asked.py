"""What an evaluation asked, by content."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from mmalign.benchmarks import Benchmark, Question
from mmalign.benchmarks.asked import Asked, clusters, look, name_of, of_items
from mmalign.benchmarks.pictures import Base64Image, Look
from mmalign.benchmarks.reading import ParquetImage
from mmalign.errors import DataError, RunError
from mmalign.toyworld.benchmarks import Lookup, Pope


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    seen = Asked({"1": ("ab", "a b.jpg"), "2": ("cd", None)}, {"a b.jpg": Look("ef", 3, 5), "c": Look(None)})
    seen.write(tmp_path / "x.json")
    assert Asked.read(tmp_path / "x.json", "") == seen
    (tmp_path / "x.json").write_text('{"questions": {"1": 5}, "pictures": {}}')
    with pytest.raises(RunError, match="try  evaluate again"):
        Asked.read(tmp_path / "x.json", "evaluate again")


def test_references_have_names_without_folders() -> None:
    assert name_of("a/b.jpg") == "a/b.jpg"
    assert name_of(ParquetImage("/somewhere/x.parquet", 3)) == "x.parquet row 3"
    assert name_of(Base64Image("AAAA")) == name_of(Base64Image("AAAA")) != name_of(Base64Image("BBBB"))
    assert clusters({"1": 7, "2": None}) == {"1": "7"}


def test_toy_scenes_are_known_by_their_world() -> None:
    """The same number is another scene in another world, and the same text about it another question."""
    one, same, other = (look(Pope(2, seed=seed))[0] for seed in (0, 0, 1))
    assert one == same
    assert one.by_content
    assert {one.key(qid, True) for qid in one.questions}.isdisjoint(other.key(qid, True) for qid in other.questions)
    assert {name for _, name in look(Lookup(2))[0].questions.values()} == {None}


def test_what_makes_a_question_another() -> None:
    class Own(Benchmark):
        def __init__(self, *questions: Question) -> None:
            self.own = questions

        def questions(self) -> tuple[Question, ...]:
            return self.own

        def image(self, reference: str) -> object:
            return SimpleNamespace() if reference != "bad" else (_ for _ in ()).throw(DataError("torn", at="/x"))

    def key(*of: object) -> object:
        return look(Own(Question("1", *of)))[0].key("1", False)

    same = key("what?", "a", ("x", "y"))
    assert key("what?", "a", ("x", "y")) == same
    for another in (("who?", "a", ("x", "y")), ("what?", "b", ("x", "y")), ("what?", "a", ("x",)), ("what?", None)):
        assert key(*another) != same
    seen, problems = look(Own(Question("1", "what?", "a"), Question("2", "what?", "bad")))
    assert problems == [("bad: torn", "/x")]
    assert not seen.by_content  # the benchmark tells no picture's content


def test_a_probe_asks_about_its_pictures() -> None:
    seen = of_items(["r0", "r1"])
    assert (seen.picture("r0", False), seen.by_content) == ("r0", False)
