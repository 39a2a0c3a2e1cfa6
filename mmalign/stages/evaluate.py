"""The evaluation stage: questions asked, answers stored as they come, scored, and a few images explained."""

import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist

from mmalign.benchmarks import Benchmark, Cut, Probe, Question, Score
from mmalign.benchmarks.alignment import Alignment
from mmalign.benchmarks.asked import Asked, look, of_items, refuse
from mmalign.benchmarks.filed import FiledBenchmark, NoAnswersError, score
from mmalign.benchmarks.resume import stored
from mmalign.integrations import vllm
from mmalign.integrations.vllm import VLLM
from mmalign.io import files
from mmalign.pipeline import build, weights
from mmalign.pipeline.existing import VLLM as INSIDE_VLLM
from mmalign.pipeline.existing import WHOLE
from mmalign.pipeline.task import AGAIN, Task
from mmalign.plan import building, cards
from mmalign.plan.recipe import Evaluate
from mmalign.stages import explained, samples
from mmalign.stages.progress import Progress
from mmalign.training.engine import connect, device, world
from mmalign.training.events import Events
from mmalign.vlm.model import VLM


def run(task: Task) -> dict[str, Any]:
    stage = cast(Evaluate, task.stage)
    rank, ranks = world()
    if ranks > 1:
        connect()
    benches = {part.card: bench_of(task, f"bench.{part.card}") for part in stage.bench}
    for bench in benches.values():  # before any weight is loaded
        if isinstance(bench, FiledBenchmark):
            bench.ready()
    questions = {name: len(bench.questions()) if isinstance(bench, Benchmark) else 1 for name, bench in benches.items()}
    takes = {name: bench.takes() for name, bench in benches.items() if isinstance(bench, Probe)}
    progress = Progress(Events(task.folder, rank), sum(questions.values()), sum((questions | takes).values()))
    for name, bench in benches.items():
        if isinstance(bench, Benchmark):
            if not rank:
                _gather(bench, task.folder / f"{name}.jsonl")
            _look(bench, name, task.folder / f"{name}.jsonl")
    model, places = _model(task, stage, list(benches.values()))
    scores: dict[str, Score] = {}
    for name, bench in benches.items():
        scores[name] = measure(model, bench, task.folder / f"{name}.jsonl", stage.batch, stage.protocol, progress)
        progress.end(questions[name], takes.get(name))
        if not rank:
            _keep(task, model, bench, name, scores[name])
    account = [
        f"{name}: {note}" for name, score in scores.items() if score.counts.get("cut") for note in score.notes[-1:]
    ]
    return {
        "metrics": {name: score.metrics for name, score in scores.items()},
        "headlines": {name: score.headline for name, score in scores.items()},
        "account": account,
        "parts": places,
        "fit": model.vision.fit if isinstance(model, VLM) and model.vision else "",
    }


def _model(task: Task, stage: Evaluate, benches: Sequence[Benchmark | Probe]) -> tuple[VLM | VLLM, dict[str, str]]:
    """Who is asked, and where its parts lie."""
    if WHOLE in task.cards and task.cards[WHOLE].target == INSIDE_VLLM:
        vllm.check(benches)
        return building.build(task.cards[WHOLE]), {}
    vlm = build.vlm(task)
    build.cast_all(stage.precision, vlm)
    if {"vision", "llm"} <= task.cards.keys():
        vlm.untrained = partial(_untrained, task, stage)
    return vlm.to(device()).eval(), weights.places(task)


def _look(bench: Benchmark, name: str, answers: Path) -> None:
    """Look at every question and picture, write down what they are, and refuse pictures that cannot be read.

    Answers that are there already, but to what was something else then, are taken out: they are asked for again.
    """
    rank, ranks = world()
    seen, problems = look(bench, (rank, ranks))
    if ranks > 1:
        shares: list[Any] = [None] * ranks
        dist.all_gather_object(shares, (seen.pictures, problems))
        for pictures_, problems_ in shares[:rank] + shares[rank + 1 :]:
            seen.pictures.update(pictures_)
            problems += problems_
    refuse(sorted(problems), len(seen.pictures) + len(problems), name)
    if rank:
        return
    record = answers.with_name(f"{answers.stem}.asked.json")
    if record.exists():
        _forget(bench, answers, Asked.read(record, AGAIN).changed(seen))
    seen.write(record)


def _forget(bench: Benchmark, answers: Path, ids: Sequence[str]) -> None:
    """Take the answers to some questions out of a file."""
    texts = stored(bench, answers)
    if gone := texts.keys() & set(ids):
        logging.info("%s: %d answers were about other questions or pictures, and are asked again", answers, len(gone))
        files.write(answers, "".join(_line(key, text) for key, text in texts.items() if key not in gone))


def _keep(task: Task, model: VLM | VLLM, bench: Benchmark | Probe, name: str, score: Score) -> None:
    files.write_json(task.folder / f"{name}.json", asdict(score))
    if isinstance(bench, Probe):
        of_items(score.items).write(task.folder / f"{name}.asked.json")
    if isinstance(bench, Benchmark):
        answers = stored(bench, task.folder / f"{name}.jsonl")
        files.write_json(task.folder / f"{name}.samples.json", samples.of(bench, score, answers))
    if isinstance(model, VLM) and isinstance(bench, Benchmark) and not (task.folder / "pictures.json").exists():
        files.write_json(task.folder / "pictures.json", explained.asked(model, bench))
    if isinstance(model, VLM) and isinstance(bench, Alignment) and not (task.folder / "judged.json").exists():
        files.write_json(task.folder / "judged.json", explained.judged(model, bench, score))


def bench_of(task: Task, role: str) -> Benchmark | Probe:
    """The benchmark or probe of a role; one that names a data card is handed that data."""
    bench: Benchmark | Probe = building.build(task.cards[role], inner=cards.inside(role, task.cards))
    return bench


def measure(
    model: VLM | VLLM,
    bench: Benchmark | Probe,
    place: Path,
    batch: int,
    protocol: str = "official",
    progress: Progress | None = None,
) -> Score:
    """The score of one benchmark; answers already in the file are not asked for again.

    Several ranks share the questions, each image's on one rank; the first one has the score of all answers.
    """
    if isinstance(bench, Probe):
        assert isinstance(model, VLM), "vllm.check lets no probe through"
        return bench.measure(model)
    rank, ranks = world()
    if not rank:
        _gather(bench, place)  # what the ranks of a run that was killed had
    if ranks > 1:
        dist.barrier()
    texts = stored(bench, place)
    missing = [question for question in bench.questions() if question.id not in texts]
    own = [question for question in missing if _rank_of(question, ranks) == rank]
    if progress:
        progress.begin(len(texts) + len(missing), len(texts), len(own))
    with open(place if ranks == 1 else _of_rank(place, rank), "a", encoding="utf-8") as out:
        for question, text in model.answers(bench, own, batch):
            texts[question.id] = text
            out.write(_line(question.id, text))
            out.flush()
            if progress:
                progress.add()
    if ranks == 1:
        return _scored(bench, texts, place, protocol)
    dist.barrier()
    if rank:
        return Score({}, "")
    _gather(bench, place)
    return _scored(bench, stored(bench, place), place, protocol)


def _scored(bench: Benchmark, texts: dict[str, str], answers: Path, protocol: str) -> Score:
    """The score; for a split whose answers only a server has, the file it takes, and no metric.

    Answers that were cut at max_new_tokens are counted, and told in the last note.
    """
    try:
        result = score(bench, texts, protocol)
    except NoAnswersError as err:
        upload = answers.with_name(f"{answers.stem}-submission.{bench.submits}")
        bench.submission(texts, upload)
        result = Score({}, "", counts={"answered": len(texts)}, notes=[err.what, f"for its server: {upload}"])
    if cut := sum(isinstance(text, Cut) for text in texts.values()):
        result.counts["cut"] = cut
        result.notes.append(f"{cut} of {len(texts)} answers were cut at {bench.max_new_tokens} tokens (max_new_tokens)")
        logging.info("%s: %s", answers.stem, result.notes[-1])
    return result


def _rank_of(question: Question, ranks: int) -> int:
    return zlib.crc32(repr(question.id if question.image is None else question.image).encode()) % ranks


def _of_rank(answers: Path, rank: int) -> Path:
    return answers.with_suffix(f".rank{rank}.jsonl")


def _gather(bench: Benchmark, answers: Path) -> None:
    """Put the answers of all ranks into the one file; a kill on the way loses none and doubles none."""
    parts = sorted(answers.parent.glob(f"{answers.stem}.rank*.jsonl"))
    known = stored(bench, answers)
    fresh = {key: text for place in parts for key, text in stored(bench, place).items() if key not in known}
    if fresh:
        lines = "".join(_line(key, text) for key, text in fresh.items())
        files.write(answers, (answers.read_text(encoding="utf-8") if known else "") + lines)
    for place in parts:
        place.unlink()


def _line(key: str, text: str) -> str:
    cut = {"cut": True} if isinstance(text, Cut) else {}
    return json.dumps({"id": key, "text": text, **cut}, ensure_ascii=False) + "\n"


def _untrained(task: Task, stage: Evaluate) -> VLM:
    """The language model before the training stages: its card's weights, or those a `language` stage made."""
    trained = weights.places(replace(task, reads=_only(task, "llm")))
    llm = VLM(None, None, build.llm(task, trained, task.folder.parent))
    build.cast_all(stage.precision, llm)
    return llm.to(device()).eval()


def _only(task: Task, slot: str) -> list[tuple[str, Path]]:
    return [(name, folder) for name, folder in task.reads if name == slot]
