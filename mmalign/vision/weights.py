"""Weights a card points at: a safetensors file, or a folder that holds one; never a pickle."""

from mmalign.errors import CardError
from mmalign.io import files


def file(checkpoint: str, name: str) -> str:
    """The file that `checkpoint` means: itself, or `name` inside the folder."""
    place = files.local(checkpoint)
    if place is None or not place.exists():
        fix = "a file or folder: an absolute path, or one with ./ beside the card"
        raise CardError(f"no checkpoint {checkpoint}", at="args.checkpoint", fix=fix)
    found = place / name if place.is_dir() else place
    if found.suffix != ".safetensors" or not found.exists():
        fix = f"a .safetensors file, or a folder with a {name}; pickles are never loaded"
        raise CardError(f"no weights in {checkpoint}", at="args.checkpoint", fix=fix)
    return str(found)


def digest(checkpoint: str, name: str) -> str:
    """The first digits of the content's hash."""
    return str(files.Hashes().of(file(checkpoint, name)))[:12]
