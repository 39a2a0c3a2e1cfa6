"""Which option an answer means, under each version of the rule."""

import pytest

from mmalign.benchmarks.options import REFUSED, VERSIONS, option

OPTIONS = {"A": "a red urn", "B": "blue", "C": "a green vase"}
LONG = "B it is, because the picture shows it"


@pytest.mark.parametrize(
    ("answer", "head", "before_2026_06", "before_2025_08"),
    [
        ("B", "B", "B", "B"),
        ("(B).", "B", "B", "B"),
        ("it is blue", "B", "B", "B"),  # by text
        ("D", None, None, None),  # no such option
        ("A or B", None, None, None),
        (LONG, None, None, "B"),  # a letter counts among the last four tokens only
        ("The answer is blue", "B", "B", "B"),
        ("The answer is a green vase", "A", "C", "C"),  # the newest rule takes the article for a letter
        ("Correct answer is **c** because of its shape and the colour", "C", None, None),
        ("it is blue and not a red urn", None, None, None),
        ("x" * 60 + " blue", None, None, "B"),  # a long answer contains anything
        ("Cannot determine the answer", REFUSED, REFUSED, REFUSED),
        ("Z", REFUSED, REFUSED, REFUSED),
        ("Failed to obtain answer via API", None, None, None),
        ("", None, None, None),
    ],
)
def test_each_version(answer: str, head: str, before_2026_06: str, before_2025_08: str) -> None:
    assert [option(answer, OPTIONS, one) for one in VERSIONS] == [head, before_2026_06, before_2025_08]
