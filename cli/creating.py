"""`new`: a starting point in the user's own folder."""

from pathlib import Path

from mmalign.errors import RunError
from mmalign.pipeline import model_card
from mmalign.pipeline.new import named, start

from .lines import say


def new(kind: str, name: str, folder: Path, base: str, source: Path | None) -> None:
    if source is None:
        for place in start(kind, name, folder, base):
            say(str(place))
        return
    if kind != "llm":
        raise RunError(f"--from writes the card of a language model, and {kind!r} is none", fix="mmalign new llm NAME")
    named(name)
    card, notes = model_card.write(name, source, folder)
    from . import show

    say(str(card))
    show.tell(notes)
    shelf = folder if folder.is_absolute() else f"./{folder}"
    say(f"in a recipe: registry: [{shelf}]   model: {{llm: {name}}}")
