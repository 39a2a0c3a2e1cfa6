"""LLaVA's projectors of every layout, as weights of an MLP adapter."""

import pytest
import torch
from safetensors.torch import save_file

from mmalign.adapters.mlp import MLP
from mmalign.errors import CardError, DataError
from mmalign.integrations.llava import adapter
from mmalign.integrations.projectors import load_adapter, read


def projector(depth, width=8, dim=6, prefix="model.mm_projector."):
    """What LLaVA's first stage saves: mm_projector.bin, keys with the model's prefix."""
    torch.manual_seed(0)
    made = MLP(width, dim, (2, 2), depth)
    named = {name.removeprefix("layers."): value for name, value in made.state_dict().items()}
    if depth == 1:  # LLaVA's `linear` is no Sequential
        named = {name.removeprefix("0."): value for name, value in named.items()}
    return made, {prefix + name: value.half() for name, value in named.items()}


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("name", ["mm_projector.bin", "mm_projector.safetensors"])
@pytest.mark.parametrize("prefix", ["model.mm_projector.", "mm_projector.", "base_model.model.model.mm_projector.", ""])
def test_mm_projector(tmp_path, depth, folder, name, prefix):
    made, saved = projector(depth, prefix=prefix)
    (torch.save if name.endswith(".bin") else save_file)(saved, tmp_path / name)
    mine = MLP(8, 6, (2, 2), depth)
    load_adapter(mine, str(tmp_path if folder else tmp_path / name))
    patches = torch.randn(1, 4, 8)
    assert torch.allclose(mine(patches), made(patches), atol=1e-2)


def test_widths_that_do_not_fit_are_named(tmp_path):
    torch.save(projector(2)[1], tmp_path / "mm_projector.bin")
    with pytest.raises(CardError, match=r"layers.0.weight \(6, 8\).*this one has layers.0.weight \(6, 10\)"):
        load_adapter(MLP(10, 6, (2, 2), 2), str(tmp_path))


class Evil:
    def __reduce__(self):
        return (print, ("code was run",))


@pytest.mark.parametrize("content", [b"no pickle", {"other": torch.zeros(1)}, {"x": Evil()}, torch.zeros(2), [1], None])
def test_what_is_no_projector(tmp_path, content, capsys):
    place = tmp_path / "mm_projector.bin"
    if isinstance(content, bytes):
        place.write_bytes(content)
    elif content is not None:
        torch.save(content, place)
    with pytest.raises(DataError, match=r"(cannot read the adapter|holds no mm_projector)"):
        read(str(place))
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "names",
    [[], ["query"], ["layers.0.weight", "norm.weight"], ["layers.0.weight"], ["layers.2.weight", "layers.2.bias"]],
)
def test_an_adapter_of_another_kind_is_no_projector(tmp_path, names):
    save_file({name: torch.zeros(3, 4) for name in names}, tmp_path / "adapter.safetensors")
    with pytest.raises(DataError, match="holds no mm_projector"):
        adapter(str(tmp_path), tmp_path / "mine", "mine")
    assert not (tmp_path / "mine").exists()
