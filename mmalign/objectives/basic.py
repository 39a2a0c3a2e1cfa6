"""BASIC: visual tokens that match what the language model's shallow layers make of them (arXiv 2508.06895, section 4).

Targets, attention weights and the vocabulary's embeddings are constants: the gradient reaches the adapter (and what
feeds it), never the language model, in either stage.

Letters beside the family's: H attention heads, S positions of a sample, T of them that look.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import CheckError, one_of
from mmalign.io import bounds
from mmalign.llms import Look
from mmalign.llms.rows import wide
from mmalign.llms.vocabulary import vocabulary_kl
from mmalign.objectives import Context, Objective, Step

KINDS = ("increasing", "constant", "decreasing")  # of the layers' weights


def refined_tokens(
    hidden_LBQD: Tensor | Sequence[Tensor],
    weights: Literal["increasing", "constant", "decreasing"] | Sequence[float] = "increasing",
    lens: Callable[[int, Tensor], Tensor] | None = None,
) -> Tensor:
    """refined_BQD, fp32 (fp64 from fp64): the weighted sum of what layers 1 .. k make of the visual tokens (eq. 4).

    hidden_LBQD: outputs of layers 1 .. k, the first layers of the language model, at the visual tokens: transformers'
    `hidden_states[1 : k + 1]`; the paper takes half the layers. weights: see `layer_weights`, or a number for each.
    lens: of layer i (1-based) and its hidden states, the input embeddings they speak of, which are added up in their
    place (not in the paper).
    A constant: no gradient comes back through it. Raises CheckError without a layer, or a weight for each.
    """
    each = layer_weights(len(hidden_LBQD), weights) if isinstance(weights, str) else tuple(weights)
    if not len(hidden_LBQD) or len(each) != len(hidden_LBQD):
        what = f"{len(each)} weights for the outputs of {len(hidden_LBQD)} layers"
        raise CheckError(what, at="args.weights", fix="one for each of the layers 1 .. k, at least one layer")
    refined_BQD = wide(torch.zeros_like(hidden_LBQD[0]))
    for layer, (hidden_BQD, weight) in enumerate(zip(hidden_LBQD, each, strict=True), 1):
        shown_BQD = hidden_BQD.detach() if lens is None else lens(layer, hidden_BQD.detach())
        refined_BQD.add_(shown_BQD.detach(), alpha=weight)
    return refined_BQD


def attention_share(
    attention_LBHTS: Tensor | Sequence[Tensor], column_BQ: Tensor, text_BT: Tensor | None = None
) -> Tensor:
    """share_BQ, fp32 (fp64 from fp64): how much the text looks at each visual token of an image, sum 1 (eq. 5).

    attention_LBHTS: attention weights of layers 1 .. k, of every head, from T rows to S positions of the sample each
    image is in: transformers' `attentions[:k]` under eager attention, where T is S. column_BQ: where among S the visual
    tokens stand. text_BT: which of the T rows are text (no visual token, no padding); None: all of them.
    A constant; 0 for an image that no text looks at. Raises CheckError where shapes do not fit.
    """
    if not len(attention_LBHTS):
        raise CheckError("attention of no layer", at="args.attention_LBHTS", fix="that of layers 1 .. k, one or more")
    images, _, rows, _ = attention_LBHTS[0].shape
    text_BT = torch.ones(images, rows, device=column_BQ.device) if text_BT is None else text_BT
    if len(column_BQ) != images:
        what = f"attention of {images} images, and columns of {len(column_BQ)}"
        raise CheckError(what, at="args.column_BQ", fix="attention[row_B], where a sample has several images or none")
    if tuple(text_BT.shape) != (images, rows):
        what = f"attention of {images} images from {rows} rows each, text_BT of the shape {tuple(text_BT.shape)}"
        raise CheckError(what, at="args.text_BT", fix="for each of these rows, whether it is text")
    total_BS = torch.stack([_looked_at(weight_BHTS.detach(), text_BT) for weight_BHTS in attention_LBHTS]).sum(0)
    weight_BQ = total_BS.gather(1, column_BQ)
    return weight_BQ / weight_BQ.sum(1, keepdim=True).clamp(min=torch.finfo(weight_BQ.dtype).tiny)


def basic_direction_loss(tokens_BQD: Tensor, refined_BQD: Tensor, share_BQ: Tensor | None = None) -> Tensor:
    """Turn each visual token towards its refined self: BASIC's L_das (arXiv 2508.06895, eq. 6).

    tokens_BQD: visual tokens as the adapter gives them. refined_BQD: what the language model's first layers make of
    them, see `refined_tokens`. share_BQ: how much each token of an image counts, sum 1, see `attention_share`; None:
    all the same. refined and share are constants, the gradient reaches tokens alone.

    Mean over images of sum_i a_i ||v_i/|v_i| - s_i/|s_i|||^2. Scalar from 0 to 4, fp32 (fp64 from fp64); 0 without
    images. Raises CheckError where shapes do not fit.
    """
    refined_BQD, share_BQ = _constants(tokens_BQD, refined_BQD, share_BQ)
    if not len(tokens_BQD):
        return wide(tokens_BQD).sum()
    gap_BQD = F.normalize(wide(tokens_BQD), dim=-1) - F.normalize(refined_BQD, dim=-1)
    return (share_BQ * gap_BQD.square().sum(-1)).sum(-1).mean()


def basic_distribution_loss(
    tokens_BQD: Tensor,
    refined_BQD: Tensor,
    share_BQ: Tensor | None,
    embed_VD: Tensor,
    *,
    logits: Literal["plain", "cosine"] = "plain",
    temperature: float = 0.07,
) -> Tensor:
    """Give each visual token the vocabulary distribution of its refined self: BASIC's L_sds (arXiv 2508.06895, eq. 7).

    tokens_BQD, refined_BQD, share_BQ: see `basic_direction_loss`. embed_VD: E, the language model's input embeddings, a
    constant, too. logits: plain, v E^T (the paper); cosine, unit vectors over `temperature` (not in the paper).

    Mean over images of sum_i a_i KL(softmax(s_i E^T) || softmax(v_i E^T)). Scalar in nats, fp32 (fp64 from fp64); 0
    without images. tokens x vocabulary is never held. Raises CheckError where shapes do not fit.
    """
    one_of("logits", logits, ("plain", "cosine"))
    _check_temperature(temperature)
    refined_BQD, share_BQ = _constants(tokens_BQD, refined_BQD, share_BQ)
    if embed_VD.shape[-1] != tokens_BQD.shape[-1]:
        what = f"embeddings have {embed_VD.shape[-1]} numbers each, visual tokens {tokens_BQD.shape[-1]}"
        raise CheckError(what, at="args.embed_VD", fix="the input embeddings of the model that refined the tokens")
    if not len(tokens_BQD):
        return wide(tokens_BQD).sum()
    visual_MD, refined_MD, embed_VD = tokens_BQD.flatten(0, 1), refined_BQD.flatten(0, 1), embed_VD.detach()
    if logits == "cosine":
        embed_VD = F.normalize(wide(embed_VD), dim=-1).to(embed_VD.dtype)
        visual_MD = F.normalize(wide(visual_MD), dim=-1) / temperature
        refined_MD = F.normalize(refined_MD, dim=-1) / temperature
    return vocabulary_kl(visual_MD, refined_MD, share_BQ.flatten() / len(share_BQ), embed_VD)


class Basic(Objective):
    """What both terms share: the refined tokens (eq. 4) and how much each counts (eq. 5).

    layers: k, the first layers that refine; None: half of them (the paper). weights: of layer i, i^2 (increasing, the
    paper), 1 (constant) or (k + 1 - i)^2 (decreasing). attention: auto, tokens count as much as the text looks at them
    (the paper), or equal. padding: exclude, tokens of patches that show no picture count nothing and the others' shares
    sum to 1, for a bar of gray has no meaning to refine; include, they count like all others (the paper, which does not
    speak of padding). subtract_mean: take the image's mean refined token off each, since much of a layer's output
    is common to all patches (not in the paper). space: input, a layer's output is taken for an input embedding as it is
    (the paper); lens, for the input embedding that the layer's lens makes of it (not in the paper): an affine map
    fitted once, before the first step, on words of the language model as it is then. refined tokens then lie where
    visual tokens lie, and what is common to all states of a layer is gone. lens_texts: a file of texts, one a line,
    that the lens is fitted on beside lists of words (not in the paper); None: on those of the stage's own data.
    """

    needs = frozenset({"layers"})
    per_patch = True

    def __init__(
        self,
        layers: int | None = None,
        weights: Literal["increasing", "constant", "decreasing"] = "increasing",
        attention: Literal["auto", "equal"] = "auto",
        subtract_mean: bool = False,
        padding: Literal["exclude", "include"] = "exclude",
        space: Literal["input", "lens"] = "input",
        lens_texts: str | None = None,
    ) -> None:
        super().__init__()
        _check_layers(layers)
        one_of("weights", weights, KINDS)
        one_of("attention", attention, ("auto", "equal"))
        one_of("padding", padding, ("exclude", "include"))
        self.layers, self.weights, self.attention, self.subtract_mean = layers, weights, attention, subtract_mean
        one_of("space", space, ("input", "lens"))
        if lens_texts is not None and space != "lens":
            raise CheckError("no lens is fitted on `lens_texts`", at="args.space", fix="space: lens")
        self.padding, self.space, self.lens_texts = padding, space, lens_texts

    def prepare(self, context: Context) -> None:
        _check_layers(self.layers, context.layers)
        layers = self.layers or max(1, context.layers // 2)
        lens = None
        if self.space == "lens":
            if context.lens is None:
                raise CheckError("nobody here can fit a lens", at="args.space", fix="space: input")
            lens = context.lens(layers, self.lens_texts)
        self.look = Look(layer_weights(layers, self.weights), self.attention == "auto", lens)

    def refined(self, step: Step) -> tuple[Tensor, Tensor]:
        """refined_BPD (eq. 4) and share_BP (eq. 5), constants, fp32 or wider."""
        assert self.look is not None, "prepare first"
        refined_BPD, share_BP = wide(step.refined[self.look].detach()), wide(step.shares[self.look].detach())
        real_BP = torch.ones_like(step.seen_BP) if step.real_BP is None else step.real_BP
        counted_BP = step.seen_BP if self.padding == "exclude" else real_BP
        if self.subtract_mean:
            refined_BPD = refined_BPD - _mean(refined_BPD, counted_BP)
        return refined_BPD, _shared(share_BP, counted_BP)


class Direction(Basic):
    """Turn each visual token towards its refined self: the squared distance of unit vectors (eq. 6)."""

    def forward(self, step: Step) -> Tensor:
        """Mean over images of sum_i a_i ||v_i/|v_i| - s_i/|s_i|||^2. Scalar, fp32."""
        return basic_direction_loss(step.visual_BPD, *self.refined(step))


class Distribution(Basic):
    """Give each visual token the vocabulary distribution of its refined self (eq. 7).

    logits: plain, v E^T (the paper); cosine, unit vectors over a temperature, so that only directions speak (not in
    the paper, whose plain logits also drive the tokens' lengths). temperature: of the cosine logits (not in the
    paper).
    """

    collective = True  # ZeRO-3 gathers E from all ranks

    def __init__(
        self,
        layers: int | None = None,
        weights: Literal["increasing", "constant", "decreasing"] = "increasing",
        attention: Literal["auto", "equal"] = "auto",
        subtract_mean: bool = False,
        padding: Literal["exclude", "include"] = "exclude",
        logits: Literal["plain", "cosine"] = "plain",
        temperature: float = 0.07,
        space: Literal["input", "lens"] = "input",
        lens_texts: str | None = None,
    ) -> None:
        super().__init__(layers, weights, attention, subtract_mean, padding, space, lens_texts)
        one_of("logits", logits, ("plain", "cosine"))
        _check_temperature(temperature)
        self.logits, self.temperature = logits, temperature

    def forward(self, step: Step) -> Tensor:
        """Mean over images of sum_i a_i KL(softmax(s_i E^T) || softmax(v_i E^T)). Scalar, fp32."""
        if not len(step.visual_BPD):
            with step.vocabulary():
                return wide(step.visual_BPD).sum()
        refined_BPD, share_BP = self.refined(step)
        with step.vocabulary() as embed_VD:
            return basic_distribution_loss(
                step.visual_BPD, refined_BPD, share_BP, embed_VD, logits=self.logits, temperature=self.temperature
            )


def _check_layers(layers: int | None, depth: int | None = None) -> None:
    if problem := bounds.layers(layers, depth):
        raise CheckError(problem[0], at="args.layers", fix=problem[1])


def layer_weights(layers: int, kind: str) -> tuple[float, ...]:
    """Of layers 1 .. k, summing to 1 (eq. 4: i^2 over the sum of squares)."""
    one_of("weights", kind, KINDS)
    raw = {
        "increasing": [float(i * i) for i in range(1, layers + 1)],
        "constant": [1.0] * layers,
        "decreasing": [float(i * i) for i in range(layers, 0, -1)],
    }[kind]
    return tuple(weight / sum(raw) for weight in raw)


def _mean(refined_BPD: Tensor, counted_BP: Tensor) -> Tensor:
    """mean_B1D of the tokens that count."""
    weight_BP1 = counted_BP.to(refined_BPD.dtype)[..., None]
    return (refined_BPD * weight_BP1).sum(1, keepdim=True) / weight_BP1.sum(1, keepdim=True).clamp(min=1)


def _shared(share_BP: Tensor, counted_BP: Tensor) -> Tensor:
    """share_BP of the tokens that count, each image's sum as before; as it is where all do."""
    own_BP = share_BP * counted_BP
    scale_B1 = share_BP.sum(1, keepdim=True) / own_BP.sum(1, keepdim=True).clamp(min=torch.finfo(own_BP.dtype).tiny)
    return torch.where(counted_BP.all(1, keepdim=True), share_BP, own_BP * scale_B1)


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise CheckError(f"temperature must be above 0, got {temperature:g}", at="args.temperature")


def _looked_at(weight_BHTS: Tensor, text_BT: Tensor) -> Tensor:
    """looked_BS: attention of one layer, summed over heads and the rows of the text."""
    weight_BTS = wide(weight_BHTS).sum(1)
    return (weight_BTS * text_BT.to(weight_BTS.dtype)[..., None]).sum(1)


def _constants(tokens_BQD: Tensor, refined_BQD: Tensor, share_BQ: Tensor | None) -> tuple[Tensor, Tensor]:
    """refined_BQD and share_BQ without gradient, fp32 or wider; all tokens count the same where no share is given."""
    shape = tuple(tokens_BQD.shape)
    if len(shape) != 3 or tuple(refined_BQD.shape) != shape:
        what = f"visual tokens have the shape {shape}, refined ones {tuple(refined_BQD.shape)}"
        raise CheckError(what, at="args.refined_BQD", fix="both images x tokens x width, of the same tokens")
    if share_BQ is None:
        share_BQ = torch.full_like(wide(tokens_BQD[..., 0]), 1 / max(1, shape[1]))
    if tuple(share_BQ.shape) != shape[:2]:
        what = f"visual tokens have the shape {shape}, their shares {tuple(share_BQ.shape)}"
        raise CheckError(what, at="args.share_BQ", fix="images x tokens; None: all tokens of an image count the same")
    return wide(refined_BQD.detach()), wide(share_BQ.detach())
