"""What a stage that ran out of memory could change, and how much less it would take then by the estimate."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from mmalign.plan import estimate
from mmalign.plan.cards import Card
from mmalign.plan.recipe import Contrast, EngineSettings, Evaluate, Label, Language, Stage, Train

SHOWN = 4  # proposals, those first that save most


def told(stage: Stage, cards: Mapping[str, Card], devices: int = 1) -> str:
    """The settings that save most, each with the estimate for a device before and behind it; where the cards' facts do
    not say enough for that, without numbers. Empty for a stage that has none to change."""
    if not isinstance(stage, Train):
        return ", or ".join(_others(stage))
    before = _total(stage, cards, devices)
    less = [(_total(other, cards, devices), what) for what, other in _changed(stage, devices)]
    if before is None:
        return ", or ".join([what for _, what in less][:SHOWN])
    saving = sorted((total, what) for total, what in less if total is not None and total < 0.99 * before)
    size = estimate.size_of
    return ", or ".join(f"{what} ({size(before)} -> {size(total)} a device)" for total, what in saving[:SHOWN])


def _total(stage: Train, cards: Mapping[str, Card], devices: int) -> float | None:
    """GiB a device; None: the facts do not say."""
    known = estimate.of_stage(stage, cards, devices)
    return known.memory[f"ZeRO {stage.engine.zero}"]["total"] if known and known.memory else None


def _changed(stage: Train, devices: int) -> Iterator[tuple[str, Train]]:
    """(a change, the stage behind it), one setting at a time; what changes no result first."""
    engine = stage.engine

    def running(what: str, **settings: object) -> tuple[str, Train]:
        return what, replace(stage, engine=replace(engine, **settings))  # type: ignore[arg-type]

    if engine.checkpointing is not True:
        yield running("engine.checkpointing: true", checkpointing=True)
    for zero in range(engine.zero + 1, 4) if devices > 1 else ():
        yield running(f"engine.zero: {engine.zero} -> {zero}", zero=zero)
    if not engine.offload and engine.zero:
        yield running("engine.offload: true", offload=True)
    if stage.micro_batch > 1:
        fewer = next(size for size in range(stage.micro_batch // 2, 0, -1) if stage.micro_batch % size == 0)
        yield f"micro_batch: {stage.micro_batch} -> {fewer}", replace(stage, micro_batch=fewer)
    if stage.precision == "fp32":
        yield "precision: fp32 -> bf16", replace(stage, precision="bf16")


def _others(stage: Stage) -> Iterator[str]:
    engine = getattr(stage, "engine", None)
    if isinstance(engine, EngineSettings) and isinstance(stage, Language) and engine.checkpointing is not True:
        yield "engine.checkpointing: true"
    if isinstance(stage, (Label, Evaluate, Language, Contrast)) and stage.batch > 1:
        yield f"batch: {stage.batch} -> {stage.batch // 2}"


def readers(stage: Stage) -> str:
    """Of memory that is not the device's: the setting of the threads that read ahead; empty where there are none."""
    engine = getattr(stage, "engine", None)
    return f"engine.workers: {engine.workers} -> 0" if isinstance(engine, EngineSettings) and engine.workers else ""
