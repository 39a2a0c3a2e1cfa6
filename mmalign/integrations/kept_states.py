"""Hidden states with a gradient of a pass of any vision-language model of transformers.

Letters: B images, R rows, S positions, Q places of an image's tokens, M tokens of captions, D width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from mmalign.integrations import declared
from mmalign.integrations.declared import Parts
from mmalign.llms import LLM, Places
from mmalign.objectives import Step
from mmalign.vlm.batch import IGNORED


@contextmanager
def keeping(parts: Parts, llm: LLM, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """{layer: hidden_RSD} of one forward pass, in its graph: of layers 1 to the last; 0 is what goes in."""
    inner = [layer for layer in layers if 0 < layer < llm.depth]
    kept: dict[int, Tensor] = {}
    with ExitStack() as stack:
        before = stack.enter_context(llm.keeping(inner)) if inner else {}
        last = stack.enter_context(declared.layer_outputs(parts, [llm.depth] if llm.depth in layers else []))
        yield kept
        kept |= before | last


def hand(step: Step, by_layer: Mapping[int, Tensor], places: Places, llm: LLM) -> None:
    """To objectives that need states: those at each image's tokens, one behind the other, and what reads them."""
    assert places.real_BQ is not None
    step.head, step.nll, step.kl, step.normed = llm.head, llm.nll, llm.kl, llm.normed
    if not len(places.row_B):
        step.states = {layer: hidden_RSD[:0, :0] for layer, hidden_RSD in by_layer.items()}
        return
    at, empty_BQ1 = (places.row_B[:, None], places.column_BQ), ~places.real_BQ[..., None]
    step.states = {layer: hidden_RSD[at].masked_fill(empty_BQ1, 0) for layer, hidden_RSD in by_layer.items()}


def caption(step: Step, by_layer: Mapping[int, Tensor], places: Places, goal_RS: Tensor) -> None:
    """To objectives that need captions: the trained tokens of rows with images, each row one sample.

    goal_RS: labels of the tokens themselves, IGNORED where nothing is trained.
    """
    with_image, step.sample_B = torch.unique(places.row_B, return_inverse=True)
    trained_RS = goal_RS != IGNORED
    own_R = torch.isin(torch.arange(len(goal_RS), device=goal_RS.device), with_image)
    row_M, column_M = torch.where(trained_RS & own_R[:, None])
    step.caption_M, step.caption_id_M = torch.searchsorted(with_image, row_M), goal_RS[row_M, column_M]
    step.captions = {layer: hidden_RSD[row_M, column_M] for layer, hidden_RSD in by_layer.items()}
