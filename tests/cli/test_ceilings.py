"""`mmalign ceilings`: the table of a language model alone, of a model that sees, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from mmalign.cli import reading

from mmalign.pipeline import task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.vlm.ceilingtable import Ceiling
from tests.plan.test_mistakes import assert_mistake

SHIPPED = Path(__file__).parents[2] / "mmalign" / "toyworld" / "llama"
LANGUAGE = """\
name: told
seed: 1
model: {vision: toy-clip, adapter: mlp2x-gelu, llm: toy-llama-deep}
stages:
  language: {kind: language, data: toy-texts, steps: 1, batch: 1, optim: {lr: 1e-3}}
"""
TOY = "toy-llama", "--text", "toy-eval-texts"


@pytest.fixture(autouse=True)
def small(here, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(here / "cache"))
    monkeypatch.setattr("mmalign.vlm.lens.TOKENS", 300)
    monkeypatch.setattr("mmalign.vlm.readout.SHOWN", 100)
    monkeypatch.setattr("mmalign.vlm.ceilingtable.TEXT", 200)
    monkeypatch.setattr("mmalign.benchmarks.alignment.PERFECT", 20)


def test_the_table_and_its_numbers(mmalign):
    asked = "ceilings", *TOY, "--data", "toy-eval", "--layers", "0,2"
    result = mmalign(*asked)
    assert result.code == 0, result.err
    head, *lines = result.out.splitlines()
    columns = [f"{shown} {kind}" for shown in ("text", "perfect", "true") for kind in ("input", "same-layer", "lens")]
    assert head.split("  ") == ["layer", *columns]
    rows = json.loads(mmalign(*asked, "--json").out)
    assert [f"{row['shown']} {row['readout']}" for row in rows] == [column for column in columns for _ in range(2)]
    for layer, line in zip((0, 2), lines, strict=True):
        cells = [reading._cell(Ceiling(**row)) for row in rows if row["layer"] == layer]
        assert line.split() == [str(layer), *" ".join(cells).split()]
    assert {row["tokens"] for row in rows if row["shown"] == "perfect"} == {100}
    assert all(row["share"] == 1 for row in rows if row["layer"] == 0)


@pytest.mark.parametrize(
    ("share", "strict", "cell"), [(1.0, 1.0, "100.0"), (0.5, 0.4999, "50.0"), (0.731, 0.7, "73.1 (70.0)")]
)
def test_the_strict_number_is_shown_where_it_is_another(share, strict, cell):
    assert reading._cell(Ceiling("text", "lens", 1, share, strict, 10)) == cell


def test_layers_and_readouts_that_are_named(mmalign):
    rows = json.loads(mmalign("ceilings", *TOY, "--readout", "lens,input,lens", "--json").out)
    assert {row["layer"] for row in rows} == {0, 1, 2, 3, 4}
    assert list(dict.fromkeys(row["readout"] for row in rows)) == ["lens", "input"]


def test_a_text_of_the_users_own(here, mmalign):
    (here / "a.txt").write_text("the red star\n\nand a ring .\n")
    rows = json.loads(mmalign("ceilings", "toy-llama", "--text", "a.txt", "--readout", "input", "--json").out)
    assert {row["tokens"] for row in rows if row["shown"] == "text"} == {7}


def test_a_text_that_the_tokenizer_does_not_know_is_not_shown(mmalign):
    result = mmalign("ceilings", "toy-llama", "--readout", "input", "--layers", "0")
    assert result.out.splitlines()[0].split("  ") == ["layer", "perfect input"]
    assert "no text is shown: the tokenizer of toy-llama knows 3" in result.err
    assert "--text toy-eval-texts" in result.err


def test_a_model_that_sees(model, mmalign):
    result = mmalign("ceilings", model, "--data", "toy-eval", "--layers", "1", "--readout", "input", "--json")
    assert result.code == 0, result.err
    assert [row["shown"] for row in json.loads(result.out)] == ["perfect", "true"]


def test_the_language_model_that_a_stage_made(here, mmalign):
    (here / "language.yaml").write_text(LANGUAGE)
    node = graph.plan(compose.load(here / "language.yaml"), here / "runs")[0]
    task.save(node)
    shutil.copytree(SHIPPED, node.folder / "weights" / "llm")
    parts = {"llm": f"{node.folder.name}/weights/llm"}
    task.finish(task.load(node.folder), {"metrics": {}, "parts": parts}, 0, 1)
    asked = "--text", "toy-eval-texts", "--readout", "input", "--json"
    result = mmalign("ceilings", node.folder, *asked)
    assert result.code == 0, result.err
    assert result.out == mmalign("ceilings", "toy-llama", *asked).out


def test_mistakes(here, mmalign, monkeypatch):
    monkeypatch.setattr("mmalign.pipeline.load.load", None)  # known before a model is loaded
    stage = "a folder runs/language-..., which a stage of kind `language` writes"
    path = "toy-llama-deep.yaml"
    assert_mistake(mmalign("ceilings", "toy-llama-deep"), "toy-llama-deep comes without weights", path, stage)
    assert_mistake(mmalign("ceilings", "toy-lama"), "no checkpoint toy-lama", "toy-lama", "did you mean 'toy-llama'?")
    result = mmalign("ceilings", "toy-llama", "--readout", "input,tuned")
    assert_mistake(result, "no readout 'tuned'", "--readout", "some of input,same-layer,lens")
    result = mmalign("ceilings", "toy-llama", "--layers", "one")
    assert_mistake(result, "--layers 'one' is no list of numbers", "", "--layers 0,8,16")
    result = mmalign("ceilings", "toy-llama", "--text", "none.txt")
    assert_mistake(result, "cannot read the text 'none.txt': No such file", "none.txt", "pkg:package/file")
    result = mmalign("ceilings", "toy-llama", "--data", "toy-texts")
    assert_mistake(result, "the data toy-texts does not know what its images show", "--data", "toy-eval")
    assert_mistake(
        mmalign("ceilings", "toy-llama", "--data", "toy-evil"), "no data card named 'toy-evil'", "", "toy-eval"
    )


def test_a_layer_that_there_is_not(mmalign):
    what, fix = "no layer 9: the language model has 4", "0 (what the adapter makes) to 4"
    assert_mistake(mmalign("ceilings", "toy-llama", "--layers", "9"), what, "layers", fix)
