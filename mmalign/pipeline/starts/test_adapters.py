"""The contract every adapter keeps."""

from mmalign.testing import check_adapter
from {{ module }} import {{ cls }}


def test_contract():
    check_adapter({{ cls }})
