"""Folders of LLaVA's own code, built by hand in each of its layouts: they answer as LLaVA's definition does."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from mmalign.cli import models
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, CLIPImageProcessorPil, CLIPModel

from mmalign.data import MARK, Turn
from mmalign.errors import DataError, RunError
from mmalign.integrations.llava import llava
from mmalign.pipeline import existing
from mmalign.pipeline.load import load
from mmalign.plan.cards import Registry
from mmalign.testing import small
from mmalign.vlm.folder import read
from tests.plan.test_mistakes import assert_mistake
from tests.vlm.test_model import picture

SETTINGS = {
    "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad",
    "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "mm_hidden_size": 24, "use_mm_proj": True,
    "tune_mm_mlp_adapter": False, "mm_patch_merge_type": "flat",
}  # fmt: skip
R, ALPHA = 2, 6
LAYERS = "base_model.model.model.layers"  # as peft names them


class Made:
    """A LLaVA model of plain transformers' parts, and what its own code would save of it."""

    def __init__(
        self, folder: Path, family: str = "llama", depth: int = 2, dim: int = 32, words: str = "bytelevel", **settings
    ) -> None:
        self.tower, self.base = small.clip(folder / "clip"), small.llm(family, folder / "base", words, hidden_size=dim)
        self.vision = CLIPModel.from_pretrained(self.tower).vision_model.eval()
        self.lm = AutoModelForCausalLM.from_pretrained(self.base).eval()
        layers = [m for n in range(depth) for m in (nn.GELU(), nn.Linear(dim if n else 24, dim))][1:]
        self.projector = nn.Sequential(*layers)
        kind = {0: "identity", 1: "linear"}.get(depth, f"mlp{depth}x_gelu")
        about = json.loads((self.base / "config.json").read_text())
        about |= {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "mm_projector_type": kind}
        self.config = about | SETTINGS | {"mm_vision_tower": str(self.tower)} | settings

    def projected(self, name: str = "model.mm_projector.") -> dict:
        numbered = len(self.projector) > 1
        return {f"{name}{key if numbered else key[2:]}": value for key, value in self.projector.state_dict().items()}

    def weights(self, inside: bool = False) -> dict:
        """The state of LlavaLlamaForCausalLM."""
        prefix = "model.vision_tower.vision_tower.vision_model."
        tower = {prefix + name: value for name, value in self.vision.state_dict().items()} if inside else {}
        return self.lm.state_dict() | self.projected() | tower

    @torch.no_grad()
    def logits(self, ids: list, mark: int, image) -> torch.Tensor:
        """As in llava_arch.py and clip_encoder.py: patches of one layer, projected, in the image token's place."""
        images = CLIPImageProcessorPil.from_pretrained(self.tower)
        if self.config["image_aspect_ratio"] == "pad":
            square = Image.new("RGB", (max(image.size),) * 2, tuple(int(x * 255) for x in images.image_mean))
            square.paste(image, tuple((max(image.size) - side) // 2 for side in image.size))
            image = square
        pixels = images(image, return_tensors="pt")["pixel_values"]
        states = self.vision(pixels, output_hidden_states=True).hidden_states
        visual = self.projector(states[self.config["mm_vision_select_layer"]][:, 1:])[0]
        at = ids.index(mark)
        words = self.lm.get_input_embeddings()
        before, behind = (words(torch.tensor(part)) for part in (ids[:at], [i for i in ids[at:] if i != mark]))
        return self.lm(inputs_embeds=torch.cat([before, visual, behind])[None]).logits[0]


def write(folder: Path, config: dict, words: Path | None = None) -> Path:
    """A new folder with a config.json, and with the tokenizer of another."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for place in words.glob("tokenizer*") if words else ():
        (folder / place.name).write_bytes(place.read_bytes())
    return folder


def shards(folder: Path, weights: dict, kind: str) -> None:
    """Two files and an index, as transformers writes them; safetensors, or pickles that torch wrote."""
    names, tensors = sorted(weights), {name: value.clone().contiguous() for name, value in weights.items()}
    stem, ending = {"bin": ("pytorch_model", "bin"), "safetensors": ("model", "safetensors")}[kind]
    files = {name: f"{stem}-0000{1 + (n % 2)}-of-00002.{ending}" for n, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: tensors[name] for name in names if files[name] == file}
        torch.save(part, folder / file) if kind == "bin" else save_file(part, folder / file)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def whole_inside(folder: Path) -> tuple[Path, Made]:
    """One safetensors file, the tower among the weights; what newer and older code saves besides."""
    made = Made(folder, unfreeze_mm_vision_tower=True)
    with torch.no_grad():
        made.vision.embeddings.patch_embedding.weight.mul_(-5)  # trained: not as it lies outside
    place = write(folder / "llava", made.config, made.base)
    unused = {"model.image_newline": torch.zeros(32), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    ids = {"model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(26)[None]}
    weights = {name: value.clone() for name, value in (made.weights(inside=True) | unused | ids).items()}
    save_file(weights, place / "model.safetensors")
    return place, made


def pickled_outside(folder: Path) -> tuple[Path, Made]:
    """Pickled shards, a linear projector which also lies beside them, pictures cropped."""
    about = {"model_type": "llava_llama", "image_aspect_ratio": None, "mm_vision_tower": "../clip"}
    made = Made(folder, depth=1, **about)
    place = write(folder / "llava", made.config, made.base)
    shards(place, made.weights(), "bin")
    torch.save(made.projected(), place / "mm_projector.bin")
    return place, made


def mistral_shards(folder: Path) -> tuple[Path, Made]:
    about = {"model_type": "llava_mistral", "architectures": ["LlavaMistralForCausalLM"], "mm_vision_select_layer": -1}
    made = Made(folder, "mistral", depth=3, **about)
    place = write(folder / "llava", made.config, made.base)
    shards(place, made.weights(), "safetensors")
    return place, made


def updates(made: Made, trained: list[str], scale: float, names: str = "base_model.model.{}.lora_{}.weight") -> dict:
    """LoRA updates, already counted in the model they are of."""
    saved = {}
    for name in trained:
        weight = made.lm.get_parameter(f"{name}.weight")
        down, up = torch.randn(R, weight.shape[1]), torch.randn(len(weight), R)
        weight.data += scale * up @ down
        saved |= {names.format(name, "A"): down, names.format(name, "B"): up}
    return saved


def lora(folder: Path, base_is_llava: bool, kind: str) -> tuple[Path, Made]:
    """Updates to attention and MLP, and the projector apart; tokenizer and the rest are the base's."""
    made = Made(folder, depth=2 if kind == "bin" else 0, dim=32 if kind == "bin" else 24)
    if base_is_llava:
        base = write(folder / "before", made.config, made.base)
        old = {name: value + 1 if "mm_projector" in name else value for name, value in made.weights().items()}
        shards(base, old, "safetensors")
    about = {"peft_type": "LORA", "r": R, "lora_alpha": ALPHA, "use_rslora": kind != "bin", "bias": "none"}
    about |= {"base_model_name_or_path": str(folder / "before" if base_is_llava else made.base)}
    place = write(folder / "llava-lora", made.config)
    (place / "adapter_config.json").write_text(json.dumps(about))
    trained = ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"]
    saved = updates(made, trained, ALPHA / (R if kind == "bin" else math.sqrt(R)))
    torch.save(saved, place / "adapter_model.bin") if kind == "bin" else save_file(
        saved, place / "adapter_model.safetensors"
    )
    torch.save(made.projected("base_model.model.model.mm_projector."), place / "non_lora_trainables.bin")
    return place, made


LAYOUTS = {
    "inside": whole_inside,
    "outside, pickled": pickled_outside,
    "mistral": mistral_shards,
    "lora": lambda folder: lora(folder, base_is_llava=False, kind="bin"),
    "lora of a llava": lambda folder: lora(folder, base_is_llava=True, kind="safetensors"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_logits_are_those_of_the_model_it_was_made_from(tmp_path, layout):
    place, made = LAYOUTS[layout](tmp_path)
    torch.manual_seed(0)
    llava(str(place), tmp_path / "mine")
    model = read(tmp_path / "mine")
    wide = picture(3, size=60).resize((60, 34))
    ids = model.llm.chat.prompt([Turn("user", f"{MARK}\nWhat colour is the star?")], [model.tokens])
    assert ids.count(model.llm.chat.mark) == model.tokens == 25
    with torch.no_grad():
        ours = model(torch.tensor([ids]), pixels_B3SS=model.pixels(wide))[0]
    theirs = made.logits(ids, model.llm.chat.mark, wide)
    assert torch.allclose(ours, theirs, atol=1e-4), (ours - theirs).abs().max()
    assert theirs.std() > 0.05
    assert model.vision.fit == ("crop" if layout == "outside, pickled" else "pad")


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_prompts_are_spelled_as_llava_spells_them(tmp_path, family):
    """As tokenizer_image_token of mm_utils.py: what stands before and behind an image by itself, joined."""
    made = Made(tmp_path, family, words="sentencepiece", architectures=[f"Llava{family.capitalize()}ForCausalLM"])
    place = write(tmp_path / "llava", made.config, made.base)
    save_file({name: value.clone() for name, value in made.weights().items()}, place / "model.safetensors")
    llava(str(place), tmp_path / "mine")
    chat = read(tmp_path / "mine").llm.chat
    turns = [Turn("user", f"{MARK}\nWhat colour?"), Turn("assistant", "Red."), Turn("user", "Large?")]
    system = "A chat between a curious user and an artificial intelligence assistant. "
    system += "The assistant gives helpful, detailed, and polite answers to the user's questions."
    prompts = {
        "llama": [f"{system} USER: ", "\nWhat colour? ASSISTANT: Red.</s>USER: Large? ASSISTANT:"],
        "mistral": ["[INST] ", "\nWhat colour? [/INST] Red.</s>[INST] Large? [/INST]"],
    }
    before, behind = (chat.tokenizer(text, add_special_tokens=False).input_ids for text in prompts[family])
    until = len(before) + 2 + behind.index(chat.tokenizer.eos_token_id)  # LLaVA's Mistral has no blank behind it
    assert chat.prompt(turns, [1])[:until] == [chat.tokenizer.bos_token_id, *before, chat.mark, *behind][:until]
    if family == "llama":
        assert chat.prompt(turns, [1])[until:] == behind[until - len(before) - 2 :]


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> tuple[Path, Made]:
    return pickled_outside(tmp_path_factory.mktemp("known"))


def copied(known: tuple[Path, Made], here: Path) -> Path:
    shutil.copytree(known[0].parent, here, dirs_exist_ok=True)
    return here / "llava"


def test_one_path_for_import_load_and_eval(known, here, mmalign, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(here / "cache"))
    copied(known, here)
    assert mmalign("import", "llava", "mine").out.startswith("mine: mmalign eval mine")
    image = picture(5)
    ours, theirs = load("mine"), load("llava")
    assert torch.equal(ours.visual_tokens(image), theirs.visual_tokens(image))
    assert ours.ask("What?", image, max_new_tokens=5) == theirs.ask("What?", image, max_new_tokens=5)
    assert len(list((here / "cache" / "imported").iterdir())) == 1
    registry = Registry()
    bench = existing.benches(["toy-pope"], None, registry)
    nodes = [existing.evaluation(existing.find("llava"), bench, registry)]
    weights = load_file("clip/model.safetensors")
    changed = weights | {name: value + 1 for name, value in weights.items() if name.endswith("class_embedding")}
    save_file(changed, "clip/model.safetensors", metadata={"format": "pt"})
    nodes.append(existing.evaluation(existing.find("llava"), bench, registry))
    assert nodes[0].folder != nodes[1].folder  # another tower is another model
    assert not torch.equal(load("llava").visual_tokens(image), theirs.visual_tokens(image))
    result = mmalign("eval", "llava", "--bench", "toy-pope", "--vllm")
    assert_mistake(result, "is no model that vLLM loads", "llava", "leave out --vllm")


def test_a_projector_beside_the_weights_is_taken_where_they_lack_it(known, here):
    place = copied(known, here)
    for name in place.glob("pytorch_model-*"):
        weights = {key: value for key, value in torch.load(name).items() if "mm_projector" not in key}
        torch.save(weights, name)
    index = place / "pytorch_model.bin.index.json"
    assert not models.projector(place)
    llava(str(place), here / "mine")
    assert torch.equal(read(here / "mine").adapter.layers[0].weight, known[1].projector[0].weight)
    (place / "mm_projector.bin").unlink()
    with pytest.raises(DataError, match="cannot read the adapter"):
        llava(str(place), here / "other")
    index.unlink()
    torch.save(known[1].projected(), place / "mm_projector.bin")
    assert models.projector(place)  # nothing else is left of it


class Evil:
    def __reduce__(self):
        return (print, ("code was run",))


def changed(place: Path, change) -> None:
    """The tensors of a folder of pickled shards, changed."""
    name = sorted(place.glob("pytorch_model-*"))[0]
    torch.save(change(torch.load(name)), name)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda w: w | {"x": Evil()}, "cannot read the weights .*pytorch_model-00001-of-00002.bin"),
        (lambda w: list(w), "holds no tensors by name"),
        (lambda w: dict(list(w.items())[1:]), "it lacks 1 weights, such as lm_head.weight"),
        (lambda w: w | {"model.vision_resampler.query": torch.zeros(1)}, "has a place for, 1 .*model.vision_resampler"),
        (lambda w: w | {"lm_head.weight": torch.zeros(3, 4)}, "in another shape, 1 weights, such as lm_head.weight"),
    ],
)
def test_weights_that_are_no_models(known, here, capsys, change, what):
    place = copied(known, here)
    changed(place, change)
    with pytest.raises(RunError, match=what) as caught:
        llava(str(place), here / "mine")
    assert "weights included" in caught.value.fix
    assert "code was run" not in capsys.readouterr().out
    assert not list(here.glob("*mine*"))


@pytest.mark.parametrize("name", ["../x.bin", 3, None])
def test_an_index_that_names_no_files_of_its_folder(known, here, name):
    place = copied(known, here)
    names = {} if name is None else {"lm_head.weight": name}
    (place / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(RunError, match="names no files of its folder"):
        llava(str(place), here / "mine")


@pytest.mark.parametrize(
    ("about", "name", "what"),
    [
        ({"use_dora": True}, "", "no plain LoRA: use_dora is True"),
        ({"rank_pattern": {"q_proj": 4}}, "", "no plain LoRA: rank_pattern"),
        ({"peft_type": "IA3"}, "", "no plain LoRA: peft_type is 'IA3'"),
        ({}, f"{LAYERS}.9.self_attn.q_proj.lora_A.weight", "no place in the base model: model.layers.9"),
        ({}, f"{LAYERS}.0.self_attn.q_proj.lora_magnitude_vector", "no place in the base model"),
    ],
)  # fmt: skip
def test_updates_that_are_not_merged(tmp_path, about, name, what):
    place, _ = lora(tmp_path, base_is_llava=False, kind="bin")
    config = place / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | about))
    if name:
        saved = torch.load(place / "adapter_model.bin")
        torch.save(saved | {name: torch.zeros(R, 32)}, place / "adapter_model.bin")
    with pytest.raises(RunError, match=what):
        llava(str(place), tmp_path / "mine")


def test_a_lora_folder_that_lacks_its_projector(tmp_path):
    place, _ = lora(tmp_path, base_is_llava=False, kind="bin")
    (place / "non_lora_trainables.bin").unlink()
    with pytest.raises(RunError, match=r"lacks non_lora_trainables.safetensors or non_lora_trainables.bin"):
        llava(str(place), tmp_path / "mine")


def test_a_tokenizer_that_cannot_be_read(known, here):
    place = copied(known, here)
    for name in place.glob("tokenizer*"):
        name.unlink()
    (place / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(RunError, match="cannot load the tokenizer of ") as caught:
        llava(str(place), here / "mine")
    assert "pip install sentencepiece protobuf" in caught.value.fix
