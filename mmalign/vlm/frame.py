"""Where the patches of one grid lie on another."""

import torch
from torch import Tensor


def resampled(source_grid: tuple[int, int], target_grid: tuple[int, int]) -> Tensor:
    """under_P: for every patch of `target_grid`, row by row, the number of the patch of `source_grid` under its centre.

    Grids are (rows, columns) laid over the same picture.
    """
    (source_rows, source_columns), (rows, columns) = source_grid, target_grid
    row = ((torch.arange(rows) + 0.5) * source_rows / rows).long()
    column = ((torch.arange(columns) + 0.5) * source_columns / columns).long()
    return (row[:, None] * source_columns + column[None, :]).flatten()
