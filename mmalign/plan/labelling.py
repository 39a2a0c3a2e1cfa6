"""What a stage's label source cannot do without."""

from collections.abc import Iterator

from mmalign.errors import MMAlignError
from mmalign.io import files
from mmalign.io.wordlist import read_words
from mmalign.plan import facts
from mmalign.plan.cards import Card
from mmalign.plan.mistake import mistake, takes
from mmalign.plan.recipe import Label, Recipe, Stage, Train


def of_labels(recipe: Recipe, name: str, stage: Stage, cards: dict[str, Card]) -> Iterator[MMAlignError]:
    """Can the label source know words at all, and is there a store where one is named?"""
    key = "source" if isinstance(stage, Label) else "labels"
    if (encoder := cards.get("labels.encoder")) and encoder.facts.get("text") is False:
        what = f"{cards['labels'].name} compares patches with words, and {encoder.name} has no text tower"
        fix = "an encoder with one, such as clip-vit-l-336; the model may keep its own"
        yield mistake(recipe, name, key, what, fix)
    if source := cards.get("labels"):
        yield from (mistake(recipe, name, key, what, fix) for what, fix in _blind(source, "labels.encoder" in cards))
        if "words" in (takes(source) or ()):
            yield from word_list(source.args.get("words"))
    if isinstance(stage, Train) and stage.labels and stage.labels.store:
        place = files.local(stage.labels.store)
        if place and not files.exists(place / "header.json"):
            what = f"there is no label store in {stage.labels.store}"
            yield mistake(recipe, name, "labels.store", what, "the folder `labels` of a finished stage of kind label")


def _blind(source: Card, encoder: bool) -> Iterator[tuple[str, str]]:
    """(what is wrong, what to try) with a source of dense labels that has no encoder to make features."""
    if encoder or facts.of(source).get("truth") is not False:
        return
    taken = takes(source)
    if taken is not None and "encoder" not in taken:
        what = f"{source.name} labels by an encoder's features, and its class takes no argument `encoder`"
        yield what, 'an argument `encoder` in its class; or needs = "truth", for words the data itself gives'
    else:
        what = f"{source.name} labels by an encoder's features, and names no encoder"
        yield what, f"{{card: {source.name}, args: {{encoder: NAME}}}}   (mmalign list vision)"


def word_list(spec: object) -> Iterator[MMAlignError]:
    """What is wrong with a local word list; `paths` says it where there is none."""
    if isinstance(spec, str) and (place := files.local(spec)) and files.exists(place):
        try:
            read_words(spec)
        except MMAlignError as err:
            yield err
