"""`inspect`: the tokens, or the words of a list, nearest to each visual token of an image: a table or a page."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.errors import RunError
from mmalign.io.legible import told
from mmalign.io.wordlist import read_words
from mmalign.pipeline import existing

from . import replacing
from .images import open_rgb
from .models import loaded
from .show import folder_of, out, table

if TYPE_CHECKING:
    from mmalign.benchmarks import ReadoutKind
    from mmalign.vlm.meaningful import Meaning
    from mmalign.vlm.model import VLM
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
    replace: bool = False,
    question: str | None = None,
    beside: Sequence[str] = (),
    attention: str | None = None,
) -> None:
    replacing.check(replace, question)
    place, depths = existing.find(spec), numbers(layers)
    existing.seeing(place, "it has no visual tokens")
    listed = read_words(word_list) if word_list is not None else None
    pictures = {str(image): open_rgb(image) for image in images}  # each once
    folder_of(target)
    others = [existing.find(other) for other in beside]
    for other in others:
        existing.seeing(other, "it has no visual tokens")
    if beside and not target:
        raise RunError("--beside lays models side by side on a page", at="command line", fix="--out FILE.html")

    if attention is not None and not target:
        raise RunError("--attention is laid on the pictures of a page", at="command line", fix="--out FILE.html")

    def said(model: "VLM") -> "WordMap":
        words = model.nearest_words(list(pictures.values()), depths, keep, list(pictures), listed, readout)
        if attention is None:
            return words
        return words.with_attention(model.attention(list(pictures.values()), attention))

    model = loaded(place)
    words = said(model)
    meanings = model.meaningful(list(pictures.values()), depths, list(pictures), listed, readout)
    answers = replacing.answers(model, pictures, question, depths, listed, readout) if replace else []
    if target:
        del model  # before the others are loaded
        maps, title = [said(loaded(other)) for other in others], f"What the visual tokens of {spec} say"
        names = [spec, *beside] if beside else [""]
        below = replacing.section(answers) + (_looked(attention) if attention is not None else "")
        words.beside(*maps, names=names).save(target, title, below)
    if as_json:
        from . import dump

        rows = [{**vars(one), "meaningful": _counts(own)} for one, own in zip(words, meanings, strict=True)]
        dump([row | own for row, own in zip(rows, replacing.as_json(answers) or [{}] * len(rows), strict=True)])
        return
    out.print(f"page: {target}" if target else _table(words))
    for own in meanings:
        out.print(f"{own.image}, {own}")
    for layer in words.words:
        if remark := told(words.ceiling.get(layer)):
            out.print(f"layer {layer}: {remark}")
    replacing.show(answers)


def _looked(text: str) -> str:
    """The piece of a page that says what `attention` is there."""
    told = f"Attention is how much the tokens of “{text}”, said of the picture, look at each visual token"
    return f"<p>{escape(told)}, over heads and the first half of the layers: BASIC's a_i.</p>"


def numbers(layers: str) -> list[int]:
    """`0,8,16` as numbers, each once."""
    try:
        depths = list(dict.fromkeys(int(one) for one in layers.split(",")))
    except ValueError as err:
        raise RunError(f"--layers {layers!r} is no list of numbers", at="command line", fix="--layers 0,8,16") from err
    return depths


def _counts(meaning: "Meaning") -> dict[str, Any]:
    return {name: value for name, value in vars(meaning).items() if name not in ("image", "layer")}


def _table(words: "WordMap") -> Any:
    shown = table("image", "layer", "patch" if words.grid else "token", "nearest words")
    for one in words:
        for number, nearest in enumerate(one.words):
            at = f"{number // one.grid[1]},{number % one.grid[1]}" if one.grid else str(number)
            shown.add_row(one.image, str(one.layer), at, "  ".join(f"{word} {cosine:.3f}" for word, cosine in nearest))
    return shown
