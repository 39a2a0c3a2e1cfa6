"""`score`: stored answers against the official metric; no model is loaded."""

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mmalign.benchmarks import Benchmark, Gaps, Probe, Score
from mmalign.benchmarks.asked import Asked, Renewal, renewal
from mmalign.errors import DataError, RunError
from mmalign.pipeline.finished import EVALUATION
from mmalign.plan.building import build, own, target
from mmalign.plan.cards import Card, Registry
from mmalign.plan.read import setting
from mmalign.plan.recipe import Evaluate
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
    from mmalign.benchmarks.answers import Answers, GapRule, join

    card = card_of(name, data, words)
    if answers is None:
        raise RunError("no answers are named", fix="--answers FILE, such as runs/evaluate-.../pope.jsonl")
    with _without_gc():
        bench = build_benchmark(card)
        texts = Answers.of(bench.read(str(answers)))
        if submission:
            from . import show

            if gaps == "strict":  # an upload with gaps is filled with empty answers
                join([question.id for question in bench.questions()], texts, "strict", GapRule())
            bench.submission(texts, submission)
            show.err.print(f"written: {submission}")
        try:
            result = filed.score(bench, texts, protocol, cast(Gaps, gaps))
        except filed.NoAnswersError:
            if not submission:
                raise
            return
        source = {"bench": name, "data": bench.data_files, "protocol": protocol, "gaps": gaps}
        row = source | _with_interval(result, card, bench)
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
    named = {role: card for role, card in node.cards.items() if card.family == "data"}
    for problem in paths(node.recipe, node.name, named):
        raise problem
    for card in node.cards.values():
        kind = target(own(card)) if card.family == "benchmarks" else None
        if isinstance(kind, type) and issubclass(kind, FiledBenchmark):
            build(card).ready()


def renewed(node: "Node") -> list[str]:
    """Notes on the pictures of a finished evaluation; where some have changed, it is set aside, and so done again.

    A fingerprint knows questions and tables by their content, but pictures by their folder: a plan reads none of them.
    """
    from mmalign.pipeline import task
    from mmalign.pipeline.run import set_aside

    if not node.done:
        return []
    date = task.done(node.folder)["finished"][:10]
    now = {name: _pictures_now(node, name) for name in _pictured(node)}
    if any(isinstance(pictures, Renewal) and pictures.changed for pictures in now.values()):
        told = [f"{name}: {pictures} since {date}" for name, pictures in now.items() if str(pictures)]
        return [*told, f"evaluated again; what was there is kept in {set_aside(node)}"]
    notes = [f"{name}: pictures not looked at again: {pictures}" for name, pictures in now.items() if str(pictures)]
    return [
        f"evaluated on {date}",
        *notes,
        *([f"to evaluate again: mv {node.folder} {node.folder}.old"] if notes else []),
    ]


def unlooked(nodes: "Sequence[Node]") -> list[str]:
    """Notes on the evaluations of a plan that are done, whose pictures nobody looks at again."""
    from mmalign.pipeline import task

    done = [node for node in nodes if isinstance(node.stage, Evaluate) and node.done and _pictured(node)]
    return [
        f"{node.name}: evaluated on {task.done(node.folder)['finished'][:10]}, pictures not looked at again;"
        f" --force {node.name} evaluates again"
        for node in done
    ]


def _pictured(node: "Node") -> list[str]:
    """The benchmarks of an evaluation whose pictures may lie in files of their own."""
    from mmalign.benchmarks.filed import FiledBenchmark

    kinds = {part.card: target(own(node.cards[f"bench.{part.card}"])) for part in cast(Evaluate, node.stage).bench}
    return [name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, FiledBenchmark)]


def _pictures_now(node: "Node", name: str) -> "Renewal | str":
    """How the pictures of a benchmark are now, or why they are not looked at; empty: as they were."""
    record = node.folder / f"{name}.asked.json"
    if not record.exists():
        return "an older mmalign did not write down what they were"
    try:
        return renewal(Asked.read(record, EVALUATION), build(node.cards[f"bench.{name}"]))
    except DataError as err:
        return err.what


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


def _with_interval(result: Score, card: Card, bench: Benchmark) -> dict[str, Any]:
    """A score with the interval of its headline, and a word on what it was counted over."""
    published, asked = card.facts.get("questions"), result.counts.get("asked")
    notes = list(result.notes)
    if published and asked and published != asked:
        notes.append(f"{asked} questions, the published set has {published}: another split, or half of the data?")
    told = {name: value for name, value in vars(result).items() if name not in ("parts", "least")}
    return {**told, "notes": notes, "unit": card.facts.get("unit", ""), "interval": _interval(result, bench, notes)}


def _interval(result: Score, bench: Benchmark, notes: list[str]) -> dict[str, Any] | None:
    """The headline's interval, resampled by picture; None, and a note, where it is not known what it is made of."""
    from mmalign.benchmarks import asked, bootstrap
    from mmalign.benchmarks.headline import Headline

    if not result.items:
        return None
    headline = Headline.of(result)
    if headline is None:
        notes.append(f"no interval: the score does not say how {result.headline} is made of its questions")
        return None
    try:
        cluster_of = asked.clusters(bench.references())
    except DataError as err:
        cluster_of = {}
        notes.append(f"the interval is by question, and may be too narrow: {err.what}")
    cluster_of = {qid: cluster_of[qid] for qid in headline.parts_of if qid in cluster_of}
    number = bootstrap.clusters(headline, cluster_of)
    mean = bootstrap.interval(headline, cluster_of)._asdict()
    return {**mean, "cluster": "picture" if cluster_of else "question", "clusters": number}


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
        told = f"{row['headline']} {mean['mean']:.4f}, 95 % interval {mean['low']:.4f} to {mean['high']:.4f}"
        show.out.print(f"{told}, by {mean['cluster']} ({mean['clusters']})")
    show.out.print(", ".join(f"{count} {name}" for name, count in row["counts"].items() if "/" not in name))
    show.tell(row["notes"])
