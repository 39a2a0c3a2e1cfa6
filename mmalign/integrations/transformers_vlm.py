"""A vision-language model of transformers as a VLM: its own modules, shared, so that what trains here trains there.

LlavaForConditionalGeneration alone; other families are supervised in their own forward pass, see supervising.py.

Letters: B images, P patches, C width of a patch, D width of the language model, S pixels of a side.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

from mmalign.adapters import Adapter
from mmalign.errors import CheckError, RunError
from mmalign.integrations.llava import template_of
from mmalign.llms import plain
from mmalign.llms.causal import CausalLM
from mmalign.llms.chat import Chat
from mmalign.vision import Fit, Frame, Vision
from mmalign.vision.picture import rgb
from mmalign.vision.processor import frame_of, own_fit
from mmalign.vlm.model import VLM

if TYPE_CHECKING:
    from PIL.Image import Image


class TowerVision(Vision):
    """The vision tower inside a LLaVA model, read at the layer that the model reads; no text tower."""

    fit: Fit

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        config, vision = model.config, model.config.vision_config
        if not isinstance(config.vision_feature_layer, int):
            what = f"the model reads several layers of its encoder, {config.vision_feature_layer}"
            raise CheckError(what, fix="a model that reads one, such as LLaVA-1.5")
        self.tower, self.images = model.model.vision_tower, processor.image_processor
        self.layer, self.classed = config.vision_feature_layer, config.vision_feature_select_strategy == "default"
        self.dim, self.image_size = vision.hidden_size, vision.image_size
        self.grid = (vision.image_size // vision.patch_size,) * 2
        self.fit = own_fit(self.images)
        self.name = str(getattr(config, "_name_or_path", "") or type(model).__name__)

    def pixels(self, image: "Image", scale: int = 1) -> Tensor:
        if scale != 1:
            raise CheckError("the processor of a LLaVA model makes pictures of one size", fix="scale=1")
        return torch.as_tensor(self.images(images=rgb(image), return_tensors="pt")["pixel_values"][0])

    def frame(self, size: tuple[int, int]) -> Frame:
        patch = self.tower.config.patch_size
        return frame_of(self.images, self.fit, size, self.grid, self.image_size, patch)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        states = self.tower(pixels_B3SS, output_hidden_states=True).hidden_states
        patches_BPC: Tensor = states[self.layer][:, int(self.classed) :]
        return patches_BPC

    def identity(self) -> str:
        return f"the vision tower of {self.name}, layer {self.layer}"


class ProjectorAdapter(Adapter):
    """The projector inside a LLaVA model: visual token i is patch i."""

    def __init__(self, model: Any, grid: tuple[int, int]) -> None:
        super().__init__(model.config.vision_config.hidden_size, model.config.text_config.hidden_size, grid)
        self.projector = model.model.multi_modal_projector

    def forward(self, patches_BPC: Tensor) -> Tensor:
        tokens_BPD: Tensor = self.projector(patches_BPC)
        return tokens_BPD


def is_llava(model: Any) -> bool:
    """Whether `wrap` is for it; with LoRA around it it is read as any other model is."""
    return isinstance(model, LlavaForConditionalGeneration)


def wrap(model: Any, processor: Any) -> VLM:
    """A LlavaForConditionalGeneration and its processor as a VLM; nothing of either is copied or changed.

    Raises CheckError for a model of another kind, and without a processor.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind != "llava":
        what = f"a {kind} model is no LlavaForConditionalGeneration"
        raise CheckError(what, at="model", fix="mmalign.supervise, for any model")
    if processor is None:
        fix = "AutoProcessor.from_pretrained of the same checkpoint"
        raise CheckError("a transformers model comes with its processor", at="processor", fix=fix)
    vision = TowerVision(model, processor)
    adapter, llm = ProjectorAdapter(model, vision.grid), CausalLM.of(_causal(model), _chat(model, processor))
    vlm = VLM(vision, adapter, llm)
    shells: list[nn.Module] = [vlm, vision, adapter, llm]
    for shell in shells:  # the modules inside keep modes of their own
        shell.training = model.training
    return vlm


def _causal(model: Any) -> Any:
    """The language model with its head as transformers' causal LM: an empty shell around the model's own modules."""
    with torch.device("meta"):
        lm: Any = AutoModelForCausalLM.from_config(model.config.text_config)
    setattr(lm, lm.base_model_prefix, model.model.language_model)
    lm.set_output_embeddings(model.get_output_embeddings())
    lm.config = model.model.language_model.config
    return lm


def _chat(model: Any, processor: Any) -> Chat:
    """The model's tokenizer and chat format; one of no known kind renders prompts and marks no answers."""
    place = Path(processor.tokenizer.name_or_path or ".")
    own = plain.marked(place) or processor.chat_template or processor.tokenizer.chat_template
    try:
        template = template_of("the model", own)
    except RunError:
        template = own or "{{ messages[-1].content }}"
    chat = Chat("the model", template, processor.tokenizer)
    chat.mark = model.config.image_token_id
    return chat
