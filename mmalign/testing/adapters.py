"""The contract of an adapter, as a check.

Letters: B images, P patches, C width of a patch, Q visual tokens, D width of the language model.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.adapters import Adapter
from mmalign.testing.tensors import no_scalars, repeats, shape_is, uses_modules


def check_adapter(
    make: Callable[[int, int, tuple[int, int]], Adapter],
    patch_dim: int = 32,
    llm_dim: int = 48,
    grid: tuple[int, int] = (6, 4),
) -> None:
    """An adapter keeps its contract. make: from patch_dim, llm_dim and grid, as a card's target is called."""
    torch.manual_seed(0)
    adapter = make(patch_dim, llm_dim, grid)
    no_scalars(adapter)
    for dtype in (torch.float32, torch.bfloat16):
        adapter = adapter.to(dtype).eval()
        patches_BPC = torch.randn(3, grid[0] * grid[1], patch_dim).to(dtype)
        shape_is(adapter(patches_BPC), (3, adapter.tokens, llm_dim), dtype)
        repeats(adapter, patches_BPC)
    adapter = adapter.float()
    patches_BPC = torch.randn(2, grid[0] * grid[1], patch_dim)
    uses_modules(adapter, lambda: adapter(patches_BPC), "forward()")
    _learns(adapter, torch.randn(2, grid[0] * grid[1], patch_dim))
    _reloads(adapter, make(patch_dim, llm_dim, grid), torch.randn(2, grid[0] * grid[1], patch_dim))
    if adapter.keeps_grid:
        _keeps_grid(adapter, torch.randn(1, grid[0] * grid[1], patch_dim))


def _learns(adapter: Adapter, patches_BPC: Tensor) -> None:
    patches_BPC.requires_grad_(True)
    weights = torch.randn(len(patches_BPC), adapter.tokens, adapter.llm_dim)
    (adapter.train()(patches_BPC) * weights).sum().backward()
    adapter.eval()
    dead = [name for name, p in adapter.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead, f"no gradient reaches {', '.join(dead)}"
    assert patches_BPC.grad is not None, "no gradient reaches the patches"
    unseen = int((patches_BPC.grad.abs().sum((0, 2)) == 0).sum())
    assert not unseen, f"{unseen} patches change no token"


@torch.no_grad()
def _reloads(adapter: Adapter, other: Adapter, patches_BPC: Tensor) -> None:
    other.eval().load_state_dict(adapter.state_dict())
    assert torch.equal(other(patches_BPC), adapter(patches_BPC)), "state_dict() does not hold everything it needs"


def _keeps_grid(adapter: Adapter, patches_BPC: Tensor) -> None:
    rows, columns = adapter.grid
    assert adapter.tokens == rows * columns, f"keeps_grid, but {adapter.tokens} tokens of {rows * columns} patches"
    for patch in range(adapter.tokens):
        changed_BPC = patches_BPC.clone()
        changed_BPC[:, patch] += 1
        with torch.no_grad():
            moved_Q = (adapter(changed_BPC) - adapter(patches_BPC)).norm(dim=-1)[0]
        assert int(moved_Q.argmax()) == patch, f"keeps_grid, but patch {patch} changes token {int(moved_Q.argmax())}"
