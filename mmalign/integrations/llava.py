"""LLaVA's checkpoints as mmalign's: llava-hf folders, those of LLaVA's own code, and its `mm_projector.bin`."""

import logging
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, LlavaForConditionalGeneration

from mmalign.adapters import Adapter
from mmalign.adapters.mlp import MLP
from mmalign.errors import RunError
from mmalign.integrations import original, projectors
from mmalign.integrations.projectors import load_adapter
from mmalign.io import files, sums, yaml
from mmalign.llms import plain
from mmalign.pipeline.original import check, is_original
from mmalign.plan.cards import Card
from mmalign.vision.hf import ARCHITECTURES, HFVision
from mmalign.vlm import folder

log = logging.getLogger(__name__)
WHOLE = "a whole llava-hf folder, weights included"


def adapter(source: str, target: Path, name: str) -> dict[str, Any]:
    """A projector as a folder of cards with one adapter, `name`, that begins with its weights; returns the card.

    source: as for `projectors.read`. A recipe uses it with `registry: [target]` and `model: {adapter: name}`.
    """
    weights = projectors.read(source)
    linears = [value for value in weights.values() if value.dim() == 2]
    widths = {"patch_dim": linears[0].shape[1], "llm_dim": linears[-1].shape[0]}
    card = {
        "summary": f"the projector of {Path(source).name}, {linears[0].shape[1]} to {linears[-1].shape[0]}",
        "target": "mmalign.integrations.llava.Projector",
        "args": {"depth": len(linears), "checkpoint": f"./{name}.safetensors"},
        "facts": {"keeps_grid": True, "linears": "depth", **widths},
    }
    with files.made(target) as beside:
        cards = beside / "adapters"
        cards.mkdir()
        save_file({key: value.contiguous() for key, value in weights.items()}, cards / f"{name}.safetensors")
        files.write(cards / f"{name}.yaml", yaml.dump(card))
    return card


class Projector(MLP):
    """An MLP adapter that begins with the weights of a file, as for `projectors.read`."""

    def __init__(
        self, patch_dim: int, llm_dim: int, grid: tuple[int, int], depth: int = 2, checkpoint: str | None = None
    ) -> None:
        super().__init__(patch_dim, llm_dim, grid, depth)
        if checkpoint:
            load_adapter(self, checkpoint)


projector = Projector  # as cards name it that 0.1.0 wrote


def llava(source: str, target: Path, template: str | None = None) -> None:
    """A LLaVA folder, of transformers or of LLaVA's own code, as one that `mmalign.load` and `mmalign eval` read.

    template: the chat template, jinja text; None: that of the model it was exported from, or the checkpoint's own where
    it marks answers, else ours for the same format. Written whole or not at all. Raises RunError for a model that
    mmalign's parts cannot hold.
    """
    config = files.read_json(Path(source) / "config.json", kind=dict[str, Any])
    with files.made(target) as beside, sums.verifying(sums.read(Path(source)), sums.AGAIN):
        mlp, cards, words = (_original if is_original(config) else _plain)(source, config, beside, template)
        words.save_pretrained(beside / "llm")
        folder.write(beside, mlp, cards)


Parts = tuple[Adapter, dict[str, Card], Any]  # what is written besides vision/ and llm/: and the tokenizer


def _original(source: str, config: dict[str, Any], beside: Path, template: str | None) -> Parts:
    check(Path(source), config)
    mlp, cards, words = original.parts(Path(source), config, beside)
    own = words.chat_template
    if template is None:
        template = template_of(source, own, original.template(config))
        template = template if template == own else original.spelled(template, words)
    words.chat_template = template
    return mlp, cards, words


def _plain(source: str, _: dict[str, Any], beside: Path, template: str | None) -> Parts:
    config = _read(AutoConfig, source)
    if reason := _refused(config):
        raise RunError(f"cannot import {source}: {reason}", at=source, fix="a checkpoint like LLaVA-1.5's")
    processor = _read(AutoProcessor, source)
    words = processor.tokenizer
    own = plain.marked(Path(source)) or words.chat_template or processor.chat_template
    words.chat_template = template or template_of(source, own)
    whole, about = _read(LlavaForConditionalGeneration, source, dtype="auto", output_loading_info=True)
    if lacking := sorted(about["missing_keys"]):  # transformers draws them at random
        what = f"cannot load {source}: it lacks {len(lacking)} weights, such as {lacking[0]}"
        raise RunError(what, at=source, fix=WHOLE)
    inner = whole.model
    inner.vision_tower.save_pretrained(beside / "vision")
    processor.image_processor.save_pretrained(beside / "vision")
    lm = AutoModelForCausalLM.from_config(config.text_config, dtype=whole.dtype)
    lm.base_model.load_state_dict(inner.language_model.state_dict())
    lm.get_output_embeddings().load_state_dict(whole.lm_head.state_dict())
    lm.save_pretrained(beside / "llm")
    vision = HFVision(str(beside / "vision"), layer=config.vision_feature_layer)
    width, between = lm.config.hidden_size, config.projector_hidden_act
    mlp = _mlp(inner.multi_modal_projector, between, vision.dim, width, vision.grid)
    return mlp, _cards(source, config.vision_feature_layer, mlp), words


def _read(kind: Any, source: str, **options: Any) -> Any:
    """What a class of transformers makes of a checkpoint; a RunError where it cannot read it."""
    try:
        return kind.from_pretrained(source, **options)
    except Exception as err:  # every library below it has its own
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise RunError(f"cannot load {source}: {reason}", at=source, fix=WHOLE) from err


def holds(source: str) -> bool:
    """Whether mmalign's parts can hold a llava-hf folder; another is asked by its own classes, see whole.py."""
    return not _refused(_read(AutoConfig, source))


def _refused(config: Any) -> str:
    """Why our parts cannot hold a LLaVA model; empty when they can."""
    if config.model_type != "llava":
        return f"it is a {config.model_type}"
    if not isinstance(config.vision_feature_layer, int):
        return f"it reads several layers of its encoder, {config.vision_feature_layer}"
    if (encoder := config.vision_config.model_type) not in ARCHITECTURES:
        return f"its encoder is a {encoder}"
    if config.projector_hidden_act not in ("gelu", "linear"):
        return f"its projector has a {config.projector_hidden_act} between its layers"
    if not config.multimodal_projector_bias:
        return "its projector has no bias"
    if config.vision_feature_select_strategy == "full" and config.vision_config.model_type in CLASSED:
        return "its language model is shown the encoder's class token"
    return ""


CLASSED = ("clip_vision_model", "dinov2")  # their first token is no patch
# What a published chat format is known by, and our template of it; theirs do not mark answers.
FORMATS = {
    "ASSISTANT:": "vicuna_v1", "message['role'].upper()": "vicuna_v1",
    "system\nYou are a helpful assistant.": "qwen2", "<|im_start|>": "chatml",
    "<|start_header_id|>": "llama3", "first_user_prefix": "gemma3", "<start_of_turn>": "gemma",
    "[INST]": "mistral", "<|assistant|>": "phi3",
}  # fmt: skip


def template_of(source: str, own: str | None, usual: str | None = None) -> str:
    """A template that marks answers: `own`, ours of the same format, or without one the `usual` of ours."""
    if own and re.search(r"{%-?\s*generation\s*-?%}", own):
        return own
    name = next((name for mark, name in FORMATS.items() if mark in own), None) if own else usual
    if name is None:
        fix = "--template FILE, with {% generation %} marks around the answers"
        raise RunError(f"the chat template of {source} is of no known format", at=source, fix=fix)
    if not own:
        log.warning("%s names no chat format: %s is taken; `mmalign import --template` takes another", source, name)
    place = files.local(f"pkg:mmalign.llms/templates/{name}.jinja")
    assert place is not None
    return place.read_text(encoding="utf-8")


def _mlp(theirs: Any, between: str, patch_dim: int, llm_dim: int, grid: tuple[int, int]) -> MLP:
    """LLaVA's projector; with nothing between its two layers they are one."""
    first, second = theirs.linear_1, theirs.linear_2
    if between == "gelu":
        mlp = MLP(patch_dim, llm_dim, grid, depth=2)
        mlp.layers[0].load_state_dict(first.state_dict())
        mlp.layers[2].load_state_dict(second.state_dict())
        return mlp
    mlp = MLP(patch_dim, llm_dim, grid, depth=1)
    weight, bias = second.weight.float(), second.bias.float()
    one = {"weight": weight @ first.weight.float(), "bias": weight @ first.bias.float() + bias}
    mlp.layers[0].load_state_dict(one)
    return mlp


def _cards(source: str, layer: int, adapter: MLP) -> dict[str, Card]:
    depth = sum(isinstance(module, nn.Linear) for module in adapter.layers)
    return {
        "vision": Card(source, "mmalign.vision.hf.HFVision", {"layer": layer}),
        "adapter": Card(source, "mmalign.adapters.mlp.MLP", {"depth": depth}),
        "llm": Card(source, "mmalign.llms.causal.CausalLM"),
    }
