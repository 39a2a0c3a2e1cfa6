"""VW-LMM: visual tokens are distributions over words, and what the language model reads at one predicts the next one's
(arXiv 2403.07720).

Letters beside the family's: N tokens that are predicted.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from mmalign.errors import CheckError, one_of
from mmalign.llms.rows import wide
from mmalign.llms.vocabulary import vocabulary_kl
from mmalign.objectives import Context, Objective, Step, per_image

HEADS = ("learned", "embeddings")


def visual_words_loss(
    hidden_BQD: Tensor,
    tokens_BQD: Tensor,
    head_VD: Tensor,
    words_VD: Tensor,
    counted_BQ: Tensor | None = None,
    *,
    softcap: float | None = None,
) -> Tensor:
    """Predict at each visual token the words of the next one: VW-LMM's visual loss (arXiv 2403.07720).

    hidden_BQD: the language model's output at visual token i, behind its final norm. tokens_BQD: the visual tokens.
    head_VD: the language model's head, which reads the output. words_VD: the head that reads the tokens. counted_BQ:
    which tokens are predicted; None: all but an image's first, which never is. softcap: of the language model's logits
    (Gemma 2).

    Mean over images of the mean over their predicted tokens of KL(softmax(words v) || softmax(head h)), in nats: the
    cross-entropy to the token's words less what they have of their own, so that 0 is a perfect prediction. Scalar, fp32
    (fp64 from fp64); 0 without images, or for an image of which nothing is predicted. tokens x vocabulary is never
    held. Gradients reach all four. Raises CheckError where shapes do not fit.
    """
    shape = tuple(tokens_BQD.shape)
    counted_BQ = torch.ones(shape[:2], device=tokens_BQD.device) if counted_BQ is None else counted_BQ
    if len(shape) != 3 or tuple(hidden_BQD.shape) != shape or tuple(counted_BQ.shape) != shape[:2]:
        what = f"outputs have the shape {tuple(hidden_BQD.shape)}, visual tokens {shape}, which count"
        raise CheckError(f"{what} {tuple(counted_BQ.shape)}", at="args.hidden_BQD", fix="images x tokens x width")
    if tuple(words_VD.shape) != tuple(head_VD.shape) or words_VD.shape[-1] != shape[2]:
        what = f"the heads have the shapes {tuple(head_VD.shape)} and {tuple(words_VD.shape)}, visual tokens {shape}"
        raise CheckError(what, at="args.words_VD", fix="vocabulary x width, of one language model")
    hidden_ND, next_ND, weight_N = following(hidden_BQD, tokens_BQD, counted_BQ)
    return vocabulary_kl(hidden_ND, next_ND, weight_N, head_VD, words_VD, softcap)


def following(hidden_BQD: Tensor, tokens_BQD: Tensor, counted_BQ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """hidden_ND, the tokens right behind them, and how much each pair counts, so that the sum is a mean over images."""
    counted_BQ = counted_BQ[:, 1:] > 0
    weight_BQ = per_image(counted_BQ.to(wide(tokens_BQD[:0]).dtype))
    return hidden_BQD[:, :-1][counted_BQ], tokens_BQD[:, 1:][counted_BQ], weight_BQ[counted_BQ]


class VisualWords(Objective):
    """Predict at each visual token the words of the next one, a distribution over the vocabulary (VW-LMM).

    Followed of the paper's published code, which has the model and no training: a head of its own without bias, the VM
    head, makes of each visual token, as the adapter gives it, a distribution over the language model's vocabulary; the
    language model's own head at the token before predicts it; the loss is the KL divergence from the VM head's, and
    nothing in it is a constant. What that code does not tell is our choice: the VM head starts as the language model's
    input embeddings, since one that starts at random says no words. Not here: the code also predicts an image's first
    token, from what stands in front of it; it averages over the tokens of a pass, we over images; a line that is
    switched off there, marked as an earlier stage, turns the divergence round. A variant of the paper feeds the
    language model with the mixture of word embeddings in place of the token: that changes what goes in, and is no
    objective.

    Tokens of patches that show no picture are not predicted. Gradients reach the language model's head where it learns.

    head: learned, the VM head, V x D numbers of its own (the paper); embeddings, the input embeddings as they are, a
    constant (not in the paper). target: learned, the token that is predicted gets a gradient, too (the paper's code),
    and tokens that are all the same are a solution; constant, it gets none.
    """

    needs = frozenset({"states"})
    collective = True  # ZeRO-3 gathers both heads from all ranks

    def __init__(
        self, head: Literal["learned", "embeddings"] = "learned", target: Literal["learned", "constant"] = "learned"
    ) -> None:
        super().__init__()
        one_of("head", head, HEADS)
        one_of("target", target, ("learned", "constant"))
        self.head, self.target = head, target
        self.words_VD: nn.Parameter | None = None

    def prepare(self, context: Context) -> None:
        self.state_layers = (context.layers,)
        if self.head == "learned" and self.words_VD is None:
            if context.vocabulary is None:
                raise CheckError("nobody here has input embeddings to start with", at="args.head")
            with context.vocabulary() as embed_VD:
                start_VD = embed_VD.detach().to(context.device, context.dtype, copy=True)
            self.words_VD = nn.Parameter(start_VD)

    def forward(self, step: Step) -> Tensor:
        """Mean over images of the mean divergence over their tokens but the first. Scalar, fp32; patches x vocabulary
        is never held (but by a head with a bias, or with a low-rank update beside it)."""
        hidden_BQD = step.states[self.state_layers[0]]
        hidden_ND, next_ND, weight_N = following(hidden_BQD, step.visual_BPD, step.counted_BP)
        if self.target == "constant":
            next_ND = next_ND.detach()
        if self.words_VD is not None:
            return step.kl(hidden_ND, next_ND, self.words_VD, weight_N)
        with step.vocabulary() as embed_VD:
            return step.kl(hidden_ND, next_ND, embed_VD.detach(), weight_N)
