"""A pass of a whole model for objectives of single patches: each view of each picture, all on one grid, of which some
places may be empty.

Letters: B images, Q places of an image's tokens, V views of all images, P places of a view's patches, D width of the
language model.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.integrations.shown import Shown
from mmalign.objectives import Step, Targets
from mmalign.vision import Vision
from mmalign.vlm.supervised import PassLabels, labels_under, targets_under


class Views:
    """Where the tokens of each view stand. seen_BQ: which tokens are there, and show picture."""

    def __init__(self, pictures: Sequence[Shown], seen_BQ: Tensor) -> None:
        self.pictures, self.device = pictures, seen_BQ.device
        self.views = [(image, view) for image, one in enumerate(pictures) for view in one.views]
        rows, columns = (max((view.frame.grid[axis] for _, view in self.views), default=1) for axis in (0, 1))
        self.grid = rows, columns
        self.image_V = torch.tensor([image for image, _ in self.views], dtype=torch.long, device=self.device)
        token_VP = self._places(lambda image, view: view.token_P)
        self._at = self.image_V[:, None], token_VP.clamp(min=0)
        self._empty_VP = token_VP < 0
        self.there_VP = seen_BQ[self._at] & ~self._empty_VP

    def of(self, each_BQD: Tensor) -> Tensor:
        """each_VPD: what belongs to the images' tokens; 0 where no token stands."""
        return each_BQD[self._at].masked_fill(self._empty_VP[..., None], 0)

    def under(self, encoder: Vision) -> Tensor:
        """under_VP: the number of an encoder's patch, of the same picture, under each token that counts; else -1."""
        frames = [encoder.frame(one.picture.size) for one in self.pictures]
        under_VP = self._places(lambda image, view: frames[image].onto(view.frame))
        return under_VP.masked_fill(~self.there_VP, -1)

    def _places(self, of_view: Callable[[int, Any], Sequence[int]]) -> Tensor:
        """Of each view its numbers, patch by patch; -1 where its grid has no patch."""
        rows, columns = self.grid
        number_VHW = torch.full((len(self.views), rows, columns), -1)
        for own_HW, (image, view) in zip(number_VHW, self.views, strict=True):
            high, wide = view.frame.grid
            own_HW[:high, :wide] = torch.tensor(of_view(image, view)).view(high, wide)
        return number_VHW.flatten(1).to(self.device)

    @torch.no_grad()
    def seen_by(self, encoder: Vision, see: Callable[[Tensor], Any]) -> Any:
        """What an encoder makes of the pictures as the model is shown them."""
        pixels_B3SS = torch.stack([encoder.pixels(one.picture) for one in self.pictures])
        return see(pixels_B3SS.to(next(encoder.parameters()).device))


def viewed(step: Step, views: Views, labels: PassLabels | None, encoders: Sequence[Vision]) -> Step:
    """The same pass, view by view. Labels and targets are of the pictures as the model is shown them."""
    own = Step(**vars(step))
    own.notes, own.visual_BPD, own.grid = step.notes, views.of(step.visual_BPD), views.grid
    own.seen_BP, own.real_BP = views.there_VP, None
    if "states" in vars(step):
        own.states = {layer: views.of(hidden_BQD) for layer, hidden_BQD in step.states.items()}
    if labels:
        _label(own, views, labels)
    own.targets = {encoder: _targets(views, encoder) for encoder in encoders}
    return own


def _label(own: Step, views: Views, labels: PassLabels) -> None:
    own.words = labels.words
    if not views.pictures:
        none_NK = torch.zeros(0, 1, device=views.device)
        own.labels = lambda patch_N: (none_NK.long(), none_NK)
        return
    assert labels.source is not None
    assert labels.encoder is not None
    under_VP = views.under(labels.encoder)
    index_VP = torch.where(under_VP >= 0, views.image_V[:, None] * labels.encoder.patches + under_VP, -1)
    _, dense_BPJ = views.seen_by(labels.encoder, labels.encoder.both)
    own.labels = labels_under(labels.source, labels.words, dense_BPJ.to(views.device), index_VP.flatten().tolist())


def _targets(views: Views, encoder: Vision) -> Targets:
    if not views.pictures:
        return Targets(torch.zeros(*views.there_VP.shape, encoder.dim, device=views.device), views.there_VP)
    patches_BPC: Tensor = views.seen_by(encoder, encoder)
    return targets_under(patches_BPC.to(views.device)[views.image_V], views.under(encoder))
