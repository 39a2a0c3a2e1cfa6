"""Hidden states that objectives want with a gradient: where they stand in a pass.

Letters: B images, R rows, S positions, Q places of an image's tokens, M tokens of captions, D width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmalign.llms import LLM, Places
from mmalign.objectives import Step


def no_places(tokens: int, device: torch.device) -> Places:
    """Of a pass without images. What is indexed with it is empty, and has its way back through the layers."""
    none_B = torch.zeros(0, dtype=torch.long, device=device)
    return Places(none_B, none_B[:, None].expand(0, tokens), none_B[:, None])


def hand(step: Step, llm: LLM, by_layer: Mapping[int, Tensor], places: Places) -> None:
    """To objectives that need states: of {layer: hidden_RSD} those at each image's tokens, {layer: hidden_BQD}, 0 where
    an image has no token; and the norm before the head."""
    step.states = {layer: hidden_RSD[places.row_B[:, None], places.column_BQ] for layer, hidden_RSD in by_layer.items()}
    if places.real_BQ is not None:
        empty_BQ1 = ~places.real_BQ[..., None]
        step.states = {layer: hidden_BQD.masked_fill(empty_BQ1, 0) for layer, hidden_BQD in step.states.items()}
    step.normed = llm.normed


def caption(
    step: Step, by_layer: Mapping[int, Tensor], places: Places, ids_RS: Tensor, sample_RS: Tensor, trained_RS: Tensor
) -> None:
    """To objectives that need captions: what is trained in samples with images, and which image is in which.

    sample_RS: a number of each sample's own, at its positions. Handed on are numbers from 0, in the order of these, of
    samples with images alone.
    """
    own_B = sample_RS[places.row_B[:, None], places.column_BQ[:, :1]].flatten()
    with_image, step.sample_B = torch.unique(own_B, return_inverse=True)
    at = torch.where(trained_RS & torch.isin(sample_RS, with_image))
    step.caption_M, step.caption_id_M = torch.searchsorted(with_image, sample_RS[at]), ids_RS[at]
    step.captions = {layer: hidden_RSD[at] for layer, hidden_RSD in by_layer.items()}
