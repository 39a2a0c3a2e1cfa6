"""What a language model's layers make of visual tokens, seen in passing; and how much the text looks at each.

Letters: B images, R rows (samples), S positions, Q visual tokens of an image, H heads, T text positions, D width.

Neither keeps a list of layers: outputs are added up as they come (their weights are known beforehand), and attention is
computed again for the text rows alone, beside the fast kernel, which never returns it.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmalign.errors import CheckError
from mmalign.llms import Look, Places

NAME, EAGER = "mmalign_rows", "mmalign_rows_eager"
LIMIT = 256 << 20  # bytes of attention weights at a time
NORMS = ("norm", "final_layernorm")  # what transformers calls the norm behind the last layer; the second is Phi's


@dataclass
class Watch:
    """What one pass showed. refined[look]: refined_BQD (BASIC, eq. 4); shares[look]: share_BQ (eq. 5), sum 1."""

    places: Places
    looks: tuple[Look, ...]
    refined: dict[Look, Tensor] = field(default_factory=dict)
    looked: dict[Look, Tensor] = field(default_factory=dict)  # looked_RS: attention added up
    kept: list[Tensor] | None = None  # a list: the output of every layer at the visual tokens, too

    @torch.no_grad()
    def layer(self, number: int, hidden_RSD: Tensor) -> None:
        """Add the output of layer `number` (1-based) at the visual tokens."""
        at_BQD = hidden_RSD.detach()[self.places.row_B[:, None], self.places.column_BQ]
        if self.kept is not None:
            self.kept.append(at_BQD)
        for look in self.looks:
            if number <= len(look.weights):
                total = self.refined.setdefault(look, torch.zeros_like(at_BQD, dtype=torch.float32))
                shown_BQD = at_BQD if look.lens is None else look.lens(number, at_BQD)
                total.add_(shown_BQD, alpha=look.weights[number - 1])

    @torch.no_grad()
    def attention(self, number: int, weight_RS: Tensor) -> None:
        for look in self.looks:
            if look.attention and number <= len(look.weights):
                total = self.looked.setdefault(look, torch.zeros_like(weight_RS))
                total.add_(weight_RS)

    @property
    def shares(self) -> dict[Look, Tensor]:
        return {look: self._share(look) for look in self.looks}

    def _share(self, look: Look) -> Tensor:
        columns, real_BQ = self.places.column_BQ, self.places.real_BQ
        if not look.attention and real_BQ is None:
            return torch.full(columns.shape, 1 / columns.shape[1], device=columns.device)
        if look.attention:
            weight_BQ = self.looked[look][self.places.row_B[:, None], columns]
        else:
            weight_BQ = torch.ones(columns.shape, device=columns.device)
        if real_BQ is not None:
            weight_BQ = weight_BQ * real_BQ
        tiny = torch.finfo(weight_BQ.dtype).tiny  # an image out of every window of the text counts nothing
        return weight_BQ / weight_BQ.sum(1, keepdim=True).clamp(min=tiny)

    @property
    def attended_layers(self) -> int:
        return max((len(look.weights) for look in self.looks if look.attention), default=0)


_watching: list[Watch] = []  # the pass that is being watched; a recomputation in the backward pass is not


def prepare(lm: Any, looks: Iterable[Look]) -> None:
    """Refuse what cannot be watched, and have attention computed where it can be seen. Called before the first step."""
    layers(lm)
    if not any(look.attention for look in looks):
        return
    if getattr(lm.config, "attn_logit_softcapping", None):
        what = f"{type(lm).__name__} caps its attention logits, which the fast attention kernels cannot do"
        raise CheckError(what, at="args.attention", fix="attention: equal")
    kernel = getattr(lm.config, "_attn_implementation", None) or "sdpa"
    if kernel in (NAME, EAGER):
        return
    if "flash" in kernel and kernel in ALL_ATTENTION_FUNCTIONS:  # it looks at its own name, so that has to stay
        AttentionInterface.register(kernel, beside(ALL_ATTENTION_FUNCTIONS[kernel]))
        return
    name, own, mask = (EAGER, eager, eager_mask) if kernel == "eager" else (NAME, attention, sdpa_mask)
    AttentionInterface.register(name, own)
    AttentionMaskInterface.register(name, mask)  # without it padding would be seen, in silence
    lm.set_attn_implementation(name)


def layers(lm: Any) -> nn.ModuleList:
    """The decoder layers of a causal LM; a CheckError for a model that does not list them."""
    modules = getattr(lm.base_model, "layers", None)
    if not isinstance(modules, nn.ModuleList):
        what = f"{type(lm).__name__} has no list of decoder layers, so nobody can look at what they do"
        raise CheckError(what, at="model.llm", fix="a Llama, Mistral, Gemma, Phi-3 or Qwen model")
    return modules


def final_norm(lm: Any) -> nn.Module | None:
    """Behind the last decoder layer of a causal LM; None where it has none of a known name."""
    return next((norm for name in NORMS if isinstance(norm := getattr(lm.base_model, name, None), nn.Module)), None)


def _last(lm: Any) -> nn.Module:
    if (norm := final_norm(lm)) is None:
        what = f"{type(lm).__name__} has no {' or '.join(NORMS)} behind its last layer, which nobody can look at"
        raise CheckError(what, at="model.llm", fix="fewer layers, or a Llama, Mistral, Gemma, Phi or Qwen model")
    return norm


@contextmanager
def watched(lm: Any, looks: Iterable[Look], places: Places) -> Iterator[Watch]:
    """Watch one forward pass."""
    watch = Watch(places, tuple(looks))
    deepest = max(len(look.weights) for look in watch.looks)
    every = layers(lm)
    with ExitStack() as stack:
        for number, module in enumerate(every[:deepest], 1):
            # transformers' hidden_states ends with the final norm's output, not the last layer's
            source = _last(lm) if number == len(every) else module
            hook = source.register_forward_hook(lambda _m, _a, out, n=number: watch.layer(n, _first(out)))
            stack.callback(hook.remove)
        _watching.append(watch)
        stack.callback(_watching.remove, watch)
        yield watch


@contextmanager
def keeping(lm: Any, numbers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """{layer: hidden_RSD} of one forward pass, in its autograd graph: of layers 1 to the last but one.

    Each is taken where the next layer gets it. A layer's own output is no use under activation checkpointing: with the
    reentrant kind it has no graph inside; with the other, what was computed from it inside would be missing when the
    layer is run again. Nothing is copied: the backward pass keeps these tensors anyway.
    """
    kept: dict[int, Tensor] = {}
    every = layers(lm)
    with ExitStack() as stack:
        for number in numbers:

            def keep(_module: nn.Module, args: Any, options: Any, number: int = number) -> None:
                kept[number] = args[0] if args else options["hidden_states"]

            # before other hooks: DeepSpeed's wrap what a layer gets, to give its weights away in the backward pass
            hook = every[number].register_forward_pre_hook(keep, prepend=True, with_kwargs=True)
            stack.callback(hook.remove)
        yield kept


def beside(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel of transformers; where a pass is watched, what the text rows look at is added up beside it."""
    if hasattr(kernel, "beside"):
        return kernel

    @wraps(kernel)
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> Any:
        out = kernel(module, query, key, value, attention_mask, **options)
        _add(module, query, key, attention_mask, options.get("scaling"), options.get("sliding_window"))
        return out

    attention.beside = kernel  # type: ignore[attr-defined]
    return attention


def _eager(module: nn.Module, *inputs: Any, **options: Any) -> Any:
    """Each model of transformers has its own, beside its attention."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *inputs, **options)


attention, eager = beside(sdpa_attention_forward), beside(_eager)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _add(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, window: int | None
) -> None:
    """To the watched pass, where there is one; what is noted there is nothing to compile."""
    number = int(getattr(module, "layer_idx", -1)) + 1
    if _watching and 0 < number <= _watching[-1].attended_layers:
        watch, seen = _watching[-1], _seen(query, mask, window)
        watch.attention(number, looked_at(query, key, seen, scaling or query.shape[-1] ** -0.5, watch.places))


def _seen(query_RHSE: Tensor, mask: Tensor | None, window: int | None) -> Tensor | None:
    """The mask as sdpa takes it, (R, 1, S, S); None: the past and nothing else.

    mask: so, or as flash attention takes it, (R, S) of what is no padding, or None: that hides the future itself, and
    what is out of its window.
    """
    rows, _, length, _ = query_RHSE.shape
    if (mask is None and (not window or length <= window)) or (mask is not None and mask.dim() == 4):
        return mask
    place_S = torch.arange(length, device=query_RHSE.device)
    behind_SS = place_S[:, None] - place_S
    seen_SS = (behind_SS >= 0) & (behind_SS < (window or length))
    seen = seen_SS.expand(rows, 1, -1, -1)
    return seen if mask is None else seen & (mask[:, None, None, :] > 0)


@torch.no_grad()
def looked_at(query_RHSE: Tensor, key_RGSE: Tensor, mask: Tensor | None, scaling: float, places: Places) -> Tensor:
    """looked_RS: attention from the text rows to every position, summed over heads and text rows. fp32.

    Text before a row's first image cannot see it and is left out. mask: as sdpa takes it (R, 1, S, S), or None for
    plain causal attention.
    """
    first_R = _first_image(places)
    column_S = torch.arange(query_RHSE.shape[2], device=query_RHSE.device)
    wanted_RS = places.text_RS & (column_S > first_R[:, None])
    most = int(wanted_RS.sum(1).max())
    total_RS = torch.zeros(wanted_RS.shape, device=query_RHSE.device)
    row_RT = wanted_RS.long().argsort(dim=1, descending=True, stable=True)[:, :most]  # text first, in order
    real_RT = wanted_RS.gather(1, row_RT)
    rows, heads = query_RHSE.shape[:2]
    size = max(1, LIMIT // (4 * rows * heads * len(column_S)))
    for start in range(0, most, size):
        part_RT, ok_RT = row_RT[:, start : start + size], real_RT[:, start : start + size]
        weight_RHTS = _weights(query_RHSE, key_RGSE, mask, scaling, part_RT)
        total_RS += (weight_RHTS * ok_RT[:, None, :, None]).sum((1, 2))
    return total_RS


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, row_RT: Tensor) -> Tensor:
    """weight_RHTS of some rows, as eager attention computes it: products as given, softmax in fp32."""
    rows, heads, _, size = query.shape
    picked_RHTE = query.gather(2, row_RT[:, None, :, None].expand(-1, heads, -1, size))
    groups = key.shape[1]
    picked = picked_RHTE.view(rows, groups, heads // groups, -1, size)
    alike_RHTS = (picked @ key.unsqueeze(2).transpose(-1, -2)).flatten(1, 2).float() * scaling
    if mask is None:
        hidden = torch.arange(key.shape[2], device=key.device) > row_RT[:, None, :, None]
        alike_RHTS = alike_RHTS.masked_fill(hidden, -torch.inf)
    else:
        at = row_RT[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
        part = mask.expand(rows, -1, -1, -1).gather(2, at)
        alike_RHTS = alike_RHTS.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else alike_RHTS + part
    weight_RHTS: Tensor = alike_RHTS.softmax(-1).nan_to_num()  # a padded row sees nothing
    return weight_RHTS


def _first_image(places: Places) -> Tensor:
    """The column where each row's first image begins; beyond the end where there is none."""
    rows, length = places.text_RS.shape
    first_R = torch.full((rows,), length, device=places.text_RS.device)
    return first_R.scatter_reduce(0, places.row_B, places.column_BQ[:, 0], "amin")


def _first(out: Any) -> Tensor:
    hidden_RSD: Tensor = out if isinstance(out, Tensor) else out[0]
    return hidden_RSD
