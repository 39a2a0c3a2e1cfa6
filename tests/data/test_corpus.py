"""Damage of every kind: named by the check, an error for who reads it, and never met behind a quarantine."""

import json
from collections import Counter

import pytest

from mmalign.data import check, quarantine
from mmalign.data.conversations import Conversations
from mmalign.data.reasons import REASONS
from mmalign.errors import DataError
from tests.conftest import TINY, command
from tests.data.corpus import cases
from tests.data.samples import jpeg, row
from tests.stages.test_stage_mistakes import assert_failed


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(the file, the case or None of every row): damaged rows, each between two good ones."""
    folder = tmp_path_factory.mktemp("corpus") / "images"
    folder.mkdir()
    (folder / "good.jpg").write_bytes(jpeg())
    good = json.dumps(row("good", "good.jpg", "<image>\nis there a cross in the image?", "no")).encode()
    rows = [case_ for case in cases(folder) for case_ in (None, case)] + [None]
    path = folder.parent / "rows.jsonl"
    path.write_bytes(b"".join((case.line if case else good) + b"\n" for case in rows))
    return path, rows


def data_of(corpus, **more):
    return Conversations(str(corpus[0]), str(corpus[0].parent / "images"), **more)


def test_it_is_large_and_knows_every_reason(corpus):
    known = Counter(reason for case in corpus[1] if case for reason in case.reasons)
    assert sum(case is not None for case in corpus[1]) >= 200
    assert set(REASONS) - set(known) == {"unreadable", "id", "template", "cut", "other"}  # more than damaged files


def test_the_check_names_each(corpus):
    result = check.check(lambda: data_of(corpus), jobs=1)
    records = {int(record.id.rpartition("@")[2]): record for record in result.bad}
    for number, case in enumerate(corpus[1]):
        if case is None:
            assert number not in records
        else:
            assert records[number].reason in case.reasons, f"{case.name}: {records[number].what}"
            assert records[number].what.startswith(f"{records[number].reason}: ")


def test_reading_raises_data_errors_alone(corpus):
    data = data_of(corpus)
    for number, case in enumerate(corpus[1]):
        try:
            record = data[number]
            for reference in record.images:
                data.image(reference)
            assert case is None, case.name
        except DataError:
            assert case is not None


def test_behind_a_quarantine_all_is_well(corpus, tmp_path):
    result = check.check(lambda: data_of(corpus), jobs=1)
    quarantine.write(tmp_path / "q.jsonl", ((record.id, record.what) for record in result.bad))
    data = data_of(corpus, quarantine=str(tmp_path / "q.jsonl"))
    assert len(data) == sum(case is None for case in corpus[1])
    assert data.left_out == len(result.bad)
    for record in data:
        assert data.image(record.images[0]).mode == "RGB"
    behind = check.check(lambda: data_of(corpus, quarantine=str(tmp_path / "q.jsonl")), jobs=1)
    assert not behind.bad


TUNE = [f"stages.{stage}=~" for stage in ("label", "align", "score", "report")]
TUNE += ["stages.tune.reads=~", "stages.tune.steps=~", "stages.tune.epochs=1", "stages.tune.batch=64"]
TUNE += ["stages.tune.micro_batch=16", "stages.tune.engine.save_every=1"]


def train(here, data, *words):
    """(the command's words, its folder) of a training stage over some data."""
    outcome = command("run", "tiny.yaml", f"stages.tune.data={data}", *TUNE, *words, cwd=here)
    folder = max(here.glob("runs/train-*"), key=lambda stage: stage.stat().st_mtime_ns)
    return outcome, folder


def bad_samples(folder):
    """{id: reason} of the samples a stage could not use."""
    lines = (folder / "bad.jsonl").read_text().splitlines()
    return {sample["sample"]: sample["reason"] for sample in map(json.loads, lines)}


@pytest.mark.slow
def test_training_over_all_of_it(corpus, here):
    """Behind the quarantine a stage runs to its end; without, it stops within its budget, and goes on when it may."""
    (here / "tiny.yaml").write_text(TINY)
    path, rows = corpus
    args = f"path: {path}, images: {path.parent / 'images'}"
    outcome = command("data", "check", path, f"images={path.parent / 'images'}", "--quarantine", "q.jsonl", cwd=here)
    assert outcome.code == 0, outcome.err
    known = dict(quarantine.entries(str(here / "q.jsonl")))
    assert len(known) == sum(case is not None for case in rows)

    outcome, folder = train(here, f"{{card: conversations, args: {{{args}, quarantine: q.jsonl}}}}")
    assert outcome.code == 0, outcome.err
    completion = json.loads((folder / "stage.json").read_text())
    assert completion["bad"] == 0
    images = [json.loads(line)["images"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(images[:-1]) == 64 * (len(images) - 1)  # no row of a whole batch was missing

    data = f"{{card: conversations, args: {{{args}}}}}"
    outcome, _ = train(here, data, "stages.tune.max_bad=0.01")  # a few rows are enough to tell
    assert_failed(outcome, "of 64 rows of conversations cannot be used", "stages.tune.data", "max_bad", code=2)
    most = int(0.1 * len(rows))
    outcome, folder = train(here, data, "stages.tune.max_bad=0.1")
    said = f"{most + 1} unusable samples, more than `max_bad` allows ({most})"
    assert_failed(outcome, said, "bad.jsonl", "mend or remove them")
    assert not (folder / "stage.json").exists()
    reasons = bad_samples(folder)
    assert len(reasons) > most
    assert reasons.items() <= known.items()

    outcome, again = train(here, data, "stages.tune.max_bad=1")
    assert outcome.code == 0, outcome.err
    assert again == folder  # the same stage, which goes on
    assert bad_samples(folder) == known
    assert json.loads((folder / "stage.json").read_text())["bad"] == len(known)
