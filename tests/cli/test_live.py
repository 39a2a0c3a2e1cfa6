"""Progress in plain lines: the time left counts from where a stage goes on."""

from pathlib import Path
from types import SimpleNamespace

from mmalign.cli import bars, live
from rich.console import Console

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
        "tune: 920/1000  lm 0.5  88 s left",
        "tune: hello",
    ]


ROW = {
    "loss": 2.5, "lm": 1.25, "sea": 1.25, "tokens": 100.0, "images": 4.0, "samples": 8.0, "norm": 3.0, "lr": 1e-3,
    "steps_per_second": 0.5, "peak_memory_gib": 3.0, "gpu_percent": 87.4, "time": 1e9,
}  # fmt: skip
TOLD = "loss 2.5  lm 1.25  sea 1.25  norm 3  lr 0.001  tokens/s 50  samples/s 4  images/s 2  steps/s 0.5  "
TOLD += "peak memory 3 GiB  GPU 87 %"


def test_a_line_of_the_log_is_told_whole_each_line_once(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    node = SimpleNamespace(name="tune", arms=[""], folder=Path("runs/train-abc"))
    lines = live.Lines(live.Rest([], Launch()))
    lines.begin(node)
    for seconds, done, row in ((0, 1, {}), (1, 2, {}), (1, 3, ROW), (4, 4, {}), (6, 5, {})):
        now[0] += seconds
        lines.event(node, {"done": done, "total": 8, "unit": "steps", "numbers": row})
    assert capsys.readouterr().err.splitlines()[1:] == [
        "tune: 1/8 steps",
        "tune: 2/8 steps  6 s left",
        f"tune: 4/8 steps  {TOLD}  10 s left",
        "tune: 5/8 steps  15 s left",
    ]


def test_a_terminal_shows_every_number_below_the_bar(monkeypatch, capsys):
    """Folded, and until there are newer ones."""
    monkeypatch.setenv("COLUMNS", "80")
    node = SimpleNamespace(name="tune", arms=[""], folder=Path("runs/train-abc"))
    shown = bars.Bars(live.Rest([], Launch()))
    shown.begin(node)
    for done, row in ((1, ROW), (2, {})):
        shown.event(node, {"done": done, "total": 8, "unit": "steps", "numbers": row})
    console = Console(width=80)
    with console.capture() as text:
        console.print(shown.progress.get_renderable())
    lines = [" ".join(line.split()) for line in text.get().splitlines()]
    assert lines[0].startswith("tune")
    assert "2/8 steps" in lines[0]
    assert " ".join(lines[1:]) == " ".join(TOLD.split())
    shown.end(node, 1.0)
    assert shown.progress.below == ""


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
