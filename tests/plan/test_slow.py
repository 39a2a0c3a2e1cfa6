"""A plan says which stages this CPU would compute far slower than it could."""

import pytest

from mmalign.io import processor
from tests.conftest import TINY

NOTE = "bf16 is several times slower than fp32 on this CPU, and no GPU is here"


@pytest.fixture
def half(here):
    (here / "half.yaml").write_text(TINY.replace("precision: fp32", "precision: bf16"))
    return "half.yaml"


@pytest.mark.parametrize("lacks", [True, False])
def test_stages_in_bf16_are_named(half, mmalign, monkeypatch, lacks):
    monkeypatch.setattr(processor, "lacks_bf16", lambda: lacks)
    printed = mmalign("plan", half).out
    assert (NOTE in printed) is lacks
    if lacks:
        (line,) = [line for line in printed.splitlines() if NOTE in line]
        fixes = line.partition(NOTE)[2].split()
        names = line.removeprefix("note: ").partition(": ")[0].split(", ")
        assert "align" in names
        assert fixes == [f"stages.{name}.precision=fp32" for name in names]
        assert NOTE not in mmalign("plan", half, *fixes).out


def test_a_recipe_in_fp32_has_no_such_note(mmalign, monkeypatch):
    monkeypatch.setattr(processor, "lacks_bf16", lambda: True)
    assert NOTE not in mmalign("plan", "quickstart").out
