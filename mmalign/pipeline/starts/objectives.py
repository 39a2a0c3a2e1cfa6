"""{{ name }}: an objective for mmalign."""

from mmalign.objectives import Objective, Step
from torch import Tensor


class {{ cls }}(Objective):
    """One line that says what it rewards.

    power: of the length that is punished.
    """

    needs = frozenset()  # of answers, labels, layers, states, captions, targets: what `step` must hold
    per_patch = False  # True: token i must be patch i
    unit = "images"  # what the mean is over

    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, step: Step) -> Tensor:
        return step.visual_BPD.float().norm(dim=-1).pow(self.power).mean()
