"""`labels sign`: which sign a label source needs, by the captions of data, and what its labels look like under both."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from mmalign.errors import CheckError, DataError, RunError
from mmalign.io import files
from mmalign.plan import building, cards, facts, graph, signatures
from mmalign.plan.cards import Card, Registry
from mmalign.plan.check import of_stage
from mmalign.plan.read import COMMAND, setting
from mmalign.plan.recipe import Fit, Label, Part, Recipe

from . import dump
from .data import card_of
from .show import out, table

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.labels import PatchLabels
    from mmalign.vlm.signs import Signs

STAGE = "labels sign"  # the label stage that this is the beginning of
PICTURES = 3  # drawn under both signs
EXAMPLE = "data.size=64"


def decide(source: str, data: str, overrides: Sequence[str], images: int, target: Path, as_json: bool) -> None:
    """Tell both signs' agreement with captions, draw both, and raise what keeps the data from deciding."""
    of_role = _cards(source, data, overrides)
    files.writable(target)
    if target.is_dir():
        raise RunError(f"{target} is a folder", at="--out", fix="--out signs.png")
    records = building.build(of_role["data"])
    if not len(records):
        raise DataError("the data set is empty", at=of_role["data"].path, fix="check its path and split")
    from mmalign.vlm.signs import both

    signs = both(of_role["labels"], cards.inside("labels", of_role), records, images, PICTURES)
    files.write(target, _drawn(signs))
    _tell(signs, of_role, target, as_json)
    if signs.undecided:
        fix = f"look at {target}, then sign: -1 (the paper's, for CLIP) or sign: 1 where a recipe names {source}"
        raise DataError(signs.undecided.what, at=signs.undecided.at, fix=fix)


def _cards(source: str, data: str, overrides: Sequence[str]) -> dict[str, Card]:
    """{role: card} as a label stage has them, checked as such; the settings laid over them."""
    of_part = _by_part(overrides)
    args, data_args = (
        dict(setting(word, CheckError, EXAMPLE) for word in of_part[part]) for part in ("labels", "data")
    )
    known = Registry()
    labels = known.card("labels", source)
    _has_sign(labels, args)
    labels = replace(labels, args={**labels.args, **args, "sign": "auto"})
    of_role = {"labels": labels, **cards.below("labels", known.inside(labels)), "data": card_of(data, of_part["data"])}
    stage = Label(STAGE, source=Part(source, args), data=Part(data, data_args), fit=_fit(of_part["fit"]))
    if stage.fit and (role := graph.encoder_of(stage, of_role)):
        of_role[role] = replace(of_role[role], args={**of_role[role].args, "fit": stage.fit})
    recipe = Recipe(name=STAGE, stages={STAGE: stage}, where=_where)
    for problem in of_stage(recipe, STAGE, stage, of_role):
        raise problem
    return of_role


def _by_part(overrides: Sequence[str]) -> dict[str, list[str]]:
    """{labels, data: `key=value` words; fit: its values}, from `labels.key=value`, `data.key=value` and `fit=...`."""
    of_part: dict[str, list[str]] = {"labels": [], "data": [], "fit": []}
    for word in overrides:
        part, dot, rest = word.partition("=" if word.startswith("fit=") else ".")
        if not dot or part not in of_part:
            fix = f"labels.KEY=VALUE, data.KEY=VALUE or fit=pad, such as {EXAMPLE}"
            raise CheckError(f"{word!r} is no setting of the labels or the data", at=COMMAND, fix=fix)
        of_part[part].append(rest)
    return of_part


def _fit(words: Sequence[str]) -> Fit | None:
    """The last one named, as `fit` of a stage."""
    fits: tuple[Fit, ...] = get_args(Fit)
    for word in words:
        if word not in fits:
            raise CheckError(f"fit must be one of {', '.join(fits)}, got {word!r}", at=f"{COMMAND}  fit", fix="fit=pad")
    return next((fit for fit in fits if [fit] == words[-1:]), None)


def _where(key: str) -> str:
    """Where the command line has what a recipe has at a key."""
    short = key.removeprefix(f"stages.{STAGE}.").replace("source.args", "labels").replace("data.args", "data")
    return f"{COMMAND}  {short}"


def _has_sign(labels: Card, args: dict[str, object]) -> None:
    fix = "a source that compares an encoder's patches with words, such as clip-words"
    if facts.of(labels).get("truth"):
        raise CheckError(f"{labels.name} takes the data's own words, which have no sign", at=labels.path, fix=fix)
    if "sign" not in (signatures.takes(labels.target) or {"sign": False}):
        raise CheckError(f"{labels.name} has no sign: its class takes no argument `sign`", at=labels.path, fix=fix)
    if "sign" in args:
        what = f"labels.sign={args['sign']}: the sign is what this command decides"
        raise CheckError(what, at=f"{COMMAND}  labels.sign", fix="take it out")


def _overlay(image: "Image", labels: "PatchLabels") -> bytes:
    from mmalign.labels.figures import overlay

    (frame,) = labels.frames or ()
    return overlay(image, labels.words_BPK[0].numpy(), labels.scores_BPK[0].numpy(), frame, labels.words)


def _drawn(signs: "Signs") -> bytes:
    """PNG: each picture a row, under +1 and -1."""
    from mmalign.labels.figures import sheet

    rows = [[_overlay(image, labels) for labels in labels_of.values()] for image, labels_of in signs.pictures]
    return sheet(rows, ["sign +1", "sign -1"])


def _tell(signs: "Signs", of_role: dict[str, Card], target: Path, as_json: bool) -> None:
    from mmalign.labels.sign import Verdict

    verdict = signs.verdict
    about = {"labels": of_role["labels"].name, "data": of_role["data"].name, "images": signs.images}
    numbers = verdict.as_json() if isinstance(verdict, Verdict) else {"sign": None, "verdict": verdict}
    if as_json:
        dump({**about, **numbers, "picture": str(target)})
        return
    out.print(f"{about['labels']} on {about['data']}: {signs.images:,} images")
    if isinstance(verdict, Verdict):
        out.print(f"{verdict.captions:,} captions that differ, {verdict.words:,} content words\n")
        grid = table("sign", "own caption", "other captions", "p of the gain", "p that it is larger")
        for sign, one in verdict.agreement.items():
            grid.add_row(
                f"{sign:+d}", f"{one.own:.1%}", f"{one.others:.1%}", f"{one.p:.2g}", f"{verdict.larger[sign]:.2g}"
            )
        out.print(grid)
    elif verdict:
        out.print(f"sign {verdict}")
    if not signs.undecided and isinstance(verdict, Verdict):
        out.print(f"\nsign: {verdict.sign:+d}")
    out.print(f"picture: {target}")
