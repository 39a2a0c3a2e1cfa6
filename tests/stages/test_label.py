"""The labelling stage: killed anywhere it ends in the same bytes, ranks share the work, the header says from what."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from mmalign.errors import StageError
from mmalign.io import files
from mmalign.labels.store import Store, words_hash
from mmalign.pipeline import task
from mmalign.plan import building, graph
from mmalign.plan import read as compose
from mmalign.plan.check import check
from mmalign.stages import label
from mmalign.toyworld.data import Captions
from tests.conftest import TINY

IMAGES, SHARD = 22, 4
WORDS = [
    f"stages.label={{shard: {SHARD}, batch: 3}}", f"stages.label.data.args.size={IMAGES}",
    "stages.align=~", "stages.tune=~", "stages.score=~", "stages.report=~",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))


def made(folder: Path, *words: str) -> task.Task:
    """The tiny recipe's label stage, ready to run."""
    (folder / "tiny.yaml").write_text(TINY)
    (node,) = graph.plan(compose.load(folder / "tiny.yaml", [*WORDS, *words]), folder / "runs")
    task.save(node)
    return task.load(node.folder)


def content(folder: Path) -> dict[str, bytes]:
    return {place.name: place.read_bytes() for place in (folder / "labels").iterdir()}


def dying(call: Callable[..., Any], at: list[int]) -> Callable[..., Any]:
    """A call that ends its process, as kill -9 does, when the count in `at` comes to its end."""

    def counted(*args: Any, **more: Any) -> Any:
        at[0] -= 1
        if not at[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **more)

    return counted


def _killed(folder: Path, after: int) -> None:
    """Label until the so-manieth image is read, file is about to be flushed, or file is about to get its name."""
    at = [after]
    for owner, name in ((Captions, "image"), (os, "fsync"), (os, "replace")):
        setattr(owner, name, dying(getattr(owner, name), at))
    label.run(task.load(folder))


def survives(folder: Path, after: int) -> bool:
    """Whether labelling ended before it was to be killed."""
    child = get_context("fork").Process(target=_killed, args=(folder, after))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode == 0


def test_killed_at_ten_random_moments_the_store_is_the_same_byte_for_byte(tmp_path):
    given, how = made(tmp_path), random.Random(0)
    label.run(given)
    want = content(given.folder)
    shutil.rmtree(given.folder / "labels")
    kills = whole = 0
    while kills < 10:
        # each time it begins it looks at all the images once to centre the words, then it goes on labelling
        if survives(given.folder, IMAGES + how.randint(1, 30)):
            assert content(given.folder) == want
            shutil.rmtree(given.folder / "labels")
            whole += 1
        else:
            kills += 1
            assert not (given.folder / "labels" / "header.json").exists()
        files.sweep(given.folder)  # as the run does before a stage goes on
    assert survives(given.folder, 10**6)
    assert content(given.folder) == want
    assert whole  # the kills reached to the end of a store, so to every part of it


def test_the_header_says_what_the_labels_were_made_from(tmp_path):
    given = made(tmp_path)
    label.run(given)
    header = Store(given.folder / "labels").header
    clip = graph.plan(compose.load("quickstart"), tmp_path)[0].what["cards"]["labels.encoder"]["content"]
    assert next(iter(clip.values()))[:12] in header.encoder  # the weights themselves, not only their name
    assert header.words == words_hash(Store(given.folder / "labels").words)
    assert header.settings["center"] == 256
    assert (header.grid, header.keep, header.size) == ((6, 6), 3, 18)
    other = made(tmp_path, "stages.label.data.args.seed=9")
    label.run(other)
    found = Store(other.folder / "labels").header
    assert found.data != header.data
    assert found.data.split()[0] == header.data.split()[0] == "toy-captions"


class Spotty(Captions):
    def image(self, reference):
        if reference in (3, 20):
            raise label.DataError(f"images/{reference}.png is cut off")
        return super().image(reference)


def test_unreadable_images_are_listed_with_the_reason_and_the_budget_stops_the_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "build", _instead(building.build, "toy-captions", Spotty(IMAGES)))
    given = made(tmp_path)
    with pytest.raises(StageError, match="1 of 4 images could not be read, more than max_bad 0.001: train-3: images/3"):
        label.run(given)  # the first shard is enough to know
    given.stage.max_bad = 1.5 / IMAGES
    with pytest.raises(StageError, match="2 of .* images could not be read.*: train-3: .*; train-20: images/20"):
        label.run(given)
    assert not (given.folder / "labels" / "header.json").exists()
    given.stage.max_bad = 0.1
    assert label.run(given)["metrics"] == {"images": 20, "bad": 2}
    store = Store(given.folder / "labels")
    assert store.bad == [["train-3", "images/3.png is cut off"], ["train-20", "images/20.png is cut off"]]
    assert "train-3" not in store
    assert "train-4" in store


def test_the_other_images_of_a_record_are_labelled_nevertheless(tmp_path, monkeypatch):
    class Pairs(Spotty):
        def __getitem__(self, number):
            record = super().__getitem__(number)
            return replace(record, images=(number, number + 1000))

    monkeypatch.setattr(building, "build", _instead(building.build, "toy-captions", Pairs(IMAGES)))
    given = made(tmp_path, "stages.label.max_bad=0.1")
    assert label.run(given)["metrics"] == {"images": 2 * IMAGES - 2, "bad": 2}
    store = Store(given.folder / "labels")
    first, second = Pairs(IMAGES)[3].keys
    assert first not in store
    assert second in store


def _instead(build: Callable[..., Any], name: str, other: object) -> Callable[..., Any]:
    return lambda card, **more: other if card.name == name else build(card, **more)


def test_check_says_when_labels_are_resampled(tmp_path):
    facts = "facts: {dim: 24, grid: [5, 5], image_size: 30, text: false}"
    card = tmp_path / "shelf" / "vision" / "eye.yaml"
    card.parent.mkdir(parents=True)
    card.write_text(f"summary: mine\ntarget: mmalign.vision.hf.HFVision\nargs: {{checkpoint: x/y}}\n{facts}\n")
    (tmp_path / "tiny.yaml").write_text(TINY + "registry: [./shelf]\n")
    want = "labels come from toy-clip, the model sees through eye; its [6, 6] grid is resampled to [5, 5]"
    (note,) = check(compose.load(tmp_path / "tiny.yaml", ["model.vision=eye"]))
    assert note == f"stage 'label': {want}"
    online = ["model.vision=eye", "stages.label=~", "stages.align.reads=~", "stages.align.labels=toy-words"]
    (note,) = check(compose.load(tmp_path / "tiny.yaml", online))
    assert note == f"stage 'align': {want}"
    assert check(compose.load(tmp_path / "tiny.yaml")) == []


def test_the_store_is_what_its_json_says(tmp_path):
    given = made(tmp_path)
    label.run(given)
    shards = json.loads((given.folder / "labels" / "header.json").read_text())["shards"]
    assert [shard["rows"] for shard in shards] == [4, 4, 4, 4, 4, 2]
