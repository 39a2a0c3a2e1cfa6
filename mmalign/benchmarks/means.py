"""Means of items over the groups they fall into."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean

Groups = Callable[[str], Iterable[str]]  # the groups of a question, by their full names: answer_type/other


def over(items: Mapping[str, float] | Iterable[tuple[str, float]], groups: Groups) -> dict[str, float]:
    """{group: mean of the items in it}, in order of appearance."""
    values_of: dict[str, list[float]] = defaultdict(list)
    for qid, value in items.items() if isinstance(items, Mapping) else items:
        for group in groups(qid):
            values_of[group].append(value)
    return {group: fmean(values) for group, values in values_of.items()}


def sums(rows: Iterable[tuple[str, float]]) -> dict[str, tuple[float, float]]:
    """{question id: (sum of its rows, how many they are)}: what a mean over rows is made of."""
    sums: dict[str, tuple[float, float]] = {}
    for qid, value in rows:
        total, number = sums.get(qid, (0.0, 0.0))
        sums[qid] = total + value, number + 1
    return sums


def sizes(qids: Iterable[str], groups: Groups) -> dict[str, int]:
    """{group: how many items are in it}."""
    return dict(Counter(group for qid in qids for group in groups(qid)))
