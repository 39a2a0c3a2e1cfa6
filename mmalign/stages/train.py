"""The training stage: parts, data and objectives, under DeepSpeed, to weights that other stages read."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from mmalign.data import MARK, Data, Record, cache, order
from mmalign.errors import CheckError, DataError
from mmalign.integrations.checkpoint import Checkpoint
from mmalign.llms.chat import Chat
from mmalign.objectives import Objective
from mmalign.pipeline import build, weights
from mmalign.pipeline.build import DTYPES
from mmalign.pipeline.task import Task
from mmalign.plan import building, cards
from mmalign.plan.objectives import unmet
from mmalign.plan.recipe import Train
from mmalign.stages import compiling, evaluations, recomputing, watching, whole
from mmalign.stages.evaluations import Evaluations, Sample
from mmalign.stages.supply import Supply, supply
from mmalign.stages.whole import WholeBatch, WholeCollate, WholeSupervised
from mmalign.training import account, optim
from mmalign.training.batches import BadSamples, Batches, Collate
from mmalign.training.engine import Engine, connect, device, world
from mmalign.training.events import Events
from mmalign.training.loop import Fit, Term
from mmalign.training.premise import Premise
from mmalign.vision import Vision
from mmalign.vlm.batch import Batch
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import Supervised, counts, keep_reached

LENGTHS = 2  # raise it when rows become longer or shorter; 2: a row's own system turn, answers in pieces
TEXTS = 500  # samples whose words a lens is fitted on


def run(task: Task) -> dict[str, Any]:
    """Set-up, then fit."""
    stage = cast(Train, task.stage)
    connect()
    rank, ranks = world()
    events = Events(task.folder, rank)

    compiling.check(stage)
    asked = evaluations.samples(task, stage)
    if "vlm" in task.cards:
        whole.known(task)
    vlm, data = build.vlm(task), build.data(task.cards["data"])
    model: Supervised
    collate: Collate | WholeCollate
    if isinstance(vlm, Checkpoint):
        model, collate = whole.model(task, stage, vlm, data, events), whole.collate(task, stage, vlm, data)
    else:
        labels = supply(task, stage, vlm, data, events)
        model = _supervised(task, stage, vlm, labels, ranks > 1, partial(_texts, data))
        collate = _collate(task, stage, vlm, data, labels, model.encoders)
    compiling.apply(stage, vlm, events)
    recomputing.decide(task, stage, _recomputing(stage, vlm), events)
    by_length = _by_length(task, stage, collate) if stage.group_by_length and isinstance(collate, Collate) else None
    batches = Batches(
        collate, len(data), stage.batch, stage.micro_batch, task.seed, rank, ranks, stage.engine.workers, by_length
    )
    _probe(model, collate)
    _table(model, events)
    steps = stage.steps or batches.steps(stage.epochs)
    premise = None
    if isinstance(collate, Collate):
        premise = watching.premise(task, stage, model, collate, steps, partial(_texts, data), events)
    scores = _evaluations(task, stage, vlm, asked, steps, events) if asked else None
    engine = _engine(stage, model, batches)

    watchers = [watcher for watcher in (premise, scores) if watcher]
    fit = _fit(task, stage, engine, batches, steps, model, events, watchers)
    last = fit.run()
    for watcher in watchers:
        events.say(watcher.cost())

    told = {} if rank else _account(task, stage, collate, int(last["step"]), premise)
    if told:
        told |= {"account": [*fit.account(), *told["account"]], "warnings": [*told["warnings"], *fit.warnings()]}
    for line in [*told.get("account", []), *told.get("warnings", [])]:
        events.say(line)
    return {
        "metrics": last,
        "parts": weights.places(task) | _save(task, stage, engine, model),
        "fit": vlm.vision.fit if vlm.vision else "",
        **told,
    }


def _account(
    task: Task, stage: Train, collate: Collate | WholeCollate, steps: int, premise: Premise | None
) -> dict[str, Any]:
    """What was left out and cut, and what is to be warned of."""
    collate.bad.gather()
    told = account.of(task.folder, steps * stage.batch, stage.max_length, collate.bad.all(), collate.data.left_out)
    warning, remark = (premise.warning(), premise.remark()) if premise else (None, None)
    said = [*filter(None, [warning])]
    warned, remarked = (said, []) if premise and premise.taught else ([], said)  # nobody is taught by a baseline
    lines = [*told["account"], *remarked, *filter(None, [remark])]
    return {**told, "warnings": [*warned, *told["warnings"]], "account": lines}


def _supervised(
    task: Task, stage: Train, vlm: VLM, labels: Supply, distributed: bool, texts: Callable[[], list[str]] = list
) -> Supervised:
    named = {name: task.cards[f"objectives.{name}"] for name in stage.objectives}
    objectives: dict[str, Objective] = building.build_all(named, cards.inside("objectives", task.cards))
    _fits(objectives, vlm, labels)
    vlm.llm.attend(stage.engine.attention)
    model = Supervised(vlm, objectives, labels.in_pass)
    build.cast_all(stage.precision, model)
    model.to(device()).prepare(distributed, texts)
    model.freeze_all_but(stage.trains)
    return model


def _recomputing(stage: Train, vlm: VLM | Checkpoint) -> list[recomputing.Recomputes]:
    """The parts through which gradients pass."""
    if isinstance(vlm, Checkpoint):
        return [vlm]
    return [vlm.llm, *([vlm.vision] if "vision" in stage.trains and vlm.vision is not None else [])]


def _texts(data: Data) -> list[str]:
    """What is said in TEXTS samples from all over the data, without image marks."""
    texts = []
    for number in range(0, len(data), max(1, -(-len(data) // TEXTS))):
        with suppress(DataError):  # the loop below says so when it comes to it
            texts += [turn.text.replace(MARK, "").strip() for turn in data[number].turns]
    Random(0).shuffle(texts)  # a lens takes the first of them, and data is often sorted by where it is from
    return texts


def _by_length(task: Task, stage: Train, collate: Collate) -> Callable[[int], Any]:
    """The order of every epoch; the rows' lengths are measured once and kept by what they depend on."""
    chat, rows = collate.chat, len(collate.data)

    def measured() -> Any:
        def tokens(record: Record) -> int:
            ids = chat.encode(record.turns, [collate.tokens] * len(record.images)).ids
            return min(stage.max_length, len(ids))

        return np.stack(order.lengths(collate.data, tokens, workers=stage.engine.workers))

    about = [
        LENGTHS,
        task.what["cards"]["data"],
        chat.checkpoint,
        chat.template,
        collate.tokens,
        stage.max_length,
        rows,
    ]
    length_N, kind_N = cache.array("lengths", hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32], measured)

    def of_epoch(epoch: int) -> Any:
        seed, start = [task.seed, epoch], epoch * rows
        if stage.group_by_length == "step":
            return order.sorted_steps(length_N, stage.batch, seed, kind_N, start)
        return order.grouped(length_N, stage.micro_batch, stage.batch, seed, kind_N, start)

    return of_epoch


def _evaluations(
    task: Task, stage: Train, vlm: VLM, asked: Sequence[Sample], steps: int, events: Events
) -> Evaluations:
    scores = Evaluations(vlm, asked, task.folder / "evaluations.jsonl", stage.evaluate_every, steps, events)
    scores.begin()
    return scores


def _fits(objectives: dict[str, Objective], vlm: VLM, labels: Supply) -> None:
    """What `check` knows from facts; parts of other packages may have none."""
    for name, objective in objectives.items():
        adapter, grid, some = type(vlm.adapter).__name__, vlm.grid is not None, labels.in_pass is not None
        for what, fix in unmet(name, objective.needs, objective.per_patch, some, grid, adapter):
            raise CheckError(what, at=f"objectives.{name}", fix=fix)


def _collate(
    task: Task, stage: Train, vlm: VLM, data: Data, labels: Supply, encoders: Sequence[Vision] = ()
) -> Collate:
    own = vlm.llm.chat
    assert vlm.adapter is not None
    return Collate(
        data,
        own if stage.template is None else Chat(own.checkpoint, stage.template),
        vlm.vision,
        vlm.tokens,
        stage.max_length,
        BadSamples.of(int(stage.max_bad * len(data)), task.folder),
        store=labels.store,
        source=labels.in_pass.source if labels.in_pass else None,
        grid=vlm.adapter.grid if vlm.grid or labels.in_pass else None,
        labeller=labels.in_pass.encoder if labels.in_pass else None,
        encoders=encoders,
        pack=stage.pack,
    )


def _probe(model: Supervised, collate: Collate | WholeCollate) -> None:
    """One forward pass on one sample: refuse what cannot learn, freeze what no loss reaches."""
    batch: Batch | WholeBatch | None = None
    for number in range(min(watching.LOOKED, len(collate.data))):
        batch = collate.batch([number], seed=0)
        if batch.images:
            break
    assert batch is not None
    model.to(device())
    terms, _ = model(batch.to(device()))
    keep_reached(model, terms)


def _table(model: Supervised, events: Events) -> None:
    """What trains, before anything does."""
    for part, (all_, trained) in counts(model).items():
        state = "trains" if trained == all_ else f"trains {trained:,} of them" if trained else "frozen"
        events.say(f"{part:<10} {all_:>14,} parameters  {state}")


def _engine(stage: Train, model: Supervised, batches: Batches) -> Engine:
    known = model.names if isinstance(model, WholeSupervised) else None
    groups = optim.groups(model.named_parameters(), stage.optim, known)
    return Engine(model, groups, stage.optim, stage.engine, stage.precision, stage.micro_batch, batches.passes)


def _fit(
    task: Task, stage: Train, engine: Engine, batches: Batches, steps: int, model: Supervised, events: Events,
    watchers: Sequence[Callable[[int], bool]],
) -> Fit:  # fmt: skip
    units = {name: cast(Objective, objective).unit for name, objective in model.objectives.items()}
    return Fit(
        engine,
        lambda start: batches.run(start, steps),
        steps,
        stage.optim,
        {name: Term(setting.weight, units[name], setting.warmup) for name, setting in stage.objectives.items()},
        task.folder,
        events,
        stage.engine.save_every,
        stage.log_every,
        watchers=watchers,
        skip=stage.on_nan == "skip",
        samples=batches.samples,
        keep=stage.engine.keep,
    )


def _save(task: Task, stage: Train, engine: Engine, model: Supervised) -> dict[str, str]:
    """Trained parts and what objectives own, each in its own place; {part: place relative to the runs folder}."""
    rank, ranks = world()
    if isinstance(model, WholeSupervised):
        return whole.save(task, stage, engine, model)
    folder = task.folder / "weights"
    places: dict[str, str] = {}
    for name in [*stage.trains, "objectives"]:
        state = engine.weights(name if name == "objectives" else f"vlm.{name}")
        if state and not rank:
            _write(name, state, folder, model.vlm, DTYPES[stage.precision])
        if state and name != "objectives":
            places[name] = f"{task.folder.name}/weights/{_place(name)}"
    if ranks > 1:
        dist.barrier()
    return places


def _place(name: str) -> str:
    return name if name in ("vision", "llm") else f"{name}.safetensors"


def _write(name: str, state: dict[str, Tensor], folder: Path, vlm: VLM, dtype: torch.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if name in ("vision", "llm"):
        getattr(vlm, name).save(folder / name, build.in_precision(state, dtype))
    else:
        save_file({k: v.contiguous() for k, v in state.items()}, folder / _place(name))
