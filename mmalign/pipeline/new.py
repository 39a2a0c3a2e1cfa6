"""A starting point in the user's own folder: a recipe, or a package with a part that mmalign finds."""

import os
import re
from importlib.resources import files as resources
from pathlib import Path

import jinja2

from mmalign.errors import RunError, suggest
from mmalign.io import files
from mmalign.plan.read import shipped

KINDS = {  # what can be started: the family it is a part of
    "recipe": "recipe",
    "vision": "vision",
    "adapter": "adapters",
    "llm": "llms",
    "labels": "labels",
    "objective": "objectives",
    "data": "data",
    "benchmark": "benchmarks",
}


def start(kind: str, name: str, folder: Path, base: str = "quickstart") -> list[Path]:
    """Write the files of a start; nothing that exists is touched. Returns what was written.

    kind: one of `KINDS`: a recipe, or a package with one part of a family and its test. base: the recipe a recipe
    extends.
    """
    if kind not in KINDS:
        raise RunError(f"nothing to start from for {kind!r}", fix=suggest(kind, KINDS))
    named(name)
    made = _recipe(name, folder, base) if kind == "recipe" else _package(KINDS[kind], name, folder / name)
    if taken := [place for place in made if place.exists()]:
        raise RunError(f"{taken[0]} is there already", at=str(taken[0]), fix="another name, or another DIR")
    for place, text in made.items():
        files.write(place, text)
    return list(made)


def named(name: str) -> None:
    """A RunError for what cannot be the name of something new."""
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise RunError(f"{name!r} cannot be a name here", fix="small letters, digits and -, such as my-adapter")


def _recipe(name: str, folder: Path, base: str) -> dict[Path, str]:
    if base not in shipped() and not Path(base).is_file():
        raise RunError(f"no recipe {base!r} to start from", fix=suggest(base, shipped()))
    place = folder / f"{name}.yaml"
    if base not in shipped():
        base = os.path.relpath(base, folder)  # `extends` counts from the recipe's own folder
    return {place: _filled("recipe.yaml", name=name, base=base, file=place.name)}


def _package(family: str, name: str, folder: Path) -> dict[Path, str]:
    module = name.replace("-", "_")
    words = {"name": name, "family": family, "module": module, "cls": "".join(w.title() for w in name.split("-"))}
    return {
        folder / "pyproject.toml": _filled("pyproject.toml", **words),
        folder / f"{module}.py": _filled(f"{family}.py", **words),
        folder / f"test_{module}.py": _filled(f"test_{family}.py", **words),
    }


def _filled(template: str, **words: str) -> str:
    text = resources("mmalign.pipeline").joinpath("starts", template).read_text(encoding="utf-8")
    return str(jinja2.Template(text, keep_trailing_newline=True).render(**words))
