"""Checkpoints of a running stage: whole or absent, safetensors and JSON, the newest kept."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmalign.errors import RunError
from mmalign.io import files

SHARD = 4 << 30  # bytes a file


def save(folder: Path, step: int, state: Iterable[tuple[str, Tensor]], rank: int) -> None:
    """Write `folder`/step-N; every rank iterates the state, rank 0 writes it, older checkpoints go afterwards.

    state: (name, tensor on the CPU), as Engine.state gives it; never more than one file of it is held.
    """
    if rank:
        for _ in state:
            pass
        return
    partial = folder / f".step-{step}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = 0
    for number, shard in enumerate(_shards(state)):
        save_file(shard, partial / f"state-{number:05d}.safetensors")
        tensors += len(shard)
    files.write_json(partial / "step.json", {"step": step, "tensors": tensors})
    target = folder / f"step-{step}"
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for old in folder.glob("step-*"):
        if old != target:
            shutil.rmtree(old)


def _shards(state: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
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


def newest(folder: Path) -> Path | None:
    """The last complete checkpoint in a folder."""
    complete = [path for path in folder.glob("step-*") if (path / "step.json").exists()]
    return max(complete, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def load(checkpoint: Path) -> tuple[int, dict[str, Tensor]]:
    """(step, {name: tensor on the CPU}) of a checkpoint; a RunError that names a damaged file."""
    header = files.read_json(checkpoint / "step.json", fix=f"delete {checkpoint}")
    state: dict[str, Tensor] = {}
    for shard in sorted(checkpoint.glob("state-*.safetensors")):
        try:
            with safe_open(shard, framework="pt") as source:
                state |= {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
        except Exception as err:
            what = f"the checkpoint {shard.name} is damaged: {err}"
            raise RunError(what, at=str(shard), fix=f"delete {checkpoint}") from err
    if not isinstance(header, dict) or header.get("tensors") != len(state):
        raise RunError(f"the checkpoint {checkpoint.name} is not whole", at=str(checkpoint), fix=f"delete {checkpoint}")
    return int(header["step"]), state


def trim(log: Path, step: int) -> None:
    """Drop the lines of a JSONL log that a checkpoint of `step` has not reached (and a last line cut by a kill)."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            if int(json.loads(line)["step"]) <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    files.write(log, "".join(f"{line}\n" for line in kept))
