"""How sure a headline of a report is, from its single questions: by picture, and of several seeds by seed, too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.benchmarks import bootstrap, compare
from mmalign.benchmarks.asked import Asked
from mmalign.benchmarks.headline import Headline
from mmalign.benchmarks.seeds import compare_seeds
from mmalign.pipeline import finished, task


@dataclass(frozen=True)
class Span:
    """A 95 % interval, and what was drawn again for it: {seed, picture or question: how many of these}."""

    low: float
    high: float
    drawn: dict[str, int]

    @property
    def by(self) -> str:
        return " and ".join(self.drawn)

    @property
    def of(self) -> str:
        return " and ".join(map(str, self.drawn.values()))

    @property
    def told(self) -> str:
        """5 seeds, 200 pictures"""
        return ", ".join(f"{count} {what}{'s' if count != 1 else ''}" for what, count in self.drawn.items())


@dataclass(frozen=True)
class Gap:
    """What an arm has over the first one, on the questions both were asked."""

    mean: float
    span: Span
    questions: int


def evaluations(scores: Sequence[Path], arms: Sequence[str]) -> Iterator[tuple[Path, str, str, str]]:
    """(folder, arm, seed, what its benchmarks' names begin with: the stage's, where an arm has several evaluations)."""
    several = len(set(arms)) < len(arms)
    for folder, arm_seed in zip(scores, arms, strict=True):
        arm, _, seed = arm_seed.rpartition(" ")
        about = task.done(folder)
        yield folder, arm, seed or str(about["seed"]), f"{about['name']}: " if several else ""


class Questions:
    """The evaluations of a report, read when an interval needs their questions."""

    def __init__(self, scores: Sequence[Path], arms: Sequence[str]) -> None:
        self.places: dict[tuple[str, str, str], tuple[Path, str]] = {}
        self.runs: dict[tuple[Path, str], compare.Run] = {}
        for folder, arm, seed, stage in evaluations(scores, arms):
            for bench in task.done(folder)["metrics"]:
                self.places[stage + bench, arm, seed] = (folder, bench)

    def interval(self, bench: str, arm: str, seed: str) -> Span | None:
        """Of the headline of one evaluation; None: the score does not say what it is made of."""
        place = self.places[bench, arm, seed]
        run = self._run(place, arm)
        headline = Headline.of(run.scores[place[1]]) if run else None
        if run is None or headline is None:
            return None
        asked = run.asked.get(place[1])
        pictures = {qid: asked.picture(qid, asked.by_content) for qid in headline.parts_of} if asked else {}
        cluster_of = {qid: picture for qid, picture in pictures.items() if picture is not None}
        found = bootstrap.interval(headline, cluster_of)
        drawn = {"picture" if cluster_of else "question": bootstrap.clusters(headline, cluster_of)}
        return Span(found.low, found.high, drawn)

    def gap(self, bench: str, first: str, arm: str, seeds: Sequence[str], notes: list[str]) -> Gap | None:
        """Of an arm against the first, over the seeds that both have; None where they kept no values of questions.
        notes: gets what a reader has to know."""
        pairs = []
        for seed in seeds:
            one, two = (self._run(self.places[bench, name, seed], name) for name in (first, arm))
            if one is None or two is None:
                return None
            pairs.append((one, two))
        if not pairs:
            return None
        ((name, score),) = pairs[0][0].scores.items()
        row = compare.ComparisonRow(name, score.headline, [], [])
        compared = compare_seeds(row, pairs)
        notes += row.notes
        if compared is None:
            return None
        found, drawn = compared.difference, {compared.cluster: compared.clusters}
        drawn = drawn if len(seeds) == 1 else {"seed": len(seeds), **drawn}
        return Gap(found.mean, Span(found.low, found.high, drawn), compared.questions)

    def _run(self, place: tuple[Path, str], name: str) -> compare.Run | None:
        """One benchmark of an evaluation, without answers; None where it kept no values of single questions."""
        folder, bench = place
        if place not in self.runs and (folder / f"{bench}.json").exists():
            record = folder / f"{bench}.asked.json"
            asked = {bench: Asked.read(record, finished.EVALUATION)} if record.exists() else {}
            settings: dict[str, Any] = task.done(folder)["what"].get("settings", {})
            protocol = str(settings.get("protocol", "official"))
            self.runs[place] = compare.Run(name, {bench: finished.score(folder, bench)}, {}, protocol, asked)
        return self.runs.get(place)
