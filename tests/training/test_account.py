"""What a stage left out and cut, as stage.json and its last lines say it."""

import json

from mmalign.training import account


def of(folder, lines=(), bad=(), left_out=0):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return account.of(folder, 400, 100, dict(bad), left_out)


def test_nothing(tmp_path):
    told = of(tmp_path, [{"step": 1, "lm": 2.0}])
    assert told["cut"] == {"samples": 0, "tokens": 0, "of": 400}
    assert (told["bad"], told["account"], told["warnings"]) == (0, [], [])


def test_reasons_are_counted(tmp_path):
    bad = [
        ("a@1", "missing: no image x"),
        ("b@2", "missing: no image y"),
        ("c@3", "cut: no trained token"),
        ("d@4", "?"),
    ]
    told = of(tmp_path, bad=bad, left_out=7)
    assert told["bad_reasons"] == {"missing": 2, "cut": 1, "other": 1}
    assert told["account"] == [
        f"4 unusable samples were left out (missing 2, cut 1, other 1), see {tmp_path.name}/bad.jsonl",
        "7 rows were left out by the quarantine",
    ]


def test_cuts_of_all_lines_are_added_up_and_many_are_warned_of(tmp_path):
    few = [
        {"step": 1, "cut_samples": 3.0, "cut_tokens": 200.0},
        {"step": 2},
        {"step": 3, "cut_samples": 1.0, "cut_tokens": 1.0},
    ]
    told = of(tmp_path, few)
    assert told["cut"] == {"samples": 4, "tokens": 201, "of": 400}
    assert told["account"] == ["4 of 400 samples were cut at max_length 100: 201 trained tokens lost"]
    assert told["warnings"] == []
    told = of(tmp_path, [*few, {"step": 4, "cut_samples": 1.0, "cut_tokens": 2.0}])
    assert told["account"] == []
    assert told["warnings"] == [
        "5 of 400 samples were cut at max_length 100: 203 trained tokens lost; raise max_length"
    ]
