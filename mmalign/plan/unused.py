"""Settings of a training stage that have no effect as the recipe stands are said: who writes one expects something."""

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields

from mmalign.plan import facts
from mmalign.plan.cards import Card
from mmalign.plan.recipe import Train


def settings(name: str, stage: Train, cards: dict[str, Card]) -> Iterator[str]:
    """A note for what is set about looks, where nothing is looked at, and about evaluations, where there is none."""
    needs = [facts.of(cards[f"objectives.{objective}"]).get("needs", []) for objective in stage.objectives]
    if not stage.watch and not any("layers" in own for own in needs):
        yield from _idle(name, stage, "watch_", "nothing is watched", "watch: [premise]")
    if not stage.evaluate:
        yield from _idle(name, stage, "evaluate_", "nothing is evaluated in this stage", "evaluate: [BENCHMARK]")


def _idle(name: str, stage: Train, beginning: str, why: str, fix: str) -> Iterator[str]:
    own = [each for each in fields(stage) if each.name.startswith(beginning)]
    if names := [each.name for each in own if getattr(stage, each.name) != _default(each)]:
        verb = "has" if len(names) == 1 else "have"
        yield f"stage {name!r}: {' and '.join(names)} {verb} no effect, {why} ({fix})"


def _default(setting: Field[object]) -> object:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()
