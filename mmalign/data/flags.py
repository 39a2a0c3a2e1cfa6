"""How much a turn is trained, by the flags in people's data: each spelling that is known counts, none is guessed.

weight 0, 0.5, 1           OpenAI's and Mistral's fine-tuning files
loss_weight, loss_scale    LLaMA-Factory, ms-swift
loss, loss_mask            ms-swift, xtuner: true or false, 0 to 1
train, train_on_turn       axolotl; trainable: tinker
masked, mask true          torchtune: not trained
"""

import math
from collections.abc import Mapping
from typing import Any

from mmalign.data.reasons import Unusable

WEIGHTS = ("weight", "loss_weight", "loss_scale")
TRAINED = ("loss", "loss_mask", "train", "train_on_turn", "trainable")
MASKED = ("masked", "mask")  # the other way round
KEYS = frozenset((*WEIGHTS, *TRAINED, *MASKED))
FIX = "weight: 0 for a turn that is not trained, 1 for one that is, or between"


def weight(turn: Mapping[str, Any]) -> float | None:
    """How much predicting a turn's tokens counts, 0: not at all; None where no flag says so.

    Unusable where a flag is neither a number nor true or false, or two of them contradict each other.
    """
    flags = {key: turn[key] for key in turn.keys() & KEYS if turn[key] is not None}
    if not flags:
        return None
    weights = {key: _weight(key, flags[key]) for key in sorted(flags)}
    exact = {value for key, value in weights.items() if not _says_only_whether(key, flags[key])}
    if len(exact) > 1 or len({value > 0 for value in weights.values()}) > 1:
        said = ", ".join(f"{key}: {flags[key]!r}" for key in weights)
        raise Unusable("flags", f"a turn's flags contradict each other ({said})", fix=FIX)
    return next(iter(exact), next(iter(weights.values())))


def _weight(key: str, value: Any) -> float:
    """The weight that one flag gives."""
    number = isinstance(value, (int, float)) and math.isfinite(value)
    if key in MASKED and isinstance(value, bool):
        return float(not value)
    if key == "masked" and number and value in (0, 1):
        return 1.0 - float(value)
    if key not in MASKED and number and 0 <= value <= (math.inf if key in WEIGHTS else 1):
        return float(value)
    said = "does not say which way round it is" if key == "mask" and number else "is no such flag"
    raise Unusable("flags", f"a turn's {key}: {str(value)[:40]!r} {said}", fix=FIX)


def _says_only_whether(key: str, value: Any) -> bool:
    """Whether a flag switches a turn on or off: `loss: true` beside `loss_weight: 0.5` is no contradiction."""
    return isinstance(value, bool) or (key not in WEIGHTS and value in (0, 1))
