"""What the checks ask alike: shapes, precisions, errors, and samples that do not depend on their batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}  # between a sample alone and the same one in a batch
# Between a sample alone and the same one among others: attention sums in another order where more is masked.
APART = {torch.float32: 1e-4, torch.bfloat16: 8e-2}


def no_scalars(module: nn.Module) -> None:
    scalars = [name for name, p in module.named_parameters() if p.dim() == 0]
    assert not scalars, f"parameters without a dimension, which optimizers and ZeRO mistreat: {', '.join(scalars)}"


def shape_is(found: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert found.shape == shape, f"the output is {tuple(found.shape)}, declared was {shape}"
    assert found.dtype == dtype, f"the output is {found.dtype}, the weights are {dtype}"
    assert found.isfinite().all(), f"the output is not finite in {dtype}"


@torch.no_grad()
def repeats(module: nn.Module, given: Tensor) -> None:
    once = module(given)
    assert torch.equal(module(given), once), "the same input gives another output in eval mode"
    alone = module(given[:1])
    limit = TOLERANCE[once.dtype] * float(once.abs().max())
    assert (alone - once[:1]).abs().max() <= limit, "a sample's output depends on the others in its batch"


def refuses(error: type[Exception], call: Callable[[], object], what: str) -> None:
    """A call raises that error, and no other. what: the call, in words."""
    try:
        call()
    except error:
        return
    except Exception as other:
        raise AssertionError(f"{what} raises {type(other).__name__}, not {error.__name__}: {other}") from other
    raise AssertionError(f"{what} raises no {error.__name__}")


@torch.no_grad()
def uses_modules(module: nn.Module, call: Callable[[], Tensor], what: str) -> None:
    """A call gives the same where every weight is there only while its own module's `forward` runs, as under ZeRO-3."""
    right = call()
    with _divided(module):
        try:
            found = call()
        except RuntimeError as err:
            raise AssertionError(
                f"{what} uses a weight outside of its module's forward: ZeRO-3 has it nowhere"
            ) from err
    assert torch.equal(found, right), f"{what} uses a weight outside of its module's forward"


@contextmanager
def _divided(module: nn.Module) -> Iterator[None]:
    whole = {parameter: parameter.data for parameter in module.parameters()}

    def gather(inner: nn.Module, *_: object) -> None:
        for parameter in inner.parameters(recurse=False):
            parameter.data = whole[parameter]

    def release(inner: nn.Module, *_: object) -> None:
        for parameter in inner.parameters(recurse=False):
            parameter.data = torch.empty(0, dtype=parameter.dtype)

    hooks = [one.register_forward_pre_hook(gather) for one in module.modules()]
    hooks += [one.register_forward_hook(release) for one in module.modules()]
    for one in module.modules():
        release(one)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for one in module.modules():
            gather(one)


def learns_as_before(module: nn.Module, given: Tensor, recompute: Callable[[], None]) -> None:
    """Activations made again in the backward pass change neither the output nor the gradients."""
    module.train()
    once, gradient = _gradient(module, given)
    try:
        recompute()
    except NotImplementedError as err:
        raise AssertionError("checkpoint_activations() is not written; `engine.checkpointing` needs it") from err
    again, gradient_again = _gradient(module, given)
    module.eval()
    for one, other in ((once, again), (gradient, gradient_again)):
        limit = TOLERANCE[one.dtype] * float(one.abs().max())
        same = (one - other).abs().max() <= limit
        assert same, "checkpoint_activations() changes what is learned"


def _gradient(module: nn.Module, given: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of its mean square to all parameters that it reaches, as one row."""
    module.zero_grad()
    out: Tensor = module(given)
    torch.autograd.backward(out.float().square().mean())
    reached = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    return out.detach(), torch.cat(reached)


def same(found: Tensor, right: Tensor, tolerance: float, what: str) -> None:
    """Equal but for rounding, as a share of the largest number."""
    assert found.shape == right.shape, f"{what}: {tuple(found.shape)} for {tuple(right.shape)}"
    gap = float((found.float() - right.float()).detach().abs().max()) if right.numel() else 0.0
    assert gap <= tolerance * max(1e-6, float(right.float().abs().max())), f"{what} (differs by {gap:.2g})"
