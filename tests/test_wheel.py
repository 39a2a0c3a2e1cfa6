"""The wheel: built from the tree, installed where the tree cannot be seen, it holds the same cards and runs."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from mmalign.plan.cards import FAMILIES

ROOT = Path(__file__).parent.parent
TREES = {"mmalign": "mmalign", "cli": "mmalign/cli", "registry": "mmalign/registry", "recipes": "mmalign/recipes"}
SKIPPED = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*", "build", "dist", "runs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy, so that nothing of an earlier build gets in and the tree stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "src", ignore=SKIPPED)
    line = [
        sys.executable,
        "-m",
        "build",
        "--sdist",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(folder / "src"),
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The `bin` of a fresh environment with the wheel; it sees the libraries of this one, not its mmalign."""
    place = wheel.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True, capture_output=True)
    (site,) = place.glob("lib/python*/site-packages")
    # a path named in a .pth file is searched, but its own .pth files (the editable install) are not read
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return place / "bin"


def said(program: Path, *words: str, cwd: Path) -> str:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([program, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_of_the_tree_is_in_the_wheel_and_nothing_else(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tree = {
        f"{target}/{place.relative_to(ROOT / source)}"
        for source, target in TREES.items()
        for place in (ROOT / source).rglob("*")
        if place.is_file() and "__pycache__" not in place.parts and not place.name.startswith(".")
    }
    assert inside == tree


def test_no_tests_are_shipped(wheel):
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        folders = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"mmalign", "cli", "registry", "recipes", "pyproject.toml"} <= folders
    assert "tests" not in folders


def test_it_is_the_wheel_that_is_imported(installed, here):
    code = "import mmalign, mmalign.cli, mmalign.registry; print(mmalign.__file__, mmalign.cli.__file__)"
    found = said(installed / "python", "-c", code, cwd=here).split()
    assert all(path.startswith(str(installed.parent)) for path in found)


@pytest.mark.parametrize("family", [*FAMILIES, "recipes", "stages"])
def test_it_lists_what_the_tree_lists(installed, here, mmalign, family):
    found = json.loads(said(installed / "mmalign", "list", family, "--json", cwd=here))
    assert found == json.loads(mmalign("list", family, "--json").out)


def test_it_plans_and_looks_around(installed, here):
    assert "nothing wrong" in said(installed / "mmalign", "check", "quickstart", cwd=here)
    assert "siglip" in said(installed / "mmalign", "show", "recipes", "sea_prime_llama3", cwd=here)
    assert "ready" in said(installed / "mmalign", "doctor", cwd=here)


@pytest.mark.slow
def test_it_runs_a_few_steps_of_the_quickstart(installed, here):
    words = [f"stages.{stage}.data.args.size=64" for stage in ("label", "align", "tune")]
    words += ["stages.align.steps=2", "stages.tune.steps=2", "stages.score.bench=[toy-perplexity, toy-alignment]"]
    out = said(installed / "mmalign", "run", "quickstart", *words, cwd=here)
    assert "toy-alignment" in out
    assert "done: 5 stages in runs" in out
    assert list(here.glob("runs/report-*/report.html"))
