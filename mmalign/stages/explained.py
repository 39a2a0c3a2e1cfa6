"""A few pictures of an evaluation, explained: what their visual tokens say at some layers, and what of it is true.

Letters: P patches of a picture, K words kept for each, T words in a picture's table.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

from mmalign.benchmarks import Benchmark, Question, ReadoutKind, Score
from mmalign.benchmarks.alignment import Alignment, Comparison
from mmalign.io.document import Count, Side
from mmalign.io.legible import told
from mmalign.io.pictures import base64_png
from mmalign.vlm import nearest
from mmalign.vlm.model import VLM

PICTURES = 6  # pictures shown in the report
LAYERS = 9  # of them, evenly spread from 0 to the last
KEPT = 5  # words of each patch
SIDE = 336  # pixels of a picture's longer side


class Ranked(TypedDict):
    """What is nearest to each patch at a layer, the nearest first: numbers_PK into the table, cosines_PK."""

    numbers: list[list[Count]]
    cosines: list[list[float]]


class Truth(TypedDict):
    """words: true of each patch. object: see `Comparison`. right: {layer: whether what is nearest is true, P of them;
    null: nothing could be}."""

    words: list[list[str]]
    object: list[bool | None]
    right: dict[str, list[bool | None]]


class Explained(TypedDict):
    """A picture of pictures.json or judged.json. words: the nearest of each visual token. An older mmalign wrote no
    more than the first five."""

    png: str
    grid: tuple[Side, Side] | None
    words: list[str]
    question: str
    id: str
    table: NotRequired[list[str]]  # T words
    layers: NotRequired[dict[str, Ranked]]
    seen: NotRequired[list[bool] | None]
    truth: NotRequired[Truth]
    remarks: NotRequired[dict[str, str]]  # of layers: how far they can be trusted


def asked(vlm: VLM, bench: Benchmark) -> list[Explained]:
    """The first pictures that a benchmark asks about, and one question each."""
    first: dict[Any, Question] = {}
    for question in bench.questions():
        if question.image is not None and len(first) < PICTURES:
            first.setdefault(question.image, question)
    looks = _looks(vlm, [bench.image(reference) for reference in first])
    return [
        _row(vlm, look, None, question=question.text, id=question.id)
        for look, question in zip(looks, first.values(), strict=True)
    ]


def judged(vlm: VLM, probe: Alignment, score: Score) -> list[Explained]:
    """The first pictures of an alignment, with what is true of each patch, and whether what is nearest is, as the
    metric has it. score: of the same model."""
    images, truths = probe.first(vlm, PICTURES)
    rows = []
    for look, compared in zip(_looks(vlm, images, probe.words, probe.readout), truths, strict=True):
        row = _row(vlm, look, probe.words, question="", id=compared.key)
        row["truth"] = _truth(compared, look.near)
        row["remarks"] = {str(layer): _remark(score, layer) for layer in look.near}
        rows.append(row)
    return rows


def spread(depth: int, most: int = LAYERS) -> list[int]:
    """Layers from 0 to `depth`, at most so many."""
    return sorted({round(depth * part / (most - 1)) for part in range(most)})


class Look(NamedTuple):
    """A picture, which of its patches show some, and what is nearest: {layer: (cosine_PK, number_PK)}, as lists."""

    image: Any
    seen: list[bool] | None
    near: dict[int, tuple[list[list[float]], list[list[int]]]]


def _looks(
    vlm: VLM, images: Sequence[Any], words: Sequence[str] | None = None, readout: ReadoutKind = "input"
) -> Iterator[Look]:
    """Numbers are of tokens, or of the list's words."""
    if images:
        seen = [frame.seen() for frame in vlm.frames(images)] if vlm.grid else [None] * len(images)
        near = nearest.numbered(vlm, images, spread(vlm.depth), KEPT, words, readout)
        yield from map(Look, images, seen, near)


def _row(vlm: VLM, look: Look, words: Sequence[str] | None, question: str, id: str) -> Explained:
    text_of = nearest.texts(vlm, words)
    tokens = sorted({token for _, number_PK in look.near.values() for row in number_PK for token in row})
    place = {token: number for number, token in enumerate(tokens)}
    table = [text_of(token) for token in tokens]
    layers = {
        str(layer): Ranked(
            numbers=[[place[token] for token in row] for row in number_PK],
            cosines=[[round(cosine, 4) for cosine in row] for row in cosine_PK],
        )
        for layer, (cosine_PK, number_PK) in look.near.items()
    }
    nearest_P = [table[row[0]] for row in layers["0"]["numbers"]]
    return Explained(
        png=base64_png(vlm.shown(look.image), SIDE), grid=vlm.grid, words=nearest_P, question=question, id=id,
        table=table, layers=layers, seen=look.seen,
    )  # fmt: skip


def _truth(compared: Comparison, near: Mapping[int, tuple[Any, list[list[int]]]]) -> Truth:
    right = {
        str(layer): [
            row[0] in true if true and kind is not None else None
            for row, true, kind in zip(number_PK, compared.right, compared.object, strict=True)
        ]
        for layer, (_, number_PK) in near.items()
    }
    return Truth(words=[list(words) for words in compared.words], object=compared.object, right=right)


def _remark(score: Score, layer: int) -> str:
    ceiling = score.metrics.get(f"ceiling_layer_{layer}")
    return told(None if ceiling is None else ceiling / 100)
