"""YAML with lines: plain scalars as YAML 1.2 has them, places of keys, damage named, nothing that can hang."""

import time

import pytest
import yaml as pyyaml
from hypothesis import given
from hypothesis import strategies as st

from mmalign.errors import RecipeError
from mmalign.io import yaml


def read(text):
    return yaml.parse(text, "x.yaml", RecipeError)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-3", 0.001), ("1E3", 1000.0), ("010", 10), ("0x1F", 31), ("-7", -7), (".5", 0.5), ("1.", 1.0),
        ("no", "no"), ("on", "on"), ("yes", "yes"), ("1:30", "1:30"), ("2026-01-01", "2026-01-01"), ("1_000", "1_000"),
        ("true", True), ("~", None), ("null", None), ("", None), ("'8'", "8"), ("0o17", "0o17"), (".inf", float("inf")),
    ],
)  # fmt: skip
def test_plain_scalars(written, meant):
    found = read(f"a: {written}").raw["a"]
    assert found == meant
    assert type(found) is type(meant)


def test_every_key_and_list_item_knows_its_line():
    found = read("a:\n  b: 1\n  c:\n  - x\n  - {d: 2}\n'e.f': 3\n")
    assert found.at == {
        "a": "x.yaml:1", "a.b": "x.yaml:2", "a.c": "x.yaml:3", "a.c.0": "x.yaml:4", "a.c.1": "x.yaml:5",
        "a.c.1.d": "x.yaml:5", "e.f": "x.yaml:6",
    }  # fmt: skip


def test_a_missing_key_points_at_what_is_nearest_above_it():
    found = read("\na:\n  b: 1\n")
    assert found.where("a.b.c.d") == "x.yaml:3  a.b.c.d"
    assert found.where("a.z") == "x.yaml:2  a.z"
    assert found.where("z") == "x.yaml:1  z"


def test_keys_behind_an_alias_or_a_merge_point_at_where_they_are_written():
    found = read("base: &base\n  zero: 9\n  more: 1\na: *base\nb:\n  <<: *base\n  more: 2\n")
    assert found.where("a.zero") == "x.yaml:2  a.zero"
    assert found.where("b.zero") == "x.yaml:2  b.zero"
    assert found.where("b.more") == "x.yaml:7  b.more"
    assert found.raw["b"] == {"zero": 9, "more": 2}


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("a: 1\nb: [1\nc: 2\n", "not valid YAML", 3),
        ("a: 1\nb: 1\na: 2\n", "the key 'a' is written twice", 3),
        ("l:\n- a: 1\n  a: 2\n", "the key 'a' is written twice", 3),
        ("a: 1\nb: &b [*b]\n", "an alias refers to itself", 2),
        ("a: 1\nb: &b {c: {d: *b}}\n", "an alias refers to itself", 2),
        ("a: 1\n\ttab: 2\n", "tab", 2),
        ("- a\n- b\n", "expected `key: value` lines, got a list", 1),
        ("word\n", "expected `key: value` lines, got a single value 'word'", 1),
        ("a: 1\n---\nb: 1\n", "another document", 2),
        ("a: 1\n? [b]\n: 1\n", "a key must be a plain word", 2),
        ("a: 1\ntrue: 1\n", "a key must be a word, got true", 2),
        ("a: 1\n2: 1\n", "a key must be a word, got 2", 2),
        ("a: !!python/object/apply:os.system [true]\n", "no YAML tags here", 1),
        ("a: !!set {b}\n", "no YAML tags here", 1),
        ("a: *nowhere\n", "undefined alias", 1),
        ("a: !!bool maybe\n", "not valid YAML", None),
        ("a: \x01\n", "control characters", None),
    ],
)
def test_damage_is_named_with_its_line(text, what, line):
    with pytest.raises(RecipeError) as caught:
        read(text)
    assert what in caught.value.what
    assert caught.value.at == ("x.yaml" if line is None else f"x.yaml:{line}")
    assert caught.value.fix


BRACKETS = 100_000
NESTED = {  # texts of so many levels, or so many below the top
    "lists in one line": lambda levels: "a: " + "[" * (levels - 1) + "]" * (levels - 1),
    "lists in many lines": lambda levels: "a: " + "[\n" * (levels - 1) + "]" * (levels - 1),
    "mappings in one line": lambda levels: "{a: " * levels + "}" * levels,
    "both in one line": lambda levels: "{a: [" * (levels // 2) + "]}" * (levels // 2),
    "quoted keys": lambda levels: '{"a":' * levels + "}" * levels,
    "indented mappings": lambda levels: "".join(f"{' ' * level}a:\n" for level in range(levels)),
    "indented lists": lambda levels: "a:\n" + "".join(f"{' ' * level}-\n" for level in range(levels - 1)),
    "lists of lists": lambda levels: "a:\n" + "- " * (levels - 1),
    "brackets below blocks": lambda levels: "a:\n" + "- " * (levels - 50) + "[" * 49 + "]" * 49,
    "merges": lambda levels: "<<: " + "{<<: " * (levels - 2) + "{}" + "}" * (levels - 2),
    "merges of aliases": lambda levels: _chain("{{<<: *a{}}}", levels),
    "aliases": lambda levels: _chain("{{b: *a{}}}", levels),
    "lists of aliases": lambda levels: _chain("[*a{}]", levels),
}


def _chain(inner, levels):
    lines = [f"a{number}: &a{number} {inner.format(number - 1)}\n" for number in range(1, levels - 1)]
    return "a0: &a0 {}\n" + "".join(lines)


@pytest.fixture(params=["libyaml", "python"])
def loader(request, monkeypatch):
    """PyYAML reads with libyaml where it was built with it, else in Python."""
    if request.param == "python":
        namespace = {name: getattr(yaml._Loader, name) for name in ("yaml_implicit_resolvers", "yaml_constructors")}
        monkeypatch.setattr(yaml, "_Loader", type("Loader", (pyyaml.SafeLoader,), namespace))


@pytest.mark.parametrize("kind", NESTED)
def test_100_levels_are_read_and_101_refused(kind, loader):
    found = read(NESTED[kind](100))
    assert len(found.at) >= 1
    with pytest.raises(RecipeError) as caught:
        read(NESTED[kind](102 if kind == "both in one line" else 101))
    assert caught.value.what == "nested more than 100 deep"
    assert caught.value.at.startswith("x.yaml:")
    assert caught.value.fix == "close what is open there, or use fewer levels"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: " + "[" * BRACKETS, 1),
        ("a: 1\nb:\n  " + "[" * BRACKETS, 3),
        ("a: " + "{b: " * BRACKETS, 1),
        ("a: " + "[\n" * BRACKETS, 101),
        ("a:\n" + "- " * BRACKETS, 2),
        ("? " * BRACKETS, 1),
        ("<<: " + "{<<: " * BRACKETS, 1),
        ("".join(f"{' ' * level}a:\n" for level in range(1_500)), 101),  # a megabyte; 100,000 are five gigabytes
        ("a:\n" + "".join(f"{' ' * level}-\n" for level in range(1_500)), 101),
        ("# [[[\na: '[['\nb: " + "[" * 101, 3),
        ("a: |\n" + " [[[\n" * 40 + "b: " + "[" * 101, 42),
    ],
)
def test_nesting_without_end_is_refused_at_its_line_and_at_once(text, line, loader):
    began = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        read(text)
    assert (caught.value.what, caught.value.at) == ("nested more than 100 deep", f"x.yaml:{line}")
    assert time.monotonic() - began < 5


def test_a_value_of_the_command_line_is_refused_as_a_file_is(loader):
    for text in ("[" * BRACKETS, "{a: " * BRACKETS, "- " * BRACKETS):
        with pytest.raises(RecipeError) as caught:
            yaml.value(text, "command line", RecipeError)
        assert (caught.value.what, caught.value.at) == ("nested more than 100 deep", "command line:1")
    assert yaml.value("[" * 100 + "]" * 100, "command line", RecipeError)


def test_no_limit_of_pyyaml_comes_first(monkeypatch):
    """Brackets are counted before PyYAML sees them, whatever it would say."""
    monkeypatch.setattr(pyyaml, "parse", lambda *_: pytest.fail("PyYAML was asked"))
    with pytest.raises(RecipeError, match="nested more than 100 deep"):
        read("a: " + "[" * 101)


def test_merges_of_merges_do_not_eat_the_machine():
    text = "a0: &a0 {}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60))
    began = time.monotonic()
    with pytest.raises(RecipeError, match="more than 20,000 settings"):
        read(text)
    assert time.monotonic() - began < 5


def test_aliases_of_aliases_do_not_eat_the_machine():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    began = time.monotonic()
    with pytest.raises(RecipeError, match="more than 20,000 settings"):
        read(bomb)
    assert time.monotonic() - began < 5


def test_an_empty_file_is_an_empty_mapping():
    assert read("# nothing\n").raw == {}


def test_a_file_that_is_no_text(tmp_path):
    place = tmp_path / "x.yaml"
    place.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(RecipeError) as caught:
        yaml.read(place, RecipeError)
    assert "not UTF-8 text" in caught.value.what
    assert "byte 11" in caught.value.what
    with pytest.raises(RecipeError, match="Is a directory"):
        yaml.read(tmp_path, RecipeError)


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path):
    place = tmp_path / "x.yaml"
    place.write_bytes("\ufeffa: 1\r\nb: zwei\r\n".encode())
    found = yaml.read(place, RecipeError)
    assert found.raw == {"a": 1, "b": "zwei"}
    assert found.where("b") == f"{place}:2  b"


@pytest.mark.parametrize("word", ["1e-3", "1234e567", "010", "no", "~", "", "true", "0x1F", "<<", "a: b", "# x", "*a"])
def test_dump_keeps_words_words(word):
    """A revision like 1234e567 is a number to YAML 1.2 and a word to the YAML 1.1 that PyYAML writes."""
    assert read(yaml.dump({"a": word})).raw == {"a": word}


PRINTABLE = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\x85\u2028\u2029"), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | PRINTABLE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PRINTABLE, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_dump_and_read_are_inverse(value):
    assert read(yaml.dump({"a": value})).raw == {"a": value}
