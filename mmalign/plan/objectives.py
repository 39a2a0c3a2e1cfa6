"""What a stage's objectives cannot do without."""

from collections.abc import Iterable, Iterator

from mmalign.errors import CheckError, MMAlignError
from mmalign.io import bounds, files
from mmalign.io.texts import read_texts
from mmalign.plan import facts
from mmalign.plan.cards import Card
from mmalign.plan.graph import named
from mmalign.plan.mistake import mistake, takes
from mmalign.plan.recipe import Recipe, Train


def of_objective(
    recipe: Recipe, name: str, stage: Train, cards: dict[str, Card], objective: str
) -> Iterator[MMAlignError]:
    """Everything that is wrong with one of them, from facts."""
    known, adapter = facts.of(cards[f"objectives.{objective}"]), cards.get("adapter")
    needs, keeps = known.get("needs", []), facts.of(adapter).get("keeps_grid", True) if adapter else True
    labels = bool(stage.labels or stage.reads.labels)
    for what, fix in unmet(objective, needs, known.get("per_patch"), labels, keeps, adapter.name if adapter else ""):
        yield mistake(recipe, name, f"objectives.{objective}", what, fix)
    if "targets" in needs:
        yield from _encoder(recipe, name, objective, cards)
    if "layers" in needs:
        args, llm = cards[f"objectives.{objective}"].args, cards["llm" if "llm" in cards else "vlm"]
        for what, fix in filter(None, [bounds.layers(args.get("layers"), llm.facts.get("layers"), llm.name)]):
            yield mistake(recipe, name, f"objectives.{objective}.args.layers", f"{objective}: {what}", fix)
    if "states" in needs:
        args, llm = cards[f"objectives.{objective}"].args, cards["llm" if "llm" in cards else "vlm"]
        layer = "last" if args.get("layer") is None else args["layer"]  # or what the objective chooses
        for what, fix in filter(None, [bounds.layer(layer, llm.facts.get("layers"), llm.name)]):
            yield mistake(recipe, name, f"objectives.{objective}.args.layer", f"{objective}: {what}", fix)


def _encoder(recipe: Recipe, name: str, objective: str, cards: dict[str, Card]) -> Iterator[MMAlignError]:
    """Does an objective of targets name the encoder whose features they are?"""
    card, key = cards[f"objectives.{objective}"], f"objectives.{objective}"
    if f"{key}.encoder" in cards:
        return
    taken = takes(card)
    if taken is not None and "encoder" not in taken:
        what = f"{objective} has an encoder's features for targets, and its class takes no argument `encoder`"
        yield mistake(recipe, name, key, what, "an argument `encoder` in its class, kept in `self.encoders`")
    else:
        what = f"{objective} has an encoder's features for targets, and names no encoder"
        if card.args.get("encoder") is not None:
            what += f": {card.args['encoder']!r} is no card's name"
        yield mistake(recipe, name, key, what, "args: {encoder: NAME}   (mmalign list vision)")


def unmet(
    objective: str, needs: Iterable[str], per_patch: object, labels: bool, keeps_grid: bool, adapter: str
) -> Iterator[tuple[str, str]]:
    """(what is wrong, what to try) where an objective does not get what it is made for: from facts, or from parts.

    needs, per_patch: the objective's. labels: whether the stage has any. keeps_grid, adapter: the adapter's, its name.
    """
    if "labels" in needs and not labels:
        fix = "labels: {source: NAME, keep: 10}, or reads: {labels: <a stage of kind label>}"
        yield f"{objective} needs labels", fix
    if (per_patch or "targets" in needs) and not keeps_grid:
        what = f"{objective} supervises single patches, and {adapter} does not keep the grid"
        yield what, "an adapter with keeps_grid, such as mlp2x-gelu"


def lens_texts(recipe: Recipe, name: str, cards: dict[str, Card]) -> Iterator[MMAlignError]:
    """Can what a lens is to be fitted on be read, and is there a lens? `paths` says it where there is no such file."""
    keys = {role: key for role, _, _, key in named(recipe, name)}
    for role, card in cards.items():
        spec = card.args.get("lens_texts")
        if not isinstance(spec, str) or "lens_texts" not in (takes(card) or ()):
            continue
        at = recipe.where(f"{keys[role]}.args.lens_texts") if role in keys else f"{card.path}  args.lens_texts"
        if card.args.get("space") != "lens":
            yield CheckError(f"{card.name}: no lens is fitted on `lens_texts`", at=at, fix="space: lens")
        place = files.local(spec)
        if place is None and not files.is_url(spec):
            yield CheckError(f"{card.name}: lens_texts {spec} is no path", at=at, fix=f"./{spec}, beside the recipe")
        if place and files.exists(place):
            try:
                read_texts(spec)
            except MMAlignError as err:
                yield err
