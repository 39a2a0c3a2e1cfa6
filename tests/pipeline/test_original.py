"""Which folders are of LLaVA's own code, what is refused in them, and the folders outside that they need."""

import json
from pathlib import Path

import pytest

from mmalign.errors import RunError
from mmalign.pipeline import existing, original

CONFIG = {
    "model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": "openai/clip",
    "mm_vision_select_layer": -2, "mm_projector_type": "mlp2x_gelu", "image_aspect_ratio": "pad",
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "is_original", "family"),
    [
        (CONFIG, True, "llama"),
        ({"model_type": "llava_llama", "mm_vision_tower": None}, True, "llama"),
        ({"model_type": "llava_mistral", "architectures": ["LlavaMistralForCausalLM"]}, True, "mistral"),
        ({"model_type": "llava_qwen", "mm_vision_tower": "x"}, True, "qwen2"),
        ({"model_type": "llava_mpt", "mm_vision_tower": "x"}, True, ""),
        ({"model_type": "bunny-phi", "architectures": ["BunnyPhiForCausalLM"], "mm_vision_tower": "x"}, True, ""),
        ({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}, False, ""),
        ({"model_type": "llava", "vision_config": {}}, False, ""),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, False, ""),
        ({"architectures": 3}, False, ""),
    ],
)
def test_what_is_of_llavas_own_code(config, is_original, family):
    assert original.is_original(config) == is_original
    assert not is_original or original.family(config) == family


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"architectures": ["LlavaMptForCausalLM"]}, "it is a LlavaMptForCausalLM"),
        ({"architectures": ["BunnyPhiForCausalLM"]}, "it is a BunnyPhiForCausalLM"),
        ({"mm_vision_tower": None}, r"no vision tower, or several \(mm_vision_tower: None\)"),
        ({"mm_vision_tower": ["a", "b"]}, "no vision tower, or several"),
        ({"mm_vision_select_layer": [-2, -5]}, r"does not read one layer of its tower .*\[-2, -5\]"),
        ({"mm_vision_select_layer": None}, "does not read one layer"),
        ({"mm_vision_select_feature": "cls_patch"}, "is shown the tower's class token .*'cls_patch'"),
        ({"image_aspect_ratio": "anyres"}, r"cuts pictures into tiles \(image_aspect_ratio: 'anyres'\)"),
        ({"image_aspect_ratio": "anyres_max_9"}, "cuts pictures into tiles"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "arranges patches anew .*'spatial_unpad'"),
        ({"mm_projector_type": "mlp2x_res2x_gelu"}, "its projector is another one .*'mlp2x_res2x_gelu'"),
        ({"mm_projector_type": "mlp0x_gelu"}, "its projector is another one"),
        ({"mm_use_im_start_end": True}, "puts <im_start> and <im_end> around pictures"),
        ({"mm_resampler_type": "qformer"}, "has a resampler .*'qformer'"),
        ({"s2": True}, "at several scales"),
    ],
)
def test_what_our_parts_cannot_hold_is_named(here, changes, what):
    place = folder(here, CONFIG | changes)
    for way in (existing.find, original.refused):
        with pytest.raises(RunError, match=f"cannot import .*{what}") as caught:
            raise RunError(f"cannot import x: {way(CONFIG | changes)}") if way is original.refused else way(str(place))
    assert str(place / "config.json") in str(caught.value) or way is original.refused


def folder(here: Path, config: dict, *names: str) -> Path:
    (here / "llava").mkdir()
    (here / "llava" / "config.json").write_text(json.dumps(config))
    for name in names:
        (here / "llava" / name).touch()
    return here / "llava"


@pytest.mark.parametrize(
    ("names", "what", "fix"),
    [
        ((), "llava holds no weights", "weights included"),
        (("mm_projector.bin",), "llava holds a projector, and no language model", "mmalign import .*llava DIR"),
        (("mm_projector.safetensors",), "llava holds a projector, and no language model", "makes it an adapter"),
    ],
)
def test_a_folder_without_a_language_model(here, names, what, fix):
    with pytest.raises(RunError, match=what) as caught:
        existing.find(str(folder(here, CONFIG, *names)))
    assert caught.match(fix)


def test_nothing_is_fetched_that_the_user_did_not_name(here, monkeypatch):
    """The tower of a folder, and a LoRA folder's base: from the hub's cache alone."""
    asked = []

    def snapshot(name, local_files_only=False, **more):
        asked.append((name, local_files_only))
        if name != "openai/clip":
            raise OSError("not there")
        return str(here / "cached")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    place = folder(here, CONFIG, "model.safetensors")
    assert original.outside(place) == {"tower": here / "cached"}
    (place / original.ADAPTER).write_text('{"base_model_name_or_path": "lmsys/vicuna"}')
    with pytest.raises(RunError, match="needs lmsys/vicuna, which is not on this machine") as caught:
        existing.find(str(place))
    assert "hf download lmsys/vicuna, or write the path" in caught.value.fix
    assert "adapter_config.json  base_model_name_or_path" in str(caught.value)
    assert asked == [("openai/clip", True), ("openai/clip", True), ("lmsys/vicuna", True)]


def test_what_lies_outside_is_named_from_the_folder_or_from_here(here):
    for name in ("beside", "llava/inside"):
        (here / name).mkdir(parents=True)
        (here / name / "config.json").write_text("{}")
    place = here / "llava"
    for name, where in (("../beside", "beside"), ("inside", "llava/inside"), ("beside", "beside")):
        (place / "config.json").write_text(json.dumps(CONFIG | {"mm_vision_tower": name}))
        assert original.outside(place) == {"tower": (here / where).resolve()}
    (place / "config.json").write_text(json.dumps(CONFIG | {"mm_vision_tower": "/nowhere/clip"}))
    with pytest.raises(RunError, match="needs /nowhere/clip") as caught:
        original.outside(place)
    assert caught.value.fix.startswith("write the path of its folder into ")


@pytest.mark.parametrize(
    ("names", "again"),
    [
        (["pytorch_model.bin.index.json"], True),
        (["adapter_config.json", "adapter_model.safetensors"], True),
        (["model.safetensors"], False),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], False),
    ],
)
def test_pickled_weights_are_fetched_of_a_repository_that_is_named(here, monkeypatch, names, again):
    tower = json.dumps({"base_model_name_or_path": "."})
    place = folder(here, CONFIG | {"mm_vision_tower": "."}, *names)
    (place / "adapter_config.json").write_text(tower) if "adapter_config.json" in names else None
    asked = []

    def snapshot(name, allow_patterns):
        asked.append("pytorch_model*.bin" in allow_patterns)
        return str(place)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert existing.fetched("org/llava") == place
    assert asked == ([False, True] if again else [False])
