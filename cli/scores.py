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
from mmalign.io import files
from mmalign.plan.cards import Card, Registry, build, target
from mmalign.plan.read import setting

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
    from mmalign.benchmarks.filed import NoAnswersError
    from mmalign.benchmarks.filed import score as scored

    card = card_of(name, data, words)
    if answers is None:
        raise RunError("no answers are named", fix="--answers FILE, such as runs/evaluate-.../pope.jsonl")
    with _all_kept():
        bench = made(card)
        given = bench.read(str(answers))
        if submission:
            from . import show

            bench.submission(given, submission)
            show.err.print(f"written: {submission}")
        try:
            found = scored(bench, given, protocol, cast(Gaps, gaps))
        except NoAnswersError:
            if not submission:
                raise
            return
        told = {"bench": name, "data": bench.found, "protocol": protocol, "gaps": gaps, **_counted(found, card)}
        print(_json(told)) if as_json else _table(told)


@contextmanager
def _all_kept() -> Iterator[None]:
    """Without looking for cycles: among two million answers there are none, and it would take a third of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _json(told: dict[str, Any]) -> str:
    """One line a key: with a line for each of many questions, the values would be written ten times as slowly."""
    lines = (f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in told.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def card_of(name: str, data: str | None, words: Sequence[str]) -> Card:
    """The card of a benchmark with the arguments of the command line laid over its own."""
    if not name:
        raise RunError("no benchmark is named", fix="--bench pope   (mmalign list benchmarks)")
    card = Registry().card("benchmarks", name)
    folder = {} if data is None else {"data": data if set("/:") & set(data) else f"./{data}"}  # a word names a card
    own = dict(setting(word, RunError, "split=test, an argument of the benchmark") for word in words)
    return replace(card, args=card.args | folder | own)


def made(card: Card) -> Benchmark:
    """The benchmark a card names; DataError for what measures a model and so has no answers."""
    if isinstance(kind := target(card), type) and issubclass(kind, Probe):
        what = f"{card.name} measures the model itself: it has no answers to score"
        raise DataError(what, fix=f"mmalign eval --bench {card.name}")
    found = build(card)
    assert isinstance(found, Benchmark)
    return found


def ready(node: "Node") -> None:
    """Open the files of every benchmark of an evaluation, so that what is missing is known before a model is loaded."""
    from mmalign.benchmarks.filed import FiledBenchmark

    if (node.folder / "stage.json").exists():
        return
    for card in node.cards.values():
        kind = target(card) if card.family == "benchmarks" else None
        if isinstance(kind, type) and issubclass(kind, FiledBenchmark):
            build(card).ready()


def notes(folder: Path) -> list[str]:
    """What a reader of the scores of a finished evaluation has to know."""
    from mmalign.pipeline import existing  # 0.1 s, which a score does without

    told = []
    for name in existing.scores(folder):
        score = files.read_json(folder / f"{name}.json")
        told += [f"{name}: {note}" for note in (_gaps(score["counts"]), *score["notes"]) if note]
    return told


def _gaps(counts: dict[str, int]) -> str:
    """Answers that could not be used, if any."""
    odd = [f"{counts[kind]} {kind}" for kind in ("missing", "duplicate", "unknown", "unparsable") if counts.get(kind)]
    return f"of {counts['asked']} answers {', '.join(odd)}" if odd else ""


def _counted(found: Score, card: Card) -> dict[str, Any]:
    """A score with its interval, and a word on what it was counted over."""
    from mmalign.benchmarks.bootstrap import interval

    usual, asked = card.facts.get("questions"), found.counts.get("asked")
    notes = list(found.notes)
    if usual and asked and usual != asked:
        notes.append(f"{asked} questions, the published set has {usual}: another split, or half of the data?")
    sure = interval(found.items)._asdict() if found.items else None
    return {**vars(found), "notes": notes, "unit": card.facts.get("unit", ""), "interval": sure}


def _table(told: dict[str, Any]) -> None:
    from . import show

    metrics = {told["headline"]: None, **told["metrics"]} if told["metrics"] else {}
    shown = show.table("metric", told["unit"] or "value", "as printed")
    for name in metrics:
        value, rounded = told["metrics"][name], told["printed"].get(name)
        style = "bold" if name == told["headline"] else None
        shown.add_row(name, f"{value:.4f}", "" if rounded is None else str(rounded), style=style)
    show.out.print(f"{told['bench']}: {told['data'] or 'no files'}; protocol {told['protocol']}, gaps {told['gaps']}")
    if metrics:
        show.out.print(shown)
    if sure := told["interval"]:
        show.out.print(f"mean over questions {sure['mean']:.4f}, 95 % interval {sure['low']:.4f} to {sure['high']:.4f}")
    show.out.print(", ".join(f"{count} {name}" for name, count in told["counts"].items() if "/" not in name))
    show.tell(told["notes"])
