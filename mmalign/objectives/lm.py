"""The language-model loss: predict the next token of the answer."""

from torch import Tensor
from torch.nn import functional as F

from mmalign.objectives import Objective, Step


class NextToken(Objective):
    """Cross-entropy at the trained tokens only: the head is never applied anywhere else."""

    needs = frozenset({"answers"})
    unit = "tokens"

    def forward(self, step: Step) -> Tensor:
        """Mean over the trained tokens of this pass, each times its weight; 0 without any. Scalar, fp32."""
        loss_N = F.cross_entropy(step.head(step.answer_ND).float(), step.answer_N, reduction="none")
        total = step.weight_N.sum() if len(step.weight_N) else 1.0  # ZeRO-3: every rank calls the head, rows or none
        return (loss_N * step.weight_N).sum() / total
