"""Progress in plain lines: the time left counts from where a stage goes on."""

from types import SimpleNamespace

from mmalign.cli import live


def test_time_left_of_a_stage_that_goes_on(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    node = SimpleNamespace(name="tune", arms=[""], folder="runs/train-abc")
    lines = live.Lines()
    lines.begin(node)
    for seconds, done in ((20, 900), (10, 910), (1, 911), (10, 920)):
        now[0] += seconds
        lines.event(node, {"done": done, "total": 1000, "numbers": {"lm": 0.5}})
    lines.event(node, {"say": "hello"})
    assert capsys.readouterr().err.splitlines() == [
        "tune: begins   runs/train-abc",
        "tune: 900/1000  lm 0.5",  # nothing is known yet
        "tune: 910/1000  lm 0.5  90 s left",
        "tune: 920/1000  lm 0.5  84 s left",
        "tune: hello",
    ]
