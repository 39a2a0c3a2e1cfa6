"""Progress in plain lines: the time left counts from where a stage goes on."""

from pathlib import Path
from types import SimpleNamespace

from mmalign.cli import live

from mmalign.pipeline.run import Launch


def test_time_left_of_a_stage_that_goes_on(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    node = SimpleNamespace(name="tune", arms=[""], folder=Path("runs/train-abc"))
    lines = live.Lines(live.Rest([], Launch()))
    lines.begin(node)
    for seconds, done in ((20, 900), (10, 910), (1, 911), (10, 920)):
        now[0] += seconds
        lines.event(node, {"done": done, "total": 1000, "numbers": {"lm": 0.5}})
    lines.event(node, {"say": "hello"})
    assert capsys.readouterr().err.splitlines() == [
        "tune: begins   runs/train-abc   log runs/train-abc/log.txt",
        "tune: 900/1000  lm 0.5",  # nothing is known yet
        "tune: 910/1000  lm 0.5  90 s left",
        "tune: 920/1000  lm 0.5  84 s left",
        "tune: hello",
    ]


def test_an_evaluation_says_how_far_it_is_from_the_first_second(monkeypatch, capsys):
    """At once that nothing is done, and as soon as something is, how fast; a model that is loaded before is no work."""
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    node = SimpleNamespace(name="score", arms=[""], folder=Path("runs/evaluate-abc"))
    lines = live.Lines(live.Rest([], Launch()))
    lines.begin(node)
    for seconds, done, numbers in (
        (0.5, 0, {}),
        (60, 0, {}),
        (0.5, 4, {"questions/s": 8}),
        (1, 12, {"questions/s": 8}),
    ):
        now[0] += seconds
        lines.event(node, {"done": done, "total": 84, "numbers": numbers})
    assert capsys.readouterr().err.splitlines() == [
        "score: begins   runs/evaluate-abc   log runs/evaluate-abc/log.txt",
        "score: 0/84",
        "score: 0/84",
        "score: 4/84  questions/s 8  10 s left",
    ]
