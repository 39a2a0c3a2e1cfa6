"""Benchmarks measured inside a training stage: on a few fixed questions, exactly, without a trace in training."""

import csv
import json
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from mmalign.benchmarks import Benchmark, Question, Score
from mmalign.benchmarks.filed import NoAnswersError
from mmalign.benchmarks.mmlu import MMLU, OPTIONS
from mmalign.benchmarks.perplexity import Perplexity
from mmalign.benchmarks.some import some
from mmalign.errors import CheckError
from mmalign.llms.causal import CausalLM
from mmalign.stages import evaluate, evaluations, train
from mmalign.stages.evaluations import Sample
from mmalign.toyworld.benchmarks import Lookup
from mmalign.toyworld.data import Texts
from mmalign.vlm.model import VLM
from tests.stages.test_train_labels import labelled

TIMING = {"steps_per_second", "peak_memory_gib", "time"}

ALONE = ["stages.label=~", "stages.align.reads=~", "stages.align.objectives.sea=~", "stages.align.steps=3"]
ALONE += ["stages.align.trains=[adapter, llm]", "stages.align.engine.save_every=100"]
ASKED = [
    "stages.align.evaluate=[toy-lookup, toy-perplexity, {card: toy-pope, args: {images: 4}}, "
    "{card: mmlu, args: {data: EXAMS, shots: 1}}]",
    "stages.align.evaluate_every=2", "stages.align.evaluate_items=30",
]  # fmt: skip


@pytest.fixture(scope="module")
def exams(tmp_path_factory):
    """Files of MMLU as its authors lay them: two subjects, of 25 and 15 questions."""
    place = tmp_path_factory.mktemp("mmlu")
    for part, sizes in {"dev": (1, 1), "test": (25, 15)}.items():
        (place / part).mkdir()
        for subject, size in zip(("virology", "anatomy"), sizes, strict=True):
            rows = [[f"What is {n} and {n}?", n, n + n, n * n, "none, or all", "ABCD"[n % 4]] for n in range(size)]
            with open(place / part / f"{subject}_{part}.csv", "w", newline="") as out:
                csv.writer(out).writerows(rows)
    return place


@pytest.fixture(scope="module")
def left(tmp_path_factory, exams):
    """What a stage leaves with and without evaluations: its folder, weights by file, and results."""
    left, patch = {}, pytest.MonkeyPatch()
    patch.setenv("MMALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
    asked = [ASKED[0].replace("EXAMS", str(exams)), *ASKED[1:]]
    for name, words in (("without", []), ("with", asked)):
        given = labelled(tmp_path_factory.mktemp(name), *ALONE, *words)
        results = train.run(given)
        weights = {p.name: load_file(p) for p in sorted((given.folder / "weights").rglob("*.safetensors"))}
        left[name] = given.folder, weights, results
    patch.undo()
    return left


def rows(place):
    return [json.loads(line) for line in place.read_text().splitlines()]


def test_training_is_the_same_to_the_bit_with_and_without(left):
    (without, before, _), (with_, after, _) = left["without"], left["with"]
    assert without.name == with_.name  # the fingerprint says so, too
    assert before.keys() == after.keys() == {"adapter.safetensors", "model.safetensors"}
    for file, weights in before.items():
        assert all(torch.equal(weights[name], after[file][name]) for name in weights)
    logs = [rows(folder / "metrics.jsonl") for folder in (without, with_)]
    told = [[{k: v for k, v in line.items() if k not in TIMING} for line in log] for log in logs]
    assert told[0] == told[1]
    assert not (without / "evaluations.jsonl").exists()


def test_a_line_before_the_first_step_now_and_then_and_at_the_end(left):
    folder, _, _ = left["with"]
    lines = rows(folder / "evaluations.jsonl")
    assert [line["step"] for line in lines] == [0, 2, 3]
    names = {"toy-lookup": {"gate"}, "toy-perplexity": {"perplexity"}, "toy-pope": {"accuracy"}, "mmlu": {"average"}}
    for line in lines:
        assert {name: set(scores) for name, scores in line["scores"].items()} == names
        assert line["items"] == {"toy-lookup": 30, "toy-pope": 30, "mmlu": 30}
    said = [line["say"] for line in rows(folder / "events.jsonl") if "say" in line]
    told = {name: next(iter(scores.values())) for name, scores in lines[0]["scores"].items()}
    assert (
        f"step 0: toy-lookup gate {told['toy-lookup']:.4g}, toy-perplexity perplexity {told['toy-perplexity']:.4g}, "
        f"toy-pope accuracy {told['toy-pope']:.4g}, mmlu average {told['mmlu']:.4g}"
    ) in said
    assert "toy-lookup: measured on 30 of 400 questions" in said  # what is neither yes nor no does not count there
    assert [line for line in said if line.startswith("evaluations: 3, ")]


@pytest.fixture(scope="module")
def untouched():
    return VLM(None, None, CausalLM("pkg:mmalign.toyworld/llama")).float().eval()


def test_the_first_line_is_of_the_untouched_language_model(left, untouched):
    scores = rows(left["with"][0] / "evaluations.jsonl")[0]["scores"]
    texts = Perplexity(Texts(400, split="eval")).limited(30)._texts()
    assert len(texts) == 30
    assert scores["toy-perplexity"]["perplexity"] == pytest.approx(untouched.perplexity(texts), rel=1e-5)
    lookup = Lookup()
    asked = some([item.question for item in lookup.items if item.group in ("yes", "no")], 30)
    answers = {question.id: text for question, text in untouched.answers(lookup, asked, 8)}
    assert len(answers) == 30
    right = {"yes": [], "no": []}
    for item in lookup.items:
        if item.question.id in answers:
            right[item.group].append(100.0 * (answers[item.question.id] == item.answer))
    assert min(map(len, right.values())) > 3
    assert scores["toy-lookup"]["gate"] == pytest.approx(min(map(fmean, right.values())))


def test_an_exam_is_measured_by_its_letters_likelihoods_on_questions_of_every_subject(left, untouched, exams):
    bench = MMLU(str(exams), shots=1)
    asked = some(bench.questions(), 30)
    assert {question.id.split("/")[0] for question in asked} == {"anatomy", "virology"}
    right = []
    for question in asked:
        ids = untouched.llm.chat.plain(question.text)
        logits_V = untouched.llm.lm(input_ids=torch.tensor([ids])).logits[0, -1]
        letters = [untouched.llm.chat.plain(question.text + option)[len(ids) :] for option in OPTIONS]
        assert {len(own) for own in letters} == {1}
        best = int(torch.stack([logits_V[own[0]] for own in letters]).argmax())
        right.append("ABCD"[best] == bench.truth[question.id].answer)
    scores = rows(left["with"][0] / "evaluations.jsonl")[0]["scores"]
    assert 0 < fmean(right) < 1
    assert scores["mmlu"]["average"] == pytest.approx(fmean(right))


class Told(Benchmark):
    """Questions whose answers are their numbers; `how`: what the score is made of."""

    def __init__(self, how):
        self.how, self.joint = how, how == "pairs"

    def questions(self):
        return [Question(str(n), f"{n}?") for n in range(9)]

    def score(self, answers):
        if self.how == "no answers":
            raise NoAnswersError("these files hold no answers")
        items = {qid: float(text == qid) for qid, text in answers.items()}
        if self.how == "pairs":
            items = {str(n): items[str(n)] * items[str(n + 1)] for n in range(8)}
        return Score({"right": fmean(items.values()) if self.how != "nothing" else 0.5}, "right", items)


def sample(monkeypatch, how, items):
    monkeypatch.setattr(evaluate, "bench_of", lambda task, role: {"evaluate.told": Told(how)}[role])
    stage = SimpleNamespace(evaluate=[SimpleNamespace(card="told")], evaluate_items=items)
    return evaluations.samples(SimpleNamespace(), stage)[0]


@pytest.mark.parametrize("items", [4, 9, 300])
def test_only_what_is_asked_counts(monkeypatch, items):
    own = sample(monkeypatch, "items", items)
    assert len(own.questions) == min(items, 9)
    right = {q.id for q in own.questions[::2]}
    vlm = SimpleNamespace(answers=lambda bench, asked, batch: ((q, q.id if q.id in right else "") for q in asked))
    assert own.measure(vlm) == ("right", pytest.approx(len(right) / len(own.questions)))


@pytest.mark.parametrize(
    ("how", "what", "at", "fix"),
    [
        (
            "pairs",
            "told does not say how its score is made of",
            "evaluate_items",
            "evaluate_items: 9, all",
        ),
        ("nothing", "told does not say how its score is made of", "evaluate_items", "evaluate_items: 9"),
        ("no answers", "told: these files hold no answers", "evaluate", "a split with answers"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_weight_is_loaded(monkeypatch, how, what, at, fix):
    with pytest.raises(CheckError) as told:
        sample(monkeypatch, how, 4)
    assert told.value.what.startswith(what)
    assert told.value.at == at
    assert told.value.fix.startswith(fix)
    if how != "no answers":
        assert sample(monkeypatch, how, 9).total == 9  # all of it can be


def test_a_number_that_is_none_is_said_and_not_written(tmp_path):
    """A file of JSON has no infinity."""
    probe = SimpleNamespace(measure=lambda vlm: ("perplexity", float("inf")), name="p", questions=())
    said = []
    events = SimpleNamespace(say=said.append, rank=0)
    vlm = VLM(None, None, torch.nn.Identity())
    evaluations.Evaluations(vlm, [probe], tmp_path / "e.jsonl", 2, 5, events)(0)
    assert said == ["step 0: p perplexity inf"]
    assert rows(tmp_path / "e.jsonl") == [{"step": 0, "scores": {}, "items": {}}]


def test_a_probe_looks_at_the_model_itself(untouched):
    texts = Perplexity(Texts(8, split="eval"), texts=8)
    assert Sample("p", texts).measure(untouched) == ("perplexity", pytest.approx(untouched.perplexity(texts._texts())))
