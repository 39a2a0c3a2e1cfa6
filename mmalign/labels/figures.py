"""What a label store holds, in numbers (those of SEA's figure 6, arXiv 2408.11813), and its labels on an image."""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmalign.errors import RunError
from mmalign.labels.store import Store
from mmalign.vision import Frame

if TYPE_CHECKING:
    from PIL.Image import Image

HEAD = 40  # pixels of the line above a sheet of pictures
BINS = np.linspace(-1, 1, 201)  # of scores, which are cosines or differences of them
SIMILAR = np.linspace(0, 1, 101)  # of the scores of words that are kept, which are above 0


@dataclass
class Stats:
    """Over all labels with a score above 0; the rest says `no word`."""

    images: int
    bad: int  # images that could not be read
    patches: int
    labelled: float  # share of patches with a word
    kept: float  # words a patch, mean
    words: int  # in the list
    used: float  # share of them that are some patch's word (the paper: 61.2 %)
    score: float  # mean
    histogram: list[int]  # labels by score, in bins of 0.01 from -1 to 1
    best: list[int]  # patches with a word by the score of their best one, in bins of 0.01 from 0 to 1
    by_kept: list[int]  # patches by how many words they keep, from none on
    top: list[tuple[str, int, float]]  # the words used most: word, patches, mean score
    mean_by_word: list[float]  # mean score of every used word, sorted
    words_by_mean: list[int]  # used words by that, in bins of 0.01 from 0 to 1


def stats(store: Store, top: int = 20) -> Stats:
    """One pass over the store, a shard in memory at a time."""
    count, total = np.zeros(len(store.words), np.int64), np.zeros(len(store.words))
    histogram, best = np.zeros(len(BINS) - 1, np.int64), np.zeros(len(SIMILAR) - 1, np.int64)
    by_kept = np.zeros(store.header.keep + 1, np.int64)
    for words_NPK, scores_NPK in store.shards():
        real = scores_NPK > 0
        by_kept += np.bincount(real.sum(2).ravel(), minlength=len(by_kept))
        words, scores = words_NPK[real], scores_NPK[real].astype(np.float64)
        count += np.bincount(words, minlength=len(count))
        total += np.bincount(words, scores, minlength=len(count))
        histogram += _binned(scores, BINS)
        best += _binned(scores_NPK.max(2, where=real, initial=0)[real.any(2)], SIMILAR)
    if not (patches := int(by_kept.sum())):
        raise RunError("the label store is empty", at=store.folder, fix="label some images")
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    most = np.argsort(-count, kind="stable")[:top]
    return Stats(
        images=len(store),
        bad=len(store.bad),
        patches=patches,
        labelled=int(best.sum()) / patches,
        kept=int(count.sum()) / patches,
        words=len(store.words),
        used=float((count > 0).mean()),
        score=float(total.sum() / max(1, count.sum())),
        histogram=histogram.tolist(),
        best=best.tolist(),
        by_kept=by_kept.tolist(),
        top=[(store.words[n], int(count[n]), round(float(mean[n]), 4)) for n in most if count[n]],
        mean_by_word=np.sort(mean[count > 0]).round(5).tolist(),
        words_by_mean=_binned(mean[count > 0], SIMILAR).tolist(),
    )


def _binned(scores: NDArray[Any], edges: NDArray[Any]) -> NDArray[np.int64]:
    """How many lie in each bin; what is beyond an end counts in the bin there, so that all are counted."""
    return np.histogram(scores.astype(np.float64).clip(edges[0], edges[-1]), edges)[0]


def as_json(summary: Stats) -> dict[str, Any]:
    return asdict(summary)


def overlay(image: "Image", words_PK: NDArray[Any], scores_PK: NDArray[Any], frame: Frame, words: list[str]) -> bytes:
    """PNG: the image with each patch's best word on it, where the patch lies; patches without a word are darkened.

    image: upright, of the frame's size.
    """
    pyplot = _pyplot()
    (rows, columns), (x0, y0, x1, y1) = frame.grid, frame.region
    left, right = (columns * (x - x0) / (x1 - x0) for x in (0, 1))  # in patches: so is all that is drawn
    top, bottom = (rows * (y - y0) / (y1 - y0) for y in (0, 1))
    width, height = max(columns, right) - min(0, left), max(rows, bottom) - min(0, top)
    figure, axes = pyplot.subplots(figsize=(max(4, width * 0.75), max(4, height * 0.75)))
    axes.imshow(image.convert("RGB"), extent=(left, right, bottom, top), aspect="auto")
    for patch, (word, score) in enumerate(zip(words_PK[:, 0], scores_PK[:, 0], strict=True)):
        row, column = divmod(patch, columns)
        if score > 0:
            text = f"{words[int(word)]}\n{float(score):.2f}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color="white",
                      bbox={"facecolor": "black", "alpha": 0.55, "pad": 1, "linewidth": 0})  # fmt: skip
        else:
            axes.add_patch(pyplot.Rectangle((column, row), 1, 1, color="black", alpha=0.5))
    axes.set(xlim=(min(0, left), max(columns, right)), ylim=(max(rows, bottom), min(0, top)))
    axes.set(xticks=range(columns + 1), yticks=range(rows + 1), xticklabels=[], yticklabels=[])
    axes.grid(color="white", linewidth=0.4)
    figure.tight_layout(pad=0.2)
    return _png(pyplot, figure)


def sheet(rows: Sequence[Sequence[bytes]], heads: Sequence[str]) -> bytes:
    """PNG: rows of pictures of one size, those of a column under its head."""
    from PIL import Image, ImageDraw, ImageFont

    pictures = [[Image.open(io.BytesIO(png)).convert("RGB") for png in row] for row in rows]
    width, height = (max(side) for side in zip(*(one.size for row in pictures for one in row), strict=True))
    whole = Image.new("RGB", (width * len(heads), HEAD + height * len(rows)), "white")
    for column, head in enumerate(heads):
        ImageDraw.Draw(whole).text((column * width + 8, 6), head, "black", ImageFont.load_default(HEAD // 2))
        for number, row in enumerate(pictures):
            whole.paste(row[column], (column * width, HEAD + number * height))
    out = io.BytesIO()
    whole.save(out, "PNG")
    return out.getvalue()


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _png(pyplot: Any, figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    pyplot.close(figure)
    return out.getvalue()
