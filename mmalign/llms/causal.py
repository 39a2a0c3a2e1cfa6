"""Causal language models of transformers: Llama, Vicuna, Mistral, Gemma, Phi-3 and everything built like them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from mmalign.errors import CardError
from mmalign.io import bounds as limits
from mmalign.io import pretrained
from mmalign.llms import LLM, Look, Places, attending, gguf, watch
from mmalign.llms.chat import Chat
from mmalign.llms.decoding import Cached
from mmalign.llms.head import Head, nll
from mmalign.llms.lora import Lora, learn, merged, plain, quantized
from mmalign.llms.vocabulary import vocabulary_kl
from mmalign.llms.watch import Watch


class CausalLM(LLM):
    """The model of a transformers checkpoint and its chat format.

    checkpoint: a folder, a `pkg:` folder, a hub id, or `gguf:PACKAGE`: what an installed package holds as a .gguf file.
    template: a file with a jinja chat template; None: that of the checkpoint's tokenizer. bos: whether a text without
    chat format (perplexity, MMLU) has the begin token in front; None: as the tokenizer does it. random: take only the
    configuration, not the weights. bits: 4 or 8, hold the weights so (bitsandbytes); then only LoRA learns.
    lora: the rank of low-rank updates that learn in place of the weights and are merged when saved (peft).
    lora_alpha: an update counts this over its rank; None: twice the rank. lora_dropout: the share of what goes into an
    update that is dropped. lora_targets: the names of the layers that are updated, or all-linear: all but the head.
    """

    lm: Any  # the model of transformers itself, with its head
    checkpoints: ClassVar[str] = "transformers"  # `check` reads the config.json of one that is here
    # literal, so that `check` reads it without importing torch
    bounds: ClassVar[limits.Bounds] = {
        "bits": {"among": (4, 8), "words": "4 or 8", "example": 4},
        "lora": {"least": 1, "whole": True, "words": "a rank of 1 or more", "example": 16},
        "lora_alpha": {"above": 0, "words": "above 0", "example": 32},
        "lora_dropout": {"least": 0, "below": 1, "words": "at least 0 and below 1", "example": 0.05},
    }

    def __init__(
        self,
        checkpoint: str,
        template: str | None = None,
        random: bool = False,
        bits: int | None = None,
        lora: int | None = None,
        lora_alpha: float | None = None,
        lora_dropout: float = 0.0,
        lora_targets: str | Sequence[str] = "all-linear",
        bos: bool | None = None,
    ) -> None:
        super().__init__()
        limits.check(self.bounds, bits=bits, lora=lora, lora_alpha=lora_alpha, lora_dropout=lora_dropout)
        if random and lora is not None:
            what = "LoRA learns beside trained weights, and these are random"
            raise CardError(what, at="args.lora", fix="no `lora:`")
        alpha = lora_alpha if lora_alpha is not None else 2 * (lora or 0)
        own = None if lora is None else Lora(lora, alpha, lora_dropout, lora_targets)
        with pretrained.reading(checkpoint):
            lm = _load(checkpoint, random, bits)
            Head.take(lm.get_output_embeddings())
            self._hold(lm, Chat(checkpoint, template, bos=bos), bits, own)

    @classmethod
    def of(cls, lm: Any, chat: Chat) -> "CausalLM":
        """Around a causal LM of transformers that is there already; its modules are shared, not copied."""
        llm = cls.__new__(cls)
        nn.Module.__init__(llm)
        llm._hold(lm, chat)
        return llm

    def _hold(self, lm: Any, chat: Chat, bits: int | None = None, lora: Lora | None = None) -> None:
        self.lm, self.chat, self.checkpoint = lm, chat, chat.checkpoint
        self.bits, self.lora = bits, lora
        config = lm.config
        self.dim, self.depth = config.hidden_size, config.num_hidden_layers
        self.vocab = lm.get_input_embeddings().weight.shape[0]
        self.context = int(getattr(config, "max_position_embeddings", self.context))
        self.watchable = isinstance(getattr(lm.base_model, "layers", None), nn.ModuleList)
        self.keeps_states = self.watchable and watch.final_norm(lm) is not None
        self._frequencies = _frequencies(lm)
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)  # Gemma 2

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CausalLM":
        """RoPE's frequencies stay fp32 when weights are cast, as where transformers loads weights in that precision.

        Rounded to bf16 they turn positions by radians: for theta 500000, 3.6 at position 2000.
        """
        plain: Any = super()
        plain._apply(fn, recurse)
        for module, name, inv_freq in self._frequencies:
            setattr(module, name, inv_freq.to(getattr(module, name).device))
        return self

    def prepare_training(self) -> None:
        if self.lora and not learn(self.lm):
            self.lora.put_into(self.lm)

    def requires_grad_(self, requires_grad: bool = True) -> "CausalLM":
        """With LoRA, of its updates alone; weights held in 4 or 8 bits have no gradient."""
        super().requires_grad_(requires_grad and not (self.lora or self.bits))
        for parameter in learn(self.lm):
            parameter.requires_grad_(requires_grad)
        return self

    def embed(self, ids: Tensor) -> Tensor:
        embeds: Tensor = self.lm.get_input_embeddings()(ids)
        return embeds

    def forward(self, embeds_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        mask, position_BS = _placed(mask_BS)
        out = self.lm.base_model(
            inputs_embeds=embeds_BSD, attention_mask=mask, position_ids=position_BS, use_cache=False
        )
        hidden_BSD: Tensor = out.last_hidden_state
        return hidden_BSD

    def head(self, hidden_ND: Tensor) -> Tensor:
        logits_NV: Tensor = self.lm.get_output_embeddings()(hidden_ND)
        return (logits_NV / self.softcap).tanh() * self.softcap if self.softcap else logits_NV

    def nll(self, hidden_ND: Tensor, token_N: Tensor, weight_N: Tensor) -> Tensor:
        head = self.lm.get_output_embeddings()
        if not isinstance(head, Head):  # with a bias, or a LoRA update beside it
            return super().nll(hidden_ND, token_N, weight_N)
        loss: Tensor = head(hidden_ND, lambda own_ND, own_VD: nll(own_ND, own_VD, token_N, weight_N, self.softcap))
        return loss

    def kl(self, hidden_ND: Tensor, target_ND: Tensor, target_VD: Tensor, weight_N: Tensor) -> Tensor:
        head = self.lm.get_output_embeddings()
        if not isinstance(head, Head):
            return super().kl(hidden_ND, target_ND, target_VD, weight_N)

        def divergence(own_ND: Tensor, own_VD: Tensor) -> Tensor:
            return vocabulary_kl(own_ND, target_ND, weight_N, own_VD, target_VD, self.softcap)

        loss: Tensor = head(hidden_ND, divergence)
        return loss

    def decoder(self) -> Cached:
        return Cached(self.lm)

    def prepare_looks(self, looks: Sequence[Look]) -> None:
        watch.prepare(self.lm, looks)

    def watched(self, looks: Sequence[Look], places: Places) -> AbstractContextManager[Watch]:
        return watch.watched(self.lm, looks, places)

    def keeping(self, layers: Iterable[int]) -> AbstractContextManager[dict[int, Tensor]]:
        return watch.keeping(self.lm, layers)

    def normed(self, hidden_ND: Tensor) -> Tensor:
        norm = watch.final_norm(self.lm)
        assert norm is not None
        normed_ND: Tensor = norm(hidden_ND)
        return normed_ND

    def checkpoint_activations(self) -> None:
        pretrained.recompute(self.lm)

    def attend(self, kind: str) -> None:
        attending.attend(self.lm, kind)

    def compile_layers(self) -> None:
        pretrained.compile_layers(watch.layers(self.lm), torch.compile, torch.is_grad_enabled)

    def vocabulary(self) -> Tensor:
        # not `.weight`: under ZeRO-3 DeepSpeed takes that, inside a forward pass, for a wish to keep it gathered
        embed_VD: Tensor = next(self.lm.get_input_embeddings().parameters())
        return embed_VD

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """LoRA's updates are merged, weights in 4 or 8 bits become whole ones."""
        own = self.state_dict() if state is None else state
        weights = {name.removeprefix("lm."): value for name, value in own.items()}
        if self.bits or learn(self.lm):
            weights = merged(self.lm, weights)
            plain(self.lm.config).save_pretrained(folder, state_dict=weights)
        else:
            self.lm.save_pretrained(folder, state_dict=None if state is None else weights)
        tokenizer = Chat(self.checkpoint, self.chat.template).tokenizer
        tokenizer.chat_template = self.chat.template
        tokenizer.save_pretrained(folder)


def _frequencies(lm: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """(module, name, inv_freq) of every RoPE; Gemma 3 has one for each kind of layer."""
    named = [(module, name, b) for module in lm.modules() for name, b in module.named_buffers(recurse=False)]
    return [(module, name, inv_freq) for module, name, inv_freq in named if name.endswith("inv_freq")]


def _placed(mask_BS: Tensor) -> tuple[Tensor | None, Tensor]:
    """The mask as transformers needs it, and position_BS: the same numbers whichever side is padded.

    No mask where nothing sees the padding behind it, so that attention runs without one; nor where samples share a
    row: without one, transformers keeps apart what restarts at 0.
    """
    packed, behind = torch.stack([(mask_BS > 1).any(), (mask_BS[:, 1:] <= mask_BS[:, :-1]).all()]).tolist()
    if packed:
        return None, _restarting(mask_BS)
    if behind:
        return None, torch.arange(mask_BS.shape[1], device=mask_BS.device).expand_as(mask_BS)
    return mask_BS, (mask_BS.long().cumsum(-1) - 1).clamp(min=0)


def _restarting(mask_BS: Tensor) -> Tensor:
    """position_BS, counted from 0 in every run of equal numbers, and 0 at padding."""
    place_BS = torch.arange(mask_BS.shape[1], device=mask_BS.device).expand_as(mask_BS)
    fresh_BS = torch.ones_like(mask_BS, dtype=torch.bool)
    fresh_BS[:, 1:] = mask_BS[:, 1:] != mask_BS[:, :-1]
    return (place_BS - place_BS.masked_fill(~fresh_BS, 0).cummax(-1).values) * (mask_BS > 0)


def _load(checkpoint: str, random: bool, bits: int | None) -> Any:
    more = {} if bits is None else {"quantization_config": quantized(bits)}
    if random:
        return AutoModelForCausalLM.from_config(pretrained.read(gguf.place(checkpoint), AutoConfig.from_pretrained))
    return pretrained.whole(gguf.place(checkpoint), AutoModelForCausalLM, **more)
