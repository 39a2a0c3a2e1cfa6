"""Does a recipe fit a whole model, `model: {vlm: CARD}`? From facts alone, before any weight is read."""

from collections.abc import Iterator
from typing import Any

from mmalign.errors import CheckError
from mmalign.io import files
from mmalign.plan import checkpoints, facts
from mmalign.plan.cards import Card
from mmalign.plan.mistake import mistake
from mmalign.plan.recipe import Recipe, Stage, Train

PARTS = ("vision", "adapter", "llm")
MODEL = "model: {vlm: NAME}   (mmalign list vlms), or vision, adapter and llm"
LM = "lm"  # the model's own loss
UNSUITED = {  # settings of a training stage that a whole model has no use for: (why, what to try)
    "fit": ("pictures go through the model's own processor", "no `fit`"),
    "template": ("it is trained in its own chat format", "no `template`"),
    "pack": ("rows are the model's own processor's, a sample each", "pack: false"),
    "group_by_length": ("how long a sample is, only its processor can tell", "no `group_by_length`"),
    "watch": ("its shallow layers are not watched while it trains", "no `watch`; mmalign inspect, afterwards"),
}


def parts(recipe: Recipe, name: str, stage: Stage) -> Iterator[CheckError]:
    """Is the model either whole or of three parts, and can the stage use it?"""
    named = [part for part in PARTS if getattr(recipe.model, part) is not None]
    if recipe.model.vlm is None:
        return
    if named:
        what = f"the model is a whole one, {recipe.model.vlm.card}, and has a part beside it: {', '.join(named)}"
        yield CheckError(what, at=recipe.where(f"model.{named[0]}"), fix=MODEL)
    elif stage.parts and "vlm" not in stage.parts:
        what = f"stage {name!r} (kind {stage.kind}) trains one part alone, and {recipe.model.vlm.card} is a whole model"
        yield CheckError(what, at=recipe.where(f"stages.{name}.kind"), fix="kind: train, with `trains: [llm]`")


def fits(recipe: Recipe, name: str, stage: Stage, cards: dict[str, Card]) -> Iterator[CheckError]:
    """Everything that is wrong with a stage of a whole model."""
    card = cards["vlm"]
    if wrong := _checkpoint(card):
        yield CheckError(f"vlms {card.name!r}: {wrong}", at=f"{card.path}  args.checkpoint", fix=checkpoints.FOLDER)
    if not isinstance(stage, Train):
        return
    for key, (why, fix) in UNSUITED.items():
        if getattr(stage, key):
            yield mistake(recipe, name, key, f"{card.name} takes no `{key}`: {why}", fix)
    if stage.engine.zero == 3:
        what = f"{card.name} is a whole model, and ZeRO 3 is for models of three parts"
        yield mistake(recipe, name, "engine.zero", what, "engine: {zero: 2}")
    for key, what, fix in [*_labels(stage, cards), *_objectives(stage, cards)]:
        yield mistake(recipe, name, key, what, fix)


def _checkpoint(card: Card) -> str:
    """What is wrong with a checkpoint that is here; empty: nothing, or it is not here."""
    place = checkpoints.folder(card)
    if place is None or not (place / "config.json").is_file():
        return ""
    config: Any = files.read_json(place / "config.json", CheckError, fix="a whole checkpoint")
    seeing = isinstance(config, dict) and isinstance(config.get("vision_config"), dict)
    return (
        "" if seeing else f"{card.args['checkpoint']} is no vision-language model: its config.json has no vision_config"
    )


def _labels(stage: Train, cards: dict[str, Card]) -> Iterator[tuple[str, str, str]]:
    """(key, what is wrong, what to try): labels are of what a model is shown, which its processor alone knows."""
    fix = "labels: a source with an encoder, such as siglip-words"
    if stage.reads.labels:
        yield "reads.labels", f"labels of {cards['vlm'].name} are made in the pass, and none are read", fix
    if stage.labels and stage.labels.store:
        yield "labels.store", f"labels of {cards['vlm'].name} are made in the pass, and no store is read", fix
    if "labels" in cards and facts.of(cards["labels"]).get("truth"):
        yield "labels", f"{cards['labels'].name} takes the data's own words, by patches that a whole model has not", fix


def _objectives(stage: Train, cards: dict[str, Card]) -> Iterator[tuple[str, str, str]]:
    """(key, what is wrong, what to try) of objectives that a whole model cannot have."""
    card = cards["vlm"]
    for name in stage.objectives:
        own = cards[f"objectives.{name}"]
        needs = facts.of(own).get("needs", [])
        if "answers" in needs and name != LM:
            what = f"{name} looks at the answers, and {card.name} keeps them to itself"
            yield f"objectives.{name}", what, "lm, the model's own loss"
        if {"labels", "targets"} & {*needs} and card.facts.get("patches") is False:
            what = f"{name} supervises single patches, and where those of {card.name} lie is not known"
            yield f"objectives.{name}", what, "basic-direction or basic-distribution"
        if own.args.get("space") == "lens":
            what = f"{name} reads layers through a lens, and none is fitted on a whole model"
            yield f"objectives.{name}.args.space", what, "space: input"
