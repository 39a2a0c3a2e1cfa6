"""The export stage: a trained model as a folder that plain transformers loads (LlavaForConditionalGeneration).

What its class cannot hold (encoders at several scales, adapters other than one or two linear layers) becomes a folder
that loads where mmalign is installed, see mmalign/hub.py; the reason is said.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
)

from mmalign import hub
from mmalign.adapters.mlp import MLP
from mmalign.data import MARK, Turn
from mmalign.errors import StageError
from mmalign.llms.causal import CausalLM
from mmalign.model import Batch, Model
from mmalign.objectives.lm import NextToken
from mmalign.recipe import Export
from mmalign.stages import build
from mmalign.stages.build import Parts
from mmalign.task import Task
from mmalign.training.events import Events
from mmalign.vision.hf import HFVision

TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2")  # what Llava's forward reads as we do
PARTS_OF = '{%- for part in m.content -%}{{- "<image>\\n" if part.type == "image" else part.text -}}{%- endfor -%}'
# A processor is given `content` as a list of parts; the tokenizers' templates want text.
TEXTS = (
    "{%- set read = namespace(turns=[]) -%}{%- for m in messages -%}"
    "{%- if m.content is string -%}{%- set text = m.content -%}{%- else -%}{%- set text -%}"
    + PARTS_OF
    + "{%- endset -%}{%- endif -%}"
    '{%- set read.turns = read.turns + [{"role": m.role, "content": text}] -%}{%- endfor -%}'
    "{%- set messages = read.turns -%}"
)


@dataclass
class Exported:
    folder: Path
    difference: float | None  # the largest difference of a logit; None: not the Llava class
    why_not: str = ""  # why it is not


def run(task: Task) -> dict[str, Any]:
    stage, task = cast(Export, task.stage), trained(task)
    parts = build.parts(task)
    build.cast_all("fp32", parts.vision, parts.adapter, parts.llm)
    target = task.folder / "exported"
    shutil.rmtree(target, ignore_errors=True)
    made = export(parts, task, target)
    events = Events(task.folder)
    if made.difference is None:
        events.say(f"plain transformers cannot hold it: {made.why_not}; it loads where mmalign is installed")
    else:
        events.say(f"the largest difference of a logit is {made.difference:.2e}")
        if made.difference > stage.tolerance:
            what = f"the exported model's logits differ by {made.difference:.2e}, more than {stage.tolerance:g}"
            raise StageError(what, at=str(target), fix="report it; a larger `tolerance` keeps the folder")
    return {"metrics": {"difference": made.difference}, "why_not": made.why_not, "exported": str(target.name)}


def trained(task: Task) -> Task:
    """The task, its language model without what only says how it learned: its weights are whole and merged."""
    card = task.cards["llm"]
    args = {key: value for key, value in card.args.items() if key != "bits" and not key.startswith("lora")}
    return replace(task, cards={**task.cards, "llm": replace(card, args=args)})


def export(parts: Parts, task: Task, target: Path) -> Exported:
    """Write the folder; what was written is loaded again and compared."""
    if reason := why_not(parts):
        hub.save(target, parts.vision, parts.adapter, parts.llm, task.cards)
        return Exported(target, None, reason)
    llava(parts).save_pretrained(target)
    processor(parts).save_pretrained(target)
    loaded = LlavaForConditionalGeneration.from_pretrained(target, dtype=torch.float32).eval()
    return Exported(target, difference(parts, loaded))


def why_not(parts: Parts) -> str:
    """Why LlavaForConditionalGeneration cannot hold the model; empty when it can."""
    if not isinstance(parts.vision, HFVision):
        return f"its encoder is a {type(parts.vision).__name__}, not one tower of transformers"
    kind = parts.vision.tower.config.model_type
    if kind not in TOWERS:
        return f"its encoder is a {kind}; Llava drops exactly one token before the patches, or none"
    if parts.vision.norm:
        return "its patches pass the encoder's final norm"
    if not isinstance(parts.adapter, MLP):
        return f"its adapter is a {type(parts.adapter).__name__}"
    if len(_linears(parts.adapter)) > 2:
        return f"its adapter has {len(_linears(parts.adapter))} linear layers"
    if not isinstance(parts.llm, CausalLM):
        return f"its language model is a {type(parts.llm).__name__}, not a CausalLM"
    if parts.llm.softcap:
        return "its language model caps its logits, which Llava's head does not"
    return ""


def _linears(adapter: MLP) -> list[nn.Linear]:
    return [layer for layer in adapter.layers if isinstance(layer, nn.Linear)]


def llava(parts: Parts) -> Any:
    """The same weights as a LlavaForConditionalGeneration."""
    eye, mouth = cast(HFVision, parts.vision), cast(CausalLM, parts.llm)
    linears = _linears(cast(MLP, parts.adapter))
    lm = mouth.lm
    if mouth.chat.mark >= lm.get_input_embeddings().weight.shape[0]:  # never looked up, but Llava indexes it
        lm.resize_token_embeddings(len(mouth.chat.tokenizer), mean_resizing=False)
    config = LlavaConfig(
        vision_config=eye.tower.config,
        text_config=lm.config,
        image_token_index=mouth.chat.mark,
        projector_hidden_act="gelu" if len(linears) == 2 else "linear",
        vision_feature_layer=eye.depth - eye.layers - 1,
        vision_feature_select_strategy="default" if eye.first else "full",
        image_seq_length=eye.patches,
        tie_word_embeddings=bool(lm.config.tie_word_embeddings),
    )
    whole = LlavaForConditionalGeneration(config).eval().float()  # its parts' configurations may say bf16
    inner = whole.model
    _into(getattr(inner.vision_tower, "vision_model", inner.vision_tower), eye.tower)
    _into(inner.language_model, lm.base_model)
    _into(whole.lm_head, lm.get_output_embeddings())
    _into(inner.multi_modal_projector.linear_1, linears[0])
    second = inner.multi_modal_projector.linear_2
    if len(linears) == 2:
        _into(second, linears[1])
    else:  # one linear layer is two with an identity behind it
        with torch.no_grad():
            second.weight.copy_(torch.eye(len(second.weight)))
            second.bias.zero_()
    whole.generation_config = GenerationConfig(
        bos_token_id=mouth.chat.tokenizer.bos_token_id,
        eos_token_id=sorted(mouth.chat.ends),
        pad_token_id=mouth.chat.pad,
        do_sample=False,
    )
    return whole


def _into(target: nn.Module, source: nn.Module) -> None:
    target.load_state_dict(source.state_dict(), strict=True)


def processor(parts: Parts) -> LlavaProcessor:
    """Images as the encoder takes them, and the chat template for text and for lists of parts."""
    eye, mouth = cast(HFVision, parts.vision), cast(CausalLM, parts.llm)
    images = eye.processor
    if eye.pad:
        settings = {k: v for k, v in images.to_dict().items() if not k.startswith(("_", "image_processor_type"))}
        images = LlavaImageProcessor(**{**settings, "do_pad": True})
    words = mouth.chat.tokenizer
    words.chat_template = mouth.chat.template
    return LlavaProcessor(
        image_processor=images,
        tokenizer=words,
        patch_size=eye.tower.config.patch_size,
        vision_feature_select_strategy="default" if eye.first else "full",
        chat_template=TEXTS + (mouth.chat.template or ""),
        image_token=MARK,
        num_additional_image_tokens=eye.first,
    )


@torch.no_grad()
def difference(parts: Parts, loaded: Any) -> float:
    """The largest difference of a logit on a picture and two turns."""
    eye, mouth = parts.vision, parts.llm
    model = Model(eye, parts.adapter, mouth, {"lm": NextToken()}).eval()
    picture = Image.radial_gradient("L").convert("RGB").resize((97, 61))
    ids = mouth.chat.prompt([Turn("user", f"{MARK}\nWhat is this?")], [parts.adapter.tokens])
    ids_RS, mask_RS = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)
    batch = Batch(ids_RS, mask_RS, torch.zeros(1, len(ids)), eye.pixels(picture)[None], mouth.chat.mark)
    ours: Tensor = mouth.head(mouth(model.embed(batch, model.see(batch)[0]), mask_RS)).float()
    theirs = loaded(input_ids=ids_RS, attention_mask=mask_RS, pixel_values=batch.pixels_B3SS).logits.float()
    return float((ours - theirs[..., : ours.shape[-1]]).abs().max())
