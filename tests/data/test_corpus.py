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
from tests.data.made import jpeg, row
from tests.stages.test_stage_mistakes import assert_failed


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(the file, the case or None of every row): damaged rows, each between two good ones."""
    folder = tmp_path_factory.mktemp("corpus") / "images"
    folder.mkdir()
    (folder / "good.jpg").write_bytes(jpeg())
    good = json.dumps(row("good", "good.jpg", "<image>\nis there a cross in the image?", "no")).encode()
    rows = [one for case in cases(folder) for one in (None, case)] + [None]
    place = folder.parent / "rows.jsonl"
    place.write_bytes(b"".join((case.line if case else good) + b"\n" for case in rows))
    return place, rows


def opened(corpus, **more):
    return Conversations(str(corpus[0]), str(corpus[0].parent / "images"), **more)


def test_it_is_large_and_knows_every_reason(corpus):
    known = Counter(reason for case in corpus[1] if case for reason in case.reasons)
    assert sum(case is not None for case in corpus[1]) >= 200
    assert set(REASONS) - set(known) == {"unreadable", "id", "other"}  # they need more than damaged files


def test_the_check_names_each(corpus):
    found = check.check(lambda: opened(corpus), jobs=1)
    named = {int(bad.id.rpartition("@")[2]): bad for bad in found.bad}
    for number, case in enumerate(corpus[1]):
        if case is None:
            assert number not in named
        else:
            assert named[number].reason in case.reasons, f"{case.name}: {named[number].what}"
            assert named[number].what.startswith(f"{named[number].reason}: ")


def test_reading_raises_data_errors_alone(corpus):
    data = opened(corpus)
    for number, case in enumerate(corpus[1]):
        try:
            record = data[number]
            for reference in record.images:
                data.image(reference)
            assert case is None, case.name
        except DataError:
            assert case is not None


def test_behind_a_quarantine_all_is_well(corpus, tmp_path):
    found = check.check(lambda: opened(corpus), jobs=1)
    quarantine.write(tmp_path / "q.jsonl", ((bad.id, bad.what) for bad in found.bad))
    data = opened(corpus, quarantine=str(tmp_path / "q.jsonl"))
    assert len(data) == sum(case is None for case in corpus[1])
    assert data.left_out == len(found.bad)
    for record in data:
        assert data.image(record.images[0]).mode == "RGB"
    again = check.check(lambda: opened(corpus, quarantine=str(tmp_path / "q.jsonl")), jobs=1)
    assert not again.bad


TUNE = [f"stages.{stage}=~" for stage in ("label", "align", "score", "report")]
TUNE += ["stages.tune.reads=~", "stages.tune.steps=~", "stages.tune.epochs=1", "stages.tune.batch=64"]
TUNE += ["stages.tune.micro_batch=16", "stages.tune.engine.save_every=1"]


def trained(here, data, *words):
    """(the command's words, its folder) of a training stage over some data."""
    said = command("run", "tiny.yaml", f"stages.tune.data={data}", *TUNE, *words, cwd=here)
    folder = max(here.glob("runs/train-*"), key=lambda place: place.stat().st_mtime_ns)
    return said, folder


def listed(folder):
    """{id: reason} of the samples a stage could not use."""
    lines = (folder / "bad.jsonl").read_text().splitlines()
    return {one["sample"]: one["reason"] for one in map(json.loads, lines)}


def test_training_over_all_of_it(corpus, here):
    """Behind the quarantine a stage runs to its end; without, it stops within its budget, and goes on when it may."""
    (here / "tiny.yaml").write_text(TINY)
    place, rows = corpus
    args = f"path: {place}, images: {place.parent / 'images'}"
    said = command("data", "check", place, f"images={place.parent / 'images'}", "--quarantine", "q.jsonl", cwd=here)
    assert said.code == 0, said.err
    known = dict(quarantine.entries(str(here / "q.jsonl")))
    assert len(known) == sum(case is not None for case in rows)

    said, folder = trained(here, f"{{card: conversations, args: {{{args}, quarantine: q.jsonl}}}}")
    assert said.code == 0, said.err
    told = json.loads((folder / "stage.json").read_text())
    assert told["bad"] == 0
    seen = [json.loads(line)["images"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(seen[:-1]) == 64 * (len(seen) - 1)  # no row of a whole batch was missing

    data = f"{{card: conversations, args: {{{args}}}}}"
    said, folder = trained(here, data, f"stages.tune.max_bad={9.5 / len(rows)}")
    assert_failed(said, "10 unusable samples, more than `max_bad` allows (9)", "bad.jsonl", "mend or remove them")
    assert not (folder / "stage.json").exists()
    found = listed(folder)
    assert len(found) >= 10
    assert found.items() <= known.items()

    said, again = trained(here, data, "stages.tune.max_bad=1")
    assert said.code == 0, said.err
    assert again == folder  # the same stage, which goes on
    assert listed(folder) == known
    assert json.loads((folder / "stage.json").read_text())["bad"] == len(known)
