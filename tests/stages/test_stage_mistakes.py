"""What goes wrong inside a stage: exit code 1, what / at / try, the end of the log, and the same command goes on."""

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY, Said, command

PARTS = '''"""Parts that do what parts should not."""

import os
from dataclasses import replace
from pathlib import Path

from mmalign.data import MARK, Data, Record, Turn
from mmalign.errors import DataError
from mmalign.objectives import Objective
from mmalign.toyworld.data import Captions


class Spotty(Captions):
    """Toy captions; the images of some numbers cannot be read until the file `mended` exists."""

    def __init__(self, size: int, bad: list[int], mended: str) -> None:
        super().__init__(size)
        self.bad, self.mended = bad, Path(mended)

    def image(self, reference: int):
        if reference in self.bad and not self.mended.exists():
            raise DataError(f"images/{reference}.png is cut off")
        return super().image(reference)


class Deadly(Captions):
    """Ends its process at the fifth record."""

    def __getitem__(self, number: int):
        if number == 5:
            os.kill(os.getpid(), 9)
        return super().__getitem__(number)


class Buggy(Captions):
    def __getitem__(self, number: int):
        raise ZeroDivisionError("a bug of the plugin's own")


class Unrelated(Captions):
    """The captions of images that come 7 further on."""

    def __getitem__(self, number: int):
        return replace(super().__getitem__(number), turns=super().__getitem__((number + 7) % self.size).turns)


class NoData:
    def __init__(self, size: int) -> None: ...


class Shallow(Objective):
    """Reaches nothing behind the adapter."""

    def forward(self, step):
        return step.visual_BPD.float().square().mean()


class Wanting(Objective):
    """Says that it needs labels neither in a card nor so that its text tells."""

    needs = frozenset(word for word in ("labels",))

    def forward(self, step):
        return step.visual_BPD.float().mean()
'''

LABEL = ["stages.align=~", "stages.tune=~", "stages.score=~", "stages.report=~"]
TUNE = ["stages.label=~", "stages.align=~", "stages.score=~", "stages.report=~", "stages.tune.reads=~"]
TUNE += ["stages.tune.steps=3"]


@pytest.fixture
def run(tiny: Path):
    """run(*overrides): the tiny recipe with a shelf of parts that misbehave, as a process of its own."""
    (tiny.parent / "naughty_parts.py").write_text(PARTS)
    parts = {"data": ["Spotty", "Deadly", "Buggy", "NoData", "Unrelated"], "objectives": ["Shallow", "Wanting"]}
    for family, names in parts.items():
        (tiny.parent / "shelf" / family).mkdir(parents=True)
        for name in names:
            text = f"summary: naughty\ntarget: naughty_parts.{name}\n"
            (tiny.parent / "shelf" / family / f"{name.lower()}.yaml").write_text(text)
    tiny.write_text(TINY + "registry: [./shelf]\n")

    def run(*words: str, **options: object) -> Said:
        path = os.pathsep.join(filter(None, [str(tiny.parent), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path}
        return command("run", "tiny.yaml", *words, cwd=tiny.parent, env=env, **options)

    return run


def assert_failed(said: Said, what: str, at: str, fix: str, code: int = 1) -> None:
    assert said.code == code, said.err
    assert said.out == ""
    lines = said.err.splitlines()
    number = next(n for n, line in enumerate(lines) if line.startswith("error: "))
    assert what in lines[number], said.err
    assert lines[number + 1].startswith("  at   ")
    assert at in lines[number + 1], said.err
    assert lines[number + 2].startswith("  try  ")
    assert fix in lines[number + 2], said.err
    assert all(line.startswith(("  | ", "  log  runs/")) for line in lines[number + 3 :])  # the log and its end
    assert "Traceback" not in "\n".join(lines[: number + 3])


def stages(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(f"runs/{kind}-*"))


def test_too_many_unreadable_images_and_the_same_command_when_they_are_mended(run, here):
    data = "stages.label.data={card: spotty, args: {size: 48, bad: [3, 20], mended: mended}}"
    said = run(*LABEL, data)
    (folder,) = stages(here, "label")
    assert_failed(said, "1 of 16 images could not be read, more than max_bad 0.001", f"{folder.name}/labels", "max_bad")
    assert "train-3: images/3.png is cut off" in said.err
    assert not (folder / "stage.json").exists()
    assert not (folder / "labels" / "header.json").exists()
    (here / "mended").touch()
    said = run(*LABEL, data)
    assert said.code == 0, said.err
    assert json.loads((folder / "stage.json").read_text())["metrics"] == {"images": 48, "bad": 0}


@pytest.mark.slow
def test_unreadable_images_in_training_are_counted_listed_and_tolerated_as_far_as_allowed(run, here):
    data = "stages.tune.data={card: spotty, args: {size: 24, bad: [3, 20], mended: mended}}"
    said = run(*TUNE, data)
    (folder,) = stages(here, "train")
    assert_failed(said, "1 unusable samples, more than `max_bad` allows (0)", "bad.jsonl", "raise `max_bad`")
    shutil.rmtree(here / "runs")
    said = run(*TUNE, data, "stages.tune.max_bad=0.1")
    assert said.code == 0, said.err
    (folder,) = stages(here, "train")
    rows = [json.loads(line) for line in (folder / "bad.jsonl").read_text().splitlines()]
    assert sorted(row["sample"] for row in rows) == ["train-20", "train-3"]
    assert {row["reason"] for row in rows} == {"images/3.png is cut off", "images/20.png is cut off"}
    assert json.loads((folder / "stage.json").read_text())["bad"] == 2
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["images"] for row in metrics) == 22  # 24 samples seen, none in the place of a bad one


def test_a_sign_that_the_data_does_not_decide(run, here):
    """It is told before anything runs that the data has to decide it; then the exit code is 2."""
    data = "stages.label.data={card: unrelated, args: {size: 48}}"
    said = run(*LABEL, data, "stages.label.source.args.sign=auto")
    fix = "sign: -1 (the paper's, for CLIP) or sign: 1; mmalign labels sign CARD DATA"
    assert_failed(said, "stage 'label': sign auto is not decided: with +1 the best word of", "args.sign", fix, code=2)
    assert said.err.startswith("note: stage 'label': the sign of toy-words is auto, and unrelated has to decide it")
    (folder,) = stages(here, "label")
    assert not (folder / "labels").exists()


@pytest.mark.parametrize(("words", "stage"), [(LABEL, "label"), (TUNE, "tune")])
def test_an_empty_data_set(run, words, stage):
    said = run(*words, f"stages.{stage}.data={{card: toy-captions, args: {{size: 0}}}}")
    assert_failed(said, f"stage '{stage}': the data set is empty", "", "check its path and split")


def test_a_part_that_no_objective_reaches(run):
    said = run(*TUNE, "stages.tune.objectives={lm: ~, shallow: 1.0}")
    what = "`trains` lists 'llm', but shallow gives it no gradient"
    assert_failed(said, what, "trains", "take 'llm' out of `trains`")


def test_an_objective_that_needs_labels_though_no_check_can_know(run):
    said = run(*TUNE, "stages.tune.objectives={lm: ~, wanting: 1.0}")
    assert_failed(said, "wanting needs labels", "objectives.wanting", "labels: {source: NAME, keep: 10}")


def test_a_training_that_blows_up(run, here, mmalign):
    words = [*TUNE, "stages.tune.optim={lr: 1e30, lr_llm: 1e30, clip: 0, warmup: 0}"]
    said = run(*words)
    assert_failed(said, "the norm of the gradient is nan by step", "samples train-", "a lower learning rate")
    (folder,) = stages(here, "train")
    assert not (folder / "stage.json").exists()
    assert not (folder / "weights").exists()
    assert f"\n  log  runs/{folder.name}/log.txt\n" in said.err
    (run_,) = json.loads(mmalign("status", "--json").out)["runs"]  # it is remembered
    (stage,) = json.loads(mmalign("plan", "tiny.yaml", *words, "--json").out)["stages"]
    (stood,) = run_["stages"]
    assert stage["state"].startswith("failed: the norm of the gradient is nan by step")
    assert stage["failed"] == stood["failed"]
    assert (stood["state"], stood["log"]) == ("failed", f"runs/{folder.name}/log.txt")


def test_a_card_that_builds_something_else(run):
    said = run(*TUNE, "stages.tune.data={card: nodata, args: {size: 3}}")
    assert said.code == 2, said.err
    assert "error: data 'nodata': naughty_parts.NoData is no class of mmalign.data.Data" in said.err
    assert "nodata.yaml" in said.err
    assert "try  a data part subclasses Data" in said.err


def test_a_bug_in_a_part_ends_with_the_log_and_no_traceback_of_ours(run):
    said = run(*TUNE, "stages.tune.data={card: buggy, args: {size: 8}}")
    assert_failed(said, "stage 'tune' ended with code 1", "log.txt", "the last lines of its log are below")
    assert said.err.splitlines()[-1].endswith("ZeroDivisionError: a bug of the plugin's own")


def test_a_stage_that_is_killed(run):
    said = run(*TUNE, "stages.tune.data={card: deadly, args: {size: 8}}")
    assert_failed(said, f"stage 'tune' killed by signal {signal.SIGKILL:d}", "log.txt", "the same command goes on")


# Damage between two runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny recipe and its first two stages done."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    said = command("run", "tiny.yaml", "stages.tune=~", "stages.score=~", "stages.report=~", cwd=folder)
    assert said.code == 0, said.err
    return folder


@pytest.fixture
def copied(trained: Path, here: Path) -> Path:
    shutil.copytree(trained, here, dirs_exist_ok=True)
    return here


REST = ["stages.score=~", "stages.report=~"]


@pytest.mark.parametrize("damage", ["cut", pytest.param("lost", marks=pytest.mark.slow)])
def test_checkpoints_none_of_which_is_whole(copied, damage):
    (folder,) = stages(copied, "train")
    (folder / "stage.json").unlink()
    weights = (folder / "weights" / "adapter.safetensors").read_bytes()
    states = sorted(folder.glob("checkpoints/step-*/state-00000.safetensors"))
    assert len(states) == 2
    for state in states:
        state.write_bytes(state.read_bytes()[:-100]) if damage == "cut" else state.unlink()
    words = ["stages.tune=~", *REST]
    said = command("run", "tiny.yaml", *words, cwd=copied)
    place = folder.relative_to(copied) / "checkpoints"
    assert_failed(said, "no checkpoint is whole: step-", str(place), f"delete {place} to begin anew")
    assert all(state.parent.exists() for state in states)
    shutil.rmtree(folder / "checkpoints")  # as it says
    said = command("run", "tiny.yaml", *words, cwd=copied)
    assert said.code == 0, said.err
    assert (folder / "weights" / "adapter.safetensors").read_bytes() == weights


@pytest.mark.parametrize("damage", ["cut", pytest.param("lost", marks=pytest.mark.slow)])
def test_weights_of_a_parent_that_are_damaged(copied, damage):
    (folder,) = stages(copied, "train")
    weights = folder / "weights" / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:100]) if damage == "cut" else weights.unlink()
    said = command("run", "tiny.yaml", *REST, cwd=copied)
    what = {"cut": "adapter.safetensors is damaged: it is not as", "lost": "adapter.safetensors is missing"}[damage]
    assert_failed(said, what, str(weights.relative_to(copied)), "--force align")


def test_a_damaged_label_store(copied):
    (folder,) = stages(copied, "train")
    shutil.rmtree(folder)
    (labels,) = stages(copied, "label")
    place = labels / "labels" / "shard-00001.bin"
    place.write_bytes(place.read_bytes()[:-4] + b"\x00\x01\x02\x03")
    said = command("run", "tiny.yaml", "stages.tune=~", *REST, cwd=copied)
    assert_failed(said, "shard-00001.bin is damaged: its checksum differs", str(place.relative_to(copied)), "run again")


@pytest.mark.slow
def test_force_runs_a_stage_again_and_keeps_the_old_folder(copied):
    (folder,) = stages(copied, "label")
    before = (folder / "stage.json").read_bytes()
    words = ["stages.tune=~", *REST, "--force", "label"]
    for number in (1, 2):
        said = command("run", "tiny.yaml", *words, cwd=copied)
        assert said.code == 0, said.err
        assert "label: done" in said.err
        assert "align: begins" not in said.err  # its inputs are the same
        assert (folder.with_name(f"{folder.name}.old-{number}") / "stage.json").exists()
    assert (folder.with_name(f"{folder.name}.old-1") / "stage.json").read_bytes() == before
    for name in ("words.txt", "index.npy", "shard-00000.bin"):
        old = folder.with_name(f"{folder.name}.old-1") / "labels" / name
        assert (folder / "labels" / name).read_bytes() == old.read_bytes()


# No room, no right


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


@pytest.mark.slow
def test_a_file_that_grows_too_large(run, here):
    said = run(*TUNE, preexec_fn=limited)
    assert_failed(said, "stage 'tune': no space left", "", "free some, or another --runs; the same command goes on")
    (folder,) = stages(here, "train")
    assert not (folder / "stage.json").exists()
    said = run(*TUNE)
    assert said.code == 0, said.err


MOUNTS = subprocess.run(
    ["unshare", "-Urm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"], capture_output=True, check=False
).returncode == 0 if shutil.which("unshare") else False  # fmt: skip


def mounted(folder: Path, mount: str, *words: str) -> Said:
    """A run in a mount namespace of its own, where runs/ is what `mount` makes of it."""
    (folder / "runs").mkdir(exist_ok=True)
    line = shlex.join([sys.executable, "-c", "from mmalign.cli import entry; entry()", "run", "tiny.yaml", *words])
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f"{mount} && {line}; code=$?; ls -A runs/*; exit $code"],
        cwd=folder, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.mark.skipif(not MOUNTS, reason="no mount namespaces here")
def test_a_full_disk(run, here):
    said = mounted(here, "mount -t tmpfs -o size=3m tmpfs runs", *TUNE)
    listed = said.out.split()
    assert_failed(Said(said.code, "", said.err), "no space left", "", "the same command goes on")
    assert "stage.yaml" in listed
    assert "stage.json" not in listed


@pytest.mark.skipif(not MOUNTS, reason="no mount namespaces here")
def test_a_disk_that_is_full_before_anything_starts(run, here):
    said = mounted(here, "mount -t tmpfs -o size=1m tmpfs runs && head -c 1048576 /dev/zero > runs/big", *LABEL)
    assert said.code == 2
    assert "error: No space left on device" in said.err
    assert "Traceback" not in said.err


@pytest.mark.skipif(not MOUNTS, reason="no mount namespaces here")
def test_a_runs_folder_that_cannot_be_written(run, here):
    said = mounted(here, "mount --bind runs runs && mount -o remount,ro,bind runs", *LABEL)
    assert said.code == 2
    assert "error: cannot write to runs/label-" in said.err
    assert "Read-only file system" in said.err
    assert "try  another --runs" in said.err


def test_two_runs_at_once(run, here):
    """The second is refused while the first works, and the first is not disturbed."""
    line = [sys.executable, "-c", "from mmalign.cli import entry; entry()", "run", "tiny.yaml", *LABEL]
    with subprocess.Popen(line, cwd=here, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        assert first.stderr.readline().startswith("label: begins")
        second = run(*LABEL)
        _, rest = first.communicate(timeout=300)
    assert second.code == 2
    assert f"error: process {first.pid} on" in second.err
    assert "is working in this folder" in second.err
    assert first.returncode == 0, rest
