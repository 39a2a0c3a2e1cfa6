"""`check` by facts and contracts: parts of a shelf or a plug-in are refused as ours are, and none is imported."""

import pytest

from mmalign.plan.check import unmet

PATCHES = "mine supervises single patches, and pooled does not keep the grid"


@pytest.mark.parametrize(
    ("needs", "per_patch", "labels", "keeps_grid", "told"),
    [
        ([], False, False, False, []),
        (["labels"], False, True, False, []),
        (["labels"], False, False, True, ["mine needs labels"]),
        (frozenset({"labels", "layers"}), True, False, False, ["mine needs labels", PATCHES]),
        ([], True, False, True, []),
        ([], True, True, False, [PATCHES]),
    ],
)
def test_what_an_objective_lacks(needs, per_patch, labels, keeps_grid, told):
    assert [what for what, _ in unmet("mine", needs, per_patch, labels, keeps_grid, "pooled")] == told
