"""The table of ceilings: what it shows to which readout, and a language model alone in the place of one that sees."""

import pytest
import torch
from PIL import Image

from mmalign.benchmarks.alignment import Alignment
from mmalign.llms.causal import CausalLM
from mmalign.vlm import ceilingtable, control, lens, readout
from mmalign.vlm.ceilingtable import Ceiling, Squares, ceiling_table, known, some_layers
from mmalign.vlm.model import VLM
from mmalign.vlm.readout import read_right
from tests import parts
from tests.vlm.test_vocabulary import Seen

TEXTS = ["A star is left of the ring.", "The red ring is a photograph of a large kettle."]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    return VLM(None, None, CausalLM(str(parts.llm("llama", tmp_path_factory.mktemp("llm"))))).eval()


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lens, "TOKENS", 300)
    monkeypatch.setattr(readout, "SHOWN", 100)


def test_a_row_for_each_readout_layer_and_kind_of_token(model, monkeypatch):
    monkeypatch.setattr(ceilingtable, "TEXT", 9)
    rows = ceiling_table(model, ["lens", "input"], [0, 2], TEXTS)
    text_N = control.text(model, TEXTS)[:9]
    expected = []
    for shown, number_N in (("text", text_N), ("perfect", None)):
        for kind in ("lens", "input"):
            right = read_right(model, readout.readout(model, kind, [0, 2]), number_N)
            expected += [Ceiling(shown, kind, layer, *one) for layer, one in right.items()]
    assert rows == expected
    assert {row.tokens for row in rows} == {9, 100}
    assert all(row.strict == 1 for row in rows if row.layer == 0)


def test_without_a_text(model):
    assert {row.shown for row in ceiling_table(model, ["input"], [0], [])} == {"perfect"}


def test_the_text_in_the_package_is_no_part_of_what_a_lens_is_fitted_on(model, monkeypatch):
    fitted = []
    fit = lens.fit
    monkeypatch.setattr(lens, "fit", lambda vlm, layers, token_N: fitted.append(token_N) or fit(vlm, layers, token_N))
    ceiling_table(model, ["lens"], [1], TEXTS)
    assert [token_N.tolist() for token_N in fitted] == [lens.tokens(model).tolist()]


@pytest.mark.parametrize(
    ("depth", "layers"), [(3, [0, 1, 2, 3]), (8, list(range(9))), (30, [0, 1, 3, 7, 15, 22, 30])]
)  # fmt: skip
def test_layers_where_none_are_named(depth, layers):
    assert some_layers(depth) == layers


def test_how_much_of_a_text_is_known(model):
    chat = model.llm.chat
    ids = [i for text in TEXTS for i in chat.plain(text)[len(chat.begin) :]]
    before = chat.tokenizer.unk_token
    assert known(model, TEXTS) == 1
    assert known(model, [""]) == 0
    chat.tokenizer.unk_token = chat.tokenizer.convert_ids_to_tokens(ids[0])
    assert known(model, TEXTS) == pytest.approx(1 - ids.count(ids[0]) / len(ids))
    chat.tokenizer.unk_token = before


def test_true_words_of_images_that_nobody_sees(model, monkeypatch):
    monkeypatch.setattr(Squares, "grid", (5, 5))
    found = Alignment(Seen(), images=2).ceilings(Squares(model), [0, 1])
    assert found[0] == (100, 100, 50)
    words = ["star", "ring", "blue", "image", "left"]
    right = [set(ids) for ids in model.spellings(words)]
    asked = []
    perfect = VLM.nearest_perfect
    monkeypatch.setattr(
        VLM, "nearest_perfect", lambda self, number_BQ, *a: asked.append(number_BQ) or perfect(self, number_BQ, *a)
    )
    again = Alignment(Seen(), images=2).ceilings(Squares(model), [1])
    assert all(n in right[at % 5] for row in asked[0].tolist() for at, n in enumerate(row))
    near = perfect(model, asked[0], [1])[1]
    hits = [n in right[at % 5] for row in near.tolist() for at, n in enumerate(row)]
    assert again[1] == found[1]
    assert again[1].share == pytest.approx(100 * sum(hits) / 50)


def test_a_picture_on_its_side_is_upright_in_its_squares(model):
    picture = Image.new("RGB", (40, 20))
    picture.getexif()[274] = 6
    assert [frame.size for frame in Squares(model).frames([picture])] == [(20, 40)]
