"""Read a row's JSON strictly: what other readers would not agree on is refused, with the reason."""

import json
import re
from typing import Any

from mmalign.data.reasons import Unusable

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class _Refused(Exception):
    """From inside the decoder: (reason, detail)."""


def _constant(word: str) -> Any:
    raise _Refused("nan", f"{word} is no JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Refused("twice", f"the key {next(key for key in keys if keys.count(key) > 1)[:40]!r} is given twice")
    return mapping


_DECODER = json.JSONDecoder(parse_constant=_constant, object_pairs_hook=_object)


def parse(data: bytes, what: str = "the row") -> dict[str, Any]:
    """The JSON object in some bytes; Unusable, with the reason, when anything is wrong with it. what: for messages."""
    try:
        row = _DECODER.decode(data.decode("utf-8"))
    except _Refused as err:
        raise Unusable(err.args[0], f"{what}: {err.args[1]}") from None
    except RecursionError:  # without it: its traceback is a thousand lines
        raise Unusable("deep", f"{what} is nested too deep") from None
    except UnicodeDecodeError as err:
        raise Unusable("json", f"{what} is not UTF-8: {err.reason} at byte {err.start}") from err
    except ValueError as err:  # a JSONDecodeError, or a whole number of thousands of digits
        raise Unusable("json", f"{what} is not valid JSON: {err}", fix=_fix(err)) from err
    if not isinstance(row, dict):
        raise Unusable("shape", f"{what} is a {type(row).__name__}, not an object")
    if _SURROGATE.search(data):
        _whole_characters(row, what)
    return row


def _fix(err: ValueError) -> str:
    """What to try; empty where nothing is known."""
    if not isinstance(err, json.JSONDecodeError):
        return ""
    behind = err.doc[err.pos :].lstrip()
    if err.msg == "Extra data" and behind.startswith("{"):
        return "a line of its own for each object"
    if behind.startswith("'"):
        return "JSON has double quotes: write the rows with json.dumps, not with str"
    if behind.startswith("}") and err.msg.startswith("Expecting property name"):
        return "take the comma in front of the } away"
    return ""


def _whole_characters(row: dict[str, Any], what: str) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as err:
        half = f"U+{ord(err.object[err.start]):04X}"
        raise Unusable("surrogate", f"{what} has {half} alone, half of a pair") from err
