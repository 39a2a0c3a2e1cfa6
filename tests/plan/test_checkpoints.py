"""Checkpoints on this machine are read before anything runs: kinds of files, sizes, weights, chat templates."""

import json
import shutil
from pathlib import Path

import pytest

from mmalign.pipeline import recipes
from mmalign.plan import read as compose
from mmalign.plan.cards import Registry
from mmalign.plan.check import check, problems
from tests.conftest import TINY
from tests.plan.test_check import refused

TOY = Path(__file__).parents[2] / "mmalign" / "toyworld"
WORDS = "  words: {kind: language, data: toy-texts, optim: {lr: 1e-3}, batch: 8, steps: 1}\n"
MARKED = "{% generation %}{{ messages[-1].content }}{% endgeneration %}"


@pytest.fixture
def toy(here):
    """toy(facts, **args): a card `mine` of a copy of the toy's Llama, beside it in `llama`; returns the copy."""
    shelf = here / "shelf" / "llms"
    shelf.mkdir(parents=True)
    shutil.copytree(TOY / "llama", shelf / "llama")

    def write(facts="{dim: 128}", **args) -> Path:
        args = {"checkpoint": "./llama", **args}
        text = f"summary: mine\ntarget: mmalign.llms.causal.CausalLM\nargs: {json.dumps(args)}\nfacts: {facts}\n"
        (shelf / "mine.yaml").write_text(text)
        return shelf / "llama"

    return write


def notes(here, *words, text=TINY):
    (here / "x.yaml").write_text(text + "registry: [./shelf]\n")
    return check(compose.load("x.yaml", words))


MINE = "model.llm=mine"


@pytest.mark.parametrize(
    ("fact", "told", "theirs"),
    [("dim", 512, 128), ("layers", 30, 4), ("heads", 9, 4), ("kv_heads", 3, 4), ("inner", 353, 352),
     ("vocab", 146, 145), ("tied", "false", True), ("family", "qwen2", "llama"), ("head_dim", 64, 32)],
)  # fmt: skip
def test_a_fact_that_the_configuration_denies(toy, here, fact, told, theirs):
    folder = toy(f"{{{fact}: {told}}}")
    error = refused(here, MINE)
    said = {"false": False}.get(told, told)
    assert error.what == f"llms 'mine': the card says {fact}: {said}, the config.json of {folder} {theirs}"
    assert error.at == f"shelf/llms/mine.yaml  facts.{fact}" or error.at.endswith(f"mine.yaml  facts.{fact}")
    assert error.fix == f"{fact}: {theirs}"


def test_facts_that_agree_and_those_the_configuration_does_not_give(toy, here):
    folder = toy("{dim: 128, layers: 4, heads: 4, kv_heads: 7, inner: 352, vocab: 145, tied: true, parameters: 1}")
    about = json.loads((folder / "config.json").read_text())
    del about["num_key_value_heads"]
    (folder / "config.json").write_text(json.dumps({"model_type": "mine_vlm", "text_config": about}))
    assert notes(here, MINE) == []


def test_an_encoder_that_the_configuration_denies(here):
    (here / "shelf" / "vision").mkdir(parents=True)
    text = (TOY.parents[1] / "registry" / "vision" / "toy-clip.yaml").read_text()
    (here / "shelf" / "vision" / "mine.yaml").write_text(text.replace("dim: 96", "dim: 64"))
    error = refused(here, "model.vision=mine")
    assert error.what == "vision 'mine': the card says dim: 64, the config.json of pkg:mmalign.toyworld/clip 96"


def test_a_checkpoint_that_the_recipe_gives_is_noted(toy, here):
    """Its card's facts are of another one, and are what is counted with."""
    toy("{dim: 64}")
    (note,) = notes(here, f"model.llm={{card: mine, args: {{checkpoint: '{TOY / 'llama'}'}}}}")
    assert note.startswith("llms 'mine': the card says dim: 64, the config.json of ")
    assert note.endswith(" 128; it counts as the card says")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [("m.gguf", b"GGUF\3\0\0\0", "a GGUF file"), ("m.bin", b"PK\3\4", "a zip file or pickled weights"),
     ("m.safetensors", b"\0" * 9, "weights alone"), ("m.txt", b"hello", "a file"), ("m", b"", "a file")],
)  # fmt: skip
def test_a_file_that_is_no_checkpoint(toy, here, name, content, kind):
    toy(checkpoint=f"./{name}")
    (here / "shelf" / "llms" / name).write_bytes(content)
    error = refused(here, MINE)
    assert error.what == f"llms 'mine': {here}/shelf/llms/{name} is {kind}, not a checkpoint's folder"
    assert error.at.endswith("mine.yaml  args.checkpoint")
    assert "config.json" in error.fix


@pytest.mark.parametrize("name", ["smol-q8.gguf", "weights/model.safetensors", "org/pytorch_model.bin"])
def test_the_name_of_a_file_is_no_hub_id(toy, here, name):
    toy(checkpoint=name)
    error = refused(here, MINE)
    assert error.what == f"llms 'mine': {name} is the name of a file, not a checkpoint's folder"
    assert error.at.endswith("mine.yaml  args.checkpoint")


def test_a_folder_that_is_no_checkpoint(toy, here):
    folder = toy()
    (folder / "config.json").unlink()
    assert refused(here, MINE).what == f"llms 'mine': {folder} has no config.json"
    (folder / "small.gguf").write_bytes(b"GGUF")
    assert refused(here, MINE).what.endswith("has no config.json, and a GGUF file, small.gguf")


def test_a_configuration_that_is_none(toy, here):
    folder = toy()
    (folder / "config.json").write_text("{")
    assert str(folder / "config.json") in refused(here, MINE).at


def test_weights_that_are_not_there(toy, here):
    folder = toy()
    (folder / "model.safetensors").unlink()
    error = refused(here, MINE)
    assert error.what == f"stage 'align': {folder}, the checkpoint of mine, has no weights"
    assert error.at.endswith("model.llm")
    assert error.fix == "reads: a stage that trains them, or another card"
    first = ("stages.words.from=config", "stages.align.reads.llm=words", "stages.score.reads.llm=words")
    assert len(notes(here, MINE, *first, text=TINY + WORDS)) == 1  # where it starts


@pytest.mark.parametrize(
    ("name", "text"),
    [("chat_template.jinja", "{{ messages }}"), ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}'),
     ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": "{{ messages }}"}]}')],
)  # fmt: skip
def test_a_checkpoints_template_without_marks(toy, here, name, text):
    folder = toy()
    (folder / "chat_template.jinja").unlink()
    (folder / name).write_text(text)
    error = refused(here, MINE)
    assert error.what == "stage 'align': the chat template of mine marks no answers, so none would be trained"
    assert error.at.endswith("mine.yaml  args.template")
    assert "{% generation %}" in error.fix
    words = [f"stages.{name}=~" for name in ("label", "align", "tune", "score", "report")]
    assert refused(here, MINE, *words, text=TINY + WORDS).what.startswith("stage 'words': the chat template of mine")
    assert notes(here, MINE, "stages.align.template='" + MARKED + "'", "stages.tune.template='" + MARKED + "'") == []


def test_a_checkpoint_without_a_template(toy, here):
    folder = toy()
    (folder / "chat_template.jinja").unlink()
    error = refused(here, MINE)
    assert error.what == f"stage 'align': {folder} has no chat template"
    assert "mine.jinja beside the card" in error.fix


def test_a_template_file_without_marks_and_a_name_that_is_no_template(toy, here):
    toy(template="bare.j2")
    bare = here / "shelf" / "llms" / "bare.j2"
    assert refused(here, MINE).what == f"llms 'mine': template {bare} does not exist"
    (recipe,) = compose.load("x.yaml", [MINE])
    assert {one.what for one in problems(recipe, Registry(recipe.registry))} == {refused(here, MINE).what}  # said once
    bare.write_text("{{ messages }}")
    assert refused(here, MINE).what == f"stage 'align': template {bare} marks no answers, so none would be trained"
    bare.write_text(MARKED)
    assert notes(here, MINE) == []
    toy(template="bare.txt")
    error = refused(here, MINE)
    assert error.what == "stage 'align': template 'bare.txt' is neither a file nor jinja"
    assert error.at.endswith("mine.yaml  args.template")


# Where a `language` stage starts


def test_a_language_stage_says_where_it_starts(toy, here):
    toy()
    words = TINY + WORDS
    assert notes(here, MINE, text=words) == ["stage 'words': mine starts from its card's weights (from: weights)"]
    told = "stage 'words': mine starts from random weights (from: config)"
    assert notes(here, MINE, "stages.words.from=config", text=words) == [told]
    (here / "x.yaml").write_text(words)
    plans = (recipes.preview("x.yaml", f"stages.words.from={one}") for one in ("weights", "config"))
    folders = {node.folder for plan in plans for node in plan.stages if node.name == "words"}
    assert len(folders) == 2


def test_a_start_that_there_is_not(toy, here):
    words = TINY + WORDS
    error = refused(here, "stages.words.from=nothing", text=words)
    assert error.what == "from must be one of weights, config, got 'nothing'"
    assert error.at.endswith("stages.words.from")
    assert refused(here, "stages.words.from_=config", text=words).fix.startswith("did you mean 'from'")
    folder = toy(random=True)
    error = refused(here, MINE, text=WORDS.join(["model: {llm: mine}\nname: x\nstages:\n", ""]))
    assert error.what == "stage 'words': mine is drawn at random (args.random)"
    assert error.fix == "from: config"
    toy()
    (folder / "model.safetensors").unlink()
    error = refused(here, MINE, text=WORDS.join(["model: {llm: mine}\nname: x\nstages:\n", ""]))
    assert error.what == f"stage 'words': {folder}, the checkpoint of mine, has no weights"
    assert error.fix == "from: config"


def test_lora_does_not_start_from_random_weights(toy, here):
    toy(lora=4)
    error = refused(here, MINE, "stages.words.from=config", text=TINY + WORDS)
    assert error.what == "stage 'words': LoRA learns beside trained weights, and these are random"
    assert error.at.endswith("stages.words.from")
