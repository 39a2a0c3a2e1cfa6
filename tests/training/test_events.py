"""Progress that is told now and then: the last of what comes at once, and every number."""

import json
import time

from mmalign.training import events
from mmalign.training.events import Events


def told(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_of_what_comes_at_once_the_last_is_told(tmp_path):
    """As the answers of a pass do: otherwise a whole pass would be missing until the next one is done."""
    tells = Events(tmp_path)
    for done in range(65):
        tells.progress(done, 1000, "questions", {"questions/s": 2.0} if done == 3 else {})
    until = time.monotonic() + 20
    while told(tmp_path)[-1]["done"] < 64 and time.monotonic() < until:
        time.sleep(0.01)
    first, *_, last = told(tmp_path)
    assert (first["done"], first["numbers"]) == (0, {})
    assert (last["done"], last["total"], last["unit"]) == (64, 1000, "questions")
    assert {"questions/s": 2.0} in [line["numbers"] for line in told(tmp_path)]


def test_the_end_is_told_at_once_and_nothing_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "EVERY", 0.02)
    tells = Events(tmp_path)
    for done in (1, 2, 3):
        tells.progress(done, 3, "steps")
    assert told(tmp_path)[-1]["done"] == 3
    time.sleep(0.1)
    assert [line["done"] for line in told(tmp_path)] in ([1, 3], [1, 2, 3])


def test_other_ranks_are_silent(tmp_path):
    tells = Events(tmp_path, rank=1)
    tells.progress(3, 3, "steps")
    tells.say("hello")
    assert not (tmp_path / "events.jsonl").exists()
