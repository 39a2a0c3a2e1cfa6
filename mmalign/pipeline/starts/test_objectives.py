"""The contract every objective keeps."""

from mmalign.testing import check_objective
from {{ module }} import {{ cls }}


def test_contract():
    check_objective({{ cls }})
