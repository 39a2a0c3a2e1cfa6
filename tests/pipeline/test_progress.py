"""How far a stage is, and the time it still takes, from the lines it left."""

import json

import pytest

from mmalign.pipeline import progress


def write(folder, lines):
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def line(time, done, total=100, **numbers):
    return {"time": time, "done": done, "total": total, "numbers": numbers}


def test_time_left_counts_from_where_work_is_seen_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(progress.time, "time", lambda: 1032.0)
    write(
        tmp_path, [{"time": 1000, "say": "x"}, line(1000, 40), line(1010, 40), line(1020, 45), line(1030, 50, loss=2.5)]
    )
    assert progress.of(tmp_path) == progress.Progress(50, 100, 98.0)  # 2 s a step, as of 2 s ago
    monkeypatch.setattr(progress.time, "time", lambda: 5000.0)
    assert progress.of(tmp_path).left == 0


def test_nothing_is_known_before_work_goes_on_nor_without_time_stamps(tmp_path):
    assert progress.of(tmp_path) is None
    write(tmp_path, [{"time": 1, "say": "x"}])
    assert progress.of(tmp_path) is None
    write(tmp_path, [line(1000, 40), line(1010, 40)])
    assert progress.of(tmp_path) == progress.Progress(40, 100, None)
    write(tmp_path, [{"done": n, "total": 3, "numbers": {}} for n in (1, 2)])
    assert progress.of(tmp_path) == progress.Progress(2, 3, None)


@pytest.mark.parametrize("junk", ["", "{", "[]", '{"done": "x", "total": 1}', '{"done": 3}', "\x00\xff"])
def test_a_line_that_is_cut_or_none_of_ours_is_passed_over(tmp_path, junk):
    write(tmp_path, [line(1000, 1)])
    with open(tmp_path / "events.jsonl", "a") as out:
        out.write(junk)
    assert progress.of(tmp_path).done == 1


def test_of_a_long_file_the_ends_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(progress.time, "time", lambda: 3000.0)
    write(tmp_path, [line(1000 + n, n, 4000) for n in range(2001)])
    assert (tmp_path / "events.jsonl").stat().st_size > 2 * progress.END - 20_000
    assert progress.of(tmp_path) == progress.Progress(2000, 4000, 2000.0)


def test_a_long_file_whose_first_lines_are_slower(tmp_path, monkeypatch):
    """50 s each for the first 100, then a second each: at the file's middle the speed is that of now."""
    monkeypatch.setattr(progress.time, "time", lambda: 1e4)
    times = [50 * min(n, 100) + max(0, n - 100) for n in range(4001)]
    write(tmp_path, [line(1e4 - times[-1] + time, n, 8000) for n, time in enumerate(times)])
    assert progress.of(tmp_path).left == pytest.approx(4000, rel=0.02)


def left_at_half(seconds):
    """(what is told, what it takes) when half of some work is done, each item of which takes so many seconds."""
    now, told, pace = 30.0, None, progress.Pace()  # 30 s: a model was loaded
    pace.left(0.0, 0, len(seconds))
    pace.left(now, 0, len(seconds))
    half = len(seconds) // 2
    for done, each in enumerate(seconds[:half], 1):
        now += each
        told = pace.left(now, done, len(seconds))
    return told, sum(seconds[half:])


@pytest.mark.parametrize(
    ("seconds", "within"),
    [
        ([2.0] * 100, 0.0),
        ([60.0, 20.0, 10.0] + [1.0] * 97, 0.0),  # something is compiled, files are not in memory yet
        ([5.0] * 20 + [1.0] * 80, 0.0),
        ([1.0 + n / 200 for n in range(100)], 0.2),  # rows become longer
        ([1.0, 3.0] * 500, 0.02),
        ([0.1] * 100_000, 0.02),  # more moments than are remembered
    ],
)
def test_the_time_left_at_half_time_is_that_of_the_other_half(seconds, within):
    told, true = left_at_half(seconds)
    assert told == pytest.approx(true, rel=max(within, 1e-6))


def test_a_stage_that_goes_on_counts_from_there():
    pace = progress.Pace()
    assert pace.left(0.0, 60, 100) is None
    assert [pace.left(4.0 * n, 60 + n, 100) for n in (1, 2, 20)] == pytest.approx([156.0, 152.0, 80.0])


def test_of_many_moments_few_are_remembered():
    pace = progress.Pace()
    for n in range(10_000):
        pace.left(float(n), n, 20_000)
    assert len(pace.moments) <= progress.MOMENTS + 1


def test_the_newest_metrics_with_what_they_are_a_second(tmp_path):
    assert progress.metrics(tmp_path) == {}
    rows = [{"step": n, "lm": 9.0 / n, "lr": 0.5, "tokens": 100, "steps_per_second": 3.0, "time": 1e9} for n in (1, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"step"')
    newest = {"lm": 3.0, "lr": 0.5, "tokens": 100, "steps_per_second": 3.0, "tokens/s": 300.0}
    assert progress.metrics(tmp_path) == newest
    (tmp_path / "metrics.jsonl").write_text('{"lm": 2.0}\n')
    assert progress.metrics(tmp_path) == {"lm": 2.0}
