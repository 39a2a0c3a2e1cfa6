"""`labels show` and `labels stats`: a label store on an image, and in numbers."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.data import Data
from mmalign.errors import DataError, RunError
from mmalign.explore import Explorer, Pane, Picture, page
from mmalign.io import files
from mmalign.io.pictures import base64_png
from mmalign.labels.figures import as_json as plain
from mmalign.labels.figures import overlay
from mmalign.labels.figures import stats as count
from mmalign.labels.store import Store
from mmalign.labels.summary import html
from mmalign.pipeline import task
from mmalign.plan.building import build
from mmalign.plan.cards import Card
from mmalign.vision.picture import covered, rgb

from . import dump
from .show import out

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 672  # pixels of a picture's longer side on a page
TOLD = "On each patch, its words by the label source, best first; a word counts where its score is above 0."


def store(place: str) -> Store:
    """The store of a label stage's folder, or a store itself."""
    inside = Path(place) / "labels"
    return Store(inside if (inside / "header.json").exists() else place)


def stats(place: str, target: Path | None, as_json: bool) -> None:
    """A store in numbers; `target` gets them as .html with charts, and as .json."""
    totals = count(store(place))
    if target:
        files.write(target.with_suffix(".html"), html(totals))
        files.write_json(target.with_suffix(".json"), plain(totals))
    if as_json:
        dump(plain(totals))
        return
    out.print(f"images      {totals.images:,}, and {totals.bad:,} that could not be read")
    out.print(f"labelled    {totals.labelled:.1%} of {totals.patches:,} patches, {totals.kept:.2f} words each")
    out.print(f"words used  {totals.used:.1%} of {totals.words:,}")
    out.print(f"mean score  {totals.score:.4f}")
    out.print("most used   " + ", ".join(f"{word} {patches:,}" for word, patches, _ in totals.top[:10]))
    if target:
        out.print(f"page        {target.with_suffix('.html')}")


def show(place: str, keys: Sequence[str], target: Path) -> None:
    """The labels of some images on them, as one page or as pictures; the images are those of the data labelled."""
    labels = store(place)
    card = data_card(place)
    if missing := ", ".join(key for key in keys if key not in labels):
        raise RunError(f"no labels for {missing}", at=place, fix="keys are the ids of the data's records")
    data, left = build(card), set(keys)
    is_page, shown = target.suffix.lower() in (".html", ".htm"), list[Picture]()
    for key, reference in _images(data):
        if key in left if keys else key in labels:
            left.discard(key)
            picture = rgb(data.image(reference))
            if is_page:
                shown.append(_picture(key, picture, labels))
            else:
                name = target if len(keys) < 2 else target.with_stem(f"{target.stem}-{key.replace('/', '_')}")
                files.write(name, overlay(picture, *labels[key], labels.words))
                out.print(f"{key}   {name}")
            if not left:
                break
    else:
        raise _missing(left, place)
    if is_page:
        files.write(target, page.html(Explorer(shown, TOLD, "score"), f"Labels of {place}"))
        out.print(f"page: {target}")


def _picture(key: str, picture: "Image", labels: Store) -> Picture:
    words_PK, scores_PK, frame = labels[key]
    rows = zip(words_PK.tolist(), scores_PK.tolist(), strict=True)
    ranked = [[(labels.words[n], score) for n, score in zip(*row, strict=True) if score > 0] for row in rows]
    shown = covered(picture, frame, SIDE)
    return Picture(key, [Pane("", base64_png(shown), frame.grid, {}, frame.seen(), ranked)])


def data_card(place: str) -> Card:
    """The card of the data that a label stage labelled; a RunError for what is no folder of one."""
    if not (Path(place) / "stage.yaml").exists():
        fix = "the folder of a finished stage of kind label, runs/label-..."
        raise RunError(f"{place} does not say which data it labels", at=place, fix=fix)
    return task.load(Path(place)).cards["data"]


def references(data: Data, place: str, keys: Sequence[str]) -> list[Any]:
    """The references of the images of these keys, in their order; a RunError for one that the data no longer has."""
    found: dict[str, Any] = {}
    for key, reference in _images(data):
        if key in keys:
            found[key] = reference
            if len(found) == len(keys):
                return [found[one] for one in keys]
    raise _missing(set(keys) - found.keys(), place)


def _missing(keys: set[str], place: str) -> RunError:
    missing = ", ".join(sorted(keys)) or "with labels"
    return RunError(f"no image {missing} in the data", at=place, fix="the data as it was when it was labelled")


def _images(data: Data) -> Iterator[tuple[str, Any]]:
    """(key, reference) of every image of the records that can be read; the label stage listed the others."""
    for number in range(len(data)):
        with suppress(DataError):
            record = data[number]
            yield from zip(record.keys, record.images, strict=True)
