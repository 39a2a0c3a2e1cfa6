"""What errors say about a value that is none of the known ones."""

import pytest

from mmalign.errors import CheckError, one_of


def test_one_of_says_what_is_known_what_came_and_where():
    one_of("sign", "auto", (1, -1, "auto"))
    with pytest.raises(CheckError, match="^sign must be one of 1, -1, auto, got 'up'") as caught:
        one_of("sign", "up", (1, -1, "auto"))
    assert caught.value.at == "args.sign"
    with pytest.raises(CheckError, match="one of plain, value, got 2"):
        one_of("dense", 2, (name for name in ("plain", "value")))
