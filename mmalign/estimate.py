"""What a training stage will take, from its cards' facts: parameters, tokens, steps, memory and disk. Estimates.

Letters: C width of a patch, D width of the language model, P patches, Q visual tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mmalign.cards import Card
from mmalign.graph import Node
from mmalign.recipe import Label, Train

TEXT = 64  # tokens of text a sample, where the data's facts do not say
GIB = 1 << 30
# bytes a parameter: weights and gradients as DeepSpeed keeps them, and AdamW's fp32 weight and two moments
BYTES = {
    "bf16": {"weights": 2, "gradients": 4, "optimizer": 12},
    "fp32": {"weights": 4, "gradients": 4, "optimizer": 8},
}
SPREAD = {"weights": 3, "gradients": 2, "optimizer": 1}  # the ZeRO stage from which devices share it


@dataclass
class Estimate:
    """None: the facts do not say."""

    parameters: dict[str, int | None] = field(default_factory=dict)  # by part
    trained: int | None = None
    visual: int | None = None  # tokens an image becomes
    tokens: int | None = None  # a sample
    steps: int | None = None
    memory: dict[str, dict[str, float]] = field(default_factory=dict)  # "ZeRO n": {weights, ..., total} GiB a device
    checkpoint: float | None = None  # GiB on disk while it runs
    store: float | None = None  # GiB of a label store


def of(node: Node, devices: int = 1) -> Estimate | None:
    """The estimate of a training or labelling stage; None for other kinds."""
    if isinstance(node.stage, Label):
        return _label(node.stage, node.cards)
    return _train(node.stage, node.cards, devices) if isinstance(node.stage, Train) else None


def _label(stage: Label, cards: Mapping[str, Card]) -> Estimate:
    rows, grid = cards["data"].facts.get("rows"), _fact(cards, "labels.encoder", "grid")
    size = None if rows is None or grid is None else rows * grid[0] * grid[1] * stage.keep * 4 / GIB
    return Estimate(store=size)


def _train(stage: Train, cards: Mapping[str, Card], devices: int) -> Estimate:
    found = Estimate()
    grid, patch, dim = _fact(cards, "vision", "grid"), _fact(cards, "vision", "dim"), _fact(cards, "llm", "dim")
    found.visual = visual_tokens(cards.get("adapter"), grid)
    found.parameters = {
        "vision": _fact(cards, "vision", "parameters"),
        "adapter": adapter_parameters(cards.get("adapter"), patch, dim),
        "llm": _fact(cards, "llm", "parameters"),
    }
    sizes = [found.parameters[part] for part in stage.trains]
    found.trained = None if None in sizes else sum(size for size in sizes if size)
    text = cards["data"].facts.get("tokens", TEXT)
    found.tokens = None if found.visual is None else min(stage.max_length, found.visual + text)
    rows = cards["data"].facts.get("rows")
    found.steps = stage.steps or (math.ceil(stage.epochs * rows / stage.batch) if rows else None)
    if None not in found.parameters.values() and found.tokens and found.trained is not None:
        found.memory = _memory(stage, cards, found, devices)
        found.checkpoint = found.trained * 12 / GIB  # fp32 weight and two moments
    return found


def _fact(cards: Mapping[str, Card], role: str, key: str) -> Any:
    return cards[role].facts.get(key) if role in cards else None


def visual_tokens(adapter: Card | None, grid: Any) -> int | None:
    """Q from the adapter's facts: the grid's patches, fewer by a factor, or a number of its own."""
    if adapter is None or grid is None:
        return None
    if adapter.facts.get("keeps_grid"):
        return int(grid[0] * grid[1])
    if (factor := adapter.args.get(adapter.facts.get("divides", ""))) is not None:
        return int((grid[0] // factor) * (grid[1] // factor))
    found = adapter.args.get(adapter.facts.get("tokens", ""))
    return None if found is None else int(found)


def adapter_parameters(adapter: Card | None, patch: int | None, dim: int | None) -> int | None:
    """Of an MLP of `depth` layers; others do not say."""
    if adapter is None or patch is None or dim is None:
        return None
    if adapter.facts.get("same_width"):
        return 0
    depth = adapter.args.get("depth")
    if not adapter.target.endswith(".MLP") or not isinstance(depth, int):
        return None
    return patch * dim + dim + (depth - 1) * (dim * dim + dim)


def _memory(stage: Train, cards: Mapping[str, Card], found: Estimate, devices: int) -> dict[str, dict[str, float]]:
    every = sum(size for size in found.parameters.values() if size)
    count = {"weights": every, "gradients": found.trained or 0, "optimizer": found.trained or 0}
    active = activations(stage, cards["llm"], found.tokens or 0) / GIB
    table = {}
    for zero in range(4):
        share = {
            part: count[part] * size / GIB / (devices if zero >= SPREAD[part] else 1)
            for part, size in BYTES[stage.precision].items()
        }
        table[f"ZeRO {zero}"] = {**share, "activations": active, "total": sum(share.values()) + active}
    return table


def activations(stage: Train, llm: Card, tokens: int) -> float:
    """Bytes of one pass: what a decoder layer keeps for its backward pass, and the logits of the text.

    A layer keeps its norms' inputs in fp32 and, in the model's precision, queries, keys, values, attention's output
    and the four vectors of a gated MLP; with a frozen language model its linear layers keep nothing, with
    checkpointing a layer keeps its input alone.
    """
    size = BYTES[stage.precision]["weights"]
    facts = llm.facts
    dim, inner, layers = facts.get("dim", 0), facts.get("inner", 4 * facts.get("dim", 0)), facts.get("layers", 0)
    keys = dim * facts.get("kv_heads", 1) // max(1, facts.get("heads", 1))
    layer = 8 * dim + size * ((5 if "llm" in stage.trains else 2) * dim + 2 * keys + 4 * inner)
    kept = layers * size * dim + layer if stage.engine.checkpointing else layers * layer
    rows = stage.micro_batch * min(TEXT, tokens)
    return float(stage.micro_batch * tokens * kept + rows * facts.get("vocab", 0) * (size + 8))


def as_json(found: Estimate) -> dict[str, Any]:
    return asdict(found)


def lines(found: Estimate, stage: Train | Label) -> list[str]:
    """For the reader of a plan."""
    if isinstance(stage, Label):
        return [] if found.store is None else [f"label store {found.store:.2f} GiB"]
    parts = ", ".join(f"{part} {_count(size)}" for part, size in found.parameters.items())
    text = [f"parameters: {parts}; trained {_count(found.trained)}"]
    if found.tokens and found.steps:
        visual = f"{found.visual} visual tokens an image"
        text.append(f"{visual}, about {found.tokens} tokens a sample, {found.steps:,} steps")
    if found.memory:
        totals = ", ".join(f"{name} {part['total']:.1f}" for name, part in found.memory.items())
        text.append(f"memory a device, about: {totals} GiB; checkpoint {found.checkpoint:.1f} GiB")
    return text


def _count(number: int | None) -> str:
    if number is None:
        return "?"
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
