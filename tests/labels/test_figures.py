"""Numbers about a store, against loops over its rows; labels on an image are a picture."""

import io

import numpy as np
import pytest
from PIL import Image

from mmalign.errors import RunError
from mmalign.labels import store
from mmalign.labels.figures import BINS, SIMILAR, overlay, stats
from mmalign.labels.store import Store
from tests.labels.test_store import WORDS, build, frame, header


def test_stats_equal_loops_over_every_label(tmp_path):
    rows = build(tmp_path, images=11, shard=4)
    summary = stats(Store(tmp_path))
    scores: dict[str, list[float]] = {word: [] for word in WORDS}
    best, kept_by, labelled, patches = [], [0] * 4, 0, 0
    for words, scores_PK in rows.values():
        for patch_words, patch_scores in zip(words, scores_PK.astype(np.float16), strict=True):
            patches += 1
            kept = [(w, float(s)) for w, s in zip(patch_words, patch_scores, strict=True) if s > 0]
            labelled += bool(kept)
            kept_by[len(kept)] += 1
            best += [max(s for _, s in kept)] if kept else []
            for word, score in kept:
                scores[WORDS[word]].append(score)
    every = [s for word in WORDS for s in scores[word]]
    assert (summary.images, summary.bad, summary.patches) == (11, 1, patches)
    assert summary.labelled == labelled / patches
    assert summary.kept == pytest.approx(len(every) / patches)
    assert summary.used == np.mean([bool(scores[w]) for w in WORDS])
    assert summary.score == pytest.approx(np.mean(every))
    assert summary.histogram == np.histogram(every, BINS)[0].tolist()
    assert summary.best == np.histogram(best, SIMILAR)[0].tolist()
    assert sum(summary.best) == labelled == sum(summary.by_kept[1:])
    assert summary.by_kept == kept_by
    most = max(WORDS, key=lambda w: len(scores[w]))
    assert summary.top[0][:2] == (most, len(scores[most]))
    assert summary.mean_by_word == pytest.approx(sorted(np.mean(scores[w]) for w in WORDS if scores[w]), abs=1e-5)
    assert summary.words_by_mean == np.histogram([np.mean(scores[w]) for w in WORDS if scores[w]], SIMILAR)[0].tolist()


def test_an_empty_store_is_said_to_be_empty(tmp_path):
    store.write_shard(tmp_path, 0, header(), [], [], [])
    store.finish(tmp_path, header(), WORDS, 1)
    with pytest.raises(RunError, match="the label store is empty"):
        stats(Store(tmp_path))


def test_scores_beyond_the_bins_are_counted_at_their_ends(tmp_path):
    head = header((1, 2), 2)
    row = store.pack(head, np.array([[0, 1], [2, 3]]), np.array([[3.0, 1.5], [1.0, -2.0]]), frame(grid=(1, 2)))
    store.write_shard(tmp_path, 0, head, [row], ["a"], [])
    store.finish(tmp_path, head, WORDS, 1)
    summary = stats(Store(tmp_path))
    assert (summary.histogram[-1], summary.best[-1], summary.words_by_mean[-1]) == (3, 2, 3)
    assert summary.by_kept == [0, 1, 1]


def test_an_overlay_is_a_picture(tmp_path):
    rows = build(tmp_path)
    drawn = Image.open(io.BytesIO(overlay(Image.new("L", (40, 30)), *rows["img/0"], frame(), WORDS)))
    assert min(drawn.size) > 300
