"""The three doors of the registry: shipped cards, shelves, and the entry points of installed packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmalign.errors import CardError
from mmalign.plan import building, cards, definitions, installed, signatures
from mmalign.plan.cards import FAMILIES, Registry
from tests.conftest import TINY, command

CARD = "summary: a card of mine\ntarget: mmalign.adapters.mlp.MLP\nargs: {depth: 1}\nfacts: {keeps_grid: true}\n"
COUNT = CARD.replace("keeps_grid: true}\n", "parameters: ")

ADAPTER = '''"""An adapter for mmalign."""

from torch import Tensor, nn

from mmalign.adapters import Adapter


class Scaled(Adapter):
    """One linear layer with a learnt scale.

    start: of the scale.
    """

    def __init__(self, patch_dim: int, llm_dim: int, grid: tuple[int, int], start: float = 1.0) -> None:
        super().__init__(patch_dim, llm_dim, grid)
        self.linear = nn.Linear(patch_dim, llm_dim)
        self.scale = nn.Parameter(Tensor([start]))

    def forward(self, patches_BPC: Tensor) -> Tensor:
        return self.scale * self.linear(patches_BPC)
'''
INIT = '''"""Says when it is imported."""

import os
from pathlib import Path

if place := os.environ.get("PLUGIN_IMPORTED"):
    Path(place).touch()
'''
PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "1.5"

[project.entry-points."mmalign.adapters"]
{part} = "{package}.parts:Scaled"

[tool.setuptools]
packages = ["{package}"]
"""


def shelf(folder: Path, **families: str) -> Path:
    """A folder of cards: family="name" makes one card."""
    for family, name in families.items():
        (folder / family).mkdir(parents=True, exist_ok=True)
        (folder / family / f"{name}.yaml").write_text(CARD)
    return folder


# Cards


def test_every_shipped_card_is_read_and_names_something_that_takes_its_arguments():
    registry = Registry()
    for family in FAMILIES:
        for card in registry.every(family):
            assert card.summary, card.path
            takes = signatures.takes(card.target)
            assert takes is None or set(card.args) <= set(takes), card.path


def test_names_are_exact(mmalign):
    registry = Registry()
    assert registry.card("adapters", "linear").name == "linear"
    for name in ("linea", "Linear", "linear ", "", "*", "../adapters/linear", "linear.yaml"):
        with pytest.raises(CardError, match="no adapters card named"):
            registry.card("adapters", name)
    with pytest.raises(CardError) as caught:
        registry.card("adapters", "liner")
    assert caught.value.fix == "did you mean 'linear'?   (mmalign list adapters)"


def test_no_such_family():
    with pytest.raises(CardError) as caught:
        Registry().names("adapter")
    assert (caught.value.what, caught.value.fix) == ("no family 'adapter'", "did you mean 'adapters'?")


@pytest.mark.parametrize(
    ("text", "what", "at", "fix"),
    [
        ("summary: a\n", "the card 'mine' lacks 'target'", "", "add `target: ...`"),
        ("target: a.b\n", "the card 'mine' lacks 'summary'", "", "add `summary: ...`"),
        (CARD + "agrs: {}\n", "a card has no key 'agrs'", ":5  agrs", "did you mean 'args'?"),
        ("summary: 3\ntarget: a.b\n", "'summary' must be text, got 3", ":1  summary", "put it in quotes"),
        ("summary: a\ntarget: a.b\nargs: [1]\n", "'args' must be a mapping, got [1]", ":3  args", "{name: value}"),
        ("summary: a\ntarget: a.b\nargs:\n", "'args' must be a mapping, got None", ":3  args", "{name: value}"),
        ("summary: a\nsummary: b\n", "the key 'summary' is written twice", ":2", "keep one"),
        (COUNT + "{DX: 1}}\n", "parameters.DX is no term", ":4", "left out"),
        (COUNT + "{D: -1}}\n", "parameters.D must be a number of at least 0, got -1", ":4", "left out"),
        (COUNT + "{D: .inf}}\n", "parameters.D must be finite, got inf", ":4", "left out"),
        ("- a\n", "expected `key: value` lines", ":1", "name: ..."),
        ("{", "not valid YAML", ":", "brackets"),
    ],
)
def test_mistakes_in_a_card(here, text, what, at, fix):
    place = shelf(here / "shelf", adapters="mine") / "adapters" / "mine.yaml"
    place.write_text(text)
    with pytest.raises(CardError) as caught:
        Registry([str(here / "shelf")]).card("adapters", "mine")
    assert what in caught.value.what
    assert caught.value.at.startswith(f"{place}{at}")
    assert fix in caught.value.fix


def test_paths_in_a_card_count_from_its_own_folder(here):
    place = shelf(here / "shelf", adapters="mine") / "adapters" / "mine.yaml"
    place.write_text(CARD.replace("{depth: 1}", "{a: ./x, b: [../y, hub/id], c: {d: ./z}, e: 'pkg:mmalign/w'}"))
    args = Registry([str(here / "shelf")]).card("adapters", "mine").args
    folder = here / "shelf" / "adapters"
    assert args == {
        "a": f"{folder}/x", "b": [f"{here}/shelf/y", "hub/id"], "c": {"d": f"{folder}/z"}, "e": "pkg:mmalign/w",
    }  # fmt: skip


# Building


def test_build_passes_arguments_on():
    made = building.build(Registry().card("adapters", "mlp3x-gelu"), patch_dim=3, llm_dim=5, grid=(2, 2))
    assert [tuple(p.shape) for p in made.parameters()] == [(5, 3), (5,), (5, 5), (5,), (5, 5), (5,)]


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("mmalign.adapters.mlpp.MLP", "cannot import"),
        ("mmalign.adapters.mlp.MLPP", "cannot import"),
        ("no_such_package.Part", "cannot import"),
        ("Part", "cannot import"),
    ],
)
def test_a_target_that_cannot_be_imported(target, what):
    with pytest.raises(CardError) as caught:
        building.build(cards.Card("a", target, name="mine", family="adapters", path="mine.yaml"))
    assert what in caught.value.what
    assert target in caught.value.what
    assert caught.value.at == "mine.yaml"


def test_arguments_that_do_not_fit_name_the_signature():
    card = cards.Card("a", "mmalign.adapters.mlp.MLP", {"deep": 2}, name="mine", family="adapters", path="mine.yaml")
    with pytest.raises(CardError) as caught:
        building.build(card, patch_dim=3, llm_dim=5, grid=(2, 2))
    assert "deep" in caught.value.what
    assert "depth" in caught.value.fix


# Reading what a target takes, without importing it


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        ("class A:\n  def __init__(self, a, b=1, *, c, d=2): ...", {"a": True, "b": False, "c": True, "d": False}),
        ("class A: ...", {}),
        ("class A:\n  def __init__(self, a, **more): ...", None),
        ("class A:\n  def __new__(cls, a): ...", None),
        ("class B:\n  def __init__(self, a): ...\nclass A(B): ...", {"a": True}),
        ("from .base import B\nclass A(B): ...", {"z": True}),
        ("from .base import B as A", {"z": True}),
        ("from somewhere import B\nclass A(B): ...", None),
        ("import torch\nclass A(torch.nn.Linear): ...", None),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n  a: int\n  b: int = 1", {"a": True, "b": False}),
        ("def A(a, b=1): ...", {"a": True, "b": False}),
        ("A = make()", None),
        ("if True:\n  def A(a): ...\nelse:\n  def A(b): ...", {"a": True}),
        ("from .base import *", None),
        ("def __getattr__(name): ...", None),
    ],
)
def test_arguments_are_read_from_the_text(here, monkeypatch, text, takes):
    package = here / "read_me"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "base.py").write_text("raise RuntimeError('imported')\nclass B:\n  def __init__(self, z): ...\n")
    (package / "part.py").write_text(text)
    monkeypatch.syspath_prepend(here)
    assert signatures.takes("read_me.part.A") == takes
    for target, what in [("read_me.part.Z", "has no Z"), ("read_me.prt.A", "read_me.prt does not exist")]:
        if takes is not None:
            with pytest.raises(definitions.Absent, match=what):
                definitions.find(target)


def test_a_module_beside_its_shelf_that_is_not_importable_is_found(here):
    """The `try` says what makes it so; where none lies there, that the target is to be checked."""
    (here / "shelf" / "adapters").mkdir(parents=True)
    card = here / "shelf" / "adapters" / "own.yaml"
    card.write_text("summary: mine\ntarget: lies_beside.Own\n")
    for place, fix in ((None, "check `target:`, or "), (here / "lies_beside.py", "export PYTHONPATH=."),
                       (here / "shelf" / "lies_beside.py", "export PYTHONPATH=shelf")):  # fmt: skip
        if place:
            place.write_text("class Own: ...\n")
        with pytest.raises(CardError, match="no package 'lies_beside' is installed") as told:
            Registry([str(here / "shelf")]).card("adapters", "own")
        assert told.value.fix.startswith(fix)
        if place:
            place.unlink()


def test_broken_python_is_said_to_be_broken(here, monkeypatch):
    (here / "broken_part.py").write_text("def A(:\n")
    monkeypatch.syspath_prepend(here)
    with pytest.raises(definitions.Absent, match="not valid Python"):
        signatures.takes("broken_part.A")


# Shelves


def test_a_shelf_by_environment(here, monkeypatch, mmalign):
    monkeypatch.setenv("MMALIGN_REGISTRY", str(shelf(here / "shelf", adapters="mine")))
    rows = {row["name"]: row for row in json.loads(mmalign("list", "adapters", "--json").out)}
    assert rows["mine"]["origin"] == f"shelf {here}/shelf"
    assert rows["linear"]["origin"] == "mmalign"
    assert "a card of mine" in mmalign("show", "adapters", "mine").out


def test_several_shelves(here, monkeypatch):
    one, two = shelf(here / "one", adapters="mine"), shelf(here / "two", llms="yours")
    monkeypatch.setenv("MMALIGN_REGISTRY", f"{one}{os.pathsep}{two}{os.pathsep}")
    registry = Registry([str(one)])  # named twice, read once
    assert registry.card("adapters", "mine").origin == f"shelf {one}"
    assert registry.card("llms", "yours").origin == f"shelf {two}"


def test_a_shelf_of_a_recipe(tiny, mmalign):
    shelf(tiny.parent / "shelf", adapters="mine")
    tiny.write_text(TINY.replace("adapter: linear", "adapter: mine") + "registry: [./shelf]\n")
    assert "nothing wrong" in mmalign("check", tiny).out
    os.chdir("/")
    assert "nothing wrong" in mmalign("check", tiny).out


def test_a_name_that_is_taken_names_both_owners(here, mmalign, monkeypatch):
    monkeypatch.setenv("MMALIGN_REGISTRY", str(shelf(here / "shelf", adapters="linear")))
    said = mmalign("list", "adapters")
    assert said.code == 2
    assert f"two adapters parts are named 'linear': one from mmalign, one from shelf {here}/shelf" in said.err
    assert mmalign("list", "llms").code == 0  # the other families are not touched


def test_a_missing_shelf(here, mmalign, monkeypatch):
    monkeypatch.setenv("MMALIGN_REGISTRY", f"{here}/nowhere")
    said = mmalign("list", "adapters")
    assert said.code == 2
    assert f"no registry folder {here}/nowhere" in said.err
    assert "MMALIGN_REGISTRY" in said.err


# Packages


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    """A folder with a tiny plugin package, installed by pip."""
    return install(tmp_path_factory.mktemp("plugin"), "tiny-plugin", "scaled")


def install(folder: Path, name: str, part: str) -> Path:
    package = name.replace("-", "_")
    (folder / "src" / package).mkdir(parents=True)
    (folder / "src" / package / "__init__.py").write_text(INIT)
    (folder / "src" / package / "parts.py").write_text(ADAPTER)
    (folder / "src" / "pyproject.toml").write_text(PYPROJECT.format(name=name, part=part, package=package))
    line = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*line, "--target", str(folder / "site"), str(folder / "src")], check=True, capture_output=True)
    return folder / "site"


def environment(*sites: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sites)), **more}


def test_a_plugin_is_listed_with_its_origin_and_not_imported(plugin, here):
    env = environment(plugin, PLUGIN_IMPORTED=f"{here}/imported")
    said = command("list", "adapters", "--json", env=env)
    rows = {row["name"]: row for row in json.loads(said.out)}
    assert rows["scaled"] == {
        "name": "scaled", "origin": "tiny-plugin 1.5", "summary": "One linear layer with a learnt scale",
    }  # fmt: skip
    assert not (here / "imported").exists()
    assert "tiny_plugin.parts.Scaled" in command("show", "adapters", "scaled", env=env).out
    assert not (here / "imported").exists()


def test_two_plugins_with_one_name_are_refused_and_both_named(plugin, here):
    other = install(here / "other", "other-plugin", "scaled")
    said = command("list", "adapters", env=environment(plugin, other))
    assert said.code == 2
    assert "two adapters parts are named 'scaled'" in said.err
    assert "tiny-plugin 1.5" in said.err
    assert "other-plugin 1.5" in said.err


def test_a_plugin_and_a_shipped_card_with_one_name(here):
    site = install(here / "taken", "taking-plugin", "linear")
    said = command("list", "adapters", env=environment(site))
    assert said.code == 2
    assert "one from mmalign, one from taking-plugin 1.5" in said.err


def test_a_package_seen_twice_is_one(plugin, here):
    said = command("list", "adapters", env=environment(plugin, plugin, Path(f"{plugin}/../site")))
    assert said.code == 0
    assert said.out.count("scaled") == 1


def test_arguments_of_a_plugin_are_checked_without_importing_it(plugin, tiny):
    env = environment(plugin, PLUGIN_IMPORTED=f"{tiny.parent}/imported")
    said = command("check", tiny, "model.adapter={card: scaled, args: {strat: 2}}", env=env)
    assert said.code == 2
    assert "adapters 'scaled' takes no argument 'strat'" in said.err
    assert "did you mean 'start'?" in said.err
    assert not (tiny.parent / "imported").exists()


def test_a_plugin_trains(plugin, tiny):
    words = ["model.adapter={card: scaled, args: {start: 2.0}}", "stages.align.labels={source: toy-words, keep: 3}"]
    words += ["stages.align.reads=~", "stages.label=~", "stages.tune=~", "stages.score=~", "stages.report=~"]
    words += ["stages.align.steps=2"]
    said = command("run", tiny, *words, cwd=tiny.parent, env=environment(plugin))
    assert said.code == 0, said.err
    (folder,) = (tiny.parent / "runs").glob("train-*")
    about = json.loads((folder / "stage.json").read_text())
    assert about["what"]["cards"]["adapter"]["origin"] == "tiny-plugin 1.5"
    from safetensors.torch import load_file

    weights = load_file(folder / "weights" / "adapter.safetensors")
    assert set(weights) == {"scale", "linear.weight", "linear.bias"}
    assert weights["scale"].item() != 2.0


# Folders of cards in packages


@pytest.fixture
def bring(here, monkeypatch):
    """bring(entry point's value): an installed package of that folder of cards; importing it fails."""

    def bring(value: str, name: str = "card-bringer") -> None:
        package, about = here / "site" / "card_bringer", here / "site" / f"{name.replace('-', '_')}-2.1.dist-info"
        shelf(package / "cards", adapters="brought")
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.1\n")
        (about / "entry_points.txt").write_text(f"[mmalign.cards]\n{name} = {value}\n")
        monkeypatch.syspath_prepend(here / "site")
        installed.packages.cache_clear()

    yield bring
    installed.packages.cache_clear()


@pytest.mark.parametrize("value", ["card_bringer.cards", "card_bringer:cards"])
def test_a_package_brings_a_folder_of_cards(bring, here, mmalign, value):
    bring(value)
    card = Registry().card("adapters", "brought")
    assert (card.origin, card.args, card.facts) == ("card-bringer 2.1", {"depth": 1}, {"keeps_grid": True})
    assert card.path == f"{here}/site/card_bringer/cards/adapters/brought.yaml"
    rows = {row["name"]: row for row in json.loads(mmalign("list", "adapters", "--json").out)}
    assert rows["brought"] == {"name": "brought", "origin": "card-bringer 2.1", "summary": "a card of mine"}
    assert "card_bringer" not in sys.modules


def test_its_names_are_nobody_else_s(bring, here):
    bring("card_bringer.cards")
    with pytest.raises(CardError) as caught:
        Registry([str(shelf(here / "shelf", adapters="brought"))]).names("adapters")
    assert "two adapters parts are named 'brought'" in caught.value.what
    assert "card-bringer 2.1" in caught.value.what


@pytest.mark.parametrize("value", ["card_bringer.crads", "nowhere", "nowhere.cards", "card_bringer.__init__"])
def test_a_package_that_lacks_its_folder(bring, value):
    bring(value)
    with pytest.raises(CardError) as caught:
        Registry().names("adapters")
    assert caught.value.what == f"card-bringer 2.1 has no folder {value} of cards"
    assert caught.value.at == "entry point 'card-bringer' of card-bringer 2.1"
    assert "a folder with vision/, adapters/" in caught.value.fix
