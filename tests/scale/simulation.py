"""The same stage step by step, with a clock that only computing moves: every device, every batch, every failure."""

import math
import random
from dataclasses import dataclass

from tests.scale import model


@dataclass
class Clock:
    now: float = 0.0


def simulate(job: model.Job, devices: int, seed: int = 0, steps: int | None = None, failing: bool = True) -> float:
    """Seconds of a stage. steps: how many of it; None: all.

    Each step a device computes as long as JITTER lets it; the slowest one ends it. A reader works one step ahead, and
    no further. A failure throws away what came after the last checkpoint that was whole by then.
    """
    drawn, clock = random.Random(seed), Clock()
    wanted = math.ceil(job.rows / job.batch) if steps is None else steps
    one = model.step(job, devices)
    compute = job.batch / devices * job.flops / (job.mfu * model.PEAK)
    fails = _next(drawn, devices, clock) if failing else math.inf
    done = saved = begun = 0  # steps: done, on the disk, in the checkpoint that is written
    written = 0.0  # when that one is whole
    ready = clock.now + one.reading  # when the samples of the next step are there
    while done < wanted:
        began = max(clock.now, ready)
        ready = began + one.reading  # of the step after: its reader begins as this one's samples are taken
        slowest = max(drawn.gauss(1.0, model.JITTER) for _ in range(devices)) if devices > 1 else 1.0
        clock.now = began + compute * slowest + one.talk - one.hidden
        done += 1
        if written <= clock.now:
            saved = begun
        if done % job.save_every == 0 and done < wanted:
            clock.now = max(clock.now, written)  # one at a time
            saved, begun = begun, done
            clock.now += model.copying(job)
            written = clock.now + model.writing(job)
        if clock.now >= fails:
            done = begun = saved
            clock.now += model.START
            ready = clock.now + one.reading
            fails = _next(drawn, devices, clock)
    return clock.now


def _next(drawn: random.Random, devices: int, clock: Clock) -> float:
    return clock.now + drawn.expovariate(devices / model.LIFE)
