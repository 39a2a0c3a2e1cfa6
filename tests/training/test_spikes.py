"""Spikes of loss and gradient: what is one, what is none, who is told."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mmalign.training.events import Events
from mmalign.training.spikes import LEAST, TIMES, Spikes, Watched
from tests.training.test_loop import fit, log, passes

CURVES = {
    "as it is": lambda t: np.zeros_like(t),
    "decays": lambda t: np.log(0.3 + 3 * np.exp(-10 * t)),
    "half a cosine": lambda t: np.log(0.5 + 0.3 * np.cos(t * math.pi)),
    "rises sevenfold": lambda t: np.log(0.5 + 3 * t),
}
NOISES = {
    "10 %": lambda g, n: g.normal(0, 0.1, n),
    "30 %": lambda g, n: g.normal(0, 0.3, n),
    "50 %": lambda g, n: g.normal(0, 0.5, n),
    "skewed": lambda g, n: np.log(g.gamma(4, 1 / 4, n)),
    "slow": lambda g, n: np.convolve(g.normal(0, 0.1, n + 29), 0.9 ** np.arange(30), "valid"),
}


def drawn(what, number):
    """A run's numbers: 400 norms, or 120 lines of the log."""
    g, steps = np.random.default_rng(number), {"norm": 400, "loss": 120}[what]
    kinds = [(curve, noise) for curve in CURVES.values() for noise in NOISES.values()]
    curve, noise = kinds[number % len(kinds)]
    return np.exp(curve(np.arange(steps) / steps) + noise(g, steps))


def seen(what, values):
    watched = Watched(LEAST[what], TIMES[what])
    return [at for at, value in enumerate(values) if watched.add(float(value)) is not None]


def slow(what, values):
    """From the definition: where it is far above the median of the last fifty, and was not at the number before."""
    far = [False] * len(values)
    for at in range(LEAST[what], len(values)):
        past = np.log(values[max(0, at - 50) : at])
        spread = 1.4826 * np.median(np.abs(past - np.median(past)))
        far[at] = np.log(values[at]) - np.median(past) > max(math.log(TIMES[what]), 6 * spread)
    return [at for at in range(len(values)) if far[at] and not (at and far[at - 1])]


@pytest.mark.parametrize("what", TIMES)
def test_one_of_a_hundred_ordinary_runs_at_most_is_told_to_spike(what):
    alarms = sum(bool(seen(what, drawn(what, number))) for number in range(200))
    assert alarms <= 2


@pytest.mark.slow
@pytest.mark.parametrize("what", TIMES)
def test_of_a_thousand_ordinary_runs_hardly_one_is_told_to_spike(what):
    alarms = [number for number in range(1000) if seen(what, drawn(what, number))]
    print(f"{what}: {len(alarms)} of 1,000 runs: {alarms}")
    assert len(alarms) <= 5


@pytest.mark.parametrize("what", TIMES)
@pytest.mark.parametrize("number", range(20))
def test_a_spike_is_seen_where_it_begins(what, number):
    """What is seen is what the definition says: the noisier, the higher a spike is before it is one."""
    values, noise = drawn(what, number), list(NOISES)[number % len(NOISES)]
    at = len(values) - 30
    values[at : at + 3] *= {"10 %": 12, "30 %": 30, "50 %": 150, "skewed": 150, "slow": 20}[noise]
    assert at in seen(what, values)
    assert seen(what, values) == slow(what, values)


def test_a_level_that_stays_is_told_once_and_becomes_usual():
    values = [1.0, 1.1] * 50 + [30.0, 31.0] * 100 + [900.0]
    assert seen("norm", values) == [100, 300]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_what_has_no_logarithm_is_no_spike(value):
    assert seen("loss", [1.0] * 30 + [value] + [1.0]) == []


def test_what_is_told(tmp_path, caplog):
    (tmp_path / "events.jsonl").touch()
    spikes = Spikes(tmp_path, Events(tmp_path), warm=60, samples=lambda step: [f"row-{step}", "b", "c"])
    assert spikes.warnings() == []
    for step in range(1, 100):
        spikes.see("norm", 50.0 if step in (55, 80) else 1.0, step)
    assert [json.loads(line) for line in (tmp_path / "spikes.jsonl").read_text().splitlines()] == [
        {
            "step": 80, "since": 79, "what": "norm of the gradient", "value": 50.0, "usual": 1.0,
            "samples": ["row-79", "b", "c"],
        }
    ]  # fmt: skip
    told = "the norm of the gradient is 50 by step 80, and was 1 before (samples row-79, b, c), see spikes.jsonl"
    assert json.loads((tmp_path / "events.jsonl").read_text())["say"] == told
    assert told in caplog.text
    for step in range(10, 410, 10):
        spikes.see("loss", 4.0 if step == 400 else 2.0, step, step - 10)
    line = json.loads((tmp_path / "spikes.jsonl").read_text().splitlines()[-1])
    assert (line["what"], line["since"], line["step"], line["value"], line["usual"]) == ("loss", 390, 400, 4.0, 2.0)
    assert line["samples"] == [sample for step in range(390, 400) for sample in (f"row-{step}", "b", "c")]
    assert "(samples row-390, b, c, row-391, ...)" in (tmp_path / "events.jsonl").read_text()
    name = tmp_path.name
    assert spikes.warnings() == [f"2 spikes of the loss or the gradient, the first by step 80, see {name}/spikes.jsonl"]


def test_other_ranks_are_silent(tmp_path):
    spikes = Spikes(tmp_path, Events(tmp_path, 1))
    for step in range(1, 100):
        spikes.see("norm", 50.0 if step == 80 else 1.0, step)
    assert list(tmp_path.iterdir()) == []


def steep(step):
    """Passes of which those of one step have numbers a hundred times as large."""
    return [replace(one, x=one.x * 100) if step == 80 else one for one in passes(step)]


def test_a_training_tells_the_step_and_its_samples_and_goes_on_as_it_would(tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    net, run = fit(one, steps=90, make=steep, lr=1e-4)
    run.samples = run._spikes.samples = lambda step: [f"row-{step}"]
    run.run()
    lines = [json.loads(line) for line in (one / "spikes.jsonl").read_text().splitlines()]
    assert [(line["what"], line["step"], line["samples"]) for line in lines] == [
        ("norm of the gradient", 81, ["row-80"]),
        ("loss", 81, ["row-80"]),
    ]
    assert run.warnings() == ["2 spikes of the loss or the gradient, the first by step 81, see one/spikes.jsonl"]
    monkeypatch.setattr(Spikes, "see", lambda *args: None)
    other, run = fit(two, steps=90, make=steep, lr=1e-4)
    run.run()
    assert (net.adapter.weight == other.adapter.weight).all()
    assert [line["loss"] for line in log(one)] == [line["loss"] for line in log(two)]


def test_a_run_that_goes_on_knows_the_numbers_before(tmp_path):
    def killed(step):
        if step == 75:
            raise KeyboardInterrupt
        return passes(step)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, steps=90, make=killed, save_every=70, lr=1e-4)[1].run()
    fit(tmp_path, steps=90, make=steep, lr=1e-4)[1].run()
    lines = [json.loads(line) for line in (tmp_path / "spikes.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines] == ["norm of the gradient", "loss"]
