"""The reference: every setting, argument, verb and option has its line on its page, and none is silent."""

import re
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any

import pytest
import typer
from making import api, cards, repository, rooms, settings, tables, verbs
from mmalign.cli import app
from typer.main import get_command

import mmalign
from mmalign.plan import meanings, signatures
from mmalign.plan.cards import FAMILIES, Registry
from mmalign.plan.recipe import KINDS, Part, RecipeFile, key_of
from mmalign.plan.references import GIVEN
from tests.test_layers import LAYERS


@cache
def page(name: str) -> str:
    pages = settings.pages() | cards.pages() | verbs.pages() | api.pages() | repository.pages()
    return pages[name]


def lines(text: str) -> dict[str, list[str]]:
    """{what the first cell names: the other cells} of every table of a page; a later row of the name adds its cells."""
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        first, *cells = (
            (cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))) if line.startswith("|") else [""]
        )
        for name in re.findall(r"`([^`]+)`", first):
            rows.setdefault(name.replace("\\|", "|"), []).extend(cells)
    return rows


def keys(cls: type, under: str = "") -> list[str]:
    """The dotted settings of a class, walked here by its fields alone."""
    found = []
    for f in fields(cls):
        key, kind = f"{under}{key_of(f.name)}", meanings.present(meanings.typing.get_type_hints(cls)[f.name])
        inside = next((one for one in [kind, *getattr(kind, "__args__", ())] if is_dataclass(one)), None)
        found.append(key)
        if inside not in (None, Part):
            found += keys(inside, f"{key}.{'' if inside is kind else 'NAME.'}")
    return found


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_every_setting_of_a_recipe_has_its_line(kind):
    name, cls = (f"reference/stages/{kind}.md", KINDS[kind]) if kind else ("reference/recipe.md", RecipeFile)
    told = lines(page(name))
    assert [key for key in keys(cls) if key != "kind" and not any(told.get(key, []))] == []
    assert len(told) > 5


def test_what_a_setting_is_stands_in_its_line():
    told = lines(page("reference/stages/train.md"))
    assert told["micro_batch"][:3] == ["whole number above 0", "samples", "`8`"]
    assert "SEA contrasts within one" in told["micro_batch"][3]
    assert told["micro_batch"][4] == "align `32`, tune `16`"
    assert told["precision"][0] == "one of bf16, fp32"
    assert told["optim.lr"][2:] == ["*needed*", "learning rate after the warm-up", "align `0.001`, tune `2e-05`"]
    assert told["labels.source"][4] == "align `clip-words` (with SEA)"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_card_and_every_argument_of_its_class_has_its_line(family):
    text = page(f"reference/{family}.md")
    for card in Registry().every(family):
        assert any(lines(text)[card.name]), card.name
        takes = set(signatures.parameters(card.target) or {}) - set(GIVEN.get(family, ()))
        (own,) = re.findall(rf"^`{re.escape(card.target)}`\n(.*?)(?=^### |\Z)", text, re.S | re.M)
        told = lines(own)
        assert [name for name in takes if not any(told.get(name, []))] == [], card.name
        assert f"`{card.name}`" in own


def test_what_the_paper_says_stands_beside():
    told = lines(page("reference/objectives.md"))
    assert told["window"][-1] == "the paper: 2"
    assert "The paper prints 0, which cannot be a temperature" in " ".join(told["temperature"])


def commands(group: Any, path: str = "mmalign") -> list[tuple[str, Any]]:
    inner = [one for name, verb in group.commands.items() for one in [(f"{path} {name}", verb)]]
    return [
        each for name, verb in inner for each in (commands(verb, name) if hasattr(verb, "commands") else [(name, verb)])
    ]


def test_every_verb_and_option_has_its_line():
    text = page("reference/commands.md")
    known = commands(get_command(app))
    assert len(known) > 20
    for name, verb in known:
        (own,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
        told = lines(own)
        assert own.split("\n\n")[1].strip(), name
        for one in verb.params:
            option = one.param_type_name == "option"
            for word in one.opts if option else [one.metavar or one.name.upper()]:
                assert told[word][-1], (name, word)


def test_a_silent_option_or_verb_ends_the_build():
    silent = typer.Typer()

    @silent.command()
    def first(level: Annotated[int, typer.Option()] = 1) -> None:
        """Says what it does."""

    @silent.command()
    def second() -> None: ...

    with pytest.raises(tables.SilentError, match="--level of mmalign first has no line"):
        verbs.page(get_command(silent))
    silent.registered_commands.pop(0)
    silent.command("third")(lambda: None)
    with pytest.raises(tables.SilentError, match="the verb mmalign second has no line"):
        verbs.page(get_command(silent))


def test_a_silent_setting_or_argument_ends_the_build(tmp_path, monkeypatch):
    @dataclass
    class Mute:
        loud: int = 1

    (one,) = meanings.of(Mute)
    with pytest.raises(tables.SilentError, match="the setting loud has no line"):
        settings._row(one, "")
    (tmp_path / "mute_part.py").write_text("class Mute:\n    def __init__(self, level=1): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    (card,) = [card for card in Registry().every("adapters") if card.name == "identity"]
    with pytest.raises(tables.SilentError, match=r"the argument level of mute_part\.Mute has no line"):
        cards._class("mute_part.Mute", "adapters", [card])


def test_every_public_name_has_its_entry():
    entries = re.findall(r"^::: mmalign\.(\w+)$", page("reference/api.md"), re.M)
    assert sorted(entries) == sorted(mmalign.__all__)


def test_what_is_said_is_no_markup():
    assert tables.prose("a <b> of x_y | `c|d` [e] *f* 2 > 1") == (
        "a &lt;b&gt; of x\\_y \\| `c\\|d` \\[e\\] \\*f\\* 2 &gt; 1"
    )
    assert tables.code("a|b") == "`a\\|b`"
    assert tables.prose("see https://arxiv.org/abs/1_2.") == "see <https://arxiv.org/abs/1_2>."
    assert tables.prose("as in https://.../v1") == "as in https://.../v1"
    assert tables.link("https://arxiv.org/abs/2408.11813") == "[arXiv 2408.11813](https://arxiv.org/abs/2408.11813)"


def test_a_column_that_is_empty_is_left_out():
    assert (
        tables.table(("a", "b", "c"), [("1", "", "x"), ("2", "", "")])
        == "| a | c |\n| --- | --- |\n| 1 | x |\n| 2 |  |\n"
    )


def test_what_is_about_the_paper():
    assert tables.papers("side of squares (the paper: 2).") == ("side of squares.", "the paper: 2")
    assert tables.papers("half of them (the paper).") == ("half of them.", "this is the paper's")
    assert tables.papers("where it starts. The paper prints 0. Ours is 1.") == (
        "where it starts. Ours is 1.", "The paper prints 0.",
    )  # fmt: skip
    assert tables.papers("a newspaper's") == ("a newspaper's", "")


# The graph of rooms


def test_the_rooms_are_those_of_the_layers():
    drawn = {one for room in rooms.joined(rooms.layers()) for one in room.split(" + ")}
    assert drawn == {"families"} | set(LAYERS) - set(FAMILIES)
    figure = rooms.figure()
    assert all(f"`{room}`" in figure for room in drawn)
    assert figure.count("<rect") == len(rooms.joined(rooms.layers()))


def test_rooms_that_know_each_other_are_one_and_arrows_that_follow_are_left_out():
    graph = {"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": {"c", "a"}}
    assert rooms.joined(graph) == {"a + b": set(), "c": {"a + b"}, "d": {"c", "a + b"}}
    assert rooms.reduced(rooms.joined(graph)) == {"a + b": set(), "c": {"a + b"}, "d": {"c"}}
    assert rooms.rows(rooms.joined(graph)) == [["a + b"], ["c"], ["d"]]


# The repository's own files


def test_links_of_the_repository_follow_its_pages():
    text = "[rows](docs/baselines.md), [`LICENSE`](LICENSE), [run](.ci/run), [there](https://x.org), [up](#top)"
    assert repository.linked(text) == "[rows](baselines.md), `LICENSE`, `run`, [there](https://x.org), [up](#top)"


def test_the_citation_has_what_citation_cff_says():
    assert f"version = {{{mmalign.__version__}}}" in page("citation.md")
    assert "arXiv:2408.11813" in page("citation.md")
