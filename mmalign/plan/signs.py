"""The sign of a label source that is left to the data: what is said of it before anything runs."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from mmalign.errors import RecipeError
from mmalign.io import yaml
from mmalign.plan.cards import Card, Registry
from mmalign.plan.graph import cards_of, fit_of, named
from mmalign.plan.recipe import Label, Part, Recipe


def undecided(recipe: Recipe, registry: Registry) -> Iterator[str]:
    """A note for every stage whose sign is `auto`: the command that decides it alone, and the word that sets it."""
    for name, stage in recipe.stages.items():
        cards = cards_of(recipe, name, registry)
        source = cards.get("labels")
        if source is None or "labels.encoder" not in cards or source.args.get("sign") != "auto":
            continue
        parts = {role: (part, key) for role, _, part, key in named(recipe, name)}
        (labels, key), (data, _) = parts["labels"], parts["data"]
        own = isinstance(stage, Label) or ("vision" in cards and cards["vision"].name == cards["labels.encoder"].name)
        command = _command(labels, data, fit_of(recipe, name) if own else None, _shelf(recipe, cards))
        yield (
            f"stage {name!r}: the sign of {source.name} is auto, and {data.card} has to decide it before anything is "
            f"trained; alone: {command}; the paper's: {key}.args.sign=-1"
        )


def _command(labels: Part, data: Part, fit: str | None, shelf: str) -> str:
    own = {key: value for key, value in labels.args.items() if key != "sign"}
    words = [*_words("labels", own), *_words("data", data.args), *([f"fit={fit}"] if fit else [])]
    return shelf + shlex.join(["mmalign", "labels", "sign", labels.card, data.card, *words])


def _words(part: str, args: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{part}.{key}={_text(value)}" for key, value in args.items())


def _text(value: Any) -> str:
    """A value as it stands behind `key=`: a word as it is, all else as JSON, which is YAML."""
    if isinstance(value, str):
        try:
            if yaml.value(value, "", RecipeError) == value:
                return value
        except RecipeError:
            pass
    return json.dumps(value, ensure_ascii=False)


def _shelf(recipe: Recipe, cards: Mapping[str, Card]) -> str:
    """What a command needs before it to see the cards of a recipe's own shelf."""
    shelves = [*recipe.registry, *filter(None, [os.environ.get("MMALIGN_REGISTRY")])]
    own = any(card.origin.startswith("shelf ") for card in cards.values())
    return f"MMALIGN_REGISTRY={shlex.quote(os.pathsep.join(shelves))} " if recipe.registry and own else ""
