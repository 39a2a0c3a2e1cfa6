"""The contract every label source keeps."""

from functools import partial

from mmalign.plan.building import build
from mmalign.plan.cards import Registry
from mmalign.testing import check_labels
from {{ module }} import {{ cls }}


def test_contract():
    encoder = build(Registry().card("vision", "toy-clip")).float().eval()
    check_labels(partial({{ cls }}, encoder), encoder)
