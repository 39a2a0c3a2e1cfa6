"""The shipped data cards: their readers take their arguments, and read data laid out as they say."""

import json
import zipfile

import pytest

from mmalign import cards, source
from mmalign.cards import Registry
from mmalign.data import Data
from tests.data.made import images, jpeg, row, same

OWN = ("conversations", "table", "tars", "hub", "mixture")
SETS = ("llava-pretrain-558k", "cc-595k", "llava-mix-665k", "cambrian-align-2.5m", "cambrian-7m")


@pytest.mark.parametrize("name", [*OWN, *SETS])
def test_a_card_fits_its_class(name):
    card = Registry().card("data", name)
    takes = source.takes(card.target)
    assert takes is not None
    assert set(card.args) <= set(takes)
    missing = {arg for arg, needed in takes.items() if needed} - set(card.args)
    assert missing <= ({"path", "data", "name"} if name in OWN else set())
    assert issubclass(cards.target(card), Data)
    assert card.facts["truth"] is False


@pytest.mark.parametrize("name", SETS)
def test_published_data_says_where_it_is_from(name):
    card = Registry().card("data", name)
    assert card.paper.startswith("https://arxiv.org/abs/")
    assert card.license
    assert card.facts["images"] is True
    assert all(spec.startswith("data:") for spec in card.args.values())


def laid_out(root, name):
    """A row or two of a data set, where its publishers put it."""
    pictured = {
        "llava-pretrain-558k": ("LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", "LLaVA-Pretrain/images", "00000/0.jpg"),
        "cc-595k": ("LLaVA-CC3M-Pretrain-595K/chat.json", "LLaVA-CC3M-Pretrain-595K/images", "GCC_train_0.jpg"),
        "llava-mix-665k": ("llava_v1_5_mix665k.json", ".", "coco/train2017/0.jpg"),
        "cambrian-align-2.5m": ("Cambrian-Alignment/jsons/alignment_2.5m.jsonl", "Cambrian-Alignment", "./sam/0.jpg"),
        "cambrian-7m": ("Cambrian-10M/jsons/Cambrian7M_withsystemprompt.jsonl", "Cambrian-10M", "coco/0.jpg"),
    }
    path, folder, image = pictured[name]
    for place in (root / path, root / folder / image):
        place.parent.mkdir(parents=True, exist_ok=True)
    (root / folder / image).write_bytes(jpeg())
    rows = [row("a", image), row("t", None, "Hello.")]
    text = json.dumps(rows) if path.endswith(".json") else "".join(json.dumps(one) + "\n" for one in rows)
    (root / path).write_text(text)
    if name == "cc-595k":
        with zipfile.ZipFile(root / f"{folder}.zip", "w") as archive:
            archive.writestr(image, jpeg())


@pytest.mark.parametrize("name", SETS)
def test_published_data_is_read_as_it_is_laid_out(tmp_path, monkeypatch, name):
    monkeypatch.setenv("MMALIGN_DATA", str(tmp_path))
    laid_out(tmp_path, name)
    data = cards.build(Registry().card("data", name))
    assert [record.id for record in data] == ["a@0", "t@1"]
    assert same(data.image(data[0].images[0]), 0, "JPEG")


def test_a_mixture_from_a_recipe(tmp_path):
    images(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps(row("a", "0.jpg")) + "\n")
    card = Registry().card("data", "mixture")
    card.args = {"data": [{"kind": "conversations", "path": str(tmp_path / "a.jsonl")}], "weights": [3]}
    assert len(cards.build(card)) == 3
