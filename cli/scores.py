"""`score`: stored answers against the official metric; no model is loaded."""

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mmalign.benchmarks import Benchmark, Gaps, Probe, Score
from mmalign.errors import DataError, RunError
from mmalign.plan.building import build, own, target
from mmalign.plan.cards import Card, Registry
from mmalign.plan.read import setting
from mmalign.plan.references import paths

from .lines import say

if TYPE_CHECKING:
    from mmalign.plan.graph import Node


def score(
    name: str,
    words: Sequence[str],
    data: str | None,
    answers: Path | None,
    protocol: str,
    gaps: str,
    submission: Path | None,
    as_json: bool,
) -> None:
    """Score the answers in a file, or write what the benchmark's server takes, or both."""
    from mmalign.benchmarks import filed
    from mmalign.benchmarks.answers import Answers, one_each

    card = card_of(name, data, words)
    if answers is None:
        raise RunError("no answers are named", fix="--answers FILE, such as runs/evaluate-.../pope.jsonl")
    with _without_gc():
        bench = build_benchmark(card)
        texts = Answers.of(bench.read(str(answers)))
        if submission:
            from . import show

            if gaps == "strict":
                one_each(texts)
            bench.submission(texts, submission)
            show.err.print(f"written: {submission}")
        try:
            result = filed.score(bench, texts, protocol, cast(Gaps, gaps))
        except filed.NoAnswersError:
            if not submission:
                raise
            return
        source = {"bench": name, "data": bench.data_files, "protocol": protocol, "gaps": gaps}
        row = source | _with_interval(result, card)
        say(_json(row)) if as_json else _table(row)


@contextmanager
def _without_gc() -> Iterator[None]:
    """Without looking for cycles: among two million answers there are none, and it would take a third of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _json(row: dict[str, Any]) -> str:
    """One line a key: with a line for each of many questions, the values would be written ten times as slowly."""
    lines = (f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in row.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def card_of(name: str, data: str | None, words: Sequence[str]) -> Card:
    """The card of a benchmark with the arguments of the command line laid over its own."""
    if not name:
        raise RunError("no benchmark is named", fix="--bench pope   (mmalign list benchmarks)")
    card = Registry().card("benchmarks", name)
    folder = {} if data is None else {"data": data if set("/:") & set(data) else f"./{data}"}  # a word names a card
    own = dict(setting(word, RunError, "split=test, an argument of the benchmark") for word in words)
    return replace(card, args=card.args | folder | own)


def build_benchmark(card: Card) -> Benchmark:
    """The benchmark a card names; DataError for what measures a model and so has no answers."""
    card = own(card)
    if isinstance(kind := target(card), type) and issubclass(kind, Probe):
        what = f"{card.name} measures the model itself: it has no answers to score"
        raise DataError(what, fix=f"mmalign eval --bench {card.name}")
    bench = build(card)
    assert isinstance(bench, Benchmark)
    return bench


def ready(node: "Node") -> None:
    """Open the files of every benchmark of an evaluation, so that what is missing is known before a model is loaded."""
    from mmalign.benchmarks.filed import FiledBenchmark

    if (node.folder / "stage.json").exists():
        return
    for problem in paths({role: card for role, card in node.cards.items() if card.family == "data"}):
        raise problem
    for card in node.cards.values():
        kind = target(own(card)) if card.family == "benchmarks" else None
        if isinstance(kind, type) and issubclass(kind, FiledBenchmark):
            build(card).ready()


def notes(folder: Path) -> list[str]:
    """What a reader of the scores of a finished evaluation has to know."""
    from mmalign.pipeline import finished

    lines = []
    for name in finished.scores(folder):
        score = finished.score(folder, name)
        lines += [f"{name}: {note}" for note in (_gaps(score.counts), *score.notes) if note]
    return lines


def _gaps(counts: dict[str, int]) -> str:
    """Answers that could not be used, if any."""
    gaps = [f"{counts[kind]} {kind}" for kind in ("missing", "duplicate", "unknown", "unparsable") if counts.get(kind)]
    return f"of {counts.get('asked', '?')} answers {', '.join(gaps)}" if gaps else ""


def _with_interval(result: Score, card: Card) -> dict[str, Any]:
    """A score with its interval, and a word on what it was counted over."""
    from mmalign.benchmarks.bootstrap import interval

    published, asked = card.facts.get("questions"), result.counts.get("asked")
    notes = list(result.notes)
    if published and asked and published != asked:
        notes.append(f"{asked} questions, the published set has {published}: another split, or half of the data?")
    mean = interval(result.items)._asdict() if result.items else None
    return {**vars(result), "notes": notes, "unit": card.facts.get("unit", ""), "interval": mean}


def _table(row: dict[str, Any]) -> None:
    from . import show

    names = dict.fromkeys([row["headline"], *row["metrics"]]) if row["metrics"] else {}  # the headline first
    table = show.table("metric", row["unit"] or "value", "as printed")
    for name in names:
        value, rounded = row["metrics"][name], row["printed"].get(name)
        style = "bold" if name == row["headline"] else None
        table.add_row(name, f"{value:.4f}", "" if rounded is None else str(rounded), style=style)
    show.out.print(f"{row['bench']}: {row['data'] or 'no files'}; protocol {row['protocol']}, gaps {row['gaps']}")
    if names:
        show.out.print(table)
    if mean := row["interval"]:
        show.out.print(f"mean over questions {mean['mean']:.4f}, 95 % interval {mean['low']:.4f} to {mean['high']:.4f}")
    show.out.print(", ".join(f"{count} {name}" for name, count in row["counts"].items() if "/" not in name))
    show.tell(row["notes"])
