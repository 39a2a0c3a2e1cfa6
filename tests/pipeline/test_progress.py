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


def test_the_newest_metrics_with_what_they_are_a_second(tmp_path):
    assert progress.metrics(tmp_path) == {}
    rows = [{"step": n, "lm": 9.0 / n, "lr": 0.5, "tokens": 100, "steps_per_second": 3.0, "time": 1e9} for n in (1, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"step"')
    newest = {"lm": 3.0, "lr": 0.5, "tokens": 100, "steps_per_second": 3.0, "tokens/s": 300.0}
    assert progress.metrics(tmp_path) == newest
    (tmp_path / "metrics.jsonl").write_text('{"lm": 2.0}\n')
    assert progress.metrics(tmp_path) == {"lm": 2.0}
