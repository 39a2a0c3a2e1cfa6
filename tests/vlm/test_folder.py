"""An exported folder that is damaged says what is wrong, where, and what to try."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from mmalign.adapters.mlp import MLP
from mmalign.errors import CardError, RunError
from mmalign.io import sums
from mmalign.llms import chat
from mmalign.pipeline.load import load
from mmalign.plan.cards import Card
from mmalign.stages import export
from mmalign.stages.checks import Checks
from mmalign.testing import small
from mmalign.training.events import Events
from mmalign.vlm import folder as folders
from tests.io.test_sums import flip
from tests.plan.test_mistakes import assert_mistake


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("whole")
    mlp = {"adapter": Card("", "mmalign.adapters.mlp.MLP", {"depth": 2})}
    cards = {**small.encoder("clip", place), "llm": small.llm_card("gemma", place), **mlp}
    folders.save(place / "out", folders.build(cards), cards)
    return place / "out"


@pytest.fixture
def no_bars():
    """As in a process whose stderr is no terminal."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def folder(whole, here):
    """A copy without hashes, as 0.1.0 exported it: what is damaged is known by what reads it."""
    shutil.copytree(whole, here / "out")
    (here / "out" / sums.NAME).unlink()
    return here / "out"


def half(place):
    place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])


def without(place, name):
    """The safetensors file without the first tensor whose name ends so."""
    weights = load_file(place)
    del weights[next(key for key in weights if key.endswith(name))]
    save_file(weights, place, {"format": "pt"})


def narrow(place, name):
    weights = load_file(place)
    key = next(key for key in weights if key.endswith(name))
    save_file(weights | {key: weights[key][:-1].clone()}, place, {"format": "pt"})


def changed(place, **changes):
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "error", "what"),
    [
        (lambda f: half(f / "adapter.safetensors"), RunError, "cannot read the adapter .*adapter.safetensors: "),
        (lambda f: (f / "adapter.safetensors").unlink(), RunError, "cannot read the adapter .*No such file"),
        (lambda f: (f / "adapter.safetensors").write_bytes(b""), RunError, "cannot read the adapter"),
        (lambda f: without(f / "adapter.safetensors", "0.bias"), RunError, r"adapter.*Missing key\(s\).*layers.0.bias"),
        (lambda f: narrow(f / "adapter.safetensors", "0.bias"), RunError, "adapter.*size mismatch for layers.0.bias"),
        (lambda f: save_file({}, f / "adapter.safetensors"), RunError, r"cannot read the adapter .*Missing key\(s\)"),
        (lambda f: half(f / "mmalign.json"), RunError, "not valid JSON"),
        (lambda f: (f / "mmalign.json").write_text("[1]"), RunError, "exported in format None"),
        (lambda f: changed(f / "mmalign.json", format=7), RunError, "exported in format 7; this mmalign reads 1"),
        (lambda f: changed(f / "mmalign.json", cards={}), RunError, "mmalign.json lacks the card of its 'vision'"),
        (lambda f: changed(f / "mmalign.json", cards={"vision": {"x": 1}}), RunError, "cards.vision lacks 'summary'"),
        (lambda f: changed(f / "mmalign.json", cards=[]), RunError, "cards must be a mapping of a mapping"),
        (lambda f: half(f / "llm" / "model.safetensors"), CardError, "cannot load '.*llm': "),
        (lambda f: half(f / "llm" / "config.json"), CardError, "cannot load '.*llm': "),
        (lambda f: half(f / "llm" / "tokenizer.json"), CardError, "cannot load '.*llm': "),
        (lambda f: half(f / "vision" / "model.safetensors"), CardError, "cannot load '.*vision': "),
        (lambda f: (f / "vision" / "preprocessor_config.json").unlink(), CardError, "cannot load '.*vision': "),
        (lambda f: without(f / "llm" / "model.safetensors", "down_proj.weight"), CardError,
         "it lacks 1 of its weights, such as model.layers.0.mlp.down_proj.weight"),
        (lambda f: narrow(f / "llm" / "model.safetensors", "down_proj.weight"), CardError,
         "it has, in another shape, 1 of its weights, such as model.layers.0.mlp.down_proj.weight"),
        (lambda f: without(f / "vision" / "model.safetensors", "fc1.bias"), CardError,
         "it lacks 1 of its weights, such as .*fc1.bias"),
    ],
)  # fmt: skip
def test_a_damaged_folder(folder, damage, error, what):
    damage(folder)
    with pytest.raises(error, match=what) as caught:
        folders.read(folder)
    assert str(folder) in caught.value.at
    assert caught.value.fix


@pytest.mark.parametrize(
    ("lost", "what", "fix"),
    [
        ("adapter.safetensors", "cannot read the adapter", "export it again"),
        ("llm/model.safetensors", "cannot load", "check `checkpoint:`"),
    ],
)
@pytest.mark.parametrize("verb", ["inspect", "chat"])
def test_verbs_say_so_too(folder, mmalign, no_bars, verb, lost, what, fix):
    half(folder / lost)
    Image.new("RGB", (30, 30)).save("a.png")
    assert_mistake(mmalign(verb, "out", *["a.png"] * (verb == "inspect")), what, "out", fix)


def test_a_whole_folder_is_what_was_saved(whole):
    model = folders.read(whole)
    assert torch.equal(model.adapter.layers[0].weight, load_file(whole / "adapter.safetensors")["layers.0.weight"])


@pytest.mark.parametrize(
    "name", ["adapter.safetensors", "mmalign.json", "llm/model.safetensors", "llm/tokenizer.json", "vision/config.json"]
)
@pytest.mark.parametrize("damage", [half, lambda place: flip(place, -2, 3)])
def test_damage_is_known_by_the_hashes_of_the_folder(whole, here, mmalign, no_bars, name, damage):
    shutil.copytree(whole, here / "out")
    damage(here / "out" / name)
    sums.forget()
    what = f"{(here / name).name} is damaged: it is not as it was written (SHA-256)"
    assert_mistake(mmalign("chat", "out"), what, f"out/{name}", "export it again; where you changed the folder")


def test_where_transformers_loaded_parts_from_is_forgotten(tmp_path):
    (tmp_path / "vision").mkdir()
    config = {
        "_name_or_path": "/home/me",
        "text_config": {"_name_or_path": "/home/me", "size": 3},
        "list": [{"a": "é"}],
    }
    (tmp_path / "vision" / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"name_or_path": "/home/me", "bos": "<s>", "vocab_file": "/home/me/llm/vocab.txt"})
    )
    card = Card("", "mmalign.adapters.mlp.MLP", {"depth": 2})
    folders.write(tmp_path, MLP(4, 4, (1, 1)), {"adapter": card})
    assert json.loads((tmp_path / "vision" / "config.json").read_text()) == {
        "text_config": {"size": 3},
        "list": [{"a": "é"}],
    }
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"bos": "<s>"}


def texts(folder):
    """Every file of a folder that is no weights, as one text."""
    places = [place for place in folder.rglob("*") if place.is_file() and place.suffix != ".safetensors"]
    return "\n".join(place.read_text(encoding="utf-8") for place in places)


@pytest.mark.parametrize("depth", [2, 3], ids=["for transformers", "for mmalign"])
def test_an_export_says_nothing_of_the_machine_it_was_made_on(tmp_path, depth):
    """Nor needs it: everything it was made from may be gone."""
    machine = tmp_path / "user-of-this-machine"
    llm = small.llm_card("gemma", machine)
    template = machine / "mine.jinja"
    template.write_text((Path(chat.__file__).parent / "templates" / "gemma.jinja").read_text(encoding="utf-8"))
    llm = replace(llm, path=str(machine / "card.yaml"), origin=f"shelf {machine}")
    llm = replace(llm, args={**llm.args, "template": str(template)})
    adapter = Card("", "mmalign.adapters.mlp.MLP", {"depth": depth}, path=str(machine / "x.yaml"))
    cards = {**small.encoder("clip", machine), "llm": llm, "adapter": adapter}
    exported = export.export(
        folders.build(cards), SimpleNamespace(cards=cards), machine / "out", Checks(Events(machine), 1)
    )
    assert (exported.difference is None) == (depth == 3)
    assert str(tmp_path) not in texts(machine / "out")
    assert "user-of-this-machine" not in texts(machine / "out")
    for place in (machine / "out").rglob("*.safetensors"):
        assert b"user-of-this-machine" not in place.read_bytes()
    shutil.move(machine / "out", tmp_path / "out")
    shutil.rmtree(machine)
    model = load(str(tmp_path / "out"))
    assert isinstance(model.ask("What is this?", Image.new("RGB", (30, 30)), max_new_tokens=3), str)
