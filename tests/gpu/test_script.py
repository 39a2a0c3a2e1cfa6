"""`python -m tests.gpu` at tiny sizes: every part measures, what fails is told, what takes too long is cut off."""

import json
import subprocess
import sys

import pytest

from tests.gpu import __main__ as script
from tests.gpu import _parts
from tests.gpu._parts import PARTS, ROOT, Part
from tests.gpu._shapes import CLIP, LLMS, SMALL, SMALL_CLIP, Work, model, parameters
from tests.gpu._sheet import Sheet, in_rounds, page


def run(*words, **more):
    command = [sys.executable, "-m", "tests.gpu", "--tiny", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, **more)


@pytest.mark.slow
def test_every_part_runs_and_every_row_is_measured(tmp_path):
    done = run("--only", ",".join(set(PARTS) - {"correctness"}), "--out", tmp_path / "RESULTS.md")
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "RESULTS.md").read_text()
    for part in ("align step", "tune step", "switches", "Label extraction", "Evaluation", "Benchmarks"):
        assert part in text
    assert text.count("| whole |") == len(PARTS) - 1
    assert "error" not in text
    assert "LoRA" in text
    assert "no GPU" in text or "NVIDIA" in text


def test_a_part_in_a_process_of_its_own(tmp_path):
    done = run("--apart", "--only", "speed", "--out", tmp_path / "RESULTS.md")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| speed |" in (tmp_path / "RESULTS.md").read_text()
    assert "topn" in (tmp_path / "RESULTS.log").read_text()


def test_a_part_that_does_not_exist(capsys):
    assert script.main(["--tiny", "--only", "speeed"]) == 2
    assert "no part 'speeed'" in capsys.readouterr().err


def test_a_part_that_breaks_is_a_row(tmp_path, monkeypatch):
    def broken(sheet, tiny):
        sheet.add("Before", what="measured", step_ms=1.0)
        raise RuntimeError("CUDA out of memory\nTried to allocate")

    monkeypatch.setitem(PARTS, "speed", Part(10, broken))
    _parts.run("speed", tmp_path / "rows.jsonl", True)
    assert Sheet(tmp_path / "rows.jsonl").rows() == [
        ("Before", {"what": "measured", "step ms": 1.0}),
        ("What broke off", {"what": "speed", "error": "RuntimeError: CUDA out of memory"}),
    ]


def test_a_part_that_takes_too_long_is_cut_off(tmp_path, monkeypatch):
    made = script.Run(["speed"], tmp_path / "RESULTS.md", True, True, 100)
    running = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert made._watched(running, 0.3) == "cut off after 0 s"
    finally:
        running.kill()
    late = script.Run(["speed"], tmp_path / "RESULTS.md", True, True, 5)
    assert late._apart("speed") == "left out: no time"


def test_an_arm_that_fails_is_left_out():
    told = []
    arms = {"one": lambda: None, "two": lambda: 1 / 0}
    found = in_rounds(arms, 2, lambda name, err: told.append((name, str(err))))
    assert list(found) == ["one"]
    assert told == [("two", "division by zero")]


def test_the_page(tmp_path):
    sheet = Sheet(tmp_path / "rows.jsonl")
    sheet.add("T", what="a|b", step_ms=1234.5)
    sheet.add("T", what="c", ratio=None, peak_GiB=0.12345)
    text = page("Title", ["- x"], sheet.rows())
    assert "| what | step ms | ratio | peak GiB |" in text
    assert "| a/b | 1234 |  |  |" in text
    assert "| c |  |  | 0.123 |" in text
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])["table"] == "T"


@pytest.mark.parametrize("name", SMALL)
def test_the_weights_that_are_counted_are_the_models(name):
    vlm, shape = model(SMALL_CLIP, SMALL[name]), SMALL[name]
    norms = shape.width * (2 * shape.layers + 1)
    assert parameters(vlm.llm) == shape.weights + norms


def test_the_work_of_a_step_of_7b():
    """6 of every weight and position where all learn, 4 where they pass gradients on; attention is a few per cent."""
    work = Work(CLIP, LLMS["Vicuna-7B"], [100] * 8)
    positions, layers = 8 * (35 + 576 + 100), 32 * 202_375_168
    assert LLMS["Vicuna-7B"].layer == 202_375_168
    assert 1 < work.step() / (4 * positions * layers) < 1.08
    assert 1 < work.step(of_layers=True) / (6 * positions * layers) < 1.06
