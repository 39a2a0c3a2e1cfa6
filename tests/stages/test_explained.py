"""The pictures an evaluation explains: what is nearest is what the model says, and right what the metric has."""

import json
from types import SimpleNamespace

import pytest

from mmalign.benchmarks.alignment import Alignment
from mmalign.stages import evaluate, explained, explored
from mmalign.toyworld.benchmarks import Pope
from mmalign.toyworld.data import Captions
from tests.stages import test_evaluate
from tests.stages.test_report import carried, finished

model = test_evaluate.model


def test_layers_are_spread_from_the_first_to_the_last():
    assert explained.spread(0) == [0]
    assert explained.spread(4) == [0, 1, 2, 3, 4]
    assert explained.spread(32) == [0, 4, 8, 12, 16, 20, 24, 28, 32]


def said(row, layer):
    """[[word, ...], ...] of a row."""
    return [[row["table"][number] for number in own] for own in row["layers"][str(layer)]["numbers"]]


def test_what_a_benchmark_asked_about_is_what_the_model_says(model):
    bench = Pope(images=8)
    rows = explained.asked(model, bench)
    assert [row["id"].split("-")[0] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    view = model.nearest_words([bench.image(number) for number in range(6)], range(model.depth + 1), top_k=5)
    for number, row in enumerate(rows):
        assert row["question"] == next(q.text for q in bench.questions() if q.id == row["id"])
        assert list(row["layers"]) == [str(layer) for layer in range(model.depth + 1)]
        for layer in range(model.depth + 1):
            words = view.words[layer][number]
            assert said(row, layer) == [[word for word, _ in own] for own in words]
            for own, other in zip(row["layers"][str(layer)]["cosines"], words, strict=True):
                assert own == pytest.approx([cosine for _, cosine in other], abs=1e-4)
        assert row["words"] == [own[0] for own in said(row, 0)]


@pytest.mark.parametrize("words", [None, "pkg:mmalign.toyworld/words/clean.txt"], ids=["tokens", "list"])
def test_the_share_that_is_right_is_the_metrics(model, tmp_path, words):
    """Of the pictures that are shown: objects and background, at every layer."""
    score = Alignment(Captions(8, "eval"), images=explained.PICTURES, words=words).measure(model)
    folder = finished(tmp_path / "evaluate", "score", "evaluate", metrics={"pope": {}}, what={})
    (folder / "pictures.json").write_text(json.dumps(explained.asked(model, Pope(images=6))))
    probe = Alignment(Captions(8, "eval"), images=8, words=words)
    (folder / "judged.json").write_text(json.dumps(explained.judged(model, probe, score)))
    data = carried(explored.html([folder], [""]))
    assert len(data["pictures"]) == (12 if words else 6)  # the same words: both are one picture, asked about and judged
    shares = dict(data["shares"][""])
    percent = {layer: {kind: 100 * a / b for kind, (a, b) in own.items()} for layer, own in shares.items()}
    assert shares[0]["2"][1] == score.counts["object_patches"]
    assert percent[0]["2"] == pytest.approx(score.metrics["object"])
    assert percent[0]["1"] == pytest.approx(score.metrics["background"])
    for layer in range(1, model.depth + 1):
        assert percent[layer]["2"] == pytest.approx(score.metrics[f"object_layer_{layer}"])
    remarks = dict(zip(range(model.depth + 1), data["pictures"][-1]["panes"][0]["remarks"], strict=True))
    assert remarks[0] == ""
    assert remarks[1].startswith(f"{score.metrics['ceiling_layer_1'] / 100:.0%} of perfect tokens are read right")


def test_an_evaluation_keeps_both(model, tmp_path):
    probe, task = Alignment(Captions(8, "eval"), images=8), SimpleNamespace(folder=tmp_path)
    evaluate._keep(task, model, probe, "toy-alignment", probe.measure(model))
    evaluate._keep(task, model, Pope(images=6), "toy-pope", Pope(images=6).score({}))
    judged, asked = (json.loads((tmp_path / name).read_text()) for name in ("judged.json", "pictures.json"))
    assert [row["png"] for row in judged] == [row["png"] for row in asked]
    assert ["truth" in row for row in judged + asked] == [True] * 6 + [False] * 6
    assert judged[0]["id"] == "eval-0"
