"""Words for the patches of pictures at hand, by a label source of the registry, or out of a store."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmalign.errors import CheckError, DataError
from mmalign.labels import LabelSource, PatchLabels
from mmalign.labels.store import Store
from mmalign.plan import building, cards
from mmalign.plan.cards import Registry
from mmalign.vision import Vision
from mmalign.vision.picture import upright_size
from mmalign.vlm.pictures import listed

if TYPE_CHECKING:
    from PIL.Image import Image


class Labeller:
    """A label source and its encoder, ready for pictures: `labeller(images)` gives PatchLabels.

    source: the name of a card (`mmalign list labels`), as `SEA` takes it. top_k: words kept a patch. images: PIL images
    like those to come; a source that is centred on data is centred on them. args: arguments of the card to change.
    Raises CardError for a name that is no card, CheckError for a source that needs more than these pictures.
    """

    def __init__(
        self, source: str, top_k: int = 10, images: "Image | Sequence[Image]" = (), args: dict[str, Any] | None = None
    ) -> None:
        if top_k < 1:
            raise CheckError(f"top_k must be at least 1, got {top_k}", at="top_k")
        registry = Registry()
        card = registry.card("labels", source)
        card.args |= args or {}
        inner = registry.inside(card)
        if "encoder" not in inner:
            what = f"{source} takes the words that data gives, and pictures alone have none"
            raise CheckError(what, at="labels", fix="a source with an encoder, such as siglip-words")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.encoder: Vision = (
            building.build(inner["encoder"], inner=cards.inside("encoder", inner)).float().to(device).eval()
        )
        self.source: LabelSource = building.build(card, keep=top_k, encoder=self.encoder)
        self.decided = self._prepared(listed(images))
        self.source = self.source.to(self.device)

    def _prepared(self, images: "Sequence[Image]") -> dict[str, object]:
        """What the source decided by pictures without captions."""
        try:
            return self.source.prepare(lambda: (), lambda count: [(self._seen(one), "") for one in images[:count]])
        except DataError as err:
            more = "" if err.at == "args.sign" else "images=[...] like those to come, or "  # captions decide a sign
            raise CheckError(err.what, at=err.at, fix=more + err.fix) from err

    def _seen(self, image: "Image") -> Tensor:
        """dense_PJ of the patches that show picture."""
        return self.dense(image)[0][self.encoder.frame(upright_size(image)).seen()]

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def dense(self, images: "Image | Sequence[Image]") -> Tensor:
        """dense_BPJ of PIL images, on the encoder's device."""
        return dense_of(self.encoder, listed(images))

    def __call__(self, images: "Image | Sequence[Image]") -> PatchLabels:
        return labelled(self.source, self.encoder, listed(images))


@torch.no_grad()
def dense_of(encoder: Vision, images: "Sequence[Image]") -> Tensor:
    """dense_BPJ of PIL images, on the encoder's device."""
    pixels_B3SS = torch.stack([encoder.pixels(image) for image in images])
    return encoder.both(pixels_B3SS.to(next(encoder.parameters()).device))[1]


@torch.no_grad()
def labelled(source: LabelSource, encoder: Vision, images: "Sequence[Image]") -> PatchLabels:
    """The labels of PIL images by a source that is prepared and its encoder; padding has no word."""
    dense_BPJ = dense_of(encoder, images)
    words_NK, scores_NK = source.label(dense_BPJ.flatten(0, 1))
    count, patches = dense_BPJ.shape[:2]
    words_BPK, scores_BPK = (each.view(count, patches, -1) for each in (words_NK, scores_NK))
    frames = [encoder.frame(upright_size(image)) for image in images]
    return PatchLabels(source.words, words_BPK, scores_BPK, encoder.grid, frames).onto(frames)


def stored(store: Store, keys: Sequence[str], top_k: int) -> PatchLabels:
    """The best `top_k` words of each patch of images in a label store, by their keys; DataError for one without."""
    rows = [store[key] for key in keys]
    words_BPK = torch.stack([torch.from_numpy(words_PK[:, :top_k].astype("i8")) for words_PK, _, _ in rows])
    scores_BPK = torch.stack([torch.from_numpy(scores_PK[:, :top_k].astype("f4")) for _, scores_PK, _ in rows])
    return PatchLabels(store.words, words_BPK, scores_BPK, store.header.grid, [frame for _, _, frame in rows])


def label(images: "Image | Sequence[Image]", source: str = "siglip-words", top_k: int = 10, **args: Any) -> PatchLabels:
    """The `top_k` words of each patch of some PIL images, best first (SEA, arXiv 2408.11813, section 4.1).

    source: a card of the registry (`mmalign list labels`); args: arguments of the card to change (words=..., sign=-1).
    A source that is centred on data is centred on these images. Raises CardError and CheckError as Labeller does.
    """
    return Labeller(source, top_k, images, args)(images)
