"""`inspect` and `chat` on a model that lies in a runs folder."""

import json
import re
from pathlib import Path

import pytest

from mmalign.labels.store import Store
from mmalign.pipeline import task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.stages import label
from mmalign.toyworld.data import Captions
from mmalign.vision import Frame
from tests.data.test_web import site as site
from tests.plan.test_mistakes import assert_mistake

COUNTS = {"tokens", "words", "meaningful", "distinct", "words_control", "control", "cosine"}


def test_table_json_and_page(model, mmalign):
    result = mmalign("inspect", model, "a.png", "--layers", "0,4", "--keep", "2", "--json", "--out", "x.html")
    assert result.code == 0, result.err
    first, last = json.loads(result.out)
    assert (first["image"], first["layer"], first["grid"], len(first["words"])) == ("a.png", 0, [6, 6], 36)
    assert last["layer"] == 4
    assert all(len(words) == 2 for words in last["words"])
    page = Path("x.html").read_text()
    data = json.loads(page.split('class="mmx-data">')[1].split("</script>")[0])
    assert [(pane["grid"], pane["layers"]) for pane in data["pictures"][0]["panes"]] == [([6, 6], [0, 4])]
    assert first["words"][0][0][0] in data["words"]
    lines = mmalign("inspect", "runs", "a.png", "--keep", "1").out.splitlines()
    assert len(lines) == 38
    word, cosine = first["words"][7][0]
    assert lines[8].split() == ["a.png", "0", "1,1", *word.split(), f"{cosine:.3f}"]
    told = first["meaningful"]
    assert (told["tokens"], set(told)) == (36, COUNTS)
    assert told["meaningful"] <= told["words"] <= 36
    assert lines[-1].startswith(f"a.png, layer 0: {told['meaningful']} of 36 tokens mean something, ")


def test_two_checkpoints_side_by_side(model, mmalign):
    result = mmalign("inspect", model, "a.png", "--layers", "0,2", "--beside", model, "--out", "both.html")
    assert result.code == 0, result.err
    data = json.loads(Path("both.html").read_text().split('class="mmx-data">')[1].split("</script>")[0])
    assert [pane["name"] for pane in data["pictures"][0]["panes"]] == [str(model)] * 2
    assert len(data["images"]) == 1
    result = mmalign("inspect", model, "a.png", "--beside", model)
    assert_mistake(result, "--beside lays models side by side on a page", "command line", "--out FILE.html")
    assert mmalign("inspect", model, "a.png", "--beside", "nowhere", "--out", "both.html").code == 2


def test_how_much_a_text_looks_at_each_patch(model, mmalign):
    result = mmalign("inspect", model, "a.png", "--attention", "Where <is> it?", "--out", "looked.html")
    assert result.code == 0, result.err
    assert "the tokens of “Where &lt;is&gt; it?”, said of the picture, look at" in Path("looked.html").read_text()
    data = json.loads(Path("looked.html").read_text().split('class="mmx-data">')[1].split("</script>")[0])
    (pane,) = data["pictures"][0]["panes"]
    assert len(pane["attention"]) == 36
    assert sum(pane["attention"]) == pytest.approx(1, abs=1e-3)
    result = mmalign("inspect", model, "a.png", "--attention", "Where is it?")
    assert_mistake(result, "--attention is laid on the pictures of a page", "command line", "--out FILE.html")


def test_the_words_of_a_list(model, mmalign):
    Path("words.txt").write_text("# mine\nred star\nblue\n\nring\nblue\n")
    result = mmalign("inspect", model, "a.png", "--words", "words.txt", "--layers", "0,2", "--json", "--out", "x.html")
    assert result.code == 0, result.err
    first, last = json.loads(result.out)
    assert all({word for word, _ in words} == {"red star", "blue", "ring"} for words in first["words"] + last["words"])
    assert first["words"][0][0][1] >= first["words"][0][1][1]
    assert "red star" in Path("x.html").read_text()
    tokens = json.loads(mmalign("inspect", model, "a.png", "--keep", "999", "--json").out)[0]["words"]
    for listed, single in zip(first["words"], tokens, strict=True):  # a word of one piece is that token
        assert dict(listed)["blue"] == pytest.approx(dict(map(tuple, single))["blue"], abs=1e-5)


def test_answers_side_by_side(model, mmalign):
    """As the visual tokens are, by their nearest words, by other words: printed, as JSON and on the page."""
    asked = "inspect", model, "a.png", "--layers", "0,2", "--keep", "1", "--replace", "--question", "what is this ?"
    result = mmalign(*asked, "--json", "--out", "x.html")
    assert result.code == 0, result.err
    rows = json.loads(result.out)
    first, last = (row["replaced"] for row in rows)
    assert set(first) == {"question", "answer", "replaced", "control", "words", "others"}
    assert (first["question"], first["answer"]) == ("what is this ?", last["answer"])
    for row in rows:
        assert row["replaced"]["words"] == [words[0][0] for words in row["words"]]
        assert len(row["replaced"]["others"]) == 36
    page = Path("x.html").read_text()
    assert "Asked by its words" in page
    assert page.count("<td>a.png</td>") == 2
    head, *under = mmalign(*asked).out.splitlines()[-6:]
    assert head.split() == ["image", "layer", "asked", "of", "answer"]
    shown = [["visual", "tokens", first["answer"]]]
    for row in rows:
        for what, name in (("their", "replaced"), ("other", "control")):
            shown.append([str(row["layer"]), what, "words", row["replaced"][name]])
    assert [line.split() for line in under] == [["a.png", *" ".join(cells).split()] for cells in shown]


def test_what_is_asked_when_nothing_is_said(model, mmalign):
    result = mmalign("inspect", model, "a.png", "--replace", "--out", "x.html")
    assert result.out.splitlines()[-6] == "Describe this image."
    assert "<caption>Describe this image.</caption>" in Path("x.html").read_text()
    mmalign("inspect", model, "a.png", "--out", "y.html")
    assert "Asked by its words" not in Path("y.html").read_text()


def test_answers_on_a_page_are_text(model, mmalign):
    mmalign("inspect", model, "a.png", "--replace", "--question", "<script>what ?", "--out", "x.html")
    page = Path("x.html").read_text()
    assert "<caption>&lt;script&gt;what ?</caption>" in page
    assert "<script>what" not in page


def test_a_question_that_nobody_asks(model, mmalign):
    result = mmalign("inspect", model, "a.png", "--question", "what ?")
    assert_mistake(result, "--question is asked by --replace alone", "command line", "--replace")


def test_a_list_too_short_for_a_control(model, mmalign):
    Path("words.txt").write_text("red\n")
    result = mmalign("inspect", model, "a.png", "--words", "words.txt", "--replace")
    assert_mistake(result, "all 1 words are nearest to some visual token", "words", "a longer list of words")


@pytest.mark.parametrize("readout", ["input", "same-layer", "lens"])
def test_what_can_be_read_is_told_beside_what_is_read(model, mmalign, monkeypatch, tmp_path, readout):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mmalign.vlm.lens.TOKENS", 500)
    given = "inspect", model, "a.png", "--layers", "0,1", "--readout", readout
    told = mmalign(*given).out.splitlines()[-1]
    ceilings = [one["ceiling"] for one in json.loads(mmalign(*given, "--json").out)]
    assert ceilings[0] is None
    assert told.startswith(f"layer 1: {ceilings[1]:.0%} of perfect tokens are read right")
    assert told.endswith("cannot be read so") == (ceilings[1] < 0.5)


def test_another_readout(model, mmalign):
    assert mmalign("inspect", model, "a.png", "--readout", "tuned").code == 2


def test_a_list_that_is_none(model, mmalign, monkeypatch):
    monkeypatch.setattr("mmalign.cli.inspecting.loaded", None)  # known before a model is loaded
    result = mmalign("inspect", model, "a.png", "--words", "none.txt")
    assert_mistake(result, "cannot read the word list 'none.txt'", "none.txt", "`words:` takes a path")
    Path("empty.txt").write_text("\n# nothing\n")
    result = mmalign("inspect", model, "a.png", "--words", "empty.txt")
    assert_mistake(result, "the word list is empty", "empty.txt", "one word a line")


def test_a_conversation(model, mmalign, monkeypatch):
    lines = iter(["what is this ?", "/image none.png", "/image a.png", "and this ?", "/help", "", "/forget", "hello"])

    def typed(prompt):
        assert prompt == "> "
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    heard_turns = []

    from mmalign.vlm.model import VLM

    generate = VLM.generate

    def heard(self, conversations, images, most):
        heard_turns.append(([turn.text for turn in conversations[0]], len(images[0]), most))
        return generate(self, conversations, images, most)

    monkeypatch.setattr(VLM, "generate", heard)
    result = mmalign("chat", model, "a.png", "a.png", "--max-new-tokens", "4")
    assert result.code == 0, result.err
    first, second, third = heard_turns
    assert first == (["<image>\n<image>\nwhat is this ?"], 2, 4)
    texts, images, _ = second
    assert (texts[0], texts[2], images) == (first[0][0], "<image>\nand this ?", 3)
    assert texts[1] in result.out
    assert third == (["hello"], 0, 4)
    assert "cannot open the image none.png: No such file" in result.out


@pytest.mark.parametrize("verb", ["inspect", "chat"])
@pytest.mark.parametrize(
    ("name", "what"),
    [("none.png", "cannot open the image none.png: No such file"), ("tiny.yaml", "cannot open the image tiny.yaml: ")],
)
def test_an_image_that_cannot_be_read(model, mmalign, verb, name, what):
    assert_mistake(mmalign(verb, model, "a.png", name), what, name, "PNG, JPEG")


@pytest.mark.parametrize("verb", ["inspect", "chat"])
@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        (".", "cannot open the image .: it is a folder", "as a pattern of the shell: ./*.png"),
        ("-", "cannot open the image -: pictures are not read from standard input", "the name of a file, or a URL"),
        ("{site}/none.jpg", "cannot open the image {site}/none.jpg: missing: {site}/none.jpg: 404", "PNG, JPEG"),
        ("{site}/to?http://elsewhere.test/x.jpg", "nobody allowed to fetch pictures from elsewhere.test", "images: ["),
        ("none://x/a.png", "cannot open the image none://x/a.png: Protocol not known: none", "PNG, JPEG"),
    ],
)
def test_what_is_no_file_is_told_as_it_is(model, mmalign, site, verb, name, what, fix):
    url, _ = site
    name, what = name.format(site=url), what.format(site=url)
    assert_mistake(mmalign(verb, model, name), what, name, fix)


def test_a_picture_behind_a_url(model, mmalign, site):
    url, asked = site
    result = mmalign("inspect", model, f"{url}/x.jpg", "--keep", "1", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)[0]["image"] == f"{url}/x.jpg"
    assert asked == ["127.0.0.1/x.jpg"]


def test_mistakes(model, mmalign):
    result = mmalign("inspect", model, "a.png", "--layers", "one")
    assert_mistake(result, "--layers 'one' is no list of numbers", "", "--layers 0,8,16")
    result = mmalign("inspect", model, "a.png", "--layers", "5")
    assert_mistake(result, "no layer 5: the language model has 4", "layers", "0 (what the adapter makes) to 4")
    assert_mistake(mmalign("inspect", model, "a.png", "--out", "no/x.html"), "no folder no", "x.html", "--out")
    assert_mistake(mmalign("inspect", model), "Missing argument 'IMAGE...'", "", "mmalign inspect --help")


# Beside labels


@pytest.fixture
def labels(model, here, monkeypatch):
    """The label stage of the same recipe, finished."""
    monkeypatch.setenv("MMALIGN_CACHE", str(here / "cache"))
    node = next(node for node in graph.plan(compose.load("tiny.yaml"), here / "runs") if node.name == "label")
    task.save(node)
    stage_task = task.load(node.folder)
    task.finish(stage_task, label.run(stage_task), 0, 1)
    return node.folder.relative_to(here)


def test_beside_the_labels_of_a_stage(model, labels, mmalign):
    """The data of the toy world knows what is right."""
    given = "inspect", model, "train-3", "train-0", "--labels", labels
    result = mmalign(*given, "--json", "--keep", "2")
    assert result.code == 0, result.err
    said = json.loads(result.out)
    patches, counts = said["patches"], said["counts"]
    assert [one["image"] for one in patches] == ["train-3"] * 36 + ["train-0"] * 36
    assert set(counts) == {"all", "object", "background"}
    assert 0 < counts["object"]["known"] <= counts["object"]["patches"] < counts["all"]["patches"] == 72
    store = Store(labels / "labels")
    for n, key in enumerate(("train-3", "train-0")):
        words_PK, scores_PK, _ = store[key]
        for one, numbers, scores in zip(patches[36 * n :], words_PK, scores_PK, strict=False):
            best = [store.words[number] for number, score in zip(numbers[:2], scores[:2], strict=True) if score > 0]
            assert [word for word, _ in one["labels"]] == best
        truth = Captions(48).truth(int(key[6:]), Frame("squash", (48, 48), (6, 6)))
        assert [tuple(one["true"]) for one in patches[36 * n : 36 * n + 36]] == truth.words
    lines = mmalign(*given).out.splitlines()
    assert len(lines) == 1 + 72 + 3
    assert lines[1].split()[:4] == ["train-3", "0,0", patches[0]["word"], f"{patches[0]['cosine']:.3f}"]
    own = counts["object"]
    assert lines[-2].startswith(
        f"object: {own['agree']} of {own['labelled']} labelled patches are near to one of their"
    )
    told = f"{own['right']} visual tokens and {own['label_right']} labels are right, {own['misaligned']} labels alone"
    assert lines[-2].endswith(f"; of {own['known']} whose words are known {told}")


def test_the_page_of_labels_colours_right_and_wrong_as_the_counts_have_it(model, labels, mmalign, tmp_path):
    page = tmp_path / "figure.html"
    given = "inspect", model, "train-3", "train-0", "--labels", labels
    counts = json.loads(mmalign(*given, "--json").out)["counts"]
    result = mmalign(*given, "--out", page)
    assert (result.code, result.out.splitlines()[0]) == (0, f"page: {page}"), result.err
    data = json.loads(re.search(r'class="mmx-data">(.*?)</script>', page.read_text(), re.S)[1])
    assert [picture["name"] for picture in data["pictures"]] == ["train-3", "train-0"]
    assert data["colour"] == "truth"
    kinds = {"1": "background", "2": "object"}
    shares = {name: {kinds[kind]: own for kind, own in layers[0][1].items()} for name, layers in data["shares"].items()}
    for name, right in (("visual tokens", "right"), ("labels", "label_right")):
        assert shares[name]["object"][0] == counts["object"][right]
        assert shares[name]["background"][0] == counts["background"][right]
    assert shares["visual tokens"]["object"][1] == counts["object"]["known"]


def test_beside_the_labels_of_a_card(model, mmalign):
    """Of a picture file nobody knows what is right."""
    result = mmalign("inspect", model, "a.png", "--labels", "toy-words", "--json")
    assert result.code == 0, result.err
    said = json.loads(result.out)
    assert len(said["patches"]) == 36
    assert {one["right"] for one in said["patches"]} == {None}
    assert [*said["counts"]] == ["all"]
    last = mmalign("inspect", model, "a.png", "--labels", "toy-words").out.splitlines()[-1]
    assert last.startswith("all: ")
    assert last.endswith(" labelled patches are near to one of their labels")


def test_mistakes_beside_labels(model, labels, mmalign, monkeypatch):
    monkeypatch.setattr("mmalign.cli.misaligned.loaded", None)  # known before a model is loaded
    result = mmalign("inspect", model, "a.png", "--labels", "toy-wrods")
    assert_mistake(result, "no labels card named 'toy-wrods'", "", "toy-words")
    result = mmalign("inspect", model, "a.png", "train-1", "--labels", labels)
    assert_mistake(result, "no labels for a.png", str(labels), "--labels CARD")
    options = (["--layers", "1"], ["--words", "x.txt"], ["--replace"], ["--beside", "x"], ["--readout", "lens"])
    for option in (*options, ["--attention", "x"]):
        result = mmalign("inspect", model, "a.png", "--labels", "toy-words", *option)
        assert_mistake(
            result, "--labels compares layer 0 with the labels' own words", "command line", "without --layers"
        )
