"""Two users of one group share a folder of runs: what one wrote the other reads, goes on with and runs again."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import TINY, Said
from tests.pipeline.test_pipeline import stage

ANN, BOB, GROUP = 54321, 54322, 54320  # numbers that no user here has
COMMAND = [sys.executable, "-c", "from mmalign.cli import entry; entry()"]
WHO = f"setpriv --reuid={{}} --regid={GROUP} --clear-groups"
SHORT = ["stages.tune=~", "stages.report=~", "stages.score.reads.weights=align", "stages.align.steps=4"]

Run = Callable[..., Said]


def as_user(user: int, umask: int, here: Path) -> Run:
    """`mmalign words ...` as that user, of the group."""
    who = WHO.format(user).split()
    home = here / str(user)
    home.mkdir(exist_ok=True)
    os.chown(home, user, GROUP)
    env = {**os.environ, "HOME": str(home), "MMALIGN_CACHE": str(home), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*words: str) -> Said:
        line = [*who, *COMMAND, *words]
        done = subprocess.run(line, cwd=here / "shared", capture_output=True, text=True, env=env, umask=umask)
        return Said(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def here() -> Iterator[Path]:
    """A folder that both reach, with `shared` in it that is the group's; pytest's own are closed to others."""
    if not hasattr(os, "geteuid") or os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "shared").mkdir()
        os.chown(place / "shared", ANN, GROUP)
        (place / "shared").chmod(0o2775)
        (place / "shared" / "tiny.yaml").write_text(TINY)
        if subprocess.run([*WHO.format(ANN).split(), "test", "-x", sys.executable], check=False).returncode:
            pytest.skip("other users may not run this Python")
        yield place


def test_two_users_of_one_group_share_a_folder_of_runs(here):
    ann, bob, shared = as_user(ANN, 0o002, here), as_user(BOB, 0o002, here), here / "shared"
    said = ann("run", "tiny.yaml", *SHORT, "stages.score=~")
    assert said.code == 0, said.err
    align = stage(shared, "align")
    assert {place.stat().st_uid for place in align.rglob("*")} == {ANN}

    (align / "stage.json").unlink()  # as if Ann's had been killed; Bob goes on from her checkpoint
    shutil.rmtree(align / "weights")
    said = bob("run", "tiny.yaml", *SHORT)
    assert said.code == 0, said.err
    assert "align: goes on from step 3" in said.err
    assert (align / "stage.json").stat().st_uid == BOB
    assert (align / "log.txt").stat().st_uid == ANN
    for place in (shared / "runs").rglob("*"):
        assert place.is_dir() or place.stat().st_mode & 0o777 == 0o664, place

    said = ann("doctor", "runs")
    assert said.code == 0, said.err
    assert ann("run", "tiny.yaml", *SHORT).err == ""  # nothing to do


def test_a_user_whose_umask_closes_the_folder_is_named_to_the_other(here):
    ann, bob, shared = as_user(ANN, 0o022, here), as_user(BOB, 0o022, here), here / "shared"
    only = [*SHORT, "stages.align=~", "stages.score=~"]
    said = ann("run", "tiny.yaml", *only)
    assert said.code == 0, said.err
    assert bob("run", "tiny.yaml", *only).code == 0  # what is done can be read

    label = stage(shared, "label")
    said = bob("run", "tiny.yaml", *only, "seed=9", "stages.label.keep=2")
    assert said.code == 2
    lines = said.err.splitlines()
    assert lines[0] == (
        f"error: permission denied: {shared / 'runs'} is user {ANN}'s (drwxr-sr-x), and this is user {BOB}"
    )
    assert lines[1].startswith("  at   runs/label-")
    assert lines[2] == f"  try  user {ANN}: umask 002; chmod -R g+rwX {shared / 'runs'}   or another --runs"

    (label / "labels" / "words.txt").chmod(0o600)
    said = bob("run", "tiny.yaml", *only, "--runs", "mine")
    assert said.code == 0, said.err
    rows = {row["where"]: row["state"] for row in json.loads(bob("doctor", "runs", "--json").out)}
    assert (
        f"permission denied: {label / 'labels' / 'words.txt'} is user {ANN}'s (-rw-------)"
        in rows[str(label.relative_to(shared))]
    )
