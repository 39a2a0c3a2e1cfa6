"""Micro-batches and steps are of records of like length; all else about an epoch's order is random, and repeatable."""

import numpy as np
import pytest

from mmalign.data import Data, Record, Turn, order
from mmalign.errors import DataError


def heavy_tailed(count=20_000, seed=0):
    """Lengths and kinds of something like LLaVA's mix: images with short talks, some texts, a few very long."""
    random = np.random.default_rng(seed)
    kinds = (random.random(count) > 0.06).astype(int)
    texts = np.exp(random.normal(np.where(kinds, 4.6, 6.2), 1.0))
    return np.where(kinds, 576 + texts, texts).astype(int).clip(8, 4096), kinds


@pytest.mark.parametrize("micro_batch", [1, 4, 8, 16, 32])
def test_hardly_anything_is_padded(micro_batch):
    lengths, kinds = heavy_tailed()
    order_N = order.grouped(lengths, micro_batch, 128, (7, 0), kinds)
    assert order.padding_ratio(lengths, order_N, micro_batch) <= 1.02
    at_random = np.random.default_rng(0).permutation(len(lengths))
    assert micro_batch == 1 or order.padding_ratio(lengths, at_random, micro_batch) > 1.25


def test_text_alone_with_a_heavy_tail():
    lengths = np.exp(np.random.default_rng(1).normal(5, 1.2, 20_000)).astype(int).clip(5, 4096)
    assert order.padding_ratio(lengths, order.grouped(lengths, 32, 128, 0), 32) <= 1.02


@pytest.mark.parametrize("count", [0, 1, 3, 7, 8, 100, 129])
@pytest.mark.parametrize("micro_batch", [1, 4, 8])
@pytest.mark.parametrize("start", [0, 1, 5, 64])
def test_every_record_once(count, micro_batch, start):
    lengths, kinds = heavy_tailed(count)
    order_N = order.grouped(lengths, micro_batch, 16, 3, kinds, start)
    assert sorted(order_N) == list(range(count))


def test_the_same_arguments_give_the_same_order():
    lengths, kinds = heavy_tailed(500)
    order_N = order.grouped(lengths, 4, 16, (1, 2), kinds)
    assert (order_N == order.grouped(list(lengths), 4, 16, (1, 2), list(kinds))).all()
    assert (order_N != order.grouped(lengths, 4, 16, (1, 3), kinds)).any()


def micro_batches(order_N, micro_batch):
    return order_N[: len(order_N) // micro_batch * micro_batch].reshape(-1, micro_batch)


def test_a_micro_batch_has_one_kind():
    lengths, kinds = heavy_tailed(1000)
    mixed = [len(set(kinds[micro])) > 1 for micro in micro_batches(order.grouped(lengths, 8, 32, 0, kinds), 8)]
    assert sum(mixed) <= 1  # what is left over of both kinds


def test_epochs_meet_other_records():
    lengths, _ = heavy_tailed()
    first, second = (micro_batches(order.grouped(lengths, 8, 128, (0, epoch)), 8) for epoch in (0, 1))
    pairs = [{(a, b) for micro in micro_UM for a in micro for b in micro if a < b} for micro_UM in (first, second)]
    assert len(pairs[0] & pairs[1]) < 0.1 * len(pairs[0])


def work(lengths, order_N, micro_batch, ranks):
    """Tokens all ranks could have computed in the time the slowest of each round took, over real tokens."""
    order_N = order_N[: len(order_N) // (micro_batch * ranks) * micro_batch * ranks]
    longest = lengths[micro_batches(order_N, micro_batch)].max(1).reshape(-1, ranks)
    return longest.max(1).sum() * ranks * micro_batch / lengths[order_N].sum()


@pytest.mark.parametrize(("micro_batch", "ranks"), [(4, 2), (4, 8), (16, 2), (16, 8), (1, 64)])
def test_no_rank_waits_for_another(micro_batch, ranks):
    """Batches of 128; micro-batch m of a step belongs to rank m % ranks, as in Batches."""
    lengths, kinds = heavy_tailed(40_000)
    assert work(lengths, order.grouped(lengths, micro_batch, 128, 0, kinds), micro_batch, ranks) <= 1.04
    assert work(lengths, np.random.default_rng(0).permutation(len(lengths)), micro_batch, ranks) > 1.5


def test_the_order_of_steps_is_random():
    lengths, kinds = heavy_tailed()
    order_N = order.grouped(lengths, 8, 128, 0, kinds)
    of_step, text = lengths[micro_batches(order_N, 128)].mean(1), kinds[micro_batches(order_N, 128)].mean(1)
    assert abs(np.corrcoef(of_step[:-1], of_step[1:])[0, 1]) < 0.25  # 156 steps: two standard errors are 0.16
    assert ((text > 0) & (text < 1)).sum() <= 3  # where the kinds meet, and the last


@pytest.mark.parametrize("start", [0, 40, 128, 20_000])
def test_steps_that_begin_in_an_earlier_epoch_are_filled_up(start):
    """With any number of records before, all but the first and the last step are of like length."""
    lengths, kinds = heavy_tailed()
    order_N = order.grouped(lengths, 8, 128, 0, kinds, start)[-start % 128 :]
    spread = [np.ptp(np.log(lengths[step])) for step in micro_batches(order_N, 128)]
    assert np.median(spread) < 0.05


def test_micro_batches_go_on_across_epochs():
    """1003 records, 8 a micro-batch: the second epoch begins in the middle of one, and its own are whole."""
    lengths, kinds = heavy_tailed(1003)
    epochs = [order.grouped(lengths, 8, 32, (0, epoch), kinds, epoch * 1003) for epoch in range(3)]
    every = micro_batches(np.concatenate(epochs), 8)
    mixed = [len(set(kinds[micro])) > 1 for micro in every]
    assert sum(mixed) <= 2 * len(epochs)
    flat = np.concatenate(epochs)[: len(every) * 8]
    assert order.padding_ratio(lengths, flat, 8) < 1.1


def slow_sorted_steps(lengths, batch, seed, kinds, start):
    """LLaVA's way, record by record."""
    random = np.random.default_rng(seed)
    drawn = list(random.permutation(len(lengths)))
    head = [drawn.pop(0) for _ in range(min(-start % batch, len(lengths)))]
    steps, left = [], []
    for kind in sorted(set(kinds)):
        own = [record for record in drawn if kinds[record] == kind]
        while len(own) >= batch:
            steps.append([own.pop(0) for _ in range(batch)])
        left += own
    left = [left[i] for i in random.permutation(len(left))]
    steps = [steps[i] for i in random.permutation(len(steps))]
    steps += [left[at : at + batch] for at in range(0, len(left), batch)]
    return head + [record for step in steps for record in sorted(step, key=lambda record: -lengths[record])]


@pytest.mark.parametrize("count", [0, 1, 7, 100, 1003])
@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("start", [0, 5, 64])
def test_a_step_is_drawn_at_random_and_sorted(count, batch, start):
    lengths, kinds = heavy_tailed(count)
    order_N = order.sorted_steps(lengths, batch, (3, 1), kinds, start)
    assert sorted(order_N) == list(range(count))
    same = np.random.default_rng((3, 1)).permutation(count)  # numpy permutes numbers and rows alike
    assert list(order_N[: -start % batch]) == list(same[: -start % batch])
    for step in micro_batches(order_N[-start % batch :], batch):
        assert (np.diff(lengths[step]) <= 0).all()


def test_steps_are_a_fair_sample_of_their_kind():
    """Of one kind each, and their mean lengths differ as those of random samples do; `grouped` steps' do not."""
    lengths, kinds = heavy_tailed()
    steps = micro_batches(order.sorted_steps(lengths, 128, 0, kinds), 128)
    assert sum(len(set(kinds[step])) > 1 for step in steps) <= 2  # what is left over
    pictured = steps[(kinds[steps] == 1).all(1)]
    spread = lengths[kinds == 1].std() / np.sqrt(128)
    assert 0.8 < lengths[pictured].mean(1).std() / spread < 1.2
    by_epoch = micro_batches(order.grouped(lengths, 16, 128, 0, kinds), 128)
    assert lengths[by_epoch[(kinds[by_epoch] == 1).all(1)]].mean(1).std() / spread > 5
    at_random = np.random.default_rng(0).permutation(len(lengths))
    steps_N = order.sorted_steps(lengths, 128, 0, kinds)
    assert order.padding_ratio(lengths, steps_N, 16) < 0.5 * (order.padding_ratio(lengths, at_random, 16) - 1) + 1


@pytest.mark.parametrize("start", [0, 5])
def test_sorted_steps_are_those_of_the_definition(start):
    lengths, kinds = heavy_tailed(301)
    assert list(order.sorted_steps(lengths, 16, 9, kinds, start)) == slow_sorted_steps(lengths, 16, 9, kinds, start)
    alone = order.sorted_steps(lengths, 16, 9, start=start)
    assert list(alone) == slow_sorted_steps(lengths, 16, 9, [0] * 301, start)


class Few(Data):
    def __len__(self):
        return 3

    def __getitem__(self, number):
        if number == 1:
            raise DataError("broken")
        images = (number,) if number else ()
        return Record(str(number), (Turn("user", "x" * 36), Turn("assistant", "y" * 4)), images)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_lengths_of_records(workers):
    lengths, kinds = order.lengths(Few(), tokens=576, workers=workers)
    assert lengths.tolist() == [11, 0, 587]
    assert kinds.tolist() == [0, 0, 1]
    assert order.lengths(Few(), lambda record: len(record.turns))[0].tolist() == [2, 0, 2]


def test_no_lengths():
    class None_(Few):
        def __len__(self):
            return 0

    assert order.lengths(None_())[0].tolist() == []
