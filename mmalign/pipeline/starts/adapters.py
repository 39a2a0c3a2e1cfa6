"""{{ name }}: an adapter for mmalign."""

from mmalign.adapters import Adapter
from torch import Tensor, nn


class {{ cls }}(Adapter):
    """One line that says what it does; `mmalign list adapters` shows it.

    width: of the layer between.
    """

    keeps_grid = True  # visual token i is patch i; if not, set `tokens` and objectives on single patches are refused

    def __init__(self, patch_dim: int, llm_dim: int, grid: tuple[int, int], width: int = 64) -> None:
        super().__init__(patch_dim, llm_dim, grid)
        self.layers = nn.Sequential(nn.Linear(patch_dim, width), nn.GELU(), nn.Linear(width, llm_dim))

    def forward(self, patches_BPC: Tensor) -> Tensor:
        return self.layers(patches_BPC)
