"""Who may import whom: the layers of the library, read from its import statements, and what a quick verb loads."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmalign import compose, graph, task
from mmalign.cards import FAMILIES

from .conftest import TINY

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "torchvision", "transformers", "timm", "open_clip", "deepspeed"}

# Each line may import the lines above it, and its own.
LAYERS = [
    {"mmalign"},  # the version
    {"errors"},
    {"lines", "files", "source", "settings"},
    {"wordlist"},
    {"cards", "recipe"},
    {"compose", "graph", "refers", "check"},
    {"task", "estimate", "new"},
    {"run", "trained"},
    {"cli"},
]
MODELS = {"checkpoints", "importing", "nearest"}  # what the verbs about trained models open
PLAN_SIDE = set().union(*LAYERS)

# What a family may know of the others: their contracts, and these two that belong to one.
CONTRACTS = {*FAMILIES, "labels.store", "llms.chat"}

EVERYWHERE = {"mmalign", "errors", "files", "wordlist", "rgb", "wide", "pretrained"}
WORK_SIDE = {  # package or module: what it may import besides EVERYWHERE and itself
    **dict.fromkeys(FAMILIES, CONTRACTS),
    "rgb": set(),
    "wide": set(),
    "pretrained": set(),
    "toyworld": CONTRACTS,
    "model": CONTRACTS,
    "packed": CONTRACTS,
    "answering": CONTRACTS | {"packed"},
    "testing": CONTRACTS | {"model", "hub", "cards", "objectives.lm"},
    "small": {"cards"},
    "vllm": CONTRACTS | {"vision.picture"},
    "lmms": CONTRACTS | {"checkpoints", "packed"},
    "training": CONTRACTS | {"model", "recipe"},
    "worker": {"task"},
    # trained models from elsewhere, and to elsewhere: they know which kinds a foreign checkpoint is made of
    "hub": CONTRACTS | {"answering", "packed", "cards"},
    "nearest": CONTRACTS | {"model"},
    "importing": CONTRACTS | {"hub", "cards", "lines", "adapters.mlp", "llms.causal", "vision.hf"},
    "checkpoints": CONTRACTS | {"hub", "importing", "task", "recipe", "trained", "stages.build"},
}
TEXTS = "starts"  # files that `mmalign new` copies; no part of the library


def modules() -> Iterator[tuple[str, Path]]:
    """(name without `mmalign.`, file) of every module."""
    for folder, prefix in ((ROOT / "mmalign", ()), (ROOT / "cli", ("cli",))):
        for place in sorted(folder.rglob("*.py")):
            parts = [*prefix, *place.relative_to(folder).with_suffix("").parts]
            if parts[0] != TEXTS:
                yield ".".join(part for part in parts if part != "__init__") or "mmalign", place


MODULES = dict(modules())


def imports(name: str, tree: ast.AST | None = None) -> Iterator[tuple[str, int]]:
    """(imported module, line) of every import statement that runs, at the top or inside a function."""
    for node in ast.iter_child_nodes(tree or ast.parse(MODULES[name].read_bytes())):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                base = _absolute(name, node)
                inner = f"{base}.{alias.name}".removeprefix("mmalign.")
                yield (f"mmalign.{inner}" if base.startswith("mmalign") and inner in MODULES else base), node.lineno
        else:
            yield from imports(name, node)


def _absolute(name: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = ["mmalign", *name.split(".")] + ([""] if MODULES[name].name == "__init__.py" else [])
    return ".".join([*package[: len(package) - node.level], *([node.module] if node.module else [])])


def own(name: str) -> list[tuple[str, str]]:
    """(module of ours, file:line) that a module imports."""
    found = [(imported, f"{MODULES[name]}:{line}") for imported, line in imports(name)]
    return [(i.removeprefix("mmalign."), at) for i, at in found if i == "mmalign" or i.startswith("mmalign.")]


def test_the_walk_sees_all_ways_to_import():
    text = "import a.b\nfrom c import d\ndef f():\n  import e\n"
    text += "if TYPE_CHECKING:\n  import no\ntry:\n  import g\nexcept E: ..."
    assert [name for name, _ in imports("run", ast.parse(text))] == ["a.b", "c", "e", "g"]
    assert {name for name, _ in own("cli.show")} >= {"compose", "graph", "errors", "cli"}
    assert {name for name, _ in own("stages.train")} >= {"stages.build", "training.engine", "model"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in PLAN_SIDE])
def test_the_plan_side_imports_only_what_is_below_it(name):
    layer = next(number for number, line in enumerate(LAYERS) if name.split(".")[0] in line)
    allowed = set().union(*LAYERS[: layer + 1])
    for imported, at in own(name):
        if name.startswith("cli"):  # its verbs may open what they are about: a family, or a trained model
            assert imported.split(".")[0] in {*allowed, *FAMILIES, "rgb", *MODELS}, at
        else:
            assert imported in allowed, at


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in PLAN_SIDE])
def test_the_plan_side_never_imports_what_is_heavy(name):
    for imported, line in imports(name):
        assert imported.split(".")[0] not in HEAVY, f"{MODULES[name]}:{line}"


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in WORK_SIDE])
def test_families_know_each_others_contracts_and_no_more(name):
    package = name.split(".")[0]
    for imported, at in own(name):
        mine = imported == package or imported.startswith(f"{package}.")
        assert mine or imported in EVERYWHERE | WORK_SIDE[package], at


def test_only_stages_import_stages_and_only_the_command_line_itself():
    for name in MODULES:
        for imported, at in own(name):
            assert not imported.startswith("stages") or name.startswith("stages") or name == "checkpoints", at
            assert not imported.startswith("cli") or name.startswith("cli"), at


def test_every_module_stands_in_a_layer():
    known = PLAN_SIDE | WORK_SIDE.keys() | {"stages"}
    assert {name.split(".")[0] for name in MODULES} <= known


def test_data_folders_hold_no_code():
    for folder in ("recipes", "registry"):
        assert [place.name for place in (ROOT / folder).rglob("*.py")] == ["__init__.py"]


# What a quick verb loads, and how many modules

PROBE = """
import json, sys
from mmalign.cli import main
code = main(sys.argv[1:])
print(json.dumps({{"code": code or 0, "heavy": sorted({heavy!r} & set(sys.modules))}}), file=sys.stderr)
"""


def loads(*words: str) -> dict[str, object]:
    line = [sys.executable, "-c", PROBE.format(heavy=HEAVY), *words]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stderr
    return dict(json.loads(said.splitlines()[-1]))


@pytest.fixture
def finished(tiny: Path) -> Path:
    """Every stage of the tiny recipe, done as far as anybody who only looks can tell."""
    for node in graph.plan(compose.load(tiny), "runs"):
        task.save(node)
        task.finish(task.load(node.folder), {"metrics": {}}, 0, 1)
        (node.folder / "report.json").write_text('{"cells": []}')
    return tiny


@pytest.mark.parametrize(
    "words",
    [
        ["list"], ["list", "llms"], ["list", "recipes"], ["list", "stages"], ["show", "labels", "toy-words"],
        ["check", "tiny.yaml"], ["plan", "tiny.yaml"], ["plan", "quickstart"], ["run", "tiny.yaml"], ["report"],
        ["doctor"], ["--help"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_only_looks_loads_nothing_heavy(finished, words):
    assert loads(*words) == {"code": 0, "heavy": []}


def test_a_mistake_is_found_before_anything_heavy_is_loaded(tiny):
    tiny.write_text(TINY.replace("batch: 8", "bach: 8"))
    assert loads("run", "tiny.yaml") == {"code": 2, "heavy": []}
