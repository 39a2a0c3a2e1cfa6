"""The reference of the command line: every verb with its arguments and options, out of the Typer application."""

from collections.abc import Iterator, Sequence
from typing import Any

import typer
from mmalign.cli import app
from typer.main import get_command

from .settings import plain
from .tables import code, prose, said, table

COLUMNS = ("", "takes", "default", "meaning")
HEAD = """# Commands

Verbs are small; settings live in the [recipe](recipe.md) and in `key=value`. Every verb has `-h`. Exit codes: 0 done,
1 a stage failed, 2 a mistake in what was asked for, told as what / at / try, 130 Ctrl-C. With `--json` a verb prints
what programs read.
"""


def pages() -> dict[str, str]:
    """{path: Markdown} of all verbs."""
    return {"reference/commands.md": page(get_command(app))}


def page(group: Any) -> str:
    """Every verb of a click group, those of groups within it, too."""
    context = typer.Context(group, info_name="mmalign")
    own = table(COLUMNS, (_row(one, "mmalign") for one in group.params))
    parts = [HEAD, f"Before any verb stands one of\n\n{own}", *verbs(group, context)]
    return "\n".join(parts)


def verbs(group: Any, context: Any) -> Iterator[str]:
    for name, verb in group.commands.items():
        inner = typer.Context(verb, info_name=name, parent=context)
        if getattr(verb, "commands", None):
            yield from verbs(verb, inner)
        else:
            yield _verb(verb, inner)


def _verb(verb: Any, context: Any) -> str:
    title = context.command_path
    text = "\n\n".join(prose(part) for part in said(verb.help, f"the verb {title}").split("\n\n"))
    usage = " ".join([title, *(_place(one) for one in verb.params if one.param_type_name == "argument")])
    rows = [_row(one, title) for one in verb.params]
    return f"## {title}\n\n{text}\n\n```sh\n{usage} [OPTIONS]\n```\n\n" + (table(COLUMNS, rows) if rows else "")


def _place(one: Any) -> str:
    """How an argument stands in the line of a verb: brackets around what may be left out, dots behind what repeats."""
    name = one.metavar or one.name.upper()
    name += "..." if one.nargs == -1 and not name.endswith("...") else ""
    return name if one.required else f"[{name}]"


def _row(one: Any, verb: str) -> Sequence[str]:
    option = one.param_type_name == "option"
    names = ", ".join(map(code, one.opts)) if option else code(one.metavar or one.name.upper())
    default = "*needed*" if one.required else _default(one)
    return names, _kind(one), default, prose(said(one.help, f"{one.opts[0]} of {verb}"))


def _default(one: Any) -> str:
    return "" if one.default in (None, False, "", ()) or callable(one.default) else code(plain(one.default))


def _kind(one: Any) -> str:
    """What may stand there: choices, a number with its bounds, a path; nothing of a flag and of plain text."""
    if choices := getattr(one.type, "choices", None):
        return "one of " + ", ".join(map(code, choices))
    least = getattr(one.type, "min", None)
    known = {"boolean": "", "int": "a whole number", "int range": "a whole number", "path": "a path", "str": ""}
    kind = known.get(one.type.name, prose(one.type.name)) + ("" if least is None else f" at least {least}")
    return "; ".join(filter(None, [kind, "may be repeated" if getattr(one, "multiple", False) else ""]))
