"""Which brackets of a YAML text are open where: read without PyYAML, whose scanner runs far ahead of what it tells."""

import re
from collections.abc import Iterator

_QUOTED = r"""(?:"(?:[^"\\]|\\.)*+(?:"|\Z)|'(?:[^']|'')*+(?:'|\Z))"""
_SKIPPED = r"\#[^\n]*|[&!*][^\s,\[\]{}]*"  # a comment; an anchor, tag or alias

# One token at a time, where a token begins. Outside brackets only a `[` or `{` that begins a value opens one.
_BLOCK = re.compile(
    rf"""
      (?P<document> ^(?:---|\.\.\.)(?=\s|\Z) | ^%[^\n]* )
    | (?P<entry> [-?](?=\s|\Z) )
    | (?P<open> [\[{{] )
    | (?P<skipped> [\s\ufeff]+ | {_SKIPPED} | :(?=\s|\Z) )
    | (?: (?P<quoted> {_QUOTED} ) | (?: [^\n:\#] | :(?!\s|\Z) | (?<!\s)\# )++ )  (?P<key> [ \t]*:(?=\s|\Z) )?
    """,
    re.S | re.M | re.X,
)
# Inside brackets every one counts that is not in quotes or a comment; words go on over line ends.
_FLOW = re.compile(
    rf"""
      (?P<open> [\[{{] )
    | (?P<close> [\]}}] )
    | (?P<skipped> [\s,:?]+ | {_SKIPPED} | {_QUOTED} )
    | (?: [^,\[\]{{}}:\#] | :(?![\s,\[\]{{}}]|\Z) | (?<!\s)\# )++
    """,
    re.S | re.M | re.X,
)
_BREAK = re.compile("\r\n?|[\x85\u2028\u2029]")


def deeper_than(limit: int, text: str) -> int | None:
    """The line, from 1, of the first bracket inside `limit` others; None if there is none."""
    if text.count("[") + text.count("{") <= limit:  # nearly every file
        return None
    return next((line for depth, line in opened(text) if depth > limit), None)


def opened(text: str) -> Iterator[tuple[int, int]]:
    """(how many brackets are open with it, its line from 1) of every bracket that opens, in time linear in the text."""
    text = _BREAK.sub("\n", text)
    depth, indent = 0, -1  # indent: the column of the innermost mapping or list that is written without brackets
    pos, line, line_start = 0, 1, 0
    while token := (_FLOW if depth else _BLOCK).match(text, pos):
        name, end = token.lastgroup, token.end()
        if name == "open":
            depth += 1
            yield depth, line
        elif name == "close":
            depth -= 1
        elif name == "document":
            indent = -1
        elif name in ("entry", "key"):
            indent = pos - line_start
        elif name is None and not depth:
            end = _end_of_scalar(text, end, indent)
        line += text.count("\n", pos, end)
        line_start = max(line_start, text.rfind("\n", pos, end) + 1)
        pos = end


def _end_of_scalar(text: str, pos: int, indent: int) -> int:
    """Where words without quotes end, or a text behind `|` or `>`: with the last line that is indented by more."""
    rest = re.compile(rf"[^\n]*+(?:\n(?: {{{indent + 1},}}[^\n]*|[ \t]*$))*+", re.M).match(text, pos)
    assert rest
    return rest.end()
