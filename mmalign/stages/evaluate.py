"""The evaluation stage: questions asked, answers stored as they come, scored, and a few images explained."""

import base64
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.nn import functional as F

from mmalign import cards, files
from mmalign.answering import Asked
from mmalign.benchmarks import Benchmark, Probe, Question, Score
from mmalign.cards import Card
from mmalign.errors import CardError
from mmalign.llms import LLM
from mmalign.recipe import Evaluate
from mmalign.stages import build
from mmalign.task import Task
from mmalign.training.engine import connect, device, world
from mmalign.training.events import Events

PICTURES = 6  # images shown in the report


def run(task: Task) -> dict[str, Any]:
    stage = cast(Evaluate, task.stage)
    rank, ranks = world()
    if ranks > 1:
        connect()
    events = Events(task.folder, rank)
    parts = build.parts(task)
    build.cast_all(stage.precision, parts.vision, parts.adapter, parts.llm)
    model = Asked(parts.vision, parts.adapter, parts.llm, device(), untrained=lambda: _untrained(task, stage))
    scores: dict[str, Score] = {}
    for number, part in enumerate(stage.bench):
        bench = bench_of(task, f"bench.{part.card}")
        events.progress(number, len(stage.bench))
        scores[part.card] = measure(model, bench, task.folder / f"{part.card}.jsonl", stage.batch)
        if not rank:
            _keep(task, model, bench, part.card, scores[part.card])
    events.progress(len(stage.bench), len(stage.bench))
    return {
        "metrics": {name: score.metrics for name, score in scores.items()},
        "headlines": {name: score.headline for name, score in scores.items()},
        "parts": parts.places,
    }


def _keep(task: Task, model: Asked, bench: Benchmark | Probe, name: str, score: Score) -> None:
    files.write_json(task.folder / f"{name}.json", asdict(score))
    if isinstance(bench, Benchmark) and not (task.folder / "pictures.json").exists():
        files.write_json(task.folder / "pictures.json", pictures(model, bench))


def bench_of(task: Task, role: str) -> Benchmark | Probe:
    """The benchmark or probe of a role; one that names a data card is handed that data."""
    card: Card = task.cards[role]
    if f"{role}.data" in task.cards:
        card = replace(card, args={k: v for k, v in card.args.items() if k != "data"})
        made = cards.build(card, data=build.data(task.cards[f"{role}.data"]))
    else:
        made = cards.build(card)
    if not isinstance(made, (Benchmark, Probe)):
        raise CardError(f"{card.name!r} is neither a Benchmark nor a Probe", at=card.path)
    return made


def measure(model: Asked, bench: Benchmark | Probe, answers: Path, batch: int) -> Score:
    """The score of one benchmark; answers already in the file are not asked for again.

    Several ranks share the questions, each image's on one rank; every rank returns the score of all answers.
    """
    if isinstance(bench, Probe):
        return bench.measure(model)
    rank, ranks = world()
    given = stored(answers)
    missing = [question for question in bench.questions() if question.id not in given]
    own = [question for question in missing if _rank_of(question, ranks) == rank]
    with open(answers if ranks == 1 else _of_rank(answers, rank), "a", encoding="utf-8") as out:
        for question, text in model.answers(bench, own, batch):
            given[question.id] = text
            out.write(json.dumps({"id": question.id, "text": text}, ensure_ascii=False) + "\n")
            out.flush()
    if ranks > 1:
        dist.barrier()
        given |= _gathered(answers, rank)
        dist.barrier()
    return bench.score(given)


def _rank_of(question: Question, ranks: int) -> int:
    return zlib.crc32(repr(question.id if question.image is None else question.image).encode()) % ranks


def _of_rank(answers: Path, rank: int) -> Path:
    return answers.with_suffix(f".rank{rank}.jsonl")


def _gathered(answers: Path, rank: int) -> dict[str, str]:
    """The answers of all ranks; the first one puts them into the one file."""
    parts = sorted(answers.parent.glob(f"{answers.stem}.rank*.jsonl"))
    found = {key: text for place in parts for key, text in stored(place).items()}
    if not rank:
        lines = (json.dumps({"id": key, "text": text}, ensure_ascii=False) for key, text in found.items())
        files.write(answers, (answers.read_text() if answers.exists() else "") + "".join(f"{x}\n" for x in lines))
    dist.barrier()
    if not rank:
        for place in parts:
            place.unlink()
    return found


def stored(place: Path) -> dict[str, str]:
    """{question id: answer} of an answers file; a last line cut by a kill is dropped from it."""
    if not place.exists():
        return {}
    whole, _, cut = place.read_bytes().rpartition(b"\n")
    if cut:
        files.write(place, whole + b"\n" if whole else b"")
    rows = [json.loads(line) for line in whole.splitlines() if line]
    return {row["id"]: row["text"] for row in rows}


def _untrained(task: Task, stage: Evaluate) -> LLM:
    """The language model before the training stages: its card's weights, or those a `language` stage made."""
    where = build.places(replace(task, reads=_only(task, "llm")))
    made = build.llm(task, where, task.folder.parent)
    build.cast_all(stage.precision, made)
    return made


def _only(task: Task, slot: str) -> list[tuple[str, Path]]:
    return [(name, folder) for name, folder in task.reads if name == slot]


def pictures(model: Asked, bench: Benchmark) -> list[dict[str, Any]]:
    """A few images with the vocabulary token nearest to each visual token, and one question each."""
    first: dict[Any, Question] = {}
    for question in bench.questions():
        if question.image is not None and len(first) < PICTURES:
            first.setdefault(question.image, question)
    images = [bench.image(reference) for reference in first]
    nearest = nearest_words(model, images) if images else []
    return [
        {"png": _png(image), "grid": model.grid, "words": words, "question": question.text, "id": question.id}
        for image, words, question in zip(images, nearest, first.values(), strict=True)
    ]


def nearest_words(model: Asked, images: Sequence[Any]) -> list[list[str]]:
    """The text of the vocabulary token nearest (cosine) to each visual token."""
    embed_VD, tokens = model.vocabulary()
    visual_BPD = F.normalize(model.visual(images), dim=-1)
    best_BP = (visual_BPD @ F.normalize(embed_VD, dim=-1).T).argmax(-1)
    return [[_readable(tokens[i]) for i in row] for row in torch.as_tensor(best_BP).tolist()]


def _readable(token: str) -> str:
    """A token's text without its tokenizer's marks for blanks and word pieces."""
    return token.replace("▁", " ").replace("Ġ", " ").replace("##", "").strip() or "␣"


def _png(image: Any) -> str:
    image.thumbnail((336, 336))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
