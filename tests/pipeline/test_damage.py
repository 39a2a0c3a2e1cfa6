"""Turned bits and cut files: in checkpoints, weights, label stores and exports every one is noticed, and named."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmalign.errors import RunError
from mmalign.io import seal, sums
from mmalign.labels.store import Store
from mmalign.pipeline import build, load, task, whole
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.training import checkpoint
from mmalign.vlm import folder as folders
from tests.conftest import TINY
from tests.labels import test_store
from tests.parts import exported


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs as if the tiny recipe had run: labels, weights with a checkpoint, and an export of each kind."""
    here = tmp_path_factory.mktemp("made")
    (here / "tiny.yaml").write_text(TINY)
    label, align, tune, *_ = graph.plan(compose.load(here / "tiny.yaml"), here / "runs")
    task.save(label)
    test_store.build(label.folder / "labels")
    task.finish(task.load(label.folder), {"metrics": {}}, 0, 1)
    for node, parts in ((align, ["adapter"]), (tune, ["adapter", "llm"])):
        task.save(node)
        stored = task.load(node.folder)
        vlm = build.vlm(stored)
        (node.folder / "weights").mkdir()
        save_file(vlm.adapter.state_dict(), node.folder / "weights" / "adapter.safetensors")
        if "llm" in parts:
            vlm.llm.save(node.folder / "weights" / "llm")
        checkpoint.save(node.folder / "checkpoints", 5, iter({"a": torch.rand(50, 40)}.items()), 0)
        places = {"adapter": "weights/adapter.safetensors", "llm": "weights/llm"}
        results = {"metrics": {}, "parts": {part: f"{node.folder.name}/{places[part]}" for part in parts}}
        task.finish(stored, results, 0, 1)
    vlm = build.vlm(stored)
    folders.save(here / "ours", vlm, stored.cards)
    exported(vlm, here / "llava")
    return here


def _store(folder: Path) -> None:
    tuple(Store(folder / "labels").shards())


KINDS: dict[str, tuple[str, str, Callable[[Path], object]]] = {  # what: (its folder, its files, what reads them)
    "checkpoint": ("runs/train-*/checkpoints/step-5", "*", checkpoint.load),
    "weights": ("runs/train-*", "weights/**/*", load.load),
    "weights' hashes": ("runs/train-*", "stage.json", load.load),
    "labels": ("runs/label-*", "labels/*", _store),
    "ours": ("ours", "**/*", load.load),
    "llava": ("llava", "**/*", load.load),
}


def damages(here: Path, times: int, seed: int) -> Iterator[tuple[str, Path, Path]]:
    """(kind, folder, file) of so many damages, the file being damaged; it is whole again afterwards."""
    how = random.Random(seed)
    for number in range(times):
        kind = list(KINDS)[number % len(KINDS)]
        folder = how.choice(sorted(here.glob(KINDS[kind][0])))
        place = how.choice(sorted(p for p in folder.glob(KINDS[kind][1]) if p.is_file()))
        data = place.read_bytes()
        at = how.randrange(len(data))
        cut = how.random() < 0.3
        place.write_bytes(data[:at] if cut else data[:at] + bytes([data[at] ^ 1 << how.randrange(8)]) + data[at + 1 :])
        sums.forget()  # the file's time may be the same still
        yield kind, folder, place
        place.write_bytes(data)
        sums.forget()


def assert_all_noticed(here: Path, times: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMALIGN_CACHE", str(here / "cache"))
    for kind, folder, place in damages(here, times, seed):
        found = [one for look in whole.looks(here) for one, _ in look.damage]
        listed = place.name == sums.NAME  # a wrong hash says the same as a wrong file
        assert found, place
        assert place in found or listed, f"{place}: {found}"
        if kind != "labels" or not place.match("shard-*.json"):  # which a finished store is read without
            with pytest.raises(RunError) as caught:
                KINDS[kind][2](folder)
            assert str(place) in caught.value.at or place.name in caught.value.what or listed, (
                f"{place}: {caught.value}"
            )
        assert not (here / "cache" / "imported").exists() or not list((here / "cache" / "imported").iterdir())


def test_all_is_whole(made, monkeypatch, tmp_path):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path))
    sums.forget()
    assert [(look.kind, look.damage, look.note) for look in whole.looks(made)] == [
        (kind, [], "")
        for kind in (
            "exported model", "exported model", "stage", "label store", "stage", "checkpoint", "stage", "checkpoint"
        )
    ]  # fmt: skip
    for pattern, _, read in KINDS.values():
        for folder in made.glob(pattern):
            read(folder)


def test_turned_bits_and_cut_files_are_noticed_and_named(made, monkeypatch):
    assert_all_noticed(made, 60, 1, monkeypatch)


@pytest.mark.slow
def test_a_thousand_of_them(made, monkeypatch):
    assert_all_noticed(made, 1000, 2, monkeypatch)


def test_the_stage_to_run_again_is_named(made):
    (align,) = (p.parent for p in made.glob("runs/train-*/stage.json") if '"name": "align"' in p.read_text())
    place = align / "weights" / "adapter.safetensors"
    data = place.read_bytes()
    place.write_bytes(data[:-1] + b"x")
    sums.forget()
    with pytest.raises(RunError) as caught:
        load.load(align)
    place.write_bytes(data)
    assert caught.value.what == "adapter.safetensors is damaged: it is not as it was written (SHA-256)"
    assert caught.value.at == str(place)
    assert caught.value.fix == "run the stage that wrote it again: --force align"


def test_a_stage_without_hashes_is_read_and_said_to_have_none(made, tmp_path):
    """As 0.1.0 wrote it."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    for place in tmp_path.glob("runs/*/stage.json"):
        about = seal.read(place)
        del about[seal.HASHES]
        place.write_text(json.dumps(about))
    assert {look.note for look in whole.looks(tmp_path) if look.kind == "stage"} == {whole.NONE}
    load.load(next(tmp_path.glob("runs/train-*")))


def test_weights_are_compared_by_one_process_of_a_machine(made, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    place = next(made.glob("runs/train-*/weights/adapter.safetensors"))
    data = place.read_bytes()
    place.write_bytes(data[:-1] + b"x")
    sums.forget()
    load.load(place.parent.parent)
    place.write_bytes(data)


def test_what_is_compared_once_is_not_hashed_again(made, monkeypatch):
    folder = next(made.glob("runs/train-*"))
    sums.forget()
    load.load(folder)
    monkeypatch.setattr(sums, "_sha256", None)
    load.load(folder)
