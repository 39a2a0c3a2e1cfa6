"""Whether this command is one of several that torchrun or srun started together, and which of them."""

import hashlib
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from mmalign.errors import RunError

HERE = "127.0.0.1"
WORKER = [sys.executable, "-m", "mmalign.pipeline.worker"]
# what a launcher tells a process of its place, and torch.distributed reads
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MORE = ("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE")  # of torchrun's
ELASTIC = "TORCHELASTIC_"  # how the names of others begin


@dataclass(frozen=True)
class Launched:
    """One of `size` equal commands, counted from 0; the first runs the stages, the others take part in them.

    local: its number on its host. hosts: over which they are spread. address: of the first one, for the others.
    key: the same for all of them, and for no others.
    """

    by: str  # torchrun or srun
    number: int
    size: int
    local: int
    hosts: int
    address: str
    key: str


def launched(env: Mapping[str, str] | None = None) -> Launched | None:
    """This command's place among others, by its environment; None: it is alone. A RunError where that is unreadable.

    The script of an sbatch, and a shell of salloc or `srun --pty`, are alone, however many tasks the job may have.
    """
    env = os.environ if env is None else env
    return _torchrun(env) or _srun(env)


def _torchrun(env: Mapping[str, str]) -> Launched | None:
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= env.keys() or _number(env, "WORLD_SIZE") < 2:
        return None
    size, of_host = _number(env, "WORLD_SIZE"), _number(env, "LOCAL_WORLD_SIZE", 1)
    known = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    hosts = max(1, size // of_host)
    return Launched(
        by="torchrun",
        number=_number(env, "RANK"),
        size=size,
        local=_number(env, "LOCAL_RANK", 0),
        hosts=hosts,
        address=env["MASTER_ADDR"] if hosts > 1 else HERE,
        key=_key(env, known),
    )


def _srun(env: Mapping[str, str]) -> Launched | None:
    if "SLURM_PROCID" not in env or "SLURM_PTY_PORT" in env or _number(env, "SLURM_STEP_NUM_TASKS", 1) < 2:
        return None
    hosts = _number(env, "SLURM_STEP_NUM_NODES", 1)
    return Launched(
        by="srun",
        number=_number(env, "SLURM_PROCID"),
        size=_number(env, "SLURM_STEP_NUM_TASKS"),
        local=_number(env, "SLURM_LOCALID", 0),
        hosts=hosts,
        address=env.get("SLURMD_NODENAME") or socket.gethostname() if hosts > 1 else HERE,
        key=_key(env, ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")),
    )


def _number(env: Mapping[str, str], name: str, otherwise: int = 0) -> int:
    text = env.get(name, str(otherwise))
    if not text.isdecimal():
        raise RunError(f"{name}={text!r} in the environment is no number", at=name, fix=f"unset {name}")
    return int(text)


def _key(env: Mapping[str, str], names: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(env.get(name, "") for name in names).encode()).hexdigest()[:16]


def alone(env: Mapping[str, str]) -> dict[str, str]:
    """An environment without a place among others."""
    return {name: value for name, value in env.items() if name not in (*PLACE, *MORE) and not name.startswith(ELASTIC)}


def placed(env: Mapping[str, str], number: int, size: int, local: int, address: str, port: int) -> dict[str, str]:
    """An environment with another place: of a process that joins `size` at an address.

    A process that is shown one GPU, as `srun --gpus-per-task=1` does, finds it as its first.
    """
    sole = len(env.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1 and env.get("CUDA_VISIBLE_DEVICES")
    values = (number, size, 0 if sole else local, size, address, port)
    own = {name: str(value) for name, value in zip(PLACE, values, strict=True) if name != "LOCAL_WORLD_SIZE"}
    return alone(env) | own
