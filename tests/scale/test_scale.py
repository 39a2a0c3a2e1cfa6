"""The formula of docs/scale.md beside its simulation, its limits, and the page beside the formula."""

from dataclasses import replace

import pytest

from tests.scale import model, page, simulation

JOBS = page.jobs()


@pytest.mark.parametrize("devices", [1, 8, 64, 512])
@pytest.mark.parametrize("name", JOBS)
def test_steps_take_as_long_as_simulated(name, devices):
    job = replace(JOBS[name], batch=max(JOBS[name].batch, devices))
    assert simulation.simulate(job, devices, steps=100, failing=False) / 100 == pytest.approx(
        model.step(job, devices).seconds, rel=0.02
    )


@pytest.mark.parametrize("slow", [{"cores": 1, "images": 40.0}, {"shards": True, "cores": 1, "images": 100.0}])
def test_a_reader_that_is_too_slow_sets_the_pace(slow):
    job = replace(JOBS["align, as in the recipe"], **slow)
    one = model.step(job, 8)
    assert one.seconds == one.reading > one.compute
    assert simulation.simulate(job, 8, steps=100, failing=False) / 100 == pytest.approx(one.seconds, rel=0.02)


@pytest.mark.parametrize(("devices", "often"), [(64, 300), (512, 60)])
def test_failures_cost_what_they_cost_when_simulated(devices, often, monkeypatch):
    """Devices that fail so many times as often, so that some do: the mean over seeds."""
    monkeypatch.setattr(model, "LIFE", model.LIFE / often)
    job = replace(JOBS["tune, batch 512"], rows=1_000_000, save_every=100)
    told = model.cost(job, devices)
    monkeypatch.setattr(model, "JITTER", 0.0)
    found = [simulation.simulate(job, devices, seed) for seed in range(40)]
    assert told.lost > 0.02 * told.seconds
    assert sum(found) / len(found) == pytest.approx(model.cost(job, devices).seconds, rel=0.02)


def test_one_device_talks_to_none():
    one = model.step(JOBS["tune, as in the recipe"], 1)
    assert (one.talk, one.hidden) == (0.0, 0.0)
    assert one.compute == pytest.approx(128 * JOBS["tune, as in the recipe"].flops / (0.289 * 989e12))


def test_zero_3_moves_weights_and_zero_2_does_not():
    tune = JOBS["tune, as in the recipe"]
    third, second = (model.step(replace(tune, zero=zero), 64).talk for zero in (3, 2))
    # weights twice, in bf16, and gradients in fp32, of 63 in 64 parts; beside gradients and new weights
    assert third == pytest.approx(63 / 64 * (2 * 2 * tune.whole + 4 * tune.trained) / model.LINK, rel=0.05)
    assert second == pytest.approx(63 / 64 * (4 + 2) * tune.trained / model.LINK, rel=0.05)


def test_the_page_has_these_tables():
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text) == text, "python -m tests.scale"
    for name in page.TABLES:
        assert f"<!-- {name} -->\n\n| " in text
