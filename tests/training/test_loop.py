"""The loop: every logged number is the exact mean over its unit, whatever the passes, ranks and lines of the log."""

import json
import os
import signal
import threading
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmalign.errors import StageError, Stopped
from mmalign.plan.recipe import EngineSettings as Settings
from mmalign.plan.recipe import Optim
from mmalign.training.engine import Engine
from mmalign.training.events import Events
from mmalign.training.later import Later
from mmalign.training.loop import Fit, Term
from mmalign.training.optim import factor, groups


@dataclass
class Pass:
    """Passes of unequal size: some with few tokens, some without an image."""

    x: torch.Tensor
    images: int
    seed: int
    ids: tuple[str, ...] = ("a",)
    cuts: dict[str, int] = field(default_factory=dict)

    @property
    def units(self):
        return {"tokens": float(len(self.x)), "images": float(self.images)}

    def to(self, device):
        return self


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.adapter = nn.Linear(3, 1)

    def forward(self, batch):
        out = self.adapter(batch.x)[:, 0]
        per_image = out[: batch.images].abs().mean() if batch.images else out.sum() * 0
        notes = {"pairs": torch.tensor(float(batch.images))} if batch.images else {}
        return {"lm": out.square().mean(), "sea": per_image}, notes


def passes(step):
    g = torch.Generator().manual_seed(step)
    sizes = [(1, 0), (7, 3), (2, 2), (5, 0)]
    return [Pass(torch.randn(n, 3, generator=g), images, step * 4 + m) for m, (n, images) in enumerate(sizes)]


def fit(folder, steps=6, log_every=1, save_every=100, stop=None, make=passes, lr=1e-2, net=None, zero=0):
    net, optim = net or Net(), Optim(lr=lr, clip=0.0)
    engine = Engine(net, groups(net.named_parameters(), optim), optim, Settings(zero=zero), "fp32", 1, 4)
    terms = {"lm": Term(1.0, "tokens"), "sea": Term(0.5, "images")}
    batches = lambda start: (make(step) for step in range(start, steps))  # noqa: E731
    (folder / "events.jsonl").touch()
    return net, Fit(
        engine, batches, steps, optim, terms, folder, Events(folder), save_every, log_every, [stop] if stop else []
    )


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def by_hand(steps):
    """The same in one batch a step: means over all tokens and all images."""
    net, optim = Net(), Optim(lr=1e-2, clip=0.0)
    adam = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.0)

    rows = []
    for step in range(steps):
        outs = [(net.adapter(p.x)[:, 0], p.images) for p in passes(step)]
        lm = torch.cat([out for out, _ in outs]).square().mean()
        sea = torch.cat([out[:images].abs() for out, images in outs]).mean()
        for settings in adam.param_groups:
            settings["lr"] = 1e-2 * factor(step, steps, optim)
        (lm + 0.5 * sea).backward()
        adam.step()
        adam.zero_grad()
        rows.append((lm.item(), sea.item()))
    return net, rows


def test_losses_and_gradients_are_those_of_the_whole_step(tmp_path):
    net, run = fit(tmp_path)
    run.run()
    expected, rows = by_hand(6)
    for line, (lm, sea) in zip(log(tmp_path), rows, strict=True):
        assert line["lm"] == pytest.approx(lm, rel=1e-5)
        assert line["sea"] == pytest.approx(sea, rel=1e-5)
        assert line["loss"] == pytest.approx(lm + 0.5 * sea, rel=1e-5)
        assert (line["tokens"], line["images"], line["samples"]) == (15, 5, 4)
        assert line["peak_memory_gib"] > 0
        assert line["pairs"] == 2.5  # over the two passes that noted it
    assert torch.allclose(net.adapter.weight, expected.adapter.weight, rtol=1e-5)


def test_a_line_over_several_steps_is_their_mean(tmp_path):
    _, run = fit(tmp_path, steps=5, log_every=2)
    run.run()
    _, rows = by_hand(5)
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert lines[0]["lm"] == pytest.approx((rows[0][0] + rows[1][0]) / 2, rel=1e-5)
    assert lines[2]["lm"] == pytest.approx(rows[4][0], rel=1e-5)


def test_cuts_are_added_up(tmp_path):
    def make(step):
        return [
            replace(one, cuts={"cut_samples": 1, "cut_tokens": 10}) if step in (1, 3) else one for one in passes(step)
        ]

    fit(tmp_path, steps=5, log_every=2, make=make)[1].run()
    assert [line.get("cut_samples") for line in log(tmp_path)] == [4, 4, None]
    assert [line.get("cut_tokens") for line in log(tmp_path)] == [40, 40, None]


def test_stop_ends_it_early(tmp_path):
    _, run = fit(tmp_path, stop=lambda done: done == 3, log_every=2)
    last = run.run()
    assert [line["step"] for line in log(tmp_path)] == [2, 3]
    line = log(tmp_path)[-1]
    assert last == {name: value for name, value in line.items() if name != "time"}


def test_every_line_of_the_log_and_of_the_events_says_when(tmp_path):
    before = time.time() - 0.001  # they are rounded
    fit(tmp_path, steps=3)[1].run()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    for lines in (log(tmp_path), events):
        times = [line["time"] for line in lines]
        assert before <= times[0] <= times[-1] <= time.time() + 0.001
        assert times == sorted(times)


def test_watchers_are_asked_before_the_first_step_and_after_each_and_a_step_does_not_count_their_time(tmp_path):
    asked = []

    def slow(done):
        asked.append((done, len(log(tmp_path)) if (tmp_path / "metrics.jsonl").exists() else 0))
        time.sleep(0.25)
        return not done  # nobody can end what has not begun

    fit(tmp_path, steps=3, stop=slow)[1].run()
    assert asked == [(0, 0), (1, 0), (2, 1), (3, 2)]
    assert all(line["steps_per_second"] > 4 for line in log(tmp_path))


def test_an_interrupted_run_repeats_and_loses_no_line_of_a_watcher(tmp_path):
    """Killed before the first checkpoint, and behind it."""
    place = tmp_path / "looks.jsonl"

    def note(done):
        with open(place, "a") as out:
            out.write(json.dumps({"step": done}) + "\n")
        return False

    def until(step):
        def make(number):
            if number == step:
                raise KeyboardInterrupt
            return passes(number)

        return make

    for step in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, steps=7, save_every=3, stop=note, make=until(step))[1].run()
    fit(tmp_path, steps=7, save_every=3, stop=note)[1].run()
    assert [json.loads(line)["step"] for line in place.read_text().splitlines()] == list(range(8))


def test_an_interrupted_run_writes_the_log_and_weights_of_an_uninterrupted_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    net, run = fit(one, steps=9, log_every=2, save_every=3)
    run.run()

    def broken(step):
        if step == 7:
            raise KeyboardInterrupt
        return passes(step)

    _, cut = fit(two, steps=9, log_every=2, save_every=3, make=broken)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    again, rest = fit(two, steps=9, log_every=2, save_every=3)
    rest.run()
    assert torch.equal(again.adapter.weight, net.adapter.weight)
    keep = ("step", "loss", "lm", "sea", "pairs", "lr", "norm")
    assert [[line[k] for k in keep] for line in log(two)] == [[line[k] for k in keep] for line in log(one)]


def test_a_damaged_line_of_the_log_is_told_and_costs_no_more_than_itself(tmp_path):
    def broken(step):
        if step == 7:
            raise KeyboardInterrupt
        return passes(step)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, steps=9, save_every=3, make=broken)[1].run()
    place = tmp_path / "metrics.jsonl"
    place.write_text(place.read_text().replace('{"step": 2', '{"step" 2'))
    fit(tmp_path, steps=9, save_every=3)[1].run()
    assert [line["step"] for line in log(tmp_path)] == [1, *range(3, 10)]
    assert "metrics.jsonl: 1 damaged lines are left out" in (tmp_path / "events.jsonl").read_text()


@pytest.mark.parametrize("at", [5, 6])  # in the midst of a line of the log, and where one ends
def test_sigterm_ends_the_step_saves_and_the_rest_is_as_if_it_had_not_come(tmp_path, at):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    net, run = fit(one, steps=11, log_every=3, save_every=100)
    run.run()

    def told(step):
        if step == at - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return passes(step)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=f"ended by SIGTERM\n  at   step {at}\n  try  the same command goes on"):
        fit(two, steps=11, log_every=3, save_every=100, make=told)[1].run()
    assert signal.getsignal(signal.SIGTERM) is before
    assert [place.name for place in (two / "checkpoints").iterdir()] == [f"step-{at}"]
    again, rest = fit(two, steps=11, log_every=3, save_every=100)
    rest.run()
    assert torch.equal(again.adapter.weight, net.adapter.weight)
    keep = ("step", "loss", "lm", "sea", "pairs", "tokens", "images", "lr", "norm")
    assert [[line[k] for k in keep] for line in log(two)] == [[line[k] for k in keep] for line in log(one)]


def test_another_number_of_processes_is_told_and_kept(tmp_path, monkeypatch):
    """Here one that says it was two before; tests/pipeline/test_pipeline.py has them train."""
    stops = iter([False, False, True])  # before the first step, and behind each
    _, run = fit(tmp_path, save_every=1, stop=lambda done: next(stops))
    run.processes = [[0, 2]]
    monkeypatch.setattr(Fit, "_told", lambda self, step: None)
    run.run()
    monkeypatch.undo()
    _, run = fit(tmp_path)
    run.run()
    assert run.processes == [[0, 2], [1, 1]]
    assert run.account() == ["trained by 2 processes from step 0 on, 1 process from step 1 on"]
    said = [json.loads(line).get("say", "") for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (told,) = [line for line in said if "before" in line]
    assert told == (
        "1 process from here on, 2 before: the same samples in the same steps; "
        "sums are added in another order, so numbers differ by rounding, about 1e-5 in fp32"
    )


def test_the_same_number_of_processes_is_not(tmp_path):
    stops = iter([False, False, True])
    fit(tmp_path, save_every=1, stop=lambda done: next(stops))[1].run()
    _, run = fit(tmp_path)
    run.run()
    assert (run.processes, run.account()) == ([[0, 1]], [])
    assert " before: " not in (tmp_path / "events.jsonl").read_text()


def test_sigterm_at_the_last_step_changes_nothing(tmp_path):
    def told(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return passes(step)

    assert fit(tmp_path, steps=6, make=told)[1].run()["step"] == 6


def test_training_in_another_thread_hears_no_signal(tmp_path):
    lines = []
    thread = threading.Thread(target=lambda: lines.append(fit(tmp_path, steps=2)[1].run()))
    thread.start()
    thread.join()
    assert lines[0]["step"] == 2


def test_a_term_that_is_not_a_number_is_named(tmp_path):
    _, run = fit(tmp_path, make=lambda step: [Pass(p.x * float("nan"), p.images, 0, ("row-7",)) for p in passes(step)])
    with pytest.raises(StageError, match=r"the loss term 'lm' is nan by step 1\n  at   samples row-7, row-7, "):
        run.run()


class Sharp(Net):
    """Its loss is finite; its gradient is not."""

    def forward(self, batch):
        terms, notes = super().forward(batch)
        return terms | {"lm": terms["lm"] + (self.adapter(batch.x) * 0).sqrt().sum()}, notes


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_gradient_that_is_not_a_number_ends_the_run_at_its_step(tmp_path, zero):
    _, run = fit(tmp_path, steps=3, log_every=3, net=Sharp(), zero=zero)
    with pytest.raises(StageError, match=r"norm of the gradient is (nan|inf) by step 1\n"):
        run.run()


def spoilt(bad):
    """Passes of which those of some steps have a number that is none in their second pass."""

    def make(step):
        own = passes(step)
        if step in bad:
            own[1].x = own[1].x * float("nan")
            own[1].ids = (f"row-{step}",)
        return own

    return make


class Constant(Net):
    """Some terms are not finite in a pass whose first number is not: as a constant, with a gradient that is finite."""

    def __init__(self, term):
        super().__init__()
        self.term = term

    def forward(self, batch):
        bad = not batch.x.isfinite().all()
        batch = replace(batch, x=batch.x.nan_to_num())
        terms, notes = super().forward(batch)
        return (terms | {self.term: terms[self.term] + float("inf")} if bad else terms), notes


class Steep(Constant):
    """The same, but the gradient of a term that is finite."""

    def forward(self, batch):
        bad = not batch.x.isfinite().all()
        terms, notes = Net.forward(self, replace(batch, x=batch.x.nan_to_num()))
        if bad:
            terms[self.term] = terms[self.term] + (self.adapter(batch.x.nan_to_num()) * 0).sqrt().sum()
        return terms, notes


BROKEN = {
    "input": (Net, "loss term 'lm'"), "loss of a token": (lambda: Constant("lm"), "loss term 'lm'"),
    "loss of an image": (lambda: Constant("sea"), "loss term 'sea'"),
    "gradient": (lambda: Steep("lm"), "norm of the gradient"),
}  # fmt: skip


@pytest.mark.parametrize("zero", [0, 1, 2])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_step_that_is_not_finite_is_left_out_as_if_it_had_not_been(tmp_path, kind, zero):
    """Weights, optimizer and log are those of AdamW that never saw the step; its samples are written down."""
    make, what = BROKEN[kind]
    net, run = fit(tmp_path, steps=6, make=spoilt({2, 3}), net=make(), zero=zero)
    run.skip = True
    assert run.run()["step"] == 6
    expected, by_step = by_hand_without({2, 3}, 6)
    assert torch.allclose(net.adapter.weight, expected.adapter.weight, atol=1e-6)
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 5, 6]
    for line in log(tmp_path):
        assert line["lm"] == pytest.approx(by_step[line["step"]], rel=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "nonfinite.jsonl").read_text().splitlines()]
    assert [(line["step"], line["what"]) for line in lines] == [(3, what), (4, what)]
    assert lines[0]["samples"] == ["a", "row-2", "a", "a"]
    assert run.skipped == 2


def by_hand_without(bad, steps):
    """AdamW that never sees some steps, whose rate goes on as if it had; {step: its lm}."""
    net, optim = Net(), Optim(lr=1e-2, clip=0.0)
    adam = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.0)
    lm = {}
    for step in range(steps):
        if step in bad:
            continue
        own = passes(step)
        tokens, images = sum(len(p.x) for p in own), sum(p.images for p in own)
        loss = 0.0
        for one in own:
            terms, _ = net(one)
            loss = loss + terms["lm"] * len(one.x) / tokens + 0.5 * terms["sea"] * one.images / images
            lm[step + 1] = lm.get(step + 1, 0.0) + float(terms["lm"].detach()) * len(one.x) / tokens
        adam.param_groups[0]["lr"] = 1e-2 * factor(step, steps, optim)
        loss.backward()
        adam.step()
        adam.zero_grad()
    return net, lm


def test_a_run_that_left_steps_out_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    net, run = fit(one, steps=8, make=spoilt({1, 4}), log_every=3)
    run.skip = True
    run.run()

    def killed(step):
        if step == 5:
            raise KeyboardInterrupt
        return spoilt({1, 4})(step)

    _, run = fit(two, steps=8, make=killed, log_every=3, save_every=3)
    run.skip = True
    with pytest.raises(KeyboardInterrupt):
        run.run()
    again, run = fit(two, steps=8, make=spoilt({1, 4}), log_every=3)
    run.skip = True
    run.run()
    assert torch.equal(again.adapter.weight, net.adapter.weight)
    assert run.skipped == 2
    keep = ("step", "loss", "lm", "sea", "tokens", "images", "lr")
    assert [[line[k] for k in keep] for line in log(two)] == [[line[k] for k in keep] for line in log(one)]
    assert (two / "nonfinite.jsonl").read_text() == (one / "nonfinite.jsonl").read_text()


def test_ten_steps_in_a_row_that_are_not_finite_end_a_run_that_leaves_steps_out(tmp_path):
    _, run = fit(tmp_path, steps=30, make=spoilt({1, *range(3, 30)}))
    run.skip = True
    with pytest.raises(StageError, match=r"nan by step 13, and so were the 9 before it\n  at   samples a, row-12"):
        run.run()


def test_a_run_without_a_step_that_is_finite_says_so(tmp_path):
    _, run = fit(tmp_path, steps=3, make=spoilt(range(3)))
    run.skip = True
    with pytest.raises(StageError, match="none of 3 steps was finite"):
        run.run()


def test_a_run_that_stops_says_how_it_could_go_on(tmp_path):
    _, run = fit(tmp_path, make=spoilt({2}))
    with pytest.raises(
        StageError, match=r"is nan by step 3\n  at   samples a, row-2, a, a, see nonfinite.jsonl\n.*on_nan: skip"
    ):
        run.run()


def test_a_weight_that_warms_up():
    assert [Term(2.0, "images", 0.4).at(step, 10) for step in range(6)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])
    assert Term(2.0).at(0, 10) == 2.0


class Reads(TorchDispatchMode):
    """Counts numbers that are read from a device, each of which would wait for a GPU. Of CPUs they are counted too."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Still:
    """An engine that reads nothing, and says its norm as DeepSpeed does: a tensor that was looked at."""

    passes, device = 4, torch.device("cpu")

    def __init__(self):
        self.net = Net()

    def __call__(self, batch):
        return self.net(batch)

    def backward(self, loss):
        loss.backward()

    def step(self, factor, last):
        return torch.tensor(1.5) if last else None


def test_nothing_waits_for_the_device_between_two_lines_of_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(Later, "__float__", lambda _: 1.5)  # copied a step before, whoever reads it
    _, run = fit(tmp_path, steps=9, log_every=4)
    run.engine = Still()
    counts, reads = [], Reads()
    run.watchers = [lambda done: counts.append(reads.count)]
    with reads:
        run.run()
    assert log(tmp_path)[0]["norm"] == 1.5
    by_step = [after - before for before, after in pairwise(counts)]
    # a line is written behind the watchers, so it counts to the next step
    assert [by_step[n] for n in (0, 1, 2, 3, 5, 6, 7)] == [0] * 7
    assert by_step[4] > 0  # the counter counts


@pytest.mark.parametrize(("zero", "precision"), [(0, "fp32"), (1, "fp32"), (2, "bf16")])
def test_an_engine_reads_its_norm_once_or_leaves_it_where_it_is(tmp_path, zero, precision):
    """Without ZeRO and in fp32 it is ours to look whether it is finite; DeepSpeed has looked itself otherwise."""
    net, optim = Net(), Optim(lr=1e-2)
    engine = Engine(net, groups(net.named_parameters(), optim), optim, Settings(zero=zero), precision, 1, 1)
    one = passes(0)[1]
    one.x = one.x.to(engine.module.adapter.weight.dtype)
    engine.backward(engine(one)[0]["lm"].float())
    with Reads() as reads:
        norm = engine.step(1.0, last=True)
    assert float(norm) > 0
    assert isinstance(norm, float if not zero else torch.Tensor)
    # DeepSpeed: whether the gradient overflows, whether its norm is a number, and again where each group is clipped
    assert reads.count <= (2 + len(engine.groups) if zero else 1)


def test_a_number_on_its_way():
    assert float(Later(torch.tensor(2.0))) == 2.0
    assert Later(torch.tensor(1.0))
    assert not Later(torch.tensor(0.0, requires_grad=True))
