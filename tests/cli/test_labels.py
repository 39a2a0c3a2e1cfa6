"""`labels show` and `labels stats` on what a label stage left; `labels sign` on a source and data."""

import json
import re
import shlex
from pathlib import Path

import pytest
from mmalign.cli import signs
from PIL import Image

from mmalign.pipeline import task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.stages import label
from mmalign.vision import Vision
from tests.conftest import TINY
from tests.data.samples import images, jsonl, row
from tests.plan.test_mistakes import assert_mistake, shelf
from tests.plan.test_signs import MINE

DATA = "summary: mine\ntarget: mmalign.data.conversations.Conversations\nargs: {path: ../../x.jsonl, images: ../..}\n"


@pytest.fixture
def labels(here, monkeypatch) -> Path:
    """The folder of a label stage; its data begins with a row of text and one whose image is missing."""
    monkeypatch.setenv("MMALIGN_CACHE", str(here / "cache"))
    images(here, 2)
    jsonl(here / "x.jsonl", [row("text", asked="hello"), row("gone", "none.jpg"), row("a", "0.jpg"), row("b", "1.jpg")])
    shelf(here, "data", "mine", DATA)
    (here / "tiny.yaml").write_text(TINY + "registry: [./shelf]\n")
    words = ["stages.label.data={card: mine}", "stages.label.max_bad=0.5"]
    words += [f"stages.{name}=~" for name in ("align", "tune", "score", "report")]
    (node,) = graph.plan(compose.load("tiny.yaml", words))
    task.save(node)
    stage_task = task.load(node.folder)
    task.finish(stage_task, label.run(stage_task), 0, 1)
    return node.folder


def test_show_and_stats(labels, mmalign):
    result = mmalign("labels", "show", labels)
    assert result.code == 0, result.err
    assert result.out.split() == ["page:", "labels.html"]
    assert [one["name"] for one in carried("labels.html")["pictures"]] == ["a@2"]  # the first that has labels
    assert mmalign("labels", "show", labels, "b@3", "a@2").code == 0
    data = carried("labels.html")
    assert [one["name"] for one in data["pictures"]] == ["a@2", "b@3"]
    pane = data["pictures"][0]["panes"][0]
    assert (pane["grid"], pane["layers"], pane["labels"]["k"], data["measure"]) == ([6, 6], [], 3, "score")
    assert mmalign("labels", "show", labels, "--out", "labels.png").out.split() == ["a@2", "labels.png"]
    result = mmalign("labels", "show", labels, "b@3", "a@2", "--out", "of.png")
    assert sorted(result.out.split()) == ["a@2", "b@3", "of-a@2.png", "of-b@3.png"]
    assert all(Image.open(name).format == "PNG" for name in ("labels.png", "of-a@2.png", "of-b@3.png"))
    result = mmalign("labels", "stats", labels, "--out", "figure", "--json")
    totals = json.loads(result.out)
    assert (totals["images"], totals["bad"], totals["patches"]) == (2, 1, 2 * 36)
    assert json.loads(Path("figure.json").read_text()) == totals
    page = Path("figure.html").read_text()
    assert all(f'<td>{word}</td><td class="n">{patches:,}</td>' in page for word, patches, _ in totals["top"])
    assert sum(totals["best"]) == sum(totals["by_kept"][1:]) == round(totals["labelled"] * totals["patches"]) > 0
    assert "images      2, and 1 that could not be read" in mmalign("labels", "stats", labels / "labels").out
    assert "page        figure.html" in mmalign("labels", "stats", labels, "--out", "figure").out


def carried(page: str) -> dict:
    """What a page's explorer carries."""
    return json.loads(Path(page).read_text("utf-8").split('class="mmx-data">')[1].split("</script>")[0])


def test_mistakes(labels, mmalign):
    assert_mistake(mmalign("labels", "show", labels, "a@2", "c"), "no labels for c", str(labels), "ids of the data's")
    result = mmalign("labels", "show", labels / "labels")
    assert_mistake(result, "does not say which data it labels", "labels", "runs/label-")
    assert mmalign("labels", "stats", "nowhere").code == 2
    lines = Path("x.jsonl").read_text().splitlines(keepends=True)
    Path("x.jsonl").write_text("".join(lines[:2]))
    assert_mistake(
        mmalign("labels", "show", labels, "a@2"), "no image a@2 in the data", "label-", "when it was labelled"
    )
    assert_mistake(mmalign("labels", "show", labels), "no image with labels in the data", "label-", "as it was")
    assert not Path("labels.html").exists()


# labels sign

SIGN = ["labels", "sign", "toy-words", "toy-captions"]


def test_sign_decides_alone_and_draws_both(here, mmalign):
    result = mmalign(*SIGN, "data.size=48")
    assert result.code == 0, result.err
    assert re.search(r"^\+1 +\d\d\.\d% +\d\d\.\d% +0\.0001 +0\.0001 *$", result.out, re.M), result.out
    assert re.search(r"^-1 +\d+\.\d% +\d+\.\d% +1 +1 *$", result.out, re.M), result.out
    assert "\nsign: +1\npicture: signs.png\n" in result.out
    one = overlaid(here / "signs.png")
    assert one.height > 2.8 * one.width / 2  # three rows of two squares
    assert list(here.iterdir()) == [here / "signs.png"]


def overlaid(place: Path) -> Image.Image:
    picture = Image.open(place)
    left, right = (picture.crop((x, 40, x + picture.width // 2, picture.height)) for x in (0, picture.width // 2))
    assert left.tobytes() != right.tobytes()  # the words differ
    return picture


def test_sign_in_json_of_so_many_images_with_settings(here, mmalign):
    words = ["labels.center=0", "fit=pad", "data.size=64", "--images", "40", "--out", "both.png", "--json"]
    told = json.loads(mmalign(*SIGN, *words).out)
    assert (told["labels"], told["data"], told["images"], told["sign"]) == ("toy-words", "toy-captions", 40, 1)
    assert told["signs"]["+1"]["p"] < 0.01 < told["signs"]["-1"]["p"]
    assert told["signs"]["+1"]["own"] > told["signs"]["+1"]["others"]
    assert told["picture"] == "both.png"
    assert Path("both.png").exists()


def test_sign_that_is_not_decided(here, mmalign):
    """Six images are too few. It is told with all numbers, and drawn."""
    result = mmalign(*SIGN, "--images", "6", "--json")
    assert result.code == 2
    assert json.loads(result.out)["sign"] is None
    lines = result.err[result.err.index("error: ") :].splitlines()
    assert re.match(r"error: sign auto is not decided: with \+1 .* \(p 0\.\d+\); with -1 .* content words$", lines[0])
    assert lines[1:] == [
        "  at   args.sign",
        "  try  look at signs.png, then sign: -1 (the paper's, for CLIP) or sign: 1 where a recipe names toy-words",
    ]
    overlaid(here / "signs.png")


def test_sign_by_the_cards_of_a_shelf_as_check_says(here, mmalign, monkeypatch):
    shelf(here, "labels", "mine", MINE)
    Path("tiny.yaml").write_text(TINY.replace("source: toy-words", "source: mine") + "registry: [./shelf]\n")
    note = mmalign("check", "tiny.yaml").err
    setting, _, *words = shlex.split(re.search(r"alone: (.*?);", note)[1])
    monkeypatch.setenv(*setting.split("="))
    result = mmalign(*words)
    assert result.code == 0, result.err
    assert "mine on toy-captions: 48 images" in result.out


def test_sign_of_files_that_are_no_card(here, mmalign):
    """Captions that all are alike, none, and pictures that cannot be read."""
    images(here, 2)
    jsonl(here / "x.jsonl", [row(str(n), f"{n}.jpg", answer="A dog.") for n in range(2)])
    result = mmalign("labels", "sign", "toy-words", here / "x.jsonl", f"data.images={here}")
    assert result.code == 2
    assert "error: sign auto compares captions, and of 2 images there is one: 'A dog.'" in result.err
    assert Path("signs.png").exists()
    Path("signs.png").unlink()
    jsonl(here / "x.jsonl", [row(str(n), "none.jpg") for n in range(2)])
    result = mmalign("labels", "sign", "toy-words", here / "x.jsonl", f"data.images={here}")
    result.err = result.err[result.err.index("error: ") :]  # behind what transformers says of its progress
    assert_mistake(result, "none of 2 records has a picture that can be read", "data", "mmalign data check")
    assert not Path("signs.png").exists()


@pytest.mark.parametrize(
    ("words", "what", "at", "fix"),
    [
        (["toy-truth", "toy-captions"], "toy-truth takes the data's own words, which have no sign", "toy-truth.yaml",
         "such as clip-words"),
        (["signless", "toy-captions"], "signless has no sign: its class takes no argument `sign`", "signless.yaml",
         "such as clip-words"),
        (["toy-word", "toy-captions"], "no labels card named 'toy-word'", "", "did you mean 'toy-words'?"),
        (["toy-words", "toy-caption"], "no data card named 'toy-caption'", "", "did you mean 'toy-captions'?"),
        (["toy-words", "toy-texts"], "toy-texts has no images", "command line  data", "data with images"),
        (["toy-words", "toy-captions", "data.size=0"], "the data set is empty", "toy-captions.yaml", "check its path"),
        (["toy-words", "toy-captions", "data.sise=9"], "takes no argument 'sise'", "command line  data.sise", "'size'"),
        (["toy-words", "toy-captions", "labels.word=x"], "takes no argument 'word'", "command line  labels.word",
         "'words'"),
        (["toy-words", "toy-captions", "labels.encoder=toy-clop"], "no vision card named 'toy-clop'", "", "'toy-clip'"),
        (["toy-words", "toy-captions", "labels.encoder=dinov2-l"], "dinov2-l has no text tower", "command line",
         "an encoder with one"),
        (["toy-words", "toy-captions", "labels.sign=-1"], "labels.sign=-1: the sign is what this command decides",
         "command line  labels.sign", "take it out"),
        (["toy-words", "toy-captions", "size=9"], "'size=9' is no setting of the labels or the data", "command line",
         "data.size=64"),
        (["toy-words", "toy-captions", "data.size"], "'size' is not key=value", "command line", "data.size=64"),
        (["toy-words", "toy-captions", "fit=padd"], "fit must be one of crop, pad, squash, got 'padd'",
         "command line  fit", "fit=pad"),
        (["toy-words", "toy-captions", "--out", "."], ". is a folder", "--out", "--out signs.png"),
    ],
)  # fmt: skip
def test_sign_mistakes_are_told_before_anything_heavy(here, mmalign, monkeypatch, words, what, at, fix):
    text = "from mmalign.labels import LabelSource\nclass Signless(LabelSource):\n"
    (here / "signless.py").write_text(f"{text}    def __init__(self, encoder, keep): ...\n")
    monkeypatch.syspath_prepend(here)
    shelf(here, "labels", "signless", "summary: mine\ntarget: signless.Signless\nargs: {encoder: toy-clip}\n")
    monkeypatch.setenv("MMALIGN_REGISTRY", str(here / "shelf"))
    monkeypatch.setattr(Vision, "__init__", lambda *_: pytest.fail("an encoder was built"))
    assert_mistake(mmalign("labels", "sign", *words), what, at, fix)
    assert not Path("signs.png").exists()


def test_sign_lays_the_settings_over_the_cards():
    words = ["labels.words=pkg:mmalign.toyworld/words/full.txt", "labels.encoder=clip-vit-l-336-s2", "fit=squash"]
    of_role = signs._cards("clip-words", "toy-captions", [*words, "data.size=7"])
    assert of_role["labels"].args["words"] == "pkg:mmalign.toyworld/words/full.txt"
    assert of_role["labels"].args["sign"] == "auto"
    assert of_role["labels.encoder"].name == "clip-vit-l-336-s2"
    assert of_role["labels.encoder.encoder"].args["fit"] == "squash"  # the innermost sees the picture
    assert of_role["data"].args["size"] == 7
