"""The arithmetic of a training stage, from its cards' facts: what its matrix products take. An estimate.

Letters: V vocabulary, D width of the language model.
"""

from collections.abc import Mapping
from typing import Any

from mmalign.io import document
from mmalign.plan.cards import Card
from mmalign.plan.estimate import Estimate
from mmalign.plan.graph import Node
from mmalign.plan.recipe import Train

PRODUCT = 2  # operations a weight and position: one product, one sum


def flops(node: Node, estimate: Estimate) -> float | None:
    """Floating-point operations of a training stage from its first step to its last, on all devices together; None
    where the facts do not say, and for other kinds of stage.

    What is counted are the products that the model and its language-model loss cannot do without: encoder, adapter,
    decoder layers with causal attention, the head at the text's positions; their gradients where they are needed; the
    decoder layers once more where activations are recomputed. Objectives, evaluations and padding come on top.
    """
    stage, cards = node.stage, node.cards
    if not isinstance(stage, Train) or "llm" not in cards or estimate.steps is None:
        return None
    sizes, facts = estimate.parameters, cards["llm"].facts
    if None in sizes.values() or not {"dim", "layers", "vocab"} <= facts.keys() or not estimate.tokens:
        return None
    visual, text = estimate.visual or 0, estimate.tokens - (estimate.visual or 0)
    learns = {part: part in stage.trains for part in ("vision", "adapter", "llm")}
    table = facts["dim"] * facts["vocab"]  # the embeddings are looked up; the head is a product
    layers = (sizes["llm"] or 0) - table * (1 if facts.get("tied") else 2)
    attention = facts["layers"] * estimate.tokens * facts["dim"]  # scores and their sums, of half the positions each

    recomputed = stage.engine.checkpointing is True  # under `auto` it is not known here
    # times forward: the gradient of what goes in costs as much again, that of the weights too
    weights = learns["llm"] and cards["llm"].args.get("lora") is None
    backward = 1 + weights if any(learns.values()) else 0
    decoder = PRODUCT * estimate.tokens * layers * (1 + backward + recomputed)
    decoder += PRODUCT * estimate.tokens * attention * (1 + 2 * bool(backward) + recomputed)
    head = PRODUCT * text * table * (1 + backward)
    seeing = PRODUCT * _patches(cards.get("vision")) * (sizes.get("vision") or 0) * (3 if learns["vision"] else 1)
    adapter = PRODUCT * visual * (sizes.get("adapter") or 0) * (3 if learns["adapter"] or learns["vision"] else 1)
    return float(estimate.steps * stage.batch * (decoder + head + seeing + adapter))


def _patches(vision: Card | None) -> int:
    """What an encoder reads of an image: the patches of its grid, at every scale."""
    if vision is None:
        return 0
    rows, columns = vision.facts.get("grid", (0, 0))
    return int(rows * columns * _tiles(vision.args))


def _tiles(args: Mapping[str, Any]) -> float:
    scales = args.get("scales", [1])
    return 1.0 if document.problem(scales, list[float]) else sum(round(scale) ** 2 for scale in scales)
