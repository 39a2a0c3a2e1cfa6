"""Intervals and paired differences, beside the slow loops they stand for."""

import random
import subprocess
import sys

import pytest

from mmalign.benchmarks.bootstrap import difference, interval
from mmalign.errors import DataError

RNG = random.Random(0)
ITEMS = {str(n): RNG.choice([0.0, 30.0, 60.0, 90.0, 100.0]) for n in range(120)}


def slow_interval(values: list[float], draws: int) -> tuple[float, float]:
    rng = random.Random(1)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws)]


def test_an_interval_is_that_of_resampled_items() -> None:
    result, (low, high) = interval(ITEMS), slow_interval([*ITEMS.values()], 4000)
    assert result.mean == pytest.approx(sum(ITEMS.values()) / len(ITEMS))
    assert (result.low, result.high) == (pytest.approx(low, abs=0.6), pytest.approx(high, abs=0.6))


def test_the_seed_decides() -> None:
    assert interval(ITEMS, seed=3) == interval(ITEMS, seed=3) != interval(ITEMS, seed=4)
    assert interval(ITEMS, level=0.5).low > interval(ITEMS, level=0.99).low


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    better = {name: min(100.0, value + 10 * (int(name) % 3 == 0)) for name, value in ITEMS.items()}
    result = difference(ITEMS, better)
    assert result.low > 0
    assert result.p < 0.01
    assert result.high - result.low < interval(ITEMS).high - interval(ITEMS).low
    assert difference(ITEMS, ITEMS) == (0, 0, 0, 1)


def test_the_p_value_is_that_of_random_signs() -> None:
    steps = [1.0] * 9 + [-1.0] * 3
    first, second = {str(n): 0.0 for n in range(12)}, {str(n): step for n, step in enumerate(steps)}
    rng, draws = random.Random(2), 20_000
    beyond = sum(abs(sum(rng.choice((-1, 1)) * abs(step) for step in steps)) >= 6 for _ in range(draws))
    assert difference(first, second).p == pytest.approx(beyond / draws, abs=0.01)


def test_other_questions_cannot_be_paired() -> None:
    with pytest.raises(DataError, match="the runs answered different questions: 2 are in one only"):
        difference({"1": 0.0, "2": 1.0}, {"1": 0.0, "3": 1.0})


def test_nothing_to_resample() -> None:
    for call in (lambda: interval({}), lambda: difference({}, {})):
        with pytest.raises(DataError, match="no items: an interval needs the values of single questions"):
            call()


def test_scoring_loads_neither_numpy_nor_torch() -> None:
    """Nor pyarrow: each is loaded by what needs it."""
    code = """
import sys
from mmalign.benchmarks import bootstrap, gqa, mmbench, mmlu, mmvet, pope, scienceqa, textvqa, vizwiz, vqav2
print([name for name in ("numpy", "torch", "pyarrow", "openpyxl", "PIL") if name in sys.modules])
"""
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert process.stdout.strip() == "[]"
