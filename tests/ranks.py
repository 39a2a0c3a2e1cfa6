"""Processes of a test that are ranks of one training."""

import faulthandler
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests import ports


def begun(ranks: int, function: Callable[..., None], folder: Path, *args: Any) -> Any:
    """Ranks that call `function(rank, *args)`, for `joined`. folder: where each keeps the file its stacks go to."""
    folder.mkdir(parents=True, exist_ok=True)
    return mp.spawn(_rank, (ranks, ports.free(), function, folder, args), nprocs=ranks, join=False)


def _rank(rank: int, ranks: int, port: int, function: Callable[..., None], folder: Path, args: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with open(_stacks(folder, rank), "w") as stacks:
        faulthandler.register(signal.SIGUSR1, stacks)
        function(rank, *args)
        if dist.is_initialized():
            dist.destroy_process_group()


def _stacks(folder: Path, rank: int) -> Path:
    return folder / f"stacks-{rank}.txt"


def alive(folder: Path) -> None:
    """Tell `joined` that ranks get on: its patience begins anew."""
    (folder / "alive").touch()


def joined(ranks: Any, seconds: float = 300, folder: Path | None = None) -> None:
    """Wait for ranks; a test that fails where they wait for each other, with the stack of each. seconds: how long that
    is waited for, since `alive` was said last. folder: what `begun` had; None: they are of `mp.spawn(join=False)`."""
    began = time.time()
    while not ranks.join(timeout=1):
        said = folder and folder / "alive"
        last = max(began, said.stat().st_mtime) if said and said.exists() else began
        if time.time() > last + seconds:
            pytest.fail("the ranks wait for each other" + (_told(ranks, folder) if folder else _killed(ranks)))


def _told(ranks: Any, folder: Path) -> str:
    """The stacks of all ranks, which end."""
    for process in ranks.processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGUSR1)
    time.sleep(1)
    _killed(ranks)
    return "".join(f"\n\nrank {rank}\n{_stacks(folder, rank).read_text()}" for rank in range(len(ranks.processes)))


def _killed(ranks: Any) -> str:
    for process in ranks.processes:
        process.kill()
    return ""
