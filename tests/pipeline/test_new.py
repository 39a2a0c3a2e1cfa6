"""What `new` writes works as it is: the recipe can be planned; packages are tried in tests/test_plugins.py."""

import ast
import tomllib

import pytest

from mmalign.errors import RunError
from mmalign.pipeline import new
from mmalign.plan import read as compose
from mmalign.plan.cards import FAMILIES

PACKAGES = [kind for kind in new.KINDS if kind != "recipe"]


def test_there_is_a_start_for_every_family():
    """But whole models, which are transformers' own: a card is all there is to write."""
    assert {new.KINDS[kind] for kind in PACKAGES} == set(FAMILIES) - {"vlms"}


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_new_package(tmp_path, kind):
    made = new.start(kind, "my-part", tmp_path)
    assert sorted(place.name for place in made) == ["my_part.py", "pyproject.toml", "test_my_part.py"]
    about, module, test = (place.read_text() for place in made)
    assert tomllib.loads(about)["project"]["entry-points"] == {
        f"mmalign.{new.KINDS[kind]}": {"my-part": "my_part:MyPart"}
    }
    (part,) = (n for n in ast.parse(module).body if isinstance(n, ast.ClassDef) and n.name == "MyPart")
    assert ast.get_docstring(part).startswith("One line that says ")
    assert "from mmalign.testing import check_" in test
    assert "{{" not in module + test
    assert max(map(len, (module + test).splitlines())) <= 120


def test_a_new_recipe(tmp_path):
    (place,) = new.start("recipe", "mine", tmp_path, base="quickstart")
    assert compose.load(place)[0].name == "mine"


def test_a_new_recipe_over_one_of_the_users_own(here):
    (here / "a").mkdir()
    (here / "a" / "base.yaml").write_text("extends: quickstart\nname: base\nseed: 9\n")
    (place,) = new.start("recipe", "mine", here / "b", base="a/base.yaml")
    assert compose.load(place.absolute())[0].seed == 9
    assert "extends: ../a/base.yaml" in place.read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("adaptor", "x"), "nothing to start from for 'adaptor'\n  try  did you mean 'adapter'"),
        (("llms", "x"), "nothing to start from for 'llms'\n  try  did you mean 'llm'"),
        (("adapter", "My Part"), "'My Part' cannot be a name here"),
        (("recipe", "x", "llava_vicuna"), "no recipe 'llava_vicuna' to start from\n  try  did you mean"),
    ],
)
def test_mistakes(tmp_path, args, message):
    with pytest.raises(RunError, match=message):
        new.start(*args[:2], tmp_path, *args[2:])


def test_nothing_is_overwritten(tmp_path):
    new.start("recipe", "mine", tmp_path)
    (tmp_path / "mine.yaml").write_text("kept")
    with pytest.raises(RunError, match=r"mine\.yaml is there already"):
        new.start("recipe", "mine", tmp_path)
    assert (tmp_path / "mine.yaml").read_text() == "kept"
