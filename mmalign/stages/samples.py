"""A few questions of each benchmark with picture, truth and answers: some right, some wrong, drawn by a rule."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from mmalign.benchmarks import Benchmark, Score
from mmalign.errors import RunError
from mmalign.io import files, pages
from mmalign.io.pictures import base64_png
from mmalign.pipeline import finished, task
from mmalign.stages.questions import evaluations

if TYPE_CHECKING:
    pass

EACH = 3  # right, and as many that are not
SIDE = 168  # pixels of a picture's longer side
LONGEST = 600  # letters of a text
RULE = f"""the first {EACH} right and the first {EACH} other ones in the order of sha256("0 " + id)"""


class Sample(TypedDict):
    """A question of BENCH.samples.json. truth: empty where the benchmark does not tell it. value: of the answer."""

    id: str
    question: str
    truth: str
    answer: str
    value: float
    png: str | None


def full(items: Mapping[str, float]) -> float:
    """The value of a wholly right answer: benchmarks count in fractions or in percent."""
    return 100.0 if max(items.values(), default=0.0) > 1 else 1.0


def drawn(items: Mapping[str, float]) -> list[str]:
    """The ids of the questions that are shown, see RULE: which ones it hits, nobody chooses."""
    order = sorted(items, key=lambda qid: hashlib.sha256(f"0 {qid}".encode()).digest())
    right = [qid for qid in order if items[qid] >= full(items)]
    other = [qid for qid in order if items[qid] < full(items)]
    return [*right[:EACH], *other[:EACH]]


def of(bench: Benchmark, score: Score, answers: Mapping[str, str]) -> list[Sample]:
    """The samples of a benchmark that has been scored."""
    questions = {question.id: question for question in bench.questions()}
    known = {qid: value for qid, value in score.items.items() if qid in questions and qid in answers}
    return [
        Sample(
            id=qid,
            question=_short(questions[qid].text),
            truth=_short(bench.right(qid)),
            answer=_short(answers[qid]),
            value=known[qid],
            png=None if questions[qid].image is None else base64_png(bench.image(questions[qid].image), SIDE),
        )
        for qid in drawn(known)
    ]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def shown(scores: Sequence[Path], arms: Sequence[str]) -> list[dict[str, Any]]:
    """{name, samples} of every benchmark: the first arm's questions, with the answers of each arm's first seed."""
    first: dict[str, Path] = {}  # benchmark: the samples whose questions are shown
    folders: dict[tuple[str, str], tuple[Path, str]] = {}
    for folder, arm, _, stage in evaluations(scores, arms):
        for bench in task.done(folder)["metrics"]:
            if (place := folder / f"{bench}.samples.json").exists():
                first.setdefault(stage + bench, place)
            folders.setdefault((stage + bench, arm), (folder, bench))
    arms_of: dict[str, dict[str, tuple[Path, str]]] = {}
    for (name, arm), at in folders.items():
        arms_of.setdefault(name, {})[arm] = at
    return [{"name": name, "samples": _answered(_read(place), arms_of[name])} for name, place in first.items()]


def _answered(samples: Sequence[Sample], arms: Mapping[str, tuple[Path, str]]) -> list[dict[str, Any]]:
    """Questions with `answers`, (arm, answer, its value, what that means) of every arm that was asked them."""
    ids = {sample["id"] for sample in samples}
    own = {arm: _answers(folder, bench, ids) for arm, (folder, bench) in arms.items()}
    return [
        {**one, "answers": [(arm, *answers[one["id"]]) for arm, answers in own.items() if one["id"] in answers]}
        for one in samples
    ]


def _read(place: Path) -> list[Sample]:
    """The samples of a benchmark; a RunError for a file that is none of ours."""
    samples: list[Sample] = files.read_json(place, kind=list[Sample], fix=task.AGAIN)
    for sample in samples:
        try:
            sample["png"] = None if sample["png"] is None else pages.png(sample["png"])
        except ValueError as err:
            raise RunError(f"{place.name} is damaged: {err}", at=str(place), fix=task.AGAIN) from err
    return samples


def _answers(folder: Path, bench: str, ids: set[str]) -> dict[str, tuple[str, float, str]]:
    """{question id: (answer, its value, what that means)} of some questions in an evaluation."""
    items = finished.score(folder, bench).items
    texts = {qid: text for qid, text in finished.answers(folder, bench).items() if qid in ids and qid in items}
    return {qid: (_short(text), items[qid], told(items[qid], full(items))) for qid, text in texts.items()}


def told(value: float, most: float) -> str:
    """right, wrong, or how much of a right answer it is worth."""
    return "right" if value >= most else "wrong" if value <= 0 else f"{value:g} of {most:g}"


def html(found: Sequence[Mapping[str, Any]], study: bool) -> str:
    """The section of the page; empty where no evaluation kept samples: it was an older mmalign's."""
    return pages.page(
        "mmalign.stages", "samples.html", benches=[one for one in found if one["samples"]], study=study, rule=RULE
    )
