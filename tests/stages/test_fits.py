"""`fit` of a stage through the real commands: recorded, and followed by whoever reads its weights."""

import base64
import json
import re
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

import mmalign as front
from mmalign.stages import export
from tests.conftest import TINY, command

WORDS = ("model.vision.args.norm=false", "stages.align.fit=crop", "stages.tune.fit=pad", "stages.label.fit=squash")
WIDE = (144, 72)  # pixels: two of the toy world's side by side


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The tiny recipe, run with a fit of its own in every stage, an export behind it; and a wide picture."""
    folder = tmp_path_factory.mktemp("fits")
    (folder / "tiny.yaml").write_text(TINY + "  out: {kind: export, reads: {weights: tune}}\n")
    done = command("run", "tiny.yaml", *WORDS, cwd=folder)
    assert done.code == 0, done.err
    left, right = (Image.new("RGB", (72, 72), color) for color in ("red", "blue"))
    wide = Image.new("RGB", WIDE)
    wide.paste(left, (0, 0))
    wide.paste(right, (72, 0))
    wide.save(folder / "wide.png")
    return folder


@pytest.fixture
def stage(place, monkeypatch):
    """stage(name): the folder of a finished stage."""
    monkeypatch.chdir(place)
    named = {json.loads(one.read_text())["name"]: one.parent for one in place.glob("runs/*/stage.json")}
    return named.__getitem__


def said(folder: Path) -> dict[str, object]:
    return json.loads((folder / "stage.json").read_text())


def test_every_stage_says_which_fit_it_used(stage):
    fits = {name: said(stage(name)).get("fit") for name in ("align", "tune", "score", "out")}
    assert fits == {"align": "crop", "tune": "pad", "score": "pad", "out": "pad"}
    assert said(stage("label"))["labels"]["fit"] == "squash"
    assert said(stage("align"))["what"]["cards"]["vision"]["args"]["fit"] == "crop"


def test_a_fit_left_out_is_the_cards_and_said_too(stage, place, mmalign):
    done = mmalign("run", "tiny.yaml", *WORDS[:1], "stages.tune=~", "stages.score=~", "stages.report=~", "stages.out=~")
    assert done.code == 0, done.err
    others = [one for one in place.glob("runs/train-*") if one != stage("align") and one != stage("tune")]
    assert [(said(one)["name"], said(one)["fit"]) for one in others] == [("align", "crop")]  # toy-clip's own way
    assert "fit" not in said(others[0])["what"]["cards"]["vision"]["args"]
    left_out, named = (said(one)["metrics"] for one in (others[0], stage("align")))
    unlike = {"steps_per_second": 0, "peak_memory_gib": 0}
    assert left_out | unlike == named | unlike  # all pictures are square


def test_a_loaded_model_sees_as_its_last_stage_did(stage):
    fits = {name: front.load(stage(name)).vision.fit for name in ("align", "tune")}
    assert fits == {"align": "crop", "tune": "pad"}
    assert front.load(stage("out")).vision.fit == "pad"


def test_an_evaluation_asked_for_later_follows(stage, mmalign):
    done = mmalign("eval", stage("align"), "--bench", "toy-perplexity", "--json")
    assert done.code == 0, done.err
    later = max(Path("runs").glob("evaluate-*/stage.json"), key=lambda one: one.stat().st_mtime)
    assert json.loads(later.read_text())["fit"] == "crop"


def test_inspect_tells_padding(stage, mmalign):
    done = mmalign("inspect", stage("tune"), "wide.png", "--keep", "1", "--json", "--out", "wide.html")
    assert done.code == 0, done.err
    (rows,) = json.loads(done.out)
    assert rows["seen"] == [False] * 6 + [True] * 24 + [False] * 6  # half of rows 1 and 4 is picture
    data = json.loads(re.search(r'class="mmx-data">(.*?)</script>', Path("wide.html").read_text(), re.S)[1])
    seen = zlib.decompress(base64.b64decode(data["pictures"][0]["panes"][0]["seen"]))
    assert seen == bytes(rows["seen"])
    (cropped,) = json.loads(mmalign("inspect", stage("align"), "wide.png", "--keep", "1", "--json").out)
    assert all(cropped["seen"])


def test_chat_is_shown_what_the_stage_saw(stage, mmalign, monkeypatch):
    from mmalign.vlm.model import VLM

    shown = []
    monkeypatch.setattr(VLM, "generate", lambda self, turns, images, most: shown.append(self.vision.fit) or ["yes"])
    for name in ("align", "tune"):
        lines = iter(["what is this ?"])
        monkeypatch.setattr(
            "builtins.input", lambda _, lines=lines: next(lines, None) or (_ for _ in ()).throw(EOFError)
        )
        done = mmalign("chat", stage(name), "wide.png")
        assert done.code == 0, done.err
    assert shown == ["crop", "pad"]


def test_what_is_exported_pads(stage):
    from transformers import AutoProcessor

    folder, model = stage("out") / "exported", front.load(stage("tune"))
    assert json.loads((folder / "processor_config.json").read_text())["image_processor"]["do_pad"] is True
    image = Image.open("wide.png")
    theirs = AutoProcessor.from_pretrained(folder).image_processor(images=image, return_tensors="pt")["pixel_values"][0]
    assert (torch.as_tensor(theirs) - model.vision.pixels(image)).abs().max() <= 1e-6
    assert export.why_not(model) == ""
