"""The projector of a LLaVA model as the weights of an MLP adapter: LLaVA's `mm_projector.bin`, or a file of ours."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmalign.adapters import Adapter
from mmalign.errors import CardError, DataError
from mmalign.io import files

NAMES = ("adapter.safetensors", "mm_projector.safetensors", "mm_projector.bin")


def read(spec: str) -> dict[str, Tensor]:
    """The weights of an MLP adapter, under the names of ours: layers.0.weight, layers.2.weight, ...

    spec: our adapter.safetensors, LLaVA's mm_projector.bin (read without unpickling code) or mm_projector.safetensors,
    or a folder with one of them. Raises DataError for a file that holds no such adapter.
    """
    place = Path(files.path(spec))
    if place.is_dir():
        place = next((place / name for name in NAMES if (place / name).exists()), place / NAMES[0])
    try:
        plain = place.suffix == ".safetensors"
        raw = load_file(place) if plain else dict(torch.load(place, map_location="cpu", weights_only=True))
    except Exception as err:
        fix = "an adapter.safetensors of mmalign, or a mm_projector.bin of LLaVA"
        raise DataError(f"cannot read the adapter {place}: {err}", at=str(place), fix=fix) from err
    return named_layers(raw, place)


def named_layers(raw: dict[str, Tensor], place: Path) -> dict[str, Tensor]:
    """The weights of linear layers with a GELU between each two, under our names; DataError for those of another kind.

    LLaVA's, in fp32, are named `[model.]mm_projector.0.weight`, or without the number where there is one layer.
    """
    weights = {name: value for name, value in raw.items() if name.startswith("layers.")}
    if len(weights) < len(raw):
        theirs = {name.rpartition("mm_projector.")[2]: v for name, v in raw.items() if "mm_projector." in name} or raw
        single = all(name in ("weight", "bias") for name in theirs)  # LLaVA's `linear` has no list of layers
        weights = {f"layers.{'0.' if single else ''}{name}": value.float() for name, value in theirs.items()}
    depth = (len(weights) + 1) // 2
    if not weights or set(weights) != {f"layers.{2 * n}.{kind}" for n in range(depth) for kind in ("weight", "bias")}:
        fix = "LLaVA's mm_projector.bin, or the adapter.safetensors of a linear adapter or an MLP"
        raise DataError(f"{place} holds no mm_projector", at=str(place), fix=fix)
    return weights


def load_adapter(adapter: Adapter, spec: str) -> None:
    """Put an adapter file's weights into an adapter; a CardError that names the widths where they do not fit."""
    put_into(adapter, read(spec), spec)


def put_into(adapter: Adapter, weights: dict[str, Tensor], spec: str) -> None:
    """Weights under our names into an adapter. spec: where they come from."""
    try:
        adapter.load_state_dict(weights)
    except RuntimeError as err:
        theirs = ", ".join(f"{name} {tuple(value.shape)}" for name, value in weights.items() if value.dim() > 1)
        ours = ", ".join(f"{name} {tuple(p.shape)}" for name, p in adapter.named_parameters() if p.dim() > 1)
        what = f"the adapter in {spec} has {theirs}; this one has {ours}"
        raise CardError(what, at=spec, fix="the encoder, language model and adapter it was trained with") from err
