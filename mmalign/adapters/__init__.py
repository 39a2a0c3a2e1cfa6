"""What an adapter is: it turns the encoder's patches into visual tokens of the language model's width.

Letters: B images, P patches, C width of a patch, Q visual tokens, D width of the language model.
"""

from typing import ClassVar

from torch import Tensor, nn


class Adapter(nn.Module):
    """patches_BPC -> visual_BQD.

    patch_dim: C, the width of the encoder's patches. llm_dim: D, that of the language model's embeddings. grid: (rows,
    columns) of the patches, rows x columns = P.

    Further arguments are the settings of the card.
    """

    keeps_grid: ClassVar[bool] = True  # whether visual token i is patch i

    def __init__(self, patch_dim: int, llm_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.patch_dim, self.llm_dim, self.grid = patch_dim, llm_dim, grid

    @property
    def tokens(self) -> int:
        """Q, the visual tokens an image becomes."""
        return self.grid[0] * self.grid[1]

    def forward(self, patches_BPC: Tensor) -> Tensor:
        raise NotImplementedError
