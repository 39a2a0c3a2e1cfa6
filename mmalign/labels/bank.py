"""The text bank: words x templates as unit vectors in a joint space, encoded once and kept by content."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import CheckError
from mmalign.io import cache, files
from mmalign.vision import Vision


def text_bank(encoder: Vision, words: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
    """text_WJ, fp32: the mean of a word's templates, each a unit vector, made a unit vector again (SEA, eq. 5).

    templates: texts with `{}` where the word goes; the bare word by default, as the paper names none.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise CheckError(f"a template needs one {{}} for the word, got {template!r}", at="args.templates")
    place = files.cache("banks") / f"{_key(encoder, words, templates)}.safetensors"
    device = next(encoder.parameters()).device
    with suppress(OSError, SafetensorError, KeyError):  # not there, or damaged
        text_WJ: Tensor = load_file(place)["text_WJ"]
        cache.used(place)
        return text_WJ.to(device)
    text_WJ = torch.stack([encoder.words([t.replace("{}", word) for word in words]) for t in templates]).mean(0)
    text_WJ = F.normalize(text_WJ.float(), dim=-1)
    with suppress(OSError):  # only a cache: where nothing can be written, it is made again next time
        files.write(place, save({"text_WJ": text_WJ.cpu().contiguous()}))
        cache.added(place)
    return text_WJ


def _key(encoder: Vision, words: Sequence[str], templates: Sequence[str]) -> str:
    text = "\0".join([encoder.identity(), *words, "", *templates])
    return hashlib.sha256(text.encode()).hexdigest()[:24]
