"""The guide: each page is followed from top to bottom in a folder of its own, as tests/test_readme.py does the README.

Where a page needs a model, its weights are drawn and not trained, and numbers are not compared.

python -m tests.test_guide [PAGE ...]   writes what the commands print now into the pages, for a reader to look over.
"""

import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from mmalign.cli import main

from mmalign.pipeline import new
from tests.reader import NOT_A_READERS, alike, blocks, commands, matches, named, place, problem

ROOT = Path(__file__).parent.parent
PAGES = {page.stem: page for page in sorted((ROOT / "docs" / "guide").glob("*.md"))}
EVERY = sorted((ROOT / "docs").rglob("*.md"))


class Desk:
    """Runs a page's commands in this process, in a folder, as a reader's shell would."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        patch.chdir(folder)
        for name in NOT_A_READERS:
            patch.delenv(name, raising=False)
        patch.setenv("MMALIGN_CACHE", str(folder / ".cache"))

    def run(self, line: str) -> list[str]:
        """The lines it prints, errors among them."""
        words = shlex.split(line)
        if words[0] == "export":
            for name, value in (word.split("=", 1) for word in words[1:]):
                self.patch.setenv(name, value)
                if name == "PYTHONPATH":
                    self.patch.syspath_prepend(self.folder / value)
            return []
        assert words[0] == "mmalign", line
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            main(words[1:])
        return [each.rstrip() for each in said.getvalue().splitlines()]


def follow(page: Path, desk: Desk) -> list[tuple[str, list[str], list[str], bool]]:
    """(command, said, real, whether its numbers vary) of every command of a page."""
    START.get(page.stem, lambda folder: None)(desk.folder)
    found = []
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.file:
            place(block, desk.folder)
        elif block.kind == "console":
            found += [(line, said, desk.run(line), block.varies) for line, said in commands(block)]
    return found


def photographs(folder: Path) -> None:
    """photos/cat.jpg and photos/dog.jpg."""
    from PIL import Image

    (folder / "photos").mkdir()
    for name, color in (("cat", "orange"), ("dog", "brown")):
        Image.new("RGB", (64, 48), color).save(folder / "photos" / f"{name}.jpg")


def a_model(folder: Path) -> None:
    """The quickstart's runs, as far as anybody can tell who does not look at the numbers; and cat.png."""
    from PIL import Image

    from tests.cli.conftest import finished

    finished(Path("runs"), Path("quickstart"), "tune")
    Image.new("RGB", (72, 72), "orange").save(folder / "cat.png")


START: dict[str, Callable[[Path], None]] = {
    "own-data": photographs, "evaluation": a_model, "exports": a_model, "trackers": a_model,
}  # fmt: skip


SCRIPTS = {"exports": ("plain.py",)}  # what a page has run with what it made: each prints a question and an answer


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_print_what_it_says(name, tmp_path, monkeypatch):
    for line, said, real, varies in follow(PAGES[name], Desk(tmp_path, monkeypatch)):
        assert (alike if varies else matches)(said, real), "\n".join([f"$ {line}", *real])
    for script in SCRIPTS.get(name, ()):
        line = [sys.executable, script]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("what is"), done.stdout


def test_the_comparison_can_fail():
    assert alike(["a 1 b-0123456789ab", "...", "c"], ["a 2 b-ba9876543210", "x", "y", "c"])
    assert not alike(["a 1"], ["b 1"])
    assert not alike(["a 1", "b"], ["a 1"])


@pytest.mark.parametrize("page", EVERY, ids=lambda page: page.stem)
def test_every_command_a_page_names_exists(page):
    assert [(line, problem(line)) for line in named(page.read_text(encoding="utf-8")) if problem(line)] == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [("rum quickstart", "verb"), ("run x --devces 2", "option"), ("run no_such", "recipe"), ("data chek X", "verb")],
)
def test_a_command_that_is_not_there_is_found(line, wrong):
    assert f"no {wrong}" in problem(line)


def test_the_guide_has_its_pages():
    assert set(PAGES) == {
        "first-recipe", "own-data", "own-parts", "many-devices", "evaluation", "exports", "studies", "trackers",
        "troubleshooting",
    }  # fmt: skip


# Parts of one's own


def test_every_kind_that_can_be_begun_is_told():
    import mmalign.testing

    text = PAGES["own-parts"].read_text(encoding="utf-8")
    begun = set(re.findall(r"^\$ mmalign new (\w+) ", text, re.M))
    assert begun == set(new.KINDS) - {"recipe"}
    checks = set(re.findall(r"`(check_\w+)`", text))
    assert len(checks) >= len(begun)
    assert checks <= set(dir(mmalign.testing))


# Troubleshooting


def source() -> str:
    """The texts of the library and the command line, their line breaks within a sentence taken out."""
    places = [place for folder in ("mmalign", "cli") for place in sorted((ROOT / folder).rglob("*.py"))]
    return "\n".join(place.read_text(encoding="utf-8") for place in places)


def test_every_message_it_explains_is_one_that_the_code_says():
    text, code = PAGES["troubleshooting"].read_text(encoding="utf-8"), source()
    messages = re.findall(r"^### (.+)$", text, re.M)
    assert len(messages) >= 20
    for message in messages:
        parts = [part.strip() for part in message.split("…") if len(part.strip()) > 3]
        assert parts, message
        assert [part for part in parts if part not in code] == [], message


def test_every_message_has_a_cause_and_a_remedy():
    text = PAGES["troubleshooting"].read_text(encoding="utf-8")
    for section in re.split(r"^### ", text, flags=re.M)[1:]:
        message, _, rest = section.partition("\n")
        assert len(rest.split("\n## ")[0].split()) > 12, message


def _write(names: list[str]) -> None:
    import tempfile

    for page in (PAGES[name] for name in names or PAGES):
        patch = pytest.MonkeyPatch()
        text = page.read_text(encoding="utf-8")
        for line, said, real, varies in follow(page, Desk(Path(tempfile.mkdtemp()), patch)):
            if not (alike if varies else matches)(said, real):
                shown = ["..." if str(ROOT) in one else one for one in real]  # no path of this machine
                old, new_ = (("".join(f"{one}\n" for one in [f"$ {line}", *lines])) for lines in (said, shown))
                text = text.replace(old, new_)
        patch.undo()
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    _write(sys.argv[1:])
