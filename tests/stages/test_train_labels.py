"""Labels in the training stage: store and online draw the same; what is missing, foreign or unspeakable is said."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.errors import DataError, StageError
from mmalign.labels.store import Store
from mmalign.objectives import sea
from mmalign.pipeline import build, task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.plan.recipe import Train
from mmalign.stages import label, supply, train
from mmalign.toyworld.data import Captions
from mmalign.training.events import Events
from tests import parts
from tests.conftest import TINY

REST = ["stages.tune=~", "stages.score=~", "stages.report=~"]
ONLINE = ["stages.align.reads=~", "stages.align.labels={source: toy-words, keep: 3}"]
EYE = "summary: a tower of 5 x 5 patches\ntarget: mmalign.vision.hf.HFVision\nargs: {checkpoint: %s}\n"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))


def planned(folder: Path, *words: str, runs: str = "runs") -> list[graph.Node]:
    """The label and align stages of the tiny recipe, with a shelf that holds `eye`."""
    (folder / "tiny.yaml").write_text(TINY + f"registry: [{folder / 'shelf'}]\n")
    if not (folder / "shelf").exists():
        (folder / "shelf" / "vision").mkdir(parents=True)
        (folder / "shelf" / "vision" / "eye.yaml").write_text(EYE % parts.clip(folder / "eye"))
    return graph.plan(compose.load(folder / "tiny.yaml", [*REST, *words]), folder / runs)


def labelled(folder: Path, *words: str, runs: str = "runs") -> task.Task:
    """The align task, its label stage done first where it has one."""
    *before, align = planned(folder, *words, runs=runs)
    for node in before:
        task.save(node)
        given = task.load(node.folder)
        task.finish(given, label.run(given), 0.0, 1)
    task.save(align)
    return task.load(align.folder)


def rows(given: task.Task) -> list[dict[str, float]]:
    return [json.loads(line) for line in (given.folder / "metrics.jsonl").read_text().splitlines()]


def drawn(given: task.Task, monkeypatch: pytest.MonkeyPatch) -> list[set[tuple[int, int]]]:
    """Train, and note the (patch, word) pairs of every pass."""
    found: list[set[tuple[int, int]]] = []
    plain = sea.draw

    def noted(*args: Any) -> Any:
        patch_N, word_N = plain(*args)
        found.append(set(zip(patch_N.tolist(), word_N.tolist(), strict=True)))
        return patch_N, word_N

    with monkeypatch.context() as patched:
        patched.setattr(sea, "draw", noted)
        train.run(given)
    return found


@pytest.mark.parametrize("eye", ["toy-clip", "eye"])
def test_store_and_online_draw_the_same_pairs(tmp_path, monkeypatch, eye):
    """Paired by seed: what differs is a score's rounding to fp16, so next to no pair. `eye` has another grid."""
    words = [f"model.vision={eye}", "stages.align.steps=12"]
    stored = drawn(labelled(tmp_path, *words), monkeypatch)
    online = drawn(labelled(tmp_path, *words, "stages.label=~", *ONLINE), monkeypatch)
    assert len(stored) == len(online) == 1 + 12 * 2  # one to look at, then two passes a step
    same = sum(len(a & b) for a, b in zip(stored, online, strict=True))
    both = sum(len(a | b) for a, b in zip(stored, online, strict=True))
    assert both > 200
    assert same / both > 0.98


def test_store_and_online_draw_a_word_equally_often(tmp_path):
    """One batch, many streams: the two counts of every (patch, word) come from one distribution."""
    made = [collated(labelled(tmp_path)), collated(labelled(tmp_path, "stages.label=~", *ONLINE))]
    counts: list[Counter[tuple[int, int]]] = [Counter(), Counter()]
    for (model, collate), count in zip(made, counts, strict=True):
        batch = collate.batch([0, 1, 2, 3], seed=0)
        step = sea.Step()
        model._label(step, batch, model.see(batch)[1])
        for number in range(400):  # streams of their own, so that the counts are independent
            step.random = torch.Generator().manual_seed(number + (0 if count is counts[0] else 10_000))
            patch_N, words_NK, scores_NK = sea.draw_patches(step.labels, 4, (6, 6), 2, step.random)
            word_N = sea.draw_words(words_NK, scores_NK, step.random)
            count.update(zip(patch_N.tolist(), word_N.tolist(), strict=True))
    often = [pair for pair in counts[0] | counts[1] if counts[0][pair] + counts[1][pair] >= 20]
    squares = [(counts[0][p] - counts[1][p]) ** 2 / (counts[0][p] + counts[1][p]) for p in often]
    assert len(often) > 100
    freedom = len(often)
    assert sum(squares) < freedom + 3.1 * (2 * freedom) ** 0.5  # chi-square, p = 0.001


def collated(given: task.Task) -> tuple[Any, Any]:
    """The model and the collate of a training stage."""
    stage, events = given.stage, Events(given.folder)
    assert isinstance(stage, Train)
    vlm, data = build.vlm(given), build.data(given.cards["data"])
    labels = supply.supply(given, stage, vlm, data, events)
    return train._supervised(given, stage, vlm, labels, False), train._collate(given, stage, vlm, data, labels)


# Stores that are not what the recipe asks for


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        (["stages.align.labels.keep=5"], "the label store keeps 3 words a patch, the recipe 5"),
        (
            ["stages.align.labels.source.args={words: pkg:mmalign.toyworld/words/full.txt}"],
            r"word list is 18 words \(circle, square, triangle, ...\), the recipe's is 91 words \(circle, square",
        ),
        (
            ["stages.align.labels.source.args={sign: -1}"],
            r"made by \[clip .*sign \+1.*, the recipe asks for \[clip .*sign -1",
        ),
        (
            ["stages.align.labels.source.args={encoder: eye}"],
            r"made by \[clip [0-9a-f]{12}, 72 px, .* asks for \[eye [0-9a-f]{12}, 30 px, ",
        ),
    ],
)
def test_a_store_from_another_encoder_or_word_list_is_refused_and_both_are_named(tmp_path, asked, what):
    store = f"stages.align.labels.store={labelled(tmp_path).parent('labels')}/labels"
    given = labelled(tmp_path, "stages.label=~", *ONLINE, store, *asked)
    with pytest.raises(StageError, match=what):
        train.run(given)


def test_a_store_the_source_made_is_read(tmp_path, monkeypatch):
    first = labelled(tmp_path, "stages.align.steps=2")
    store = f"stages.align.labels.store={first.parent('labels')}/labels"
    given = labelled(tmp_path, "stages.align.steps=2", "stages.label=~", *ONLINE, store)
    assert drawn(given, monkeypatch) == drawn(first, monkeypatch)


# Samples and words


def test_samples_without_labels_are_counted_and_listed_and_the_budget_stops_the_stage(tmp_path):
    words = ["stages.label.data.args.size=44"]  # of the 48 that are trained on
    given = labelled(tmp_path, *words)
    with pytest.raises(StageError, match=r"1 unusable samples, more than `max_bad` allows \(0\): train-4[4-7]: no lab"):
        train.run(given)
    given = labelled(tmp_path, *words, "stages.align.max_bad=0.1")
    assert train.run(given)["bad"] == 4
    found = [json.loads(line) for line in (given.folder / "bad.jsonl").read_text().splitlines()]
    assert {row["sample"]: row["reason"] for row in found} == {
        f"train-{number}": f"no labels for 'train-{number}'" for number in (44, 45, 46, 47)
    }


def test_words_the_tokenizer_makes_nothing_of_are_said_and_never_drawn(tmp_path, monkeypatch):
    known = ["circle", "square", "star", "red", "blue", "background"]
    (tmp_path / "words.txt").write_text("\n".join([*known, "東京", "\u200b", "ünïcödé"]))
    words = [f"stages.label.source.args={{words: {tmp_path}/words.txt}}", "stages.label.keep=9"]
    given = labelled(tmp_path, *words)
    pairs = drawn(given, monkeypatch)
    store = Store(given.parent("labels") / "labels")
    assert max(int(words_NPK.max()) for words_NPK, _ in store.shards()) >= len(known)  # a store is for any model
    assert {word for one in pairs for _, word in one} <= set(range(len(known)))
    said = (given.folder / "events.jsonl").read_text()
    assert "3 words have no token and are never drawn: " in (said := json.loads(said.splitlines()[0])["say"])
    assert "..." not in said


def test_of_many_words_the_first_are_named_and_that_there_are_more(tmp_path):
    (tmp_path / "words.txt").write_text("\n".join(["star", *"一丁七万丈三"]))
    given = labelled(tmp_path, f"stages.label.source.args={{words: {tmp_path}/words.txt}}", "stages.label.keep=2")
    train.run(given)
    told = json.loads((given.folder / "events.jsonl").read_text().splitlines()[0])["say"]
    assert told == "6 words have no token and are never drawn: 一, 丁, 七, 万, 丈, ..."


def test_a_word_list_the_tokenizer_makes_nothing_of(tmp_path):
    (tmp_path / "words.txt").write_text("東京\n\u200b\n")
    given = labelled(tmp_path, f"stages.label.source.args={{words: {tmp_path}/words.txt}}", "stages.label.keep=2")
    with pytest.raises(StageError, match="the tokenizer makes nothing of any word in the list"):
        train.run(given)


# A sign that the data does not decide

UNRELATED = """summary: captions of other images
target: tests.stages.test_train_labels.Unrelated
args: {size: 48}
"""


class Unrelated(Captions):
    """The captions of images that come 7 further on."""

    def __getitem__(self, number):
        record = super().__getitem__(number)
        return replace(record, turns=super().__getitem__((number + 7) % self.size).turns)


def unrelated(folder: Path, *words: str) -> task.Task:
    """The last stage of the tiny recipe with those words, on a shelf with data whose captions are of other images."""
    planned(folder)
    (folder / "shelf" / "data").mkdir(exist_ok=True)
    (folder / "shelf" / "data" / "unrelated.yaml").write_text(UNRELATED)
    node = planned(folder, *words)[-1]
    return task.load(node.folder, task.save(node))


def test_captions_of_other_images_stop_the_label_stage(tmp_path):
    sign = "stages.label.source.args={sign: auto}"
    given = unrelated(tmp_path, "stages.align=~", sign, "stages.label.data={card: unrelated}")
    with pytest.raises(DataError, match=r"sign auto is not decided: with \+1 the best word of .* \(p 0\.") as caught:
        label.run(given)
    assert caught.value.exit_code == 2
    assert "sign: -1 (the paper's, for CLIP) or sign: 1" in caught.value.fix
    assert not (given.folder / "labels").exists()
    given = unrelated(tmp_path, "stages.align=~", sign)  # their own captions
    label.run(given)
    said = json.loads((given.folder / "events.jsonl").read_text().splitlines()[0])["say"]
    assert re.search(r"sign \+1 \(with \+1 .* \(p 0\.0001\); with -1 .* \(p 1\); .* captions, 7 content words\)", said)
    assert "sign +1" in Store(given.folder / "labels").header.encoder


def test_captions_of_other_images_stop_a_stage_with_online_labels_before_the_first_step(tmp_path, monkeypatch):
    online = ["stages.label=~", *ONLINE, "stages.align.labels.source.args={sign: auto}", "stages.align.steps=1"]
    given = unrelated(tmp_path, *online, "stages.align.data={card: unrelated}")
    monkeypatch.setattr(train, "_probe", lambda *_: pytest.fail("the model was run"))
    with pytest.raises(DataError, match="sign auto is not decided"):
        train.run(given)
    assert not (given.folder / "metrics.jsonl").exists()
    given = unrelated(
        tmp_path, *online, "stages.align.data={card: unrelated}", "stages.align.labels.source.args.sign=-1"
    )
    supply.supply(given, given.stage, build.vlm(given), build.data(given.cards["data"]), Events(given.folder))


def test_a_word_list_that_no_caption_uses_decides_no_sign(tmp_path):
    (tmp_path / "words.txt").write_text("soup\nforest\n")
    given = unrelated(
        tmp_path, "stages.align=~", f"stages.label.source.args={{words: {tmp_path}/words.txt, sign: auto}}"
    )
    with pytest.raises(
        DataError, match=r"sign auto is not decided: of 4\d captions none has a content word of the list"
    ):
        label.run(given)


def test_a_lens_is_fitted_on_samples_from_all_over_the_data(tmp_path, monkeypatch):
    """Without image marks, in no order of the data, always the same; a sample that cannot be read is left out, as the
    loop will tell."""
    given = labelled(tmp_path, "stages.label=~", *ONLINE)
    data = build.data(given.cards["data"])
    said = [[turn.text.replace("<image>", "").strip() for turn in data[n].turns] for n in range(len(data))]
    every = [text for texts in said for text in texts]
    assert sorted(train._texts(data)) == sorted(every)
    assert train._texts(data) == train._texts(data) != every
    monkeypatch.setattr(train, "TEXTS", 5)
    step = -(-len(data) // 5)
    read = type(data).__getitem__

    def unless_first(self, number):
        if not number:
            raise DataError("damaged")
        return read(self, number)

    monkeypatch.setattr(type(data), "__getitem__", unless_first)
    assert sorted(train._texts(data)) == sorted(text for n in range(step, len(data), step) for text in said[n])
    assert all("<image>" not in text for text in train._texts(data))
