"""BASIC: visual tokens that match what the language model's shallow layers make of them (arXiv 2508.06895, section 4).

Targets, attention weights and the vocabulary's embeddings are constants: the gradient reaches the adapter (and what
feeds it), never the language model, in either stage.
"""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import CheckError, one_of
from mmalign.llms import Look
from mmalign.llms.rows import wide
from mmalign.objectives import Context, Objective, Step
from mmalign.objectives.vocabulary import vocabulary_kl


class Basic(Objective):
    """What both terms share: the refined tokens (eq. 4) and how much each counts (eq. 5).

    layers: k, the first layers that refine; None: half of them (the paper). weights: of layer i, i^2 (increasing, the
    paper), 1 (constant) or (k + 1 - i)^2 (decreasing). attention: auto, tokens count as much as the text looks at them
    (the paper), or equal. subtract_mean: take the image's mean refined token off each, since much of a layer's output
    is common to all patches (not in the paper).
    """

    needs = frozenset({"layers"})
    per_patch = True

    def __init__(
        self,
        layers: int | None = None,
        weights: Literal["increasing", "constant", "decreasing"] = "increasing",
        attention: Literal["auto", "equal"] = "auto",
        subtract_mean: bool = False,
    ) -> None:
        super().__init__()
        if layers is not None and layers < 1:
            raise CheckError(f"layers must be at least 1, got {layers}", at="args.layers")
        one_of("weights", weights, ("increasing", "constant", "decreasing"))
        one_of("attention", attention, ("auto", "equal"))
        self.layers, self.weights, self.attention, self.subtract_mean = layers, weights, attention, subtract_mean

    def prepare(self, context: Context) -> None:
        layers = self.layers or context.layers // 2
        if layers > context.layers:
            what = f"layers is {layers}, and the language model has {context.layers}"
            raise CheckError(what, at="args.layers", fix=f"1 to {context.layers}; the paper takes half")
        self.look = Look(layer_weights(layers, self.weights), attention=self.attention == "auto")

    def refined(self, step: Step) -> tuple[Tensor, Tensor]:
        """refined_BPD (eq. 4) and share_BP (eq. 5), constants, fp32 or wider."""
        assert self.look is not None, "prepare first"
        refined_BPD = wide(step.refined[self.look].detach())
        if self.subtract_mean:
            refined_BPD = refined_BPD - refined_BPD.mean(1, keepdim=True)
        return refined_BPD, wide(step.shares[self.look].detach())


class Direction(Basic):
    """Turn each visual token towards its refined self: the squared distance of unit vectors (eq. 6)."""

    def forward(self, step: Step) -> Tensor:
        """Mean over images of sum_i a_i ||v_i/|v_i| - s_i/|s_i|||^2. Scalar, fp32."""
        refined_BPD, share_BP = self.refined(step)
        gap_BPD = F.normalize(wide(step.visual_BPD), dim=-1) - F.normalize(refined_BPD, dim=-1)
        return (share_BP * gap_BPD.square().sum(-1)).sum(-1).mean()


class Distribution(Basic):
    """Give each visual token the vocabulary distribution of its refined self (eq. 7).

    logits: plain, v E^T (the paper); cosine, unit vectors over a temperature, so that only directions speak (not in
    the paper, whose plain logits also drive the tokens' lengths). temperature: of the cosine logits.
    """

    collective = True  # ZeRO-3 gathers E from all ranks

    def __init__(
        self,
        layers: int | None = None,
        weights: Literal["increasing", "constant", "decreasing"] = "increasing",
        attention: Literal["auto", "equal"] = "auto",
        subtract_mean: bool = False,
        logits: Literal["plain", "cosine"] = "plain",
        temperature: float = 0.07,
    ) -> None:
        super().__init__(layers, weights, attention, subtract_mean)
        one_of("logits", logits, ("plain", "cosine"))
        if temperature <= 0:
            raise CheckError(f"temperature must be above 0, got {temperature:g}", at="args.temperature")
        self.cosine, self.temperature = logits == "cosine", temperature

    def forward(self, step: Step) -> Tensor:
        """Mean over images of sum_i a_i KL(softmax(s_i E^T) || softmax(v_i E^T)). Scalar, fp32."""
        if not len(step.visual_BPD):
            with step.vocabulary():
                return wide(step.visual_BPD).sum()
        refined_BPD, share_BP = self.refined(step)
        visual_MD, refined_MD = step.visual_BPD.flatten(0, 1), refined_BPD.flatten(0, 1)
        weight_M = share_BP.flatten() / len(share_BP)
        with step.vocabulary() as embed_VD:
            embed_VD = embed_VD.detach()
            if self.cosine:
                embed_VD = F.normalize(wide(embed_VD), dim=-1).to(embed_VD.dtype)
                visual_MD = F.normalize(wide(visual_MD), dim=-1) / self.temperature
                refined_MD = F.normalize(refined_MD, dim=-1) / self.temperature
            return vocabulary_kl(visual_MD, refined_MD, weight_M, embed_VD)


def layer_weights(layers: int, kind: str) -> tuple[float, ...]:
    """Of layers 1 .. k, summing to 1 (eq. 4: i^2 over the sum of squares)."""
    raw = {
        "increasing": [float(i * i) for i in range(1, layers + 1)],
        "constant": [1.0] * layers,
        "decreasing": [float(i * i) for i in range(layers, 0, -1)],
    }[kind]
    return tuple(weight / sum(raw) for weight in raw)
