"""What an explorer carries, unpacked by plain loops: the same words, cosines to a thousandth, each picture once."""

import base64
import json
import zlib
from random import Random

import pytest

from mmalign.explore import Explorer, Pane, Picture, Truth
from mmalign.explore.packed import packed
from mmalign.explore.page import html
from mmalign.io.pictures import base64_png
from tests.explore.samples import noise, one, pane, ranked


def plain(raw, layers, tokens, table):
    """[layer][token][(word, cosine), ...] out of {k, wide, word, cosine}, number by number."""
    words, cosines = (zlib.decompress(base64.b64decode(raw[name])) for name in ("word", "cosine"))
    many = layers * tokens * raw["k"]
    assert (len(words), len(cosines)) == (many * raw["wide"], many * 2)
    made = [[[] for _ in range(tokens)] for _ in range(layers)]
    for at in range(many):
        number = sum(words[at + place * many] << 8 * place for place in range(raw["wide"]))
        thousandths = cosines[at] + 256 * cosines[at + many] - 32768
        if number:
            made[at // raw["k"] // tokens][at // raw["k"] % tokens].append((table[number], thousandths))
    return made


def unpacked(explorer, picture=0, number=0):
    raw, own = packed(explorer), explorer.pictures[picture].panes[number]
    return plain(raw["pictures"][picture]["panes"][number], len(own.layers), own.tokens, raw["words"])


def rounded(layers):
    return [[[(word, round(cosine * 1000)) for word, cosine in own] for own in layer] for layer in layers]


@pytest.mark.parametrize("grid", [(5, 3), (1, 1), (24, 24), (27, 27), (48, 60), None])
def test_words_and_cosines_of_any_grid(grid):
    explorer = one(grid)
    assert unpacked(explorer) == rounded(explorer.pictures[0].panes[0].layers.values())


def test_patches_of_fewer_words_and_none_and_a_cosine_that_is_no_number():
    words = [[("a", 1.0), ("b", -1.0)], [], [("c", float("nan"))]]
    own = Pane("", base64_png(noise(8)), (1, 3), {7: words})
    explorer = Explorer([Picture("p", [own])])
    assert unpacked(explorer) == [[[("a", 1000), ("b", -1000)], [], [("c", -32768)]]]
    assert packed(explorer)["pictures"][0]["panes"][0]["layers"] == [7]


def test_a_pane_without_a_layer_and_labels_alone():
    labels = ranked(6, 3)
    explorer = Explorer([Picture("p", [Pane("", base64_png(noise(8)), (2, 3), {}, labels=labels)])])
    raw = packed(explorer)
    assert unpacked(explorer) == []
    assert plain(raw["pictures"][0]["panes"][0]["labels"], 1, 6, raw["words"]) == rounded([labels])


def test_more_words_than_two_bytes_can_count():
    many = [f"w{number}" for number in range(70_000)]
    layer = [[(word, 0.5)] for word in many]
    explorer = Explorer([Picture("p", [Pane("", base64_png(noise(8)), (250, 280), {0: layer})])])
    assert packed(explorer)["pictures"][0]["panes"][0]["wide"] == 3
    assert unpacked(explorer) == rounded([layer])


def test_a_picture_of_several_panes_stands_in_the_page_once():
    image = noise(32)
    explorer = Explorer(
        [Picture("p", [pane(image, (5, 3), name) for name in ("a", "b")] + [pane(noise(32, 1), (5, 3))])]
    )
    raw = packed(explorer)
    assert [one["image"] for one in raw["pictures"][0]["panes"]] == [0, 0, 1]
    assert [(one["width"], one["height"]) for one in raw["images"]] == [(32, 32)] * 2
    assert html(explorer).count(base64_png(image)) == 1


def test_ten_pictures_of_clip_l_at_32_layers_are_under_10_mb():
    """Words and pictures at random: what deflates worst."""
    random = Random(0)
    many = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 10))) for _ in range(20_000)]
    pictures = []
    for number in range(10):
        layers = {layer: ranked(576, 5, 32 * number + layer, many) for layer in range(32)}
        pictures.append(Picture(str(number), [Pane("", base64_png(noise(336, number)), (24, 24), layers)]))
    size = len(html(Explorer(pictures)).encode())
    assert 4e6 < size < 10e6


def test_truth_padding_and_attention():
    truth = Truth([("cat", "red"), (), ("sky",)], [True, None, False], {0: [True, None, False], 2: [False, None, True]})
    words = ranked(3)
    own = Pane(
        "m",
        base64_png(noise(8)),
        (1, 3),
        {0: words, 1: words, 2: words},
        [True, False, True],
        None,
        [0.5, 0, 1 / 3],
        truth,
    )
    raw = packed(Explorer([Picture("p", [own])]))
    (made,), table = raw["pictures"][0]["panes"], raw["words"]
    assert [[table[number] for number in each] for each in made["truth"]] == [["cat", "red"], [], ["sky"]]
    right, kinds, seen = (list(zlib.decompress(base64.b64decode(made[name]))) for name in ("right", "object", "seen"))
    assert right == [2, 0, 1, 0, 0, 0, 1, 0, 2]
    assert (kinds, seen) == ([2, 0, 1], [1, 0, 1])
    assert made["attention"] == [0.5, 0.0, 0.3333]
    assert raw["shares"] == {"m": [[0, {"2": (1, 1), "1": (0, 1)}], [2, {"2": (0, 1), "1": (1, 1)}]]}


def test_shares_are_over_all_pictures_pane_by_pane():
    def judged(name, *right):
        truth = Truth([("x",)] * len(right), [True] * len(right), {0: right})
        return Pane(name, base64_png(noise(8)), (1, len(right)), {0: ranked(len(right))}, truth=truth)

    pictures = [Picture("1", [judged("a", True, False), judged("b", False, None)]), Picture("2", [judged("a", True)])]
    assert Explorer(pictures).shares() == {"a": {0: {True: (2, 3)}}, "b": {0: {True: (0, 1)}}}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"grid": (2, 2)}, "layer 0 of 15 patches, and m has 4"),
        ({"seen": [True]}, "seen of 1 patches, and m has 15"),
        ({"labels": []}, "labels of 0 patches"),
        ({"attention": [1.0] * 14}, "attention of 14 patches"),
        ({"truth": Truth([()], [None] * 15)}, "truth.words of 1 patches"),
        ({"truth": Truth([()] * 15, [None] * 15, {3: [True]})}, "truth.right of layer 3 of 1 patches"),
    ],
)
def test_parts_of_other_grids(changes, what):
    with pytest.raises(ValueError, match=what):
        Pane(**{"name": "m", "png": "", "grid": (5, 3), "layers": {0: ranked(15)}} | changes)


def test_a_picture_that_is_no_png():
    with pytest.raises(ValueError, match="`png` is no PNG file"):
        packed(Explorer([Picture("p", [Pane("", "aGVsbG8=", None, {0: ranked(2)})])]))


HOSTILE = "</script><img src=x onerror=alert(1)>"


def test_texts_are_json_in_which_no_tag_can_stand():
    words = [[(HOSTILE, 0.5), ("\x1b[31m\u202eabc", 0.4), ("مرحبا", 0.3), ("\ud800 & \u2028", 0.2)]]
    own = Pane(
        HOSTILE, base64_png(noise(8)), (1, 1), {0: words}, remarks={0: HOSTILE}, truth=Truth([(HOSTILE,)], [True])
    )
    text = html(Explorer([Picture(HOSTILE, [own], [(HOSTILE, HOSTILE)])], HOSTILE, HOSTILE), HOSTILE)
    assert HOSTILE not in text
    assert "<img src" not in text
    assert not {"\x1b", "\u202e", "\ud800", "\u2028"} & set(text)
    data = json.loads(text.split('class="mmx-data">')[1].split("</script>")[0])
    assert data["words"][1:5] == [HOSTILE, "\\u001b[31m\\u202eabc", "مرحبا", "\\ud800 & \\u2028"]
    assert text.count("</script>") == 2


def test_a_page_and_a_piece_of_one():
    page, piece = html(one(), "<title>"), html(one(), whole=False)
    assert page.startswith("<!doctype html>")
    assert "<title>&lt;title&gt;</title>" in page
    assert "default-src 'none'" in page
    for part in (
        "<!doctype",
        "<html",
        "<head",
        "<body",
        "<title>W",
        "</body>",
        "\nbody {",
        "\nh1 {",
        "Content-Security",
    ):
        assert part not in piece
    for text in (page, piece):
        assert text.count('<section class="mmx"') == 1
        assert " id=" not in text  # several in one page cannot clash
        assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
