"""The report's pictures: what each arm says on their patches, arms side by side, with question, answers and truth."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mmalign.errors import RunError
from mmalign.explore import Explorer, Pane, Picture, Ranked, Truth, page
from mmalign.io import files, pages
from mmalign.pipeline import finished, task
from mmalign.stages import samples
from mmalign.stages.explained import Explained
from mmalign.stages.explained import Ranked as Stored

NEAREST = (
    "For every visual token, the word whose embedding is nearest by cosine. The picture is what the encoder was given."
)


class Shown(NamedTuple):
    """A picture of one arm; key: what tells it from the others. question, answer: "" where nothing was asked."""

    key: tuple[str, str]
    pane: Pane
    question: str
    answer: str


def html(scores: Sequence[Path], arms: Sequence[str]) -> str:
    """A piece of a page: the pictures of each arm's first seed; "" where there are none."""
    of_picture: dict[tuple[str, str], list[Shown]] = {}
    for folder, arm in _first_seeds(scores, arms):
        for one in _shown(folder, arm):
            of_picture.setdefault(one.key, []).append(one)
    if not of_picture:
        return ""
    pictures = [_picture(number, each) for number, each in enumerate(of_picture.values(), 1)]
    return page.html(Explorer(pictures, NEAREST), "The nearest word on each patch", whole=False)


def _first_seeds(scores: Sequence[Path], arms: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """The first evaluation of each arm that has pictures."""
    done: set[str] = set()
    for folder, arm_seed in zip(scores, arms, strict=True):
        arm = arm_seed.rpartition(" ")[0]
        if arm not in done and any((folder / name).exists() for name in ("pictures.json", "judged.json")):
            done.add(arm)
            yield folder, arm


def _picture(number: int, shown: Sequence[Shown]) -> Picture:
    question = shown[0].question
    texts = [("question", question)] if question else []
    texts += [(f"{one.pane.name} answers".strip(), one.answer) for one in shown if one.question]
    return Picture(f"{number}: {question or shown[0].key[1]}", [one.pane for one in shown], texts)


def _shown(folder: Path, arm: str) -> list[Shown]:
    """The pictures an arm was asked about, and those whose truth is known; one that is both stands once."""
    answers = _answers(folder)
    asked, judged = (_panes(folder / name, arm) for name in ("pictures.json", "judged.json"))
    for _, pane in asked:
        known = next((other for _, other in judged if (other.png, other.layers) == (pane.png, pane.layers)), None)
        if known:
            pane.truth, pane.remarks = known.truth, known.remarks
            judged = [(row, other) for row, other in judged if other is not known]
    return [
        Shown((row["id"], row["question"]), pane, row["question"], answers.get(row["id"], "")) for row, pane in asked
    ] + [Shown(("", row["id"]), pane, "", "") for row, pane in judged]


def _panes(place: Path, arm: str) -> list[tuple[Explained, Pane]]:
    """The pictures of a file; none where there is none, and a RunError for what is not as we write it."""
    if not place.exists():
        return []
    try:
        rows = files.read_json(place, kind=list[Explained], fix=task.AGAIN)
        return [(row, _pane(row, arm)) for row in rows]
    except (ValueError, IndexError) as err:
        raise RunError(f"{place.name} is damaged: {err}", at=str(place), fix="evaluate again: --force") from err


def _pane(row: Explained, arm: str) -> Pane:
    if row["grid"] is not None:
        pages.grid(row["grid"], len(row["words"]))
    layers = {int(layer): _ranked(near, row["table"]) for layer, near in row.get("layers", {}).items()}
    truth = row.get("truth")
    known = (
        Truth(truth["words"], truth["object"], {int(n): right for n, right in truth["right"].items()})
        if truth
        else None
    )
    return Pane(
        arm,
        pages.png(row["png"]),
        row["grid"],
        layers or {0: [[(word, float("nan"))] for word in row["words"]]},  # an older mmalign wrote no cosines
        row.get("seen"),
        truth=known,
        remarks={int(layer): text for layer, text in row.get("remarks", {}).items()},
    )


def _ranked(near: Stored, table: Sequence[str]) -> Ranked:
    each = zip(near["numbers"], near["cosines"], strict=True)
    return [[(table[number], cosine) for number, cosine in zip(*own, strict=True)] for own in each]


def _answers(folder: Path) -> dict[str, str]:
    """{question id: answer, right or not} of the benchmark whose pictures are shown: the first that asks."""
    places = ((bench, folder / f"{bench}.jsonl") for bench in task.done(folder)["metrics"])
    bench, place = next(((bench, place) for bench, place in places if files.exists(place)), ("", None))
    if place is None:
        return {}
    items = finished.score(folder, bench).items if (folder / f"{bench}.json").exists() else {}
    texts = finished.answers(folder, bench)
    most = samples.full(items)
    return {qid: text + (f" ({samples.told(items[qid], most)})" if qid in items else "") for qid, text in texts.items()}
