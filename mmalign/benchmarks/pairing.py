"""Which questions of two runs are the same: by text, options and picture where both runs know them, else by id."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from mmalign.benchmarks.asked import Asked
from mmalign.benchmarks.headline import Headline

Heads = tuple[Headline, Headline]


@dataclass
class Pairing:
    """The questions that two runs share, by the first run's ids; copies of a question are one."""

    ids: tuple[dict[str, list[str]], dict[str, list[str]]]  # of each run: {question: its ids there, several of copies}
    cluster_of: dict[str, str] = field(default_factory=dict)  # {question: its picture}, where it has one
    apart: int = 0  # questions that are in one run only
    renewed: int = 0  # ids of both runs that mean other questions
    copies: int = 0  # ids beyond the first of a question, in the run that has more of them
    by_id: bool = False  # matched by id alone

    def headlines(self, heads: Heads) -> Heads:
        """Both headlines on these questions."""
        names = [{qid: name for name, qids in own.items() for qid in qids} for own in self.ids]
        return heads[0].renamed(names[0]), heads[1].renamed(names[1])

    def steps(self, first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
        """{question: what its value rose by}, where both have one."""
        items = first, second
        both = (name for name in self.ids[0] if all(self.ids[n][name][0] in items[n] for n in (0, 1)))
        return {name: self._value(1, name, second) - self._value(0, name, first) for name in both}

    def _value(self, run: int, name: str, items: Mapping[str, float]) -> float:
        return fmean(items[qid] for qid in self.ids[run][name] if qid in items)


def pair(ids: tuple[Sequence[str], Sequence[str]], heads: Heads | None, asked: Sequence[Asked | None]) -> Pairing:
    """Of two runs: the ids of their questions, the headlines they count in, and what they asked where it is known."""
    known = [one for one in asked if one]
    by_id, contents = len(known) < 2, all(one.by_content for one in known)

    def unit(run: int, qid: str) -> Hashable:
        """What makes a question the same as another; one in two parts of a headline is two."""
        its = asked[run]
        content = its.key(qid, contents) if its and not by_id and qid in its.questions else qid
        return content, heads[run].parts_of[qid] if heads else ()

    unit_of = [{qid: unit(run, qid) for qid in own} for run, own in enumerate(ids)]
    units = [_grouped(own) for own in unit_of]
    shared = [one for one in units[0] if one in units[1]]
    pairs = {units[0][one][0]: one for one in shared}
    pairing = Pairing(
        ({name: units[0][one] for name, one in pairs.items()}, {name: units[1][one] for name, one in pairs.items()}),
        apart=len(units[0].keys() ^ units[1].keys()),
        renewed=sum(unit_of[0][qid] != unit_of[1][qid] for qid in unit_of[0].keys() & unit_of[1].keys()),
        copies=max(sum(len(own[one]) - 1 for one in shared) for own in units),
        by_id=by_id,
    )
    for its, own in zip(asked, pairing.ids, strict=True):
        if its and not pairing.cluster_of:
            pictures = {name: its.picture(qids[0], contents) for name, qids in own.items()}
            pairing.cluster_of = {name: picture for name, picture in pictures.items() if picture is not None}
    return pairing


def _grouped(unit_of: Mapping[str, Hashable]) -> dict[Hashable, list[str]]:
    """{unit: its ids}."""
    units: dict[Hashable, list[str]] = {}
    for qid, one in unit_of.items():
        units.setdefault(one, []).append(qid)
    return units
