"""The reference of recipes: every setting with type, unit, default, meaning, and what the papers' recipes set."""

from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any

from mmalign.plan import meanings, read
from mmalign.plan.meanings import Setting
from mmalign.plan.recipe import KINDS, LabelSettings, ObjectiveSettings, Part, RecipeFile, Stage

from .tables import code, prose, said, table

PAPERS = {"SEA": "sea_llava_vicuna7b", "BASIC": "basic_vicuna7b"}
PLACES = {"SEA": "with SEA", "BASIC": "with BASIC"}
COLUMNS = ("setting", "type", "unit", "default", "meaning", "papers' recipes")
HEAD = """# {title}

{summary}

{note}
"""
NOTE = """Keys are dotted as on the command line: `{example}`. `NAME` stands for a name of your own or a card's. What a
card may stand in is written as its name, or as `{{card: NAME, args: {{...}}}}`. *Papers' recipes* is what
[`sea_llava_vicuna7b` and `basic_vicuna7b`](../baselines.md) set: stage, value. An empty default: there is none.
"""


def pages() -> dict[str, str]:
    """{path: Markdown} of the recipe and of each kind of stage."""
    made = {"reference/recipe.md": _page("A recipe", "What a recipe's YAML may say.", "name=mine", _recipe())}
    for kind, cls in KINDS.items():
        summary = said(cls.__doc__, f"the kind of stage {kind}")
        rows = [_row(one, _in_papers(kind, one.key)) for one in meanings.of_stage(cls)]
        text = _page(f"Stage: {kind}", summary, f"stages.NAME.{rows[-1][0].strip('`')}=VALUE", rows)
        made[f"reference/stages/{kind}.md"] = text.replace("](../", "](../../") + _slots(cls)
    return made


def _page(title: str, summary: str, example: str, rows: Sequence[Sequence[str]]) -> str:
    summary = "\n\n".join(prose(part) for part in summary.split("\n\n"))
    note = NOTE.format(example=example)
    return HEAD.format(title=title, summary=summary, note=note) + "\n" + table(COLUMNS, rows)


def _recipe() -> list[Sequence[str]]:
    return [_row(one, "") for one in meanings.of(RecipeFile)]


def _row(one: Setting, papers: str) -> Sequence[str]:
    meaning = prose(said(one.meaning, f"the setting {one.key}"))
    return code(one.key), prose(one.type), prose(one.unit), default(one), meaning, papers


def default(one: Setting) -> str:
    """The default as YAML has it; `needed` of what has none."""
    if one.needed:
        return "*needed*"
    return "" if one.default in (None, "", [], {}) else code(plain(one.default))


def plain(value: Any) -> str:
    """A value as a recipe would have it: a card's name, a list, true or false."""
    if isinstance(value, Part):
        return value.card if not value.args else f"{value.card} {plain(value.args)}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(plain, value))}]"
    return f"{{{', '.join(f'{k}: {plain(v)}' for k, v in value.items())}}}" if isinstance(value, dict) else str(value)


def _in_papers(kind: str, key: str) -> str:
    """What the papers' recipes set where it differs from the default, by stage: `align 256, tune 128`."""
    values: dict[tuple[str, str], list[str]] = {}
    for paper, name in PAPERS.items():
        for stage_name, stage in _stages(name):
            if KINDS[kind] is type(stage) and (value := _told(stage, key)):
                values.setdefault((stage_name, value), []).append(paper)
    told = [
        f"{stage} {code(value)}" + ("" if len(who) == len(PAPERS) else f" ({PLACES[who[0]]})")
        for (stage, value), who in values.items()
    ]
    return ", ".join(told)


@cache
def _stages(name: str) -> Sequence[tuple[str, Stage]]:
    (recipe,) = read.load(name)
    return [*recipe.stages.items()]


def _told(stage: Stage, key: str) -> str:
    """The value of a setting where the recipe gives another than the default; empty of what lies deeper."""
    value, standard = _at(stage, key), {one.key: one.default for one in meanings.of_stage(type(stage))}.get(key)
    if isinstance(value, dict) and value and all(isinstance(one, ObjectiveSettings) for one in value.values()):
        return plain({name: one.weight for name, one in value.items()})
    if value in (None, "", [], {}) or value == standard or isinstance(value, LabelSettings):
        return ""
    return "" if is_dataclass(value) and not isinstance(value, Part) else plain(value)


def _at(holder: Any, key: str) -> Any:
    for name in key.split("."):
        holder = getattr(holder, name, None) or getattr(holder, f"{name}_", None) if name != "NAME" else None
    return holder


def _slots(cls: type[Stage]) -> str:
    """What it reads and gives."""
    takes, gives = (", ".join(map(code, names)) or "nothing" for names in (cls.takes, cls.gives))
    return f"\nIt may read {takes} of other stages, and gives {gives}.\n"
