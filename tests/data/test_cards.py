"""The shipped data cards: their readers take their arguments, and read data laid out as they say."""

import json
import zipfile
from dataclasses import replace

import pytest

from mmalign.data import Data
from mmalign.errors import CardError, CheckError
from mmalign.pipeline import task
from mmalign.plan import building, graph, signatures
from mmalign.plan import read as compose
from mmalign.plan.cards import Registry
from mmalign.plan.check import check
from tests.conftest import TINY
from tests.data.samples import images, is_picture, jpeg, row

BOXES = ("coco-boxes", "vg-boxes")
OWN = ("conversations", "table", "tars", "hub", "mixture")
SETS = (
    "llava-pretrain-558k", "cc-595k", "llava-mix-665k", "sharegpt4v-pt", "sharegpt4v-mix-665k", "mobilevlm-v2-mix-2m",
    "cambrian-align-2.5m", "cambrian-7m",
)  # fmt: skip
PT, MIX = "share-captioner_coco_lcs_sam_1246k_1107", "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k"


@pytest.mark.parametrize("name", [*OWN, *SETS, *BOXES])
def test_a_card_fits_its_class(name):
    card = Registry().card("data", name)
    takes = signatures.takes(card.target)
    assert takes is not None
    assert set(card.args) <= set(takes)
    missing = {arg for arg, needed in takes.items() if needed} - set(card.args)
    assert missing <= ({"path", "data", "name"} if name in OWN else set())
    assert issubclass(building.target(card), Data)
    assert card.facts["truth"] is (name in BOXES)


@pytest.mark.parametrize("name", [*SETS, *BOXES])
def test_published_data_says_where_it_is_from(name):
    card = Registry().card("data", name)
    assert card.paper.startswith("https://arxiv.org/abs/")
    assert card.license
    assert card.facts["images"] is True
    specs = [spec for arg in card.args.values() for spec in ([arg] if isinstance(arg, str) else arg)]
    assert all(spec.startswith("data:") for spec in specs)


def laid_out(root, name):
    """A row or two of a data set, where its publishers put it."""
    pictured = {
        "llava-pretrain-558k": ("LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", "LLaVA-Pretrain/images", "00000/0.jpg"),
        "cc-595k": ("LLaVA-CC3M-Pretrain-595K/chat.json", "LLaVA-CC3M-Pretrain-595K/images", "GCC_train_0.jpg"),
        "llava-mix-665k": ("llava_v1_5_mix665k.json", ".", "coco/train2017/0.jpg"),
        "sharegpt4v-pt": (f"sharegpt4v/{PT}.json", ".", "llava/llava_pretrain/images/00000/0.jpg"),
        "sharegpt4v-mix-665k": (f"sharegpt4v/{MIX}.json", ".", "web-landmark/images/0.jpg"),
        "mobilevlm-v2-mix-2m": ("MobileVLM_V2_FT_Mix2M.json", ".", "SBU/images/0.jpg"),
        "cambrian-align-2.5m": ("Cambrian-Alignment/jsons/alignment_2.5m.jsonl", "Cambrian-Alignment", "./sam/0.jpg"),
        "cambrian-7m": ("Cambrian-10M/jsons/Cambrian7M_withsystemprompt.jsonl", "Cambrian-10M", "coco/0.jpg"),
    }
    path, folder, image = pictured[name]
    for path_ in (root / path, root / folder / image):
        path_.parent.mkdir(parents=True, exist_ok=True)
    (root / folder / image).write_bytes(jpeg())
    rows = [row("a", image), row("t", None, "Hello.")]
    text = json.dumps(rows) if path.endswith(".json") else "".join(json.dumps(row_) + "\n" for row_ in rows)
    (root / path).write_text(text)
    if name == "cc-595k":
        with zipfile.ZipFile(root / f"{folder}.zip", "w") as archive:
            archive.writestr(image, jpeg())


@pytest.mark.parametrize("name", SETS)
def test_published_data_is_read_as_it_is_laid_out(tmp_path, monkeypatch, name):
    monkeypatch.setenv("MMALIGN_DATA", str(tmp_path))
    laid_out(tmp_path, name)
    data = building.build(Registry().card("data", name))
    assert [record.id for record in data] == ["a@0", "t@1"]
    assert is_picture(data.image(data[0].images[0]), 0, "JPEG")


def test_boxes_are_read_as_they_are_laid_out(tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_DATA", str(tmp_path))
    for folder in ("coco/annotations", "coco/val2017", "vg/VG_100K", "vg/VG_100K_2"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").write_text(json.dumps({
        "images": [{"id": 139, "file_name": "000000000139.jpg", "width": 24, "height": 16}],
        "annotations": [{"image_id": 139, "category_id": 1, "bbox": [1.5, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "person"}],
    }))  # fmt: skip
    thing = {"names": ["tree"], "x": 0, "y": 0, "w": 3, "h": 3}
    (tmp_path / "vg" / "objects.json").write_text(json.dumps([{"image_id": 1, "objects": [thing]}]))
    for place in ("coco/val2017/000000000139.jpg", "vg/VG_100K_2/1.jpg"):
        (tmp_path / place).write_bytes(jpeg())
    for name, said in zip(BOXES, ("person", "tree"), strict=True):
        data = building.build(Registry().card("data", name))
        assert [record.caption for record in data] == [said]
        assert is_picture(data.image(data[0].images[0]), 0, "JPEG")


def test_a_mixture_from_a_recipe(tmp_path):
    images(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps(row("a", "0.jpg")) + "\n")
    card = Registry().card("data", "mixture")
    card.args = {"data": [{"kind": "conversations", "path": str(tmp_path / "a.jsonl")}], "weights": [3]}
    assert len(building.build(card)) == 3


def filled(*members, **more):
    known = Registry()
    card = known.card("data", "mixture")
    return known.filled(replace(card, args={"data": list(members), **more}))


def test_a_mixture_of_cards(tmp_path):
    images(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps(row("a", "0.jpg")) + "\n")
    own = {"card": "conversations", "args": {"path": str(tmp_path / "a.jsonl")}}
    toys = {"card": "toy-chat", "args": {"size": 4}}
    inner = {"card": "mixture", "args": {"data": [own, toys], "weights": [3, 0.5]}}
    card = filled("toy-eval", inner, own["args"] | {"kind": "conversations"}, counts=[2, 5, 1])
    assert card.args["data"][0] == {"target": "mmalign.toyworld.data.Captions", "args": {"size": 400, "split": "eval"}}
    data = building.build(card)
    assert [record.id.split("@")[0] for record in data] == [
        "0/eval-0", "0/eval-200", "1/0/a", "1/0/a", "1/0/a", "1/1/train-0", "1/1/train-2", "2/a"
    ]  # fmt: skip
    assert all(data.image(record.images[0]).mode == "RGB" for record in data)


@pytest.mark.parametrize(
    ("member", "message", "fix"),
    [
        ("toy-chatt", "no data card named 'toy-chatt'", "did you mean 'toy-chat'?"),
        ({"card": "conversation"}, "no data card named 'conversation'", "did you mean 'conversations'?"),
        ({"card": "tars", "path": "b"}, "has `card` and `args`, and no 'path'", "{card: tars, args: {path: ...}}"),
    ],
)
def test_members_that_are_no_card(member, message, fix):
    with pytest.raises(CardError) as caught:
        filled(member)
    assert message in caught.value.what
    assert fix in caught.value.fix


MIXED = """\
  tune:
    kind: train
    data:
      card: mixture
      args: {data: [{card: toy-chat, args: {size: 8}}, {card: conversations, args: {path: ./PATH}}], weights: [1, 2]}
"""


def test_a_recipe_with_a_mixture_of_cards(here):
    """Its members' files are looked for before anything runs, and count in the fingerprint with their content."""
    (here / "a.jsonl").write_text(json.dumps(row("a", None, "Hello.")) + "\n")
    text = "model: {vision: toy-clip, adapter: linear, llm: toy-llama}\nstages:\n" + MIXED
    text += "    trains: [adapter]\n    objectives: {lm: 1.0}\n    optim: {lr: 1e-3}\n    batch: 8\n"
    (here / "r.yaml").write_text("name: r\n" + text.replace("PATH", "a.jsonl"))
    variants = compose.load("r.yaml")
    assert check(variants) == []
    (node,) = graph.plan(variants, here)
    task.save(node)
    assert len(building.build(task.load(node.folder).cards["data"])) == 10
    (here / "a.jsonl").write_text(json.dumps(row("b", None, "Hello.")) + "\n")
    assert graph.plan(variants, here)[0].folder != node.folder
    (here / "r.yaml").write_text("name: r\n" + text.replace("PATH", "b.jsonl"))
    with pytest.raises(CheckError, match=r"data 'mixture': path .*b.jsonl does not exist"):
        check(compose.load("r.yaml"))
    (here / "r.yaml").write_text("name: r\n" + text.replace("size: 8", "sise: 8"))
    with pytest.raises(CheckError, match="data 'mixture', member 0 takes no argument 'sise'") as caught:
        check(compose.load("r.yaml"))
    assert (caught.value.at, caught.value.fix) == ("r.yaml:6  stages.tune.data", "did you mean 'size'?")
    (here / "r.yaml").write_text("name: r\n" + text.replace("card: toy-chat", "target: mmalign.nothing.Data"))
    with pytest.raises(CardError, match="mmalign.nothing.Data: mmalign.nothing does not exist"):
        check(compose.load("r.yaml"))
    (here / "r.yaml").write_text("name: r\n" + text.replace("card: toy-chat", "card: toy-chatt"))
    with pytest.raises(CardError, match="no data card named 'toy-chatt'") as caught:
        check(compose.load("r.yaml"))
    assert caught.value.at == "r.yaml:6  stages.tune.data"


@pytest.mark.parametrize("path", ["./shards/{00..01}.tar", "./shards/*.tar", "./shards"])
def test_patterns_are_no_missing_files(here, path):
    (here / "shards").mkdir()
    words = ["stages.tune=~", "stages.score=~", "stages.report=~", "stages.align.reads=~", "stages.label=~"]
    words += ["stages.align.objectives.sea=~", f"stages.align.data={{card: tars, args: {{path: '{path}'}}}}"]
    (here / "tiny.yaml").write_text(TINY)
    assert check(compose.load("tiny.yaml", words)) == []
    (here / "shards").rmdir()
    with pytest.raises(CheckError, match="shards.* does not exist"):
        check(compose.load("tiny.yaml", words))
