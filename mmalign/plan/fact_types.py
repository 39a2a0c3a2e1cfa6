"""The facts that cards may give, with their types. A card may give others: nothing here reads them."""

import math
import re
from typing import Annotated, Any, TypedDict

from mmalign.io import document
from mmalign.io.document import Count, Least, Side

Positive = Annotated[int, Least(1)]
Times = Annotated[float, Least(0)]  # a half, where there is one for every two
TERM = re.compile("1|[CD]+")  # of a count of parameters: widths multiplied


class Vision(TypedDict, total=False):
    dim: Positive
    grid: tuple[Side, Side]
    image_size: Positive
    joint: Count
    layers: Positive
    parameters: Count
    text: bool


class Adapter(TypedDict, total=False):
    keeps_grid: bool
    same_width: bool
    linears: str  # which argument is the number of linear layers
    divides: str  # which argument divides both sides of the grid
    tokens: str  # which argument is the number of visual tokens
    parameters: dict[str, Any]  # {of: arguments, term: how often}
    patch_dim: Positive
    llm_dim: Positive


class LLM(TypedDict, total=False):
    family: str
    dim: Positive
    layers: Positive
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    inner: Positive
    vocab: Positive
    parameters: Count
    tied: bool


class Labels(TypedDict, total=False):
    truth: bool


class Objective(TypedDict, total=False):
    needs: list[str]
    per_patch: bool
    unit: str


class Data(TypedDict, total=False):
    rows: Count
    tokens: Count  # of text, a sample
    images: bool
    truth: bool


class Benchmark(TypedDict, total=False):
    headline: str
    unit: str
    protocols: list[str]
    shows: bool
    questions: Count
    max_new_tokens: Positive
    meanings: dict[str, list[str]]  # as the class's, for one that has none: {metric: [what it is, unit, better]}


class VLM(TypedDict, total=False):
    family: str  # model_type of transformers
    dim: Positive
    layers: Positive
    parameters: Count
    patches: bool  # whether it is known where its visual tokens lie in a picture
    gated: bool  # whether its hub gives it only to who accepts its licence


BY_FAMILY = {
    "vision": Vision,
    "adapters": Adapter,
    "llms": LLM,
    "labels": Labels,
    "objectives": Objective,
    "data": Data,
    "benchmarks": Benchmark,
    "vlms": VLM,
}


def problem(family: str, facts: dict[str, Any]) -> tuple[str, str] | None:
    """(key, what is wrong) of the first fact that is not of its type; None: all are."""
    found = document.problem(facts, BY_FAMILY[family]) if family in BY_FAMILY else None
    return found or (_terms(facts.get("parameters")) if family == "adapters" else None)


def _terms(counted: Any) -> tuple[str, str] | None:
    for term, times in counted.items() if isinstance(counted, dict) else ():
        key = f"parameters.{term}"
        if term == "of":
            continue
        if not TERM.fullmatch(term):
            return key, "is no term: 1, or widths multiplied, C of a patch and D of the language model: CD"
        if wrong := document.problem(times, Times):
            return key, wrong[1]
        if not math.isfinite(times):
            return key, f"must be finite, got {times}"
    return None
