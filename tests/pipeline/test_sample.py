"""A few rows are looked at before a stage runs: what training would refuse or cut is told by `check`."""

import json

import numpy as np
import pytest

from mmalign.errors import CheckError
from mmalign.pipeline import recipes, sample, sampler
from tests.conftest import TINY, command
from tests.data.samples import images, jsonl, row
from tests.plan.test_mistakes import assert_mistake

OFF = [f"stages.{name}=~" for name in ("label", "align", "score", "report")]
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
ANSWER = "{% generation %}{{ messages[-1].content }}{% endgeneration %}"


@pytest.fixture
def place(here):
    (here / "tiny.yaml").write_text(TINY)
    images(here, 1)
    return here


@pytest.fixture
def looked(place, monkeypatch):
    """looked(rows, settings ...): the notes on a training stage's rows, rendered in this process."""
    monkeypatch.setattr(sample, "_sampled", lambda jobs: [sampler._sample(json.loads(job)) for job in jobs])

    def run(rows, *words, card="conversations"):
        jsonl(place / "rows.jsonl", rows)
        data = f"stages.tune.data={{card: {card}, args: {{path: ./rows.jsonl}}}}"
        return recipes.preview("tiny.yaml", *OFF, "stages.tune.reads=~", data, *words).notes

    return run


def plain(count, **more):
    return [row(f"r{number}", "0.jpg") | more for number in range(count)]


def test_rows_that_fit_are_passed_over_in_silence(looked):
    assert looked(plain(3)) == []


def test_a_template_that_refuses_every_row_is_refused(looked, place):
    (place / "strict.jinja").write_text(STRICT + ANSWER)
    with pytest.raises(CheckError) as told:
        looked(plain(3, system="Be brief."), "stages.tune.template=./strict.jinja")
    assert "stage 'tune': 3 of 3 rows of conversations cannot be used, the first: " in told.value.what
    assert "no system" in told.value.what
    assert "tiny.yaml" in told.value.at or "stages.tune.data" in told.value.at


def test_few_bad_rows_are_noted_and_more_than_max_bad_refused(looked):
    rows = [*plain(9), *plain(1, tools="x")]
    with pytest.raises(CheckError, match="1 of 10 rows"):
        looked(rows)
    (note,) = looked(rows, "stages.tune.max_bad=0.1")
    assert note.startswith("stage 'tune': 1 of 10 rows of conversations cannot be used, the first: ")
    assert "tools" in note


def test_a_picture_that_is_not_there_is_told_before_training(looked):
    rows = [*plain(9), row("gone", "none.jpg")]
    with pytest.raises(CheckError, match="1 of 10 rows of conversations .* gone@9: missing: no image none.jpg"):
        looked(rows)
    (note,) = looked(rows, "stages.tune.max_bad=0.1")
    assert note.endswith("no image none.jpg")
    assert looked([*plain(9), row("far", "http://localhost:1/a.jpg")]) == []  # nothing is fetched


def test_what_is_cut_and_marks_of_others_are_told(looked):
    rows = plain(4)
    for one in rows[:3]:
        one["conversations"][1]["value"] = "the star is red. " * 40
    rows[3]["conversations"][0]["value"] += " <ImageHere>"
    notes = looked(rows, "stages.tune.max_length=100")
    assert "stage 'tune', 4 rows of conversations looked at: 3 rows whose answers are cut at max_length 100" in notes
    assert any("trained tokens that are cut away" in note for note in notes)
    assert any("<ImageHere>" in note for note in notes)


def test_a_model_that_is_not_here_is_no_mistake(looked, place, monkeypatch):
    (place / "shelf" / "llms").mkdir(parents=True)
    card = {"summary": "x", "target": "mmalign.llms.causal.CausalLM", "args": {"checkpoint": "nobody/has-this"}}
    (place / "shelf" / "llms" / "far.yaml").write_text(json.dumps(card))
    monkeypatch.setenv("MMALIGN_REGISTRY", str(place / "shelf"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")  # a stage would fetch it
    (note,) = looked(plain(3), "model.llm=far")
    assert note == "stage 'tune': no row of conversations was rendered, for far is not here yet"


def test_a_model_inside_a_package_is_not_imported_for_a_look(looked, place, monkeypatch):
    (place / "shelf" / "llms").mkdir(parents=True)
    card = {"summary": "x", "target": "mmalign.llms.causal.CausalLM", "args": {"checkpoint": "gguf:holds_one"}}
    (place / "shelf" / "llms" / "far.yaml").write_text(json.dumps(card))
    (place / "site" / "holds_one").mkdir(parents=True)
    (place / "site" / "holds_one" / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(place / "site")
    monkeypatch.setenv("MMALIGN_REGISTRY", str(place / "shelf"))
    monkeypatch.setenv("MMALIGN_CACHE", str(place / "cache"))
    monkeypatch.setattr("mmalign.io.packaged.reader", lambda at: None)
    notes = looked(plain(3), "model.llm=far")
    assert "stage 'tune': no row of conversations was rendered, for far is not here yet" in notes
    assert not (place / "cache" / "models").exists()


def test_a_template_without_marks_and_data_that_cannot_be_opened_are_refused(looked, place):
    (place / "bare.jinja").write_text("{{ messages[-1].content }}")
    with pytest.raises(CheckError, match="marks no answers"):
        looked(plain(3), "stages.tune.template=./bare.jinja")
    with pytest.raises(CheckError, match="no record"):
        looked([])


def test_rows_of_the_toy_world_and_of_other_packages_are_not_looked_at(place, monkeypatch):
    monkeypatch.setattr(sample, "_sampled", lambda jobs: pytest.fail(f"looked at {jobs}"))
    recipes.preview("tiny.yaml")
    (place / "other.py").write_text("raise SystemExit('imported')")
    (place / "shelf" / "data").mkdir(parents=True)
    card = {"summary": "x", "target": "other.Rows", "args": {"path": "./rows.jsonl"}}
    (place / "shelf" / "data" / "other.yaml").write_text(json.dumps(card))
    nodes = [node for node in recipes.preview("tiny.yaml").stages if node.name == "tune"]
    nodes[0].cards["data"].target = "other.Rows"
    nodes[0].cards["data"].args = {"path": "./rows.jsonl"}
    assert sample.look(nodes) == []


def test_run_looks_before_any_stage_begins(place):
    """Through the command, with the process of its own: the label stage stands before the one that cannot train."""
    jsonl(place / "rows.jsonl", plain(3, tools="x"))
    data = "stages.tune.data={card: conversations, args: {path: ./rows.jsonl}}"
    said = command("run", "tiny.yaml", data, cwd=place)
    assert_mistake(said, "stage 'tune': 3 of 3 rows of conversations cannot be used", "", "")
    assert not list(place.glob("runs/*/stage.yaml"))


def test_a_process_that_breaks_down_is_told(looked, place, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(place)
    monkeypatch.setattr(sample.sys, "executable", "/bin/false")
    with pytest.raises(CheckError, match=r"the process that looks at a few rows ended \(code 1\)"):
        looked(plain(1))


def test_sure_means_hardly_ever_by_chance():
    """Against draws: a data set with just `max_bad` bad rows is hardly ever refused, one with far more always."""
    random = np.random.default_rng(0)
    for share in (0.001, 0.01, 0.2):
        draws = random.binomial(64, share, 4000)
        refused = [sample.too_many({"rows": 10_000, "seen": 64, "bad": int(bad)}, share) for bad in draws]
        assert np.mean(refused) <= 3 * sample.SURE
    assert sample.too_many({"rows": 10_000, "seen": 64, "bad": 3}, 0.001)
    assert not sample.too_many({"rows": 10_000, "seen": 64, "bad": 1}, 0.001)
    assert not sample.too_many({"rows": 10_000, "seen": 64, "bad": 0}, 0.0)
    assert sample.too_many({"rows": 10_000, "seen": 64, "bad": 1}, 0.0)


@pytest.mark.parametrize(("size", "most"), [(1, 4), (4, 4), (5, 4), (1000, 64), (665_000, 64)])
def test_rows_are_spread_from_the_first_to_the_last(size, most):
    numbers = sampler.spread(size, most)
    assert numbers == sorted(set(numbers))
    assert len(numbers) == min(size, most)
    assert (numbers[0], numbers[-1]) == (0, size - 1)
    assert max(np.diff(numbers), default=1) <= -(-size // (most - 1))


def test_of_stages_that_share_their_rows_the_strictest_is_told(looked):
    rows = [*plain(9), *plain(1, tools="x")]
    data = "{card: conversations, args: {path: ./rows.jsonl}}"
    settings = "trains: [adapter], objectives: {lm: 1.0}, optim: {lr: 1e-3}, batch: 8, micro_batch: 4, steps: 6"
    again = f"stages.again={{kind: train, data: {data}, {settings}, max_bad: 0}}"
    with pytest.raises(CheckError, match="stage 'again': 1 of 10 rows"):
        looked(rows, "stages.tune.max_bad=0.5", again)
