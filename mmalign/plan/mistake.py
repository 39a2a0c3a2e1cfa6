"""What every check of a stage is made with."""

from mmalign.errors import CheckError
from mmalign.plan import definitions, signatures
from mmalign.plan.cards import Card
from mmalign.plan.recipe import Recipe


def mistake(recipe: Recipe, stage: str, key: str, what: str, fix: str) -> CheckError:
    """A mistake in a stage, where it is written."""
    return CheckError(f"stage {stage!r}: {what}", at=recipe.where(f"stages.{stage}.{key}"), fix=fix)


def takes(card: Card) -> signatures.Arguments | None:
    """What a card's class takes; None where that cannot be told. `targets` says it where there is no such class."""
    try:
        return signatures.takes(card.target)
    except definitions.Absent:
        return None
