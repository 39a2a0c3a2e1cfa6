"""Checkpoints of a running stage: whole or absent, safetensors and JSON, the newest few kept."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NotRequired, TypedDict

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmalign.errors import RunError
from mmalign.io import disk, files, seal, sums
from mmalign.io.document import Count
from mmalign.io.steps import complete, step_of
from mmalign.io.sums import Damaged
from mmalign.plan.recipe import EngineSettings

SHARD = 4 << 30  # bytes a file
ASIDE = ".damaged"  # what the name of a damaged checkpoint ends in, until the next one is written
State = Iterable[tuple[str, Tensor]]  # (name, tensor on the CPU), as Engine.state gives it


class Step(TypedDict):
    """step.json."""

    step: Count
    tensors: Count
    files: NotRequired[dict[str, str]]  # SHA-256 of the shards; 0.1.0 wrote none


def save(folder: Path, step: int, state: State, rank: int, keep: int = EngineSettings.keep) -> None:
    """Write `folder`/step-N; every rank iterates the state, rank 0 writes it.

    Of all checkpoints the newest `keep` stay, the others go once this one is on the disk. Never more than one file of
    the state is held.
    """
    if rank:
        for _ in state:
            pass
        return
    partial = folder / f".step-{step}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = 0
    shards = []
    for number, shard in enumerate(_shards(state)):
        shards.append(partial / f"state-{number:05d}.safetensors")
        save_file(shard, shards[-1])
        sums.begin([shards[-1]])
        tensors += len(shard)
    disk.settle(partial)
    seal.write(partial / "step.json", {"step": step, "tensors": tensors, seal.HASHES: sums.of(shards, partial)})
    target = folder / f"step-{step}"
    if target.exists():
        _put_aside(target)
    partial.rename(target)
    sums.drop(partial)
    disk.sync(folder)
    older = [place for place in complete(folder) if step_of(place) < step]
    for old in set(folder.glob("step-*")) - {target, *older[: keep - 1]}:
        _remove(old)


def _shards(state: State) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in state:
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
        if size >= SHARD:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


def _remove(checkpoint: Path) -> None:
    """In two steps, so that what is killed between them is not taken for a checkpoint that was damaged."""
    gone = checkpoint.with_name(f".{checkpoint.name}.gone.part")
    shutil.rmtree(gone, ignore_errors=True)
    checkpoint.rename(gone)
    shutil.rmtree(gone)


def _put_aside(checkpoint: Path) -> None:
    aside = checkpoint.with_name(f"{checkpoint.name}{ASIDE}")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


def last(folder: Path, say: Callable[[str], None]) -> tuple[Path, int, dict[str, Tensor]] | None:
    """(place, step, state) of the newest checkpoint that is as it was written; None where there is none at all.

    A damaged one is told with `say` and put aside. Raises a RunError where every one is damaged.
    """
    damaged: dict[Path, RunError] = {}
    for checkpoint in complete(folder):
        try:
            step, state = load(checkpoint)
        except Damaged as err:
            damaged[checkpoint] = err
            continue
        for place, why in damaged.items():
            say(f"checkpoint {place.name}: {why.what}; goes on from the one before it")
            _put_aside(place)
        return checkpoint, step, state
    if damaged:
        what = "; ".join(f"{place.name}: {why.what}" for place, why in damaged.items())
        raise RunError(f"no checkpoint is whole: {what}", at=str(folder), fix=f"delete {folder} to begin anew")
    return None


def load(checkpoint: Path, check: bool = True) -> tuple[int, dict[str, Tensor]]:
    """(step, {name: tensor on the CPU}) of a checkpoint; Damaged, with the file's name, where it is not whole.

    check: compare the files with their hashes; False where another process of this machine has done so.
    """
    fix = f"delete {checkpoint}"
    header: Step = seal.read(checkpoint / "step.json", Damaged, fix, kind=Step)
    shards = sorted(checkpoint.glob("state-*.safetensors"))
    known = {checkpoint / name: digest for name, digest in header.get("files", {}).items()}
    with sums.verifying(known if check else {}, fix):
        state = _tensors(shards, fix)
    if header["tensors"] != len(state):
        raise Damaged(f"the checkpoint {checkpoint.name} is not whole", at=str(checkpoint), fix=fix)
    return header["step"], state


def _tensors(shards: Iterable[Path], fix: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as source:
                state |= {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
        except PermissionError as err:
            raise disk.denied(shard) from err
        except Exception as err:
            raise Damaged(f"{shard.name} is damaged: {err}", at=str(shard), fix=fix) from err
    return state


def trim(log: Path, step: int) -> int:
    """Drop the lines of a JSONL log that a checkpoint of `step` has not reached, and a last line cut by a kill.

    Damaged ones go too; returns how many that were.
    """
    if not log.exists():
        return 0
    kept, damaged = [], 0
    lines = log.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += bool(line) and number < len(lines)
    files.write(log, b"".join(kept))
    return damaged
