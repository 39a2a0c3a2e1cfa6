"""The notebooks: executed from top to bottom as a reader would, in an empty folder; committed without outputs, and with
public names only."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import mmalign

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Every cell in one namespace; what a cell ends with is shown as a notebook would show it.
PLAYER = """
import ast, json, sys, traceback

def shown(value):
    draw = getattr(value, "_repr_html_", None)
    return draw() if draw else repr(value)

def execute(source, names):
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return None if last is None else shown(eval(compile(ast.Expression(last.value), "<cell>", "eval"), names))

names, outputs = {"__name__": "__main__"}, {}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"], 1):
    source = "".join(cell["source"])
    if cell["cell_type"] == "code":
        try:
            outputs[number] = execute(source, names)
        except BaseException:
            sys.exit(f"cell {number}:\\n{source}\\n\\n{traceback.format_exc()}")
json.dump(outputs, open(sys.argv[2], "w"))
"""


def cells(place: Path, kind: str = "code") -> list[str]:
    """The source of every cell of a kind."""
    return ["".join(c["source"]) for c in json.loads(place.read_text("utf-8"))["cells"] if c["cell_type"] == kind]


def play(place: Path, folder: Path) -> tuple[int, str, dict[str, Any]]:
    """(exit code, what was said, {cell number: what it showed}) of a notebook executed in a folder."""
    env = {key: value for key, value in os.environ.items() if key != "MMALIGN_REGISTRY"}
    done = subprocess.run(
        [sys.executable, "-c", PLAYER, str(place), "outputs.json"], cwd=folder, env=env, capture_output=True,
        text=True, check=False, timeout=600,
    )  # fmt: skip
    outputs = folder / "outputs.json"
    return done.returncode, done.stdout + done.stderr, json.loads(outputs.read_text()) if outputs.exists() else {}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all notebooks: what one has trained the next one finds, as a reader's would."""
    return tmp_path_factory.mktemp("desk")


@pytest.mark.slow
@pytest.mark.parametrize("place", NOTEBOOKS, ids=lambda place: place.stem)
def test_it_runs_from_top_to_bottom(place, desk):
    (desk / "outputs.json").unlink(missing_ok=True)
    code, said, outputs = play(place, desk)
    assert code == 0, said
    assert any('<section class="mmx"' in (shown or "") for shown in outputs.values())
    if place.stem == "words_of_visual_tokens":
        assert (desk / "words.html").read_text("utf-8").startswith("<!doctype html>")


def test_a_cell_that_fails_is_named_with_its_source(tmp_path):
    notebook = {"cells": [{"cell_type": "code", "source": ["a = 1\n", "a"]}, {"cell_type": "markdown", "source": []},
                          {"cell_type": "code", "source": ["assert a == 2"]}]}  # fmt: skip
    (tmp_path / "broken.ipynb").write_text(json.dumps(notebook))
    code, said, _ = play(tmp_path / "broken.ipynb", tmp_path)
    assert code == 1
    assert said.startswith("cell 3:\nassert a == 2\n")
    assert "AssertionError" in said


def test_what_a_cell_ends_with_is_shown(tmp_path):
    drawn = "class Drawn:\n    def _repr_html_(self):\n        return '<b>'\nDrawn()"
    sources = ["1 + 1", "a = 2", drawn]
    notebook = {"cells": [{"cell_type": "code", "source": [source]} for source in sources]}
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
    assert play(tmp_path / "a.ipynb", tmp_path)[2] == {"1": "2", "2": None, "3": "<b>"}


def test_both_are_there():
    assert [place.stem for place in NOTEBOOKS] == ["sea_and_basic_in_your_own_loop", "words_of_visual_tokens"]


@pytest.mark.parametrize("place", NOTEBOOKS, ids=lambda place: place.stem)
def test_it_is_committed_as_a_reader_gets_it(place):
    """No outputs, no counts, no metadata of somebody's editor, no path of somebody's machine; and written once."""
    text = place.read_text("utf-8")
    notebook = json.loads(text)
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    assert [cell["id"] for cell in notebook["cells"]] == [f"cell-{n:02}" for n in range(1, len(notebook["cells"]) + 1)]
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        assert cell["cell_type"] != "code" or (cell["outputs"], cell["execution_count"]) == ([], None)
    assert not re.search(r"(?<![\w:/])(/|~/|[A-Z]:\\)(home|Users|tmp|work|mnt|root|usr|\w+/\w+)", text)
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("place", NOTEBOOKS, ids=lambda place: place.stem)
def test_every_cell_of_code_is_introduced(place):
    kinds = [cell["cell_type"] for cell in json.loads(place.read_text("utf-8"))["cells"]]
    assert kinds[0] == "markdown"
    assert all(before == "markdown" for before, kind in pairwise(kinds) if kind == "code")


def imported(source: str) -> Iterator[str]:
    """module, or module.name, of every import."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def attributes(source: str, of: str) -> set[str]:
    """The names that are looked up in a variable."""
    tree = ast.walk(ast.parse(source))
    return {n.attr for n in tree if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == of}


@pytest.mark.parametrize("place", NOTEBOOKS, ids=lambda place: place.stem)
def test_it_uses_public_names_only(place):
    """What `mmalign` has, documented methods of its model, and the toy world's data; nothing that begins with `_`."""
    source = "\n".join(cells(place))
    names = set(imported(source))
    assert {name for name in names if name.split(".")[0] == "mmalign"} == {"mmalign", "mmalign.toyworld.data.Captions"}
    assert {name.split(".")[0] for name in names} <= {"mmalign", "torch"}
    assert attributes(source, "mmalign") - {"toyworld"} <= set(mmalign.__all__)
    assert not re.findall(r"\.(_\w+)", source)
    methods = {name: getattr(mmalign.VLM, name, None) for name in attributes(source, "model")}
    assert methods
    for name, method in methods.items():
        assert name in ("llm", "adapter", "eval", "train") or method.__doc__, name
