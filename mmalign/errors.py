"""What can go wrong, as one small tree: every error says what is wrong, at which place, and what to try.

MMAlignError              the message is for the reader; no traceback
├── RecipeError           the YAML is not a recipe                        exit 2
├── CardError             a name or a card of the registry is wrong       exit 2
├── GraphError            the stages do not form a graph                  exit 2
├── CheckError            the parts of a recipe do not fit together       exit 2
├── RunError              a run folder cannot be used                     exit 2
├── DataError             a file, a row or an image is not usable         exit 2
└── StageError            a stage ran and failed                          exit 1
"""

import difflib
from collections.abc import Iterable

from mmalign.io.visible import one_line, visible


class MMAlignError(Exception):
    """Three lines for the reader, in which control characters are written out.

    what: what is wrong, with the offending value in it.
    at: the place: `file:line  key`, a folder, a sample id; empty where there is none.
    fix: what to try; shown behind the word `try`.
    """

    exit_code = 2

    def __init__(self, what: str, *, at: str = "", fix: str = "") -> None:
        self.what, self.at, self.fix = what, at, fix
        lines = [visible(what), at and f"  at   {one_line(at)}", fix and f"  try  {visible(fix)}"]
        super().__init__("\n".join(filter(None, lines)))


class RecipeError(MMAlignError): ...


class CardError(MMAlignError): ...


class GraphError(MMAlignError): ...


class CheckError(MMAlignError): ...


class RunError(MMAlignError): ...


class DataError(MMAlignError): ...


class StageError(MMAlignError):
    exit_code = 1


class Stopped(StageError):
    """A stage ended before its work was done because SIGTERM asked for it; what it did is saved."""

    exit_code = 143  # as shells count it


class Terminated(BaseException):
    """SIGTERM came to the command that runs stages."""


def one_of(name: str, value: object, known: Iterable[object]) -> None:
    """Refuse a value of the argument `name` that is none of the known ones: CheckError at `args.name`."""
    known = tuple(known)
    if value not in known:
        what = f"{name} must be one of {', '.join(map(str, known))}, got {value!r}"
        raise CheckError(what, at=f"args.{name}")


def suggest(name: str, known: Iterable[str]) -> str:
    """A `try` line: the closest known name, or the first few."""
    known = sorted(map(str, known))
    if close := difflib.get_close_matches(str(name), known, n=1):
        return f"did you mean {close[0]!r}?"
    if not known:
        return "there is none yet"
    return "one of " + ", ".join(known[:8]) + (" ..." if len(known) > 8 else "")
