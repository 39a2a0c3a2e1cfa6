"""`eval`, `export` and `import`: the same model, the same numbers, wherever it lies and however it is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmalign import checkpoints, trained
from mmalign.adapters.mlp import MLP
from mmalign.errors import RunError
from tests.cli.conftest import finished
from tests.conftest import TINY, command
from tests.test_mistakes import assert_mistake, shelf, snapshot

BENCH = ["--bench", "toy-alignment,toy-perplexity", "--json"]


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> Path:
    """runs/train-... whose encoder LLaVA's class can hold, and `out`, what `export` makes of it."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "tiny.yaml").write_text(TINY)
    finished(folder / "runs", folder / "tiny.yaml", "align", "model.vision.args.norm=false")
    said = command("export", "runs", "out", cwd=folder)
    assert said.code == 0, said.err
    assert "out: loads in plain transformers; the largest difference of a logit is " in said.out
    return folder


@pytest.fixture
def exported(plain, here, monkeypatch) -> Path:
    shutil.copytree(plain, here, dirs_exist_ok=True)
    monkeypatch.setenv("MMALIGN_CACHE", str(plain / "cache"))
    return here / "out"


def test_the_same_numbers_from_wherever_it_lies(model, mmalign, monkeypatch):
    """A folder of runs, a training stage, an export, the stage that made it, a repository of the hub."""
    said = mmalign("eval", *BENCH)
    assert said.code == 0, said.err
    assert f"evaluating {model}" in said.err
    again = mmalign("eval", "runs", *BENCH)
    assert again.out == said.out
    assert "begins" not in again.err  # it is done
    expected = json.loads(said.out)
    assert list(expected["toy-perplexity"]) == ["perplexity", "before", "change"]
    del expected["toy-perplexity"]["before"], expected["toy-perplexity"]["change"]  # nobody knows any more
    said = mmalign("export", model, "out")
    assert "out: loads where mmalign is installed; plain transformers cannot: its patches pass" in said.out
    (stage,) = Path("runs").glob("export-*")
    repository = Path("hub/models--org--toy").absolute()
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree("out", repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(repository.parent))
    for name in ("out", str(stage), "org/toy"):
        assert json.loads(mmalign("eval", name, *BENCH).out) == expected, name


def test_an_imported_model_answers_as_before(exported, mmalign):
    assert mmalign("import", exported, "mine").out.startswith("mine: mmalign eval mine")
    picture = Image.effect_noise((72, 72), 80).convert("RGB")
    ours, theirs, first = (checkpoints.load(name) for name in ("mine", "out", "runs"))
    answers = [m.generate("what is this ?", picture, max_new_tokens=5) for m in (ours, theirs, first)]
    assert answers[0] == answers[1] == answers[2]
    assert isinstance(ours.adapter, MLP)
    assert {p.dtype for p in theirs.parameters()} == {torch.float32}  # as it was trained; its parts began in bf16
    assert torch.allclose(ours.see(picture), first.see(picture), atol=1e-4)


@pytest.mark.parametrize("folder", [False, True])
def test_a_projector_becomes_a_card(here, mmalign, folder):
    source = {
        f"model.mm_projector.{name.removeprefix('layers.')}": value
        for name, value in MLP(96, 128, (6, 6)).state_dict().items()
    }
    (here / "from").mkdir()
    torch.save(source, here / "from" / "mm_projector.bin")
    said = mmalign("import", "from" if folder else "from/mm_projector.bin", "mine")
    assert "the projector of " in said.out
    assert "96 to 128" in said.out
    assert "registry: [./mine]   model: {adapter: mine}" in said.out
    (here / "tiny.yaml").write_text(TINY.replace("adapter: linear", "adapter: mine") + "registry: [./mine]\n")
    assert mmalign("plan", "tiny.yaml").code == 0
    place = finished(here / "runs", here / "tiny.yaml")
    assert isinstance(checkpoints.load(str(place)).adapter, MLP)


# Mistakes


@pytest.fixture
def strangers(here) -> Path:
    """Folders that hold no model of ours."""
    (here / "empty").mkdir()
    (here / "llama").mkdir()
    (here / "llama" / "config.json").write_text('{"model_type": "llama"}')
    (here / "broken").mkdir()
    (here / "broken" / "config.json").write_text("{")
    (here / "file.txt").touch()
    (here / "many").mkdir()
    (here / "many" / "train-abc").mkdir()
    (here / "a.png").write_bytes(b"no picture")
    return here


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("nowhere", "no checkpoint nowhere", "one of "),
        ("many/train-abd", "no checkpoint many/train-abd", "did you mean 'many/train-abc'?"),
        ("empty", "empty holds no model", "an exported folder, or a hub id"),
        ("many", "many holds no model", "runs/train-"),
        ("file.txt", "file.txt holds no model", "runs/train-"),
        ("llama", "a checkpoint of kind 'llama', not a LLaVA model", "runs/train-"),
        ("broken", "not valid JSON", "damaged"),
    ],
)
@pytest.mark.parametrize("verb", ["eval", "export", "inspect", "chat", "import"])
def test_what_is_no_model(strangers, mmalign, verb, name, what, fix):
    more = {"eval": ["--bench", "toy-pope"], "inspect": ["a.png"], "chat": []}
    before = snapshot(strangers)
    if verb == "import" and name == "file.txt":
        what, fix = "cannot read the adapter file.txt", "mm_projector.bin of LLaVA"
    assert_mistake(mmalign(verb, name, *more.get(verb, ["made"])), what, "", fix)
    assert snapshot(strangers) == before


def test_a_target_that_is_there(model, mmalign):
    Path("out").mkdir()
    before = snapshot(Path("."))
    for line in (["export", model, "out"], ["import", "mm_projector.bin", "out"]):
        assert_mistake(mmalign(*line), "out is there already", "out", "nothing is overwritten")
    assert snapshot(Path(".")) == before


def test_a_target_nobody_may_write_to(model, mmalign):
    Path("shut").mkdir(mode=0o500)
    if not shutil.os.access("shut", shutil.os.W_OK):
        assert_mistake(mmalign("export", model, "shut/out"), "cannot write to", "shut", "another folder")


def test_what_is_exported_or_imported_already(model, mmalign):
    (model.parent.parent / "mine").mkdir()
    (model.parent.parent / "mine" / "mmalign.json").write_text("{}")
    assert_mistake(mmalign("export", "mine", "out"), "mine is exported already", "mine", "runs/train-")
    assert_mistake(mmalign("import", "mine", "out"), "mine is mmalign's already", "mine", "mmalign eval mine")
    assert_mistake(mmalign("inspect", "mine", "a.png"), "exported in format None", "mine", "export it again")


def test_a_hub_id_that_cannot_be_fetched(here, monkeypatch):
    with pytest.raises(RunError, match="cannot fetch org/nowhere") as caught:
        checkpoints.load("org/nowhere")
    assert "the network" in caught.value.fix
    assert trained.find("org/nowhere") == "org/nowhere"  # known only when it is asked for


def test_a_llava_model_without_weights(exported):
    (exported / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"cannot load .*out") as caught:
        checkpoints.load("out")
    assert "weights included" in caught.value.fix


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"vision_feature_layer": [-2, -5]}, "it reads several layers"),
        ({"projector_hidden_act": "relu"}, "its projector has a relu"),
        ({"vision_feature_select_strategy": "full"}, "is shown the encoder's class token"),
    ],
)
def test_a_llava_model_our_parts_cannot_hold(exported, mmalign, changes, what):
    place = exported / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))
    assert_mistake(mmalign("import", "out", "mine"), what, "out", "like LLaVA-1.5's")
    assert not Path("mine").exists()


def test_a_chat_template_of_no_known_format(exported, mmalign):
    text = "{{ messages[0].content }}"
    for place in exported.glob("*.jinja"):
        place.write_text(text)
    for name in ("tokenizer_config.json", "processor_config.json"):
        given = json.loads((exported / name).read_text())
        given.pop("chat_template", None)
        (exported / name).write_text(json.dumps(given))
    assert_mistake(mmalign("import", "out", "mine"), "is of no known format", "out", "--template FILE")


def test_an_adapter_for_other_widths(here, mmalign):
    card = "summary: x\ntarget: mmalign.adapters.mlp.MLP\nfacts: {keeps_grid: true, patch_dim: 1024, llm_dim: 4096}\n"
    shelf(here, "adapters", "wide", card)
    (here / "tiny.yaml").write_text(TINY.replace("adapter: linear", "adapter: wide") + "registry: [./shelf]\n")
    said = mmalign("check", "tiny.yaml")
    what = "adapter 'wide' was trained for 1024 to 4096, but toy-clip is 96 wide and toy-llama 128"
    assert_mistake(said, what, "tiny.yaml:3", "the parts it was trained with")
