"""The contract every benchmark keeps."""

from mmalign.testing import check_benchmark
from {{ module }} import {{ cls }}


def test_contract():
    right = {question.id: question.image for question in {{ cls }}().questions()}
    check_benchmark({{ cls }}, right)
