"""What is worked out from a language model once and kept in the cache, by its weights and all else it depends on."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mmalign.io import cache, files
from mmalign.llms import LLM

FORMAT = 2  # raise it when what is worked out becomes another for the same model


def kept(llm: LLM, about: Any, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of the cache, on the model's device; computed and written where they are not there.

    about: what they depend on beside the model, as JSON has it.
    """
    if any(hasattr(weight, "ds_id") for weight in llm.parameters()):
        return compute()  # ZeRO-3 has divided the weights, so nobody can say which they are
    device = next(llm.parameters()).device
    place = files.cache("readouts") / f"{_key(llm, about)}.safetensors"
    with suppress(OSError, SafetensorError):  # not there, or damaged
        tensors: dict[str, Tensor] = load_file(place)
        cache.used(place)
        return {name: value.to(device) for name, value in tensors.items()}
    tensors = compute()
    with suppress(OSError):  # only a cache: where nothing can be written, it is made again next time
        files.write(place, save({name: value.cpu().contiguous() for name, value in tensors.items()}))
        cache.added(place)
    return tensors


def _key(llm: LLM, about: Any) -> str:
    return hashlib.sha256(json.dumps([FORMAT, about, llm.chat.template, _weights(llm)]).encode()).hexdigest()[:24]


def _weights(llm: LLM) -> str:
    """The digest of all weights. Read each time: who trains may write to them past any counter, as DeepSpeed does."""
    digest = hashlib.sha256()
    own = {name: value.detach() for name, value in llm.named_parameters()}  # of one inside a whole model all there is
    for name, value in {**llm.state_dict(), **own}.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).cpu().numpy())
    return digest.hexdigest()
