"""The stage graph: what changes a fingerprint and what does not, what is shared, and why a stage has to run."""

import json
from pathlib import Path

import pytest

from mmalign.errors import CheckError, GraphError, RunError
from mmalign.pipeline import existing, task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.plan.cards import Registry
from mmalign.plan.check import check
from mmalign.plan.recipe import Evaluate, Export, Part
from mmalign.vision import Vision
from tests.conftest import TINY

SHELF = "summary: {name}\ntarget: {target}\nargs: {args}\n"


@pytest.fixture
def plan(here: Path):
    """plan(text, *overrides): {stage: node} of a recipe."""

    def plan(text: str = TINY, *words: str, runs: str = "runs") -> dict[str, graph.Node]:
        (here / "x.yaml").write_text(text)
        return {node.name: node for node in graph.plan(compose.load("x.yaml", words), runs)}

    return plan


def prints(nodes):
    return {name: node.fingerprint for name, node in nodes.items()}


def changed(one, other):
    one, other = prints(one), prints(other)
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def card(shelf: Path, family: str, name: str, target: str, args: str = "{}") -> None:
    (shelf / family).mkdir(parents=True, exist_ok=True)
    (shelf / family / f"{name}.yaml").write_text(SHELF.format(name=name, target=target, args=args))


ALL = {"label", "align", "tune", "score", "report"}
AFTER_ALIGN = ALL - {"label"}
AFTER_TUNE = AFTER_ALIGN - {"align"}


@pytest.mark.parametrize(
    "word",
    [
        "stages.align.engine.zero=3", "stages.align.engine.offload=true", "stages.align.engine.checkpointing=true",
        "stages.align.engine.save_every=7", "stages.align.engine.workers=0", "stages.align.log_every=3",
        "stages.label.max_bad=0.5", "stages.tune.max_bad=0.5", "stages.label.batch=7", "stages.score.batch=7",
        "name=other", "paper=https://arxiv.org/abs/1", "registry=[.]",
    ],
)  # fmt: skip
def test_what_cannot_change_a_result_is_not_in_the_fingerprint(plan, word):
    assert not changed(plan(), plan(TINY, word))


def test_order_of_keys_comments_and_short_forms_are_not_in_it(plan):
    text = "# a comment\n" + TINY.replace("batch: 8\n    micro_batch: 4", "micro_batch: 4 # here\n    batch: 8")
    text = text.replace("adapter: linear", "adapter: {card: linear}").replace("lm: 1.0, sea: 1.0", "sea: 1, lm: 1")
    text = text.replace("optim: {lr: 1e-3}", "optim: {lr: 0.001, clip: 1}")
    assert not changed(plan(), plan(text))


def test_another_runs_folder_is_not_in_it(plan):
    assert not changed(plan(), plan(runs="elsewhere"))


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("stages.label.keep=2", ALL),
        ("stages.label.shard=8", ALL),
        ("stages.label.data.args.size=49", ALL),
        ("stages.label.source.args.sign=-1", ALL),
        ("seed=4", AFTER_ALIGN),  # labels do not depend on it
        ("model.adapter=mlp2x-gelu", AFTER_ALIGN),
        ("model.adapter.args.depth=2", AFTER_ALIGN),
        ("model.llm.args.random=true", AFTER_ALIGN),
        ("stages.align.optim.lr=2e-3", AFTER_ALIGN),
        ("stages.align.objectives.sea=0.5", AFTER_ALIGN),
        ("stages.align.objectives.sea={args: {window: 3}}", AFTER_ALIGN),
        ("stages.align.micro_batch=8", AFTER_ALIGN),  # SEA contrasts within one
        ("stages.align.precision=bf16", AFTER_ALIGN),
        ("stages.tune.trains=[adapter]", AFTER_TUNE),
        ("stages.tune.optim.warmup=0.5", AFTER_TUNE),
        ("stages.tune.epochs=2", AFTER_TUNE),
        ("stages.score.bench=[toy-pope]", {"score", "report"}),
        ("stages.score.precision=bf16", {"score", "report"}),
        ("stages.report=~", {"report"}),
    ],
)
def test_what_changes_a_result_is_in_it_and_in_all_that_reads_it(plan, word, what):
    assert changed(plan(), plan(TINY, word)) == what


def test_a_new_version_of_a_stage_is_in_it(plan, monkeypatch):
    before = plan()
    monkeypatch.setattr("mmalign.plan.recipe.Train.version", 5)
    assert changed(before, plan()) == AFTER_ALIGN


def test_the_content_of_local_files_is_in_it(plan, here):
    words = here / "words.txt"
    words.write_text("star\nring\n")
    word = f"stages.label.source.args.words={words}"
    before = plan(TINY, word)
    assert not changed(before, plan(TINY, word))
    words.write_text("star\nrings\n")
    assert changed(before, plan(TINY, word)) == ALL


def test_the_content_of_a_checkpoint_folder_is_in_it(plan, here):
    (here / "llm").mkdir()
    (here / "llm" / "config.json").write_text("{}")
    word = "model.llm.args.checkpoint=./llm"
    before = plan(TINY, word)
    (here / "llm" / "model.safetensors").write_text("weights")
    assert changed(before, plan(TINY, word)) == AFTER_ALIGN


def test_the_questions_of_a_benchmark_are_in_it_and_not_its_pictures(plan, here):
    (here / "pope" / "coco").mkdir(parents=True)
    questions = here / "pope" / "coco" / "coco_pope_random.json"
    questions.write_text('{"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "yes"}')
    word = f"stages.score.bench=[{{card: pope, args: {{data: {here / 'pope'}}}}}]"
    before = plan(TINY, word)
    (here / "pope" / "a.jpg").write_bytes(b"a picture")
    assert not changed(before, plan(TINY, word))
    questions.write_text(questions.read_text().replace("yes", "no"))
    assert changed(before, plan(TINY, word)) == {"score", "report"}


def test_the_content_of_what_a_setting_points_at_is_in_it(plan, here):
    (here / "store").mkdir()
    (here / "store" / "header.json").write_text("{}")
    words = ("stages.align.reads.labels=~", f"stages.align.labels={{source: toy-words, store: {here / 'store'}}}")
    before = plan(TINY, *words)
    (here / "store" / "shard-00000.bin").write_bytes(b"the header holds its checksum")
    assert not changed(before, plan(TINY, *words))
    (here / "store" / "header.json").write_text('{"keep": 3}')
    assert changed(before, plan(TINY, *words)) == AFTER_ALIGN


def test_cards_of_a_shelf_count_by_what_they_say(plan, here):
    shelf, word = here / "shelf", ("registry=[./shelf]", "model.adapter=mine")
    card(shelf, "adapters", "mine", "mmalign.adapters.mlp.MLP", "{depth: 1}")
    before = plan(TINY, *word)
    place = shelf / "adapters" / "mine.yaml"
    place.write_text(place.read_text().replace("summary: mine", "summary: better said"))
    assert not changed(before, plan(TINY, *word))
    place.write_text(place.read_text().replace("depth: 1", "depth: 2"))
    assert changed(before, plan(TINY, *word)) == AFTER_ALIGN


def test_the_card_inside_a_card_is_in_it(plan, here):
    shelf, word = here / "shelf", ("registry=[./shelf]", "stages.label.source.args.encoder=mine")
    card(shelf, "vision", "mine", "mmalign.vision.hf.HFVision", "{checkpoint: 'pkg:mmalign.toyworld/clip'}")
    before = plan(TINY, *word)
    assert set(before["label"].cards) == {"labels", "labels.encoder", "data"}
    card(shelf, "vision", "mine", "mmalign.vision.hf.HFVision", "{checkpoint: 'pkg:mmalign.toyworld/clip', layer: -1}")
    assert changed(before, plan(TINY, *word)) == ALL


def test_a_fingerprint_is_twelve_hex_digits_behind_the_kind(plan):
    folder = plan()["align"].folder
    assert folder.parent == Path("runs")
    assert folder.name.startswith("train-")
    assert len(bytes.fromhex(folder.name.removeprefix("train-"))) == 6


# Order and sharing


def test_stages_come_after_those_they_read(here):
    order = graph.order(compose.load(_written(here, TINY))[0])
    assert [order.index(name) for name in ("label", "align", "tune", "score", "report")] == [0, 1, 2, 3, 4]
    upside = TINY.splitlines(keepends=True)
    upside = "".join([*upside[:4], *upside[-2:], *upside[4:-2]])  # score and report written first
    assert next(iter(compose.load(_written(here, upside))[0].stages)) == "score"
    assert set(graph.order(compose.load("x.yaml")[0])[-2:]) == {"score", "report"}


def _written(folder, text):
    (folder / "x.yaml").write_text(text)
    return "x.yaml"


STUDY = TINY + "matrix: {arms: {lm: {stages.align.objectives.sea: ~}, sea: {}}, seeds: [1, 2]}\n"


def test_arms_and_seeds_share_what_is_equal(here):
    nodes = graph.plan(compose.load(_written(here, STUDY)), "runs")
    names = [node.name for node in nodes]
    assert {name: names.count(name) for name in names} == {"label": 1, "align": 4, "tune": 4, "score": 4, "report": 1}
    label = next(node for node in nodes if node.name == "label")
    assert label.arms == ["lm 1", "lm 2", "sea 1", "sea 2"]
    report = nodes[-1]
    assert report.name == "report"
    assert report.arms == ["lm 1", "lm 2", "sea 1", "sea 2"]
    assert [node.arms for _, node in report.reads] == [["lm 1"], ["lm 2"], ["sea 1"], ["sea 2"]]


def test_equal_arms_are_one_and_a_note_says_so(here):
    variants = compose.load(_written(here, TINY + "matrix: {arms: {a: {}, b: {}}}\n"))
    nodes = graph.plan(variants, "runs")
    assert len(nodes) == 5
    assert check(variants) == ["the arms 'a' and 'b' are the same; null takes a thing away: objectives.sea: null"]
    assert nodes[1].arms == ["a 3", "b 3"]


def test_a_report_may_be_left_out_of_the_first_arm(here):
    text = TINY + "matrix: {arms: {a: {stages.report: ~}, b: {}}}\n"
    nodes = graph.plan(compose.load(_written(here, text)), "runs")
    assert [node.arms for node in nodes if node.name == "report"] == [["b 3"]]


def test_two_recipes_share_the_same_labels(plan):
    other = TINY.replace("name: tiny", "name: other").replace("seed: 3", "seed: 8").replace("  label:", "  words:")
    other = other.replace("labels: label", "labels: words").replace("adapter: linear", "adapter: mlp3x-gelu")
    assert plan()["label"].folder == plan(other)["words"].folder
    assert plan()["align"].folder != plan(other)["align"].folder


# Edges


@pytest.mark.parametrize(
    ("word", "what", "fix"),
    [
        ("stages.tune.reads.weights=alig", "stage 'tune' reads weights from 'alig', which is no stage", "'align'"),
        ("stages.report.reads.weights=tune", "a stage of kind report reads no weights", "it can read: scores"),
        ("stages.tune.reads.labels=align", "stage 'align' (kind train) gives no labels", "read it from a label stage"),
        ("stages.tune.reads.vision=label", "gives no vision", "read it from a contrast stage"),
        ("stages.align.reads.weights=align", "in a circle: align -> align", "take one of the `reads` out"),
        ("stages.align.reads.weights=tune", "in a circle: align -> tune -> align", "take one of the `reads` out"),
    ],
)
def test_wrong_edges(plan, word, what, fix):
    with pytest.raises(GraphError) as caught:
        plan(TINY, word)
    assert what in caught.value.what
    assert ".reads" in caught.value.at
    assert fix in caught.value.fix


# What is done, and why the rest is not


def finish(node: graph.Node, seconds: float = 0) -> None:
    task.save(node)
    task.finish(task.load(node.folder), {"metrics": {}}, seconds, 1)
    node.__dict__.pop("done", None)


def test_only_a_whole_stage_is_done(plan):
    align = plan()["align"]
    assert (align.done, align.begun) == (False, False)
    task.save(align)
    align = plan()["align"]
    assert (align.done, align.begun) == (False, True)
    finish(align)
    align = plan()["align"]
    assert (align.done, align.begun) == (True, False)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not valid JSON"),
        ('{"format": 1', "not valid JSON"),
        ("[]", "was written in format None; this mmalign reads format 1"),
        ('{"format": 99}', "was written in format 99; this mmalign reads format 1"),
        ('{"format": 1, "name": "align"}', "stage.json is damaged: it lacks 'kind'"),
    ],
)
def test_a_damaged_or_foreign_stage_is_refused_not_repeated(plan, text, what):
    align = plan()["align"]
    align.folder.mkdir(parents=True)
    (align.folder / "stage.json").write_text(text)
    with pytest.raises(RunError) as caught:
        assert align.done
    assert what in caught.value.what
    assert caught.value.at == str(align.folder / "stage.json")
    assert "--force align" in caught.value.fix


def why(nodes):
    return {name: graph.why(node) for name, node in nodes.items() if not node.done}


def test_why_nothing_has_run_yet(plan):
    assert why(plan()) == {
        "label": "not run yet", "align": "after label", "tune": "after align", "score": "after tune",
        "report": "after score",
    }  # fmt: skip


def test_why_says_what_changed(plan):
    for node in plan().values():
        finish(node)
    assert why(plan()) == {}
    assert why(plan(TINY, "stages.tune.optim.lr=0.5")) == {
        "tune": "changed: optim.lr 0.001 -> 0.5", "score": "after tune", "report": "after score",
    }  # fmt: skip
    found = why(plan(TINY, "seed=9", "stages.align.batch=16"))
    assert found["align"] == "changed: seed 3 -> 9, batch 8 -> 16"
    assert found["tune"] == "changed: seed 3 -> 9"
    more = ["stages.tune.batch=16", "stages.tune.steps=7", "stages.tune.max_length=9", "stages.tune.epochs=2"]
    assert why(plan(TINY, *more))["tune"].startswith("changed: ")
    assert why(plan(TINY, *more))["tune"].endswith(" ...")


def test_why_says_which_file_changed(plan, here):
    words = here / "words.txt"
    words.write_text("star\nring\n")
    word = f"stages.label.source.args.words={words}"
    before = plan()["label"]
    finish(before)
    told = why(plan(TINY, word))["label"]
    shipped = before.cards["labels"].args["words"]
    assert told == f"changed: labels.args.words {shipped} -> {words}, source.args.words None -> {words}"
    finish(plan(TINY, word)["label"])
    words.write_text("star\nrings\n")
    assert why(plan(TINY, word))["label"] == f"changed: what {words} holds"


WATCHED = ["stages.tune.watch=[premise]", "stages.tune.evaluate=[toy-lookup]", "stages.tune.watch_readouts=[lens]"]


def test_what_is_only_looked_at_is_in_no_fingerprint_and_told_where_it_was_not(plan):
    """A stage that is done is not trained again for it."""
    before, asked = plan(), plan(TINY, *WATCHED)
    assert {name: node.folder for name, node in asked.items()} == {name: node.folder for name, node in before.items()}
    assert list(graph.unseen(asked["tune"])) == []  # it will be
    for node in before.values():
        finish(node)
    told = list(graph.unseen(plan(TINY, *WATCHED)["tune"]))
    assert told == [
        f"stage 'tune' is done, and not with this `{name}`, which changes no result: --force tune runs it again"
        for name in ("watch", "watch_readouts", "evaluate")
    ]
    assert [note for node in plan().values() for note in graph.unseen(node)] == []
    (before["tune"].folder / "stage.json").unlink()
    finish(plan(TINY, *WATCHED)["tune"])
    assert list(graph.unseen(plan(TINY, *WATCHED)["tune"])) == []
    assert len(list(graph.unseen(plan(TINY, *WATCHED, "stages.tune.evaluate=[toy-lookup, toy-pope]")["tune"]))) == 1
    (before["tune"].folder / "stage.yaml").write_text("[")
    assert list(graph.unseen(plan(TINY, *WATCHED)["tune"])) == []


def test_why_compares_with_the_newest(plan):
    old, new = plan(), plan(TINY, "stages.label.keep=2")
    for node in (*old.values(), *new.values()):
        finish(node)
    assert why(plan(TINY, "stages.label.keep=1"))["label"] == "changed: keep 2 -> 1"


def test_why_compares_an_arm_of_a_study_with_itself(here):
    text = STUDY.replace("seeds: [1, 2]", "seeds: [1]")
    for node in graph.plan(compose.load(_written(here, text)), "runs")[:3]:
        finish(node)  # label, and the first arm
    found = {(n.name, *n.arms): graph.why(n) for n in graph.plan(compose.load(_written(here, STUDY)), "runs")[1:]}
    assert found["align", "lm 2"] == "not run yet"
    assert found["align", "sea 1"] == "not run yet"
    words = ["stages.align.optim.lr=0.5"]
    nodes = graph.plan(compose.load("x.yaml", words), "runs")
    assert next(graph.why(n) for n in nodes if n.arms == ["lm 1"]) == "changed: optim.lr 0.001 -> 0.5"


def test_why_skips_what_it_cannot_read(plan):
    folder = plan()["label"].folder.parent / "label-000000000000"
    folder.mkdir(parents=True)
    for text in ("", "[]", "{}", '{"recipe": "tiny", "name": "label"}'):
        (folder / "stage.json").write_text(text)
        assert graph.why(plan()["label"]) == "not run yet"


def test_a_stage_file_gives_back_the_task(plan):
    nodes = plan()
    align = nodes["align"]
    given = task.load(align.folder, task.save(align))
    assert given.stage == align.stage
    assert given.cards == align.cards
    assert given.what == align.what
    assert (given.name, given.recipe, given.seed) == ("align", "tiny", 3)
    assert given.reads == [("labels", nodes["label"].folder)]
    assert given.parent("labels") == nodes["label"].folder
    assert given.parent("weights") is None


@pytest.mark.parametrize("word", ["1234e567", "0x10", "no", "2026-01-01", "null"])
def test_words_stay_words_on_the_way_to_the_worker(plan, word):
    align = plan(TINY, f"stages.align.data.args.split='{word}'")["align"]
    task.save(align)
    assert task.load(align.folder).cards["data"].args["split"] == word


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("format: 1", "format: 2", "was begun in format 2"),
        ("kind: train", "kind: trains", "stage.yaml is damaged"),
        ("cards:", "card:", "stage.yaml is damaged"),
        ("batch: 8", "batch: many", "stage.yaml is damaged"),
        ("name: align", "name: 'align", "not valid YAML"),
    ],
)
def test_a_damaged_stage_file_is_named(plan, old, new, what):
    align = plan()["align"]
    task.save(align)
    place = align.folder / "stage.yaml"
    place.write_text(place.read_text().replace(old, new, 1))
    with pytest.raises(RunError) as caught:
        task.load(align.folder)
    assert what in caught.value.what
    assert str(align.folder) in caught.value.at


def test_a_plan_reads_no_file_twice_and_writes_only_its_memory(plan, here):
    (here / "runs").mkdir()
    plan()
    assert [place.name for place in (here / "runs").iterdir()] == [".hashes.json"]
    memory = json.loads((here / "runs" / ".hashes.json").read_text())["files"]
    assert any(name.endswith("llama/model.safetensors") for name in memory)


def test_the_cards_of_a_stage_by_role(here):
    recipe = compose.load(_written(here, TINY))[0]
    assert set(graph.cards_of(recipe, "align", Registry())) == {
        "data", "objectives.lm", "objectives.sea", "vision", "adapter", "llm",
    }  # fmt: skip


def test_an_evaluation_asked_for_later_is_the_recipe_s_own(plan):
    """One fingerprint, however a stage is named: `mmalign eval` finds what a recipe evaluated."""
    nodes = plan()
    finish(nodes["tune"])
    bench = [Part("toy-perplexity")]
    again = existing.again(nodes["tune"].folder, Evaluate(kind="evaluate", bench=bench, precision="fp32"), Registry())
    assert again.folder == Path("runs").absolute() / nodes["score"].folder.name
    assert again.name == "eval"
    other = existing.again(nodes["tune"].folder, Evaluate(kind="evaluate", bench=bench, precision="bf16"), Registry())
    assert other.folder != again.folder


def test_what_stage_reads_beside_the_weights_is_handed_over_and_not_counted_again(plan):
    text = TINY + "  words: {kind: language, data: toy-texts, optim: {lr: 1e-3}, batch: 8, steps: 1}\n"
    nodes = plan(text, "stages.align.reads.llm=words", "stages.tune.reads.llm=words")
    for node in nodes.values():
        finish(node)
    again = existing.again(nodes["tune"].folder, Export(kind="export"), Registry())
    assert [(slot, other.name) for slot, other in again.reads] == [("weights", "tune"), ("llm", "words")]
    assert again.what["reads"] == [["weights", nodes["tune"].folder.name]]


def fits(nodes, role):
    return {name: node.cards[role].args.get("fit") for name, node in nodes.items() if role in node.cards}


def test_a_fit_is_the_encoders_and_that_of_whoever_reads_the_weights(plan):
    nodes = plan(TINY, "stages.align.fit=crop", "stages.tune.fit=pad")
    assert fits(nodes, "vision") == {"align": "crop", "tune": "pad", "score": "pad"}
    assert fits(nodes, "labels.encoder") == {"label": None}
    assert changed(plan(), nodes) == AFTER_ALIGN
    assert changed(plan(TINY, "stages.align.fit=crop"), nodes) == AFTER_TUNE
    assert fits(plan(TINY, "stages.align.fit=crop"), "vision") == {"align": "crop", "tune": None, "score": None}
    nodes = plan(TINY, "stages.label.fit=squash")
    assert fits(nodes, "labels.encoder") == {"label": "squash"}
    assert changed(plan(), nodes) == ALL


def test_a_fit_goes_to_the_encoder_inside_another(plan, here):
    (here / "shelf/vision").mkdir(parents=True)
    wrapped = "summary: x\ntarget: mmalign.vision.s2.S2\nargs: {encoder: toy-clip, scales: [1, 2]}\n"
    (here / "shelf/vision/closer.yaml").write_text(wrapped)
    nodes = plan(TINY, "registry=[shelf]", "model.vision=closer", "stages.align.fit=pad")
    assert fits(nodes, "vision")["align"] is None
    assert fits(nodes, "vision.encoder")["align"] == "pad"


class Fixed(Vision):
    """An encoder that makes its squares in one way."""

    def __init__(self, checkpoint: str = "") -> None:
        super().__init__()


def test_a_fit_that_the_encoder_does_not_take(plan, here):
    card(here / "shelf", "vision", "own", "tests.plan.test_graph.Fixed")
    (here / "x.yaml").write_text(TINY)
    words = ("registry=[shelf]", "model.vision=own", "stages.align.fit=pad")
    with pytest.raises(CheckError) as error:
        check(compose.load("x.yaml", words))
    assert error.value.what == "vision 'own' takes no argument 'fit'"
    assert error.value.at.endswith("stages.align.fit")


GREY = """\
  before: {kind: evaluate, bench: [toy-perplexity, toy-lookup]}
"""


def test_the_untouched_language_model_is_one_evaluation_for_all_arms(plan):
    """An evaluation that reads nothing trained and shows no picture: of the language model, whatever stands beside."""
    nodes = plan(TINY + GREY)
    assert [role for role in nodes["before"].cards if not role.startswith("bench.")] == ["llm"]
    words = ["model.adapter=mlp2x-gelu", "model.vision.args.norm=false", "seed=9", "stages.tune.trains=[adapter]"]
    assert plan(TINY + GREY, *words)["before"].folder == nodes["before"].folder
    alone = f"name: alone\nmodel: {{llm: toy-llama}}\nstages:\n{GREY}"
    assert plan(alone)["before"].folder == nodes["before"].folder
    named = existing.evaluation("toy-llama", [Part("toy-perplexity"), Part("toy-lookup")], Registry())
    assert named.folder == nodes["before"].folder
    assert plan(TINY + GREY, "model.llm=toy-llama-deep")["before"].folder != nodes["before"].folder
    seen = plan(TINY + GREY, "stages.before.bench=[toy-perplexity, toy-pope]")["before"]
    assert {"vision", "adapter", "llm"} < seen.cards.keys()
    tuned = plan(TINY + GREY, "stages.before.reads={weights: tune}")["before"]
    assert {"vision", "adapter", "llm"} < tuned.cards.keys()
