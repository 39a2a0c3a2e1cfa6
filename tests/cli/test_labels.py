"""`labels show` and `labels stats` on what a label stage left."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mmalign.pipeline import task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.stages import label
from tests.conftest import TINY
from tests.data.samples import images, jsonl, row
from tests.plan.test_mistakes import assert_mistake, shelf

DATA = "summary: mine\ntarget: mmalign.data.conversations.Conversations\nargs: {path: ../../x.jsonl, images: ../..}\n"


@pytest.fixture
def labels(here, monkeypatch) -> Path:
    """The folder of a label stage; its data begins with a row of text and one whose image is missing."""
    monkeypatch.setenv("MMALIGN_CACHE", str(here / "cache"))
    images(here, 2)
    jsonl(here / "x.jsonl", [row("text", asked="hello"), row("gone", "none.jpg"), row("a", "0.jpg"), row("b", "1.jpg")])
    shelf(here, "data", "mine", DATA)
    (here / "tiny.yaml").write_text(TINY + "registry: [./shelf]\n")
    words = ["stages.label.data={card: mine}", "stages.label.max_bad=0.5"]
    words += [f"stages.{name}=~" for name in ("align", "tune", "score", "report")]
    (node,) = graph.plan(compose.load("tiny.yaml", words))
    task.save(node)
    stage_task = task.load(node.folder)
    task.finish(stage_task, label.run(stage_task), 0, 1)
    return node.folder


def test_show_and_stats(labels, mmalign):
    result = mmalign("labels", "show", labels)
    assert result.code == 0, result.err
    assert result.out.split() == ["a@2", "labels.png"]  # the first that has labels
    result = mmalign("labels", "show", labels, "b@3", "a@2", "--out", "of.png")
    assert sorted(result.out.split()) == ["a@2", "b@3", "of-a@2.png", "of-b@3.png"]
    assert all(Image.open(name).format == "PNG" for name in ("labels.png", "of-a@2.png", "of-b@3.png"))
    result = mmalign("labels", "stats", labels, "--out", "figure", "--json")
    totals = json.loads(result.out)
    assert (totals["images"], totals["bad"], totals["patches"]) == (2, 1, 2 * 36)
    assert json.loads(Path("figure.json").read_text()) == totals
    assert "images      2, and 1 that could not be read" in mmalign("labels", "stats", labels / "labels").out


def test_mistakes(labels, mmalign):
    assert_mistake(mmalign("labels", "show", labels, "a@2", "c"), "no labels for c", str(labels), "ids of the data's")
    result = mmalign("labels", "show", labels / "labels")
    assert_mistake(result, "does not say which data it labels", "labels", "runs/label-")
    assert mmalign("labels", "stats", "nowhere").code == 2
    lines = Path("x.jsonl").read_text().splitlines(keepends=True)
    Path("x.jsonl").write_text("".join(lines[:2]))
    assert_mistake(
        mmalign("labels", "show", labels, "a@2"), "no image a@2 in the data", "label-", "when it was labelled"
    )
    assert_mistake(mmalign("labels", "show", labels), "no image with labels in the data", "label-", "as it was")
    assert not Path("labels.png").exists()
