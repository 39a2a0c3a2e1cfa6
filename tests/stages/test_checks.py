"""An export's checks are counted, and the time left is what this process took for the same."""

import json

import pytest
import torch

from mmalign.pipeline import progress
from mmalign.stages import verify
from mmalign.stages.checks import PLAIN, Checks
from mmalign.stages.verify import Asked
from mmalign.training.events import Events


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("mmalign.stages.checks.time.monotonic", lambda: now[0])
    monkeypatch.setattr("mmalign.stages.checks.time.process_time", lambda: 4.0 / PLAIN)
    return now


@pytest.fixture
def told(monkeypatch):
    """(done, total, work) of all that is said."""
    lines = []
    monkeypatch.setattr(Events, "progress", lambda self, *said, work=None: lines.append((*said, work)))
    return lines


def test_what_is_left_is_what_the_same_took_here(clock, told, tmp_path):
    checks = Checks(Events(tmp_path), 13)
    clock[0] += 2.0
    assert checks.lap() == 2.0
    clock[0] += 1.5
    checks.expect([checks.start, 0.0, 2.5])
    for _ in range(4):  # one more than there are
        checks.done()
    assert told == [
        (0, 13, "checks", None),
        (0, 3, "checks", (3500, 10000)),
        (1, 3, "checks", (7500, 10000)),
        (2, 3, "checks", (7500, 10000)),
        (3, 3, "checks", (10000, 10000)),
        (3, 3, "checks", (10000, 10000)),
    ]


def test_the_time_left_is_told_before_a_check_is_done(clock, tmp_path):
    """Half of an export may be the start of the process that checks it."""
    checks = Checks(Events(tmp_path), 13)
    clock[0] += 3.0
    checks.expect([4.0, 1.0, 2.0])
    (tmp_path / "events.jsonl").write_text("")
    pace = progress.Pace()
    assert pace.left(0.0, 0, 13) is None
    assert pace.left(3.0, 3000, 10000) == pytest.approx(7.0)


def test_a_check_for_everything_that_is_asked():
    job = {"talks": [{}] * 5, "questions": [[{}] * 4, [{}] * 2]}
    one = Asked(None, job, {"pixels": torch.zeros(1), "logits a": torch.zeros(1), "logits b": torch.zeros(1)}, "", 6.0)
    # the folder, five conversations, pixels, weights, logits, and answers asked for three times each
    assert verify.times(one, start=4.0, load=2.0) == [4.0, 0, 0, 0, 0, 0, 0, 2.0, 6.0, 36.0, 18.0]


def test_every_check_is_told(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint('noise\\nchecked')\nprint('checked')\nopen(sys.argv[2], 'w').write('[7]')\n")
    monkeypatch.setattr(verify, "__file__", str(tmp_path / "verify.py"))
    seen = []
    job = tmp_path / "jobs.json"
    job.write_text(json.dumps({}))
    out = verify.in_plain_process("script.py", job, tmp_path / "seen.json", tmp_path, lambda: seen.append(1))
    assert out == [7]
    assert len(seen) == 2
