"""What is said of recipes with a whole model, before any weight is read."""

import json
import re
from pathlib import Path

import pytest

from mmalign.errors import CheckError
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.plan.cards import Registry
from mmalign.plan.check import check

RECIPE = """\
name: whole
model: {vlm: smolvlm-256m}
stages:
  tune:
    kind: train
    data: toy-captions
    trains: [adapter]
    objectives: {lm: 1.0, basic-direction: 1.0}
    optim: {lr: 1e-3}
    batch: 8
    engine: {zero: 0}
  score: {kind: evaluate, reads: {weights: tune}, bench: [toy-pope]}
  export: {kind: export, reads: {weights: tune}}
"""
PAGE = Path(__file__).parents[2] / "docs" / "vision-language-models.md"
SHELF = ["registry=[shelf]"]


@pytest.fixture
def recipe(here):
    (here / "whole.yaml").write_text(RECIPE)
    return here


def refused(*words: str) -> CheckError:
    with pytest.raises(CheckError) as caught:
        check(compose.load("whole.yaml", list(words)))
    return caught.value


def shelf(folder: Path, family: str, name: str, text: str) -> None:
    place = folder / "shelf" / family / f"{name}.yaml"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def test_a_whole_model_in_place_of_three_parts(recipe):
    recipes = compose.load("whole.yaml")
    assert check(recipes) == []
    tune, score, export = graph.plan(recipes, "runs")
    for node in (tune, score, export):
        assert node.cards["vlm"].args == {"checkpoint": "HuggingFaceTB/SmolVLM-256M-Instruct"}
        assert not {"vision", "adapter", "llm"} & node.cards.keys()
    other, *_ = graph.plan(compose.load("whole.yaml", ["model.vlm=smolvlm-500m"]), "runs")
    assert other.folder != tune.folder


@pytest.mark.parametrize("card", Registry().every("vlms"), ids=lambda card: card.name)
def test_a_card_says_what_a_reader_asks_for(card):
    assert {"family", "dim", "layers", "patches", "gated"} <= card.facts.keys()
    assert card.paper
    assert card.license
    assert re.fullmatch(r"[\w-]+/[\w.-]+", card.args["checkpoint"])


def test_the_recipe_of_the_page(here):
    own, mine = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (here / "page.yaml").write_text(own)
    (here / "rows.jsonl").write_text('{"messages": []}\n')
    recipes = compose.load("page.yaml")
    told = check(recipes, ahead=True)
    assert all("does not exist" in note for note in told)  # POPE's files
    assert [node.name for node in graph.plan(recipes, "runs")] == ["tune", "score", "export"]
    shelf(here, "vlms", "mine", mine)
    (here / "shelf" / "vlms" / "my-model").mkdir()
    (here / "shelf" / "vlms" / "my-model" / "config.json").write_text('{"vision_config": {}}')
    (here / "shelf" / "vlms" / "my-model" / "model.safetensors").write_text("")
    check(compose.load("page.yaml", ["model.vlm=mine", "registry=[shelf]"]), ahead=True)


def test_one_of_the_two(recipe):
    problem = refused("model.adapter=linear")
    assert problem.what == "the model is a whole one, smolvlm-256m, and has a part beside it: adapter"
    assert problem.at == "command line  model.adapter"
    assert problem.fix == "model: {vlm: NAME}   (mmalign list vlms), or vision, adapter and llm"


@pytest.mark.parametrize("kind", ["contrast", "language"])
def test_no_stage_of_one_part(recipe, kind):
    data = {"contrast": "toy-pairs", "language": "toy-texts"}[kind]
    words = ["stages.score=~", "stages.export=~", "stages.tune=~"]
    problem = refused(*words, f"stages.one={{kind: {kind}, data: {data}, optim: {{lr: 1}}, batch: 1, steps: 1}}")
    assert problem.what == f"stage 'one' (kind {kind}) trains one part alone, and smolvlm-256m is a whole model"
    assert problem.fix == "kind: train, with `trains: [llm]`"


@pytest.mark.parametrize(
    ("setting", "value", "why", "fix"),
    [
        ("fit", "pad", "pictures go through the model's own processor", "no `fit`"),
        ("template", "pkg:mmalign.llms/templates/chatml.jinja", "it is trained in its own chat format",
         "no `template`"),
        ("pack", "true", "rows are the model's own processor's, a sample each", "pack: false"),
        ("group_by_length", "step", "how long a sample is, only its processor can tell", "no `group_by_length`"),
        ("watch", "[premise]", "its shallow layers are not watched while it trains",
         "no `watch`; mmalign inspect, afterwards"),
    ],
)  # fmt: skip
def test_settings_of_models_of_three_parts(recipe, setting, value, why, fix):
    problem = refused(f"stages.tune.{setting}={value}")
    assert problem.what == f"stage 'tune': smolvlm-256m takes no `{setting}`: {why}"
    assert (problem.at, problem.fix) == (f"command line  stages.tune.{setting}", fix)


def test_no_zero_3(recipe):
    problem = refused("stages.tune.engine.zero=3")
    assert problem.what == "stage 'tune': smolvlm-256m is a whole model, and ZeRO 3 is for models of three parts"
    assert problem.fix == "engine: {zero: 2}"


SEA = "stages.tune.objectives={lm: 1.0, sea: 1.0}"
SOURCE = "{card: siglip-words, args: {words: 'pkg:mmalign.toyworld/words/clean.txt'}}"  # a list that is here


def test_labels_are_made_in_the_pass(recipe):
    problem = refused(SEA, f"stages.tune.labels={{source: {SOURCE}, store: ./labels}}")
    assert problem.what == "stage 'tune': labels of smolvlm-256m are made in the pass, and no store is read"
    assert problem.fix == "labels: a source with an encoder, such as siglip-words"
    made = f"stages.label={{kind: label, source: {SOURCE}, data: toy-captions}}"
    problem = refused(SEA, made, "stages.tune.reads={labels: label}")
    assert problem.what == "stage 'tune': labels of smolvlm-256m are made in the pass, and none are read"
    problem = refused(SEA, "stages.tune.labels=toy-truth")
    what = "stage 'tune': toy-truth takes the data's own words, by patches that a whole model has not"
    assert (problem.what, problem.at) == (what, "command line  stages.tune.labels")


def test_labels_by_a_source_with_an_encoder(recipe):
    check(compose.load("whole.yaml", [SEA, "stages.tune.labels=siglip-words"]), ahead=True)


def test_objectives_that_a_whole_model_cannot_have(recipe):
    shelf(recipe, "objectives", "mine", "summary: mine\ntarget: mmalign.objectives.lm.NextToken\n")
    problem = refused(*SHELF, "stages.tune.objectives={mine: 1.0}")
    assert problem.what == "stage 'tune': mine looks at the answers, and smolvlm-256m keeps them to itself"
    assert (problem.at, problem.fix) == ("command line  stages.tune.objectives.mine", "lm, the model's own loss")
    problem = refused("stages.tune.objectives={basic-direction: {args: {space: lens}}}")
    assert (
        problem.what == "stage 'tune': basic-direction reads layers through a lens, and none is fitted on a whole model"
    )
    assert problem.fix == "space: input"
    problem = refused("stages.tune.objectives={basic-direction: {args: {layers: 31}}}")
    assert "31" in problem.what
    assert "smolvlm-256m" in problem.what


def test_a_card_whose_patches_nobody_knows(recipe):
    text = "summary: mine\ntarget: mmalign.integrations.checkpoint.Checkpoint\nargs: {checkpoint: me/mine}\n"
    shelf(recipe, "vlms", "mine", text + "facts: {patches: false}\n")
    problem = refused(*SHELF, "model.vlm=mine", SEA, f"stages.tune.labels={{source: {SOURCE}}}")
    assert problem.what == "stage 'tune': sea supervises single patches, and where those of mine lie is not known"
    assert problem.fix == "basic-direction or basic-distribution"


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"model_type": "llama"}, "vlms 'mine': {} is no vision-language model: its config.json has no vision_config"),
        ({"model_type": "llava", "vision_config": {}},
         "vlms 'mine': the card says family: smolvlm, the config.json of {} llava"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_is_here(recipe, config, what):
    place = recipe / "mine"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    (place / "model.safetensors").write_text("")
    text = f"summary: mine\ntarget: mmalign.integrations.checkpoint.Checkpoint\nargs: {{checkpoint: {place}}}\n"
    shelf(recipe, "vlms", "mine", text + ("facts: {family: smolvlm}\n" if len(config) > 1 else ""))
    assert refused(*SHELF, "model.vlm=mine").what == what.format(place)


def test_objectives_that_look_at_hidden_states(recipe):
    check(compose.load("whole.yaml", ["stages.tune.objectives={lm: 1.0, next-embedding: 0.1, caption-contrast: 1.0}"]))
    check(compose.load("whole.yaml", ["stages.tune.objectives={lm: 1.0, representation: {args: {encoder: toy-clip}}}"]))
    problem = refused("stages.tune.objectives={lm: 1.0, caption-contrast: {weight: 1.0, args: {layer: 99}}}")
    assert problem.what == "stage 'tune': caption-contrast: layer is 99, and smolvlm-256m has 30"
    assert problem.fix == "layer: last, or 0 (what goes in) to 30"
