"""A few of many items: from all over, always the same, and not all of one kind."""

from types import SimpleNamespace

import pytest

from mmalign.benchmarks.alignment import Alignment
from mmalign.benchmarks.perplexity import Perplexity
from mmalign.benchmarks.some import some
from mmalign.data import Turn
from mmalign.toyworld.data import Captions


@pytest.mark.parametrize(("total", "most"), [(1000, 300), (9000, 300), (7, 3), (5, 5), (5, 9), (0, 3)])
def test_one_of_each_of_as_many_parts(total, most):
    chosen = some(range(total), most)
    assert chosen == sorted(set(chosen)) == some(range(total), most)
    if total <= most:
        assert chosen == list(range(total))
        return
    assert len(chosen) == most
    assert all(total * part // most <= item < total * (part + 1) // most for part, item in enumerate(chosen))


def test_questions_that_take_turns_are_drawn_of_both_kinds():
    """POPE's answers are yes and no by turns, and 300 is a divisor of its 9,000 questions."""
    yes = sum(item % 2 for item in some(range(9000), 300))
    assert 100 < yes < 200


def test_a_probe_on_fewer_items():
    asked = []
    model = type("Model", (), {"untrained": None, "perplexity": lambda self, texts: asked.append(list(texts)) or 1.0})()
    texts = [f"text {number}" for number in range(50)]
    probe = Perplexity([SimpleNamespace(turns=[Turn("assistant", text)]) for text in texts], texts=40)
    probe.limited(10).measure(model)
    probe.measure(model)
    assert asked == [some(texts[:40], 10), texts[:40]]
    keys = [key for key, _ in Alignment(Captions(30), images=20)._references()]
    assert [key for key, _ in Alignment(Captions(30), images=20).limited(5)._references()] == some(keys, 5)
    assert len(Alignment(Captions(30), images=20).limited(1)._references()) == 2  # it compares with the next image
