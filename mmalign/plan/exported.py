"""The cards in an exported folder: its mmalign.json, which comes from others as often as not."""

from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from mmalign.errors import RunError
from mmalign.io import document, files
from mmalign.plan.cards import Card, Registry, foreign

FORMAT = 1
ROLES = {"vision": "vision", "adapter": "adapters", "llm": "llms"}  # of the cards every such folder has: family
AGAIN = "export it again"


class Exported(TypedDict):
    """mmalign.json."""

    format: int
    cards: dict[str, Card]


def cards(folder: Path, registry: Registry | None = None) -> dict[str, Card]:
    """{role: card} of an exported folder, each of its role's family and of a class that the registry knows.

    Raises RunError for a mmalign.json that is damaged or of another format, CardError for a class that it may not name.
    """
    place, registry = folder / "mmalign.json", registry or Registry()
    about = files.read_json(place, fix=AGAIN)
    if (version := document.version(about)) != FORMAT:
        what = f"exported in format {document.shown(version)}; this mmalign reads {FORMAT}"
        raise RunError(what, at=str(folder), fix=AGAIN)
    document.fit(about, Exported, str(place), fix=AGAIN)
    named = about["cards"]
    for role in (*ROLES, *named):
        if role not in named or role.split(".")[0] not in ROLES:
            what = f"mmalign.json {'names a part' if role in named else 'lacks the card of its'} {role!r}"
            raise RunError(what, at=f"{place}  cards", fix=AGAIN)
    read = {role: foreign(named[role], place, role) for role in (*ROLES, *named)}
    read = {role: replace(card, family=ROLES[role.split(".")[0]]) for role, card in read.items()}
    return {role: registry.adopted(card) for role, card in read.items()}
