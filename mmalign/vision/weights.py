"""Weights a card points at: a safetensors file, or a folder that holds one; never a pickle."""

from mmalign.errors import CardError
from mmalign.io import files


def file(checkpoint: str, name: str) -> str:
    """The path of the weights: `checkpoint` itself, or `name` inside the folder; a CardError where there are none."""
    path = files.local(checkpoint)
    if path is None or not path.exists():
        fix = "a file or folder: an absolute path, or one with ./ beside the card"
        raise CardError(f"no checkpoint {checkpoint}", at="args.checkpoint", fix=fix)
    weights = path / name if path.is_dir() else path
    if weights.suffix != ".safetensors" or not weights.exists():
        fix = f"a .safetensors file, or a folder with a {name}; pickles are never loaded"
        raise CardError(f"no weights in {checkpoint}", at="args.checkpoint", fix=fix)
    return str(weights)


def digest(checkpoint: str, name: str) -> str:
    """The first 12 hex digits of the weights' hash."""
    return str(files.Hashes().of(file(checkpoint, name)))[:12]
