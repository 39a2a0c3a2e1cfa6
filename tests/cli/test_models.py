"""`eval`, `export` and `import`: the same model, the same numbers, wherever it lies and however it is named."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmalign.adapters.mlp import MLP
from mmalign.errors import RunError
from mmalign.io import sums
from mmalign.pipeline import existing, task
from mmalign.pipeline import load as checkpoints
from mmalign.plan.cards import Registry
from mmalign.vlm import folder
from tests.cli.conftest import finished
from tests.conftest import TINY, command
from tests.integrations import families
from tests.plan.test_mistakes import assert_mistake, shelf, snapshot

SHAPES = [(1, "star"), (2, "ring"), (3, "cross")]
BENCH = ["--bench", "toy-alignment,toy-perplexity", "--json"]


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> Path:
    """runs/train-... whose encoder LLaVA's class can hold, and `out`, what `export` makes of it."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "tiny.yaml").write_text(TINY)
    finished(folder / "runs", folder / "tiny.yaml", "align", "model.vision.args.norm=false")
    result = command("export", "runs", "out", cwd=folder)
    assert result.code == 0, result.err
    assert "out: loads in plain transformers; the largest difference of a logit is " in result.out
    return folder


@pytest.fixture
def exported(plain, here, monkeypatch) -> Path:
    shutil.copytree(plain, here, dirs_exist_ok=True)
    monkeypatch.setenv("MMALIGN_CACHE", str(plain / "cache"))
    return here / "out"


@pytest.fixture
def theirs(exported) -> Path:
    """A LLaVA folder as others make them: without hashes."""
    (exported / sums.NAME).unlink()
    return exported


def test_an_exported_folder_is_asked_inside_vllm(exported, mmalign, monkeypatch, tmp_path):
    """tests/integrations/stub_vllm.py in vLLM's place; a training stage is refused before anything is loaded."""
    (tmp_path / "stub").mkdir()
    shutil.copy(Path(__file__).parents[1] / "integrations" / "stub_vllm.py", tmp_path / "stub" / "vllm.py")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stub"), prepend=":")
    (tmp_path / "pope").mkdir()
    Image.new("RGB", (90, 60), (200, 30, 30)).save(tmp_path / "pope" / "a.png")
    rows = [{"question_id": n, "image": "a.png", "text": f"Is there a {one}?", "label": "yes"} for n, one in SHAPES]
    (tmp_path / "pope" / "coco_pope_random.json").write_text("\n".join(map(json.dumps, rows)))
    words = ["--bench", "pope", "--data", tmp_path / "pope", "--json"]
    result = mmalign("eval", exported, *words, "--vllm")
    assert result.code == 0, result.err
    assert json.loads(result.out)["pope"]["random/accuracy"] in (0, 1 / 3, 2 / 3, 1)
    (answers,) = Path("runs").glob("evaluate-*/pope.jsonl")
    assert [json.loads(line)["id"] for line in answers.read_text().splitlines()] == ["10000001", "10000002", "10000003"]
    result = mmalign("eval", "runs", *words, "--vllm")
    assert_mistake(result, "is no model that vLLM loads", "runs", "mmalign export")


@pytest.mark.slow
def test_the_same_numbers_from_wherever_it_lies(model, mmalign, monkeypatch):
    """A folder of runs, a training stage, an export, the stage that made it, a repository of the hub."""
    result = mmalign("eval", *BENCH)
    assert result.code == 0, result.err
    assert f"evaluating {model}" in result.err
    again = mmalign("eval", "runs", *BENCH)
    assert again.out == result.out
    assert "begins" not in again.err  # it is done
    twice = mmalign("eval", "runs", "--bench", "toy-alignment,toy-perplexity,toy-alignment", "--json")
    assert (twice.out, "begins" in twice.err) == (result.out, False)
    expected = json.loads(result.out)
    assert list(expected["toy-perplexity"]) == ["perplexity", "before", "change"]
    del expected["toy-perplexity"]["before"], expected["toy-perplexity"]["change"]  # nobody knows any more
    result = mmalign("export", model, "out")
    assert "out: loads in plain transformers; the largest difference of a logit is " in result.out
    assert "(weights in fp32)" in result.out
    assert "note: its encoder's final norm is a layer of large numbers" in result.err
    (stage,) = Path("runs").glob("export-*")
    whole, cards = checkpoints.load(str(model)), task.load(model).cards
    folder.save(Path("mine"), whole, cards)
    repository = Path("hub/models--org--toy").absolute()
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree("mine", repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(repository.parent))
    assert json.loads(mmalign("eval", "org/toy", *BENCH).out) == expected
    for name in ("out", str(stage)):  # the encoder's final norm is a layer there
        printed = json.loads(mmalign("eval", name, *BENCH).out)
        assert printed == {bench: pytest.approx(scores, rel=1e-3) for bench, scores in expected.items()}, name


def test_an_imported_model_answers_as_before(exported, mmalign):
    assert mmalign("import", exported, "mine").out.startswith("mine: mmalign eval mine")
    picture = Image.effect_noise((72, 72), 80).convert("RGB")
    ours, theirs, first = (checkpoints.load(name) for name in ("mine", "out", "runs"))
    answers = [m.ask("what is this ?", picture, max_new_tokens=5) for m in (ours, theirs, first)]
    assert answers[0] == answers[1] == answers[2]
    assert isinstance(ours.adapter, MLP)
    assert {p.dtype for p in theirs.parameters()} == {torch.float32}  # as it was trained; its parts began in bf16
    assert torch.allclose(ours.visual_tokens(picture), first.visual_tokens(picture), atol=1e-4)


def test_a_llava_folder_that_lacks_a_weight_is_not_given_random_ones(theirs):
    weights = load_file("out/model.safetensors")
    (name,) = (key for key in weights if key.endswith("linear_2.bias"))
    del weights[name]
    save_file(weights, "out/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"it lacks 1 weights, such as .*linear_2\.bias"):
        checkpoints.load("out")


@pytest.mark.parametrize("folder", [False, True])
def test_a_projector_becomes_a_card(here, mmalign, folder):
    source = {
        f"model.mm_projector.{name.removeprefix('layers.')}": value
        for name, value in MLP(96, 128, (6, 6)).state_dict().items()
    }
    (here / "from").mkdir()
    torch.save(source, here / "from" / "mm_projector.bin")
    result = mmalign("import", "from" if folder else "from/mm_projector.bin", "mine")
    assert "the projector of " in result.out
    assert "96 to 128" in result.out
    assert "registry: [./mine]   model: {adapter: mine}" in result.out
    (here / "tiny.yaml").write_text(TINY.replace("adapter: linear", "adapter: mine") + "registry: [./mine]\n")
    assert mmalign("plan", "tiny.yaml").code == 0
    place = finished(here / "runs", here / "tiny.yaml")
    assert isinstance(checkpoints.load(str(place)).adapter, MLP)
    result = mmalign("import", here / "from", here / "other")
    assert f"registry: [{here / 'other'}]   model: {{adapter: other}}" in result.out


def test_a_model_of_transformers_is_asked_as_it_is(here, mmalign, monkeypatch):
    """A Qwen2.5-VL of random weights."""
    for part in families.make("qwen2_5_vl"):
        part.save_pretrained("qwen")
    Image.new("RGB", (40, 30), (200, 20, 20)).save("a.png")
    own = checkpoints.load("qwen")
    cosine_BQK, token_BQK = own.nearest_tokens(Image.open("a.png"))[0]
    result = json.loads(mmalign("inspect", "qwen", "a.png", "--layers", "0,2", "--json").out)
    assert [one["layer"] for one in result] == [0, 2]
    assert result[0]["grid"] is None
    assert len(result[0]["words"]) == 20
    assert result[0]["words"][0][0][1] == pytest.approx(cosine_BQK[0, 0, 0].item(), abs=1e-5)
    assert own.llm.chat.tokenizer.decode(token_BQK[0, 0]) == result[0]["words"][0][0][0]
    monkeypatch.setattr("sys.stdin", io.StringIO("what is this ?\n"))
    said = mmalign("chat", "qwen", "a.png", "--max-new-tokens", "8")
    assert own.ask("what is this ?", Image.open("a.png"), 8) in said.out
    assert_mistake(mmalign("import", "qwen", "out"), "qwen is asked as it is", "qwen", "mmalign eval qwen --bench")
    assert_mistake(mmalign("export", "qwen", "out"), "qwen is exported already", "qwen", "runs/train-")


# Mistakes


@pytest.fixture
def strangers(here) -> Path:
    """Folders that hold no model of ours."""
    (here / "empty").mkdir()
    (here / "llama").mkdir()
    (here / "llama" / "config.json").write_text('{"model_type": "llama"}')
    (here / "list").mkdir()
    (here / "list" / "config.json").write_text("[1]")
    (here / "internvl").mkdir()
    own = {"model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "auto_map": {"AutoModel": "a.B"}}
    (here / "internvl" / "config.json").write_text(json.dumps(own | {"vision_config": {}}))
    (here / "lora").mkdir()
    (here / "lora" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/name"}')
    (here / "qwen").mkdir()
    seeing = {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": {}}
    (here / "qwen" / "config.json").write_text(json.dumps(seeing))
    (here / "qwen" / "pytorch_model.bin").touch()
    shutil.copytree(here / "qwen", here / "both")
    shutil.copy(here / "lora" / "adapter_config.json", here / "both")
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
        ("llama", "a checkpoint of kind 'llama', neither a model of images and text nor a language", "runs/train-"),
        ("list", "a checkpoint of kind None, neither a model of images and text nor a language", "runs/train-"),
        ("internvl", "a checkpoint of kind 'internvl_chat', neither", "code that comes with a checkpoint is not run"),
        ("lora", "holds an adapter of peft, such as LoRA, not a whole model", "merge_and_unload()"),
        ("both", "holds an adapter of peft, such as LoRA, not a whole model", "merge_and_unload()"),
        ("qwen", "qwen has its weights in pickled files, which are not opened", "save_pretrained in transformers"),
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


@pytest.mark.parametrize(
    ("config", "precision"),
    [({"dtype": "float32"}, "fp32"), ({"torch_dtype": "float32"}, "fp32"), ({"torch_dtype": "bfloat16"}, "bf16"),
     ({"dtype": "float16"}, "fp16"), ({}, "bf16"), (3, "bf16")],
)  # fmt: skip
def test_a_model_is_evaluated_in_the_precision_it_is_stored_in(here, config, precision):
    toy = {"vision": ("vision", "toy-clip"), "adapter": ("adapters", "linear"), "llm": ("llms", "toy-llama")}
    named = {role: vars(Registry().card(*name)) for role, name in toy.items()}
    (here / "mine" / "llm").mkdir(parents=True)
    (here / "mine" / "mmalign.json").write_text(json.dumps({"format": 1, "cards": named}))
    (here / "mine" / "llm" / "config.json").write_text(json.dumps(config))
    registry = Registry()
    node = existing.evaluation(here / "mine", existing.benches(["toy-pope"], None, registry), registry)
    assert node.stage.precision == precision


def test_a_hub_id_that_cannot_be_fetched(here, monkeypatch):
    with pytest.raises(RunError, match="cannot fetch org/nowhere") as caught:
        checkpoints.load("org/nowhere")
    assert "the network" in caught.value.fix
    assert existing.find("org/nowhere") == "org/nowhere"  # known only when it is asked for


def test_a_llava_model_without_weights(theirs):
    (theirs / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"cannot load .*out") as caught:
        checkpoints.load("out")
    assert "weights included" in caught.value.fix


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"vision_feature_layer": [-2, -5]}, "it reads several layers"),
        ({"projector_hidden_act": "relu"}, "its projector has a relu"),
        ({"vision_feature_select_strategy": "full"}, "is shown the encoder's class token"),
        ({"multimodal_projector_bias": False}, "its projector has no bias"),
    ],
)
def test_a_llava_model_our_parts_cannot_hold(theirs, mmalign, changes, what):
    place = theirs / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))
    assert_mistake(mmalign("import", "out", "mine"), what, "out", "like LLaVA-1.5's")
    assert not Path("mine").exists()


def test_other_weights_under_the_same_configuration_are_another_model(theirs):
    """What was taken apart once is kept; not for a folder whose weights alone were replaced."""
    before = checkpoints.load("out").adapter.state_dict()
    weights = load_file("out/model.safetensors")
    (name,) = (key for key in weights if key.endswith("linear_1.weight"))
    save_file(weights | {name: weights[name] + 1}, "out/model.safetensors", metadata={"format": "pt"})
    after = checkpoints.load("out").adapter.state_dict()
    assert torch.allclose(after["layers.0.weight"], before["layers.0.weight"] + 1, atol=1e-6)


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer*", "config.json"])
def test_a_llava_folder_that_is_damaged(theirs, mmalign, lost):
    for place in theirs.glob(lost):
        place.write_text('{"model_type": "llava", "vision_config": 3}' if lost == "config.json" else "lost")
    assert_mistake(mmalign("import", "out", "mine"), "/out: ", "out", "weights included")
    assert not list(Path(".").glob("*mine*"))


def test_a_template_that_is_no_text(theirs, mmalign):
    Path("picture").write_bytes(b"\x89PNG")
    for name in ("picture", "nowhere"):
        result = mmalign("import", "out", "mine", "--template", name)
        assert_mistake(result, f"cannot read the template {name}: ", name, "{% generation %}")


def test_a_chat_template_of_no_known_format(theirs, mmalign):
    text = "{{ messages[0].content }}"
    (theirs / "chat_template.jinja.marked").unlink()
    for place in theirs.glob("*.jinja"):
        place.write_text(text)
    for name in ("tokenizer_config.json", "processor_config.json"):
        config = json.loads((theirs / name).read_text())
        config.pop("chat_template", None)
        (theirs / name).write_text(json.dumps(config))
    assert_mistake(mmalign("import", "out", "mine"), "is of no known format", "out", "--template FILE")


def test_an_adapter_for_other_widths(here, mmalign):
    card = "summary: x\ntarget: mmalign.adapters.mlp.MLP\nfacts: {keeps_grid: true, patch_dim: 1024, llm_dim: 4096}\n"
    shelf(here, "adapters", "wide", card)
    (here / "tiny.yaml").write_text(TINY.replace("adapter: linear", "adapter: wide") + "registry: [./shelf]\n")
    result = mmalign("check", "tiny.yaml")
    what = "adapter 'wide' was trained for 1024 to 4096, but toy-clip is 96 wide and toy-llama 128"
    assert_mistake(result, what, "tiny.yaml:3", "the parts it was trained with")
