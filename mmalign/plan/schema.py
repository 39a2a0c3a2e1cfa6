"""The JSON schema (draft 2020-12) of a recipe, for editors: what the strict reader takes, and no other thing.

Written with words that draft 7 has, too, which is what editors' YAML servers know best. A choice between a short form
and a long one is `if / then / else`, so that what is wrong is told at its own key, and not of all forms at once.
"""

import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

from mmalign.io.document import is_union
from mmalign.plan import meanings, schema_cards, schema_demands
from mmalign.plan.cards import SHIPPED, Registry
from mmalign.plan.meanings import Setting
from mmalign.plan.read import NAME, shipped
from mmalign.plan.recipe import KINDS, LabelSettings, ObjectiveSettings, Part, RecipeFile, Stage, key_of
from mmalign.plan.schema_cards import ANY, ASKED, FAMILY, PARTS, Cards, Schema, ref, where

FILE = "recipe.schema.json"  # beside the shipped recipes, and what `mmalign schema` writes
TITLE = "A recipe of mmalign"
_DIGITS = "[0-9]+(_[0-9]+)*"
_YES = "|".join(
    "".join(f"[{c}{c.upper()}]" for c in word) for word in ("yes", "y", "on", "true", "no", "n", "off", "false")
)
PLAIN: dict[Any, tuple[list[str], str]] = {  # (types, what a text must be) of what OmegaConf reads as one
    int: (["integer", "string"], rf"^\s*SIGN{_DIGITS}\s*$|{ASKED}"),
    float: (
        ["number", "string"],
        rf"^\s*SIGN({_DIGITS}[.]?({_DIGITS})?|[.]{_DIGITS})([eE][-+]?{_DIGITS})?\s*$|{ASKED}",
    ),
    bool: (["boolean", "integer", "string"], rf"^\s*[-+]?{_DIGITS}\s*$|^({_YES})$|{ASKED}"),
    str: (["string", "number", "boolean"], "^(?![?]{3}$)"),  # ??? is what OmegaConf calls missing
}
LIMITS = schema_cards.NUMBERS


def schema(registry: Registry, own: bool = True) -> Schema:
    """The schema of recipes that name the cards of a registry.

    own: with the cards of shelves and packages; False: for the recipes shipped here, which extend each other by file.
    """
    cards = {family: [c for c in registry.every(family) if own or c.origin == SHIPPED] for family in PARTS}
    bases = [*shipped(), *([] if own else [f"{name}.yaml" for name in shipped()])]
    recipe = _closed(RecipeFile)
    about = "a file beside this one, a path, or the name of a shipped recipe, over which this one is laid"
    extends = {"type": ["string", "null"], "examples": list(shipped()), "description": about}
    layer = {"properties": {"extends": {"type": "string"}}, "required": ["extends"]}
    sure = {"not": {"required": ["registry"]}, "properties": {"extends": {"enum": [None, *bases]}}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": TITLE,
        "description": "what `mmalign check` reads; `mmalign schema` writes this file anew, with your own cards",
        **recipe,
        "properties": {"extends": extends, **recipe["properties"]},
        "allOf": [
            {"if": layer, "else": ref("complete-recipe")},
            {"if": sure, "then": ref("known-names")},  # no other folder brings a card
        ],
        "$defs": {
            **_definitions(cards),
            **schema_cards.definitions_of(cards),
            "known-names": schema_demands.known_names(cards),
        },
    }


def text(own: Schema) -> str:
    """A schema as its file has it."""
    return json.dumps(own, indent=1, ensure_ascii=False) + "\n"


def line(file: str = FILE) -> str:
    """What a recipe says for editors to find the schema; the path counts from the recipe's own folder."""
    return f"# yaml-language-server: $schema={file}"


def _definitions(cards: Cards) -> dict[str, Schema]:
    kinds = {kind: _stage(cls, cards) for kind, cls in KINDS.items()}
    elsewhere = "stage-of-a-kind-told-elsewhere"
    return {
        **kinds,
        "objective": _nullable(_objective({})),
        **{f"objective-{name}": _nullable(_objective(args)) for name, args in _objective_args(cards)},
        "stage": {
            "type": ["object", "null"],
            "properties": {"kind": _kind()},
            "allOf": [
                *(where("kind", [kind], ref(kind)) for kind in KINDS),
                {"if": {"not": {"required": ["kind"]}}, "then": ref(elsewhere)},
            ],
        },
        elsewhere: {
            "properties": _united(one["properties"] for one in kinds.values()),
            "additionalProperties": False,
            "anyOf": [{"propertyNames": {"enum": list(one["properties"])}} for one in kinds.values()],
        },
        "arm": {
            "type": ["object", "string", "null"],
            "pattern": ASKED,
            "patternProperties": _arm(kinds),
            "additionalProperties": False,
        },
        "complete-recipe": schema_demands.complete(),
        "known-names": schema_demands.known_names(cards),
    }


def _stage(cls: type[Stage], cards: Cards) -> Schema:
    """A kind of stage: it reads the slots that it takes."""
    properties = _closed(cls)["properties"]
    reads = properties["reads"]
    empty: Schema = {"enum": [None, [], ""], "description": f"a stage of kind {_name(cls)} reads none"}
    slots = {slot: own if slot in cls.takes else empty for slot, own in reads["properties"].items()}
    properties |= {"kind": _kind(), "reads": {**reads, "properties": slots}}
    if "objectives" in properties:
        properties["objectives"] |= {
            "properties": {name: ref(f"objective-{name}") for name, _ in _objective_args(cards)},
            "additionalProperties": ref("objective"),
        }
    return {"properties": properties, "additionalProperties": False}


def _name(cls: type[Stage]) -> str:
    return next(kind for kind, one in KINDS.items() if one is cls)


def _kind() -> Schema:
    abouts = [(cls.__doc__ or "").splitlines()[0] for cls in KINDS.values()]
    return {"enum": list(KINDS), "enumDescriptions": abouts, "description": "what the stage does"}


def _objective(args: Schema) -> Schema:
    """NUMBER, or {weight:, warmup:, args:}. args: what is known of the arguments."""
    long = _closed(ObjectiveSettings)
    long["properties"]["args"] |= args
    return {"if": {"type": "number"}, "then": {"minimum": 0}, "else": long}


def _objective_args(cards: Cards) -> Iterator[tuple[str, Schema]]:
    for card in cards["objectives"]:
        yield card.name, {"allOf": [ref(schema_cards.args_of(card.target))]}


def _closed(cls: type) -> Schema:
    """A settings class as a layer has it: every key may be left out, and null takes it away."""
    hints = typing.get_type_hints(cls)
    said = {setting.key: setting for setting in meanings.of(cls)}
    keys = {f.name: key_of(f.name) for f in fields(cls)}
    values = {key: _nullable(_value(hints[name], cls, said[key])) for name, key in keys.items()}
    properties = {key: {**value, "description": said[key].about} for key, value in values.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _nullable(schema: Schema) -> Schema:
    if "if" in schema:
        return {**schema, "else": _nullable(schema["else"])}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    kinds = schema["type"]
    return {**schema, "type": [*([kinds] if isinstance(kinds, str) else kinds), "null"]}


def _value(hint: Any, cls: type, setting: Setting) -> Schema:
    """What may stand for a value of a type, short forms included."""
    if is_union(hint):
        hint = next(one for one in get_args(hint) if one is not types.NoneType)
    if hint is Part:
        return schema_cards.part(FAMILY[setting.key])
    if hint is LabelSettings:
        return {"if": {"type": "string"}, "then": ref("labels-card"), "else": _closed(hint)}
    if is_dataclass(hint):
        return _closed(typing.cast(type, hint))
    if get_origin(hint) is list:
        return _list(_value(get_args(hint)[0], cls, setting), setting)
    if get_origin(hint) is Literal:
        return {"anyOf": [{"enum": list(get_args(hint))}, {"type": "string", "pattern": ASKED}]}
    if get_origin(hint) is dict:
        return _mapping(cls, setting.key)
    return scalar(hint, setting.bounds)


def scalar(kind: Any, bounds: Mapping[str, float]) -> Schema:
    """A value of a plain type: as such, as a text that OmegaConf reads as one, or behind ${...}."""
    kinds, pattern = PLAIN[kind]
    positive = max(bounds.get("least", -1), bounds.get("above", -1)) >= 0
    limits = {word: bounds[key] for key, word in LIMITS.items() if key in bounds}
    told = f"must be a {meanings.WORDS[kind]}" if kind in (int, float) else f"must be {meanings.WORDS[kind]}"
    sign = "[+]?" if positive else "[-+]?"
    return {"type": kinds, "pattern": pattern.replace("SIGN", sign), "patternErrorMessage": told, **limits}


def _list(each: Schema, setting: Setting) -> Schema:
    """A list, or one value in place of a list of one."""
    many: Schema = {"items": each, "uniqueItems": True} if setting.once else {"items": each}
    if count := setting.bounds.get("length"):
        return {"type": "array", **many, "minItems": count, "maxItems": count}
    return {"if": {"type": "array"}, "then": many, "else": each}


def _mapping(cls: type, key: str) -> Schema:
    if key == "stages":
        return {
            "type": "object",
            "propertyNames": {"pattern": f"^{NAME.pattern}$"},
            "additionalProperties": ref("stage"),
        }
    free = {"type": ["object", "string"], "pattern": ASKED}
    if key == "arms":
        return {**free, "propertyNames": {"pattern": f"^({NAME.pattern})?$"}, "additionalProperties": ref("arm")}
    return free


def _arm(kinds: Mapping[str, Schema]) -> dict[str, Schema]:
    """{pattern of a dotted key: what may stand there} of an arm, whose keys lay values over the recipe."""
    recipe = _closed(RecipeFile)["properties"]
    whole = {rf"^{key}$": recipe.pop(key) for key in ("stages", "matrix")} | {r"^matrix\..+$": {}}
    whole |= {rf"^stages\.{ANY}$": ref("stage")}
    model = _united(_paths(f"^{key}", own) for key, own in recipe.items())
    stages = [one["properties"].items() for one in kinds.values()]
    return whole | model | _united(_paths(rf"^stages\.{ANY}\.{key}", own) for one in stages for key, own in one)


def _paths(at: str, schema: Schema) -> dict[str, Schema]:
    """{pattern: the schema} of a setting and of all below it."""
    found = {f"{at}$": schema}
    while "if" in schema:
        schema = schema["else"]
    for key, own in schema.get("properties", {}).items():
        found |= _paths(rf"{at}\.{key}", own)
    if "additionalProperties" not in schema and "object" in schema.get("type", ()):
        found[rf"{at}\..+$"] = {}
    elif (each := schema.get("additionalProperties")) == ref("objective"):
        found |= _paths(rf"{at}\.{ANY}", _nullable(_objective({})))
    elif each:
        found[rf"{at}\.{ANY}$"] = each
    return found


def _united(several: Iterable[Mapping[str, Schema]]) -> dict[str, Schema]:
    """{key: what any of these allow there}."""
    options: dict[str, dict[str, Schema]] = {}
    for one in several:
        for key, own in one.items():
            options.setdefault(key, {}).setdefault(json.dumps(_bare(own)), own)
    return {key: _either(list(own.values())) for key, own in options.items()}


def _either(schemas: list[Schema]) -> Schema:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _bare(schema: Any) -> Any:
    """A schema without what it says to a reader."""
    if isinstance(schema, dict):
        return {key: _bare(own) for key, own in schema.items() if key != "description" or not isinstance(own, str)}
    return [_bare(one) for one in schema] if isinstance(schema, list) else schema
