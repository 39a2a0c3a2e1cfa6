"""The contract every language model keeps."""

from mmalign.testing import check_llm
from {{ module }} import {{ cls }}


def test_contract(tmp_path):
    check_llm({{ cls }}, tmp_path, lambda folder: {{ cls }}(str(folder)))
