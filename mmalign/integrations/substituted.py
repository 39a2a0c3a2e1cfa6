"""Other visual tokens in the place of those that a vision-language model of transformers makes of a picture.

Letters: R rows, S positions, Q visual tokens of an image, D width of the language model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mmalign.errors import CheckError
from mmalign.integrations.declared import Parts

DEEPER = "deepstack"  # in the names of what a language model is handed of a picture behind its first layers


@contextmanager
def substituted(parts: Parts, visual_QD: Tensor) -> Iterator[None]:
    """In the first forward pass inside the `with`, that of a prompt, visual_QD enters the language model where the
    image token stands.

    Where a token stands in rows and columns, and which tokens see each other, stays as the picture has it. Raises
    CheckError, in the pass, for another number of places, and for a model that adds features of the picture to later
    layers, too: then other tokens do not hide it.
    """
    passes: list[Any] = []  # their token ids

    def outside(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        passes.append(kwargs.get("input_ids", args[0] if args else None))

    def inside(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(passes) > 1:
            return None
        at_RS = passes[0] == parts.image_id
        if any(DEEPER in name and value is not None for name, value in kwargs.items()):
            what = f"{type(parts.model).__name__} adds what it sees of a picture to later layers, too"
            fix = "a model for which visual tokens are all of a picture: mmalign's own, LLaVA, Qwen2.5-VL, ..."
            raise CheckError(f"{what}: other visual tokens do not hide it", at="model", fix=fix)
        if (places := int(at_RS.sum())) != len(visual_QD):
            what = f"{len(visual_QD)} visual tokens for {places} places of an image"
            raise CheckError(what, at="visual_QD", fix="as many as the model makes of the image")
        embeds_RSD = kwargs["inputs_embeds"].clone()
        embeds_RSD[at_RS] = visual_QD.to(embeds_RSD)
        return args, {**kwargs, "inputs_embeds": embeds_RSD}

    hooks = (
        parts.model.register_forward_pre_hook(outside, with_kwargs=True),
        parts.language_model.register_forward_pre_hook(inside, with_kwargs=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
