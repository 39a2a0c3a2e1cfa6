"""The cards in an exported folder: its mmalign.json, which comes from others as often as not."""

from dataclasses import replace
from pathlib import Path

from mmalign.errors import RunError
from mmalign.io import files
from mmalign.plan.cards import Card, Registry, foreign

FORMAT = 1
ROLES = {"vision": "vision", "adapter": "adapters", "llm": "llms"}  # of the cards every such folder has: family
AGAIN = "export it again"


def cards(folder: Path, registry: Registry | None = None) -> dict[str, Card]:
    """{role: card} of an exported folder, each of its role's family and of a class that the registry knows.

    Raises RunError for a mmalign.json that is damaged or of another format, CardError for a class that it may not name.
    """
    place, registry = folder / "mmalign.json", registry or Registry()
    about = files.read_json(place, fix=AGAIN)
    version = about.get("format") if isinstance(about, dict) else None
    if version != FORMAT:
        what = f"exported in format {version!r}; this mmalign reads {FORMAT}"
        raise RunError(what, at=str(folder), fix=AGAIN)
    try:
        read = {role: foreign(card, place, role) for role, card in about["cards"].items()}
        read = {role: replace(read[role], family=ROLES[role.split(".")[0]]) for role in (*ROLES, *read)}
    except (KeyError, TypeError, AttributeError) as err:
        what = f"mmalign.json is damaged: {type(err).__name__}: {err}"
        raise RunError(what, at=str(place), fix=AGAIN) from err
    return {role: registry.adopted(card) for role, card in read.items()}
