"""`inspect`: the tokens, or the words of a list, nearest to each visual token of an image: a table or a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.errors import RunError
from mmalign.io.legible import told
from mmalign.io.wordlist import read_words
from mmalign.pipeline import existing

from .images import open_rgb
from .models import loaded
from .show import out, table

if TYPE_CHECKING:
    from mmalign.benchmarks import ReadoutKind
    from mmalign.vlm.wordmap import WordMap


def inspect(
    spec: str,
    images: Sequence[str],
    layers: str,
    keep: int,
    word_list: str | None,
    readout: "ReadoutKind",
    target: Path | None,
    as_json: bool,
) -> None:
    place, depths = existing.find(spec), numbers(layers)
    existing.seeing(place, "it has no visual tokens")
    listed = read_words(word_list) if word_list is not None else None
    pictures = {str(image): open_rgb(image) for image in images}  # each once
    if target and not (target.absolute().parent).is_dir():
        raise RunError(f"no folder {target.parent}", at=str(target), fix="--out in a folder that is there")
    model = loaded(place)
    words = model.nearest_words(list(pictures.values()), depths, keep, list(pictures), listed, readout)
    if target:
        words.save(target, f"What the visual tokens of {spec} say")
    if as_json:
        from . import dump

        dump([vars(one) for one in words])
    elif target:
        out.print(f"page: {target}")
    else:
        out.print(_table(words))
        for layer in words.words:
            if remark := told(words.ceiling.get(layer)):
                out.print(f"layer {layer}: {remark}")


def numbers(layers: str) -> list[int]:
    """`0,8,16` as numbers, each once."""
    try:
        depths = list(dict.fromkeys(int(one) for one in layers.split(",")))
    except ValueError as err:
        raise RunError(f"--layers {layers!r} is no list of numbers", at="command line", fix="--layers 0,8,16") from err
    return depths


def _table(words: "WordMap") -> Any:
    shown = table("image", "layer", "patch" if words.grid else "token", "nearest words")
    for one in words:
        for number, nearest in enumerate(one.words):
            at = f"{number // one.grid[1]},{number % one.grid[1]}" if one.grid else str(number)
            shown.add_row(one.image, str(one.layer), at, "  ".join(f"{word} {cosine:.3f}" for word, cosine in nearest))
    return shown
