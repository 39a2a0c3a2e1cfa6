"""`inspect --labels`: patches by their labels and by the words nearest to their visual tokens, right or wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.data import Data
from mmalign.errors import RunError
from mmalign.io import files
from mmalign.pipeline import existing
from mmalign.plan.building import build
from mmalign.plan.cards import Registry

from .images import open_rgb
from .labels import data_card, references, store
from .models import loaded
from .show import folder_of, out, table

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.data import Truth
    from mmalign.labels import PatchLabels
    from mmalign.vlm.misalignment import PatchWords
    from mmalign.vlm.model import VLM


def inspect(
    spec: str, images: Sequence[str], source: str, keep: int, others: bool, target: Path | None, as_json: bool
) -> None:
    """others: whether something is asked for that is not shown of labels."""
    if others:
        what = "--labels compares layer 0 with the labels' own words"
        fix = "--labels without --layers, --words, --readout, --replace, --beside"
        raise RunError(what, at="command line", fix=fix)
    folder_of(target)
    place = existing.find(spec)
    existing.seeing(place, "it has no visual tokens")
    names = list(dict.fromkeys(map(str, images)))
    pictures, labels, known = (_stored if Path(source).exists() else _made)(source, names, keep)
    model = loaded(place)
    from mmalign.explore import page
    from mmalign.vlm.misalignment import explorer, misalignment, tally

    patches = misalignment(model, pictures, labels, _truths(model, known, pictures), names)
    counts = tally(patches)
    if target:
        title = f"What {spec} and {source} say of patches"
        files.write(target, page.html(explorer(model, pictures, patches, names), title))
    if as_json:
        from . import dump

        dump({"patches": [vars(one) for one in patches], "counts": counts})
        return
    out.print(f"page: {target}" if target else _table(patches))
    for kind, own in counts.items():
        out.print(f"{kind}: {_told(own)}")


Known = tuple[Data, list[Any]]  # data that knows what a patch shows, and its references of the images


def _made(source: str, names: Sequence[str], keep: int) -> "tuple[list[Image], PatchLabels, Known | None]":
    """Picture files, with labels by a card, made now."""
    Registry().card("labels", source)  # a misspelt one is known before anything is loaded
    pictures = [open_rgb(name) for name in names]
    from mmalign.vlm.labelling import Labeller

    return pictures, Labeller(source, keep, pictures)(pictures), None


def _stored(source: str, keys: Sequence[str], keep: int) -> "tuple[list[Image], PatchLabels, Known | None]":
    """Images of the data that a label stage labelled, by their keys."""
    labels, card = store(source), data_card(source)
    if missing := ", ".join(key for key in keys if key not in labels):
        fix = "keys are the ids of the data's records; for picture files, --labels CARD"
        raise RunError(f"no labels for {missing}", at=source, fix=fix)
    data = build(card)
    from mmalign.vlm.labelling import stored

    own, laid = references(data, source, keys), stored(labels, keys, keep)
    knows = card.facts.get("truth", True) and type(data).truth is not Data.truth
    return [data.image(reference) for reference in own], laid, (data, own) if knows else None


def _truths(model: "VLM", known: "Known | None", pictures: "Sequence[Image]") -> "list[Truth] | None":
    """What each patch shows; None: the data does not know."""
    if known is None:
        return None
    data, own = known
    return [data.truth(reference, frame) for reference, frame in zip(own, model.frames(pictures), strict=True)]


def _table(patches: "Sequence[PatchWords]") -> Any:
    shown = table("image", "patch", "visual token", "", "label", "", "true")
    for one in patches:
        label = f"{one.labels[0][0]} {one.labels[0][1]:.3f}" if one.labels else ""
        right, label_right = (VERDICTS[verdict] for verdict in (one.right, one.label_right))
        token = f"{one.word} {one.cosine:.3f}"
        shown.add_row(one.image, f"{one.row},{one.column}", token, right, label, label_right, " ".join(one.true))
    return shown


VERDICTS = {True: "right", False: "wrong", None: ""}


def _told(own: dict[str, int]) -> str:
    told = f"{own['agree']} of {own['labelled']} labelled patches are near to one of their labels"
    if not own["known"]:
        return told
    return (
        f"{told}; of {own['known']} whose words are known {own['right']} visual tokens and {own['label_right']} labels "
        f"are right, {own['misaligned']} labels alone"
    )
