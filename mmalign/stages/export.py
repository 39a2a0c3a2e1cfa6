"""The export stage: a trained model as a folder that plain transformers loads (LlavaForConditionalGeneration).

What its class cannot hold (encoders at several scales, adapters other than one or two linear layers) becomes a folder
that loads where mmalign is installed, see mmalign/vlm/folder.py; the reason is said. Weights are written in the
precision they were trained in. What was written is asked before it is kept, see verify.py.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
)

from mmalign.adapters.mlp import MLP
from mmalign.data import MARK
from mmalign.errors import StageError
from mmalign.integrations import weight_names
from mmalign.integrations.checkpoint import Checkpoint
from mmalign.io import files, sums
from mmalign.llms import plain
from mmalign.llms.causal import CausalLM
from mmalign.pipeline import build
from mmalign.pipeline import task as tasks
from mmalign.pipeline.build import DTYPES
from mmalign.pipeline.task import Task
from mmalign.plan.recipe import Export, Train
from mmalign.stages import export_whole, verify
from mmalign.stages.checks import Checks
from mmalign.training.events import Events
from mmalign.vision.hf import HFVision, layers
from mmalign.vlm import folder
from mmalign.vlm.model import VLM

TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2")  # what Llava's forward reads as we do
LOUD = 2.0**24  # beside it x is less than rounding in fp32 and bf16, and neither overflows; see _see


@dataclass
class Exported:
    folder: Path
    difference: float | None  # the largest difference of a logit; None: not the Llava class
    why_not: str = ""  # why it is not
    note: str = ""  # what a user of the Llava class should know


def run(task: Task) -> dict[str, Any]:
    stage = cast(Export, task.stage)
    task = task if "vlm" in task.cards else trained(task)
    events = Events(task.folder)
    checks = Checks(events, export_whole.CHECKS if "vlm" in task.cards else verify.CHECKS)
    vlm = build.vlm(task)
    target = task.folder / "exported"
    shutil.rmtree(target, ignore_errors=True)
    weights_in = precision(task)
    if isinstance(vlm, Checkpoint):
        return _whole(vlm, target, weights_in, stage.tolerance, checks)
    exported = export(vlm, task, target, checks, weights_in, stage.tolerance)
    if exported.difference is None:
        events.say(f"plain transformers cannot hold it: {exported.why_not}; it loads where mmalign is installed")
    else:
        events.say(f"weights in {weights_in}; plain transformers answers as the model does, alone and in a batch")
        events.say(f"the largest difference of a logit, computed in fp32, is {exported.difference:.2e}")
    about = {"why_not": exported.why_not, "note": exported.note, "precision": weights_in}
    measured = {} if exported.difference is None else {"difference": exported.difference}
    fit = vlm.vision.fit if vlm.vision else ""
    return {"metrics": measured, **about, "fit": fit, "exported": str(target.name)}


def _whole(vlm: Checkpoint, target: Path, weights_in: str, tolerance: float, checks: Checks) -> dict[str, Any]:
    """A whole model as a checkpoint of its own class."""
    difference = export_whole.export(vlm, target, weights_in, tolerance, checks)
    events = checks.events
    events.say(f"weights in {weights_in}; plain transformers answers as the model does, alone and in a batch")
    events.say(f"the largest difference of a logit, computed in fp32, is {difference:.2e}")
    about = {"why_not": "", "note": "", "precision": weights_in, "fit": "", "exported": target.name}
    return {"metrics": {"difference": difference}, **about}


def precision(task: Task) -> str:
    """What the weights were trained in; fp32 where no stage trained them."""
    parent = task.parent("weights")
    stage = tasks.load(parent).stage if parent else None
    return stage.precision if isinstance(stage, Train) else "fp32"


def trained(task: Task) -> Task:
    """The task, its language model without what only says how it learned: its weights are whole and merged."""
    card = task.cards["llm"]
    args = {key: value for key, value in card.args.items() if key != "bits" and not key.startswith("lora")}
    return replace(task, cards={**task.cards, "llm": replace(card, args=args)})


def export(
    vlm: VLM, task: Task, target: Path, checks: Checks, weights_in: str = "fp32", tolerance: float = 1e-3
) -> Exported:
    """Write the folder, weights in the precision given, and ask it what the model says: whole and right, or absent.

    Raises StageError for a folder that plain transformers does not read, or that answers otherwise. checks: begun
    before the model was loaded.
    """
    if reason := why_not(vlm):
        build.cast_all(weights_in, vlm)
        folder.save(target, vlm, task.cards)
        return Exported(target, None, reason)
    load = checks.lap()
    with files.made(target) as beside:
        written = write(vlm, beside, weights_in, tolerance)
        checks.expect(verify.times(written, checks.start, load))
        (seen,) = verify.ask([written], checks.done)
        judge(seen, target, tolerance)
        sums.write(beside)
    return Exported(target, seen["difference"], note="; ".join(filter(None, [note(vlm), written.note])))


def write(vlm: VLM, target: Path, weights_in: str = "fp32", tolerance: float = 1e-3) -> verify.Asked:
    """The folder of a model that Llava's class can hold, and what it must answer; nobody has asked it yet."""
    build.cast_all("fp32", vlm)
    round_all(DTYPES[weights_in], vlm)
    whole = llava(vlm).to(DTYPES[weights_in])
    whole.save_pretrained(target, state_dict=weight_names.published(whole))
    processor(vlm).save_pretrained(target)
    plain.finish(target, vlm.llm.chat)
    folder.forget_paths(target)
    asked = verify.asked(vlm, target, tolerance)
    return replace(asked, note="; ".join(filter(None, [asked.note, weight_names.unread(whole.config)])))


def judge(seen: verify.Seen, target: Path, tolerance: float) -> None:
    """Raise StageError where a check failed."""
    if failure := seen["failure"]:
        what = f"the exported folder fails the check of its {failure['check']}: expected is {failure['what']}"
        raise StageError(what, at=str(target), fix=failure["fix"])
    if not cast(float, seen["difference"]) <= tolerance:
        gap = f"{seen['difference']:.2e}, more than {tolerance:g}"
        what = f"the exported folder fails the check of its logits: they differ from the model's by {gap}"
        raise StageError(what, at=str(target), fix="report it; a larger `tolerance` keeps the folder")


@torch.no_grad()
def round_all(dtype: torch.dtype, *modules: nn.Module) -> None:
    """Weights as that precision has them, kept in their own; no buffer, such as a scale, is rounded."""
    for module in modules:
        for parameter in module.parameters():
            parameter.copy_(parameter.to(dtype))


def why_not(vlm: VLM) -> str:
    """Why LlavaForConditionalGeneration cannot hold the model; empty when it can."""
    if not isinstance(vlm.vision, HFVision):
        return f"its encoder is a {type(vlm.vision).__name__}, not one tower of transformers"
    kind = vlm.vision.tower.config.model_type
    if kind not in TOWERS:
        return f"its encoder is a {kind}; Llava drops exactly one token before the patches, or none"
    if vlm.vision.norm and not _can_norm(vlm.vision):
        return "its patches pass the encoder's final norm, which no layer of its kind can stand for"
    if not isinstance(vlm.adapter, MLP):
        return f"its adapter is a {type(vlm.adapter).__name__}"
    if len(_linears(vlm.adapter)) > 2:
        return f"its adapter has {len(_linears(vlm.adapter))} linear layers"
    if not isinstance(vlm.llm, CausalLM):
        return f"its language model is a {type(vlm.llm).__name__}, not a CausalLM"
    if vlm.llm.lm.get_output_embeddings().bias is not None:  # Phi and Phi-2
        return "its language model's head has a bias, which Llava's has not"
    return ""


def note(vlm: VLM) -> str:
    """What the Llava class does in another way than the model; empty where there is nothing."""
    notes = []
    if softcap := cast(CausalLM, vlm.llm).softcap:
        notes.append(
            f"its language model caps its logits at {softcap:g}, which Llava does not: the same token is likeliest, "
            "so greedy answers are the same; sampled ones are drawn from other probabilities"
        )
    if cast(HFVision, vlm.vision).norm:
        large = "its encoder's final norm is a layer of large numbers"
        notes.append(f"{large}: for fp32 and bf16, not fp16, and not to be trained further")
    if cast(HFVision, vlm.vision).pil:
        notes.append(
            "its pictures were resized by Pillow: `AutoImageProcessor.from_pretrained(FOLDER, "
            'backend="pil")` resizes so, transformers\' own choice up to 2/255 off it'
        )
    return "; ".join(notes)


def _linears(adapter: MLP) -> list[nn.Linear]:
    return [layer for layer in adapter.layers if isinstance(layer, nn.Linear)]


def llava(vlm: VLM) -> Any:
    """The same weights as a LlavaForConditionalGeneration."""
    encoder, llm = cast(HFVision, vlm.vision), cast(CausalLM, vlm.llm)
    linears = _linears(cast(MLP, vlm.adapter))
    lm, vision = llm.lm, encoder.tower.config.to_dict()
    pad = plain.pad_id(llm.chat)
    if (
        max(llm.chat.mark, pad or 0) >= lm.get_input_embeddings().weight.shape[0]
    ):  # they count nowhere, but are looked up
        _lengthen(lm, len(llm.chat.tokenizer))
    if "vision_use_head" in vision:  # SigLIP's pooling, which Llava does not read and gguf does not know
        vision["vision_use_head"] = False
    config = LlavaConfig(
        vision_config=vision | ({"num_hidden_layers": encoder.depth + 1} if encoder.norm else {}),
        text_config=lm.config,
        image_token_index=llm.chat.mark,
        projector_hidden_act="gelu" if len(linears) == 2 else "linear",
        vision_feature_layer=-1 if encoder.norm else encoder.depth - encoder.layers - 1,
        vision_feature_select_strategy="default" if encoder.prefix_tokens else "full",
        image_seq_length=encoder.patches,
        tie_word_embeddings=bool(lm.config.tie_word_embeddings),
    )
    whole = LlavaForConditionalGeneration(config).eval().float()  # its parts' configurations may say bf16
    inner = whole.model
    _see(getattr(inner.vision_tower, "vision_model", inner.vision_tower), encoder)
    _into(inner.language_model, lm.base_model)
    _into(whole.lm_head, lm.get_output_embeddings())
    _into(inner.multi_modal_projector.linear_1, linears[0])
    if encoder.norm:
        inner.multi_modal_projector.linear_1.weight.data.div_(LOUD)
    second = inner.multi_modal_projector.linear_2
    if len(linears) == 2:
        _into(second, linears[1])
    else:  # one linear layer is two with an identity behind it
        with torch.no_grad():
            second.weight.copy_(torch.eye(len(second.weight)))
            second.bias.zero_()
    whole.generation_config = GenerationConfig(
        bos_token_id=llm.chat.tokenizer.bos_token_id,
        eos_token_id=sorted(llm.chat.ends),
        pad_token_id=pad,
        do_sample=False,
    )
    return whole


@torch.no_grad()
def _lengthen(lm: Any, size: int) -> None:
    """Rows for tokens nobody trained: the mean of the others, whose logit is the mean of theirs, never the largest."""
    old = lm.get_input_embeddings().weight.shape[0]
    lm.resize_token_embeddings(size, mean_resizing=False)
    for layer in (lm.get_input_embeddings(), lm.get_output_embeddings()):
        layer.weight[old:] = layer.weight[:old].mean(0)


def _can_norm(encoder: HFVision) -> bool:
    first = getattr(layers(encoder.tower, encoder.layers)[0].mlp, "fc1", None)
    return isinstance(first, nn.Linear) and first.out_features >= 2 * encoder.dim


def _see(tower: Any, encoder: HFVision) -> None:
    """The encoder's weights. A final norm becomes one more layer, behind the one that is read: x + LOUD norm(x).

    Its attention gives nothing; its MLP is LOUD times the identity, for act(t) - act(-t) = t, be act a GELU of any
    kind, a SiLU or a ReLU. The adapter divides by LOUD, and x is lost in rounding.
    """
    read = {name: value for name, value in encoder.tower.state_dict().items() if not name.startswith("head.")}
    tower.load_state_dict(read, strict=not encoder.norm)  # what lacks is that layer, what is too much lies above
    if not encoder.norm:
        return
    layer: Any = layers(tower, encoder.depth + 1)[-1]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        if hasattr(layer, "layer_scale2"):  # DINOv2
            layer.layer_scale2.lambda1.fill_(1)
        same_CC = torch.eye(encoder.dim)
        layer.mlp.fc1.weight[: 2 * encoder.dim] = torch.cat([same_CC, -same_CC])
        layer.mlp.fc2.weight[:, : 2 * encoder.dim] = LOUD * torch.cat([same_CC, -same_CC], dim=1)
    _into(layer.norm2 if hasattr(layer, "norm2") else layer.layer_norm2, encoder.final_norm)


def _into(target: nn.Module, source: nn.Module) -> None:
    target.load_state_dict(source.state_dict(), strict=True)


def processor(vlm: VLM) -> LlavaProcessor:
    """Images as the encoder takes them, and the chat template for text and for lists of parts."""
    encoder, chat = cast(HFVision, vlm.vision), vlm.llm.chat
    return LlavaProcessor(
        image_processor=images(encoder),
        tokenizer=plain.tokenizer(chat),
        patch_size=encoder.tower.config.patch_size,
        vision_feature_select_strategy="default" if encoder.prefix_tokens else "full",
        chat_template=plain.template(chat),
        image_token=MARK,
        num_additional_image_tokens=encoder.prefix_tokens,
    )


def images(encoder: HFVision) -> Any:
    """The image processor of transformers that makes the encoder's own pixels."""
    if encoder.fit != "pad":
        return encoder.processor
    settings = {k: v for k, v in encoder.processor.to_dict().items() if not k.startswith(("_", "image_processor_type"))}
    return LlavaImageProcessor(**{**settings, "do_pad": True})
