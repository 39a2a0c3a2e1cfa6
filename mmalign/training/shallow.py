"""What the shallow layers make of visual tokens, read as words in one or several ways: the shares of BASIC's premise.

Letters: B images, Q visual tokens of an image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmalign.benchmarks import ReadoutKind
from mmalign.llms import Look
from mmalign.vlm.batch import Batch
from mmalign.vlm.model import VLM
from mmalign.vlm.readout import Readout, readout
from mmalign.vlm.supervised import Supervised
from mmalign.vlm.vocabulary import among_tokens

Shares = dict[str, float]  # by `layer N` and `refined`


def readouts(
    vlm: VLM, kinds: Sequence[ReadoutKind], layers: int, texts: Callable[[], Sequence[str]] = list
) -> dict[ReadoutKind, Readout]:
    """How the first layers are read. Before the first step, and before ZeRO-3 divides the weights: lenses and the
    states of words are those of the language model as it is then, and their ceilings say how far they still fit.

    texts: what a lens is fitted on, too. What is chosen from among all tokens is left out, for it is made anew at every
    look: tokens may learn.
    """
    every = range(layers + 1)
    reads = {kind: readout(vlm, kind, every, texts=texts() if kind == "lens" else ()) for kind in kinds}
    return {
        kind: replace(read, near={n: near for n, near in read.near.items() if near is not read.near[0]})
        for kind, read in reads.items()
    }


def nearest(
    model: Supervised, batch: Batch, visual_BQD: Tensor, looks: Sequence[Look], reads: Mapping[ReadoutKind, Readout]
) -> dict[ReadoutKind, dict[str, Tensor]]:
    """By each readout {`layer N` or `refined`: token_BQ}: what is nearest to visual tokens, in place of the batch's.

    `refined` is what the first look adds up; by the lens, what the lens makes of these layers. By same-layer there is
    none, for states of several layers have no space to be added up in.
    """
    vlm = model.vlm
    with vlm.llm.watched(looks, vlm.places(batch.ids_RS, batch.mask_RS, batch.images)) as seen:
        seen.kept = []
        vlm.llm(model.embed(batch, visual_BQD), batch.mask_RS)
    states = dict(enumerate([visual_BQD, *seen.kept]))
    with vlm.vocabulary() as embed_VD:
        tokens = among_tokens(vlm.llm, embed_VD)
    tokens_of: dict[ReadoutKind, dict[str, Tensor]] = {}
    for kind, read in reads.items():
        whole = replace(read, near={**dict.fromkeys(states, tokens), **read.near})
        own = {f"layer {n}": whole(n, state_BQD)[1][..., 0] for n, state_BQD in states.items()}
        if kind == "input":
            own["refined"] = tokens(seen.refined[looks[0]])[1][..., 0]
        elif kind == "lens":
            back = looks[0].lens or read.back  # that of the objective, where it has one
            parts = [weight * back(n, states[n]) for n, weight in enumerate(looks[0].weights, 1)]
            own["refined"] = tokens(torch.stack(parts).sum(0))[1][..., 0]
        tokens_of[kind] = own
    return tokens_of


def shares(tokens: Mapping[str, Tensor], share: Callable[[Tensor], float], weights: Sequence[float]) -> Shares:
    """{name: share of its tokens}; where there is no `refined`, it is the mean of layers 1 .. k by their weights."""
    each = {name: share(token_BQ) for name, token_BQ in tokens.items()}
    mean = sum(weight * each[f"layer {n}"] for n, weight in enumerate(weights, 1))
    return {**each, "refined": each.get("refined", mean)}
