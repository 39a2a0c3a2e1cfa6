"""What `mmalign show` says of a card's arguments: read from docstrings, and every shipped one says something."""

import pytest

from mmalign.plan import arguments, definitions
from mmalign.plan.cards import FAMILIES, Registry


def test_defaults_and_texts(tmp_path, monkeypatch):
    (tmp_path / "some_parts.py").write_text(
        '''
class Base:
    """Of two.

    width: how wide: in pixels. height, depth: how high and
    deep (the paper: 3). odd: not said of 'none'.
    """

    def __init__(self, width, height=2, depth="a", odd=None): ...


class Above(Base):
    """Says more.

    height: higher here.

    The rest is no argument: it is a remark. A Raise: for other things.
    """


class Other(Above):
    def __init__(self, height=7, *, depth=(1, 2), said_of_nobody=1): ...


def plain(x, y=1): ...


class Any:
    def __init__(self, **kwargs): ...
'''
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert arguments.of("some_parts.Above") == [
        arguments.Argument("width", None, "how wide: in pixels."),
        arguments.Argument("height", "2", "higher here."),
        arguments.Argument("depth", "'a'", "how high and deep (the paper: 3)."),
        arguments.Argument("odd", "None", "not said of 'none'."),
    ]
    assert [(one.name, one.default, one.about) for one in arguments.of("some_parts.Other") or []] == [
        ("height", "7", "higher here."),
        ("depth", "(1, 2)", "how high and deep (the paper: 3)."),
        ("said_of_nobody", "1", ""),
    ]
    assert arguments.of("some_parts.plain") == [arguments.Argument("x", None, ""), arguments.Argument("y", "1", "")]
    assert arguments.of("some_parts.Any") is None
    with pytest.raises(definitions.Absent):
        arguments.of("some_parts.NotThere")


def classes() -> dict[str, str]:
    """{class that a shipped card names: its family}"""
    registry = Registry()
    return {card.target: family for family in FAMILIES for card in registry.every(family)}


@pytest.mark.parametrize("target", classes())
def test_every_argument_of_a_shipped_card_is_explained(target):
    known = arguments.of(target)
    assert known is not None
    assert [one.name for one in known if not one.about] == []
    assert [one.name for one in known if one.about.startswith("see ")] == []


@pytest.mark.parametrize("target", [t for t, family in classes().items() if family in ("objectives", "labels")])
def test_what_the_papers_take_stands_with_what_they_define(target):
    silent = [one.name for one in arguments.of(target) or [] if "paper" not in one.about]
    assert set(silent) <= {"encoder", "ignore_index"}


def test_shown(mmalign):
    said = mmalign("show", "objectives", "sea").out
    assert "\ntemperature: 0.07\n  a number: where the learnable temperature starts. The paper prints 0" in said
    said = mmalign("show", "adapters", "linear").out
    assert "\ndepth: 1   (the class's own: 2)\n  a whole number: how many; LLaVA-1.5" in said
    assert "\npatch_dim: given by the stage\n" in said
