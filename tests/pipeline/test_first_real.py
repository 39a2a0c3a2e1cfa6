"""On a machine that has nothing, with a server on loopback in place of the hub: from nothing to a report."""

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from mmalign.testing import small
from tests.conftest import command
from tests.loopback import Loopback

ROWS = 12


def rows() -> tuple[bytes, bytes]:
    """chat.json and images.zip as LLaVA's 595k pairs have them."""
    chat, pack = [], io.BytesIO()
    with zipfile.ZipFile(pack, "w") as images:
        for number in range(ROWS):
            name, picture = f"GCC_train_{number:09}.jpg", io.BytesIO()
            Image.new("RGB", (40, 30), (20 * number, 99, 200)).save(picture, "JPEG")
            images.writestr(name, picture.getvalue())
            turns = [
                {"from": "human", "value": "Give a brief description of the image.\n<image>"},
                {"from": "gpt", "value": f"a red star left of {number} large blue rings"},
            ]
            chat.append({"id": f"GCC_train_{number:09}", "image": name, "conversations": turns})
    return json.dumps(chat).encode(), pack.getvalue()


def checkpoint(folder: Path) -> dict[str, bytes]:
    return {place.name: place.read_bytes() for place in folder.iterdir()}


@pytest.fixture
def server(here):
    """The hub of a small world: the ids of first_real, with models of a few thousand weights behind them."""
    chat, images = rows()
    repos = {
        "datasets/liuhaotian/LLaVA-CC3M-Pretrain-595K": {"chat.json": chat, "images.zip": images, "README.md": b"x"},
        "openai/clip-vit-base-patch16": checkpoint(small.clip(here / "made/clip", size=48, patch=12)),
        "HuggingFaceTB/SmolLM2-135M-Instruct": checkpoint(small.llm("llama", here / "made/llm")),
    }
    shutil.rmtree(here / "made")
    with Loopback(repos=repos) as server:
        yield server


def test_from_nothing_to_a_report(server, here):
    own = ("HF_", "MMALIGN_", "TRANSFORMERS_")
    quiet = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    env = {**quiet, "HOME": str(here / "home"), "HF_ENDPOINT": server.url, "XDG_CACHE_HOME": str(here / "home/.cache")}
    (here / "home").mkdir()

    first = command("check", "first_real_tiny", cwd=here, env=env)
    assert first.code == 2
    assert "4 things are not here yet" in first.err

    got = command("data", "get", "first_real_tiny", cwd=here, env=env)
    assert got.code == 0, got.err
    assert got.out == "4 things fetched\n"
    asked = {path.rpartition("/")[2] for method, path, _ in server.asked if method == "GET" and "/resolve/" in path}
    assert {"chat.json", "images.zip", "config.json", "tokenizer.json"} <= asked
    assert not {"README.md", "model.safetensors"} & asked  # weights are drawn at random

    assert command("check", "first_real_tiny", cwd=here, env=env).code == 0
    server.asked.clear()
    ran = command("run", "first_real_tiny", cwd=here, env={**env, "HF_HUB_OFFLINE": "1"}, timeout=1800)
    assert ran.code == 0, ran.err
    assert "done: 4 stages" in ran.out
    assert (next(here.glob("runs/report-*")) / "report.html").exists()
    assert server.asked == []
