"""What the numbers of a report are: meaning, unit and direction, as benchmarks and objectives say it themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmalign.errors import MMAlignError
from mmalign.io import yaml
from mmalign.io.visible import one_line
from mmalign.pipeline import task
from mmalign.plan import signatures
from mmalign.stages.lineage import ancestors
from mmalign.stages.questions import evaluations

DIRECTIONS = {"higher": "higher is better", "lower": "lower is better"}


@dataclass(frozen=True)
class Measure:
    """What a number is; each text is empty where nobody says it."""

    what: str = ""
    unit: str = ""
    better: str = ""  # in words

    def axis(self, metric: str) -> str:
        """What an axis says of it."""
        return metric if self.unit in ("", "none") else f"{metric} ({self.unit})"


@lru_cache(maxsize=256)
def cards(folder: Path) -> dict[str, Mapping[str, Any]]:
    """{role: card} of a stage, as its stage.yaml has them; empty where it cannot be read: they only explain."""
    try:
        raw = yaml.read(folder / "stage.yaml", MMAlignError).raw
        kept = raw["cards"]
        return {str(role): card for role, card in kept.items() if isinstance(card, Mapping)}
    except (MMAlignError, OSError, TypeError, KeyError, AttributeError):
        return {}


def of(card: Mapping[str, Any] | None, metric: str) -> Measure:
    """A benchmark's metric: as its card says, else its class; nothing is imported for it."""
    facts = (card or {}).get("facts")
    said = facts.get("meanings") if isinstance(facts, Mapping) else None
    if not said and card and isinstance(card.get("target"), str):
        said = signatures.attribute(card["target"], "meanings")
    return _found(said, metric) if isinstance(said, Mapping) else Measure()


def _found(said: Mapping[Any, Any], metric: str) -> Measure:
    """The name itself, else the first pattern that fits."""
    fits = (key for key in said if isinstance(key, str) and fnmatchcase(metric, key))
    words = said.get(metric, said.get(next(fits, None)))
    if not isinstance(words, Sequence) or len(words) != 3 or not all(isinstance(word, str) for word in words):
        return Measure()
    what, unit, better = map(one_line, words)
    return Measure(what, unit, DIRECTIONS.get(better, ""))


def of_loss(card: Mapping[str, Any] | None) -> Measure:
    """An objective's loss: its card's summary; what it is a mean over is its class's `unit`, images where none says."""
    if not card:
        return Measure(better=DIRECTIONS["lower"])
    unit = signatures.attribute(str(card.get("target", "")), "unit")
    over = "image" if signatures.untold(unit) or not isinstance(unit, str) else unit.removesuffix("s")
    return Measure(one_line(str(card.get("summary", ""))), f"mean per {over}", DIRECTIONS["lower"])


def known(scores: Sequence[Path], arms: Sequence[str]) -> dict[tuple[str, str], Measure]:
    """{(benchmark or training stage, metric): what it is} of everything in the cells of a report."""
    measures: dict[tuple[str, str], Measure] = {}
    for folder, _, _, stage in evaluations(scores, arms):
        own = cards(folder)
        for bench, metrics in task.done(folder)["metrics"].items():
            for metric in metrics:
                measures.setdefault((stage + bench, metric), of(own.get(f"bench.{bench}"), metric))
        for place, about in ancestors(folder):
            terms = about["what"].get("settings", {}).get("objectives") or ()
            trained = cards(place) if terms else {}
            for term in terms:
                measures.setdefault((about["name"], f"{term} loss"), of_loss(trained.get(f"objectives.{term}")))
    return measures


def summaries(scores: Sequence[Path], arms: Sequence[str]) -> dict[str, str]:
    """{benchmark: what its card says it is}."""
    said: dict[str, str] = {}
    for folder, _, _, stage in evaluations(scores, arms):
        for role, card in cards(folder).items():
            if role.startswith("bench.") and role.count(".") == 1:
                said.setdefault(stage + role.removeprefix("bench."), one_line(str(card.get("summary") or "")))
    return said
