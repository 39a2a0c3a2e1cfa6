"""A package of each family, made with `mmalign new` and nothing else: tried, trained, asked, scored and inspected."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from mmalign.pipeline import new

from .conftest import Said, command

COLORS = ("red", "green", "blue", "yellow")
RECIPE = """\
name: plugins
seed: 1
model: {vision: my-vision, adapter: my-adapter, llm: my-llm}
stages:
  label:
    kind: label
    source: {card: my-labels, args: {encoder: toy-clip}}
    data: {card: toy-captions, args: {size: 24}}
    keep: 3
  align:
    kind: train
    reads: {labels: label}
    data: {card: toy-captions, args: {size: 24}}
    trains: [adapter]
    objectives: {lm: 1.0, sea: 1.0, my-objective: 0.01}
    optim: {lr: 1e-3}
    batch: 8
    micro_batch: 4
    steps: 3
    precision: fp32
    engine: {zero: 0, save_every: 2, workers: 1}
  tune:
    kind: train
    reads: {weights: align}
    labels: {source: {card: my-labels, args: {encoder: toy-clip}}, keep: 3}
    data: {card: my-data, args: {folder: ./pictures}}
    trains: [vision, adapter, llm]
    objectives: {lm: 1.0, sea: 0.5}
    optim: {lr: 1e-3}
    batch: 4
    micro_batch: 2
    steps: 3
    pack: true
    precision: fp32
    engine: {zero: 0, save_every: 2, workers: 1, checkpointing: true}
  score:
    kind: evaluate
    reads: {weights: tune}
    bench: [my-benchmark, {card: toy-alignment, args: {images: 4}}, {card: toy-perplexity, args: {texts: 8}}]
    precision: fp32
  report: {kind: report, reads: {scores: score}}
"""
ASK = """
import json, sys
import mmalign
from PIL import Image

picture, *places = sys.argv[1:]
image, found = Image.open(picture), []
for place in places:
    model = mmalign.load(place)
    words = model.nearest_words(image, top_k=2).words[0][0]
    answers = model.ask(["What color is the image?", "Is there a star?"], image, max_new_tokens=3)
    found.append([type(model.llm).__name__, answers, words])
print(json.dumps(found))
"""


def install(site: Path, about: Path, module: Path) -> None:
    """A package as `pip install` leaves it: its module, and a .dist-info with its entry points.

    By hand, because pip builds each in an environment of its own: seven of them take a minute, and a network.
    tests/plan/test_cards.py installs one with pip.
    """
    project = tomllib.loads(about.read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    shutil.copy(module, site)
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head)
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in own.items()) for group, own in groups]
    (info / "entry_points.txt").write_text("".join(lines))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of each family, all of them installed into its site/."""
    folder = tmp_path_factory.mktemp("packages")
    for kind in new.KINDS:
        if kind != "recipe":
            about, module, _ = new.start(kind, f"my-{kind}", folder)
            install(folder / "site", about, module)
    (folder / "pictures").mkdir()
    rows = []
    for color in COLORS:
        Image.new("RGB", (72, 72), color).save(folder / "pictures" / f"{color}.png")
        rows.append({"image": f"{color}.png", "question": "What color is the image?", "answer": color})
    (folder / "pictures" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    (folder / "plugins.yaml").write_text(RECIPE)
    return folder


def environment(packages: Path) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(packages / "site"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "MMALIGN_CACHE": str(packages / "cache")}


def mmalign(packages: Path, *words: str) -> Said:
    return command(*words, cwd=packages, env=environment(packages))


def python(packages: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *words]
    return subprocess.run(line, cwd=packages, env=environment(packages), capture_output=True, text=True, check=False)


def test_each_package_passes_its_own_test(packages):
    tests = sorted(str(place) for place in packages.glob("my-*/test_*.py"))
    assert len(tests) == 7
    done = python(packages, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert done.returncode == 0, done.stdout
    assert "8 passed" in done.stdout


def test_every_family_lists_its_package(packages):
    for kind, family in new.KINDS.items():
        if kind != "recipe":
            rows = {row["name"]: row for row in json.loads(mmalign(packages, "list", family, "--json").out)}
            assert rows[f"my-{kind}"]["origin"] == f"my-{kind} 0.1.0"
            assert rows[f"my-{kind}"]["summary"].startswith("One line that says ")


@pytest.fixture(scope="module")
def ran(packages: Path) -> dict[str, Path]:
    """{stage: its folder} of the recipe, run."""
    checked = mmalign(packages, "check", "plugins.yaml")
    assert checked.code == 0, checked.err
    done = mmalign(packages, "run", "plugins.yaml")
    assert done.code == 0, done.err
    stages = {json.loads(place.read_text())["name"]: place.parent for place in packages.glob("runs/*/stage.json")}
    assert set(stages) == {"label", "align", "tune", "score", "report"}
    return stages


def test_they_train_and_are_evaluated(ran):
    about = json.loads((ran["tune"] / "stage.json").read_text())
    assert set(about["parts"]) == {"vision", "adapter", "llm"}
    assert about["metrics"]["lm"] > 0
    assert "my-objective" in json.loads((ran["align"] / "stage.json").read_text())["metrics"]
    metrics = json.loads((ran["score"] / "stage.json").read_text())["metrics"]
    assert set(metrics) == {"my-benchmark", "toy-alignment", "toy-perplexity"}
    assert metrics["toy-perplexity"]["change"] != 0  # the trained language model was read back, and the first one
    assert "my-benchmark" in (ran["report"] / "report.html").read_text()


@pytest.mark.slow
def test_they_are_inspected_asked_and_exported(packages, ran):
    place, picture = str(ran["tune"]), "pictures/red.png"
    rows = json.loads(mmalign(packages, "inspect", place, picture, "--keep", "2", "--json").out)
    assert [len(row["words"]) for row in rows] == [36]
    deep = mmalign(packages, "inspect", place, picture, "--layers", "1")
    assert deep.code == 2
    assert "MyLlm shows none of its layers" in deep.err
    assert mmalign(packages, "export", place, "exported").code == 0
    trained, exported = json.loads(python(packages, "-c", ASK, picture, place, "exported").stdout)
    assert trained == exported
    name, answers, words = trained
    assert (name, len(answers), len(words), {len(nearest) for nearest in words}) == ("MyLlm", 2, 36, {2})
