"""What each pass sees: a function of seed and step alone, bad samples counted, labels beside their images."""

import json
import threading
import time
import weakref
from dataclasses import replace

import pytest
import torch

from mmalign.data import Data, Record, Turn
from mmalign.errors import DataError, RunError, StageError
from mmalign.llms.chat import Chat
from mmalign.training import batches
from mmalign.training.batches import BadSamples, Batches, Collate
from tests import parts


class Rows(Data):
    """Text rows; some cannot be used."""

    def __init__(self, count=10, broken=()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if number in self.broken:
            raise DataError(f"row {number} is broken")
        return Record(f"r{number}", (Turn("user", "What?"), Turn("assistant", f"{number} red")))


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    parts.tokenizer("bytelevel", folder)
    return Chat(str(folder))


def make(chat, rows=10, batch=4, micro=2, rank=0, ranks=1, workers=0, seed=1, broken=(), bad=None, **more):
    collate = Collate(Rows(rows, broken), chat, None, 0, 60, bad or BadSamples(9), **more)
    return Batches(collate, rows, batch, micro, seed, rank, ranks, workers)


def test_every_epoch_sees_every_row_once(chat):
    batches = make(chat, rows=12)
    first = [n for step in range(3) for numbers in batches.numbers(step) for n in numbers]
    assert sorted(first) == list(range(12))
    second = [n for step in range(3, 6) for numbers in batches.numbers(step) for n in numbers]
    assert sorted(second) == list(range(12))
    assert second != first


def test_ranks_share_the_passes_of_one_process(chat):
    whole = make(chat).of_step(3)
    halves = [make(chat, rank=rank, ranks=2).of_step(3) for rank in (0, 1)]
    assert [halves[n % 2][n // 2] for n in range(2)] == whole
    assert len({seed for _, seed in whole}) == 2


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_reading_ahead_changes_nothing(chat, workers):
    expected = [[b.ids for b in step] for step in make(chat).run(0, 5)]
    assert [[b.ids for b in step] for step in make(chat, workers=workers).run(0, 5)] == expected
    assert [[b.ids for b in step] for step in make(chat, workers=workers).run(3, 5)] == expected[3:]


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"), [(10, 4, 1, 3), (8, 4, 1, 2), (8, 4, 2.5, 5), (3, 4, 1, 1)]
)
def test_steps(chat, rows, batch, epochs, steps):
    assert make(chat, rows, batch).steps(epochs) == steps


def test_padding_is_neither_read_nor_trained(chat):
    batch = make(chat).collate.batch([0, 1, 2], seed=0)
    for row, mask in enumerate(batch.mask_RS.tolist()):
        length = sum(mask)
        assert mask == [1] * length + [0] * (len(mask) - length)
        assert not batch.weight_RS[row, length:].any()
    assert batch.units == {"tokens": float(batch.weight_RS.sum()), "images": 0.0}


def test_weights_of_tokens_that_are_no_answer(chat):
    plain = make(chat).collate.batch([3], seed=0)
    light = make(chat, prompt_weight=0.25).collate.batch([3], seed=0)
    answers = plain.weight_RS[0] == 1
    assert torch.equal(light.weight_RS[0] == 1, answers)
    assert set(light.weight_RS[0, 1:][~answers[1:]].tolist()) == {0.25}
    assert light.weight_RS[0, 0] == 0


class Weighted(Data):
    """A talk of three answers."""

    def __len__(self):
        return 1

    def __getitem__(self, number):
        texts = [("What?", "red", 0.5), ("And?", "blue", 0.0), ("Then?", "star", 1.0)]
        turns = [turn for ask, say, w in texts for turn in (Turn("user", ask), Turn("assistant", say, w))]
        return Record("r", tuple(turns))


def test_answers_count_by_the_weights_of_their_turns(chat):
    batch = Collate(Weighted(), chat, None, 0, 200, BadSamples(0)).batch([0], seed=0)
    row_S, weight_S = batch.ids_RS[0], batch.weight_RS[0]
    said = {w: chat.tokenizer.decode(row_S[weight_S == w]).replace(" ", "") for w in (0.5, 1.0)}
    assert said == {0.5: "red</s>", 1.0: "star</s>"}
    assert batch.cuts == {}
    light = Collate(Weighted(), chat, None, 0, 200, BadSamples(0), prompt_weight=0.25).batch([0], seed=0)
    blue = chat.tokenizer.decode(light.ids_RS[0][light.weight_RS[0] == 0]).replace(" ", "")
    assert blue == "<s>blue</s>"  # its turn says 0; and nothing predicts the first token


def test_what_is_cut_is_counted(chat):
    whole = Collate(Weighted(), chat, None, 0, 200, BadSamples(0)).sample(Weighted()[0])
    ends = len(whole.ids) - 1  # the last token, the end of an answer, and the one before are lost
    cut = Collate(Weighted(), chat, None, 0, ends - 1, BadSamples(0)).batch([0, 0], seed=0)
    assert cut.cuts == {"cut_samples": 2, "cut_tokens": 4}


def test_bad_rows_are_left_out_counted_and_listed(chat, tmp_path):
    bad = BadSamples(2, tmp_path)
    batch = make(chat, broken={1, 4}, bad=bad).collate.batch([0, 1, 4, 5], seed=0)
    assert batch.ids == ["r0", "r5"]
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert lines == [{"sample": f"row {n}", "reason": f"row {n} is broken"} for n in (1, 4)]


def test_the_budget_stops_a_stage(chat, tmp_path):
    collate = make(chat, broken={1, 4}, bad=BadSamples(1, tmp_path)).collate
    message = r"2 unusable samples, more than `max_bad` allows \(1\): row 1: row 1 is broken"
    with pytest.raises(StageError, match=message):
        collate.batch([0, 1, 4, 5], seed=0)


def test_the_lists_of_all_ranks_are_counted_and_put_together(chat, tmp_path):
    ranks = [BadSamples(3, tmp_path, rank) for rank in (0, 1)]
    for bad, row in zip([*ranks, ranks[1]], (1, 4, 1), strict=True):  # in another epoch row 1 is the other rank's
        make(chat, broken={1, 4}, bad=bad).collate.batch([row], seed=0)
    assert list(ranks[0].all()) == ["row 1", "row 4"]
    assert ranks[0].gather() == 2
    assert [place.name for place in tmp_path.iterdir()] == ["bad.jsonl"]
    assert ranks[0].all() == {f"row {n}": f"row {n} is broken" for n in (1, 4)}
    with pytest.raises(StageError, match=r"2 unusable samples, more than `max_bad` allows \(1\): row 1"):
        BadSamples(1, tmp_path, 1).add("row 4", "again")


def test_what_was_found_before_a_kill_counts_when_a_stage_goes_on(tmp_path):
    BadSamples(2, tmp_path).add("a", "gone")
    BadSamples(2, tmp_path, rank=1).add("b\u2028", "gone too")
    (tmp_path / "checkpoints" / "step-5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-5" / "step.json").write_text("{}")
    again = BadSamples.of(2, tmp_path)
    assert again.all() == {"a": "gone", "b\u2028": "gone too"}
    with pytest.raises(StageError, match="3 unusable samples"):
        again.add("c", "gone")
    assert BadSamples.of(2, tmp_path).all() == {}  # the budget ended it: all may be mended by now


def test_a_stage_that_begins_anew_finds_no_old_list(tmp_path):
    BadSamples(2, tmp_path).add("a", "gone")
    assert BadSamples.of(2, tmp_path).all() == {}


def test_a_pass_nobody_could_use_is_still_a_pass(chat):
    batch = make(chat, broken={1}, bad=BadSamples(1)).collate.batch([1], seed=0)
    assert batch.ids == []
    assert batch.ids_RS.shape == (1, 1)
    assert batch.units["tokens"] == 0


def test_a_row_cut_until_no_answer_is_left_is_bad(chat):
    bad = BadSamples(1)
    collate = Collate(Rows(), chat, None, 0, 3, bad)
    collate.batch([0], seed=0)
    assert "no trained token is left" in bad.reasons["r0"]


def test_an_order_of_its_own_is_kept(chat):
    batches = make(chat, rows=8)
    batches.order = lambda epoch: [7, 6, 5, 4, 3, 2, 1, 0] if epoch == 0 else list(range(8))
    assert [batches.numbers(step) for step in range(3)] == [[[7, 6], [5, 4]], [[3, 2], [1, 0]], [[0, 1], [2, 3]]]


# Reading ahead


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_what_goes_wrong_ahead_is_raised_where_its_step_is_asked_for(chat):
    """With the words it has without reading ahead, behind the steps before it; and no reader outlives it."""
    told = []
    for workers in (0, 2):
        batches = make(chat, workers=workers, bad=BadSamples(0))
        bad = batches.numbers(2)[0][0]  # of the first epoch, so no step before has it
        batches.collate.data.broken = (bad,)
        seen = []
        with pytest.raises(StageError) as caught:
            for step in batches.run(0, 8):
                seen.append([batch.ids for batch in step])
        told.append((str(caught.value), seen))
        assert not readers()
    assert told[0] == told[1]
    assert len(told[0][1]) == 2


def test_readers_end_when_the_loop_does(chat):
    batches = make(chat, workers=2)
    run = batches.run(0, 1000)
    next(run)
    assert readers()
    run.close()
    assert not readers()


def test_no_more_than_three_steps_are_held(chat):
    """However slow the loop is: that in work, and two read ahead."""
    batches = make(chat, workers=2)
    alive, most = weakref.WeakSet(), 0
    own = batches.collate.batch

    class Held(list):
        pass

    def batch(numbers, seed):
        made = own(numbers, seed)
        made.ids = Held(made.ids)
        alive.add(made.ids)
        return made

    Held.__hash__ = object.__hash__
    batches.collate.batch = batch
    for _ in batches.run(0, 30):
        time.sleep(0.002)
        most = max(most, len(alive))
    assert 3 <= most <= (1 + 3) * batches.passes  # the loop's own variable holds the step before


def test_passes_are_pinned_by_the_readers(chat, monkeypatch):
    """Every tensor of a pass, those in lists too; what is not a tensor stays. The order is the same."""
    pinned, threads = set(), set()

    def pin(tensor):
        threads.add(threading.current_thread().name)
        copy = tensor.clone()
        pinned.add(id(copy))
        kept.append(copy)
        return copy

    kept = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    plain, ours = make(chat, workers=2), make(chat, workers=2)
    assert plain.pin is torch.cuda.is_available()
    plain.pin, ours.pin = False, True
    for theirs, own in zip(plain.run(0, 3), ours.run(0, 3), strict=True):
        for one, other in zip(theirs, own, strict=True):
            assert one.ids == other.ids
            assert torch.equal(one.ids_RS, other.ids_RS)
            assert {id(other.ids_RS), id(other.mask_RS), id(other.weight_RS)} <= pinned
    assert all(name.startswith("reader") for name in threads)
    batch = replace(own[0], target_pixels=[torch.ones(2)])
    assert id(batches.pinned(batch).target_pixels[0]) in pinned
    assert batches.pinned(batch).pixels_B3SS is None


@pytest.mark.parametrize("damage", ["{", "[]", '{"sample": "a"}', '{"sample": 1, "reason": "b"}'])
def test_a_damaged_list_of_unusable_samples_is_named(tmp_path, damage):
    place = tmp_path / "bad.jsonl"
    place.write_text('{"sample": "a", "reason": "b"}\n' + damage + "\n")
    with pytest.raises(RunError) as caught:
        BadSamples(3, tmp_path).all()
    assert caught.value.at.startswith(f"{place}:2")
    assert caught.value.fix == f"delete {place}: what is unusable is found again"
