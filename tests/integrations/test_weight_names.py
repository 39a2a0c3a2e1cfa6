"""What an export's weights are called: as the published checkpoints, and as transformers, vLLM and gguf read them."""

import re
import tempfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from mmalign.adapters.mlp import MLP
from mmalign.integrations import llava, weight_names
from mmalign.llms.causal import CausalLM
from mmalign.stages import export
from mmalign.vision.hf import HFVision
from mmalign.vlm import folder
from mmalign.vlm.model import VLM
from tests import parts

TOWERS = {"clip": parts.clip, "siglip": parts.siglip, "dinov2": parts.dinov2}
# llava-hf/llava-1.5-7b-hf, model.safetensors.index.json; a SigLIP has a bias and no class, a Qwen biases, beside them.
LAYER = r"(layer_norm[12]|mlp\.fc[12]|self_attn\.(k_proj|out_proj|q_proj|v_proj))"
BLOCK = r"(input_layernorm|post_attention_layernorm|mlp\.(down|gate|up)_proj|self_attn\.[kqvo]_proj)"
PUBLISHED = [
    r"language_model\.(lm_head|model\.embed_tokens|model\.norm)\.weight",
    rf"language_model\.model\.layers\.\d+\.{BLOCK}\.weight",
    r"multi_modal_projector\.linear_[12]\.(weight|bias)",
    r"vision_tower\.vision_model\.embeddings\.(class_embedding|(patch|position)_embedding\.weight|patch_embedding\.bias)",
    rf"vision_tower\.vision_model\.encoder\.layers\.\d+\.{LAYER}\.(weight|bias)",
    r"vision_tower\.vision_model\.(pre_layrnorm|post_layernorm)\.(weight|bias)",
]


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """By tower, layers of the adapter and family of the language model: (export, model it was made of)."""
    made = {}

    def one(tower, depth=2, family="llama"):
        if (tower, depth, family) not in made:
            torch.manual_seed(4)
            encoder = HFVision(str(TOWERS[tower](tmp_path_factory.mktemp(tower))), layer=-2)
            llm = CausalLM(str(parts.llm(family, tmp_path_factory.mktemp(family))))
            vlm = VLM(encoder, MLP(encoder.dim, llm.dim, encoder.grid, depth), llm).eval()
            place = tmp_path_factory.mktemp("out") / "it"
            made[tower, depth, family] = export.Exported(place, None, note=export.write(vlm, place).note), vlm
        return made[tower, depth, family]

    return one


def names(exported):
    return list(load_file(exported.folder / "model.safetensors"))


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_names_are_those_of_the_published_checkpoints(exports, tower):
    assert [name for name in names(exports(tower)[0]) if not any(re.fullmatch(rule, name) for rule in PUBLISHED)] == []


def test_a_tied_head_is_written_once(exports):
    written = names(exports("clip", family="gemma")[0])
    assert "language_model.model.embed_tokens.weight" in written
    assert not any("lm_head" in name for name in written)


def test_a_dinov2_is_named_as_transformers_writes_it(exports):
    """transformers 5.6 reads only these names; what newer ones hold in memory is called otherwise."""
    assert "vision_tower.encoder.layer.0.attention.attention.query.weight" in names(exports("dinov2")[0])


@pytest.mark.parametrize("tower", TOWERS)
def test_transformers_reads_every_name(exports, tower):
    """Nothing is missing or left over, and what is read is what was written."""
    made, _ = exports(tower)
    read, about = AutoModelForImageTextToText.from_pretrained(made.folder, output_loading_info=True)
    assert not any(about.values())
    assert set(read.state_dict()) == set(LlavaForConditionalGeneration(read.config).state_dict())


@pytest.mark.parametrize("flat", [False, True], ids=["published", "flat, as 0.1.0 wrote"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_both_namings_are_imported(exports, tower, flat, tmp_path):
    made, vlm = exports(tower)
    if flat:
        weights = load_file(made.folder / "model.safetensors")
        for place in made.folder.iterdir():
            if place.name != "SHA256SUMS":
                (tmp_path / place.name).write_bytes(place.read_bytes())
        flattened = {name.replace(".vision_model.", "."): value for name, value in weights.items()}
        assert flattened.keys() != weights.keys()
        save_file(flattened, tmp_path / "model.safetensors", {"format": "pt"})
    llava.llava(str(tmp_path if flat else made.folder), tmp_path / "imported", vlm.llm.chat.template)
    read = folder.read(tmp_path / "imported")
    for name, value in vlm.vision.tower.state_dict().items():
        if not name.startswith("head."):  # SigLIP's pooling, which no LLaVA reads
            assert torch.equal(read.vision.tower.state_dict()[name], value), name


def test_what_others_cannot_take_is_said(exports):
    assert "vLLM" not in exports("clip")[0].note
    assert "vLLM and llama.cpp have no dinov2 in a LLaVA" in exports("dinov2")[0].note
    assert f"vLLM takes with `hf_overrides={weight_names.IDENTITY}`" in exports("clip", depth=1)[0].note


def test_gguf_maps_every_weight(exports):
    gguf = pytest.importorskip("gguf")
    text, vision = (gguf.get_tensor_name_map(kind, 64) for kind in (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.MMPROJ))
    for tower in ("clip", "siglip"):
        for name in names(exports(tower)[0]):
            where = text if name.startswith("language_model.") else vision
            known = where.get_name(name.removeprefix("language_model."), try_suffixes=(".weight", ".bias"))
            assert known is not None, name


@pytest.fixture(scope="module")
def inside():
    """vLLM's own model of a folder, by its own classes, on a CPU and without its kernels: it loads and computes not."""
    pytest.importorskip("vllm")
    platforms, config, distributed, models = (
        pytest.importorskip(f"vllm.{name}", exc_type=ImportError)
        for name in ("platforms", "config", "distributed", "model_executor.models.llava")
    )
    cpu = pytest.importorskip("vllm.platforms.cpu", exc_type=ImportError)
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setattr(platforms, "_current_platform", cpu.CpuPlatform())
            for kernel in ("gelu_quick", "silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"):
                patch.setattr(torch.ops._C, kernel, None, raising=False)
        device = config.DeviceConfig(device="cuda" if torch.cuda.is_available() else "cpu")

        def build(place, **options):
            of = config.ModelConfig(model=str(place), dtype="float32", enforce_eager=True, **options)
            whole = config.VllmConfig(model_config=of, device_config=device)
            with config.set_current_vllm_config(whole):
                if not torch.distributed.is_initialized():
                    meeting = f"file://{tempfile.mkdtemp()}/meeting"
                    distributed.init_distributed_environment(1, 0, meeting, 0, "gloo")
                    distributed.initialize_model_parallel(1, 1)
                return models.LlavaForConditionalGeneration(vllm_config=whole)

        yield build
        if torch.distributed.is_initialized():
            distributed.destroy_model_parallel()
            distributed.destroy_distributed_environment()


@pytest.mark.parametrize(("tower", "depth", "family"), [
    ("clip", 2, "llama"), ("siglip", 2, "llama"), ("clip", 1, "llama"), ("clip", 2, "qwen2"), ("clip", 2, "gemma"),
])  # fmt: skip
def test_vllm_loads_every_weight(exports, inside, tower, depth, family):
    made, vlm = exports(tower, depth, family)
    model = inside(made.folder, **({"hf_overrides": weight_names.IDENTITY} if depth == 1 else {}))
    weights = load_file(made.folder / "model.safetensors")
    assert model.load_weights(weights.items()) == {name for name, _ in model.named_parameters()}
    theirs = model.vision_tower.state_dict()
    layer = next(name for name in theirs if name.endswith("layers.0.mlp.fc1.weight"))
    assert torch.equal(theirs[layer], vlm.vision.tower.state_dict()[layer.removeprefix("vision_model.")])


def test_vllm_has_no_dinov2(exports, inside):
    with pytest.raises(NotImplementedError, match="Dinov2Config"):
        inside(exports("dinov2")[0].folder)
