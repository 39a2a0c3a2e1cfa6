"""What `mmalign show` and editors say of a recipe's settings: every one has a meaning, and numbers a unit."""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

import pytest

from mmalign.plan import meanings, recipe
from mmalign.plan.recipe import KINDS, RecipeFile, Stage

CLASSES = [cls for cls in vars(recipe).values() if is_dataclass(cls) and cls.__module__ == recipe.__name__]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_setting_has_a_meaning(cls):
    told = meanings.meanings(cls)
    assert [f.name for f in fields(cls) if not told.get(f.name)] == []


@pytest.mark.parametrize("cls", [RecipeFile, *KINDS.values()], ids=lambda cls: cls.__name__)
def test_every_number_says_its_unit_or_that_it_has_none(cls):
    hints = {f.name: f for one in CLASSES for f in fields(one)}
    numbers = [one for one in meanings.of(cls) if one.kind in (int, float)]
    for one in numbers:
        assert "unit" in hints[one.key.split(".")[-1]].metadata, one.key


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_stage_says_what_it_does(kind):
    assert (KINDS[kind].__doc__ or "").splitlines()[0].endswith(".")


@dataclass
class Below:
    width: float = field(default=2.0, metadata={"above": 0, "unit": "m"})  # how wide
    must: int = recipe.MISSING


@dataclass
class Example(Stage):
    # first line
    # and the second
    plain: str = "a"  # beside
    several: list[Literal["a", "b"]] = field(
        default_factory=list,  # inside
        metadata={"once": "each once"},
    )

    silent: bool = False
    version = 3  # of no setting
    below: Below | None = None  # a mapping
    many: dict[str, Below] = field(default_factory=dict)  # by name
    from_: int = field(default=recipe.MISSING, metadata={"least": 0, "most": 9})


def test_comments_beside_and_above_a_field_are_its_meaning():
    told = meanings.meanings(Example)
    assert told["plain"] == "first line and the second beside"
    assert (told["several"], told["below"], told["silent"]) == ("inside", "a mapping", "")
    assert told["reads"].startswith("the stages it builds on")  # inherited


def test_types_bounds_units_and_defaults():
    known = {one.key: one for one in meanings.of(Example)}
    assert list(known)[-7:] == [
        "below", "below.width", "below.must", "many", "many.NAME.width", "many.NAME.must", "from",
    ]  # fmt: skip
    width = known["below.width"]
    assert (width.type, width.unit, width.default, width.needed) == ("number above 0", "m", 2.0, False)
    assert known["many.NAME.width"] == meanings.Setting(
        "many.NAME.width", float, 2.0, False, {"above": 0}, "m", False, "how wide"
    )
    assert (known["from"].type, known["from"].needed) == ("whole number at least 0 and at most 9", True)
    assert (known["several"].type, known["several"].choices) == ("list of one of a, b", ["a", "b"])
    assert (known["plain"].type, known["plain"].default) == ("word", "a")


def test_what_is_needed_is_known_through_the_settings_inside():
    known = {one.key: one.needed for one in meanings.of_stage(KINDS["train"])}
    assert {key for key, needed in known.items() if needed} == {
        "data", "trains", "optim", "optim.lr", "batch", "labels.source",
    }  # fmt: skip
    assert "kind" not in known


def test_types_in_words():
    words = meanings.words
    assert words(list[int]) == "list of whole numbers"
    assert words(list[float], {"least": 0, "below": 1, "length": 2}) == "list of 2 numbers at least 0 and below 1"
    assert (words(recipe.Part), words(list[recipe.Part])) == ("card", "list of cards")
    assert (words(dict[str, Any]), words(recipe.Optim)) == ("mapping", "mapping")
