"""What a label source looks at of data: spread evenly, without padding, without what cannot be read."""

import pytest
import torch
from PIL import Image

from mmalign.data import Data, Record, Turn
from mmalign.errors import DataError
from mmalign.plan import building
from mmalign.plan.cards import Registry
from mmalign.vlm import sampling

SIZES = {"square": (72, 72), "wide": (144, 72), "high": (72, 288)}


class Shapes(Data):
    """Pictures of the sizes that its records name; `gone` cannot be opened, and record 3 cannot be read."""

    def __init__(self, *rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        if self.rows[number] is None:
            raise DataError("no such row")
        return Record(str(number), (Turn("assistant", f"caption {number}"),), self.rows[number])

    def image(self, reference):
        if reference == "gone":
            raise DataError("no such file")
        return Image.new("RGB", SIZES[reference], "red")


@pytest.fixture(scope="module")
def encoder():
    card = Registry().card("vision", "toy-clip")
    card.args["fit"] = "pad"
    return building.build(card).eval()


def test_padding_is_not_looked_at(encoder):
    """Of 6 x 6 patches a picture twice as wide as high shows on 24, two rows whole and two half; one four times as high
    as wide on 12, two columns by three quarters."""
    data = Shapes(("square",), ("wide", "high"))
    looked_at = sampling.sample(encoder, data, 2)
    assert [caption for _, caption in looked_at] == ["caption 0", "caption 1", "caption 1"]
    seen = [sum(encoder.frame(size).seen()) for size in SIZES.values()]
    assert [len(dense_PJ) for dense_PJ, _ in looked_at] == seen == [36, 24, 12]
    whole_PJ = encoder.both(encoder.pixels(data.image("wide"))[None])[1][0]
    seen_P = torch.tensor(encoder.frame((144, 72)).seen())
    assert torch.allclose(looked_at[1][0], whole_PJ[seen_P], atol=1e-5)
    assert not looked_at[0][0].requires_grad


def test_what_cannot_be_read_is_passed_over(encoder):
    data = Shapes(("square",), None, ("gone",), (), ("square", "gone"), ("wide",))
    assert [caption for _, caption in sampling.sample(encoder, data, 6)] == ["caption 0", "caption 5"]
    assert list(sampling.captions(data)) == [f"caption {n}" for n in (0, 2, 3, 4, 5)]


@pytest.mark.parametrize(("rows", "count", "numbers"), [(10, 3, [0, 3, 6]), (2, 5, [0, 1]), (7, 0, []), (0, 3, [])])
def test_records_are_spread_over_the_data(rows, count, numbers):
    assert list(sampling.spread(Shapes(*[()] * rows), count)) == numbers
