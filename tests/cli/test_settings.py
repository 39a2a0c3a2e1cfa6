"""`show` for stages and recipes, `schema`, help at any width, names that are never broken, JSON with real types."""

import contextlib
import io
import json
import re

import pytest
import typer
from mmalign.cli import app, dump, lines, show
from mmalign.cli.screen import Screen

import mmalign as package
from mmalign.pipeline import task
from mmalign.plan import graph, schema
from mmalign.plan import read as compose
from mmalign.plan.recipe import KINDS
from tests.plan.test_mistakes import assert_mistake


@pytest.mark.parametrize("kind", KINDS)
def test_show_a_kind_of_stage(mmalign, kind):
    said = mmalign("show", "stages", kind)
    assert said.code == 0
    assert said.out.startswith((KINDS[kind].__doc__ or "").splitlines()[0])
    assert "\nreads.scores: list of words\n  one or several stages of kind evaluate\n" in said.out


def test_show_says_type_unit_default_and_meaning(mmalign):
    said = mmalign("show", "stages", "train").out
    assert "\nbatch: whole number above 0, samples   (needed)\n  per optimizer step, over all devices\n" in said
    assert "\noptim.warmup: number at least 0 and at most 1, of the steps   (default: 0.03)\n" in said
    assert "\nprecision: one of bf16, fp32   (default: bf16)\n" in said
    assert "\nobjectives.NAME.weight: number at least 0   (default: 1.0)\n" in said
    assert "\noptim.betas: list of 2 numbers at least 0 and below 1   (default: [0.9, 0.999])\n" in said
    assert "\nlabels.source: card   (needed)\n" in said
    assert "\nfrom: one of weights, config   (default: weights)\n" in mmalign("show", "stages", "language").out


def test_show_what_a_recipe_says(mmalign):
    said = mmalign("show", "recipes").out
    assert "\nseed: whole number at least 0 and at most 4,294,967,295   (default: 42)\n  of all that is drawn\n" in said
    assert "\nmatrix.arms: mapping\n" in said
    assert mmalign("show", "stages").out == mmalign("list", "stages").out
    assert mmalign("show", "adapters").out == mmalign("list", "adapters").out


def test_settings_as_json_have_real_types(mmalign):
    rows = {row["setting"]: row for row in json.loads(mmalign("show", "stages", "train", "--json").out)}
    assert rows["micro_batch"] == {
        "setting": "micro_batch", "type": "whole number above 0", "choices": [], "bounds": {"above": 0},
        "unit": "samples", "needed": False, "default": 8, "meaning": "per device and pass; SEA contrasts within one",
    }  # fmt: skip
    assert rows["trains"]["choices"] == ["vision", "adapter", "llm"]
    assert (rows["steps"]["default"], rows["pack"]["default"], rows["batch"]["needed"]) == (None, False, True)


def test_cards_as_json_have_real_types(mmalign):
    rows = {row["name"]: row for row in json.loads(mmalign("show", "adapters", "linear", "--json").out)["arguments"]}
    assert (rows["depth"]["value"], rows["depth"]["default"], rows["depth"]["type"]) == (1, 2, "a whole number")
    assert rows["patch_dim"]["by_stage"]
    assert not rows["patch_dim"]["needed"]
    families = {row["family"]: row["parts"] for row in json.loads(mmalign("list", "--json").out)}
    assert "linear" in families["adapters"]


def test_json_has_no_number_that_json_has_not(capsys):
    dump({"a": [float("nan"), 1.5, {"b": float("inf")}], "c": (1, True)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5, {"b": None}], "c": [1, True]}


def test_a_run_as_json(tiny, mmalign):
    for node in graph.plan(compose.load(tiny), "runs"):
        task.save(node)
        metrics = {"toy-perplexity": {"perplexity": 3.5}} if node.name == "score" else {}
        task.finish(task.load(node.folder), {"metrics": metrics}, 0, 1)
    said = mmalign("run", "tiny.yaml", "--json")
    result = json.loads(said.out)
    assert (said.code, result["recipe"]) == (0, "tiny")
    assert [(one["stage"], one["kind"], one["arms"]) for one in result["stages"]] == [
        ("label", "label", []), ("align", "train", []), ("tune", "train", []), ("score", "evaluate", []),
        ("report", "report", []),
    ]  # fmt: skip
    assert result["scores"] == {"score": {"toy-perplexity": {"perplexity": 3.5}}}
    assert result["report"].endswith("report.html")


# The schema for editors


def test_the_schema_is_written_beside_recipes(here, mmalign):
    said = mmalign("schema")
    assert said.out == f"{schema.FILE}: for a recipe beside it that begins with this line\n{schema.line()}\n"
    assert (here / schema.FILE).read_text() == mmalign("schema", "-").out
    assert mmalign("schema", "other.json").out.endswith("$schema=other.json\n")
    assert mmalign("schema").code == 0  # a schema of recipes is written anew


def test_the_schema_knows_cards_of_a_shelf(here, mmalign, monkeypatch):
    place = here / "shelf" / "adapters" / "mine.yaml"
    place.parent.mkdir(parents=True)
    place.write_text("summary: mine\ntarget: mmalign.adapters.mlp.MLP\n")
    monkeypatch.setenv("MMALIGN_REGISTRY", str(here / "shelf"))
    assert '"mine"' in mmalign("schema", "-").out


@pytest.mark.parametrize("text", ["{}", "[1]", "precious", ""])
def test_a_file_that_is_no_schema_of_ours_is_left_alone(here, mmalign, text):
    (here / "mine.json").write_text(text)
    assert_mistake(mmalign("schema", "mine.json"), "mine.json is there already", "mine.json", "another FILE")
    assert_mistake(mmalign("schema", here), f"{here} is there already", str(here), "another FILE")
    assert (here / "mine.json").read_text() == text


# Help and tables


def verbs() -> list[list[str]]:
    group = typer.main.get_command(app)
    inner = [[name, own] for name, one in group.commands.items() for own in getattr(one, "commands", {})]
    return [[], *([name] for name in group.commands), *inner]


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("columns", ["80", "200"])
def test_help_is_whole(mmalign, monkeypatch, columns, flag):
    monkeypatch.setenv("COLUMNS", columns)
    group = typer.main.get_command(app)
    for words in verbs():
        said = mmalign(*words, flag)
        assert said.code == 0
        assert max(map(len, said.out.splitlines())) <= int(columns), words
        verb = group
        for word in words:
            verb = verb.commands[word]
        text = " ".join(said.out.split())
        assert " ".join((verb.help or "").split()) in text
        for one in getattr(verb, "commands", {}).values():
            assert " ".join(re.split(r"\.\s", one.help or "")[0].split()).rstrip(".") in text, one.name
        for option in verb.params:
            assert " ".join((getattr(option, "help", "") or "").split()) in text, option.name


def test_the_version(mmalign):
    assert mmalign("--version").out == f"mmalign {package.__version__}\n"


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["run", "quick"], ["quickstart"]), (["show", "adap"], ["adapters"]), (["list", "rec"], ["recipes"]),
        (["show", "adapters", "mlp"], ["mlp2x-gelu", "mlp3x-gelu"]), (["show", "stages", "tr"], ["train"]),
        (["sche"], ["schema"]),
    ],
)  # fmt: skip
def test_the_shell_completes_names(mmalign, monkeypatch, words, completed):
    assert "--install-completion" in mmalign("-h").out
    monkeypatch.setenv("_MMALIGN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(["mmalign", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        app([], prog_name="mmalign")
    assert out.getvalue().split() == completed


def test_names_in_tables_are_never_broken():
    table = show.table("", "stage", "what")
    name = "a-very-long-name-of-a-stage-with-many-words-in-it"
    table.add_row("not yet, and for a reason that takes a few words to say", name, "toy-words on toy-captions; " * 5)
    for columns in (40, 80, 200):
        out = io.StringIO()
        Screen(file=out, width=columns, soft_wrap=True).print(table)
        assert name in out.getvalue()
        assert "toy-captions;" in out.getvalue()


def test_lists_fold_between_words(mmalign, monkeypatch):
    whole = mmalign("list", "benchmarks").out
    monkeypatch.setattr(lines, "columns", lambda: 80)
    said = mmalign("list", "benchmarks").out
    assert said.split() == whole.split()
    assert max(map(len, said.splitlines())) <= 80 < max(map(len, whole.splitlines()))
    assert lines.folded("a-b " * 40, 10)[0].endswith("a-b")


@pytest.mark.parametrize(("color", "codes"), [("1", False), ("", True)])
def test_no_colour_where_none_is_asked_for(monkeypatch, color, codes):
    monkeypatch.setenv("NO_COLOR", color)
    out = io.StringIO()
    Screen(file=out, force_terminal=True, color_system="standard", markup=False).print("note", style="yellow")
    assert ("\x1b[33m" in out.getvalue()) is codes
