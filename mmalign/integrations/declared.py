"""The parts of any vision-language model of transformers, found by what the model and its processor declare.

Visual tokens are read where they enter the language model: its input embeddings at the places of the image's token.
So any projector, tiling or dynamic resolution is served, and no class is known by its name.

Letters: R rows, S positions, D width of the language model, N visual tokens of all images, Q of one, B images.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.errors import CheckError

OWN = "parts of your own around a language model: mmalign new vision NAME, mmalign new adapter NAME"
ADAPTER = f"a model of transformers whose language model is handed visual tokens in `inputs_embeds`, or {OWN}"


@dataclass(frozen=True)
class Parts:
    """A model and its processor, taken apart; every module is the model's own, shared.

    image_id: the token that stands once for each visual token. language_model: is handed `inputs_embeds`. layers: its
    decoder layers. head: hidden states to logits. depth: L. dim: D.
    """

    model: Any
    processor: Any
    image_id: int
    language_model: Any
    layers: nn.ModuleList
    embeddings: nn.Module
    head: nn.Module

    @property
    def depth(self) -> int:
        return len(self.layers)

    @property
    def dim(self) -> int:
        return int(self.language_model.config.hidden_size)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def template(self) -> str | None:
        """Its chat template, of several the default one; None: it has none."""
        for one in (self.processor, self.tokenizer):
            own = getattr(one, "chat_template", None)
            if own := own.get("default") if isinstance(own, Mapping) else own:
                return str(own)
        return None

    def keep(self, last: int) -> dict[str, int]:
        """Logits of the last positions alone, in a forward pass: those of all are gigabytes for a few large images."""
        takes = inspect.signature(self.model.forward).parameters
        return {"logits_to_keep": last} if "logits_to_keep" in takes else {}

    @property
    def mark(self) -> str:
        """What stands in a text, once for each image, before the processor makes of it as many as there are tokens."""
        return str(self.processor.image_token)

    @property
    def marks(self) -> set[str]:
        """What people's texts cannot say: the marks of what is shown, and the token of an image in its expansion."""
        own = (getattr(self.processor, name, None) for name in ("image_token", "video_token", "audio_token"))
        return {str(mark) for mark in (*own, self.tokenizer.convert_ids_to_tokens(self.image_id)) if mark}


def parts(model: Any, processor: Any) -> Parts:
    """A model that AutoModelForImageTextToText loads, and its processor. Raises CheckError for the part that lacks,
    with what to write so that the model declares it."""
    config = getattr(model, "config", None)
    kind = str(getattr(config, "model_type", type(model).__name__))
    image_id = getattr(config, "image_token_id", None)
    if not isinstance(image_id, int):
        what = "config.image_token_id: which token stands for a visual token"
        raise _lacking(kind, what, "model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids(TOKEN)")
    if "qformer_input_ids" in inspect.signature(model.forward).parameters:  # InstructBLIP
        what = f"a {kind} model reads the question beside the picture before its visual tokens are made"
        raise CheckError(what, at="model", fix=ADAPTER)
    lm = _language_model(model, kind)
    layers = getattr(lm, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        what = f"{type(lm).__name__}.layers: the decoder layers of its language model"
        raise _lacking(kind, what, "their nn.ModuleList under the name `layers`")
    embeddings, head = _told(model, "get_input_embeddings"), _told(model, "get_output_embeddings")
    if embeddings is None:
        what = "get_input_embeddings(): the embeddings of its words"
        raise _lacking(kind, what, "model.get_input_embeddings = lambda: THE_MODULE")
    if head is None:
        what = "get_output_embeddings(): the head of its language model"
        raise _lacking(kind, what, "model.get_output_embeddings = lambda: THE_MODULE")
    if processor is None:
        fix = "AutoProcessor.from_pretrained of the same checkpoint"
        raise CheckError("a transformers model comes with its processor", at="processor", fix=fix)
    for name, what in (("tokenizer", "its tokenizer"), ("image_token", "what stands in a text for an image")):
        if getattr(processor, name, None) is None:
            raise _lacking(kind, f"{type(processor).__name__}.{name}: {what}", f"processor.{name} = ...")
    return Parts(model, processor, image_id, lm, layers, embeddings, head)


def _told(model: Any, name: str) -> Any:
    """What a model says of itself; None where it does not."""
    ask = getattr(model, name, None)
    return ask() if ask is not None else None


def _language_model(model: Any, kind: str) -> Any:
    """The module that reads `inputs_embeds`, below the head."""
    lm = _told(model, "get_decoder")
    if not hasattr(lm, "layers"):  # a causal LM inside, as Llama 4 has it
        lm = getattr(lm, "model", lm)
    if lm is None or lm in (model, getattr(model, "base_model", None)):
        raise _lacking(kind, "get_decoder(): its language model", "model.get_decoder = lambda: THE_MODULE")
    text = _told(model.config, "get_text_config") or model.config
    if any(getattr(config, "is_encoder_decoder", False) for config in (model.config, text)):
        raise CheckError(f"a {kind} model reads its images in an encoder, not among the words", at="model", fix=ADAPTER)
    if getattr(text, "cross_attention_layers", None):
        what = f"a {kind} model looks at its images by cross-attention: it has no visual tokens among the words"
        raise CheckError(what, at="model", fix=ADAPTER)
    if "inputs_embeds" not in inspect.signature(lm.forward).parameters:
        what = f"inputs_embeds: {type(lm).__name__} is handed something else"
        raise _lacking(kind, what, "a forward of it that takes inputs_embeds=...")
    return lm


def _lacking(kind: str, part: str, written: str) -> CheckError:
    fix = f"{written}, and the model in memory to mmalign.supervise; or {OWN}"
    return CheckError(f"a {kind} model does not declare {part}", at="model", fix=fix)


@dataclass
class Entry:
    """What entered the language model in the last forward pass. embeds_RSD carries the gradient."""

    parts: Parts
    ids_RS: Tensor | None = None
    embeds_RSD: Tensor | None = None

    @property
    def at_RS(self) -> Tensor:
        """Where visual tokens stand."""
        assert self.ids_RS is not None, "no forward pass yet"
        return self.ids_RS == self.parts.image_id

    @property
    def tokens_ND(self) -> Tensor:
        """The visual tokens of all images, row by row."""
        assert self.embeds_RSD is not None, "no forward pass yet"
        return self.embeds_RSD[self.at_RS]


@contextmanager
def entering(parts: Parts) -> Iterator[Entry]:
    """Catch what enters the language model, and the token ids, in each forward pass inside the `with`."""
    entry = Entry(parts)

    def outside(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None:
            entry.ids_RS = ids

    def inside(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entry.embeds_RSD = kwargs.get("inputs_embeds")

    hooks = (
        parts.model.register_forward_pre_hook(outside, with_kwargs=True),
        parts.language_model.register_forward_pre_hook(inside, with_kwargs=True),
    )
    try:
        yield entry
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def layer_outputs(parts: Parts, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """{layer: hidden_RSD} of each forward pass inside the `with`, with gradient; layers 1 .. L.

    As transformers' hidden_states has them: the last is what the language model returns, behind its final norm. Raises
    CheckError, in the pass, for a layer with several states of each token (Gemma 3n).
    """
    seen: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            hidden = out if isinstance(out, Tensor) else out[0]
            if hidden.dim() != 3:
                what = f"layer {number} makes several states of each token, {tuple(hidden.shape)}"
                raise CheckError(what, at="layers", fix=f"layer 0, or {parts.depth}, the last")
            seen[number] = hidden

        return hook

    sources = {n: parts.language_model if n == parts.depth else parts.layers[n - 1] for n in layers}
    hooks = [module.register_forward_hook(keep(number)) for number, module in sources.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def counts(parts: Parts, batch: Mapping[str, Any]) -> list[int]:
    """Q of each image, row by row in a batch of the processor.

    By the processor's own expansion of its image mark; where the batch has no longer what that needs, by runs of the
    image's token, those of tiles together up to the run behind the mark of the whole image. Raises CheckError where the
    numbers do not add up.
    """
    at_RS = torch.as_tensor(batch["input_ids"]) == parts.image_id
    total = int(at_RS.sum())
    try:
        told = _expanded(parts, batch, total)
    except (KeyError, NotImplementedError):  # it takes out of a batch what the model does not read
        told = _runs(parts, torch.as_tensor(batch["input_ids"]))
    if sum(told) != total:
        what = f"{total} visual tokens in a batch, and the processor expands its image marks to {told}"
        raise CheckError(what, at="input_ids", fix="a batch as the model's own processor makes it")
    return told


def _expanded(parts: Parts, batch: Mapping[str, Any], total: int) -> list[int]:
    told: list[int] = []
    while sum(told) < total:
        try:
            tokens = count(parts, parts.processor.replace_image_token(batch, image_idx=len(told)))
        except IndexError:  # no such image
            tokens = 0
        if not tokens:
            break
        told.append(tokens)
    return told


def count(parts: Parts, text: str) -> int:
    """How many visual tokens stand in the expansion of an image mark."""
    return text.count(str(parts.tokenizer.convert_ids_to_tokens(parts.image_id)))


def _runs(parts: Parts, ids_RS: Tensor) -> list[int]:
    """By what stands between them: tiles wait for the whole picture behind them, where that has a mark of its own."""
    names = (getattr(parts.processor, name, None) for name in ("global_image_token", "global_image_tag"))
    name = next((name for name in names if name), None)
    whole = parts.tokenizer.convert_tokens_to_ids(name) if name else None
    told: list[int] = []
    for ids in ids_RS.tolist():
        tiles, before = 0, None
        for token, run in groupby(ids):
            if token == parts.image_id:
                tiles += len(list(run))
                if whole is None or before == whole:
                    told.append(tiles)
                    tiles = 0
            before = token
        told += [tiles] if tiles else []
    return told
