"""Causal language models of transformers: Llama, Vicuna, Mistral, Gemma, Phi-3 and everything built like them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from mmalign import files
from mmalign.errors import CardError
from mmalign.llms import LLM, Places, watch
from mmalign.llms.chat import Chat
from mmalign.llms.watch import Seen
from mmalign.objectives import Look


class CausalLM(LLM):
    """The model of a transformers checkpoint and its chat format.

    checkpoint: a folder, a `pkg:` folder or a hub id. template: see Chat. random: take only the configuration, not
    the weights.
    """

    def __init__(self, checkpoint: str, template: str | None = None, random: bool = False) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.lm: Any = _load(checkpoint, random)
        self.chat = Chat(checkpoint, template)
        config = self.lm.config
        self.dim, self.depth = config.hidden_size, config.num_hidden_layers
        self.vocab = self.lm.get_input_embeddings().weight.shape[0]
        self._frequencies = [(m, m.inv_freq) for m in self.lm.modules() if hasattr(m, "inv_freq")]  # of RoPE
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)  # Gemma 2

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CausalLM":
        """RoPE's frequencies stay fp32 when weights are cast, as where transformers loads weights in that precision.

        Rounded to bf16 they turn positions by radians: for theta 500000, 3.6 at position 2000.
        """
        plain: Any = super()
        plain._apply(fn, recurse)
        for module, inv_freq in self._frequencies:
            module.inv_freq = inv_freq.to(module.inv_freq.device)
        return self

    def embed(self, ids: Tensor) -> Tensor:
        embeds: Tensor = self.lm.get_input_embeddings()(ids)
        return embeds

    def forward(self, embeds_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        position_BS = (mask_BS.long().cumsum(-1) - 1).clamp(min=0)  # the same numbers whichever side is padded
        out = self.lm.base_model(
            inputs_embeds=embeds_BSD, attention_mask=mask_BS, position_ids=position_BS, use_cache=False
        )
        hidden_BSD: Tensor = out.last_hidden_state
        return hidden_BSD

    def head(self, hidden_ND: Tensor) -> Tensor:
        logits_NV: Tensor = self.lm.get_output_embeddings()(hidden_ND)
        return (logits_NV / self.softcap).tanh() * self.softcap if self.softcap else logits_NV

    def prepare_looks(self, looks: Sequence[Look]) -> None:
        watch.prepare(self.lm, looks)

    def watched(self, looks: Sequence[Look], places: Places) -> AbstractContextManager[Seen]:
        return watch.watched(self.lm, looks, places)

    def checkpoint_activations(self) -> None:
        self.lm.gradient_checkpointing_enable({"use_reentrant": False})

    def vocabulary(self) -> Tensor:
        embed_VD: Tensor = self.lm.get_input_embeddings().weight
        return embed_VD

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        weights = None if state is None else {name.removeprefix("lm."): value for name, value in state.items()}
        self.lm.save_pretrained(folder, state_dict=weights)
        tokenizer = Chat(self.checkpoint, self.chat.template).tokenizer
        tokenizer.chat_template = self.chat.template
        tokenizer.save_pretrained(folder)


def _load(checkpoint: str, random: bool) -> Any:
    try:
        if random:
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(files.path(checkpoint)))
        return AutoModelForCausalLM.from_pretrained(files.path(checkpoint), dtype="auto")
    except (OSError, ValueError) as err:
        reason = str(err).splitlines()[0]
        raise CardError(f"cannot load {checkpoint!r}: {reason}", fix="check `checkpoint:`, or the network") from err
