"""The README: its files are written, its commands run in their order, and what they print compared with what it says.

python -m tests.test_readme   writes what the commands print now into the README, for a reader to look over.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmalign.pipeline.run import Launch
from mmalign.plan.cards import FAMILIES
from tests.reader import Terminal, blocks, commands, form, matches, named, place, problem

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = """
stages.label.data.args.size=64 stages.align.data.args.size=64 stages.tune.data.args.size=64 stages.align.steps=2
stages.tune.steps=2 stages.score.bench=[{bench}]
"""


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, list[str], list[str]]]]:
    """The folder of somebody who did all that the README says, and (command, said, real) of each command."""
    terminal, found = Terminal(tmp_path_factory.mktemp("reader")), []
    for block in blocks(README):
        if block.file:
            place(block, terminal.folder)
        elif block.kind == "console":
            found += [(line, said, terminal.run(line)) for line, said in commands(block)]
    return terminal.folder, found


def test_the_commands_print_what_the_readme_says(followed):
    _, found = followed
    assert len(found) >= 7
    for line, said, real in found:
        assert matches(said, real), "\n".join([f"$ {line}", *real])


def test_the_comparison_can_fail():
    assert matches(["a", "...", "d"], ["a", "b", "c", "d"])
    assert not matches(["a", "...", "d"], ["a", "b", "c"])
    assert not matches(["a"], ["a", "b"])
    assert matches([], [])


def test_the_part_it_shows_keeps_the_contract(followed):
    folder, _ = followed
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_adapters.py"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_first_recipe_runs_with_the_part(followed):
    folder, _ = followed
    terminal = Terminal(folder)
    terminal.run("export MMALIGN_REGISTRY=shelf PYTHONPATH=.")
    small = SMALL.format(bench="toy-perplexity").split()
    printed = terminal.run(" ".join(["mmalign run my.yaml model.adapter=gated matrix.seeds=[7]", *small]))
    assert printed[-1].startswith("done: 8 stages in runs"), "\n".join(printed)


def test_its_scripts_run(tmp_path):
    """Each at most 15 lines of code, on a quickstart of a few steps."""
    scripts = [block for block in blocks(README) if block.file in ("words.py", "supervised.py")]
    assert len(scripts) == 2
    terminal = Terminal(tmp_path)
    small = SMALL.format(bench="toy-perplexity").split()
    terminal.run(" ".join(["mmalign run quickstart model.vision.args.norm=false", *small]))
    terminal.run("mmalign export runs llava")
    printed = {}
    for script in scripts:
        code = [line for line in script.text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        assert len(code) <= 15, script.file
        (tmp_path / script.file).write_text(script.text)
        printed[script.file] = "\n".join(terminal.python(script.file))
    assert re.search(r"^SEA \d+\.\d+ gradient [1-9.]", printed["words.py"], re.M), printed["words.py"]
    assert "<html" in (tmp_path / "words.html").read_text()
    logged = re.findall(r"\{'loss'.*?\}", printed["supervised.py"])
    assert len(logged) == 5, printed["supervised.py"]
    assert all("'lm'" in line and "'sea'" in line and "'basic-direction'" in line for line in logged)


def test_the_quickstart_prints_the_table_of_the_readme(tmp_path):
    """The same rows and columns; the numbers are those of another machine and of more steps."""
    (shown,) = [block.text for block in blocks(README) if block.kind == "text"]
    bench = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())["stages"]["score"]["bench"]
    small = SMALL.format(bench=",".join(bench)).split()
    real = Terminal(tmp_path).run(" ".join(["mmalign run quickstart", *small]))
    table = "\n".join(real[real.index(shown.splitlines()[0].rstrip()) :])
    assert form(table) == form(shown)


def test_the_two_commands_are_those_of_ci():
    first, second = (
        block.text.strip() for block in blocks(README) if block.kind == "sh" and "pip install" in block.text
    )
    ci = (ROOT / ".ci" / "run").read_text()
    assert first.startswith('pip install -c constraints.txt -e ".[train]" && mmalign run quickstart')
    for part in (*first.split(" && "), *second.split(" && ")):
        assert part in ci


def test_every_other_command_it_names_exists():
    assert [line for line in named(README) if problem(line)] == []
    assert len(list(named(README))) > 30


def test_what_it_says_of_folders_groups_and_options():
    assert all(f"`mmalign.{family}`" in README for family in FAMILIES)
    table = README.partition("| folder | what it holds |")[2].partition("\n\n")[0]
    folders = {
        name.removeprefix("mmalign/") for name in re.findall(r"`((?:mmalign/)?\w+)/?`(?=[^|]*\|[^|]*\|$)", table, re.M)
    }
    assert folders == {"recipes", "registry", "cli", "docs", "tests"} | {
        place.name for place in (ROOT / "mmalign").iterdir() if (place / "__init__.py").exists()
    }
    assert Launch(devices=8).size == 8
    extras = re.search(r'pip install -e "\.\[([\w,]+)\]"` for timm', README)
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert extras
    assert all(re.search(rf"^{name} = \[", pyproject, re.M) for name in extras[1].split(","))


def _write() -> None:
    import tempfile

    text, terminal = README, Terminal(Path(tempfile.mkdtemp()))
    for block in blocks(README):
        if block.file:
            place(block, terminal.folder)
        for line, said in commands(block) if block.kind == "console" else ():
            real = terminal.run(line)
            if not matches(said, real):
                old, new = (("".join(f"{one}\n" for one in [f"$ {line}", *lines])) for lines in (said, real))
                text = text.replace(old, new)
    (ROOT / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    _write()
