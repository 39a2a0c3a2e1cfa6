"""A finished training stage of the toy world, made in a second: its adapter is drawn, nothing is trained."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.utils import logging

from mmalign.pipeline import build, task
from mmalign.plan import graph
from mmalign.plan import read as compose
from tests.conftest import TINY


def finished(runs: Path, recipe: Path, name: str = "align", *words: str) -> Path:
    """A stage of a recipe that looks trained: its adapter, drawn from the seed, lies where the stage would put it."""
    node = next(node for node in graph.plan(compose.load(recipe, words), runs) if node.name == name)
    task.save(node)
    stage_task = task.load(node.folder)
    stage_task.reads.clear()
    adapter = build.vlm(stage_task).adapter
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    from safetensors.torch import save_file

    place = node.folder / "weights" / "adapter.safetensors"
    place.parent.mkdir()
    save_file(adapter.state_dict(), place)
    stage_task = task.load(node.folder)
    task.finish(stage_task, {"metrics": {}, "parts": {"adapter": str(place.relative_to(runs))}}, 0, 1)
    return node.folder


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    (folder / "tiny.yaml").write_text(TINY)
    finished(folder / "runs", folder / "tiny.yaml")
    picture = Image.new("RGB", (90, 60), (200, 30, 30))
    picture.paste((20, 40, 220), (0, 0, 45, 60))
    picture.save(folder / "a.png")
    return folder


@pytest.fixture
def model(kept: Path, here: Path) -> Path:
    """runs/train-... in the working folder, beside a.png."""
    logging.disable_progress_bar()  # a process of its own does it before anything is imported
    shutil.copytree(kept, here, dirs_exist_ok=True)
    return next((here / "runs").glob("train-*")).relative_to(here)
