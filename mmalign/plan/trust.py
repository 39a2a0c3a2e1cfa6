"""What may be called: a class of its family, and in files that travel one that the registry knows.

Recipes, cards, runs folders and exported models are what people send each other; none of them may run anything.

    shipped cards, $MMALIGN_REGISTRY, installed packages   any class of the family; its module may be imported to see it
    a recipe's own `registry:`                             a class that is one of the family as its text says
    stage.yaml, mmalign.json, `target:` in a mixture       one of the family in mmalign, or one that the first row names
    Python: build(Card(...))                               the user's own code: a class of the family

Whatever the file: a function, or a class of another family, is never called. What the two lower rows do not allow is
asked for by `allow`: an error that names it, or with --allow-code a warning.
"""

import logging
import os

from mmalign.errors import CardError
from mmalign.io import environment
from mmalign.plan import definitions, signatures

log = logging.getLogger(__name__)

# family: the classes of `mmalign.<family>`, or of the family's home, of which a part must be one
CONTRACTS: dict[str, tuple[str, ...]] = {
    "vision": ("Vision",),
    "adapters": ("Adapter",),
    "llms": ("LLM",),
    "labels": ("LabelSource",),
    "objectives": ("Objective",),
    "data": ("Data",),
    "benchmarks": ("Benchmark", "Probe"),
    "vlms": ("Checkpoint",),
}
HOMES = {"vlms": "mmalign.integrations.checkpoint"}  # where the classes of a family are, if not in `mmalign.<family>`
OPENERS = ("mmalign.pipeline.load.load", "mmalign.integrations.vllm.VLLM")  # of the family `checkpoints`: no part


class RefusedError(CardError):
    """A target that may not be called, or not without a permission."""


def allow(family: str, name: str, target: str, at: str) -> None:
    """Refuse a target that no card of this machine names; with --allow-code a warning says that it is imported."""
    if os.environ.get(environment.ALLOW_CODE) != "1":
        what = f"{family} {name!r} is {target}, code that no card or package here names"
        fix = "if you trust it: --allow-code, or its card in a folder of MMALIGN_REGISTRY"
        raise RefusedError(what, at=at, fix=fix)
    log.warning("--allow-code: %s %r imports %s, which no card or package here names", family, name, target)


def contract(family: str) -> str:
    """`mmalign.benchmarks.Benchmark or Probe`."""
    return f"{home(family)}.{' or '.join(CONTRACTS[family])}"


def home(family: str) -> str:
    """The module with the classes of a family."""
    return HOMES.get(family, f"mmalign.{family}")


def of_family(target: str, family: str) -> bool | None:
    """Whether a target is a class of a family, by its text; None where that does not tell. Absent: no such target."""
    return signatures.descends(target, {f"{home(family)}.{name}" for name in CONTRACTS[family]})


def no_part(target: str, family: str, name: str, at: str) -> RefusedError:
    """The error for what is no class of its family."""
    fix = f"a {family} part subclasses {' or '.join(CONTRACTS[family])}"
    return RefusedError(f"{family} {name!r}: {target} is no class of {contract(family)}", at=at, fix=fix)


def resolved(target: str) -> str:
    """Where a target is defined: a name that only stands for another is that other one. As it is where that is not
    told by the text, or there is no such target."""
    try:
        definition = definitions.find(target)
    except definitions.Absent:
        return target
    return f"{definition.module}.{definition.node.name}" if definition else target


def ours(target: str, family: str) -> bool:
    """Whether a target is a class of a family in mmalign itself."""
    try:
        return target.startswith("mmalign.") and of_family(target, family) is True
    except definitions.Absent:
        return False
