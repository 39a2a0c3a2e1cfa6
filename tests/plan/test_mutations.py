"""Shipped recipes, mutated at random: they load, check and plan, or say what is wrong; nothing else ever happens."""

import copy
import random
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmalign.errors import MMAlignError, RecipeError
from mmalign.io import yaml as lines
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.plan.cards import Registry
from mmalign.plan.check import check

RECIPES = {name: place.read_text() for name, place in compose.shipped().items()}
WORDS = [
    "lm", "sea", "adapter", "vision", "llm", "train", "label", "report", "toy-clip", "toy-llama", "linear", "align",
    "tune", "kind", "card", "args", "reads", "weights", "extends", "matrix", "arms", "seeds", "quickstart", "data",
    "stages", "optim", "lr", "name", "model", "???", "${seed}", "${stages.align}", "${oc.env:HOME}", "${", "pkg:x/y",
    "./x", "~", "<<", "a.b", "", ".", "..", "1e-3", "nan", "2e", "é", "[/b]", "s3://a/b", "/", "/" + "a" * 300, "a\0b",
]  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=5)
    | st.sampled_from([0, -1, 10**30, 10**400, 1e308, -0.0])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=6,
)


def survives(text: str, words: list[str], folder: Path) -> bool:
    """True: it is a plan; False: it is a mistake with a message. Anything else is raised."""
    place = folder / "x.yaml"
    place.write_text(text, encoding="utf-8")
    try:
        variants = compose.load(place, words)
        registry = Registry(variants[0].registry)
        check(variants, registry)
        graph.plan(variants, folder / "runs", registry)
    except MMAlignError as err:
        if err.what and err.exit_code == 2:
            return False
        raise AssertionError(f"a mistake without words: {err!r}") from err
    return True


def places(node, path=()):
    """The path of every value in a nest."""
    yield path
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*path, key))


def at(node, path):
    for key in path:
        node = node[key]
    return node


NUMBERS = [0, 1, 2, 3, 8, 16, 32, 0.5, 1e-3, -1, 1.0, 100]
NAMES = [*WORDS, "evaluate", "score", "language", "contrast", "toy-words", "toy-truth", "toy-captions", "toy-chat",
         "toy-texts", "toy-pope", "mlp2x-gelu", "identity", "fp32", "bf16", "muon", "adamw", "constant"]  # fmt: skip
DEEDS = ["like", "like", "like", "delete", "rename", "set", "copy", "nest", "list", "move"]


def like(value, how: random.Random):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return how.choice(NUMBERS)
    if isinstance(value, str):
        return how.choice(NAMES)
    if isinstance(value, list):
        return how.sample(value, len(value)) + [how.choice(NAMES)] * how.randint(0, 1)
    return {key: value[key] for key in how.sample(list(value), how.randint(0, len(value)))} if value else {}


def mutate(raw: dict, how: random.Random, value) -> dict:
    """One change somewhere: another value like it, delete, rename, retype, repeat, nest or move."""
    path = how.choice(list(places(raw))[1:])
    above, key, deed = at(raw, path[:-1]), path[-1], how.choice(DEEDS)
    old = above[key]
    if deed == "like":
        above[key] = like(old, how)
    elif deed == "delete":
        del above[key]
    elif deed == "set":
        above[key] = value
    elif deed == "nest":
        above[key] = {how.choice(WORDS): old}
    elif deed == "list":
        above[key] = [old, value]
    elif isinstance(above, dict):
        if deed == "move":
            old = above.pop(key)
            other = at(raw, how.choice([p for p in places(raw) if isinstance(at(raw, p), dict)]))
            other[key] = copy.deepcopy(old)
        else:
            above[how.choice([*WORDS, f"{key}x"])] = copy.deepcopy(old)
            if deed == "rename":
                above.pop(key)
    return raw


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated")


def many(examples: int):
    return settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
    )


def each(few: int, all_of_them: int):
    """So many examples in every run, and all of them among the slow tests."""
    return pytest.mark.parametrize("examples", [few, pytest.param(all_of_them, marks=pytest.mark.slow)])


def test_unchanged_recipes_survive(folder):
    assert survives(RECIPES["quickstart"], [], folder)


@each(100, 700)
def test_mutated_recipes(folder, examples):
    @many(examples)
    @given(st.data())
    def run(data):
        name = data.draw(st.just("quickstart") | st.just("quickstart") | st.sampled_from(sorted(RECIPES)))
        raw = lines.parse(RECIPES[name], name, RecipeError).raw
        how = random.Random(data.draw(st.integers(0, 2**32)))
        for _ in range(how.choice([1, 1, 2, 3])):
            raw = mutate(raw, how, data.draw(VALUES))
        survives(lines.dump(raw), [], folder)

    run()


@each(100, 600)
def test_mutated_text(folder, examples):
    """Lines deleted, repeated, swapped, cut and indented."""

    @many(examples)
    @given(st.data())
    def run(data):
        text = RECIPES["quickstart"].splitlines()
        how = random.Random(data.draw(st.integers(0, 2**32)))
        for _ in range(how.randint(1, 4)):
            n = how.randrange(len(text))
            deed = how.choice(["delete", "repeat", "indent", "cut", "insert"])
            if deed == "delete" and len(text) > 1:
                del text[n]
            elif deed == "repeat":
                text.insert(how.randrange(len(text)), text[n])
            elif deed == "indent":
                text[n] = " " * how.randint(1, 4) + text[n]
            elif deed == "cut":
                text[n] = text[n][: how.randint(0, len(text[n]))]
            else:
                m = how.randint(0, len(text[n]))
                text[n] = text[n][:m] + how.choice("{}[],:&*#'\"|>-?!%@` \t\n0e.\x00é") + text[n][m:]
        survives("\n".join(text), [], folder)

    run()


KEYS = st.lists(st.sampled_from(["stages", "label", "align", "tune", "score", "new", *WORDS, "0"]), max_size=5)


@each(80, 400)
def test_random_overrides(folder, examples):
    @many(examples)
    @given(st.data())
    def run(data):
        text = RECIPES["quickstart"]
        raw = lines.parse(text, "x", RecipeError).raw
        words = []
        for _ in range(data.draw(st.integers(1, 2))):
            path = data.draw(st.sampled_from([path for path in places(raw) if path]))
            key = data.draw(st.just(".".join(map(str, path))) | KEYS.map(".".join))
            alike = st.integers(0, 999).map(lambda n: like(at(raw, path), random.Random(n)))  # noqa: B023
            value = data.draw((alike | alike | VALUES).map(lines.dump) | st.text(max_size=6))
            words.append(f"{key}={value.removesuffix('...').strip()}")
        survives(text, words, folder)

    run()


@many(200)
@given(VALUES)
def test_random_files(folder, value):
    survives(lines.dump(value), [], folder)


@many(200)
@given(st.binary(max_size=60))
def test_random_bytes(folder, raw):
    place = folder / "y.yaml"
    place.write_bytes(raw)
    with pytest.raises(RecipeError):
        compose.load(place)


@each(50, 200)
def test_random_cards(folder, examples):
    @many(examples)
    @given(VALUES, st.sampled_from(["summary", "target", "args", "facts", "paper", "license", "x"]))
    def run(value, key):
        shelf = folder / "shelf" / "adapters"
        shelf.mkdir(parents=True, exist_ok=True)
        raw = {"summary": "a", "target": "mmalign.adapters.mlp.MLP", key: value}
        (shelf / "mine.yaml").write_text(yaml.safe_dump(raw))
        survives(RECIPES["quickstart"], [f"registry=[{folder / 'shelf'}]", "model.adapter=mine"], folder)

    run()
