"""`inspect` and `chat` on a model that lies in a runs folder."""

import json
from pathlib import Path

import pytest

from tests.data.test_web import site as site
from tests.plan.test_mistakes import assert_mistake


def test_table_json_and_page(model, mmalign):
    result = mmalign("inspect", model, "a.png", "--layers", "0,4", "--keep", "2", "--json", "--out", "x.html")
    assert result.code == 0, result.err
    first, last = json.loads(result.out)
    assert (first["image"], first["layer"], first["grid"], len(first["words"])) == ("a.png", 0, [6, 6], 36)
    assert last["layer"] == 4
    assert all(len(words) == 2 for words in last["words"])
    page = Path("x.html").read_text()
    assert page.count('<div class="seen"') == 2
    assert first["words"][0][0][0] in page
    lines = mmalign("inspect", "runs", "a.png", "--keep", "1").out.splitlines()
    assert len(lines) == 37
    word, cosine = first["words"][7][0]
    assert lines[8].split() == ["a.png", "0", "1,1", *word.split(), f"{cosine:.3f}"]


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
