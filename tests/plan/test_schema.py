"""The JSON schema of recipes: it takes what the strict reader takes, and refuses where `check` does.

`python -m tests.plan.test_schema` writes the file that is shipped beside the recipes.
"""

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from mmalign.errors import MMAlignError, RecipeError
from mmalign.io import yaml
from mmalign.plan import read, schema
from mmalign.plan.cards import Registry
from mmalign.plan.check import check
from tests.conftest import TINY
from tests.plan.test_mistakes import SIMPLE, Mistake
from tests.plan.test_mutations import mutate

SHIPPED = Path(read.__file__).parent.parent.parent / "recipes" / schema.FILE


def written() -> str:
    return schema.text(schema.schema(Registry(), own=False))


def test_the_shipped_schema_is_what_the_settings_and_cards_say():
    assert SHIPPED.read_text(encoding="utf-8") == written(), "python -m tests.plan.test_schema"


def test_every_shipped_recipe_carries_its_line():
    for name, place in read.shipped().items():
        comments = [text for text in place.read_text(encoding="utf-8").splitlines() if text.startswith("#")]
        assert schema.line() in comments, name
        assert (place.parent / schema.FILE).exists()


jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def shipped() -> Any:
    return jsonschema.Draft202012Validator(json.loads(SHIPPED.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def own() -> Any:
    """As `mmalign schema` writes it, for recipes of one's own."""
    return jsonschema.Draft202012Validator(schema.schema(Registry()))


def raw(text: str) -> dict[str, Any]:
    return yaml.parse(text, "x.yaml", RecipeError).raw


def places(validator: Any, recipe: Any) -> set[str]:
    """The dotted keys that a schema refuses."""
    return {".".join(map(str, path)) for error in validator.iter_errors(recipe) for path in _paths(error)}


def _paths(error: Any) -> list[list[Any]]:
    path = list(error.absolute_path)
    if error.validator == "required":
        return [[*path, key] for key in error.validator_value if key not in error.instance]
    if error.validator == "additionalProperties":
        patterns = error.schema.get("patternProperties", {})
        extra = set(error.instance) - set(error.schema.get("properties", {}))
        return [[*path, key] for key in extra if not any(re.search(one, key) for one in patterns)]
    if "propertyNames" in error.absolute_schema_path:
        return [[*path, error.instance]] if isinstance(error.instance, str) else [path]
    if error.validator == "uniqueItems":
        seen = [one for n, one in enumerate(error.instance) if one in error.instance[:n]]
        return [[*path, n] for n, one in enumerate(error.instance) if one in error.instance[:n]] if seen else [path]
    return [path]


def refusal(place: Path) -> str | None:
    """The dotted key at which the tool refuses a recipe; None: it does not."""
    try:
        check(read.load(place))
    except MMAlignError as err:
        return err.at.partition("  ")[2]
    return None


def test_it_is_a_schema_of_either_draft(shipped, own):
    for one in (shipped, own):
        jsonschema.Draft202012Validator.check_schema(one.schema)
        jsonschema.Draft7Validator.check_schema(one.schema)  # which editors know best


@pytest.mark.parametrize("name", sorted(read.shipped()))
def test_it_takes_every_shipped_recipe(shipped, name):
    recipe = yaml.read(read.shipped()[name], RecipeError).raw
    assert places(shipped, recipe) == set()
    assert list(jsonschema.Draft7Validator(shipped.schema).iter_errors(recipe)) == []


# Mistakes: told where `check` tells them

BEYOND = {  # what one file does not tell, or only with what stands elsewhere in it
    "NaN", "infinity", "batch and micro_batch", "no adapter", "nothing trained", "no objective", "no benchmark",
    "no scores", "circle", "missing parent", "slot of the wrong kind", "a width that does not fit",
    "squares that do not fit the grid", "few bits that learn", "few bits in pieces", "an objective without labels",
    "labels from two places", "an adapter that loses the grid", "data without images",
    "a store of what the data says itself", "labels by an encoder without words",
    "labels in the step by an encoder without words", "an empty word list", "a word list that is a picture",
    "no store where one is named", "muon with ZeRO", "missing registry folder", "broken YAML", "tabs", "duplicate key",
    "self-extending recipe", "extends what is not there", "alias loop", "an interpolation of nothing",
}  # fmt: skip
TOLD = [one for one in SIMPLE if one.old and not one.words and one.name not in BEYOND]


def test_nothing_beyond_is_gone():
    assert {one.name for one in SIMPLE} >= BEYOND
    assert len(TOLD) > 40


@pytest.mark.parametrize("mistake", TOLD, ids=lambda one: one.name)
def test_a_mistake_is_refused_where_the_tool_refuses_it(own, here, mistake: Mistake):
    text = TINY.replace(mistake.old, mistake.new, 1)
    (here / "x.yaml").write_text(text)
    at = refusal(here / "x.yaml")
    assert at
    document = yaml.parse(text, "x.yaml", RecipeError)
    assert any(inside(near(one, document), near(at, document)) for one in places(own, document.raw))
    assert places(own, raw(TINY)) == set()


def near(key: str, document: yaml.Document) -> str:
    """A key that is written down: itself, or the nearest above it."""
    while key and key not in document.at:
        key = key.rpartition(".")[0]
    return key


def inside(key: str, above: str) -> bool:
    return key == above or key.startswith(f"{above}.")


ARMS = "matrix:\n  arms:\n    a: {{{}}}\n"
MORE = [  # (what is laid behind the tiny recipe, where it is refused)
    (ARMS.format("stages.tune.bach: 16"), "stages.tune.bach"),
    (ARMS.format("stages.tune.batch: many"), "stages.tune.batch"),
    (ARMS.format("stages: {tune: {batch: 0}}"), "stages.tune.batch"),
    (ARMS.format("stages.align.objectives.see: 1.0"), "stages.align.objectives.see"),
    (ARMS.format("stages.align.objectives.sea: -1"), "stages.align.objectives.sea"),
    (ARMS.format("model.vision: toy-clp"), "model.vision"),
    (ARMS.format("model.vison: toy-clip"), "model.vison"),
    (ARMS.format("stages.tune.optim: {lr: fast}"), "stages.tune.optim.lr"),
    (ARMS.format("stages.tune.reads.weight: align"), "stages.tune.reads.weight"),
    (ARMS.replace("a:", "a/b:").format(""), "a/b"),
    ("matrix: {seeds: [1, 1]}\n", "matrix.seeds.1"),
    ("matrix: {seeds: -1}\n", "matrix.seeds"),
    ("matrix: {arm: {}}\n", "matrix.arm"),
    ("paper: [a]\n", "paper"),
    ("registry: {a: b}\n", "registry"),
]


@pytest.mark.parametrize(("text", "at"), MORE)
def test_a_mistake_in_what_makes_a_study_is_refused(own, here, text, at):
    (here / "x.yaml").write_text(TINY + text)
    assert refusal(here / "x.yaml") is not None
    assert {
        place.removeprefix("matrix.arms.a.").removeprefix("matrix.arms.") for place in places(own, raw(TINY + text))
    } >= {at}


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("stages: {align: {bach: 8}}", "stages.align.bach"),  # of a stage whose kind stands in the base
        ("stages: {align: {optim: {lr: fast}}}", "stages.align.optim.lr"),
        ("stages: {align: {kind: train, bench: toy-pope}}", "stages.align.bench"),
        ("stages: {align: {data: toy-chats}}", "stages.align.data"),
        ("stages: {align: {data: {card: toy-chat, args: {sise: 3}}}}", "stages.align.data.args.sise"),
        ("stages: {align: 3}", "stages.align"),
        ("stages: {a/b: {kind: train}}", "stages.a/b"),
        ("stages: []", "stages"),
        ("model: {vision: {crd: toy-clip}}", "model.vision.crd"),
    ],
)
def test_a_mistake_over_a_base_is_refused(own, here, text, at):
    text = f"extends: quickstart\n{text}\n"
    (here / "x.yaml").write_text(text)
    assert refusal(here / "x.yaml") == at
    assert at in places(own, raw(text))


# What the reader takes, the schema takes


DATA = "data: {card: toy-captions, args: {size: 48}}\n    trains"
LABELS = "reads: {labels: label}"
BENCH = "bench: [toy-perplexity]"
TERMS = "{lm: 1.0, sea: 1.0}"
ODD = {  # what stands in the tiny recipe: other forms of it
    "seed: 3": ["seed: '3'", "seed: 1_000", "seed: ~", "seed: ${oc.env:MMALIGN_SEED,3}", "seed: 3\nregistry: []",
                "seed: 3\nmatrix: ~", "seed: 3\nextends: ~"],
    "name: tiny": ["name: 5", "name: true", "name: tiny\npaper: 2408.11813", "name: x-${seed}"],
    "batch: 8": ["batch: ${stages.tune.batch}", "batch: '+8'"],
    "lr: 1e-3}": ["lr: '1e-3'}", "lr: 1}", "lr: .5}", "lr: '5.'}", "lr: 1e-3, lr_llm: ~, betas: [0, '0.9']}"],
    "steps: 6": ["steps: ~", *(f"steps: 6\n    pack: {yes}" for yes in ("yes", "0", "ON", "' 1'", "False", "-3"))],
    "trains: [adapter]": ["trains: adapter", "trains: ['${stages.tune.trains.0}']"],
    f"objectives: {TERMS}": ["objectives: ${stages.tune.objectives}"],
    TERMS: ["{lm: {weight: '1'}, sea: {args: {window: 3}}}", "{lm: ~, sea: 1, see: ~}", "{lm: {warmup: 0.5}}"],
    LABELS: ["reads: {labels: label, weights: ~, scores: []}", "labels: toy-words",
             "labels: {source: {card: toy-words}, keep: 2}"],
    BENCH: ["bench: toy-perplexity", "bench: {card: toy-perplexity}", "bench: [{card: toy-perplexity, args: {}}]"],
    DATA: [DATA.replace("{size: 48}", "~"), DATA.replace("48", "'${seed}'"), "data: toy-captions\n    trains"],
    "adapter: linear": ["adapter: {card: linear, args: {}}"],
    "llm: toy-llama": ["llm: {card: toy-llama, args: {lora: ~, lora_alpha: 1}}"],
    "scores: score": ["scores: [score]"],
}  # fmt: skip
ARM = [
    "{seeds: 4, arms: {a: {}, b: ~, c: {seed: 5}}}",
    "{arms: {a: {stages: {tune: {batch: 16}}}, b: {stages.tune: {batch: 8}, model.adapter.args.depth: 1}}}",
    "{arms: {a: {stages.score.bench.card: toy-pope, stages.align.data.args.size: 32, stages.report: ~}}}",
    "{arms: {a: {stages.tune.objectives.sea.weight: 0, stages.tune.labels: toy-words, stages.new: ~}}}",
    "{arms: {a: {stages.tune.objectives: {lm: 2, sea: ~}, stages.label.source.card: toy-words, paper: x}}}",
    "{arms: {a: {stages.tune: {kind: evaluate, bench: toy-pope}, stages.align.engine: {zero: 0}}}}",
]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *((old, new) for old, several in ODD.items() for new in several),
        *(("seed: 3", f"seed: 3\nmatrix: {arms}") for arms in ARM),
    ],
)
def test_odd_forms_that_the_reader_takes(own, here, old, new):
    assert old in TINY
    text = TINY.replace(old, new, 1)
    (here / "x.yaml").write_text(text)
    read.load(here / "x.yaml")
    assert places(own, raw(text)) == set()


def test_a_recipe_with_a_folder_of_cards_may_name_any(own, here):
    card = here / "shelf" / "adapters" / "mine.yaml"
    card.parent.mkdir(parents=True)
    card.write_text("summary: mine\ntarget: mmalign.adapters.mlp.MLP\nfacts: {keeps_grid: true}\n")
    text = TINY.replace("adapter: linear", "adapter: mine")
    assert places(own, raw(text)) == {"model.adapter"}
    (here / "base.yaml").write_text(text + "registry: [./shelf]\n")
    (here / "x.yaml").write_text("extends: base.yaml\nmodel: {adapter: mine}\n")
    assert refusal(here / "base.yaml") is None
    assert refusal(here / "x.yaml") is None
    assert places(own, raw(text + "registry: [./shelf]\n")) == set()
    assert places(own, raw("extends: base.yaml\nmodel: {adapter: mine}\n")) == set()


@pytest.mark.parametrize("many", [40, pytest.param(3000, marks=pytest.mark.slow)])
def test_what_is_refused_at_random_is_refused_by_the_tool(own, here, many):
    """Recipes with something in them changed: none that loads and is checked without fault is refused."""
    taken = 0
    for number in range(many):
        how = random.Random(number)
        changed = mutate(
            raw(TINY), how, how.choice([1, 0.5, "x", "${seed}", None, True, [], {}, "8", "lm", "toy-clip"])
        )
        (here / "x.yaml").write_text(yaml.dump(changed))
        if refusal(here / "x.yaml") is None:
            taken += 1
            assert places(own, changed) == set(), number
    assert taken > many / 30


if __name__ == "__main__":
    sys.exit(0 if SHIPPED.write_text(written(), encoding="utf-8") else 1)
