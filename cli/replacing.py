"""`inspect --replace`: what a model says of its visual tokens, of the words nearest to them, and of other words."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmalign.errors import RunError

from .show import out, table

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.benchmarks import ReadoutKind
    from mmalign.vlm.model import VLM
    from mmalign.vlm.replacement import Replaced


def check(replace: bool, question: str | None) -> None:
    """A RunError for a question that nobody asks."""
    if question is not None and not replace:
        raise RunError("--question is asked by --replace alone", at="command line", fix="--replace, or mmalign chat")


def answers(
    model: "VLM",
    pictures: "Mapping[str, Image]",
    question: str | None,
    layers: Sequence[int],
    words: Sequence[str] | None,
    readout: "ReadoutKind",
) -> "list[Replaced]":
    """question: None: that a picture is described."""
    from mmalign.vlm.replacement import QUESTION

    images, names = list(pictures.values()), list(pictures)
    return model.replaced(images, question or QUESTION, layers, names, words, readout)


def section(answers: "Sequence[Replaced]") -> str:
    """The piece of a page with these answers; none without any."""
    if not answers:
        return ""
    from mmalign.vlm.replacement import html

    return html(answers)


def as_json(answers: "Sequence[Replaced]") -> list[dict[str, Any]]:
    """What is added to the row of each image and layer."""
    names = ("question", "answer", "replaced", "control", "words", "others")
    return [{"replaced": {name: getattr(one, name) for name in names}} for one in answers]


def show(answers: "Sequence[Replaced]") -> None:
    """The answers of each image, one under the other."""
    if not answers:
        return
    under = table("image", "layer", "asked of", "answer")
    for image in dict.fromkeys(one.image for one in answers):
        own = [one for one in answers if one.image == image]
        under.add_row(image, "", "visual tokens", own[0].answer)
        for one in own:
            under.add_row(image, str(one.layer), "their words", one.replaced)
            under.add_row(image, str(one.layer), "other words", one.control)
    out.print(f"\n{answers[0].question}\n")
    out.print(under)
