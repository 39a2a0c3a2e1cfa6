"""What a recipe's schema demands of the whole: what must be there, and names that are those of cards."""

import typing
from dataclasses import fields, is_dataclass

from mmalign.plan import meanings
from mmalign.plan.recipe import KINDS, Part, RecipeFile, key_of
from mmalign.plan.schema_cards import ANY, FAMILY, PARTS, Cards, Schema, ref, where

THERE = ["object", "array", "string", "number", "boolean"]  # all types but null


def complete() -> Schema:
    """What a recipe must say that extends none."""
    kinds = [where("kind", [kind], _needed(cls)) for kind, cls in KINDS.items()]
    stage = {"if": {"type": "object"}, "then": {"required": ["kind"], "allOf": kinds}}
    own = _needed(RecipeFile)
    stages = {"type": "object", "minProperties": 1, "additionalProperties": stage}
    return {"required": [*own["required"], "stages"], "properties": {**own["properties"], "stages": stages}}


def _needed(cls: type) -> Schema:
    """The keys of a settings class that must be given, where they have no default; and those inside what is given."""
    hints = typing.get_type_hints(cls)
    required, properties = [], {}
    for f in fields(cls):
        hint = meanings.present(hints[f.name])
        needed = meanings.needed(f)
        inner = _needed(typing.cast(type, hint)) if is_dataclass(hint) else {}
        if needed and f.name != "kind":
            required.append(key_of(f.name))
            properties[key_of(f.name)] = {"type": THERE, **inner}
        elif inner.get("required") or inner.get("properties"):
            properties[key_of(f.name)] = {"if": {"type": "object"}, "then": inner}
        elif hint == list[Part]:
            properties[key_of(f.name)] = {"items": _needed(Part), **_needed(Part)}
    return {"required": required, "properties": properties}


def known_names(cards: Cards) -> Schema:
    """Every part is a card that is known here, wherever it stands."""
    part = {family: ref(f"known-{family}") for family in PARTS}
    listed = {"if": {"type": "array"}, "then": {"items": part["benchmarks"]}, "else": part["benchmarks"]}
    source = {"if": {"type": "string"}, "then": part["labels"], "else": {"properties": {"source": part["labels"]}}}
    known: dict[str, Schema] = {card.name: {} for card in cards["objectives"]}
    none = {"type": "null", "errorMessage": "no objective has this name   (mmalign list objectives)"}
    objectives = {"properties": known, "additionalProperties": none}
    model = {key: part[FAMILY[key]] for key in ("vision", "adapter", "llm", "vlm")}
    stage = {
        "data": part["data"],
        "source": part["labels"],
        "labels": source,
        "bench": listed,
        "evaluate": listed,
        "gate": {"properties": {"bench": part["benchmarks"]}},
        "objectives": objectives,
    }
    models, stages = {"properties": model}, {"additionalProperties": {"properties": stage}}
    arm: dict[str, Schema] = {"^model$": models, "^stages$": stages, rf"^stages\.{ANY}$": {"properties": stage}}
    arm |= {rf"^model\.{key}$": own for key, own in model.items()}
    arm |= {rf"^stages\.{ANY}\.{key}$": own for key, own in stage.items()}
    arm |= {rf"^stages\.{ANY}\.objectives\.(?!({'|'.join(known)})([.]|$))": none}
    arms = {"properties": {"arms": {"additionalProperties": {"patternProperties": arm}}}}
    return {"properties": {"model": models, "stages": stages, "matrix": arms}}
