"""A language model alone in the place of a trained model: what can be asked of it, and what not."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from mmalign.benchmarks.mmlu import MMLU, OPTIONS
from mmalign.errors import CheckError, RunError
from mmalign.io import files
from mmalign.pipeline import existing, task
from mmalign.pipeline.load import load
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.plan.cards import Registry
from mmalign.plan.recipe import Part
from tests import parts
from tests.conftest import TINY
from tests.plan.test_mistakes import assert_mistake, shelf, snapshot

TOY = str(files.path("pkg:mmalign.toyworld/llama"))
CARD = "summary: x\ntarget: mmalign.llms.causal.CausalLM\nargs: {{checkpoint: {}}}\n"
BENCH = ["--bench", "mmlu,small-perplexity", "--json"]


@pytest.fixture(autouse=True)
def exams(here, monkeypatch) -> Path:
    """Questions of two subjects whose answers a model does not know, and a few texts."""
    for part, many in (("dev", 5), ("test", 6)):
        (here / "data" / "eval" / "mmlu" / part).mkdir(parents=True)
        for subject, word in (("virology", "ring"), ("anatomy", "star")):
            rows = [
                [f"where is the {word} {n} ?", "left", "right", "top", "bottom", "ABCD"[n % 4]] for n in range(many)
            ]
            with open(here / "data" / "eval" / "mmlu" / part / f"{subject}_{part}.csv", "w", newline="") as out:
                csv.writer(out).writerows(rows)
    monkeypatch.setenv("MMALIGN_DATA", str(here / "data"))
    card = "summary: x\ntarget: mmalign.benchmarks.perplexity.Perplexity\nargs: {data: toy-eval-texts, texts: 4}\n"
    shelf(here, "benchmarks", "small-perplexity", card)
    shelf(here, "llms", "tiny", CARD.format(tiny(here / "files", "float32")))
    monkeypatch.setenv("MMALIGN_REGISTRY", str(here / "shelf"))
    logging.disable_progress_bar()
    return here / "data" / "eval" / "mmlu"


def tiny(folder: Path, dtype: str) -> Path:
    """Random weights, stored in a precision; attention counts for much, so that answers differ."""
    checkpoint = parts.llm("llama", folder, kind="bytelevel", seed=5)
    lm = AutoModelForCausalLM.from_pretrained(checkpoint, max_position_embeddings=4096)
    for name, parameter in lm.named_parameters():
        if "self_attn" in name:
            parameter.data.mul_(30)
    lm.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


@torch.no_grad()
def likeliest(prompt: str) -> str:
    """By plain transformers: one forward pass for each option behind the prompt."""
    tokenizer, lm = AutoTokenizer.from_pretrained("files"), AutoModelForCausalLM.from_pretrained("files")
    begin = len(tokenizer(prompt)["input_ids"])
    scores = []
    for option in OPTIONS:
        ids = tokenizer(prompt + option, return_tensors="pt")["input_ids"]
        logp_SV = lm(input_ids=ids).logits[0].log_softmax(-1)
        scores.append(sum(float(logp_SV[n - 1, ids[0, n]]) for n in range(begin, ids.shape[1])))
    return OPTIONS[max(range(len(OPTIONS)), key=scores.__getitem__)]


def test_texts_are_answered_stored_and_resumed(exams, here, mmalign):
    """By its card's name: MMLU's letters are those of plain transformers; a stored answer is not asked for again."""
    node = existing.evaluation("tiny", [Part("mmlu"), Part("small-perplexity")], Registry())
    node.folder.mkdir(parents=True)
    kept = {"id": "virology/0", "text": " C"}
    (node.folder / "mmlu.jsonl").write_text(json.dumps(kept) + "\n")
    said = mmalign("eval", "tiny", *BENCH)
    assert said.code == 0, said.err
    assert "evaluating tiny" in said.err
    rows = [json.loads(line) for line in (node.folder / "mmlu.jsonl").read_text().splitlines()]
    bench = MMLU(str(exams))
    assert rows[0] == kept
    expected = {qid: likeliest(bench.prompt(qid)) for qid in bench.truth}
    assert {row["id"]: row["text"] for row in rows} == expected | {"virology/0": " C"}
    assert len(set(expected.values())) > 1
    right = [(row["text"].strip() == bench.truth[row["id"]].answer) for row in rows]
    shown = json.loads(said.out)
    assert shown["mmlu"]["average"] == pytest.approx(sum(right) / len(right))
    assert list(shown["small-perplexity"]) == ["perplexity"]  # nobody trained it, so there is no before
    again = mmalign("eval", "tiny", *BENCH)
    assert (again.out, "begins" in again.err) == (said.out, False)


def test_it_is_found_by_a_name_a_folder_a_language_stage_and_a_hub_id(here, monkeypatch):
    (here / "words.yaml").write_text(
        "{name: words, model: {llm: toy-llama}, stages: {words: {kind: language, data: toy-texts, optim: {lr: 0}, "
        "batch: 1, steps: 1, precision: fp32}}}"
    )
    (node,) = graph.plan(compose.load("words.yaml"), here / "runs")
    task.save(node)
    model = load("tiny")
    model.llm.save(node.folder / "weights" / "llm")
    task.finish(task.load(node.folder), {"metrics": {}, "parts": {"llm": f"{node.folder.name}/weights/llm"}}, 0, 1)
    repository = here / "hub" / "models--org--toy"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    os.symlink(node.folder / "weights" / "llm", repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(repository.parent))
    expected = model.perplexity(["a red ring is left of a star ."])
    for spec in ("tiny", node.folder, node.folder / "weights" / "llm", "org/toy"):
        other = load(spec)
        assert (other.vision, other.adapter) == (None, None)
        assert other.perplexity(["a red ring is left of a star ."]) == expected
    registry, texts = Registry(), [Part("mmlu")]
    nodes = [existing.evaluation(existing.find(str(s)), texts, registry) for s in ("tiny", node.folder, "org/toy")]
    assert {node.stage.precision for node in nodes} == {"fp32"}
    assert len({node.folder for node in nodes}) == 3
    for spec in (TOY, "org/toy", str(node.folder)):
        with pytest.raises(CheckError, match="toy-pope shows pictures, and .* is a language model alone"):
            existing.evaluation(existing.find(spec), [Part("toy-pope")], registry)


def test_the_language_of_a_card_in_the_precision_of_its_checkpoint(here):
    shelf(here, "llms", "half", CARD.format(tiny(here / "files16", "float16")))
    shelf(here, "llms", "hub", CARD.format("org/name"))
    for name, precision in (("half", "fp16"), ("hub", "bf16"), ("tiny", "fp32")):
        assert existing.evaluation(name, [Part("mmlu")], Registry()).stage.precision == precision


def test_it_answers_in_chat(mmalign, monkeypatch):
    lines = iter(["where is the ring ?", "/image a.png", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    from PIL import Image

    Image.new("RGB", (8, 8)).save("a.png")
    said = mmalign("chat", "toy-llama")
    assert (said.code, said.err) == (0, "")
    _, answer, refusal, *_ = said.out.splitlines()
    assert answer == load("toy-llama").ask("where is the ring ?", max_new_tokens=256).splitlines()[0]
    assert refusal == "this model has no vision encoder"


@pytest.mark.parametrize("spec", ["toy-llama", TOY])
@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (["eval", "", "--bench", "mmlu,toy-pope"], "toy-pope shows pictures, and ", "a benchmark of texts"),
        (["eval", "", "--bench", "mmlu", "--vllm"], "alone: vLLM is asked exported models", "leave out --vllm"),
        (["inspect", "", "a.png"], "alone: it has no visual tokens", "a model with an encoder"),
        (["chat", "", "a.png"], "alone: it can be shown no image", "a model with an encoder"),
        (["export", "", "out"], "alone: there is nothing to export", "a model with an encoder"),
        (["import", "", "out"], "alone: a recipe names its card", ""),
    ],
)
def test_what_it_is_no_good_for_is_told_before_it_is_loaded(here, mmalign, monkeypatch, spec, words, what, fix):
    monkeypatch.setattr("mmalign.pipeline.load._language_model", lambda _: pytest.fail("loaded"))
    before = snapshot(here)
    said = mmalign(*[word or spec for word in words])
    assert_mistake(said, what, "", fix or {"toy-llama": "model: {llm: toy-llama}"}.get(spec, f"--from {TOY}"))
    assert snapshot(here) == before


def test_a_name_that_is_nearly_a_card(mmalign):
    assert_mistake(mmalign("eval", "toy-lama", *BENCH), "no checkpoint toy-lama", "", "did you mean 'toy-llama'?")


def test_a_card_whose_checkpoint_is_not_whole(here, mmalign):
    """What `check` says of a recipe's card is said of one on the command line."""
    said = mmalign("eval", "toy-llama-deep", *BENCH)
    assert_mistake(said, "the checkpoint of toy-llama-deep, has no weights", "command line", "another card")
    deep = files.path("pkg:mmalign.toyworld/llama-deep")
    with pytest.raises(RunError, match="is a language model without weights"):
        existing.find(str(deep))


def test_an_arm_without_pre_training_stays_expressible(here):
    """tune without align: its evaluation reads what it trained, and is not the untouched language model's."""
    (here / "x.yaml").write_text(TINY)
    words = ["stages.align=null", "stages.label=null", "stages.tune.reads=null"]
    nodes = {node.name: node for node in graph.plan(compose.load("x.yaml", words), "runs")}
    assert list(nodes) == ["tune", "score", "report"]
    assert {"vision", "adapter", "llm"} < nodes["score"].cards.keys()
