"""Logit lens loss: the head reads at each visual token the words that its patch shows (arXiv 2602.01530)."""

from torch import Tensor

from mmalign.objectives import Context, Layer, Objective, Step, numbered
from mmalign.objectives.labelled import targets


class LogitLens(Objective):
    """Make the words of a patch likely where the language model's head reads its visual token (arXiv 2602.01530).

    As we read the paper, it averages -log p over the vocabulary tokens that spell a concept, at tokens of the patches
    that show it, in the last layer. Here a patch has words with scores: each counts in proportion to its score, and its
    pieces share what it counts, so that a patch with one word has that loss. The paper's other term, which makes a
    concept unlikely at all other patches, is left out: label sources say what a patch shows, not what it does not. Its
    code is not published.

    Gradients reach the head where it learns.

    layer: whose states are read: last (the paper), or a number from 0, the visual tokens themselves, to the language
    model's depth; before the last through its final norm, as a logit lens does.
    """

    needs = frozenset({"labels", "states"})
    per_patch = True
    collective = True  # ZeRO-3 gathers norm and head from all ranks

    def __init__(self, layer: Layer = "last") -> None:
        super().__init__()
        self.layer, self.behind = layer, True

    def prepare(self, context: Context) -> None:
        number = numbered(self.layer, context.layers)
        self.state_layers, self.behind = (number,), number == context.layers

    def forward(self, step: Step) -> Tensor:
        """Mean over images of the mean over their patches with words. Scalar, fp32; patches x vocabulary is never held
        (but by a head with a bias, or with a low-rank update beside it)."""
        hidden_BPD = step.states[self.state_layers[0]]
        token_NJ, weight_NJ, patch_N = targets(step, hidden_BPD.shape[0], hidden_BPD.shape[1])
        hidden_ND = hidden_BPD.flatten(0, 1)[patch_N]
        return step.nll(hidden_ND if self.behind else step.normed(hidden_ND), token_NJ, weight_NJ)
