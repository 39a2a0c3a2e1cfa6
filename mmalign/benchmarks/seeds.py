"""What one arm has over another, of one seed of training or of several: seeds and pictures both vary."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmalign.benchmarks.bootstrap import Interval, cluster, crossed, difference
from mmalign.benchmarks.compare import ComparisonRow, Run, matched


@dataclass(frozen=True)
class SeedsComparison:
    """A difference, the mean over seeds, on the questions that both arms were asked."""

    difference: Interval
    questions: int  # that both were asked
    cluster: str  # what is drawn again beside seeds: picture, or question where no pictures are known
    clusters: int  # how many of these


def compare_seeds(row: ComparisonRow, pairs: Sequence[tuple[Run, Run]]) -> SeedsComparison | None:
    """Of a row's benchmark; pairs: of every seed the evaluation of the first arm and that of the other. The interval is
    about other pictures, and where there are several seeds about other seeds, too.

    None where the values of single questions are not known in all of them, or a pair has no question in common; what a
    reader has to know is told to the row.
    """
    heads, pictures = [], []
    for first, run in pairs:
        found = matched(row, first, run)
        if not found or not found[1]:
            return None
        heads.append(found[1])
        pictures.append(found[0].cluster_of)
    if not all(pictures):
        pictures = [{} for _ in pictures]  # what is a cluster in one seed has to be one in all
    gap = Interval(*difference(*heads[0], pictures[0])[:3]) if len(pairs) == 1 else crossed(heads, pictures)
    own = zip(heads, pictures, strict=True)
    asked = {(qid, cluster(qid, cluster_of)) for (first, _), cluster_of in own for qid in first.parts_of}
    by = "picture" if all(pictures) else "question"
    return SeedsComparison(gap, len(asked), by, len({one for _, one in asked}))
