"""`eval` on files: the score of the answers it stores, whose rules, and what is wrong before a model is loaded."""

import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mmalign.cli import models, scores
from PIL import Image

from mmalign.benchmarks import resume
from mmalign.pipeline import existing
from mmalign.pipeline.load import load
from mmalign.plan import building
from mmalign.plan.cards import Registry
from tests.plan.test_mistakes import assert_mistake

SHORT = "Answer the question using a single word or phrase."


@pytest.fixture
def eval_folder(here):
    """LLaVA's playground/data/eval with a POPE of four questions about one picture."""
    place = here / "eval" / "pope"
    (place / "coco").mkdir(parents=True)
    (place / "val2014").mkdir()
    Image.new("RGB", (48, 48), "red").save(place / "val2014" / "a.jpg")
    questions = [(n, shape, n % 2) for n, shape in enumerate(("star", "ring", "circle", "square"), 1)]
    rows = [{"question_id": n, "image": "a.jpg", "text": f"is there a {shape}?"} for n, shape, _ in questions]
    labels = [row | {"label": "yes" if yes else "no"} for row, (_, _, yes) in zip(rows, questions, strict=True)]
    llava = [row | {"text": f"{row['text']}\n{SHORT}", "category": "adversarial"} for row in rows]
    (place / "coco" / "coco_pope_adversarial.json").write_text("\n".join(map(json.dumps, labels)))
    (place / "llava_pope_test.jsonl").write_text("\n".join(map(json.dumps, llava)))
    return place.parent


def test_the_stored_answers_score_the_same(model, eval_folder, here, mmalign):
    result = mmalign("eval", model, "--bench", "pope", "--data", eval_folder, "--protocol", "lmms-eval", "--json")
    assert result.code == 0, result.err
    (evaluation,) = here.glob("runs/evaluate-*")
    stored = [json.loads(line) for line in (evaluation / "pope.jsonl").read_text().splitlines()]
    assert sorted(row["id"] for row in stored) == ["1", "2", "3", "4"]
    again = mmalign("score", "--bench", "pope", "--data", eval_folder, "--answers", evaluation / "pope.jsonl",
                    "--protocol", "lmms-eval", "--json")  # fmt: skip
    assert json.loads(result.out) == {"pope": json.loads(again.out)["metrics"]}
    assert "pope: scored by the rule of lmms-eval, not the official one" in result.err
    assert json.loads((evaluation / "pope.json").read_text())["counts"]["answered"] == 4
    Image.new("RGB", (48, 48), "blue").save(eval_folder / "pope" / "val2014" / "a.jpg")  # another, under its name
    words = ["eval", model, "--bench", "pope", "--data", eval_folder, "--protocol", "lmms-eval", "--json"]
    result = mmalign(*words)
    assert result.code == 0, result.err
    assert "pope: 1 of 1 have changed (a.jpg) since" in result.err
    (old,) = here.glob("runs/evaluate-*.old-1")
    assert (evaluation / "stage.json").stat().st_mtime > (old / "stage.json").stat().st_mtime
    assert (evaluation / "pope.asked.json").read_text() != (old / "pope.asked.json").read_text()
    assert "note: evaluated on " in mmalign(*words).err


@pytest.mark.slow
def test_a_damaged_answer_is_told_and_none_is_lost(model, eval_folder, here, mmalign):
    """Case a18: line 5 torn (by an older run that went on behind it, or by hand)."""
    node = existing.evaluation(model, existing.benches(["pope"], eval_folder, Registry()), Registry())
    place = node.folder / "pope.jsonl"
    place.parent.mkdir()
    torn = "".join(json.dumps({"id": str(n), "text": "Yes"}) + "\n" for n in (1, 2, 3, 4)) + '{"id": "4", "te\n'
    place.write_text(torn)
    result = mmalign("eval", model, "--bench", "pope", "--data", eval_folder)
    assert (result.code, result.out) == (2, "")
    assert "not valid JSON" in result.err
    assert f"  at   {place}:5\n" in result.err
    assert f"  try  {resume.FIX}" in result.err
    assert "Traceback" not in result.err
    assert place.read_text() == torn


def boxed(folder):
    """COCO's val2017 as it is laid out, of two pictures."""
    (folder / "coco" / "annotations").mkdir(parents=True)
    (folder / "coco" / "val2017").mkdir()
    images = [{"id": n, "file_name": f"{n}.png", "width": w, "height": h} for n, w, h in ((1, 80, 60), (2, 48, 48))]
    for image in images:
        picture = Image.new("RGB", (image["width"], image["height"]), (200, 30, 30))
        picture.paste((20, 40, 220), (0, 0, 24, 40))
        picture.save(folder / "coco" / "val2017" / image["file_name"])
    boxes = [(1, 0, [0, 0, 24, 40]), (1, 1, [24, 10, 56, 50]), (2, 0, [0, 0, 24, 40])]
    annotations = [{"image_id": image, "category_id": category, "bbox": box} for image, category, box in boxes]
    categories = [{"id": 0, "name": "star"}, {"id": 1, "name": "blue_ring"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco" / "annotations" / "instances_val2017.json").write_text(json.dumps(document))


def test_alignment_on_boxes(model, here, mmalign, monkeypatch):
    """The command's number is that of a plain loop over the model's tokens and the boxes."""
    monkeypatch.setenv("MMALIGN_DATA", str(here / "data"))
    result = mmalign("eval", model, "--bench", "coco-alignment", "--json")
    assert_mistake(result, "path data:coco/annotations/instances_val2017.json does not exist", "", "MMALIGN_DATA")
    boxed(here / "data")
    result = mmalign("eval", model, "--bench", "coco-alignment", "--json")
    assert result.code == 0, result.err
    metrics = json.loads(result.out)["coco-alignment"]
    vlm, data = load(str(model)), building.build(Registry().card("data", "coco-boxes"))
    right = []
    for record in data:
        picture = data.image(record.images[0])
        truth = data.truth(record.images[0], vlm.frame(picture.size))
        nearest = vlm.nearest_tokens(picture)[0][1][0, :, 0].tolist()
        for words, near in zip(truth.words, nearest, strict=True):
            right += [near in vlm.pieces(list(words))[0]] if words else []
    assert len(right) > 20
    assert metrics["object"] == pytest.approx(100 * sum(right) / len(right))
    assert "background" not in metrics


# Killed


PICTURES, EACH = 24, 20  # a pass holds 32 questions, so that each picture's are one
MOMENTS = [0, 0, 1, 21, 61, 101, 141, 181, 221, 261]  # answers stored when the command is killed; 0: while it starts


WORDS = [f"{color} {shape}" for color in ("red", "green", "blue", "white")
         for shape in ("star", "ring", "circle", "square", "heart")]  # fmt: skip


@pytest.fixture
def many(here):
    """A POPE that is answered pass by pass."""
    place = here / "many"
    (place / "val2014").mkdir(parents=True)
    rows = []
    for n in range(PICTURES * EACH):
        number, word = divmod(n, EACH)
        text = f"is there a {WORDS[word]}?"
        rows.append({"question_id": n + 1, "image": f"{number}.jpg", "text": text, "label": "no"})
    for number in range(PICTURES):
        Image.new("RGB", (48, 48), (10 * number, 90, 30)).save(place / "val2014" / f"{number}.jpg")
    (place / "coco_pope_adversarial.json").write_text("\n".join(map(json.dumps, rows)))
    return place


def run_eval(model, data, runs):
    """The real command, in a process group of its own."""
    words = ["eval", str(model), "--bench", "pope", "--data", str(data), "--runs", str(runs), "--json"]
    line = [sys.executable, "-c", "from mmalign.cli import entry; entry()", *words]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answered(runs):
    """How many answers lie on the disk."""
    return sum(place.read_bytes().count(b"\n") for place in Path(runs).glob("evaluate-*/pope.jsonl"))


def kill_tree(root):
    """kill -9 of the command and all below it."""
    for process in [*psutil.Process(root.pid).children(recursive=True), psutil.Process(root.pid)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    root.communicate()


def finished(child):
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    return json.loads(out)


@pytest.mark.slow
def test_killed_at_ten_moments_it_ends_as_if_it_had_not_been(model, many, here):
    """kill -9 of the real command: no answer is lost or asked for twice, and answers and scores are the same."""
    (place,) = here.glob("runs/train-*")
    whole, broken = here / "runs", here / "killed"
    shutil.copytree(whole, broken)
    expected = finished(run_eval(place, many, whole))
    for after in MOMENTS:
        child, began = run_eval(broken / place.name, many, broken), time.monotonic()
        while child.poll() is None and (answered(broken) < after if after else time.monotonic() < began + 1):
            time.sleep(0.002)
        assert child.poll() is None, f"it ended before {after} answers were stored"
        kill_tree(child)
    assert answered(broken) < PICTURES * EACH
    assert finished(run_eval(broken / place.name, many, broken)) == expected
    stored = [json.loads(line) for line in next(broken.glob("evaluate-*/pope.jsonl")).read_text().splitlines()]
    uninterrupted = [json.loads(line) for line in next(whole.glob("evaluate-*/pope.jsonl")).read_text().splitlines()]
    assert sorted(stored, key=str) == sorted(uninterrupted, key=str)
    assert len({row["text"] for row in uninterrupted}) > 1
    scores_of = [json.loads(next(runs.glob("evaluate-*/pope.json")).read_text()) for runs in (whole, broken)]
    assert scores_of[0] == scores_of[1]


def test_other_rules_are_another_evaluation(model, eval_folder, here):
    benches = existing.benches(["pope"], eval_folder, Registry())
    nodes = [existing.evaluation(model, benches, Registry(), protocol=one) for one in ("official", "lmms-eval")]
    assert nodes[0].folder != nodes[1].folder


def test_what_a_reader_has_to_know_is_said(here):
    counts = {"asked": 4, "answered": 3, "missing": 1, "duplicate": 0, "unparsable": 2}
    for name, score in {"pope": {"counts": counts, "notes": ["by rule X"]}, "gqa": {"counts": {}, "notes": []}}.items():
        (here / f"{name}.json").write_text(json.dumps({"metrics": {}, "headline": "f1", **score}))
    (here / "stage.json").write_text(json.dumps({"metrics": {"pope": {}, "gqa": {}}}))
    assert scores.notes(here) == ["pope: of 4 answers 1 missing, 2 unparsable", "pope: by rule X"]


MISTAKES = {
    "unknown benchmark": (["popes"], [], "no benchmarks card named 'popes'", "did you mean 'pope'?"),
    "unknown protocol": (["pope"], ["--protocol", "lmms"], "pope has no protocol 'lmms'", "did you mean 'lmms-eval'?"),
    "a protocol of others": (["mmlu"], ["--protocol", "lmms-eval"], "mmlu has no protocol 'lmms-eval'", "official"),
    "the wrong folder": (["gqa"], [], "no files of GQA in", "put there one of"),
    "no such folder": (["pope"], ["--data", "nowhere"], "nowhere does not exist", "check the path"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_before_a_model_is_loaded(name, model, eval_folder, here, mmalign):
    (bench,), more, what, fix = MISTAKES[name]
    result = mmalign("eval", model, "--bench", bench, "--data", eval_folder, *more)
    assert_refused(result, what, fix, here)


def test_a_folder_for_what_reads_none(model, eval_folder, here, mmalign):
    result = mmalign("eval", model, "--bench", "toy-pope,toy-lookup", "--data", eval_folder)
    assert_refused(result, "toy-pope, toy-lookup read no folder, and --data names one", "leave --data out", here)


def test_a_folder_that_one_of_two_reads(model, eval_folder, mmalign, monkeypatch):
    nodes = []
    monkeypatch.setattr(models, "_run", nodes.append)
    monkeypatch.setattr(models.show, "scores", lambda *_: None)
    result = mmalign("eval", model, "--bench", "pope,toy-pope", "--data", eval_folder)
    assert "note: toy-pope reads no folder: --data is not for it" in result.err
    assert nodes[0].cards["bench.pope"].args["data"] == str(eval_folder)


def test_missing_pictures(model, eval_folder, here, mmalign):
    (eval_folder / "pope" / "val2014" / "a.jpg").unlink()
    result = mmalign("eval", model, "--bench", "pope", "--data", eval_folder)
    assert_refused(result, "1 of 1 pictures are missing: a.jpg", "images=FOLDER", here)


def test_half_of_the_data(model, eval_folder, here, mmalign):
    place = eval_folder / "pope" / "llava_pope_test.jsonl"
    place.write_bytes(place.read_bytes()[:-9])
    assert_refused(mmalign("eval", model, "--bench", "pope", "--data", eval_folder), "not valid JSON", "cut off", here)


def assert_refused(result, what, fix, here):
    """Exit code 2, three lines, and no stage was begun."""
    assert (result.code, result.out) == (2, "")
    lines = result.err.splitlines()
    assert what in lines[0]
    assert lines[-1].startswith("  try  ")
    assert fix in lines[-1]
    assert len(lines) <= 3
    assert not list(here.glob("runs/evaluate-*"))
