"""`mmalign.load` of a model of 1 GB with hashes against the same without, in a process of its own, all weights read.

`hashing` is what somebody waits for, by the wall: the weights are hashed while libraries are imported and the model is
built, on a core that is free. `hashing work` is the time of all cores together, which a machine with one would wait.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mmalign.io import sums
from mmalign.plan.cards import Card
from mmalign.testing import small
from mmalign.vlm import folder

from . import Pairs

TARGET = 1.05
WORK = 1.25  # of `hashing work`
TIMES = 5
WIDE = {"hidden_size": 2048, "intermediate_size": 5504, "num_attention_heads": 16, "num_key_value_heads": 16}
LAYERS = 5  # 253 million weights, fp32
LOAD = """
import sys, mmalign
for weight in mmalign.load(sys.argv[1]).parameters():
    weight.data.clone()  # as a GPU would get it; else it would stay in its file
"""


def measure() -> dict[str, Pairs]:
    wall, work = Pairs(), Pairs(target=WORK)
    with tempfile.TemporaryDirectory() as name:
        hashed, bare = _models(Path(name))
        _load(bare), _load(hashed)
        for _ in range(TIMES):
            for place, side in ((bare, "reference"), (hashed, "ours")):
                waited, spent = _load(place)
                getattr(wall, side).append(waited)
                getattr(work, side).append(spent)
    return {"hashing": wall, "hashing work": work}


def _models(place: Path) -> tuple[Path, Path]:
    """The same files, with and without SHA256SUMS."""
    llm = small.llm("llama", place / "begun", num_hidden_layers=LAYERS, **WIDE)
    cards = {
        **small.encoder("clip", place),
        "adapter": Card("", "mmalign.adapters.mlp.MLP", {"depth": 2}),
        "llm": Card("", "mmalign.llms.causal.CausalLM", {"checkpoint": str(llm)}),
    }
    folder.save(place / "hashed", folder.build(cards), cards)
    shutil.rmtree(place / "begun")
    shutil.copytree(place / "hashed", place / "bare", copy_function=os.link)
    (place / "bare" / sums.NAME).unlink()
    return place / "hashed", place / "bare"


def _load(place: Path) -> tuple[float, float]:
    """Seconds by the wall, and of all cores."""
    began, spent = time.perf_counter(), _spent()
    subprocess.run([sys.executable, "-c", LOAD, place], check=True, capture_output=True)
    return time.perf_counter() - began, _spent() - spent


def _spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
