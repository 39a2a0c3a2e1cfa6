"""A sign that is left to the data is told before anything runs, with the command that decides it."""

import json
import shlex

import pytest

from mmalign.plan import read as compose
from mmalign.plan.check import check
from mmalign.plan.signs import _text
from tests.plan.test_mistakes import shelf
from tests.test_layers import loads

AUTO = "stages.label.source.args.sign=auto"
ONLINE = [
    "stages.label=~",
    "stages.align.reads=~",
    "stages.align.labels={source: {card: toy-words, args: {sign: auto}}}",
]
MINE = """summary: mine
target: mmalign.labels.words.NearestWords
args: {encoder: toy-clip, words: "pkg:mmalign.toyworld/words/clean.txt", sign: auto}
"""


def notes(*words):
    return check(compose.load("tiny.yaml", words))


@pytest.mark.usefixtures("tiny")
def test_it_is_told_with_the_stage_the_data_the_command_and_the_papers_sign():
    assert notes() == []
    assert notes(AUTO) == [
        "stage 'label': the sign of toy-words is auto, and toy-captions has to decide it before anything is trained; "
        "alone: mmalign labels sign toy-words toy-captions data.size=48; the paper's: stages.label.source.args.sign=-1"
    ]
    assert notes(AUTO, "stages.label.source.args.sign=-1") == []
    (note,) = notes(*ONLINE)
    assert note.startswith("stage 'align': the sign of toy-words is auto")
    assert note.endswith("the paper's: stages.align.labels.source.args.sign=-1")
    assert notes(*ONLINE, note.rpartition(" ")[2]) == []


@pytest.mark.usefixtures("tiny")
def test_it_is_told_by_check_and_plan_and_loads_nothing_heavy(mmalign):
    assert loads("check", "tiny.yaml", AUTO) == {"code": 0, "heavy": []}
    assert "note: stage 'label': the sign of toy-words is auto" in mmalign("check", "tiny.yaml", AUTO).err
    assert "note: stage 'label': the sign of toy-words is auto" in mmalign("plan", "tiny.yaml", AUTO).out
    (note,) = json.loads(mmalign("plan", "tiny.yaml", AUTO, "--json").out)["notes"]
    assert note in mmalign("plan", "tiny.yaml", AUTO).out


@pytest.mark.usefixtures("tiny")
def test_the_command_has_what_the_recipe_sets(here):
    """The arguments of both cards but the sign, the stage's fit where it is the labelling encoder's, the shelf."""
    args = "stages.label.source.args={sign: auto, center: 3, templates: ['a {}', it's]}"
    (note,) = notes(args, "stages.label.fit=pad")
    words = 'labels.center=3 \'labels.templates=["a {}", "it\'"\'"\'s"]\' data.size=48 fit=pad'
    assert f"alone: mmalign labels sign toy-words toy-captions {words};" in note
    assert "fit=pad" in notes(*ONLINE, "stages.align.fit=pad")[0]
    shelf(here, "labels", "mine", MINE)
    (note,) = notes("registry=[./shelf]", "stages.label.source={card: mine}")
    assert f"alone: MMALIGN_REGISTRY={here}/shelf mmalign labels sign mine toy-captions data.size=48;" in note
    assert "MMALIGN_REGISTRY" not in notes("registry=[./shelf]", AUTO)[0]


def test_the_encoder_that_is_not_the_models_keeps_its_own_fit(tiny, here):
    shelf(here, "vision", "eye", "summary: eye\ntarget: mmalign.vision.hf.HFVision\nargs: {checkpoint: x/y}\n")
    told = notes("registry=[./shelf]", *ONLINE, "model.vision=eye", "stages.align.fit=pad")
    assert "fit=pad" not in told[-1]
    assert "the sign of toy-words" in told[-1]


@pytest.mark.parametrize(
    "value", ["auto", "yes", "1", "true", "null", "a b", "{}", "1e-3", "it's", 3, [1, "2"], None, "a: b"]
)
def test_values_are_read_as_they_were(value):
    (word,) = shlex.split(shlex.quote(f"data.x={_text(value)}"))
    assert compose.setting(word) == ("data.x", value)
