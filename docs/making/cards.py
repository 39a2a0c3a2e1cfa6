"""The reference of cards: of each family its contract, its cards with their facts, and its classes' arguments."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmalign.errors import CardError
from mmalign.io import files, yaml
from mmalign.io.document import words
from mmalign.plan import arguments, definitions
from mmalign.plan.arguments import Argument
from mmalign.plan.cards import FAMILIES, SHIPPED, Card, Registry
from mmalign.plan.references import GIVEN
from mmalign.plan.schema_cards import classes_of

from .settings import plain
from .tables import code, link, opening, papers, prose, said, table

TITLES = {"llms": "Language models", "vlms": "Whole models", "vision": "Vision encoders", "labels": "Label sources"}
COLUMNS = ("argument", "type", "default", "meaning", "the paper")


def pages() -> dict[str, str]:
    """{path: Markdown} of every family."""
    cards = {family: [one for one in Registry().every(family) if one.origin == SHIPPED] for family in FAMILIES}
    return {f"reference/{family}.md": _page(family, cards[family]) for family in FAMILIES}


def _page(family: str, cards: Sequence[Card]) -> str:
    parts = [f"# {TITLES.get(family, family.capitalize())}\n", _contract(family), _listed(cards), "## Arguments\n"]
    by_name = {card.name: card for card in cards}
    for target, names in classes_of(cards).items():
        parts.append(_class(target, family, [by_name[name] for name in names]))
    return "\n".join(parts)


def _contract(family: str) -> str:
    """What the family's module says of it; of whole models, which have none, where they are told of."""
    if family == "vlms":
        return "Models that are whole already: see [any model of transformers](../vision-language-models.md).\n"
    place = files.local(f"pkg:mmalign.{family}/__init__.py")
    assert place is not None
    return prose(opening(place, f"the family {family}")) + "\n"


def _listed(cards: Sequence[Card]) -> str:
    rows = [
        (code(card.name), prose(said(card.summary, f"the card {card.name}")), _facts(card.facts), link(card.paper),
         prose(card.license))
        for card in cards
    ]  # fmt: skip
    return table(("card", "what it is", "facts", "paper", "licence"), rows)


def _facts(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{prose(key)} {code(plain(value))}" for key, value in facts.items())


def _class(target: str, family: str, cards: Sequence[Card]) -> str:
    """The arguments of a class, and what each of its cards gives."""
    title, known = f"### {code(target.rpartition('.')[2])}\n\n{code(target)}\n", _arguments(target)
    own = [one for one in known if one.name not in GIVEN.get(family, ())]
    by_stage = [code(one.name) for one in known if one.name in GIVEN.get(family, ())]
    parts = [
        title,
        table(COLUMNS, (_row(one, target) for one in own)) if own else "It takes no arguments of its own.\n",
    ]
    if by_stage:
        parts.append(f"Given by the stage: {', '.join(by_stage)}.\n")
    gives = [(code(card.name), _gives(card)) for card in cards]
    parts.append(table(("card", "gives"), gives) if len(gives) > 1 else f"Its card {' gives '.join(gives[0])}.\n")
    return "\n".join(parts)


def _arguments(target: str) -> Sequence[Argument]:
    try:
        return arguments.of(target) or []
    except definitions.Absent:
        return []


def _row(one: Argument, target: str) -> Sequence[str]:
    meaning, published = papers(said(one.about, f"the argument {one.name} of {target}"))
    kind = "" if one.kind is Any else prose(words(one.kind))
    default = "*needed*" if one.default is None else code(one.default)
    return code(one.name), kind, default, prose(meaning), prose(published)


def _gives(card: Card) -> str:
    return ", ".join(f"{code(key)}: {code(value)}" for key, value in _values(card)) or "the defaults"


def _values(card: Card) -> Iterator[tuple[str, str]]:
    """Arguments as the card's file has them."""
    place = files.local(card.path)
    assert place is not None
    for key, value in yaml.read(place, CardError).raw.get("args", {}).items():
        yield key, plain(value)
