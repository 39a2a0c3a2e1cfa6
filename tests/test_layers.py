"""Who may import whom: the layers of the library, read from its import statements, and what a quick verb loads."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from mmalign.pipeline import task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.plan.cards import FAMILIES

from .conftest import TINY

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "torchvision", "transformers", "timm", "open_clip", "deepspeed"}

# What each folder may import besides itself. `family` stands for the contracts of the families.
FAMILY = {"errors", "io", "family"}
LAYERS: dict[str, set[str]] = {
    "mmalign": set(),  # the version, and the front door's names, each imported when first used
    "errors": {"io"},  # how its text may be shown
    "io": {"errors"},
    "explore": {"errors", "io"},  # pages of words on patches
    "plan": {"mmalign", "errors", "io"},
    **dict.fromkeys(FAMILIES, FAMILY),
    "vlm": {"errors", "io", "family", "plan", "explore"},
    "training": {"errors", "io", "family", "plan", "vlm"},
    "toyworld": {"errors", "io", "family"},
    "testing": {"errors", "io", "family", "plan", "vlm"},
    "pipeline": {"mmalign", "errors", "io", "plan", "family", "vlm", "integrations"},
    "integrations": {"errors", "io", "family", "plan", "vlm", "pipeline"},
    "stages": {"errors", "io", "family", "plan", "vlm", "training", "integrations", "pipeline", "explore"},
    "cli": {"mmalign", "errors", "io", "plan", "pipeline", "family", "vlm", "integrations", "explore"},
}
# What others may know of a family beside its contract: its formats (label store, chat template, GGUF, frames, upright
# pictures), why a row cannot be used, what a model makes of one, how an LLM decodes, products over a vocabulary.
CONTRACTS = {
    *FAMILIES, "data.reasons", "labels.store", "llms.chat", "llms.decoding", "llms.formats", "llms.gguf",
    "llms.rendered", "llms.rendering", "llms.rows", "llms.vocabulary", "vision.frame", "vision.picture",
}  # fmt: skip
# Kinds that others name: what a LLaVA checkpoint is made of, and the loss that every model has.
KINDS = {
    "integrations": {
        "adapters.mlp", "llms.attending", "llms.causal", "llms.head", "llms.plain", "llms.vocabulary", "llms.watch",
        "vision.hf", "vision.processor",
    },
    "testing": {"objectives.lm"},
}  # fmt: skip
QUICK = {"errors", "io", "plan"}  # never import what is heavy, and of the pipeline all but these
HEAVY_PIPELINE = {"pipeline.build", "pipeline.load", "pipeline.sampler", "pipeline.worker"}
TEXTS = "starts"  # files that `mmalign new` copies; no part of the library


def modules() -> Iterator[tuple[str, Path]]:
    """(name without `mmalign.`, file) of every module."""
    for folder, prefix in ((ROOT / "mmalign", ()), (ROOT / "cli", ("cli",))):
        for place in sorted(folder.rglob("*.py")):
            parts = [*prefix, *place.relative_to(folder).with_suffix("").parts]
            if TEXTS not in parts:
                yield ".".join(part for part in parts if part != "__init__") or "mmalign", place


MODULES = dict(modules())


def imports(name: str, tree: ast.AST | None = None, inside: bool = True) -> Iterator[tuple[str, int]]:
    """(imported module, line) of every import statement that runs, at the top or, with `inside`, in a function."""
    for node in ast.iter_child_nodes(tree or ast.parse(MODULES[name].read_bytes())):
        if isinstance(node, ast.FunctionDef) and not inside:
            continue
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
            yield from imports(name, node, inside)


def _absolute(name: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = ["mmalign", *name.split(".")] + ([""] if MODULES[name].name == "__init__.py" else [])
    return ".".join([*package[: len(package) - node.level], *([node.module] if node.module else [])])


def own(name: str, inside: bool = True) -> list[tuple[str, str]]:
    """(module of ours, file:line) that a module imports."""
    found = [(imported, f"{MODULES[name]}:{line}") for imported, line in imports(name, inside=inside)]
    return [(i.removeprefix("mmalign."), at) for i, at in found if i == "mmalign" or i.startswith("mmalign.")]


def test_the_walk_sees_all_ways_to_import():
    text = "import a.b\nfrom c import d\ndef f():\n  import e\n"
    text += "if TYPE_CHECKING:\n  import no\ntry:\n  import g\nexcept E: ..."
    assert [name for name, _ in imports("plan.graph", ast.parse(text))] == ["a.b", "c", "e", "g"]
    assert {name for name, _ in own("cli.show")} >= {"pipeline.recipes", "plan.graph", "errors", "cli"}
    assert {name for name, _ in own("stages.train")} >= {"pipeline.build", "training.engine", "vlm.model"}


def room(name: str) -> str:
    """The folder of a module, or the module itself at the top."""
    return name.split(".")[0]


def allowed(imported: str, name: str) -> bool:
    """Whether a module may import another of ours."""
    if room(imported) == room(name) or room(imported) in LAYERS[room(name)]:
        return True
    if room(imported) in FAMILIES and "family" in LAYERS[room(name)]:
        free = room(name) in ("stages", "cli")  # the work itself, and verbs about one family
        return free or imported in CONTRACTS | KINDS.get(room(name), set())
    return False


@pytest.mark.parametrize("name", MODULES)
def test_a_folder_imports_only_what_is_below_it(name):
    for imported, at in own(name):
        assert allowed(imported, name), f"{at} imports {imported}"


@pytest.mark.parametrize("name", [n for n in MODULES if room(n) in QUICK or n.startswith(("pipeline", "cli"))])
def test_what_only_looks_never_imports_what_is_heavy(name):
    if name not in HEAVY_PIPELINE:
        for imported, line in imports(name):
            assert imported.split(".")[0] not in HEAVY, f"{MODULES[name]}:{line}"


def test_only_the_worker_opens_stages_and_only_the_command_line_itself():
    assert 'import_module(f"mmalign.stages.' in MODULES["pipeline.worker"].read_text()
    for name in MODULES:
        for imported, at in own(name):
            assert not imported.startswith("stages") or name.startswith("stages"), at
            assert not imported.startswith("cli") or name.startswith("cli"), at


def test_every_module_stands_in_a_layer():
    assert {room(name) for name in MODULES} <= LAYERS.keys()


def test_no_modules_import_each_other_in_a_circle():
    """Statements at the top of modules; inside functions they wait until both are there."""
    edges = {name: {i for i, _ in own(name, inside=False) if i in MODULES and i != name} for name in MODULES}
    tuple(TopologicalSorter(edges).static_order())  # CycleError names the circle


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
        (node.folder / "log.txt").touch()
        (node.folder / "report.json").write_text('{"cells": []}')
    return tiny


@pytest.mark.parametrize(
    "words",
    [
        ["list"], ["list", "llms"], ["list", "recipes"], ["list", "stages"], ["show", "labels", "toy-words"],
        ["check", "tiny.yaml"], ["plan", "tiny.yaml"], ["plan", "quickstart"], ["run", "tiny.yaml"], ["report"],
        ["doctor"], ["doctor", "runs"], ["status"], ["logs", "align"], ["--help"], ["--version"],
        ["show", "stages", "train"], ["show", "recipes"], ["schema", "-"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_only_looks_loads_nothing_heavy(finished, words):
    assert loads(*words) == {"code": 0, "heavy": []}


def test_a_mistake_is_found_before_anything_heavy_is_loaded(tiny):
    tiny.write_text(TINY.replace("batch: 8", "bach: 8"))
    assert loads("run", "tiny.yaml") == {"code": 2, "heavy": []}
