"""What a training stage will take, from its cards' facts: parameters, tokens, steps, memory and disk. Estimates.

Letters: C width of a patch, D width of the language model, P patches, Q visual tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mmalign.io import document
from mmalign.plan import facts
from mmalign.plan.cards import Card
from mmalign.plan.graph import Node
from mmalign.plan.recipe import Label, Language, Stage, Train

TEXT = 64  # tokens of text a sample, where the data's facts do not say
GIB = 1 << 30
# bytes a parameter: weights and gradients as DeepSpeed keeps them, and AdamW's fp32 weight and two moments
BYTES = {
    "bf16": {"weights": 2, "gradients": 4, "optimizer": 12},
    "fp32": {"weights": 4, "gradients": 4, "optimizer": 8},
}
SPREAD = {"weights": 3, "gradients": 2, "optimizer": 1}  # the ZeRO stage from which devices share it
OFFLOADED = {"weights": 3, "optimizer": 1}  # and from which `offload` keeps it in CPU memory
ROOM = 0.9  # of a device's memory for all that; the rest is CUDA's own, its buffers and what lies between tensors
KEPT = 34  # bytes of 16-bit activations a patch, width and layer (arXiv 2205.05198, eq. 1, attention's own left out)


@dataclass
class Estimate:
    """None: the facts do not say."""

    parameters: dict[str, int | None] = field(default_factory=dict)  # by part
    trained: int | None = None
    visual: int | None = None  # tokens an image becomes
    tokens: int | None = None  # a sample
    steps: int | None = None
    memory: dict[str, dict[str, float]] = field(default_factory=dict)  # "ZeRO n": {weights, ..., total} GiB a device
    # GiB of a device's memory from which `engine.checkpointing: auto` keeps the activations; None: it is not auto
    keeps_from: float | None = None
    checkpoint: float | None = None  # GiB on disk
    kept: int | None = None  # checkpoints; one more is there while it is written
    store: float | None = None  # GiB of a label store


def of(node: Node, devices: int = 1) -> Estimate | None:
    """The estimate of a training or labelling stage; None for other kinds."""
    return of_stage(node.stage, node.cards, devices)


def of_stage(stage: Stage, cards: Mapping[str, Card], devices: int = 1) -> Estimate | None:
    """The same, of a stage by its settings and cards."""
    if isinstance(stage, Label):
        return _label(stage, cards)
    return _train(stage, cards, devices) if isinstance(stage, Train) else None


def _label(stage: Label, cards: Mapping[str, Card]) -> Estimate:
    rows, grid = cards["data"].facts.get("rows"), _fact(cards, "labels.encoder", "grid")
    size = None if rows is None or grid is None else rows * grid[0] * grid[1] * stage.keep * 4 / GIB
    return Estimate(store=size)


def _train(stage: Train, cards: Mapping[str, Card], devices: int) -> Estimate:
    estimate = Estimate(kept=stage.engine.keep)
    grid, patch, dim = _fact(cards, "vision", "grid"), _fact(cards, "vision", "dim"), _fact(cards, "llm", "dim")
    estimate.visual = visual_tokens(cards.get("adapter"), grid)
    estimate.parameters = {
        "vision": _fact(cards, "vision", "parameters"),
        "adapter": adapter_parameters(cards.get("adapter"), patch, dim),
        "llm": _fact(cards, "llm", "parameters"),
    }
    if "vlm" in cards:
        estimate.parameters = {"vlm": _fact(cards, "vlm", "parameters")}
    lora = cards["llm"].args.get("lora") if "llm" in cards else None
    learned = estimate.parameters if lora is None else estimate.parameters | {"llm": lora_parameters(cards["llm"])}
    if frozen := cards["vision"].args.get("frozen") if "vision" in cards else None:
        learned = learned | {"vision": _above(cards["vision"], frozen)}
    sizes = [learned.get(part) for part in stage.trains]
    estimate.trained = None if None in sizes else sum(size for size in sizes if size)
    text = cards["data"].facts.get("tokens", TEXT)
    estimate.tokens = None if estimate.visual is None else min(stage.max_length, estimate.visual + text)
    rows = cards["data"].facts.get("rows")
    estimate.steps = stage.steps or (math.ceil(stage.epochs * rows / stage.batch) if rows else None)
    if None not in estimate.parameters.values() and estimate.tokens and estimate.trained is not None:
        estimate.memory = _memory(stage, cards, estimate, devices)
        if stage.engine.checkpointing == "auto":
            estimate.keeps_from = estimate.memory[f"ZeRO {stage.engine.zero}"]["total"] / ROOM
    if estimate.trained is not None:
        estimate.checkpoint = estimate.trained * 12 / GIB  # fp32 weight and two moments
    return estimate


def recomputing(
    stage: Train | Language, cards: Mapping[str, Card], devices: int, memory: float | None
) -> tuple[bool, str]:
    """What `engine.checkpointing` comes to, and why, in a line. memory: GiB of the smallest device; None: no GPU."""
    if stage.engine.checkpointing != "auto":
        return stage.engine.checkpointing, f"checkpointing: {str(stage.engine.checkpointing).lower()}"
    if memory is None:
        return False, "no GPU whose memory they could fill"
    kept, again = (_total(stage, cards, devices, how) for how in (False, True))
    if kept is None or again is None:
        return (
            False,
            "the cards do not say how much memory the stage takes; checkpointing: true where it is too much",
        )
    room = f"{size_of(ROOM * memory)} of {size_of(memory)} a device"
    if kept <= ROOM * memory:
        return False, f"with them the stage takes about {size_of(kept)}, and there are {room}"
    less = f"with them the stage takes about {size_of(kept)}, without {size_of(again)}, and there are {room}"
    return True, less + (": still too little by this estimate" if again > ROOM * memory else "")


def _total(stage: Train | Language, cards: Mapping[str, Card], devices: int, recomputed: bool) -> float | None:
    """GiB a device at the stage's own ZeRO stage."""
    engine = replace(stage.engine, checkpointing=recomputed)
    if isinstance(stage, Language):
        estimate = _language(replace(stage, engine=engine), cards, devices)
    else:
        estimate = _train(replace(stage, engine=engine), cards, devices)
    return estimate.memory[f"ZeRO {engine.zero}"]["total"] if estimate.memory else None


def _language(stage: Language, cards: Mapping[str, Card], devices: int) -> Estimate:
    """As of a training stage without pictures, each device's samples in one pass."""
    size, text = cards["llm"].facts.get("parameters"), cards["data"].facts.get("tokens", TEXT)
    estimate = Estimate({"llm": size}, trained=size, visual=0, tokens=min(stage.max_length, text), steps=stage.steps)
    if size is not None:
        alike = Train(trains=["llm"], precision=stage.precision, engine=stage.engine)
        alike.micro_batch = max(1, stage.batch // devices)
        estimate.memory = _memory(alike, cards, estimate, devices)
    return estimate


def _fact(cards: Mapping[str, Card], role: str, key: str) -> Any:
    return cards[role].facts.get(key) if role in cards else None


def visual_tokens(adapter: Card | None, grid: Any) -> int | None:
    """Q from the adapter's facts: the grid's patches, fewer by a factor, or a number of its own."""
    if adapter is None or grid is None:
        return None
    if facts.of(adapter).get("keeps_grid"):
        return int(grid[0] * grid[1])
    if (factor := _argument(adapter, "divides")) is not None:
        return int((grid[0] // factor) * (grid[1] // factor))
    return _argument(adapter, "tokens")


def _argument(adapter: Card, fact: str) -> int | None:
    """The argument that a fact names; None where it is no number to count with, which `check` says."""
    value = adapter.args.get(adapter.facts.get(fact, ""))
    return None if value is None or document.problem(value, document.Side) else int(value)


def adapter_parameters(adapter: Card | None, patch: int | None, dim: int | None) -> int | None:
    """As the card's facts count them. `linears: depth` is an MLP of as many linear layers as its argument depth says;
    `parameters: {of: its args, CD: 2, D: 1, '1': 3}` are 2 CD + D + 3."""
    if adapter is None or patch is None or dim is None:
        return None
    if adapter.facts.get("same_width"):
        return 0
    if (depth := _argument(adapter, "linears")) is not None:
        return int(patch * dim + dim + (depth - 1) * (dim * dim + dim))
    counted = dict(adapter.facts.get("parameters", {}))
    if counted.pop("of", None) != adapter.args:  # others than the card's own
        return None
    sizes = {"1": 1, "C": patch, "D": dim}
    return int(sum(times * math.prod(sizes[letter] for letter in term) for term, times in counted.items()))


def _above(vision: Card, frozen: Any) -> int | None:
    """Parameters of an encoder above so many layers: as large a share of all as layers."""
    size, layers = vision.facts.get("parameters"), vision.facts.get("layers")
    if not (size and layers) or document.problem(frozen, document.Count) or frozen > layers:
        return None
    return int(size * (layers - frozen) / layers)


def lora_parameters(llm: Card) -> int | None:
    """Of LoRA's updates: rank x (inputs + outputs) of every target layer."""
    facts, targets = llm.facts, llm.args.get("lora_targets", "all-linear")
    if not {"dim", "layers", "heads", "kv_heads", "inner"} <= facts.keys():
        return None
    dim, inner, size = facts["dim"], facts["inner"], facts.get("head_dim", facts["dim"] // facts["heads"])
    wide, keys = facts["heads"] * size, facts["kv_heads"] * size
    first, gates = {"q_proj": wide, "k_proj": keys, "v_proj": keys}, {"gate_proj": inner, "up_proj": inner}
    last = {"o_proj": wide, "down_proj": inner}
    if facts.get("family") == "phi3":
        first, gates = {"qkv_proj": wide + 2 * keys}, {"gate_up_proj": 2 * inner}
    if facts.get("family") == "phi":
        gates, last = {"fc1": inner}, {"dense": wide, "fc2": inner}
    ends = {name: dim + out for name, out in {**first, **gates, **last}.items()}
    chosen = ends if targets == "all-linear" else targets
    if isinstance(chosen, str) or not set(chosen) <= ends.keys():
        return None
    return int(llm.args["lora"] * facts["layers"] * sum(ends[name] for name in chosen))


def _memory(stage: Train, cards: Mapping[str, Card], estimate: Estimate, devices: int) -> dict[str, dict[str, float]]:
    every = sum(size for size in estimate.parameters.values() if size)
    if bits := cards["llm"].args.get("bits"):  # as many parameters as would take the same memory
        every -= (estimate.parameters["llm"] or 0) * (1 - bits / 8 / BYTES[stage.precision]["weights"])
    count = {"weights": every, "gradients": estimate.trained or 0, "optimizer": estimate.trained or 0}
    active = (
        activations(stage, cards["llm"], estimate.tokens or 0, estimate.visual or 0)
        + (seeing(stage, cards["vision"]) if "vision" in cards else 0)
    ) / GIB
    table = {}
    for zero in range(4):
        share = {
            part: count[part] * size / GIB / (devices if zero >= SPREAD[part] else 1)
            for part, size in BYTES[stage.precision].items()
        }
        if stage.engine.offload:
            share |= {part: 0.0 for part, least in OFFLOADED.items() if zero >= least}
        table[f"ZeRO {zero}"] = {**share, "activations": active, "total": sum(share.values()) + active}
    return table


def activations(stage: Train, llm: Card, tokens: int, visual: int) -> float:
    """Bytes of one pass: what a decoder layer keeps for its backward pass, and the logits of the text.

    tokens: of a sample; visual: how many of them have no logits.

    A layer keeps its norms' inputs in fp32 and, in the model's precision, queries, keys, values, attention's output
    and the four vectors of a gated MLP; with a frozen language model its linear layers keep nothing, with
    checkpointing a layer keeps its input alone. Under `auto` it keeps all.
    """
    size = BYTES[stage.precision]["weights"]
    facts = llm.facts
    dim, inner, layers = facts.get("dim", 0), facts.get("inner", 4 * facts.get("dim", 0)), facts.get("layers", 0)
    keys = dim * facts.get("kv_heads", 1) // max(1, facts.get("heads", 1))
    layer = 8 * dim + size * ((5 if "llm" in stage.trains else 2) * dim + 2 * keys + 4 * inner)
    kept = layers * size * dim + layer if stage.engine.checkpointing is True else layers * layer
    text = stage.micro_batch * max(0, tokens - visual)
    return float(stage.micro_batch * tokens * kept + text * facts.get("vocab", 0) * (size + 8))


def as_json(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)


def lines(estimate: Estimate) -> list[str]:
    """For the reader of a plan; `?` where the cards' facts do not say."""
    if not estimate.parameters:
        return [f"label store: {size_of(estimate.store)}"]
    parts = ", ".join(f"{part} {_count(size)}" for part, size in estimate.parameters.items())
    totals = ", ".join(f"{name} {size_of(part['total'])}" for name, part in estimate.memory.items()) or "?"
    again = f"activations are recomputed on GPUs of less than {size_of(estimate.keeps_from)}   (checkpointing: auto)"
    kept = estimate.kept or 0
    count = {1: "two", 2: "three"}.get(kept, f"{kept + 1:,}")
    return [
        f"parameters: {parts}; trained {_count(estimate.trained)}",
        f"tokens a sample: about {_count(estimate.tokens)}, {_count(estimate.visual)} of them visual; "
        f"steps: {'?' if estimate.steps is None else f'{estimate.steps:,}'}",
        f"memory a device: about {totals}; checkpoints: up to {count} of {size_of(estimate.checkpoint)}",
        *[again] * (estimate.keeps_from is not None),
    ]


def size_of(gib: float | None) -> str:
    """For the reader; None: not known."""
    if gib is None:
        return "?"
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.1f} MiB"


def seeing(stage: Train, vision: Card) -> float:
    """Bytes of what a trained encoder keeps of one pass for its backward pass; a frozen one keeps nothing."""
    if "vision" not in stage.trains:
        return 0.0
    facts = vision.facts
    rows, columns = facts.get("grid", (0, 0))
    each = KEPT * BYTES[stage.precision]["weights"] / 2
    return float(each * stage.micro_batch * rows * columns * facts.get("dim", 0) * facts.get("layers", 0))


def _count(number: int | None) -> str:
    if number is None:
        return "?"
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
