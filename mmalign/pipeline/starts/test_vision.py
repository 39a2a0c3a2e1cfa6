"""The contract every vision encoder keeps."""

from mmalign.testing import check_vision
from {{ module }} import {{ cls }}


def test_contract(tmp_path):
    check_vision({{ cls }}, tmp_path, lambda folder: {{ cls }}(str(folder)))
