"""Numbers about a store, against loops over its rows; the pictures are pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from mmalign.errors import RunError
from mmalign.labels.figures import BINS, figure_6, overlay, stats
from mmalign.labels.store import Store
from tests.labels.test_store import WORDS, build, frame


def test_stats_equal_loops_over_every_label(tmp_path):
    rows = build(tmp_path, images=11, shard=4)
    summary = stats(Store(tmp_path))
    scores: dict[str, list[float]] = {word: [] for word in WORDS}
    labelled = patches = 0
    for words, scores_PK in rows.values():
        for patch_words, patch_scores in zip(words, scores_PK.astype(np.float16), strict=True):
            patches += 1
            kept = [(w, float(s)) for w, s in zip(patch_words, patch_scores, strict=True) if s > 0]
            labelled += bool(kept)
            for word, score in kept:
                scores[WORDS[word]].append(score)
    every = [s for word in WORDS for s in scores[word]]
    assert (summary.images, summary.bad, summary.patches) == (11, 1, patches)
    assert summary.labelled == labelled / patches
    assert summary.kept == pytest.approx(len(every) / patches)
    assert summary.used == np.mean([bool(scores[w]) for w in WORDS])
    assert summary.score == pytest.approx(np.mean(every))
    assert summary.histogram == np.histogram(every, BINS)[0].tolist()
    most = max(WORDS, key=lambda w: len(scores[w]))
    assert summary.top[0][:2] == (most, len(scores[most]))
    assert summary.mean_by_word == pytest.approx(sorted(np.mean(scores[w]) for w in WORDS if scores[w]), abs=1e-5)


def test_an_empty_store_is_said_to_be_empty(tmp_path):
    from mmalign.labels import store
    from tests.labels.test_store import header

    store.write_shard(tmp_path, 0, header(), [], [], [])
    store.finish(tmp_path, header(), WORDS, 1)
    with pytest.raises(RunError, match="the label store is empty"):
        stats(Store(tmp_path))


def test_pictures(tmp_path):
    rows = build(tmp_path)
    figure = Image.open(io.BytesIO(figure_6(stats(Store(tmp_path)))))
    assert figure.size[0] > 800
    drawn = Image.open(io.BytesIO(overlay(Image.new("L", (40, 30)), *rows["img/0"], frame(), WORDS)))
    assert min(drawn.size) > 300
