"""Files broken at random: what a flipped bit, a cut, a slip of the hand or another program makes of them.

    broken = mutated(whole, "json", random.Random(7))

The same generator state gives the same bytes, so that a seed is all that a failure has to name. Formats: `json`,
`jsonl` (one value a line), `yaml`, `text` (a table, a template, a word list) and `bytes`.
"""

import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

# What a value may be replaced by, as it would stand in a file of JSON, which YAML reads too.
VALUES = [
    "null", "true", "false", "0", "-1", "1", "2", "7", "0.5", "-0.0", "1e-3", "1e308", "1e999", "NaN", "-Infinity",
    "65536", "2147483648", "9223372036854775808", "-9223372036854775809", "1" + "0" * 30, "9" * 400, "9" * 5000,
    '""', '"x"', '"0"', '"1"', '"-1"', '"None"', '" "', '"\\u0000"', '"\\ud800"', '"\\u202e\\u001b[31m"', '"é東😀"',
    '"a\\nb"', '"/"', '"../.."', '"."', '"a/b"', '"C:\\\\x"', '"{}"', '"[/b]"', '"$x^{"', '"{{ x }}"', '"{% raise %}"',
    '"${seed}"',
    '"' + "long " * 200 + '"', "[]", "{}", "[null]", "[0, 1]", "[1, 2, 3]", "[[1, 2], [3]]", '["a", "a"]',
    '{"a": 1}', '{"": null}', '{"a": 1, "a": 2}', '{"a": {"a": {"a": []}}}',
    "[" * 60 + "]" * 60, "[" * 400 + "]" * 400, "[" * 100_000 + "]" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000,
]  # fmt: skip
NAMES = ["", "x", "a.b", "0", "__class__", "é", "None", "\ud800", "\x00", "format", "kind", "name", "self"]
PIECES = [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\t", b'"', b"'", b"{", b"}", b"[", b"]", b",", b":",
          b"%", b"{{", b"{%", b"%}", b"-", b"#", b"&a", b"*a", b"!!python/object:x", b"9" * 30]  # fmt: skip
MARK, AGAIN = "\ue000", "\ue001"  # stand for a value of VALUES, and for a key that is there already


def mutated(whole: bytes, form: str, how: random.Random) -> bytes:
    """The file with one to three things wrong with it."""
    edits = how.choice([1, 1, 1, 2, 3])
    if form in _STRUCTURED and how.random() < 0.7:
        return _STRUCTURED[form](whole, edits, how)
    for _ in range(edits):
        whole = how.choice(_RAW if form == "bytes" else [*_RAW, _word, _word, _word])(whole, how)
    return whole


# ------------------------------------------------------------------------------------------------------------ bytes


def _flip(whole: bytes, how: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(how.choice([1, 1, 4]) if data else 0):
        data[how.randrange(len(data))] ^= 1 << how.randrange(8)
    return bytes(data)


def _cut(whole: bytes, how: random.Random) -> bytes:
    return whole[: how.randrange(len(whole) + 1)]


def _span(whole: bytes, how: random.Random) -> tuple[int, int]:
    start = how.randrange(len(whole) + 1)
    return start, min(len(whole), start + how.choice([1, 3, 20, 400]))


def _without(whole: bytes, how: random.Random) -> bytes:
    start, end = _span(whole, how)
    return whole[:start] + whole[end:]


def _twice(whole: bytes, how: random.Random) -> bytes:
    start, end = _span(whole, how)
    return whole[:end] + whole[start:end] + whole[end:]


def _zeros(whole: bytes, how: random.Random) -> bytes:
    start, end = _span(whole, how)
    return whole[:start] + b"\0" * (end - start) + whole[end:]


def _insert(whole: bytes, how: random.Random) -> bytes:
    start, _ = _span(whole, how)
    return whole[:start] + how.choice(PIECES) + whole[start:]


def _instead(whole: bytes, how: random.Random) -> bytes:
    return how.choice(
        [b"", b"\n", b"\xef\xbb\xbf", b"null", b"[]", b"{}", b"0", b'""', b"\xff\xfe\0", how.randbytes(40)]
    )


_RAW: list[Callable[[bytes, random.Random], bytes]] = [_flip, _cut, _without, _twice, _zeros, _insert, _flip, _instead]


def _word(whole: bytes, how: random.Random) -> bytes:
    """A word of a text replaced, left out, repeated or put elsewhere."""
    words = re.split(rb"(\W)", whole)
    at, other = how.randrange(len(words)), how.randrange(len(words))
    new = how.choice([b"", words[at] * 2, words[other], how.choice(PIECES), how.choice(VALUES[:40]).encode()])
    return b"".join([*words[:at], new, *words[at + 1 :]])


# ----------------------------------------------------------------------------------------------------------- values


def _json(whole: bytes, edits: int, how: random.Random) -> bytes:
    tree = _edited(json.loads(whole), edits, how)
    return _filled(json.dumps(tree, indent=1), how).encode("utf-8", "surrogatepass")


def _jsonl(whole: bytes, edits: int, how: random.Random) -> bytes:
    rows = _edited([json.loads(line) for line in whole.splitlines()], edits, how)
    lines = [json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows])]
    return _filled("".join(lines), how).encode("utf-8", "surrogatepass")


def _yaml(whole: bytes, edits: int, how: random.Random) -> bytes:
    tree = _edited(yaml.safe_load(whole), edits, how)
    text = yaml.dump(tree, sort_keys=False, width=10**9, default_flow_style=how.random() < 0.2)
    return _filled(text, how).encode("utf-8", "surrogatepass")


_STRUCTURED = {"json": _json, "jsonl": _jsonl, "yaml": _yaml}


def _filled(text: str, how: random.Random) -> str:
    """The text with its marks written out: odd values, and keys that stand twice."""
    text = re.sub(r'"?(?:\ue000|\\ue000|\\uE000)"?', lambda _: how.choice(VALUES), text)
    return re.sub(r"\ue001|\\ue001|\\uE001", "", text)


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a nest."""
    yield path
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, inner in pairs:
        yield from _places(inner, (*path, key))


def _at(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


def _edited(tree: Any, edits: int, how: random.Random) -> Any:
    root = [tree]
    for _ in range(edits):
        places = list(_places(root))[1:]
        if not places:
            break
        path = how.choice([place for place in places if len(place) < 4 or how.random() < 0.5] or places)
        above, key = _at(root, path[:-1]), path[-1]
        how.choice(_DEEDS)(above, key, root, how)
    return root[0] if root else None


def _set(above: Any, key: Any, root: Any, how: random.Random) -> None:
    above[key] = MARK


def _like(above: Any, key: Any, root: Any, how: random.Random) -> None:
    """Another value of the same type."""
    old = above[key]
    if isinstance(old, bool):
        above[key] = not old
    elif isinstance(old, (int, float)):
        above[key] = how.choice([0, -1, 1, 2, old + 1, old - 1, -old, old * 2, float(old), 0.5, 3, 65537])
    elif isinstance(old, str):
        above[key] = how.choice([old[: len(old) // 2], old + "x", old.upper(), old[::-1], f" {old}", "", "x", old * 2])
    elif isinstance(old, list):
        above[key] = how.choice([[], old[:-1], old[1:], old[::-1], old + old[:1]])
    elif isinstance(old, dict):
        above[key] = {name: old[name] for name in how.sample(list(old), how.randint(0, len(old)))}


def _delete(above: Any, key: Any, root: Any, how: random.Random) -> None:
    if above is not root:
        del above[key]


def _rename(above: Any, key: Any, root: Any, how: random.Random) -> None:
    if isinstance(above, dict):
        above[how.choice([*NAMES, f"{key}x"])] = above.pop(key)


def _repeat(above: Any, key: Any, root: Any, how: random.Random) -> None:
    """A key that is there twice, with two values; an item of a list twice."""
    if isinstance(above, dict):
        above[f"{key}{AGAIN}"] = how.choice([above[key], MARK])
    elif above is not root:
        above.insert(key, above[key])


def _add(above: Any, key: Any, root: Any, how: random.Random) -> None:
    if isinstance(above, dict):
        above[how.choice(NAMES)] = MARK
    elif above is not root:
        above.append(MARK)


def _wrap(above: Any, key: Any, root: Any, how: random.Random) -> None:
    above[key] = how.choice([[above[key]], {"a": above[key]}, str(above[key])[:50]])


def _swap(above: Any, key: Any, root: Any, how: random.Random) -> None:
    """The value of another place, and that one's here where neither holds the other."""
    path = how.choice(list(_places(root))[1:])
    other, name = _at(root, path[:-1]), path[-1]
    text = json.dumps(other[name])
    other[name], above[key] = json.loads(json.dumps(above[key])), json.loads(text)


_DEEDS = [_set, _set, _set, _set, _like, _like, _like, _delete, _delete, _rename, _repeat, _add, _wrap, _swap]
