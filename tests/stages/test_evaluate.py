"""The evaluation stage: answers are stored as they come, and a run that is killed goes on where it was."""

import copy
import json
import os
import signal
import time
import zlib
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from mmalign.adapters.mlp import MLP
from mmalign.benchmarks import Benchmark, Cut, Question, Score, asked
from mmalign.benchmarks.resume import stored
from mmalign.benchmarks.vizwiz import VizWiz
from mmalign.errors import DataError
from mmalign.io import pictures
from mmalign.llms.causal import CausalLM
from mmalign.pipeline import build, task
from mmalign.plan.recipe import Evaluate, Part
from mmalign.stages import evaluate, progress
from mmalign.training import events
from mmalign.vision.hf import HFVision
from mmalign.vlm.model import VLM
from mmalign.vlm.prefix import Pass
from tests import parts
from tests.vlm.test_model import picture

MOMENTS = [0, 1, 2, 5, 6, 7, 11, 17, 20, 23]  # answers stored when the process is killed


class Quiz(Benchmark):
    """Six questions about each of four images, answered in free text."""

    max_new_tokens = 4

    def questions(self) -> Sequence[Question]:
        told = "what colour is the star", "red", "Yes or No", "left of the large blue ring", "describe this image", "12"
        return [Question(f"{image}-{n}", text, image) for image in range(4) for n, text in enumerate(told)]

    def image(self, reference):
        return picture(reference)

    def score(self, answers) -> Score:
        items = {one.id: float(zlib.crc32(answers.get(one.id, "").encode())) for one in self.questions()}
        return Score({"sum": sum(items.values())}, "sum", items)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> VLM:
    clip = parts.clip(tmp_path_factory.mktemp("clip"))
    eye, mouth = HFVision(str(clip)), CausalLM(str(parts.llm("llama", tmp_path_factory.mktemp("llama"))))
    for name, parameter in mouth.named_parameters():  # sharper than as initialised, so that answers differ
        if parameter.dim() > 1 and "embed" not in name:
            parameter.data.mul_(4)
    torch.manual_seed(1)
    return VLM(eye, MLP(eye.dim, mouth.dim, eye.grid), mouth).eval()


class Deadly:
    """A model whose process dies, as by kill -9, when `after` answers are stored; half of the times amid a line."""

    def __init__(self, model: VLM, place: Path, after: int) -> None:
        self.model, self.place, self.after = model, place, after

    def answers(self, bench, questions, batch) -> Iterator[tuple[Question, str]]:
        (self.place.with_name("asked.txt")).open("a").write(f"{len(questions)}\n")
        for question, text in self.model.answers(bench, questions, batch):
            if len(self.place.read_bytes().splitlines()) >= self.after:
                if self.after % 2:
                    self.place.open("ab").write(b'{"id": "3-5", "te')
                os.kill(os.getpid(), signal.SIGKILL)
            yield question, text


def in_a_process(model: VLM, place: Path, after: int) -> None:
    """Measure in a child of this process, which is killed on its way."""
    child = os.fork()
    if not child:
        try:
            evaluate.measure(Deadly(model, place, after), Quiz(), place, batch=7)
        finally:
            os._exit(0)  # not reached where it is killed
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def rows(place: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]


def test_a_run_killed_at_ten_moments_ends_as_one_that_was_not(model, tmp_path):
    whole, place = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    expected = evaluate.measure(model, Quiz(), whole, batch=7)
    for after in MOMENTS:
        in_a_process(model, place, after)
        answers = stored(Quiz(), place)
        assert len(answers) == after
        assert answers.items() <= stored(Quiz(), whole).items()
    assert evaluate.measure(model, Quiz(), place, batch=7) == expected
    key = lambda row: row["id"]  # noqa: E731
    assert sorted(rows(place), key=key) == sorted(rows(whole), key=key)  # each question once
    asked = [int(line) for line in (tmp_path / "asked.txt").read_text().split()]
    assert asked == [24 - done for done in [0, *MOMENTS[:-1]]]
    assert len(set(expected.items.values())) > 1


def test_a_model_stored_in_fp16_is_asked_in_it(model, tmp_path):
    half = copy.deepcopy(model)
    build.cast_all("fp16", half)
    found = evaluate.measure(half, Quiz(), tmp_path / "half.jsonl", batch=7)
    assert {parameter.dtype for parameter in half.llm.parameters()} == {torch.float16}
    assert len(set(found.items.values())) > 1


def test_a_finished_run_asks_nothing(model, tmp_path):
    place = tmp_path / "a.jsonl"
    expected = evaluate.measure(model, Quiz(), place, batch=7)
    before = place.read_bytes()
    counting = Counting(model)
    assert evaluate.measure(counting, Quiz(), place, batch=7) == expected
    assert (counting.asked, place.read_bytes()) == (0, before)


def test_what_the_ranks_of_a_killed_run_had_is_kept(model, tmp_path):
    """Several processes write files of their own; the one run after them, of any number, begins with these."""
    whole, place = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    expected = evaluate.measure(model, Quiz(), whole, batch=7)
    lines = whole.read_text(encoding="utf-8").splitlines(keepends=True)
    place.write_text("".join(lines[:3]), encoding="utf-8")
    (tmp_path / "part.rank0.jsonl").write_text("".join(lines[2:9]) + lines[9][:9], encoding="utf-8")
    (tmp_path / "part.rank1.jsonl").write_text("".join(lines[12:15]), encoding="utf-8")
    counting = Counting(model)
    assert evaluate.measure(counting, Quiz(), place, batch=7) == expected
    assert counting.asked == 24 - 12
    assert sorted(place.read_text(encoding="utf-8").splitlines(keepends=True)) == sorted(lines)
    assert [found.name for found in tmp_path.glob("part*")] == ["part.jsonl"]


def test_answers_in_other_words_are_gone_on_from(model, tmp_path):
    """Case a19: lines that `score` reads."""
    whole, place = tmp_path / "whole.jsonl", tmp_path / "edited.jsonl"
    expected = evaluate.measure(model, Quiz(), whole, batch=7)
    own = [{"question_id": row["id"], "answer": row["text"]} for row in rows(whole)[:5]]
    place.write_text("".join(json.dumps(row) + "\n" for row in own).rstrip(), encoding="utf-8")  # its last line open
    counting = Counting(model)
    score = evaluate.measure(counting, Quiz(), place, batch=7)
    assert (score.metrics, score.items) == (expected.metrics, expected.items)  # which answers were cut, such lines lack
    assert counting.asked == 24 - 5
    assert rows(place)[:5] == own


def test_what_is_stored_is_read_before_a_model_is_built(tmp_path, monkeypatch):
    (tmp_path / "quiz.jsonl").write_text('{"id": "0-0", "text": "a"}\n{"id": "0-1", "te\n')
    monkeypatch.setattr(evaluate, "bench_of", lambda *_: Quiz())
    monkeypatch.setattr(evaluate, "_model", lambda *_: pytest.fail("a model is built"))
    stage = SimpleNamespace(bench=[SimpleNamespace(card="quiz")])
    with pytest.raises(DataError) as error:
        evaluate.run(SimpleNamespace(stage=stage, folder=tmp_path))
    assert error.value.at == f"{tmp_path / 'quiz.jsonl'}:2"


class Counting:
    def __init__(self, model: VLM) -> None:
        self.model, self.asked = model, 0

    def answers(self, bench, questions, batch):
        self.asked = len(questions)
        return self.model.answers(bench, questions, batch)


def as_ranks(model: VLM, place: Path, ranks: int) -> list[int]:
    """Measure in new processes that share the questions; their exit codes: whether each got its due."""
    context = get_context("spawn")  # a forked one would inherit the process group of another test
    children = [context.Process(target=_as_rank, args=(model, place, rank, ranks)) for rank in range(ranks)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return [child.exitcode or 0 for child in children]


def _as_rank(model: VLM, place: Path, rank: int, ranks: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
    dist.init_process_group("gloo", init_method=f"file://{place}.store", rank=rank, world_size=ranks)
    counting = Counting(model)
    found = evaluate.measure(counting, Quiz(), place, batch=7)
    os._exit(0 if counting.asked < 24 and bool(found.metrics) == (rank == 0) else 2)


def test_two_ranks_share_the_questions(model, tmp_path):
    whole, place = tmp_path / "whole.jsonl", tmp_path / "two.jsonl"
    evaluate.measure(model, Quiz(), whole, batch=7)
    first = whole.read_text(encoding="utf-8").splitlines(keepends=True)[:2]
    (tmp_path / "two.rank1.jsonl").write_text("".join(first), encoding="utf-8")  # of a run that was killed
    assert as_ranks(model, place, 2) == [0, 0]
    assert sorted(rows(place), key=str) == sorted(rows(whole), key=str)
    assert not list(tmp_path.glob("two.rank*"))


def test_a_split_without_answers_leaves_what_its_server_takes(model, tmp_path):
    data = tmp_path / "data"
    (data / "test").mkdir(parents=True)
    picture(0).save(data / "test" / "t.png")
    (data / "llava_test.jsonl").write_text('{"question_id": 0, "image": "t.png", "text": "What?"}\n')
    bench = VizWiz(str(data))
    found = evaluate.measure(model, bench, tmp_path / "vizwiz.jsonl", batch=7)
    assert (found.metrics, found.counts) == ({}, {"answered": 1, "cut": 1})  # the model never ends by itself
    upload = tmp_path / "vizwiz-submission.json"
    assert found.notes[:-1] == [
        f"VizWiz: these files hold no answers ({bench.data_files})",
        f"for its server: {upload}",
    ]
    assert [row["image"] for row in json.loads(upload.read_text())] == ["t.png"]


# ------------------------------------------------------------------------------------------------- before it is asked


@pytest.fixture
def vizwiz(tmp_path) -> Path:
    """Three questions, each about a picture of its own."""
    place = tmp_path / "data"
    (place / "val").mkdir(parents=True)
    people = [{"answer": "red"}] * 10
    rows = [{"image": f"{name}.png", "question": "what is it?", "answers": people} for name in "abc"]
    for number, row in enumerate(rows):
        picture(number).save(place / "val" / row["image"])
    (place / "val.json").write_text(json.dumps(rows))
    return place


def stage_of(folder: Path, monkeypatch, *benches: Benchmark) -> task.Task:
    """An evaluation of some benchmarks: vizwiz, then more."""
    names = [f"bench{number}" for number in range(len(benches))]
    by_role = {f"bench.{name}": bench for name, bench in zip(names, benches, strict=True)}
    monkeypatch.setattr(evaluate, "bench_of", lambda _, role: by_role[role])
    folder.mkdir(exist_ok=True)
    stage = Evaluate(kind="evaluate", bench=[Part(name) for name in names])
    return task.Task(folder, "score", "r", 0, stage, {}, [], {})


class Parrot:
    """Says the same to every question, and counts what it is asked; its `cut` answers are cut."""

    fit = ""
    vision = None

    def __init__(self, cut: int = 0) -> None:
        self.asked: list[str] = []
        self.cut = cut

    def answers(self, bench, questions, batch) -> Iterator[tuple[Question, str]]:
        for question in questions:
            self.asked.append(question.id)
            yield question, Cut("red") if len(self.asked) <= self.cut else "red"


def evaluated(given: task.Task, monkeypatch, model: Parrot) -> dict:
    monkeypatch.setattr(evaluate, "_model", lambda *_: (model, {}))
    return evaluate.run(given)


def test_missing_pictures_are_told_before_any_part_is_built(vizwiz, tmp_path, monkeypatch):
    (vizwiz / "val" / "a.png").unlink()
    monkeypatch.setattr(evaluate.build, "vlm", lambda _: pytest.fail("parts were built"))
    with pytest.raises(DataError, match="1 of 3 pictures are missing: a.png"):
        evaluate.run(stage_of(tmp_path / "stage", monkeypatch, VizWiz(str(vizwiz))))


def test_broken_pictures_are_told_before_any_part_is_built(vizwiz, tmp_path, monkeypatch):
    """By their headers, and some by their pixels."""
    val = vizwiz / "val"
    (val / "a.png").write_text("<html>404</html>")
    whole = (val / "b.png").read_bytes()
    (val / "b.png").write_bytes(whole[: len(whole) // 2])  # its header is whole
    monkeypatch.setattr(evaluate.build, "vlm", lambda _: pytest.fail("parts were built"))
    with pytest.raises(DataError) as told:
        evaluate.run(stage_of(tmp_path / "stage", monkeypatch, VizWiz(str(vizwiz))))
    assert told.value.what.startswith("bench0: 2 of 3 pictures cannot be read: a.png is a web page: ")
    assert "; b.png: " in told.value.what
    assert str(val / "a.png") == told.value.at
    assert told.value.fix == "fetch these again, then the same command"
    assert told.value.exit_code == 2
    assert not list((tmp_path / "stage").glob("*.asked.json"))


def test_every_header_is_read_and_a_sample_of_pixels(vizwiz, monkeypatch):
    decoded = []
    monkeypatch.setattr(asked, "SAMPLE", 1)
    load = pictures.load
    monkeypatch.setattr(pictures, "load", lambda image, name: (decoded.append(name), load(image, name)))
    bench = VizWiz(str(vizwiz))
    seen, problems = asked.look(bench)
    assert (decoded, problems) == (["a.png"], [])
    assert len({its.content for its in seen.pictures.values()}) == 3
    parts = [asked.look(bench, (rank, 2))[0].pictures for rank in (0, 1)]  # of two processes, each a part
    assert [sorted(part) for part in parts] == [["a.png", "c.png"], ["b.png"]]
    (vizwiz / "val" / "c.png").write_bytes(b"")  # none of the sample
    assert asked.look(bench)[1] == [("c.png has no bytes", str(vizwiz / "val" / "c.png"))]


def test_answers_about_a_picture_that_changed_meanwhile_are_asked_for_again(vizwiz, tmp_path, monkeypatch):
    given = stage_of(tmp_path / "stage", monkeypatch, bench := VizWiz(str(vizwiz)))
    evaluated(given, monkeypatch, Parrot())
    for name, number in (("a.png", 0), ("b.png", 7)):  # written again as it was, and another
        picture(number).save(vizwiz / "val" / name)
    again = Parrot()
    evaluated(given, monkeypatch, again)
    assert again.asked == ["b.png"]
    assert len(rows(given.folder / "bench0.jsonl")) == 3
    assert asked.Asked.read(given.folder / "bench0.asked.json", "").pictures == asked.look(bench)[0].pictures


def test_answers_that_were_cut_are_counted_and_told(vizwiz, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    given = stage_of(tmp_path / "stage", monkeypatch, VizWiz(str(vizwiz)), Quiz())
    about = evaluated(given, monkeypatch, Parrot(cut=2))
    note = "2 of 3 answers were cut at 128 tokens (max_new_tokens)"
    assert about["account"] == [f"bench0: {note}"]
    assert f"bench0: {note}" in caplog.messages
    score = json.loads((given.folder / "bench0.json").read_text())
    assert (score["counts"]["cut"], score["notes"][-1]) == (2, note)
    assert "cut" not in json.loads((given.folder / "bench1.json").read_text())["counts"]
    assert evaluated(given, monkeypatch, Parrot())["account"] == [f"bench0: {note}"]  # as the stored answers say
    (given.folder / "bench0.jsonl").rename(given.folder / "bench0.rank0.jsonl")  # as a rank that was killed left them
    assert evaluated(given, monkeypatch, Parrot())["account"] == [f"bench0: {note}"]


def test_an_answer_of_max_new_tokens_is_cut_and_one_that_ends_is_not(model, monkeypatch):
    write, ids = Pass.write, []
    monkeypatch.setattr(Pass, "write", lambda self, most: (ids.extend(own := write(self, most)), own)[1])
    list(model.answers(Quiz(), Quiz().questions(), batch=24))
    third = {own[2] for own in ids if own[2] not in own[:2]}
    monkeypatch.setattr(model.llm.chat, "ends", {min(third)})
    ids.clear()
    said = [text for _, text in model.answers(Quiz(), Quiz().questions(), batch=24)]
    assert [isinstance(text, Cut) for text in said] == [len(own) == Quiz.max_new_tokens for own in ids]
    assert 0 < sum(isinstance(text, Cut) for text in said) < 24


def test_progress_counts_questions_and_says_how_fast(vizwiz, tmp_path, monkeypatch):
    now, before = [100.0], time.time() - 1
    for room in (progress, events):
        monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(events, "EVERY", 0.0)
    given = stage_of(tmp_path / "stage", monkeypatch, VizWiz(str(vizwiz)), Quiz())
    (given.folder / "bench1.jsonl").write_text('{"id": "0-0", "text": "blue"}\n{"id": "0-1", "text": "blue"}\n')

    class Slow(Parrot):
        def answers(self, *of):
            for pair in super().answers(*of):
                now[0] += 0.5
                yield pair

    evaluated(given, monkeypatch, Slow())
    lines = [json.loads(line) for line in (given.folder / "events.jsonl").read_text().splitlines()]
    assert {line["total"] for line in lines} == {27}
    assert all(before <= line.pop("time") <= time.time() for line in lines)
    assert [line.pop("work") for line in lines] == [[line["done"], 27] for line in lines]
    assert lines[0] == {"done": 0, "total": 27, "unit": "questions", "numbers": {}}
    first = next(line for line in lines if line["done"])
    assert first == {"done": 1, "total": 27, "unit": "questions", "numbers": {"questions/s": 2.0}}
    done = [line["done"] for line in lines]
    assert done == sorted(done)
    assert set(done) == {*range(28)} - {4}  # two were there


def test_what_measures_the_model_itself_takes_as_long_as_many_questions(tmp_path, monkeypatch):
    """12 questions, then a probe that takes as long as 8: when they are answered, 8 of 20 are left."""
    monkeypatch.setattr(events, "EVERY", 0.0)
    counter = progress.Progress(events.Events(tmp_path), 13, 20)
    counter.begin(12, 0, 12)
    for _ in range(12):
        counter.add()
    counter.end(12)
    told = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert (told["done"], told["total"], told["work"]) == (12, 13, [12, 20])
    counter.end(1, 8)
    told = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert (told["done"], told["total"], told["work"]) == (13, 13, [20, 20])


def test_of_several_processes_one_counts_for_all(tmp_path):
    counter = progress.Progress(events.Events(tmp_path), 30)
    counter.begin(20, 2, 9)
    counter.add()
    counter.end(20)
    counter.begin(10, 0, 4)
    for _ in range(4):
        counter.add()
    assert counter._done() == 30
