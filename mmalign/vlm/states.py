"""Hidden states that objectives want with a gradient: where they stand in a pass.

Letters: B images, R rows, S positions, Q visual tokens of an image, M tokens of captions, D width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmalign.llms import Places
from mmalign.vlm.batch import Batch


def no_places(tokens: int, device: torch.device) -> Places:
    """Of a pass without images. What is indexed with it is empty, and has its way back through the layers."""
    none_B = torch.zeros(0, dtype=torch.long, device=device)
    return Places(none_B, none_B[:, None].expand(0, tokens), none_B[:, None])


def at_visual(by_layer: Mapping[int, Tensor], places: Places) -> dict[int, Tensor]:
    """{layer: hidden_BQD} of {layer: hidden_RSD}."""
    at = places.row_B[:, None], places.column_BQ
    return {layer: hidden_RSD[at] for layer, hidden_RSD in by_layer.items()}


def captions(batch: Batch, places: Places) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """sample_B, the sample each image is in; caption_M, that of each trained token beside an image; where these stand.

    Samples are counted from 0, in the order of their rows, those with images alone.
    """
    number_RS = batch.mask_RS + torch.arange(len(batch.mask_RS), device=batch.mask_RS.device)[:, None] * (
        batch.mask_RS.amax() + 1
    )
    own_B = number_RS[places.row_B, places.column_BQ[:, 0]]
    with_image, sample_B = torch.unique(own_B, return_inverse=True)
    at_RS = (batch.weight_RS > 0) & torch.isin(number_RS, with_image)
    rows_M, columns_M = torch.where(at_RS)
    return sample_B, torch.searchsorted(with_image, number_RS[rows_M, columns_M]), (rows_M, columns_M)
