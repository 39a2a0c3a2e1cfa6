"""The ranks of a stage that is told to end have the time that saving takes. The guide's script for Slurm, which is
queued again then, is run in tests/pipeline/test_slurm.py."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SPREAD = """
import pathlib, sys
from mmalign.pipeline import worker
worker.RANK = "tests.pipeline.lingering"
sys.exit(worker._spread(pathlib.Path(sys.argv[1]), 2))
"""


def test_ranks_have_the_time_they_need_to_save(here):
    """Also more than the 30 seconds after which torchrun, told to end, kills them."""
    env = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen([sys.executable, "-c", SPREAD, str(here)], env=env)
    while len(list(here.glob("begun-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(300) == 1
    assert sorted(place.name for place in here.glob("saved-*")) == ["saved-0", "saved-1"]
