"""Intervals and paired differences by picture, beside the slow loops they stand for, and how often they hold."""

import random
import subprocess
import sys
from collections.abc import Iterator
from statistics import fmean

import numpy as np
import pytest

from mmalign.benchmarks import Score
from mmalign.benchmarks.bootstrap import clusters, crossed, difference, interval
from mmalign.benchmarks.headline import Headline
from mmalign.benchmarks.pope import confusion, f1_part
from mmalign.errors import DataError

RNG = random.Random(0)
ITEMS = {str(n): RNG.choice([0.0, 30.0, 60.0, 90.0, 100.0]) for n in range(120)}
THREE = {str(n): f"picture {n // 3}" for n in range(120)}  # questions a picture
LABELS = {qid: RNG.random() < 0.5 for qid in ITEMS}
CATEGORY = {qid: "ab"[int(qid) % 5 < 2] for qid in ITEMS}


def answered(right: float, seed: int) -> dict[str, bool]:
    """Yes or no to every question; all about one picture are easy or hard together."""
    rng = random.Random(seed)
    easy = {picture: rng.random() for picture in THREE.values()}
    return {qid: label == (rng.random() < right * (0.5 + easy[THREE[qid]])) for qid, label in LABELS.items()}


def f1s(yes: dict[str, bool]) -> Headline:
    """The mean of two categories' F1, as POPE has it."""
    return Headline({c: {q: f1_part(LABELS[q], yes[q]) for q in yes if CATEGORY[q] == c} for c in "ab"})


def slow_f1s(yes: dict[str, bool], ids: list[str]) -> float:
    pairs = {c: [(LABELS[q], yes[q]) for q in ids if CATEGORY[q] == c] for c in "ab"}
    return fmean(confusion(own)["f1"] for own in pairs.values())


def slow_resamples(draws: int) -> Iterator[list[str]]:
    """The questions of as many pictures as there are, drawn with repetition."""
    rng, questions_of = random.Random(1), {}
    for qid, picture in THREE.items():
        questions_of.setdefault(picture, []).append(qid)
    for _ in range(draws):
        yield [qid for picture in rng.choices(list(questions_of), k=len(questions_of)) for qid in questions_of[picture]]


def ends(values: list[float]) -> tuple[float, float]:
    values = sorted(values)
    return values[int(0.025 * len(values))], values[int(0.975 * len(values))]


def test_an_interval_is_that_of_resampled_pictures() -> None:
    result = interval(Headline.mean(ITEMS), THREE)
    low, high = ends([fmean(ITEMS[qid] for qid in ids) for ids in slow_resamples(4000)])
    assert result.mean == pytest.approx(fmean(ITEMS.values()))
    assert (result.low, result.high) == (pytest.approx(low, abs=0.6), pytest.approx(high, abs=0.6))
    assert clusters(Headline.mean(ITEMS), THREE) == 40


def test_an_interval_is_of_the_headline_itself() -> None:
    yes = answered(0.7, seed=3)
    result = interval(f1s(yes), THREE)
    low, high = ends([slow_f1s(yes, ids) for ids in slow_resamples(3000)])
    assert result.mean == pytest.approx(slow_f1s(yes, list(ITEMS)))
    assert (result.low, result.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))


def test_a_difference_is_of_the_headlines_themselves() -> None:
    one, two = answered(0.6, seed=4), answered(0.8, seed=5)
    result = difference(f1s(one), f1s(two), THREE)
    gaps = [slow_f1s(two, ids) - slow_f1s(one, ids) for ids in slow_resamples(3000)]
    low, high = ends(gaps)
    assert result.mean == pytest.approx(slow_f1s(two, list(ITEMS)) - slow_f1s(one, list(ITEMS)))
    assert (result.low, result.high) == (pytest.approx(low, abs=0.015), pytest.approx(high, abs=0.015))


def test_over_seeds_both_seeds_and_pictures_are_drawn() -> None:
    """Beside slow loops: as many seeds and pictures as there are, with repetition, every seed's headline anew."""
    runs = [(answered(0.6, seed), answered(0.75 + 0.03 * seed, 10 + seed)) for seed in range(3)]
    result = crossed([[f1s(one), f1s(two)] for one, two in runs], [THREE] * 3)
    rng, gaps = random.Random(3), []
    for ids in slow_resamples(3000):
        drawn = rng.choices(runs, k=3)
        gaps.append(fmean(slow_f1s(two, ids) - slow_f1s(one, ids) for one, two in drawn))
    low, high = ends(gaps)
    assert result.mean == pytest.approx(fmean(slow_f1s(two, [*ITEMS]) - slow_f1s(one, [*ITEMS]) for one, two in runs))
    assert (result.low, result.high) == (pytest.approx(low, abs=0.012), pytest.approx(high, abs=0.012))


def test_over_seeds_of_one_headline_and_of_one_seed() -> None:
    one, two = answered(0.6, seed=4), answered(0.8, seed=5)
    alone = crossed([[f1s(one)]], [THREE])
    assert alone == pytest.approx(interval(f1s(one), THREE), abs=0.006)  # other draws of the same distribution
    both = crossed([[f1s(one), f1s(two)]], [THREE])
    assert both == pytest.approx(difference(f1s(one), f1s(two), THREE)[:3], abs=0.006)


def test_over_seeds_whose_pictures_differ_each_is_a_cluster_of_its_own() -> None:
    """A picture that one seed was not asked about counts nothing there."""
    first, second = {"a": 100.0, "b": 0.0}, {"c": 100.0, "d": 100.0}
    result = crossed([[Headline.mean(first)], [Headline.mean(second)]], [{}, {}])
    assert result.mean == 75
    assert result.high == 100


def test_over_seeds_a_pair_has_to_answer_the_same() -> None:
    with pytest.raises(DataError, match="the runs of a seed answered different questions"):
        crossed([[Headline.mean({"a": 1.0}), Headline.mean({"b": 1.0})]], [{}])


def test_over_seeds_the_interval_holds_as_often_as_it_says() -> None:
    """A true difference of 5 with effects of seed, of picture and of both: 95 of 100 intervals have it, or a few more;
    over seeds alone, with five of them, far fewer where pictures vary more than seeds."""
    rng, S, C, held, alone = np.random.default_rng(5), 8, 60, 0, 0
    for _ in range(200):
        gaps_SC = 5 + rng.normal(0, 1, (S, 1)) + rng.normal(0, 12, (1, C)) + rng.normal(0, 8, (S, C))
        heads = [
            [Headline.mean({str(c): 0.0 for c in range(C)}), Headline.mean({str(c): gap for c, gap in enumerate(row)})]
            for row in gaps_SC
        ]
        result = crossed(heads, [{}] * S, draws=1000)
        held += result.low <= 5 <= result.high
        drawn = rng.choice(gaps_SC.mean(1), (1000, S)).mean(1)
        alone += np.quantile(drawn, 0.025) <= 5 <= np.quantile(drawn, 0.975)
    assert 184 <= held <= 200
    assert alone < 150


def test_the_p_value_is_that_of_runs_exchanged_picture_by_picture() -> None:
    one, two = answered(0.7, seed=6), answered(0.8, seed=8)
    seen, rng, draws, beyond = slow_f1s(two, list(ITEMS)) - slow_f1s(one, list(ITEMS)), random.Random(2), 3000, 0
    for _ in range(draws):
        exchanged = {picture: rng.random() < 0.5 for picture in dict.fromkeys(THREE.values())}
        mixed = [{q: (a if exchanged[THREE[q]] == order else b)[q] for q in ITEMS} for order, a, b in
                 ((True, two, one), (False, two, one))]  # fmt: skip
        beyond += abs(slow_f1s(mixed[1], list(ITEMS)) - slow_f1s(mixed[0], list(ITEMS))) >= abs(seen) - 1e-9
    p = difference(f1s(one), f1s(two), THREE).p
    assert 0.05 < p < 0.9
    assert p == pytest.approx(beyond / draws, abs=0.03)


def test_the_p_value_is_that_of_random_signs() -> None:
    steps = [1.0] * 9 + [-1.0] * 3
    first, second = {str(n): 0.0 for n in range(12)}, {str(n): step for n, step in enumerate(steps)}
    rng, draws = random.Random(2), 20_000
    beyond = sum(abs(sum(rng.choice((-1, 1)) * abs(step) for step in steps)) >= 6 for _ in range(draws))
    p = difference(Headline.mean(first), Headline.mean(second), {}).p
    assert p == pytest.approx(beyond / draws, abs=0.01)


def test_copies_say_nothing_new() -> None:
    """Three copies of a question, which share its picture, make no interval narrower."""
    thrice = {f"{copy}-{qid}": item for copy in range(3) for qid, item in ITEMS.items()}
    pictures = {key: key.partition("-")[2] for key in thrice}
    once = {qid: qid for qid in ITEMS}
    assert interval(Headline.mean(thrice), pictures) == pytest.approx(interval(Headline.mean(ITEMS), once))
    narrow = interval(Headline.mean(thrice), {})
    wide = interval(Headline.mean(thrice), pictures)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(3**0.5, rel=0.1)


def test_the_smallest_part_and_parts_without_questions() -> None:
    yes = {"": {"1": (100.0, 1.0), "2": (0.0, 1.0)}, "no": {"3": (0.0, 1.0)}, "none": {}}
    assert Headline(yes).value == pytest.approx(50 / 3)  # an absent part counts 0
    assert interval(Headline(yes), {"3": "a"}).high <= 50
    least = Headline({"yes": {"1": (90.0, 1.0)}, "no": {"2": (70.0, 1.0), "3": (60.0, 1.0)}}, least=True)
    assert least.value == 65
    assert interval(least, {}).high <= 90


def test_the_seed_decides() -> None:
    mean = Headline.mean(ITEMS)
    assert interval(mean, THREE, seed=3) == interval(mean, THREE, seed=3) != interval(mean, THREE, seed=4)
    assert interval(mean, THREE, level=0.5).low > interval(mean, THREE, level=0.99).low


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    better = {name: min(100.0, value + 10 * (int(name) % 3 == 0)) for name, value in ITEMS.items()}
    mean = Headline.mean(ITEMS)
    result = difference(mean, Headline.mean(better), THREE)
    assert result.low > 0
    assert result.p < 0.01
    assert result.high - result.low < interval(mean, THREE).high - interval(mean, THREE).low
    assert difference(mean, mean, THREE) == (0, 0, 0, 1)


def test_other_questions_cannot_be_paired() -> None:
    with pytest.raises(DataError, match="the runs answered different questions: 2 are in one only"):
        difference(Headline.mean({"1": 0.0, "2": 1.0}), Headline.mean({"1": 0.0, "3": 1.0}), {})


def test_nothing_to_resample() -> None:
    empty = Headline.mean({})
    for call in (lambda: interval(empty, {}), lambda: difference(empty, empty, {})):
        with pytest.raises(DataError, match="no items: an interval needs the values of single questions"):
            call()


def test_what_a_headline_is_made_of() -> None:
    items = {"1": 100.0, "2": 0.0}
    assert Headline.of(Score({"m": 50.0}, "m", items)) == Headline.mean(items)
    assert Headline.of(Score({"m": 0.5}, "m", items)).value == 0.5  # a tool that prints fractions
    assert Headline.of(Score({"m": 51.0}, "m", items)) is None  # it is another function of them
    assert Headline.of(Score({"m": 51.0}, "m", items, parts={"": {"1": (51.0, 1.0)}})).value == 51
    assert Headline.of(Score({"m": 51.0}, "m", items, parts={"": {"1": (50.0, 1.0)}})) is None
    for value in (float("nan"), float("inf")):
        assert Headline.of(Score({"m": value}, "m", {"1": value})) is None
    assert Headline.of(Score({}, "m", items)) is None


def test_copies_of_a_question_are_counted_once() -> None:
    head = Headline({"a": {"1": (1.0, 2.0), "1 again": (3.0, 4.0), "2": (0.0, 1.0), "3": (1.0, 1.0)}})
    once = head.renamed({"1": "one", "1 again": "one", "2": "two"})
    assert once.parts == {"a": {"one": (2.0, 3.0), "two": (0.0, 1.0)}}


PICTURES, SIMULATED = 150, 1000


def simulated(rng: np.random.Generator, skill: float) -> np.ndarray:
    """Right (1) or wrong answers to three questions a picture; pictures are easy or hard for all three."""
    ease = rng.normal(size=(PICTURES, 1))
    return (ease + rng.normal(size=(PICTURES, 3)) < skill).astype(float)


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    """Of 1,000 simulated evaluations' 95 % intervals 95 % hold; 86 % where questions are taken for single ones."""
    from math import erf

    rng, skill = np.random.default_rng(0), 0.5
    truth = (1 + erf(skill / 2)) / 2  # ease + noise has a variance of 2
    qids = [str(n) for n in range(3 * PICTURES)]
    pictures = {qid: str(n // 3) for n, qid in enumerate(qids)}
    held, naive = 0, 0
    for seed in range(SIMULATED):
        head = Headline.mean(dict(zip(qids, simulated(rng, skill).ravel().tolist(), strict=True)))
        by_picture = interval(head, pictures, draws=1000, seed=seed)
        held += by_picture.low <= truth <= by_picture.high
        if seed % 4 == 0:
            alone = interval(head, {}, draws=1000, seed=seed)
            naive += alone.low <= truth <= alone.high
    assert 0.93 < held / SIMULATED < 0.97
    assert naive / (SIMULATED / 4) < 0.9


def test_nineteen_of_twenty_differences_hold_the_truth() -> None:
    """The same of F1 differences between two models, as good as each other, that see the same pictures; and of p."""
    rng = np.random.default_rng(1)
    qids = [str(n) for n in range(3 * PICTURES)]
    pictures = {qid: str(n // 3) for n, qid in enumerate(qids)}
    held, small = 0, 0
    for seed in range(SIMULATED // 4):
        labels = rng.random(3 * PICTURES) < 0.5
        ease = rng.normal(size=(PICTURES, 1))
        heads = []
        for _ in range(2):  # as good as each other: the true difference is 0
            right = (ease + rng.normal(size=(PICTURES, 3)) < 0.5).ravel()
            yes = np.where(right, labels, ~labels)
            heads.append(
                Headline({"": {q: f1_part(*map(bool, own)) for q, *own in zip(qids, labels, yes, strict=True)}})
            )
        result = difference(*heads, pictures, draws=1000, seed=seed)
        held += result.low <= 0 <= result.high
        small += result.p <= 0.05
    assert 0.93 < held / (SIMULATED // 4) < 0.97
    assert 0.03 < small / (SIMULATED // 4) < 0.07


def test_scoring_loads_neither_numpy_nor_torch() -> None:
    """Nor pyarrow: each is loaded by what needs it."""
    code = """
import sys
from mmalign.benchmarks import bootstrap, compare, gqa, mmbench, mmlu, mmvet, pope, scienceqa, textvqa, vizwiz, vqav2
print([name for name in ("numpy", "torch", "pyarrow", "openpyxl", "PIL") if name in sys.modules])
"""
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert process.stdout.strip() == "[]"
