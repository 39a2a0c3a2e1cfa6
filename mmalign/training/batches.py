"""Which samples each pass of each step sees, and how they become tensors.

Everything is a function of (seed, step, pass): the same for any number of processes, and after a resume.
"""

import json
import math
import threading
import zlib
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mmalign.data import Data, Record
from mmalign.errors import DataError, StageError
from mmalign.io import files
from mmalign.io.steps import complete
from mmalign.labels import LabelSource, under
from mmalign.labels.store import Store
from mmalign.llms.chat import Chat
from mmalign.plan.recipe import uneven
from mmalign.training.engine import device, world
from mmalign.vision import Frame, Vision
from mmalign.vision.picture import upright_size
from mmalign.vlm.batch import Batch, Sample, collate


@dataclass
class BadSamples:
    """Samples that could not be used: counted against a budget, listed with the reason, never replaced in silence.

    A rank writes a list of its own and counts those of all ranks. budget: how many a stage may have.
    """

    budget: int
    folder: Path | None = None  # where bad.jsonl is written; None: nowhere
    rank: int = 0
    reasons: dict[str, str] = field(default_factory=dict)  # {sample: reason} of this rank
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, budget: int, folder: Path) -> "BadSamples":
        """For a stage that begins or goes on from its checkpoint: then what was listed before it counts too.

        It does not where the budget ended the stage: what was unusable may be mended.
        """
        rank, ranks = world()
        bad = cls(budget, folder, rank)
        if not rank and not (complete(folder / "checkpoints") and len(bad.all()) <= budget):
            for path in folder.glob("bad*.jsonl"):
                path.unlink()
        if ranks > 1:
            dist.barrier()
        return bad

    def add(self, sample: str, reason: str) -> None:
        """Count and list a sample; StageError where there are more than the budget allows."""
        with self.lock:
            self.reasons.setdefault(sample, reason)
            if self.folder:
                path = self.folder / (f"bad.rank{self.rank}.jsonl" if self.rank else "bad.jsonl")
                _write(path, _read(path) | self.reasons)
            if len(every := self.all()) > self.budget:
                first = "; ".join(f"{sample}: {reason}" for sample, reason in list(every.items())[:3])
                raise StageError(
                    f"{len(every)} unusable samples, more than `max_bad` allows ({self.budget}): {first}",
                    at=str(self.folder / "bad.jsonl") if self.folder else "",
                    fix="mend or remove them, or raise `max_bad`",
                )

    def all(self) -> dict[str, str]:
        """{sample: reason} of every rank."""
        if not self.folder:
            return self.reasons
        paths = sorted(self.folder.glob("bad*.jsonl"))
        return {sample: reason for path in paths for sample, reason in _read(path).items()}

    def gather(self) -> int:
        """Put the lists of all ranks into bad.jsonl, once all have ended; how many samples it holds."""
        reasons = self.all()
        if self.folder and (others := list(self.folder.glob("bad.rank*.jsonl"))):
            _write(self.folder / "bad.jsonl", reasons)
            for path in others:
                path.unlink()
        return len(reasons)


class Bad(TypedDict):
    """A line of bad.jsonl."""

    sample: str
    reason: str


def _read(path: Path) -> dict[str, str]:
    fix = f"delete {path}: what is unusable is found again"
    rows: list[Bad] = files.read_jsonl(path, fix=fix, kind=Bad) if path.exists() else []
    return {row["sample"]: row["reason"] for row in rows}


def _write(path: Path, reasons: Mapping[str, str]) -> None:
    rows = ({"sample": sample, "reason": reason} for sample, reason in reasons.items())
    files.write(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


@dataclass
class Collate:
    """Records to batches: chat format, images, labels.

    tokens: visual tokens an image becomes. prompt_weight: loss weight of tokens that are no answer. store, source:
    where labels come from, if anything here brings them. grid: of the visual tokens; None: nobody asks where they lie.
    labeller: the encoder labels are made with in the pass, where it is not the model's: it wants its own pixels.
    encoders: those whose features are targets, which want theirs.
    pack: samples share rows of max_length, each seeing itself alone.
    """

    data: Data
    chat: Chat
    vision: Vision | None
    tokens: int
    max_length: int
    bad: BadSamples
    prompt_weight: float = 0.0
    store: Store | None = None
    source: LabelSource | None = None
    grid: tuple[int, int] | None = None
    labeller: Vision | None = None
    encoders: Sequence[Vision] = ()
    pack: bool = False

    def batch(self, numbers: Sequence[int], seed: int) -> Batch:
        """The samples of these numbers, unusable ones left out; right padding."""
        samples = [sample for number in numbers if (sample := self._usable(number))]
        return collate(self._rows(samples), self.chat, seed)

    def _rows(self, samples: list[Sample]) -> list[list[Sample]]:
        """The samples of each row, in their order: one, or with `pack` as many as `max_length` has room for."""
        rows: list[list[Sample]] = [[]]
        room = self.max_length
        for sample in samples:
            if rows[-1] and (not self.pack or len(sample.ids) > room):
                rows.append([])
                room = self.max_length
            rows[-1].append(sample)
            room -= len(sample.ids)
        return rows

    def _usable(self, number: int) -> Sample | None:
        try:
            return self.sample(self.data[number])
        except DataError as err:
            self.bad.add(self.data.id_of(number), err.what)
            return None

    def sample(self, record: Record) -> Sample:
        """One record; DataError when it has no trained token left, or an image or label is missing."""
        tokens = [self.tokens] * len(record.images)
        encoded = self.chat.fitted(record.turns, tokens, self.max_length, self.prompt_weight)
        images = [self.data.image(reference) for reference in record.images]
        pixels = [self.vision.pixels(image) for image in images] if self.vision else []
        sample = Sample(record.id, encoded.ids, encoded.weights, pixels, lost=encoded.lost)
        sizes = [upright_size(image) for image in images] if self.grid else []
        if self.labeller:
            sample.label_pixels = [self.labeller.pixels(image) for image in images]
            sample.label_frames = [self.labeller.frame(size) for size in sizes]
        if self.encoders:
            sample.target_pixels = [[encoder.pixels(image) for encoder in self.encoders] for image in images]
            sample.target_frames = [[encoder.frame(size) for encoder in self.encoders] for size in sizes]
        if self.vision and self.grid:
            sample.frames = [replace(self.vision.frame(size), grid=self.grid) for size in sizes]
        if self.store or (self.source and self.source.needs == "truth"):
            for key, reference, frame in zip(record.keys, record.images, sample.frames, strict=True):
                words_PK, scores_PK = self._labels(key, reference, frame)
                sample.words.append(words_PK)
                sample.scores.append(scores_PK)
        return sample

    def _labels(self, key: str, reference: Any, frame: Frame) -> tuple[Tensor, Tensor]:
        if self.store:
            words, scores, source = self.store[key]
            words_PK, scores_PK = torch.from_numpy(words.astype(np.int64)), torch.from_numpy(scores.astype(np.float32))
            if source.size != frame.size:
                what = f"labels of a picture of {source.size}, and {key!r} is one of {frame.size}"
                raise DataError(what, at=self.store.folder, fix="label the same pictures")
            return under(words_PK, scores_PK, source.onto(frame))
        assert self.source is not None
        words_PK, scores_PK = self.source.given(self.data.truth(reference, frame).words)
        return under(words_PK, scores_PK, frame.onto(frame))  # padding has no word, whatever the data says


class Collates(Protocol):
    """What makes passes of records."""

    data: Data

    def batch(self, numbers: Sequence[int], seed: int) -> Any: ...


@dataclass
class Batches:
    """The passes of every step for one rank, prepared ahead by reader threads, two steps' worth of them.

    rows: samples in the data. batch: samples a step. micro: samples a pass. rank, ranks: whose passes these are;
    pass m of a step belongs to rank m % ranks. order: epoch -> a permutation of the rows; None: a random one. pin: put
    passes into page-locked memory, from which a GPU takes them while it works on others.
    """

    collate: Collates
    rows: int
    batch: int
    micro: int
    seed: int
    rank: int = 0
    ranks: int = 1
    workers: int = 2
    order: Callable[[int], Any] | None = None
    pin: bool = field(default_factory=torch.cuda.is_available)

    def __post_init__(self) -> None:
        if not self.rows:
            raise StageError("the data set is empty", fix="check its path and split")
        if problem := uneven(self.batch, self.micro, self.ranks):
            raise StageError(problem, at="batch", fix="another micro_batch or number of devices")

    @property
    def passes(self) -> int:
        """Passes a step on this rank."""
        return self.batch // (self.micro * self.ranks)

    def steps(self, epochs: float) -> int:
        """Steps that see the data so many times, rounded up; at least one."""
        return max(1, math.ceil(epochs * self.rows / self.batch))

    def numbers(self, step: int) -> list[list[int]]:
        """Sample numbers of every pass of a step, over all ranks: each epoch is a permutation of its own."""
        positions = range(step * self.batch, (step + 1) * self.batch)  # counted through all epochs
        numbers = [int(self._order(at // self.rows)[at % self.rows]) for at in positions]
        return [numbers[start : start + self.micro] for start in range(0, self.batch, self.micro)]

    def samples(self, step: int) -> list[str]:
        """The ids of a step's samples, over all ranks; also of those that are not usable."""
        return [self.collate.data.id_of(number) for numbers in self.numbers(step) for number in numbers]

    def _order(self, epoch: int) -> Any:
        if getattr(self, "_epoch", None) != (epoch, self.seed):
            self._epoch = (epoch, self.seed)
            random = np.random.default_rng([self.seed, epoch])
            self._permutation = self.order(epoch) if self.order else random.permutation(self.rows)
        return self._permutation

    def of_step(self, step: int) -> list[tuple[list[int], int]]:
        """(sample numbers, seed) of this rank's passes of a step."""
        seeds = [zlib.crc32(f"{self.seed}/{step}/{m}".encode()) for m in range(self.batch // self.micro)]
        return list(zip(self.numbers(step), seeds, strict=True))[self.rank :: self.ranks]

    def run(self, start: int, steps: int) -> Generator[list[Any]]:
        """The batches of steps start .. steps-1; reading stays two steps ahead.

        What goes wrong with a pass is raised where its step is asked for. Closed early, it ends its readers.
        """
        if not self.workers:
            for step in range(start, steps):
                yield [self._read(numbers, seed) for numbers, seed in self.of_step(step)]
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="reader", initializer=self._begin)
        try:
            ahead: deque[list[Future[Any]]] = deque()
            for step in range(start, steps + 2):
                if step < steps:
                    ahead.append([pool.submit(self._read, n, seed) for n, seed in self.of_step(step)])
                if len(ahead) > 2 or step >= steps:
                    if not ahead:
                        return
                    yield [future.result() for future in ahead.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        """A thread knows no device of its own, and memory would be locked for the first."""
        if self.pin and torch.cuda.is_available():
            torch.cuda.set_device(device())

    def _read(self, numbers: Sequence[int], seed: int) -> Any:
        batch = self.collate.batch(numbers, seed)
        return pinned(batch) if self.pin else batch


def pinned(batch: Any) -> Any:
    """A pass, any dataclass, with all its tensors in page-locked memory, also those in its lists and mappings."""
    return replace(batch, **{f.name: _pinned(getattr(batch, f.name)) for f in fields(batch)})


def _pinned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, list):
        return [_pinned(one) for one in value]
    return {name: _pinned(one) for name, one in value.items()} if isinstance(value, dict) else value
