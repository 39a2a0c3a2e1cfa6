"""`mmalign data get` against a server on loopback: what is asked for, where its card reads it, and nothing else."""

import hashlib
import io
import os
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from mmalign.io import hub, transfer
from mmalign.pipeline.getting import chosen
from mmalign.plan import gaps
from mmalign.plan.cards import Registry
from tests.conftest import TINY, Said, command
from tests.loopback import Loopback

Usage = namedtuple("Usage", "total used free")
WORDS = b"a\r\nstar\r\n"
PICTURES = {"0/1.jpg": b"one", "0/2.jpg": b"two"}


def zipped(names: dict[str, bytes]) -> bytes:
    with io.BytesIO() as out:
        with zipfile.ZipFile(out, "w") as pack:
            for name, content in names.items():
                pack.writestr(name, content)
        return out.getvalue()


LIST = zipped({"American/2of12.txt": WORDS})
DATA = {"rows.json": b"[]", "images.zip": zipped(PICTURES), "unwanted.bin": b"x" * 1000}
MODEL = {
    "config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"w" * 300_000, "pytorch_model.bin": b"p" * 500,
    "onnx/model.onnx": b"o", "README.md": b"r",
}  # fmt: skip

CARDS = {
    "data/mine": """\
summary: rows and pictures of the hub
target: mmalign.data.conversations.Conversations
args: {path: "data:mine/rows.json", images: "data:mine/images"}
source:
  hub: datasets/some/rows
  license: CC0
  files: [{name: rows.json, to: "data:mine/rows.json"}, {name: images.zip, unpack: "data:mine/images"}]
""",
    "data/again": """\
summary: the same pictures elsewhere
target: mmalign.data.conversations.Conversations
args: {path: "data:mine/rows.json", images: "data:again/images"}
source:
  hub: datasets/some/rows
  license: CC0
  files: [{name: rows.json, to: "data:mine/rows.json"}, {name: images.zip, unpack: "data:again/images"}]
""",
    "labels/list": """\
summary: a list at an address
target: mmalign.labels.given.Given
args: {words: "data:words/mine.txt"}
facts: {truth: true}
source:
  url: URL/lists
  license: CC0
  files: [{name: list.zip, sha256: SUM, size: SIZE, member: American/2of12.txt, to: "data:words/mine.txt"}]
""",
    "vision/eye": """\
summary: weights of the hub
target: mmalign.vision.hf.HFVision
args: {checkpoint: some/eye}
source: {hub: some/eye, size: 300 kB, license: MIT, gate: "ask at https://huggingface.co/some/eye, then: hf auth login"}
""",
    "data/hand": """\
summary: what only people can get
target: mmalign.data.conversations.Conversations
args: {path: "data:hand/rows.json"}
source: {page: https://example.org, license: ask, files: [{name: rows, to: "data:hand/rows.json"}]}
""",
}


@pytest.fixture
def server(here, monkeypatch):
    """The server, cards of which the sources are there, and a machine that has nothing."""
    monkeypatch.setattr(transfer, "PAUSE", 0.001)
    with Loopback(
        files={"/lists/list.zip": LIST}, repos={"datasets/some/rows": dict(DATA), "some/eye": dict(MODEL)}
    ) as server:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.setenv(name, "0")
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(here / "hf"))
        monkeypatch.setenv("MMALIGN_REGISTRY", str(here / "shelf"))
        for name, text in CARDS.items():
            place = here / "shelf" / f"{name}.yaml"
            place.parent.mkdir(parents=True, exist_ok=True)
            sums = {"URL": server.url, "SUM": hashlib.sha256(LIST).hexdigest(), "SIZE": str(len(LIST))}
            for key, value in sums.items():
                text = text.replace(key, value)
            place.write_text(text)
        yield server


def get(*words: str) -> Said:
    """As a process of its own: huggingface_hub reads the environment once, when it is imported."""
    return command("data", "get", *words, cwd=Path.cwd(), env={**os.environ})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_everything_that_some_cards_lack_and_nothing_else(server, here):
    said = get("mine", "again", "list", "eye")
    assert said.code == 0, said.err
    pictures = {f"{name}/images/{file}": content for name in ("mine", "again") for file, content in PICTURES.items()}
    assert {**tree(here / "data"), **tree_of(here / "data/again/images", "again/images")} == {
        "mine/rows.json": b"[]", "words/mine.txt": WORDS, **pictures,
    }  # fmt: skip
    assert (here / "data/again/images").is_symlink()  # fetched once
    place = hub.snapshot("some/eye")
    assert place
    assert hub.whole(place)
    assert {one.name for one in place.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    asked = {path for method, path, _ in server.asked if method == "GET" and "/resolve/" in path}
    assert not [path for path in asked if path.endswith((".md", ".bin", ".onnx"))]
    assert "data mine: images.zip: fetched" in said.err
    assert "4 things fetched" in said.out or "5 things fetched" in said.out
    server.asked.clear()
    said = get("mine", "again", "list", "vision/eye")
    assert (said.code, said.out) == (0, "all of it is here\n")
    assert server.asked == []


def tree_of(folder: Path, under: str) -> dict[str, bytes]:
    return {f"{under}/{name}": content for name, content in tree(folder.resolve()).items()}


def test_a_dry_run_asks_nobody(server, here):
    said = get("mine", "list", "eye", "--dry-run")
    assert said.code == 0
    assert "4 things are not here yet" in said.out
    assert f"{server.url}/lists/list.zip" in said.out
    assert server.asked == []
    assert not (here / "data").exists()


def test_offline_nothing_is_fetched(server, here, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = get("list", "eye")
    assert said.code == 2
    assert "error: 2 files are missing, and the network must not be used" in said.err
    assert "unset HF_HUB_OFFLINE" in said.err
    assert server.asked == []
    assert "2 things" in get("list", "eye", "--dry-run").out


def test_what_broke_off_goes_on_with_the_same_command(server, here):
    big = b"b" * (24 << 20)  # huggingface_hub writes 10 MB at a time
    path = "/datasets/some/rows/resolve/0123456789abcdef0123456789abcdef01234567/big.bin"
    server.repos["datasets/some/rows"]["big.bin"] = big
    card = here / "shelf/data/mine.yaml"
    card.write_text(card.read_text().replace("{name: rows.json, to", "{name: big.bin, to"))
    server.cuts[path] = [11 << 20] * 9
    said = get("mine")
    if said.code:  # huggingface_hub itself goes on a few times
        server.cuts.clear()
        said = get("mine")
    assert said.code == 0, said.err
    assert (here / "data/mine/rows.json").read_bytes() == big
    assert any(one and one != "bytes=0-" for one in server.got(path))


def test_a_wrong_checksum_is_told_and_the_rest_comes(server, here):
    server.files["/lists/list.zip"] = LIST[:-1] + b"x"
    server.repos["some/eye"]["model.safetensors"] = b"v" * 300_000
    server.lies = {"model.safetensors": "0" * 64, "rows.json": "1" * 64}
    said = get("list", "eye", "mine")
    assert said.code == 2
    assert said.err.count("its SHA-256 is") == 3
    assert not (here / "data/words").exists()
    assert not (here / "data/mine/rows.json").exists()
    assert tree(here / "data/mine/images") == PICTURES
    place = hub.snapshot("some/eye")
    assert place is None or not hub.whole(place)
    server.lies.clear()
    server.files["/lists/list.zip"] = LIST
    assert get("list", "eye", "mine").code == 0


def test_a_gate_says_how_to_pass_it(server, here):
    server.gated.add("some/eye")
    said = get("eye", "list")
    assert said.code == 2
    assert "some/eye is behind a gate" in said.err
    assert "try  ask at https://huggingface.co/some/eye, then: hf auth login" in said.err
    assert (here / "data/words/mine.txt").read_bytes() == WORDS


def test_what_is_not_there(server, here):
    del server.repos["some/eye"], server.repos["datasets/some/rows"]["images.zip"]
    server.refused["/lists/list.zip"] = 404
    said = get("eye", "mine", "list")
    assert said.code == 2
    assert "hub datasets/some/rows has no file images.zip" in said.err
    assert "the server says 404" in said.err
    assert "cannot fetch hub some/eye" in said.err


def test_what_only_people_can_get(server):
    said = get("hand")
    assert said.code == 2
    assert "not fetched, since no program may or can" in said.err
    assert "https://example.org" in said.err
    assert "0 things fetched" in said.out


def test_an_archive_that_would_write_elsewhere(server, here):
    server.repos["datasets/some/rows"]["images.zip"] = zipped({"../../evil": b"x"})
    said = get("mine")
    assert said.code == 2
    assert "outside of its folder: nothing of it is unpacked" in said.err
    assert not list(here.glob("**/evil"))
    assert not list((here / "data").glob("**/images.zip"))


def test_a_full_disk_stops_everything(server, here, mmalign, monkeypatch):
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: Usage(1, 1, transfer.SPARE))
    said = mmalign("data", "get", "list")
    assert said.code == 2
    assert "are to come, and 0 are free" in said.err


def test_json(server, here, mmalign):
    import json

    said = mmalign("data", "get", "list", "hand", "--json")
    told = json.loads(said.out)
    assert [gap["part"] for gap in told["got"]] == ["labels list"]
    assert [gap["part"] for gap in told["left"]] == ["data hand"]
    assert told["failed"] == []


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (["lits"], "no recipe or card named 'lits'", "did you mean 'list'?"),
        (["seed=3"], "nothing to get", "RECIPE | CARD"),
        (["both"], "both is a card of labels and of data", "labels/both"),
        (["data/lits"], "no data card named 'lits'", "mmalign list data"),
    ],
)
def test_mistakes(server, here, mmalign, words, what, fix):
    for family in ("data", "labels"):
        (here / "shelf" / family / "both.yaml").write_text(CARDS["data/hand"])
    said = mmalign("data", "get", *words)
    assert said.code == 2
    assert what in said.err
    assert fix in said.err


def test_a_recipe_of_ones_own(server, here):
    (here / "r.yaml").write_text(TINY.replace("source: toy-words", "source: {card: toy-words, args: {words: WORDS}}"))
    said = get("r.yaml", "stages.label.source.args.words=data:words/mine.txt")
    assert said.code == 0, said.err
    assert (here / "data/words/mine.txt").read_bytes() == WORDS


def test_a_benchmark_of_which_some_files_came_is_gone_on_with(server, here):
    card, registry = Registry().card("benchmarks", "pope"), Registry()
    (here / "data/eval/pope").mkdir(parents=True)
    assert gaps.of_card(card, registry) == []  # another layout may be there
    (here / "data/eval/pope/coco_pope_random.json").touch()
    assert len(gaps.of_card(card, registry)) == 3


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5"], ["model.safetensors"]),
        (["config.json", "pytorch_model.bin", "training_args.bin"], ["pytorch_model.bin"]),
        (["a-1.safetensors", "a-2.safetensors", "a.safetensors.index.json", "consolidated.safetensors",
          "x/b.safetensors"],
         ["a.safetensors.index.json", "a-1.safetensors", "a-2.safetensors"]),
        (["open_clip_config.json", "open_clip_model.safetensors", "model.safetensors"],
         ["open_clip_model.safetensors"]),
        (["README.md"], []),
    ],
)  # fmt: skip
def test_of_a_models_files_those_that_are_read(names, weights):
    settings = [name for name in names if name.endswith("config.json")]
    assert chosen(names) == ([*settings, *weights] if weights else [])
