"""A whole model of transformers in a recipe: trained, asked and exported as its own class."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import mmalign
from mmalign.data import MARK, Turn
from mmalign.errors import CheckError, RunError, StageError
from mmalign.integrations import shown
from mmalign.pipeline import build, existing, task
from mmalign.plan import check, graph
from mmalign.plan import read as compose
from mmalign.plan.cards import Registry
from mmalign.plan.recipe import Evaluate, Part
from mmalign.stages import evaluate, export, export_whole, train, whole
from mmalign.stages.checks import Checks
from mmalign.training.events import Events
from tests.integrations import families
from tests.integrations.test_declared import picture

RECIPE = """\
name: whole
seed: 5
registry: [{shelf}]
model: {{vlm: {family}}}
stages:
  tune:
    kind: train
    data: {{card: conversations, args: {{path: {data}}}}}
    trains: [adapter, llm]
    objectives: {{lm: 1.0, basic-direction: 1.0}}
    optim: {{lr: 1e-2, lr_llm: 1e-3}}
    batch: 4
    micro_batch: 2
    steps: 2
    precision: fp32
    log_every: 1
    engine: {{zero: 0, save_every: 1, workers: 0}}
  score: {{kind: evaluate, reads: {{weights: tune}}, bench: {{card: toy-pope, args: {{images: 1}}}}, precision: fp32}}
  export: {{kind: export, reads: {{weights: tune}}}}
"""
CARD = "summary: a tiny one\ntarget: mmalign.integrations.checkpoint.Checkpoint\nargs: {checkpoint: %s}\n"
ROWS = [
    [("user", "<image>\nwhat is this ?"), ("assistant", "a red star")],
    [("user", "<image>\nwhat colour is the ring ?"), ("assistant", "blue"), ("user", "is it large ?"),
     ("assistant", "no it is small")],
    [("user", "<image>\n<image>\nare they the same ?"), ("assistant", "yes")],
    [("user", "is a circle a square ?"), ("assistant", "no")],
]  # fmt: skip
SIZES = [(40, 30), (20, 50), (33, 33)]
FAMILIES = ("llava", "qwen2_5_vl", "idefics3")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with conversations about pictures of unlike sizes, two of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    rows = []
    for number, turns in enumerate(ROWS * 2):
        files = []
        for n in range(sum(text.count(MARK) for _, text in turns)):
            files.append(f"{number}-{n}.png")
            picture(40 - 8 * n, 24 + 2 * number, seed=number).save(folder / files[-1])
        said = [{"role": role, "content": text} for role, text in turns]
        rows.append({"id": str(number), "messages": said, **({"image": files} if files else {})})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def _cache(work, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(work / "cache"))
    monkeypatch.setenv("MMALIGN_REGISTRY", str(work / "shelf"))


def checkpoint(work: Path, family: str) -> Path:
    place = work / family
    if not place.exists():
        for part in families.make(family):
            part.save_pretrained(place)
        card = work / "shelf" / "vlms" / f"{family}.yaml"
        card.parent.mkdir(parents=True, exist_ok=True)
        card.write_text(CARD % place)
    return place


def planned(work: Path, family: str, *words: str, runs: str = "runs") -> dict[str, task.Task]:
    """The stages of the recipe, checked and as tasks."""
    checkpoint(work, family)
    place = work / f"{family}.yaml"
    place.write_text(RECIPE.format(family=family, shelf=work / "shelf", data=work / "rows.jsonl"))
    recipes = compose.load(place, list(words))
    check.check(recipes)
    nodes = graph.plan(recipes, work / runs)
    for node in nodes:
        if not node.done:
            task.save(node)
    return {node.name: task.load(node.folder) for node in nodes}


def done(given: task.Task, run) -> dict:
    results = run(given)
    task.finish(given, results, 0.0, 1)
    return task.done(given.folder)


def tuned(work: Path, family: str) -> dict[str, task.Task]:
    """The stages of the recipe, the first of them done, once."""
    stages = planned(work, family)
    if not (stages["tune"].folder / "stage.json").exists():
        done(stages["tune"], train.run)
    return stages


def lines(given: task.Task) -> list[dict[str, float]]:
    return [json.loads(line) for line in (given.folder / "metrics.jsonl").read_text().splitlines()]


def said(vlm) -> list[str]:
    """Answers to a question about no, one and two pictures."""
    talks = [[Turn("user", f"{MARK}\n" * count + "what is this ?")] for count in range(3)]
    return vlm.generate(talks, [[picture(*size) for size in SIZES[:count]] for count in range(3)], 6)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == "qwen2_5_vl" else pytest.mark.slow) for name in FAMILIES]
)
def test_trained_asked_and_exported(work, family):
    stages = tuned(work, family)
    for line in lines(stages["tune"]):
        assert line["loss"] == pytest.approx(line["lm"] + line["basic-direction"], rel=1e-5)
    results = done(stages["score"], evaluate.run)
    assert 0 <= results["metrics"]["toy-pope"]["accuracy"] <= 100
    vlm = mmalign.load(stages["tune"].folder)
    first = mmalign.load(stages["tune"].folder.parents[1] / family) if family != "llava" else None
    assert first is None or not torch.equal(first.whole.lm_head.weight, vlm.whole.lm_head.weight)

    results = done(stages["export"], export.run)
    place = stages["export"].folder / results["exported"]
    assert results["metrics"]["difference"] <= 1e-3
    assert (results["precision"], results["why_not"]) == ("fp32", "")
    model, about = AutoModelForImageTextToText.from_pretrained(place, output_loading_info=True)
    assert not about["missing_keys"]
    assert type(model) is type(vlm.whole)
    for name, weight in vlm.whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    again = whole_of(model.eval(), AutoProcessor.from_pretrained(place))
    assert said(again) == said(vlm)
    if family != "llava":  # which is taken apart
        assert said(mmalign.load(place)) == said(vlm)


def whole_of(model, processor):
    from mmalign.integrations.whole import WholeVLM

    return WholeVLM(model, processor)


def test_the_folder_of_a_stage_is_evaluated_exported_and_inspected(work):
    tune = tuned(work, "qwen2_5_vl")["tune"]
    again = existing.again(tune.folder, Evaluate(kind="evaluate", bench=[Part("toy-pope", {"images": 1})]), Registry())
    assert again.cards["vlm"].name == "qwen2_5_vl"
    assert existing.export(tune.folder, Registry()).cards["vlm"].args == tune.cards["vlm"].args
    seen = mmalign.load(tune.folder).nearest_words(picture(40, 30), layers=[0, 3], top_k=2)
    assert len(seen.words) == 2


def test_a_card_is_found_by_its_name(work):
    place = checkpoint(work, "qwen2_5_vl")
    assert existing.find("qwen2_5_vl") == place.resolve()
    assert existing.find("smolvlm-256m") == "HuggingFaceTB/SmolVLM-256M-Instruct"
    with pytest.raises(RunError) as caught:
        existing.find("qwen2_5_vll")
    assert caught.value.fix == "did you mean 'qwen2_5_vl'?"


def test_the_numbers_of_a_step_are_those_of_one_pass(work):
    """Passes of rows with no, one and two pictures, of unlike lengths, add up to the mean of all of them."""
    (in_two,) = lines(one_step(work, "2", "stages.tune.micro_batch=2"))
    (in_one,) = lines(one_step(work, "4", "stages.tune.micro_batch=4"))
    for name in ("loss", "lm", "basic-direction", "norm", "tokens", "images"):
        assert in_two[name] == pytest.approx(in_one[name], rel=1e-4), name


def one_step(work: Path, runs: str, *words: str, family: str = "qwen2_5_vl") -> task.Task:
    given = planned(work, family, "stages.tune.steps=1", *words, runs=runs)["tune"]
    train.run(given)
    return given


@pytest.mark.parametrize("parts", [["vision"], ["adapter"], ["llm"], ["vision", "adapter"]], ids="+".join)
def test_what_is_trained_and_what_is_not(work, parts):
    """Of the parts named some parameters move; of the others none, not by a bit."""
    given = planned(work, "qwen2_5_vl", f"stages.tune.trains=[{', '.join(parts)}]", "stages.tune.steps=1")["tune"]
    results = done(given, train.run)
    assert results["parts"] == {part: f"{given.folder.name}/weights/{part}.safetensors" for part in parts}
    trained, before = mmalign.load(given.folder), build.building.build(given.cards["vlm"])
    for part, own in before.parts_of.items():
        after = dict(trained.parts_of[part])
        moved = {name for name, weight in own if not torch.equal(weight, after[name])}
        assert bool(moved) == (part in parts), part
        if part in parts:
            assert moved <= load_file(given.folder / "weights" / f"{part}.safetensors").keys()


def test_a_stage_goes_on_with_what_another_trained(work):
    """Weights of both: the adapter that the first trained and the language model of the second."""
    data = f"{{card: conversations, args: {{path: {work / 'rows.jsonl'}}}}}"
    more = f"stages.more={{kind: train, reads: {{weights: tune}}, data: {data}, trains: [llm], "
    more += "objectives: {lm: 1.0}, optim: {lr: 1e-3}, batch: 2, micro_batch: 2, steps: 1, precision: fp32, "
    more += "log_every: 1, engine: {zero: 0, workers: 0}}"
    tuned(work, "qwen2_5_vl")
    stages = planned(work, "qwen2_5_vl", more)
    results = done(stages["more"], train.run)
    first, second = stages["tune"].folder.name, stages["more"].folder.name
    places = {part: f"{folder}/weights/{part}.safetensors" for part, folder in (("adapter", first), ("llm", second))}
    assert results["parts"] == places
    both = mmalign.load(stages["more"].folder)
    for place in places.values():
        for name, weight in load_file(work / "runs" / place).items():
            assert torch.equal(dict(both.whole.named_parameters())[name], weight)


class Killed(BaseException): ...


def test_a_killed_stage_goes_on_to_the_same_weights(work, monkeypatch):
    words = ["stages.tune.steps=4", "stages.tune.trains=[adapter]"]
    plain = planned(work, "idefics3", *words, runs="plain")["tune"]
    train.run(plain)
    given, passes = planned(work, "idefics3", *words, runs="killed")["tune"], []
    own = whole.WholeCollate.batch

    def batch(self, numbers, seed):
        passes.append(seed)
        if len(passes) == 8:  # after the probe's, in the fourth step
            raise Killed
        return own(self, numbers, seed)

    monkeypatch.setattr(whole.WholeCollate, "batch", batch)
    with pytest.raises(Killed):
        train.run(given)
    assert (given.folder / "checkpoints").exists()
    train.run(given)
    assert "goes on from step" in (given.folder / "events.jsonl").read_text()
    unlike = {"steps_per_second", "peak_memory_gib", "time"}
    kept = [[{k: v for k, v in line.items() if k not in unlike} for line in lines(one)] for one in (plain, given)]
    assert kept[0] == kept[1]
    weights = [load_file(one.folder / "weights" / "adapter.safetensors") for one in (plain, given)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_layers_are_recomputed_to_the_same_loss(work):
    (plain,) = lines(one_step(work, "kept"))
    (again,) = lines(one_step(work, "recomputed", "stages.tune.engine.checkpointing=true"))
    assert again["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert again["norm"] == pytest.approx(plain["norm"], rel=1e-4)


def test_labels_made_in_the_pass_and_hidden_states(work):
    """Of the pictures as the model is shown them; what objectives learnt is kept with the weights."""
    features = "representation: {weight: 0.5, args: {encoder: toy-clip, width: 8}}"
    objectives = f"{{lm: 1.0, sea: 1.0, logit-lens: 0.1, next-embedding: 0.1, {features}}}"
    words = [f"stages.tune.objectives={objectives}", "stages.tune.labels={source: toy-words, keep: 3}"]
    for family in ("llava", "idefics3"):
        given = one_step(work, "sea", *words, family=family)
        (line,) = lines(given)
        assert line["sea"] >= 0
        assert line["logit-lens"] > 0
        assert line["next-embedding"] > 0
        assert 0 < line["representation"] < 2
        kept = load_file(given.folder / "weights" / "objectives.safetensors")
        assert {name.rsplit(".", 2)[0] for name in kept} == {"next-embedding", "representation.project", "sea"}


# What cannot be used


def test_unusable_rows_are_counted_and_left_out(work):
    rows = (work / "rows.jsonl").read_text().splitlines()
    bad = json.loads(rows[0]) | {"id": "bad", "image": ["nowhere.png"]}
    (work / "bad.jsonl").write_text("\n".join([*rows[:3], json.dumps(bad)]) + "\n")
    words = [f"stages.tune.data.args.path={work / 'bad.jsonl'}", "stages.tune.max_bad=0.3"]
    given = planned(work, "qwen2_5_vl", *words, "stages.tune.steps=1")["tune"]
    results = train.run(given)
    assert results["bad_reasons"] == {"missing": 1}
    assert lines(given)[0]["images"] == 4


def test_rows_that_are_too_long(work):
    given = planned(work, "qwen2_5_vl", "stages.tune.max_length=16", "stages.tune.max_bad=1")["tune"]
    results = train.run(given)
    assert results["bad_reasons"] == {"cut": 6}  # all with a picture
    assert lines(given)[0]["images"] == 0


def test_a_pass_without_images_shows_a_blank_one_where_others_wait(work):
    """It is no image of the pass, and none of its tokens is trained."""
    given = planned(work, "qwen2_5_vl")["tune"]
    vlm, data = build.vlm(given), build.data(given.cards["data"])
    collate = whole.collate(given, given.stage, vlm, data)
    beside = collate.batch(texts := [3, 7], 0)
    collate.blank = False
    alone = collate.batch(texts, 0)
    assert alone.units == beside.units
    assert beside.images == 0
    assert "pixel_values" in beside.inputs
    assert "pixel_values" not in alone.inputs
    model = whole.model(given, given.stage, vlm, data, SimpleNamespace(say=print))
    ours, theirs = (model(batch)[0] for batch in (alone, beside))
    assert theirs["lm"].item() == pytest.approx(ours["lm"].item(), rel=1e-5)
    assert torch.isfinite(theirs["basic-direction"])


def test_patches_that_nobody_knows_are_said_before_the_weights(work, monkeypatch):
    words = ["stages.tune.objectives={lm: 1.0, sea: 1.0}", "stages.tune.labels={source: toy-words, keep: 3}"]
    given = planned(work, "qwen2_5_vl", *words)["tune"]
    monkeypatch.setattr(shown, "known", lambda parts: False)
    monkeypatch.setattr(build, "vlm", lambda given: pytest.fail("weights were read"))
    with pytest.raises(CheckError) as caught:
        train.run(given)
    assert caught.value.what == "sea supervises single patches, and where those of a qwen2_5_vl model lie is not known"
    assert (caught.value.at, caught.value.fix) == ("objectives.sea", "basic-direction or basic-distribution")


# What the exported folder is asked


@pytest.fixture
def ready(work):
    tune = tuned(work, "qwen2_5_vl")["tune"]
    return mmalign.load(tune.folder)


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        pytest.param("weight", "the check of its logits: they differ from the model's by", marks=pytest.mark.slow),
        pytest.param("pixels", "the check of its processor: expected is the pixel_values of", marks=pytest.mark.slow),
        ("config", "the check of its loading: expected is what plain transformers loads; it says"),
    ],
)
def test_a_folder_that_answers_otherwise_is_not_kept(ready, tmp_path, monkeypatch, harm, what):
    def write(self, folder):
        own(self, folder)
        if harm == "weight":
            with torch.no_grad():
                self.whole.lm_head.weight.mul_(1.5)  # what is asked here is no longer what was written
        elif harm == "pixels":
            for place in folder.glob("*processor*.json"):
                place.write_text(re.sub(r'("image_mean": \[)\s*[\d.]+', r"\1 0.9", place.read_text()))
        else:
            (folder / "config.json").write_text("{}")

    own = type(ready).write
    monkeypatch.setattr(type(ready), "write", write)
    with pytest.raises(StageError) as caught:
        export_whole.export(ready, tmp_path / "exported", "fp32", 1e-3, Checks(Events(tmp_path), 1))
    assert what in caught.value.what
    assert not (tmp_path / "exported").exists()
    tried = "report it; a larger `tolerance` keeps the folder" if harm == "weight" else None
    assert caught.value.fix == (tried or "report it; the folder was not kept")


def test_a_process_that_ends_early(ready, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(StageError) as caught:
        export_whole.export(ready, tmp_path / "exported", "fp32", 1e-3, Checks(Events(tmp_path), 1))
    assert caught.value.what == "the process that checks what is exported ended early (code 1): "
    assert caught.value.fix == "pip check"


def test_what_is_answered_is_tokens_whatever_generate_is_set_to_return(ready, monkeypatch):
    question = [list(export_whole.ASKED)[-1]]
    plain, _ = export_whole._job(ready, question)
    monkeypatch.setattr(ready.whole.generation_config, "return_dict_in_generate", True)
    assert export_whole._job(ready, question)[0] == plain
