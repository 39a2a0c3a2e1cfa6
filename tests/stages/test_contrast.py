"""The contrast stage: an image in every record."""

import pytest

from mmalign.data import Data, Record, Turn
from mmalign.errors import DataError
from mmalign.stages.contrast import Reader


class Text(Data):
    def __len__(self):
        return 1

    def __getitem__(self, number):
        return Record("row-0", (Turn("user", "What?"), Turn("assistant", "red")))


def test_a_record_without_an_image_is_named():
    with pytest.raises(DataError, match="no image in row-0"):
        Reader(Text(), None, None).batch([0], seed=0)
