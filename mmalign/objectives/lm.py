"""The language-model loss: predict the next token of the answer."""

from torch import Tensor

from mmalign.objectives import Objective, Step


class NextToken(Objective):
    """Cross-entropy at the trained tokens only: the head is never applied anywhere else."""

    needs = frozenset({"answers"})
    unit = "tokens"

    def forward(self, step: Step) -> Tensor:
        """Mean over the trained tokens of this pass, each times its weight; 0 without any. Scalar, fp32."""
        total = step.weight_N.sum() if len(step.weight_N) else 1.0  # ZeRO-3: every rank calls the head, rows or none
        return step.nll(step.answer_ND, step.answer_N, step.weight_N) / total
