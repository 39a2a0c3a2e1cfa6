"""What a recipe's schema says of cards: their names, and the arguments that the texts of their classes tell."""

import ast
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from mmalign.io.document import is_union
from mmalign.plan import arguments, definitions, signatures
from mmalign.plan.arguments import Argument
from mmalign.plan.cards import INNER, Card
from mmalign.plan.references import GIVEN

Schema = dict[str, Any]
Cards = Mapping[str, Sequence[Card]]  # by family

PARTS = ("vision", "adapters", "llms", "vlms", "labels", "data", "benchmarks", "objectives")
FAMILY = {  # of the cards that a setting names
    "vision": "vision", "adapter": "adapters", "llm": "llms", "vlm": "vlms", "source": "labels", "data": "data",
    "bench": "benchmarks", "evaluate": "benchmarks",
}  # fmt: skip
ANY = "[^.]+"  # a name within a dotted key
ASKED = r"\$\{"  # a text with an interpolation: what stands behind it is not known here
NUMBERS = {"least": "minimum", "above": "exclusiveMinimum", "most": "maximum", "below": "exclusiveMaximum"}
LONGEST = 2**63  # of a whole number, see io/document.py


def ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def where(key: str, values: Sequence[str], then: Schema) -> Schema:
    """What holds where a mapping's key has one of these values."""
    return {"if": {"properties": {key: {"enum": list(values)}}, "required": [key]}, "then": then}


def part(family: str) -> Schema:
    """NAME, or {card: NAME, args: {...}}."""
    card = {**ref(f"{family}-card")}
    args = {"type": ["object", "string", "null"], "pattern": ASKED, "description": "laid over the card's own"}
    long = {"properties": {"card": {"anyOf": [card, {"type": "null"}]}, "args": args}, "additionalProperties": False}
    return {"if": {"type": "string"}, "then": card, "else": {"type": "object", **long, **ref_all(f"{family}-args")}}


def ref_all(name: str) -> Schema:
    return {"allOf": [ref(name)]}


def definitions_of(cards: Cards) -> dict[str, Schema]:
    """Of each family what a card's name may be and which arguments go with it, and of each class its arguments."""
    found: dict[str, Schema] = {}
    for family in PARTS:
        found[f"{family}-card"] = {
            "type": ["string", "number", "boolean"],
            "pattern": "^(?![?]{3}$)",
            "examples": [card.name for card in cards[family]],
        }
        found[f"known-{family}"] = _known(cards[family])
        classes = classes_of(cards[family])
        told = {target: _arguments(target, family, cards) for target in classes}
        found[f"{family}-args"] = {
            "allOf": [
                where("card", classes[target], {"properties": {"args": ref(args_of(target))}})
                for target, known in told.items()
                if known is not None
            ]
        }
        found |= {args_of(target): known for target, known in told.items() if known is not None}
    return found


def classes_of(cards: Sequence[Card]) -> dict[str, list[str]]:
    """{class: the names of its cards}."""
    names: dict[str, list[str]] = {}
    for card in cards:
        names.setdefault(card.target, []).append(card.name)
    return names


def args_of(target: str) -> str:
    """The name of the schema of a class's arguments."""
    return "args-of-" + target.replace(".", "-")


def _known(cards: Sequence[Card]) -> Schema:
    """NAME or {card: NAME} of one of these cards, or what stands for it."""
    names = {"enum": [card.name for card in cards], "enumDescriptions": [card.summary for card in cards]}
    name = {"anyOf": [names, {"type": "string", "pattern": ASKED}]}
    optional = {"anyOf": [*name["anyOf"], {"type": "null"}]}
    return {"if": {"type": "string"}, "then": name, "else": {"properties": {"card": optional}}}


def _arguments(target: str, family: str, cards: Cards) -> Schema | None:
    """The arguments of a class; None where its text does not tell them."""
    try:
        takes = arguments.of(target)
    except definitions.Absent:
        return None
    if takes is None:
        return None
    bounds = signatures.attribute(target, "bounds")
    inner = {arg: [card.name for card in cards[named]] for arg, families, named in INNER if family in families}
    properties: dict[str, Schema] = {}
    for one in takes:
        if one.name in GIVEN.get(family, ()):
            continue
        bound = bounds.get(one.name) if isinstance(bounds, dict) else None
        properties[one.name] = {**(_bounded(bound) if bound else _typed(one.kind)), **_about(one)}
        if one.name in inner:
            properties[one.name]["examples"] = inner[one.name]
    return {
        "type": ["object", "string", "null"],
        "pattern": ASKED,
        "properties": properties,
        "additionalProperties": False,
    }


def _about(one: Argument) -> Schema:
    said: Schema = {"description": one.about} if one.about else {}
    try:
        default = ast.literal_eval(one.default or "")
    except (ValueError, SyntaxError):
        return said
    return {**said, "default": list(default)} if isinstance(default, (tuple, list)) else {**said, "default": default}


def _bounded(bound: Mapping[str, Any]) -> Schema:
    """See io/bounds.py."""
    if "among" in bound:
        return {"anyOf": [{"enum": [*bound["among"], None]}, {"type": "string", "pattern": ASKED}]}
    kind = "integer" if bound.get("whole") else "number"
    limits = {word: bound[key] for key, word in NUMBERS.items() if key in bound}
    return {"type": [kind, "string", "null"], "pattern": ASKED, **limits}


def _typed(kind: Any) -> Schema:
    """A type of an argument, see io/document.py; a text with an interpolation may stand for it."""
    schemas = [_plain(one) for one in (get_args(kind) if is_union(kind) else (kind,))]
    if {} in schemas:
        return {}
    if any(one.get("type") == "string" for one in schemas) is False:
        schemas.append({"type": "string", "pattern": ASKED})
    if all(set(one) <= {"type", "pattern"} for one in schemas):  # told best of all at once
        merged = {"type": [one["type"] for one in schemas]}
        return merged | {key: one[key] for one in schemas for key in one if key == "pattern"}
    return {"anyOf": schemas} if len(schemas) > 1 else schemas[0]


_NAMES = {
    int: "integer", float: "number", str: "string", bool: "boolean", types.NoneType: "null", dict: "object",
    Mapping: "object", list: "array", tuple: "array", Sequence: "array",
}  # fmt: skip


def _plain(kind: Any) -> Schema:
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin not in _NAMES:
        return {}
    schema: Schema = {"type": _NAMES[origin]}
    if _NAMES[origin] == "object" and inner:
        return {**schema, "additionalProperties": _typed(inner[-1])}
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return {**schema, "minItems": len(inner), "maxItems": len(inner)}
    return {**schema, "items": _typed(inner[0])} if inner else schema
