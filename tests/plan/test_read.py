"""Recipes: extends, overrides, matrix and short forms; every value knows the file and line it was written on."""

from pathlib import Path

import pytest

from mmalign.errors import DataError, RecipeError
from mmalign.plan import read as compose
from mmalign.plan.recipe import Evaluate, Label, Optim, Train, uneven
from tests.conftest import TINY


@pytest.fixture
def write(here: Path):
    def write(name: str, text: str) -> Path:
        place = here / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return place

    return write


def one(path, *words):
    (recipe,) = compose.load(path, words)
    return recipe


def wrong(path, *words):
    with pytest.raises(RecipeError) as caught:
        compose.load(path, words)
    return caught.value


# Short forms


def test_short_forms_mean_their_long_forms(write):
    short = write("short.yaml", TINY)
    text = TINY.replace("adapter: linear", "adapter: {card: linear, args: {}}")
    text = text.replace("lm: 1.0, sea: 1.0", "lm: {weight: 1}, sea: {}").replace("trains: [adapter]", "trains: adapter")
    text = text.replace("source: toy-words", "source: {card: toy-words}").replace("scores: score", "scores: [score]")
    long = write("long.yaml", text)
    assert one(short).stages == one(long).stages
    assert one(short).model == one(long).model


def test_labels_may_be_a_name_or_a_mapping(tiny):
    name = one(tiny, "stages.align.labels=toy-words", "stages.align.reads=~").stages["align"].labels
    assert name == one(tiny, "stages.align.labels={source: toy-words}", "stages.align.reads=~").stages["align"].labels
    assert name.keep == 10


def test_defaults_come_from_the_dataclass(tiny):
    stages = one(tiny).stages
    assert isinstance(stages["label"], Label)
    assert isinstance(stages["tune"], Train)
    assert stages["tune"].optim.betas == Optim().betas
    assert stages["tune"].epochs == 1.0


# Overrides


def test_overrides_are_yaml(tiny):
    words = ["stages.tune.optim.lr=1e-4", "stages.tune.trains=[llm]", "stages.tune.optim.name=muon"]
    tune = one(tiny, *words).stages["tune"]
    assert (tune.optim.lr, tune.trains, tune.optim.name) == (1e-4, ["llm"], "muon")
    assert tune.optim.lr_llm == 1e-4  # its neighbours stay


def test_the_last_override_wins(tiny):
    assert one(tiny, "seed=1", "seed=2").seed == 2


def test_null_takes_a_setting_back_to_its_default(tiny):
    assert one(tiny, "stages.tune.optim.lr_llm=~").stages["tune"].optim.lr_llm is None
    assert one(tiny, "stages.tune.micro_batch=null").stages["tune"].micro_batch == 8


def test_null_takes_a_stage_away(tiny):
    assert list(one(tiny, "stages.report=~").stages) == ["label", "align", "tune", "score"]


def test_null_inside_args_is_a_value(tiny):
    data = one(tiny, "stages.align.data.args.split=~").stages["align"].data
    assert data.args == {"size": 48, "split": None}


def test_an_override_can_add_a_stage(tiny):
    stages = one(tiny, "stages.more={kind: evaluate, reads: {weights: align}, bench: toy-pope}").stages
    assert isinstance(stages["more"], Evaluate)
    assert [part.card for part in stages["more"].bench] == ["toy-pope"]


def test_a_wrong_override_points_at_the_command_line_and_its_neighbours_at_the_file(tiny):
    assert wrong(tiny, "stages.tune.optim.lr=fast").at == "command line  stages.tune.optim.lr"
    assert wrong(tiny, "stages.tune.optim={lr: fast}").at == "command line  stages.tune.optim.lr"
    assert wrong(tiny, "stages.tune.trains=[llm, adaptr]").at == "command line  stages.tune.trains.1"


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        ("steps=10", "stages.align.steps or stages.tune.steps"), ("adapter=linear", "model.adapter"),
        ("lr=1", "stages.align.optim.lr or stages.tune.optim.lr"), ("shard=3", "stages.label.shard"),
        ("zero=0", "stages.align.engine.zero or stages.tune.engine.zero"), ("sed=3", "did you mean 'seed'?"),
        ("stages.tune.lr=1", "one of "),
    ],
)  # fmt: skip
def test_a_key_without_its_stage_is_told_where_it_stands(tiny, word, fix):
    error = wrong(tiny, word)
    assert error.what == f"no setting {word.partition('=')[0].rpartition('.')[2]!r} here"
    assert error.fix.startswith(fix)


def test_what_a_file_lacks_is_missed_in_the_file_whatever_the_command_line_says(tiny, write):
    place = write("x.yaml", TINY.replace("{lr: 1e-3, lr_llm: 1e-4}", "{lr_llm: 1e-4}"))
    line = next(n for n, text in enumerate(place.read_text().splitlines(), 1) if "lr_llm" in text)
    assert wrong(place, "stages.tune.optim.clip=2").at == f"{place}:{line}  stages.tune.optim.lr"
    assert wrong(tiny, "stages.more.kind=train").at == "command line  stages.more.data"


def test_paths_count_from_where_they_are_written(write, here):
    write("sub/child.yaml", TINY.replace("args: {size: 48}", "args: {size: 48, root: ./images}"))
    data = one("sub/child.yaml").stages["align"].data
    assert data.args["root"] == f"{here}/sub/images"
    assert one("sub/child.yaml", "stages.align.data.args.root=./x").stages["align"].data.args["root"] == f"{here}/x"


# extends


def test_extends_lays_a_recipe_over_another(tiny, write):
    child = write("child.yaml", "extends: tiny.yaml\nname: child\nstages:\n  tune:\n    optim: {lr: 5}\n  report: ~\n")
    base, made = one(tiny), one(child)
    assert made.name == "child"
    assert made.stages["tune"].optim.lr == 5
    assert made.stages["tune"].optim.lr_llm == base.stages["tune"].optim.lr_llm
    assert list(made.stages) == ["label", "align", "tune", "score"]
    assert made.stages["align"] == base.stages["align"]


def test_extends_a_shipped_recipe_by_name(write):
    child = write("child.yaml", "extends: quickstart\nname: child\n")
    assert one(child).stages == one("quickstart").stages


def test_another_card_takes_the_arguments_of_the_old_one_with_it(tiny, write):
    child = write("child.yaml", "extends: tiny.yaml\nstages: {align: {data: toy-chat}}\n")
    assert one(child).stages["align"].data.args == {}
    same = write("same.yaml", "extends: tiny.yaml\nstages: {align: {data: {args: {seed: 1}}}}\n")
    assert one(same).stages["align"].data.args == {"size": 48, "seed": 1}


def test_another_kind_takes_the_settings_of_the_old_one_with_it(tiny, write):
    """The base's settings are read as settings of the base's kind."""
    text = "extends: tiny.yaml\nstages: {tune: {kind: evaluate, bench: toy-pope}, score: ~, report: ~}\n"
    child = write("child.yaml", text)
    assert isinstance(one(child).stages["tune"], Evaluate)


@pytest.mark.parametrize("name", ["card", "kind"])
def test_a_stage_may_be_named_like_a_key(tiny, write, name):
    """`kind` and `card` replace settings only where they name something."""
    text = TINY.replace("  label: {", f"  {name}: {{").replace("labels: label", f"labels: {name}")
    base = write("base.yaml", text)
    child = write("child.yaml", f"extends: base.yaml\nstages: {{{name}: {{keep: 2}}}}\n")
    assert list(one(child).stages) == list(one(base).stages)


def test_args_named_kind_replace_nothing(tiny, write):
    write("base.yaml", TINY.replace("args: {size: 48}", "args: {size: 48, kind: a}"))
    child = write("child.yaml", "extends: base.yaml\nstages: {align: {data: {args: {kind: b}}}}\n")
    assert one(child).stages["align"].data.args == {"size": 48, "kind": "b"}


def test_errors_point_into_the_file_that_wrote_the_value(tiny, write):
    child = write("child.yaml", "extends: tiny.yaml\nstages:\n  tune:\n    batch: many\n")
    assert wrong(child).at == f"{child}:4  stages.tune.batch"
    base = write("base.yaml", TINY.replace("batch: 8\n", "batch: many\n", 1))
    child = write("child.yaml", "extends: base.yaml\nstages:\n  tune:\n    batch: 8\n")
    line = next(n for n, text in enumerate(base.read_text().splitlines(), 1) if "many" in text)
    assert wrong(child).at == f"{base}:{line}  stages.align.batch"


def test_extends_in_circles(write):
    write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "extends: c.yaml\n")
    write("c.yaml", "extends: a.yaml\n")
    assert "a.yaml extends itself" in wrong("a.yaml").what
    write("self.yaml", "extends: self.yaml\n")
    assert "self.yaml extends itself" in wrong("self.yaml").what


# matrix

MATRIX = (
    TINY
    + """\
matrix:
  arms:
    lm: {stages.align.objectives: {lm: 1.0, sea: ~}}
    sea: {}
  seeds: [1, 2, 3]
"""
)


def test_a_matrix_is_every_arm_with_every_seed(write):
    variants = compose.load(write("study.yaml", MATRIX))
    assert [(v.arm, v.seed) for v in variants] == [(a, s) for a in ("lm", "sea") for s in (1, 2, 3)]
    assert [set(v.stages["align"].objectives) for v in variants] == [{"lm"}] * 3 + [{"lm", "sea"}] * 3


def test_a_matrix_of_seeds_alone_or_arms_alone(tiny, write):
    assert [v.seed for v in compose.load(tiny, ["matrix.seeds=[5, 6]"])] == [5, 6]
    alone = write("arms.yaml", TINY + "matrix: {arms: {a: {}, b: {seed: 9}}}\n")
    assert [(v.arm, v.seed) for v in compose.load(alone)] == [("a", 3), ("b", 9)]


def test_the_command_line_wins_over_the_arms(write):
    study = write("study.yaml", TINY + "matrix: {arms: {a: {stages.tune.batch: 16}, b: {}}}\n")
    assert [v.stages["tune"].batch for v in compose.load(study, ["stages.tune.batch=24"])] == [24, 24]


def test_arms_may_nest_their_keys(write):
    study = write("study.yaml", TINY + "matrix: {arms: {a: {stages: {tune: {batch: 16}}}}}\n")
    assert compose.load(study)[0].stages["tune"].batch == 16


def test_a_mistake_in_an_arm_points_at_its_own_line(write):
    study = write("study.yaml", TINY + "matrix:\n  arms:\n    a:\n      seed: 1\n      stages.tune.bach: 16\n")
    line = len(study.read_text().splitlines())
    error = wrong(study)
    assert (error.what, error.at) == ("no setting 'bach' here", f"{study}:{line}  stages.tune.bach")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ("{stages.tune.optim.lr: 1e-4, stages.tune.optim: {warmup: 0}}", "'stages.tune.optim' is set twice here"),
        ("{stages: {tune: {batch: 16}}, stages.tune.batch: 24}", "'stages.tune.batch' is set twice here"),
        ("{stages.tune.batch: 16, stages.tune.batch.x: 1}", "'stages.tune.batch.x' goes into a key that is set to a"),
    ],
)
def test_an_arm_sets_a_thing_once(write, changes, what):
    error = wrong(write("study.yaml", TINY + f"matrix: {{arms: {{a: {changes}}}}}\n"))
    assert what in error.what
    assert error.at.startswith(str(write("study.yaml", "")))
    assert error.fix.startswith("one ")


def test_an_arm_cannot_have_any_name(write):
    study = write("study.yaml", TINY + "matrix: {arms: {'a/b': {}}}\n")
    assert wrong(study).what == "an arm cannot be named 'a/b'"


def test_interpolation(tiny):
    assert one(tiny, "stages.tune.batch=${stages.align.batch}").stages["tune"].batch == 8
    error = wrong(tiny, "stages.tune.batch=${stages.align.bach}")
    assert "bach" in error.what
    assert error.at == "command line  stages.tune.batch"


def test_every_shipped_recipe_is_a_recipe():
    for name in compose.shipped():
        assert compose.load(name)


# key=value words, read the same for every verb


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5), ("1e-3", 1e-3), ("16", 16), ("true", True), ("no", "no"), ("test", "test"), ("", None),
        ("[1, a]", [1, "a"]), ("{a: 1}", {"a": 1}), ("a=b", "a=b"), ("'0.5'", "0.5"), ("hf://a/b", "hf://a/b"),
    ],
)  # fmt: skip
def test_the_value_of_a_word_is_yaml(here, text, value):
    assert compose.setting(f"key={text}") == ("key", value)
    assert compose.setting(f"a.b={text}") == ("a.b", value)


def test_paths_of_a_word_count_from_the_working_folder(here):
    assert compose.setting("grades=./g.json") == ("grades", f"{here}/g.json")


@pytest.mark.parametrize("word", ["key", "=3", ".=3", ""])
def test_a_word_that_sets_nothing(word):
    with pytest.raises(DataError) as caught:
        compose.setting(word, DataError, "split=test")
    assert caught.value.what == f"{word!r} is not key=value"
    assert (caught.value.at, caught.value.fix) == ("command line", "for example split=test")


def test_a_word_whose_value_is_broken():
    with pytest.raises(DataError, match=r"cannot read '\[1': not valid YAML") as caught:
        compose.setting("key=[1", DataError)
    assert (caught.value.at, caught.value.fix) == ("command line  key", "quote it")


def test_the_verbs_read_words_alike(here, mmalign):
    from mmalign.cli import data, scores

    for card in (data.card_of("toy-chat", ["size=0.5"]), scores.card_of("pope", None, ["size=0.5"])):
        assert card.args["size"] == 0.5
    assert scores.card_of("pope", "mine", []).args["data"] == "./mine"  # a word alone would name a card
    assert scores.card_of("pope", "data:mine", []).args["data"] == "data:mine"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ((8, 4), ""), ((8, 8), ""), ((8, 4, 2), ""), ((8, 3), "batch 8 is no multiple of micro_batch 3"),
        ((8, 16), "batch 8 is no multiple of micro_batch 16"),
        ((8, 4, 3), "batch 8 is no multiple of micro_batch 4 x 3 devices"),
    ],
)  # fmt: skip
def test_a_batch_gives_every_device_as_many_passes(given, problem):
    assert uneven(*given) == problem


def test_a_shipped_recipe_as_pages_write_it_is_found_elsewhere_and_said(here, mmalign):
    assert compose.find("recipes/quickstart.yaml") == compose.find("quickstart")
    said = mmalign("plan", "recipes/quickstart.yaml")
    assert said.code == 0
    assert "note: no file recipes/quickstart.yaml here: the shipped recipe quickstart\n" in said.out
    assert "note:" not in mmalign("plan", "quickstart").out
    (here / "recipes").mkdir()
    (here / "recipes" / "quickstart.yaml").write_text("extends: quickstart\nname: mine\n")
    assert compose.find("recipes/quickstart.yaml") == Path("recipes/quickstart.yaml")
    for other in ("other/quickstart.yaml", "recipes/quickstart.yml", "recipes/quick.yaml"):
        with pytest.raises(RecipeError, match="no recipe"):
            compose.find(other)
