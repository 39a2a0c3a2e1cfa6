"""Models of transformers: all that a checkpoint holds, or an error that says what is wrong; and what its versions call
differently."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from importlib import import_module
from typing import Any, TypeVar

from safetensors import SafetensorError

from mmalign.errors import CardError, MMAlignError
from mmalign.io import files

T = TypeVar("T")
FIX = "check `checkpoint:`, or the network"
SPOKEN = (OSError, ValueError, ImportError, SafetensorError)  # whose texts say what is wrong by themselves


@contextmanager
def reading(checkpoint: str) -> Iterator[None]:
    """Around what takes a checkpoint apart: whatever other libraries have against its files is a CardError.

    A setting of another type reaches deep into transformers, tokenizers and jinja2, which check few of theirs: it comes
    back as nearly any exception, from Rust as a panic that is not even an Exception.
    """
    try:
        yield
    except MMAlignError:
        raise
    except BaseException as err:
        if not isinstance(err, Exception) and type(err).__name__ != "PanicException":
            raise
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        kind = "" if isinstance(err, SPOKEN) else f"{type(err).__name__}: "
        raise CardError(f"cannot load {checkpoint!r}: {kind}{reason[:300]}", at=checkpoint, fix=FIX) from err


def read(checkpoint: str, how: Callable[[str], T]) -> T:
    """`how` of the place that `checkpoint` means (a folder, a `pkg:` folder or a hub id); a CardError if it cannot."""
    with reading(checkpoint):
        return how(files.path(checkpoint))


def whole(checkpoint: str, kind: Any, **options: Any) -> Any:
    """A model with every weight from its checkpoint; a CardError for one that lacks some, or has some of other shapes.

    transformers would draw those at random, and go on.
    """
    options = {"dtype": "auto", "output_loading_info": True, "ignore_mismatched_sizes": True, **options}
    model, about = read(checkpoint, lambda place: kind.from_pretrained(place, **options))
    for key, what in (("missing_keys", "lacks"), ("mismatched_keys", "has, in another shape,")):
        if found := sorted(name if isinstance(name, str) else name[0] for name in about[key]):
            said = f"cannot load {checkpoint!r}: it {what} {len(found)} of its weights, such as {found[0]}"
            raise CardError(said, at=checkpoint, fix="a whole checkpoint of this configuration")
    return model


def compile_layers(layers: Iterable[Any], compiler: Callable[..., Any], when: Callable[[], bool]) -> None:
    """Have torch compile what layers compute, for any number of samples and positions.

    Of each its `forward` alone: hooks, recomputation and DeepSpeed's own stay around it as they are, and so do the
    names of its weights. compiler: torch.compile, which is not imported here. when: whether a pass runs compiled.
    """

    def compiled(plain: Callable[..., Any]) -> Callable[..., Any]:
        fast = compiler(plain, dynamic=True)

        @wraps(plain)
        def forward(*inputs: Any, **options: Any) -> Any:
            return (fast if when() else plain)(*inputs, **options)

        return forward

    for layer in layers:
        layer.forward = compiled(layer.forward)


def recompute(model: Any, on: bool = True) -> None:
    """Keep of its layers only their inputs, and make the rest again in the backward pass (activation checkpointing).

    Also in layers in eval mode, as a frozen model's are: by itself transformers would keep all of theirs.
    """
    word = "enable" if on else "disable"
    new = f"activation_checkpointing_{word}"  # as transformers calls it since 5.23
    switch = getattr(model, new if hasattr(model, new) else f"gradient_checkpointing_{word}")
    switch(*[{"use_reentrant": False}] * on)
    for layer in model.modules() if on else ():
        if any(kind.__name__ == "GradientCheckpointingLayer" for kind in type(layer).__mro__):
            _recompute_frozen(layer)


def _recompute_frozen(layer: Any) -> None:
    """Have a layer recompute in eval mode, too, as long as it is to recompute at all."""
    checkpointing, torch = (
        import_module(name) for name in ("torch.utils.checkpoint", "torch")
    )  # loaded with the model
    plain = layer.forward
    if getattr(plain, "recomputes", False):
        return

    @wraps(plain)
    def forward(*inputs: Any, **options: Any) -> Any:
        asked = layer.gradient_checkpointing and not layer.training and torch.is_grad_enabled()
        if not asked or options.get("past_key_values") is not None:  # a cache would be filled twice
            return plain(*inputs, **options)
        # nothing is drawn in eval mode, so there is no random state to bring back
        return checkpointing.checkpoint(
            partial(plain, **options), *inputs, use_reentrant=False, preserve_rng_state=False
        )

    forward.recomputes = True  # type: ignore[attr-defined]
    layer.forward = forward
