"""Files are data: no recipe, card, runs folder or exported model runs anything, reads the environment, or imports what
nobody here has installed as a part. Every attack would leave a marker file."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mmalign.errors import CardError, RecipeError
from mmalign.io import environment, files, yaml
from mmalign.pipeline import task, worker
from mmalign.plan import building, graph, installed, signatures, trust
from mmalign.plan import read as compose
from mmalign.plan.cards import FAMILIES, Card, ForeignCard, Registry
from tests.data.samples import images, jsonl, row

MARKER = "ran.txt"
LABEL = """\
name: trust
model: {vision: toy-clip, adapter: linear, llm: toy-llama}
stages:
  label: {kind: label, source: toy-words, data: DATA, keep: 3, shard: 16}
"""
# Parts of nobody's: importing their modules leaves the marker. They are classes of the right family.
HEAD = f"import pathlib\npathlib.Path({MARKER!r}).resolve().touch()\n"
PART = HEAD + (
    "from mmalign.adapters.mlp import MLP as Base\nfrom mmalign.toyworld.data import Captions\n"
    "class Part(Base): ...\nclass Rows(Captions): ...\nMade = type('Made', (Base,), {})\nAlias = Base\n"
    "def function(*given, **more): ...\n"
)
SHELL = {"cmd": f"touch {MARKER}"}
FUNCTIONS = ["subprocess.getoutput", "os.system", "builtins.exec", "transformers.pipeline", "posix.system", "os.popen"]
STRANGERS = ["stranger.Part", "stranger.parts.Part", "stranger.Made", "stranger.function", "stranger.Absent"]


@pytest.fixture
def marker(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The marker, which must not appear; `stranger`, a package on the path, leaves it when it is imported."""
    (here / "path" / "stranger").mkdir(parents=True)
    (here / "path" / "stranger" / "__init__.py").write_text(PART)
    (here / "path" / "stranger" / "parts.py").write_text(PART)
    monkeypatch.syspath_prepend(here / "path")
    monkeypatch.setenv("PYTHONPATH", str(here / "path"), prepend=":")
    for name in [name for name in sys.modules if name.partition(".")[0] == "stranger"]:
        monkeypatch.delitem(sys.modules, name)
    return here / MARKER


def refused(result, target: str, marker: Path) -> None:
    """Exit 2, the target named, and nothing run or imported."""
    assert result.code == 2, result
    assert target in result.err
    assert "Traceback" not in result.err
    assert not marker.exists()


def card(shelf: Path, family: str, name: str, target: str, args: object = None) -> Path:
    place = shelf / family / f"{name}.yaml"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(yaml.dump({"summary": "a card", "target": target, "args": args or {}}))
    return place


def export(folder: Path, target: str, args: object = None, role: str = "adapter") -> Path:
    """An exported folder as far as its cards; whatever is refused is refused before a weight is read."""
    toy = {"vision": ("vision", "toy-clip"), "adapter": ("adapters", "linear"), "llm": ("llms", "toy-llama")}
    named = {role: vars(Registry().card(*name)) for role, name in toy.items()}
    named[role] = {**named.get(role, named["vision"]), "target": target, "args": args or {}}
    folder.mkdir()
    files.write_json(folder / "mmalign.json", {"format": 1, "cards": named})
    return folder


def recipe(place: Path, data: object, more: str = "") -> Path:
    place.write_text(LABEL.replace("DATA", json.dumps(data)) + more)
    return place


def mixture(*members: object) -> dict[str, object]:
    return {"card": "mixture", "args": {"data": list(members)}}


# An exported folder


@pytest.mark.parametrize("target", [*FUNCTIONS, *STRANGERS])
@pytest.mark.parametrize("verb", ["eval", "inspect", "chat"])
def test_an_exported_folder_runs_nothing(marker, mmalign, verb, target):
    export(Path("out"), target, SHELL)
    words = {"eval": ["--bench", "toy-perplexity"], "inspect": ["a.png"], "chat": []}[verb]
    if verb == "inspect":
        from PIL import Image

        Image.new("RGB", (8, 8)).save("a.png")
    refused(mmalign(verb, "out", *words), target, marker)
    assert not list(Path().glob("runs/evaluate-*"))


@pytest.mark.parametrize("role", ["vision", "vision.encoder", "llm"])
def test_nor_does_any_other_part_of_it(marker, role):
    from mmalign.pipeline.load import load

    for number, target in enumerate(("subprocess.getoutput", "stranger.Part", "mmalign.io.files.write")):
        with pytest.raises(CardError, match=target):
            load(export(Path(f"out{number}"), target, SHELL, role))
    assert not marker.exists()


def test_a_repository_of_the_hub_is_an_exported_folder(marker, mmalign, monkeypatch):
    repository = Path("hub/models--org--toy").absolute()
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    export(repository / "snapshots" / ("0" * 40), "transformers.pipeline")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(repository.parent))
    refused(mmalign("eval", "org/toy", "--bench", "toy-perplexity"), "transformers.pipeline", marker)


def test_a_name_that_only_stands_for_one_of_ours_is_that_one(marker):
    """And the module that renames it is not imported."""
    from mmalign.adapters.mlp import MLP

    for target in ("stranger.Base", "stranger.Alias"):
        foreign = ForeignCard("", target, {"depth": 1}, name="alias", family="adapters")
        assert type(building.build(foreign, patch_dim=4, llm_dim=4, grid=(1, 1))) is MLP
    assert not marker.exists()


@pytest.mark.parametrize(
    "target", ["mmalign.plan.building.build", "mmalign.pipeline.load.load", "mmalign.vlm.model.VLM"]
)
def test_what_is_mmalign_s_but_no_part_is_refused(target):
    with pytest.raises(CardError, match="is no class of mmalign.adapters.Adapter"):
        building.build(ForeignCard("", target, family="adapters"))


def test_a_card_of_no_family_is_refused_where_it_travels():
    for family in ("", "checkpoints", "pipeline"):
        with pytest.raises(CardError) as caught:
            building.build(ForeignCard("", "subprocess.getoutput", SHELL, name="odd", family=family, path="stage.yaml"))
        assert caught.value.what == "'odd' is subprocess.getoutput, a part of no family"


# Recipes


NESTED = [
    lambda member: mixture(member),
    lambda member: mixture("toy-chat", member),
    lambda member: mixture({"card": "mixture", "args": {"data": [mixture(member)]}}),
    lambda member: mixture({"target": "mmalign.data.mixture.Mixture", "args": {"data": [member, "toy-chat"]}}),
    lambda member: mixture({"target": "stranger.Mixed", "args": {"data": [member]}}),
]


@pytest.mark.parametrize("target", [*FUNCTIONS, *STRANGERS])
@pytest.mark.parametrize("verb", ["check", "plan", "run"])
def test_a_member_of_a_mixture_runs_nothing(marker, mmalign, verb, target):
    recipe(Path("r.yaml"), mixture({"target": target, "args": SHELL}))
    refused(mmalign(verb, "r.yaml"), target, marker)
    assert not list(Path().glob("runs/label-*"))


@pytest.mark.parametrize("nest", NESTED)
def test_at_no_depth(marker, mmalign, nest):
    (Path("path") / "stranger" / "__init__.py").write_text(PART + "from mmalign.data.mixture import Mixture as Mixed\n")
    recipe(Path("r.yaml"), nest({"target": "subprocess.getoutput", "args": SHELL}))
    refused(mmalign("check", "r.yaml"), "subprocess.getoutput", marker)


def test_a_member_that_says_it_twice(marker, mmalign):
    recipe(Path("r.yaml"), mixture({"card": "toy-chat", "target": "os.system", "args": {}}))
    refused(mmalign("check", "r.yaml"), "no 'target'", marker)
    recipe(Path("r.yaml"), mixture({"target": "mmalign.toyworld.data.Captions", "args": "x"}))
    refused(mmalign("check", "r.yaml"), "`args` of a member must be a mapping, got 'x'", marker)


def test_data_that_is_looked_at_alone(marker, mmalign):
    for verb in ("check", "show"):
        member = json.dumps([{"target": "subprocess.getoutput", "args": SHELL}])
        refused(mmalign("data", verb, "mixture", f"data={member}"), "subprocess.getoutput", marker)


@pytest.mark.parametrize(
    "target", [*FUNCTIONS, "stranger.function", "stranger.Made", "stranger.Absent", "stranger.x.Y"]
)
def test_a_shelf_beside_a_recipe_names_classes_of_the_family_and_nothing_else(marker, mmalign, target):
    card(Path("shelf"), "data", "mine", target, SHELL)
    recipe(Path("r.yaml"), "mine", "registry: [./shelf]\n")
    for verb in ("check", "plan", "run"):
        refused(mmalign(verb, "r.yaml"), target, marker)
    Path("linked").symlink_to(Path("shelf").absolute())
    recipe(Path("r.yaml"), mixture("mine"), "registry: [./linked]\n")
    refused(mmalign("check", "r.yaml"), target, marker)
    outside = card(Path("elsewhere"), "data", "other", target, SHELL)
    Path("shelf/data/linked.yaml").symlink_to(outside.absolute())
    recipe(Path("r.yaml"), "linked", "registry: [./shelf]\n")
    refused(mmalign("check", "r.yaml"), target, marker)


def test_a_class_of_another_family_is_refused(marker, mmalign):
    card(Path("shelf"), "data", "mine", "mmalign.adapters.mlp.MLP")
    recipe(Path("r.yaml"), "mine", "registry: [./shelf]\n")
    result = mmalign("check", "r.yaml")
    refused(result, "data 'mine': mmalign.adapters.mlp.MLP is no class of mmalign.data.Data", marker)
    assert "shelf/data/mine.yaml  target" in result.err
    assert "try  a data part subclasses Data" in result.err


def test_own_shelves_are_held_to_their_family_too(marker, mmalign, monkeypatch):
    monkeypatch.setenv("MMALIGN_REGISTRY", "shelf")
    for target in (*FUNCTIONS, "stranger.function", "mmalign.adapters.mlp.MLP"):
        card(Path("shelf"), "data", "mine", target, SHELL)
        for data in ("mine", mixture("mine")):
            recipe(Path("r.yaml"), data)
            refused(mmalign("check", "r.yaml"), target, marker)
        with pytest.raises(CardError, match=target):
            building.build(Registry().card("data", "mine"))
    assert not marker.exists()


def test_a_function_that_no_text_tells_is_not_called(marker, monkeypatch):
    """A package's own entry: imported, as its owner installed it, and looked at before it is called."""
    monkeypatch.setenv("MMALIGN_REGISTRY", "shelf")
    Path("path/dynamic.py").write_text(f"import pathlib\nmake = (lambda: lambda: pathlib.Path({MARKER!r}).touch())()\n")
    card(Path("shelf"), "data", "mine", "dynamic.make")
    with pytest.raises(CardError, match=r"dynamic\.make is no class of mmalign\.data\.Data"):
        building.build(Registry().card("data", "mine"))
    assert not marker.exists()


def test_a_text_that_lies_is_found_out_before_the_call(marker, monkeypatch):
    monkeypatch.setenv("MMALIGN_REGISTRY", "shelf")
    text = (
        f"import os\nfrom mmalign.data import Data\nclass Rows(Data): ...\nRows = lambda: os.system('touch {MARKER}')\n"
    )
    Path("path/lying.py").write_text(text)
    card(Path("shelf"), "data", "mine", "lying.Rows")
    assert trust.of_family("lying.Rows", "data")
    with pytest.raises(CardError, match=r"lying\.Rows is no class of mmalign\.data\.Data"):
        building.build(Registry().card("data", "mine"))
    assert not marker.exists()


def test_paths_into_packages_import_nothing(marker, mmalign):
    for spec in ("pkg:stranger.parts/x.jsonl", "pkg:stranger/x.jsonl", "pkg:stranger.sub.deep/x.jsonl"):
        recipe(Path("r.yaml"), {"card": "conversations", "args": {"path": spec}})
        refused(mmalign("check", "r.yaml"), f"{spec} does not exist", marker)
    Path("path/stranger/words.txt").write_text("red\n")
    assert files.local("pkg:stranger/words.txt").read_text() == "red\n"
    assert files.local("pkg:stranger.parts/x") == Path("pkg:stranger.parts/x")  # a module has no files
    (Path("path") / "stranger" / "bare").mkdir()
    (Path("path") / "stranger" / "bare" / "words.txt").write_text("blue\n")
    assert files.local("pkg:stranger.bare/words.txt").read_text() == "blue\n"
    assert not marker.exists()


# Entry points


@pytest.fixture
def install(here, marker):
    """install(group, value): a package that brings that entry point `brought`."""

    def install(group: str, value: str) -> None:
        about = here / "path" / "liar-1.0.dist-info"
        about.mkdir(exist_ok=True)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: liar\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[{group}]\nbrought = {value}\n")
        installed.packages.cache_clear()

    yield install
    installed.packages.cache_clear()


@pytest.mark.parametrize(
    "value", ["subprocess:getoutput", "os:system", "stranger:function", "mmalign.vision.hf:HFVision"]
)
def test_an_entry_point_that_lies_about_its_family(install, marker, mmalign, value):
    install("mmalign.data", value)
    target = value.replace(":", ".")
    for data in ("brought", mixture("brought")):
        recipe(Path("r.yaml"), data)
        refused(mmalign("check", "r.yaml"), f"{target} is no class of mmalign.data.Data", marker)
    with pytest.raises(CardError, match="is no class of mmalign.data.Data"):
        building.build(Registry().card("data", "brought"))
    assert not marker.exists()


def test_what_is_installed_is_known(install, marker):
    """In files that travel its class loads without a flag, under its own name and one that stands for it."""
    (Path("path") / "again.py").write_text(HEAD + "from stranger.parts import Part\n")
    install("mmalign.adapters", "stranger.parts:Part")
    foreign = ForeignCard("", "again.Part", {"depth": 1}, name="x", family="adapters")
    assert Registry().adopted(foreign).target == "stranger.parts.Part"
    assert Registry().adopted(replace(foreign, target="stranger.parts.Part")).target == "stranger.parts.Part"
    with pytest.raises(CardError):  # known as an adapter, and as nothing else
        Registry().adopted(replace(foreign, family="data"))
    assert not marker.exists()
    built = building.build(foreign, patch_dim=4, llm_dim=4, grid=(1, 1))
    assert type(built).__module__ == "stranger.parts"
    assert "again" not in sys.modules


def test_a_shelf_of_the_user_s_own_is_known(marker, monkeypatch):
    foreign = ForeignCard("", "stranger.Part", {"depth": 1}, name="x", family="adapters")
    with pytest.raises(CardError) as caught:
        Registry().adopted(foreign)
    assert caught.value.what == "adapters 'x' is stranger.Part, code that no card or package here names"
    assert caught.value.fix == "if you trust it: --allow-code, or its card in a folder of MMALIGN_REGISTRY"
    card(Path("shelf"), "adapters", "mine", "stranger.Part")
    monkeypatch.setenv("MMALIGN_REGISTRY", "shelf")
    assert Registry().adopted(foreign).target == "stranger.Part"


# Runs folders


def label_stage(data: object = None, registry: str = "") -> Path:
    """The folder of a label stage that was run here, on eight images."""
    recipe(Path("r.yaml"), data or {"card": "toy-captions", "args": {"size": 8}}, registry)
    (node,) = graph.plan(compose.load("r.yaml"), "runs")
    worker.run(node.folder, 0, task.save(node))
    return node.folder


def edited(folder: Path, role: str, target: str, args: object = None) -> None:
    about = yaml.read(folder / "stage.yaml", CardError).raw
    about["cards"][role] |= {"target": target, "args": SHELL if args is None else args}
    (folder / "stage.yaml").write_text(yaml.dump(about))


@pytest.mark.parametrize("target", [*FUNCTIONS, *STRANGERS])
def test_an_edited_stage_runs_nothing_where_its_labels_are_shown(marker, mmalign, target):
    folder = label_stage()
    assert mmalign("labels", "show", folder).code == 0
    edited(folder, "data", target)
    refused(mmalign("labels", "show", folder), target, marker)
    edited(folder, "data", "mmalign.data.mixture.Mixture", {"data": [{"target": target, "args": SHELL}]})
    refused(mmalign("labels", "show", folder), target, marker)
    with pytest.raises(CardError, match=target):
        worker.run(folder, 0)
    assert not marker.exists()


@pytest.fixture
def trained(marker) -> Path:
    """The folder of a training stage that looks finished."""
    from tests.cli.conftest import finished
    from tests.conftest import TINY

    Path("tiny.yaml").write_text(TINY)
    return finished(Path("runs"), Path("tiny.yaml"))


@pytest.mark.parametrize("target", ["subprocess.getoutput", "transformers.pipeline", "stranger.Part", "stranger.Made"])
def test_an_edited_training_stage_runs_nothing(trained, marker, mmalign, target):
    edited(trained, "adapter", target)
    refused(mmalign("eval", trained, "--bench", "toy-perplexity"), target, marker)
    refused(mmalign("export", trained, "out"), target, marker)
    refused(mmalign("chat", trained), target, marker)
    assert sorted(place.name for place in Path("runs").iterdir() if place.is_dir()) == [trained.name]


def test_an_edited_evaluation_runs_nothing_where_it_is_compared(trained, marker, mmalign):
    assert mmalign("eval", trained, "--bench", "toy-pope").code == 0
    (folder,) = Path("runs").glob("evaluate-*")
    assert mmalign("compare", folder, folder).code == 0
    for target in ("subprocess.getoutput", "transformers.pipeline", "stranger.Part", "stranger.function"):
        edited(folder, "bench.toy-pope", target)
        refused(mmalign("compare", folder, folder), target, marker)
    edited(folder, "bench.toy-pope", "nowhere.Bench")  # what is not installed here is only not shown
    result = mmalign("compare", folder, folder)
    assert (result.code, "its questions cannot be shown: " in result.err) == (0, True)


def test_a_stage_that_goes_on_is_written_anew(marker, mmalign):
    """`run` overwrites the stage.yaml it finds with what the recipe says, and the worker knows it by its hash."""
    recipe(Path("r.yaml"), {"card": "toy-captions", "args": {"size": 8}})
    (node,) = graph.plan(compose.load("r.yaml"), "runs")
    task.save(node)
    edited(node.folder, "data", "subprocess.getoutput")
    assert mmalign("run", "r.yaml").code == 0
    assert not marker.exists()


def test_a_recipe_s_own_shelf_trains_without_a_flag(marker, mmalign):
    """Its class is one of the family; whoever is sent the folder and has not got the shelf is asked."""
    card(Path("shelf"), "data", "mine", "stranger.parts.Rows", {"size": 8})
    recipe(Path("r.yaml"), "mine", "registry: [./shelf]\n")
    result = mmalign("run", "r.yaml")
    assert result.code == 0, result.err
    assert marker.exists()  # in the worker, which builds it
    marker.unlink()
    (folder,) = Path("runs").glob("label-*")
    refused(mmalign("labels", "show", folder), "stranger.parts.Rows", marker)


# With the permission


def test_allow_code_imports_and_says_what(marker, mmalign, caplog, monkeypatch):
    card(Path("shelf"), "data", "mine", "stranger.Rows", {"size": 8})
    folder = label_stage("mine", "registry: [./shelf]\n")
    refused_without = mmalign("labels", "show", folder)
    assert refused_without.code == 2
    assert "--allow-code" in refused_without.err
    caplog.clear()
    result = mmalign("labels", "show", folder, "--allow-code")
    assert result.code == 0, result.err
    assert [(one.levelno, one.getMessage()) for one in caplog.records if "stranger" in one.getMessage()] == [
        (logging.WARNING, "--allow-code: data 'mine' imports stranger.Rows, which no card or package here names")
    ]
    assert mmalign("labels", "show", folder).code == 2  # it holds for one command
    monkeypatch.setenv("MMALIGN_ALLOW_CODE", "1")
    assert mmalign("labels", "show", folder).code == 0
    assert os.environ["MMALIGN_ALLOW_CODE"] == "1"
    for no in ("0", "", "no"):
        monkeypatch.setenv("MMALIGN_ALLOW_CODE", no)
        assert mmalign("labels", "show", folder).code == 2


def test_the_warning_is_seen_on_a_command_line(marker):
    recipe(Path("r.yaml"), mixture({"target": "stranger.Rows", "args": {"size": 3}}))
    words = [sys.executable, "-c", "from mmalign.cli import entry; entry()", "check", "r.yaml", "--allow-code"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--allow-code: data 'a member' imports stranger.Rows" in result.stderr
    assert not marker.exists()  # `check` imports nothing even then


@pytest.mark.parametrize("target", [*FUNCTIONS, "stranger.function"])
def test_no_permission_makes_a_function_a_part(marker, mmalign, target):
    recipe(Path("r.yaml"), mixture({"target": target, "args": SHELL}))
    refused(mmalign("check", "r.yaml", "--allow-code"), f"{target} is no class of mmalign.data.Data", marker)


def test_what_is_made_in_python_is_the_user_s_own(marker):
    card = Card("", "stranger.Part", {"depth": 1}, family="adapters")
    building.build(card, patch_dim=4, llm_dim=4, grid=(1, 1))
    assert marker.exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_shipped_card_is_a_class_of_its_family_by_its_text(family):
    for card in Registry().every(family):
        assert trust.of_family(card.target, family) is True, card.path
        assert trust.ours(card.target, family)


# Which class a text says it is


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("from mmalign.data import Data\nclass A(Data): ...", True),
        ("import mmalign.data\nclass A(mmalign.data.Data): ...", True),
        ("from mmalign import data as d\nclass A(d.Data): ...", True),
        ("from mmalign.data.rows import Rows\nclass B(Rows): ...\nclass A(B): ...", True),
        ("from mmalign.data import Data\nclass B(Data): ...\nA = B", True),
        ("from mmalign.data import Data\nfrom torch import nn\nclass A(nn.Module, Data): ...", True),
        ("from somewhere import Mixin\nfrom mmalign.data import Data\nclass A(Mixin, Data): ...", True),
        ("class Data: ...\nclass A(Data): ...", False),
        ("class A: ...", False),
        ("def A(): ...", False),
        ("from subprocess import getoutput as A", False),
        ("from somewhere import B\nclass A(B): ...", None),
        ("class A(make()): ...", None),
        ("A = make()", None),
        ("import os as A", None),
        ("def __getattr__(name): ...", None),
        ("from .read_me import A", None),
        ("A = A", None),
    ],
)
def test_descent_is_read_from_the_text(here, monkeypatch, text, told):
    (here / "descent").mkdir()
    (here / "descent" / "__init__.py").write_text("raise RuntimeError('imported')")
    (here / "descent" / "read_me.py").write_text(text)
    monkeypatch.syspath_prepend(here)
    assert signatures.descends("descent.read_me.A", {"mmalign.data.Data"}) is told


# The environment


@pytest.mark.parametrize(
    "asked",
    [
        "${oc.env:MY_SECRET}", "${oc.env:MY_SECRET,none}", "${oc.env:'MY_SECRET'}", "${ oc.env : MY_SECRET }",
        "x-${oc.env:MY_SECRET}", "${oc.decode:${oc.env:MY_SECRET}}", "${oc.env:${name}}", "${oc.${name}:MY_SECRET}",
        "${oc.env:MMALIGN_NOT,${oc.env:MY_SECRET}}", "${stages.${oc.env:MY_SECRET}}", "${oc.create:{a: 1}}",
        "${oc.select:name}", "${oc.dict.keys:stages}", "${oc.deprecated:name}", "${mine:x}", "${env:MY_SECRET}",
    ],
)  # fmt: skip
def test_a_recipe_asks_for_nothing_else(here, mmalign, monkeypatch, asked):
    monkeypatch.setenv("MY_SECRET", "hunter2")
    OmegaConf.register_new_resolver("mine", lambda x: (here / MARKER).touch(), replace=True)
    try:
        for data in ({"card": "conversations", "args": {"path": f"http://localhost:9/{asked}"}}, mixture(asked)):
            recipe(Path("r.yaml"), data)
            for words in (["check", "r.yaml"], ["plan", "r.yaml"], ["run", "r.yaml"]):
                result = mmalign(*words)
                refused(result, "of the environment MMALIGN_* alone", here / MARKER)
                assert "hunter2" not in result.out + result.err
                assert "r.yaml:4" in result.err
        recipe(Path("r.yaml"), "toy-captions")
        result = mmalign("check", "r.yaml", f"name={json.dumps(asked)}")
        refused(result, "of the environment MMALIGN_* alone", here / MARKER)
        assert OmegaConf.has_resolver("mine")  # whoever has registered it, has it still
        assert OmegaConf.has_resolver("oc.decode")
    finally:
        OmegaConf.clear_resolver("mine")


def test_what_a_recipe_may_ask_for(here, monkeypatch):
    monkeypatch.setenv("MMALIGN_SIZE", "12")
    monkeypatch.setenv("MMALIGN_SPLIT", "eval")
    data = {"card": "toy-captions", "args": {"size": 8, "split": "${oc.env:MMALIGN_SPLIT}"}}
    recipe(Path("r.yaml"), data, "seed: ${oc.env:MMALIGN_SIZE}\n")
    (read,) = compose.load("r.yaml", ["stages.label.keep=${seed}", "stages.label.shard=${oc.env:MMALIGN_NONE,7}"])
    stage = read.stages["label"]
    assert (read.seed, stage.keep, stage.shard) == (12, 12, 7)
    assert stage.data.args["split"] == "${oc.env:MMALIGN_SPLIT}"  # until it is used
    assert building.build(replace(Registry().card("data", "toy-captions"), args=stage.data.args)).scenes.split == "eval"
    with pytest.raises(RecipeError, match="MMALIGN_NONE is not set"):
        compose.load("r.yaml", ["seed=${oc.env:MMALIGN_NONE}"])
    with pytest.raises(RecipeError, match="MMALIGN_NONE is not set"):
        compose.load("r.yaml", ["stages.label.data.args.split=${oc.env:MMALIGN_NONE}"])


def test_nothing_of_the_environment_is_written(here, mmalign, monkeypatch):
    """Not by a stage that works, nor by one that fails and says with what; its value counts all the same."""
    (here / "hunter2").mkdir()
    jsonl(here / "hunter2" / "x.jsonl", [row("a", "0.jpg"), row("b", "1.jpg")])
    images(here / "hunter2", 2)
    monkeypatch.setenv("MMALIGN_WHERE", "hunter2")
    args = {"path": f"{here}/${{oc.env:MMALIGN_WHERE}}/x.jsonl", "images": f"{here}/${{oc.env:MMALIGN_WHERE}}"}
    recipe(Path("r.yaml"), {"card": "conversations", "args": args})
    assert mmalign("check", "r.yaml").code == 0
    result = mmalign("run", "r.yaml")
    assert result.code == 0, result.err
    (folder,) = Path("runs").glob("label-*")
    assert mmalign("labels", "show", folder).code == 0
    again = mmalign("plan", "r.yaml", "--json")
    assert json.loads(again.out)["stages"][0]["state"] == "done"
    (here / "hunter2").rename(here / "hunter3")
    monkeypatch.setenv("MMALIGN_WHERE", "hunter3")
    assert json.loads(mmalign("plan", "r.yaml", "--json").out)["stages"][0]["state"] == "not run yet"
    (here / "hunter3" / "0.jpg").unlink()
    (here / "hunter3" / "1.jpg").unlink()
    result = mmalign("run", "r.yaml")
    assert result.code == 2  # the data is at fault
    written = [place for place in here.glob("runs/**/*") if place.is_file() and place.name != ".hashes.json"]
    assert {"stage.yaml", "stage.json", "log.txt", "error.json", "events.jsonl"} <= {place.name for place in written}
    for place in written:
        assert b"hunter" not in place.read_bytes(), place


def test_what_is_resolved_is_not_resolved_again(here, monkeypatch):
    """An escaped `${` is text after the first time, and text in a stage.yaml."""
    monkeypatch.setenv("MY_SECRET", "hunter2")
    monkeypatch.setenv("MMALIGN_ASKS", "${oc.env:MY_SECRET}")
    for asked in (r"\${oc.env:MY_SECRET}", "${oc.env:MMALIGN_ASKS}"):
        recipe(
            Path("r.yaml"),
            {"card": "toy-captions", "args": {"split": asked}},
            f"name: '{asked}'\n".replace("name", "x"),
        )
        recipe(Path("r.yaml"), {"card": "toy-captions", "args": {"split": asked}})
        (read,) = compose.load("r.yaml")
        split = read.stages["label"].data.args["split"]
        assert environment.expanded(split) == "${oc.env:MY_SECRET}"
        (node,) = graph.plan([read], "runs")
        task.save(node)
        about = (node.folder / "stage.yaml").read_text()
        assert "hunter2" not in about
        again = task.load(node.folder)
        assert again.stage.data.args["split"] == again.cards["data"].args["split"] == split


def test_a_log_and_an_error_have_the_name_and_not_the_value(here, monkeypatch, caplog):
    monkeypatch.setattr(worker, "SECRETS", {"${oc.env:MMALIGN_KEY}": "hunter2", "${oc.env:MMALIGN_N}": "7"})
    handler = logging.FileHandler(here / "log.txt")
    handler.setFormatter(worker._Lines())
    logging.getLogger().addHandler(handler)
    try:
        worker._fail(here, CardError("cannot open s3://hunter2@7", at="hunter2", fix="not hunter2"))
        logging.warning("read %s", "s3://hunter2")
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    for name in ("log.txt", "error.json"):
        text = (here / name).read_text()
        assert "cannot open s3://${oc.env:MMALIGN_KEY}@7" in text
        assert "hunter2" not in text


def test_an_error_that_nothing_catches_is_logged_without_the_value(here):
    """In the main thread and in another one: by Python itself it would be printed as it is."""
    script = """
import threading
from mmalign.pipeline import worker
worker._log(20)
worker.SECRETS["${oc.env:MMALIGN_KEY}"] = "hunter2"
def fall(): raise ValueError("no bucket s3://hunter2\\x1b[31m")
one = threading.Thread(target=fall)
one.start()
one.join()
fall()
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.count("ValueError: no bucket s3://${oc.env:MMALIGN_KEY}\\u001b[31m") == 2
    assert ran.stderr.count("Traceback") == 2
    assert "hunter2" not in ran.stderr.replace('"hunter2"', "")  # the script's own line


def test_the_worker_s_log_is_one_of_these(here, monkeypatch):
    """Whatever its stage says on the way."""
    monkeypatch.setattr(sys, "argv", ["worker", str(here)])
    monkeypatch.setattr(worker, "_die_with_parent", lambda: None)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert worker.main() == 2  # there is no stage.yaml
    assert [type(handler.formatter) for handler in logging.getLogger().handlers] == [worker._Lines]


# Modules that lie beside a recipe


def test_a_module_beside_a_recipe_is_not_imported(marker):
    """By `mmalign`, whose path has no working folder, nor by the processes it starts with `python -m`."""
    for name in ("random", "torch", "mmalign", "yaml", "omegaconf"):
        Path(f"{name}.py").write_text(HEAD)
    recipe(Path("r.yaml"), {"card": "toy-captions", "args": {"size": 8}})
    words = [sys.executable, "-P", "-c", "from mmalign.cli import entry; entry()", "run", "r.yaml"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not marker.exists()
