"""The card of a language model from its checkpoint's folder: facts of config.json, weights counted, its template."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from mmalign.errors import RunError
from mmalign.llms.causal import CausalLM
from mmalign.pipeline import model_card
from mmalign.plan import building, cards
from mmalign.testing import small

PLAIN = small.TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
CHATML = "{% for m in messages %}{{'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'}}{% endfor %}"
CHATML += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {family: small.llm(family, folder / family) for family in ("llama", "gemma2", "qwen2")}


@pytest.fixture
def source(models, tmp_path):
    return shutil.copytree(models["llama"], tmp_path / "mine")


def read(place):
    return cards.read(place, "llms")


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2"])
def test_facts_are_what_the_model_is(models, tmp_path, family):
    place, notes = model_card.write("mine", models[family], tmp_path)
    card, lm = read(place), AutoModelForCausalLM.from_pretrained(models[family])
    config, facts = lm.config, card.facts
    assert place == tmp_path / "llms" / "mine.yaml"
    assert not notes
    assert card.facts["family"] == family == config.model_type
    assert (facts["dim"], facts["layers"], facts["inner"]) == (32, 3, 48)
    assert (facts["heads"], facts["kv_heads"]) == (4, config.num_key_value_heads)
    assert (facts["vocab"], facts["tied"]) == (config.vocab_size, config.tie_word_embeddings)
    assert facts["parameters"] == sum(p.numel() for p in lm.parameters())
    assert facts.get("head_dim", config.hidden_size // 4) == getattr(config, "head_dim", 8)
    assert card.args == {"checkpoint": str(models[family])}  # its own template marks answers


def test_the_card_builds_the_model(source, tmp_path):
    place, _ = model_card.write("mine", source, tmp_path / "shelf")
    assert "checkpoint: ../../mine\n" in place.read_text()
    built = building.build(read(place))
    assert isinstance(built, CausalLM)
    assert built.dim == 32
    shutil.copytree(source, tmp_path / "shelf" / "llms" / "beside")
    place, _ = model_card.write("other", tmp_path / "shelf" / "llms" / "beside", tmp_path / "shelf")
    assert "checkpoint: ./beside\n" in place.read_text()
    assert read(place).args["checkpoint"] == str(tmp_path / "shelf" / "llms" / "beside")


def test_what_a_configuration_leaves_out_is_read_from_the_weights(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    left = {key: config[key] for key in config if key not in ("tie_word_embeddings", "num_key_value_heads", "head_dim")}
    (source / "config.json").write_text(json.dumps(left))
    card = read(model_card.write("one", source, tmp_path)[0])
    assert (card.facts["tied"], card.facts["kv_heads"]) == (False, 4)
    weights = load_file(source / "model.safetensors")
    count = sum(weight.numel() for weight in weights.values())
    assert card.facts["parameters"] == count
    head = weights.pop("lm_head.weight")
    save_file(weights, source / "model.safetensors")
    card = read(model_card.write("two", source, tmp_path)[0])
    assert (card.facts["tied"], card.facts["parameters"]) == (True, count - head.numel())
    save_file({**weights, "lm_head.weight": head}, source / "model.safetensors")  # tied, and written all the same
    (source / "config.json").write_text(json.dumps(left | {"tie_word_embeddings": True}))
    assert read(model_card.write("tied", source, tmp_path)[0]).facts["parameters"] == count - head.numel()
    (source / "config.json").write_text(json.dumps(left))
    save_file({**weights, "q": head.byte()}, source / "model.safetensors")  # quantised: no count of anything
    assert "parameters" not in read(model_card.write("three", source, tmp_path)[0]).facts
    (source / "model.safetensors").unlink()
    assert not {"parameters", "tied"} & set(read(model_card.write("four", source, tmp_path)[0]).facts)


def test_gpt2_calls_its_sizes_otherwise(tmp_path):
    (tmp_path / "gpt").mkdir()
    AutoConfig.for_model("gpt2", n_embd=48, n_layer=5, n_head=3).save_pretrained(tmp_path / "gpt")
    facts = read(model_card.write("mine", tmp_path / "gpt", tmp_path)[0]).facts
    assert (facts["dim"], facts["layers"], facts["heads"], facts["kv_heads"]) == (48, 5, 3, 3)


def test_a_template_without_marks(source, tmp_path):
    """Ours where that renders the same; else theirs beside the card, and what to do about it."""
    place = source / "chat_template.jinja"
    place.write_text(CHATML)
    path, notes = model_card.write("one", source, tmp_path)
    assert read(path).args["template"] == "pkg:mmalign.llms/templates/chatml.jinja"
    assert not notes
    place.write_text(PLAIN)
    path, (note,) = model_card.write("two", source, tmp_path)
    beside = tmp_path / "llms" / "two.jinja"
    assert read(path).args["template"] == str(beside)
    assert beside.read_text() == PLAIN
    assert note.startswith(f"{beside}: its chat template marks no answers: put {{% generation %}}")
    place.unlink()
    path, (note,) = model_card.write("three", source, tmp_path)
    assert "template" not in read(path).args
    assert note.startswith(f"{source} has no chat template: name one in the card")


def test_templates_of_tokenizer_config(source, tmp_path):
    (source / "chat_template.jinja").unlink()
    about = json.loads((source / "tokenizer_config.json").read_text())
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    for name, own in (("one", CHATML), ("two", several)):
        (source / "tokenizer_config.json").write_text(json.dumps({**about, "chat_template": own}))
        path, _ = model_card.write(name, source, tmp_path)
        assert read(path).args["template"] == "pkg:mmalign.llms/templates/chatml.jinja"


def changed(**more):
    def change(source):
        config = json.loads((source / "config.json").read_text()) | more
        (source / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return change


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda source: (source / "config.json").unlink(), "there is no config.json in"),
        (lambda source: (source / "config.json").write_text("{"), "not valid JSON"),
        (changed(model_type=None), "has no model_type in its config.json"),
        (changed(hidden_size=None), "has no hidden_size in its config.json"),
        (changed(hidden_size="wide"), "hidden_size must be a whole number"),
        (changed(num_hidden_layers=0), "num_hidden_layers"),
        (changed(text_config={}), "is no language model alone: it has a text_config"),
        (lambda source: (source / "model.safetensors").write_bytes(b"\x05" + bytes(7) + b"xxxxx"), "is no safetensors"),
        (lambda source: (source / "model.safetensors").write_bytes(b"\xff" * 20), "is no safetensors"),
        (lambda source: (source / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b'{"a": 1}'), "model.safe"),
    ],
)
def test_folders_that_are_refused(source, tmp_path, change, what):
    change(source)
    with pytest.raises(RunError) as caught:
        model_card.write("mine", source, tmp_path)
    assert what in str(caught.value)
    assert caught.value.fix == model_card.FIX
    assert not (tmp_path / "llms").exists()


@pytest.mark.parametrize("own", [5, {"a": 1}, ["x", {"name": "default", "template": 1}]])
def test_a_template_that_is_no_text(source, tmp_path, own):
    (source / "chat_template.jinja").unlink(missing_ok=True)
    about = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**about, "chat_template": own}))
    with pytest.raises(RunError, match="the chat template in .* is no text"):
        model_card.write("mine", source, tmp_path)


def test_what_is_no_folder(tmp_path):
    with pytest.raises(RunError, match="there is no config.json in .*nowhere"):
        model_card.write("mine", tmp_path / "nowhere", tmp_path)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(RunError, match="is a file") as caught:
        model_card.write("mine", tmp_path / "a.gguf", tmp_path)
    assert caught.value.fix == f"mmalign import {tmp_path}/a.gguf DIR, and --from DIR"


@pytest.mark.parametrize("ending", ["yaml", "jinja"])
def test_nothing_is_overwritten(source, tmp_path, ending):
    (tmp_path / "llms").mkdir()
    (tmp_path / "llms" / f"mine.{ending}").write_text("kept")
    with pytest.raises(RunError, match=rf"mine\.{ending} is there already"):
        model_card.write("mine", source, tmp_path)
    assert (tmp_path / "llms" / f"mine.{ending}").read_text() == "kept"
    assert len(list((tmp_path / "llms").iterdir())) == 1
