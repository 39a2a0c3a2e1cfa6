"""Both signs of a label source on data: which of them the data decides for, and a few pictures labelled under each."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from mmalign.data import Data
from mmalign.errors import DataError
from mmalign.labels import LabelSource, PatchLabels
from mmalign.plan import building, cards
from mmalign.plan.cards import Card
from mmalign.vision import Vision
from mmalign.vlm import sampling
from mmalign.vlm.labelling import labelled

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Signs:
    """What was asked of the data. verdict: what the source decided by; None where it had nothing to decide by."""

    images: int  # that were looked at
    verdict: object = None
    undecided: DataError | None = None  # why there is no sign
    pictures: list[tuple["Image", dict[int, PatchLabels]]] = field(default_factory=list)


def both(card: Card, inner: Mapping[str, Card], data: Data, images: int, pictures: int) -> Signs:
    """The sign of a label source by so many images of the data, and a few pictures labelled under both signs.

    card: a source that takes an encoder and a sign; inner: the cards inside it. Padding is not asked. Raises DataError
    where there is no picture to look at.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder: Vision = building.build(inner["encoder"], inner=cards.inside("encoder", inner)).float().to(device).eval()
    looked_at = sampling.sample(encoder, data, images)
    if not looked_at:
        what = f"none of {len(data):,} records has a picture that can be read"
        raise DataError(what, at="data", fix="data with images   (mmalign data check)")

    def source(sign: int | str) -> LabelSource:
        return building.build(replace(card, args={**card.args, "sign": sign}), keep=1, encoder=encoder)  # type: ignore[no-any-return]

    def prepared(one: LabelSource) -> dict[str, object]:
        return one.prepare(lambda: sampling.captions(data), lambda _: looked_at)

    signs = Signs(len(looked_at), pictures=[(image, {}) for image in _pictures(data, images, pictures)])
    try:
        signs.verdict = prepared(source("auto")).get("sign")
    except DataError as err:
        signs.undecided, signs.verdict = err, getattr(err, "verdict", None)
    for sign in (1, -1):
        prepared(one := source(sign))
        one = one.to(torch.device(device))
        for image, labels_of in signs.pictures:
            labels_of[sign] = labelled(one, encoder, [image]).to("cpu")
    return signs


def _pictures(data: Data, images: int, count: int) -> list["Image"]:
    """The first pictures, at most so many, of the records that are looked at."""
    pictures: list[Image] = []
    for number in sampling.spread(data, images):
        with suppress(DataError):
            pictures += [data.image(reference) for reference in data[number].images[:1]]
        if len(pictures) == count:
            break
    return pictures
