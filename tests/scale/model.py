"""A training stage on many devices: seconds of a step, of a checkpoint and of lost work, in closed form.

Measured (tests/speed/RESULTS.md, one H200): the share of its peak that a step reaches, and pictures a core prepares.
Assumed, and said on the page: everything that takes more than one device.
"""

import math
from dataclasses import dataclass, replace

from mmalign.pipeline.rates import PEAKS
from mmalign.plan import estimate, graph, work
from mmalign.plan import read as compose

PEAK = PEAKS["H200"]
MFU = {"align": 0.385, "tune": 0.289}  # lm + SEA made in the step; packed, recomputed: Vicuna-7B
PICTURES = 400.0  # a second and core: 640 x 480 to pixels (346 to 556)
PICTURE = 80e3  # bytes of such a file

NODE = 8  # devices
LINK = 40e9  # bytes a second and device between nodes: 400 Gbit/s, of which 0.8
INSIDE = 300e9  # inside one
HOP = 15e-6  # seconds a message between two devices takes at least
COPY = 10e9  # bytes a second from all devices into the first node's memory, which training waits for
DISK = 2e9  # bytes a second that a thread there writes to shared storage, while training goes on
OPENS = 20e3  # files a second that shared storage opens
JITTER = 0.02  # of a device's step, standard deviation
LIFE = 50_000 * 3600.0  # seconds between two failures, times the devices: as on Llama 3's 16,384
START = 300.0  # seconds until a stage that was ended trains again
FP32, BF16 = 4, 2  # bytes


@dataclass(frozen=True)
class Job:
    """A stage. flops: of a sample; trained: parameters; cores: of a device, that prepare samples."""

    name: str
    flops: float
    rows: int
    batch: int
    micro: int  # samples a pass and device, at most
    trained: float
    whole: float  # parameters of the model
    zero: int
    save_every: int
    mfu: float
    images: float = 1.0  # a sample
    cores: int = 2
    shards: bool = False  # pictures lie in tar files, read one after the other


def job(recipe: str, stage: str, rows: int | None = None, text: int | None = None) -> Job:
    """Of a shipped recipe. rows, text: where its data's card does not say how many samples, and tokens of text, it has.

    Its operations are those without recomputation, of which MFU is a share, recomputed or not.
    """
    given = compose.load(recipe, [f"stages.{stage}.engine.checkpointing=false"])
    node = next(node for node in graph.plan(given, "runs") if node.name == stage)
    facts = {**node.cards["data"].facts, **({"rows": rows} if rows else {}), **({"tokens": text} if text else {})}
    node.cards["data"] = replace(node.cards["data"], facts=facts)
    told = estimate.of(node)
    assert told is not None
    assert told.steps
    assert told.trained
    flops = work.flops(node, told)
    assert flops is not None
    whole = float(sum(size or 0 for size in told.parameters.values()))
    settings = node.stage.engine
    return Job(
        f"{recipe}, {stage}", flops / told.steps / node.stage.batch, facts["rows"], node.stage.batch,
        node.stage.micro_batch, told.trained, whole, settings.zero, settings.save_every, MFU[stage],
    )  # fmt: skip


@dataclass(frozen=True)
class Step:
    """Seconds of one step on so many devices, each part as if it were alone."""

    passes: int
    compute: float  # of the slowest device
    talk: float  # between devices
    hidden: float  # of that, behind the backward pass
    reading: float  # until the samples of a step are there

    @property
    def seconds(self) -> float:
        """Samples are prepared while the step before is computed."""
        return max(self.compute + self.talk - self.hidden, self.reading)


def step(job: Job, devices: int) -> Step:
    samples = job.batch / devices
    passes = max(1, math.ceil(samples / job.micro))
    compute = samples * job.flops / (job.mfu * PEAK)
    talk, hidden = _talk(job, devices, passes, compute)
    return Step(passes, compute * (1 + _slowest(devices)), talk, hidden, reading(job, devices))


def _slowest(devices: int) -> float:
    """By how much the slowest of so many devices is slower than the middle one: of normal ones, about."""
    return 0.0 if devices == 1 else JITTER * math.sqrt(2 * math.log(devices)) * 0.87


def _talk(job: Job, devices: int, passes: int, compute: float) -> tuple[float, float]:
    """(seconds of communication, those behind the backward pass): rings of gradients, and weights that are gathered.

    ZeRO 0, 1: gradients once a step. 2: once a pass. 3: weights twice a pass, too, for forward and backward.
    """
    if devices == 1:
        return 0.0, 0.0
    rate = LINK if devices > NODE else INSIDE
    share = (devices - 1) / devices
    gradients = 2 * share * FP32 * job.trained / rate if job.zero < 2 else share * FP32 * job.trained / rate
    moved = gradients * (passes if job.zero >= 2 else 1)
    if job.zero in (1, 2):
        moved += share * BF16 * job.trained / rate  # the new weights
    if job.zero == 3:
        moved += 2 * passes * share * BF16 * job.whole / rate
    waits = HOP * 2 * math.ceil(math.log2(devices)) * max(1, round(job.trained / 5e7))  # a bucket of 5e7 each
    return moved + waits, min(moved, 2 / 3 * compute)  # a third of a step is forward; ZeRO 3 hides there, too


def reading(job: Job, devices: int) -> float:
    """Seconds until all samples of a step are prepared: by the devices' cores, out of storage that all share."""
    images = job.batch * job.images
    opened = 0.0 if job.shards else images / OPENS
    return max(images / (devices * job.cores * PICTURES), opened)


@dataclass(frozen=True)
class Cost:
    """Of a whole stage. seconds: all in all; saving, lost: of them, for checkpoints, and for work done again."""

    step: Step
    steps: int
    seconds: float
    saving: float
    lost: float
    checkpoint: float  # seconds of one, until it can be gone on from

    def efficiency(self, job: Job, devices: int) -> float:
        """Of the arithmetic at the measured rate, on as many devices."""
        return self.steps * job.batch * job.flops / (job.mfu * PEAK) / devices / self.seconds


def copying(job: Job) -> float:
    """Seconds: an fp32 weight and two moments of what trains."""
    return 12 * job.trained / COPY


def writing(job: Job) -> float:
    return 12 * job.trained / DISK


def cost(job: Job, devices: int) -> Cost:
    one = step(job, devices)
    steps = math.ceil(job.rows / job.batch)
    between = min(job.save_every, steps) * one.seconds
    # the next checkpoint waits until the last one is written
    waits = copying(job) + max(0.0, writing(job) - between)
    saving = waits * ((steps - 1) // job.save_every)
    busy = steps * one.seconds + saving
    failures = busy * devices / LIFE
    whole = copying(job) + writing(job)
    again = (between + waits) / 2 + whole + START
    return Cost(one, steps, busy + failures * again, saving, failures * again, whole)
