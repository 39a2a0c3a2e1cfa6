"""Reading as a reader does: a page's files are written, its commands run, and what they print compared with the page.

A block that opens with a file's name, ```yaml my.yaml or ```yaml title="my.yaml", is that file.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmalign.cli import app
from typer.main import get_command

from mmalign.plan.read import shipped

# What a reader's shell does not have, and the tests of this process may have set: DeepSpeed names a rank to itself.
NOT_A_READERS = ("PYTHONPATH", "MMALIGN_REGISTRY", "RANK", "LOCAL_RANK", "WORLD_SIZE")


@dataclass
class Block:
    """One fenced block: its language, the file it is (or nothing), its text.

    varies: its numbers are those of one machine.
    """

    kind: str
    file: str
    text: str
    varies: bool = False


VARIES = "on one machine"  # the title of such a block


def blocks(text: str) -> Iterator[Block]:
    for kind, title, file, inner in re.findall(
        r"^```(\w+)(?: title=\"([^\"]+)\"| (\S+))?\n(.*?)^```$", text, re.S | re.M
    ):
        yield Block(kind, file or (title if title != VARIES else ""), inner, title == VARIES)


def place(block: Block, folder: Path) -> None:
    """Write the file that a block is."""
    target = folder / block.file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(block.text, encoding="utf-8")


def commands(block: Block) -> list[tuple[str, list[str]]]:
    """(command, the lines it is said to print) of a console block."""
    parts = re.split(r"^\$ ", block.text, flags=re.M)[1:]
    return [(part.splitlines()[0], part.splitlines()[1:]) for part in parts]


class Terminal:
    """Runs the README's commands in one folder, with one environment, as a reader would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {key: value for key, value in os.environ.items() if key not in NOT_A_READERS}
        self.site = str(folder / "site")

    def run(self, line: str) -> list[str]:
        """The lines it prints."""
        words = shlex.split(line)
        if words[0] == "export":
            given = dict(word.split("=", 1) for word in words[1:])
            self.env |= {key: str(self.folder / value) for key, value in given.items()}
            return []
        if words[0] == "pip":
            return self.python("-m", "pip", *words[1:], "--no-deps", "--no-build-isolation", "--target", self.site)
        assert words[0] == "mmalign", line
        return self.python("-c", "from mmalign.cli import entry; entry()", *words[1:])

    def python(self, *words: str) -> list[str]:
        path = os.pathsep.join(filter(None, [self.env.get("PYTHONPATH"), self.site]))
        done = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env={**self.env, "PYTHONPATH": path},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stdout, done.stdout
        return [line.rstrip() for line in done.stdout.splitlines()]


def matches(said: list[str], real: list[str]) -> bool:
    """Whether the lines are those, however wide their columns; a line `...` stands for any number of them."""
    pattern = "".join(r"(?:.*\n)*" if line == "..." else re.escape(_narrow(line)) + r"\n" for line in said)
    return re.fullmatch(pattern, "".join(f"{_narrow(line)}\n" for line in real)) is not None


def alike(said: list[str], real: list[str]) -> bool:
    """Whether the lines are those, whatever their numbers and fingerprints; `...` as in `matches`."""
    return matches(*([_form(line) for line in lines] for lines in (said, real)))


def _narrow(line: str) -> str:
    return " ".join(line.split())


def form(text: str) -> list[list[str]]:
    """The words of every line, numbers and fingerprints left out."""
    return [_form(line).split() for line in text.splitlines()]


def _form(line: str) -> str:
    return line if line == "..." else re.sub(r"-[0-9a-f]{12}|[-+]?\d[\d.,]*|\s[-–]\s", " ", line)


def named(text: str) -> Iterator[str]:
    """What follows `mmalign` in the sentences of a page and in its blocks for a shell."""
    scripts = "".join(block.text for block in blocks(text) if block.kind == "sh").replace("\\\n", " ")
    yield from re.findall(r"`mmalign ([^`]+)`", text) + re.findall(r"(?:^|&& )mmalign (.+?)(?= && |$)", scripts, re.M)


def problem(line: str) -> str:
    """What is wrong with a command that a page names: no such verb, option, or recipe; empty: nothing."""
    group = get_command(app)
    words = line.replace("\\|", "|").split()
    if words[0] in {option for parameter in group.params for option in parameter.opts}:
        return ""
    if words[0] not in group.commands:
        return f"no verb {words[0]}"
    verb = group.commands[words[0]]
    inner = getattr(verb, "commands", None)
    if inner is not None and not set(words[1].split("|")) <= set(inner):
        return f"no verb {words[0]} {words[1]}"
    takes = [verb] if inner is None else [inner[name] for name in words[1].split("|")]
    options = {option for one in takes for parameter in one.params for option in parameter.opts}
    if unknown := {word for word in words if word.startswith("--")} - options:
        return f"no option {unknown}"
    a_recipe = words[0] in ("run", "plan", "check") and len(words) > 1 and "_" in words[1] and "." not in words[1]
    return f"no recipe {words[1]}" if a_recipe and words[1] not in shipped() else ""
