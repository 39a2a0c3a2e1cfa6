"""Supervision of any vision-language model of transformers: its own forward pass, read where visual tokens enter.

The model runs once, as it always does, so that its attention, LoRA, gradient checkpointing and precision stay its own.
Images may have different numbers of tokens: each has as many places as the one with most, some of them empty.

Letters: B images, R rows, S positions, Q places of an image's tokens, D width of the language model.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmalign.errors import CheckError
from mmalign.integrations import declared, layouts, sft, shown
from mmalign.integrations.declared import Parts
from mmalign.integrations.layouts import Size
from mmalign.integrations.trainer import SupervisedModel
from mmalign.integrations.views import Views, viewed
from mmalign.integrations.whole import WholeVLM
from mmalign.llms import LLM, Places
from mmalign.objectives import Objective, Step
from mmalign.vlm import states
from mmalign.vlm.batch import IGNORED
from mmalign.vlm.labelling import Labeller

LM = "lm"  # the model's own loss
GRIDS = frozenset({"labels", "targets"})  # needs of objectives of single patches


class SupervisedWhole(SupervisedModel):
    """A model that AutoModelForImageTextToText loads, its objectives, called with a batch of its own processor."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        objectives: Mapping[str, Objective],
        weights: Mapping[str, float],
        labeller: Labeller | None,
    ) -> None:
        vlm = WholeVLM(model, processor)
        shells: list[nn.Module] = [vlm, vlm.llm]
        for shell in shells:  # the modules inside keep modes of their own
            shell.training = model.training
        super().__init__(vlm, objectives, weights, labeller, model)
        self.parts = declared.parts(model, processor)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        picture_sizes: Tensor | None = None,
        scores: bool = False,
        **inputs: Any,
    ) -> dict[str, Any]:
        """{"loss": the weighted sum, and every objective's mean under its name}. Scalars; `lm` is the model's own loss.

        A batch of the model's own processor, whatever is in it, and labels as transformers has them: (R, S), -100 where
        nothing is trained. picture_sizes: (B, 2), height and width of each upright picture, by which padding is known
        and left out, and where tiles lie; None: the batch's own `image_sizes`, where it has them; else all tokens count
        as picture, and of a picture that was cut up no tile is labelled. scores: `scores` is among what is returned,
        see `sft.scores`. Raises CheckError for a batch whose tokens are not the processor's, StageError for an image
        with no text behind it, where that text says how much its tokens count.
        """
        batch = {"input_ids": input_ids, **inputs, "use_cache": False}
        batch |= {
            name: own for name, own in (("attention_mask", attention_mask), ("labels", labels)) if own is not None
        }
        mask_RS = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        goal_RS = torch.full_like(input_ids, IGNORED) if labels is None else labels
        trained_RS = goal_RS[:, 1:] != IGNORED
        trained, tokens = int(trained_RS.sum()), declared.counts(self.parts, batch)
        places = placed(self.parts, input_ids, mask_RS, tokens)
        sizes = self._sizes(inputs.get("image_sizes") if picture_sizes is None else picture_sizes, tokens)
        if tokens and any(look.attention for look in self.looks):
            places.check_text_behind(mask_RS, ["the rows of the batch"])
        seen_BQ = self._seen(places, tokens, sizes)
        out, step = self._read_whole(batch, places, seen_BQ, goal_RS)
        on_grids = step
        if self.needs & GRIDS:
            pictures = shown.pictures(self.parts, batch, tokens, places.row_B.tolist(), sizes)
            on_grids = viewed(step, Views(pictures, seen_BQ), self._labels[0], self.encoders)
        # a mean over none is no number; back through all layers it goes all the same, as on ranks that train some
        own = out.loss if trained else out.logits[:, -1:].float().sum() * 0
        terms = {
            name: own if name == LM else objective(on_grids if objective.needs & GRIDS else step)
            for name, objective in self._objectives()
        }
        if self.training:  # a line of the log is about training alone
            units = {"tokens": float(trained), "images": float(len(tokens))}
            self.means.add(terms, {name: units[self._unit(name)] for name in terms})
        loss = sum((self.weights[name] * term for name, term in terms.items()), torch.zeros((), device=own.device))
        if not scores:
            return {"loss": loss, **terms}
        return {"loss": loss, **terms, "scores": sft.scores(out.logits[:, :-1][trained_RS], goal_RS[:, 1:][trained_RS])}

    def _read_whole(
        self, batch: Mapping[str, Any], places: Places, seen_BQ: Tensor, goal_RS: Tensor
    ) -> tuple[Any, Step]:
        """What the model gives, and the pass as objectives see it. goal_RS: the labels of the tokens themselves."""
        llm, whole = self.vlm.llm, cast(Any, self.vlm).whole
        watched = llm.watched(self.looks, places) if self.looks and len(seen_BQ) else nullcontext()
        keeping = keeping_layers(self.parts, llm, self.layers)
        with declared.entering(self.parts) as entry, watched as watch, keeping as kept:
            out = whole(**batch)
        assert entry.embeds_RSD is not None
        step = self._step(entry.embeds_RSD, places, seen_BQ)
        if watch is not None:
            step.refined, step.shares = watch.refined, watch.shares
        if self.layers:
            by_layer = {layer: kept[layer] if layer else entry.embeds_RSD for layer in self.layers}
            step.head, step.nll, step.kl = llm.head, llm.nll, llm.kl
            states.hand(step, llm, by_layer, places)
            if "captions" in self.needs:  # a row is a sample
                row_R1 = torch.arange(len(goal_RS), device=goal_RS.device)[:, None]
                states.caption(step, by_layer, places, goal_RS, row_R1.expand_as(goal_RS), goal_RS != IGNORED)
        return out, step

    def _sizes(self, sizes_B2: Tensor | None, tokens: Sequence[int]) -> list[Size] | None:
        if sizes_B2 is None:
            return None
        if len(sizes_B2) != len(tokens):
            what = f"{len(tokens)} images in a batch, and the sizes of {len(sizes_B2)} pictures"
            raise CheckError(what, at="picture_sizes", fix="height and width of each picture, in their order")
        return [(width, height) for height, width in sizes_B2.tolist()]

    def _seen(self, places: Places, tokens: Sequence[int], sizes: Sequence[Size] | None) -> Tensor:
        """seen_BQ: whether a token is there and shows picture, not padding, where its layout is known."""
        assert places.real_BQ is not None
        seen_BQ = places.real_BQ.clone()
        for image, size in enumerate(sizes or ()):
            for view in layouts.views(self.parts, size, tokens[image]) or ():
                seen_BQ[image, list(view.token_P)] = torch.tensor(view.frame.seen(), device=seen_BQ.device)
        return seen_BQ

    def _step(self, embeds_RSD: Tensor, places: Places, seen_BQ: Tensor) -> Step:
        """One forward pass as objectives see it: each image's tokens, one behind the other."""
        assert places.real_BQ is not None
        seed = int(torch.randint(1 << 31, ()))  # of the global generator: a seeded run draws the same labels
        step = Step(random=torch.Generator(device=embeds_RSD.device).manual_seed(seed))
        step.real_BP, step.seen_BP, step.vocabulary = places.real_BQ, seen_BQ, self.vlm.vocabulary
        if not len(seen_BQ):
            step.visual_BPD = embeds_RSD[:0, :0]
            return step
        visual_BQD = embeds_RSD[places.row_B[:, None], places.column_BQ]
        step.visual_BPD = visual_BQD.masked_fill(~places.real_BQ[..., None], 0)
        return step


@contextmanager
def keeping_layers(parts: Parts, llm: LLM, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """{layer: hidden_RSD} of one forward pass, in its graph: of layers 1 to the last; 0 is what goes in."""
    inner = [layer for layer in layers if 0 < layer < llm.depth]
    kept: dict[int, Tensor] = {}
    with ExitStack() as stack:
        before = stack.enter_context(llm.keeping(inner)) if inner else {}
        last = stack.enter_context(declared.layer_outputs(parts, [llm.depth] if llm.depth in layers else []))
        yield kept
        kept |= before | last


def placed(parts: Parts, ids_RS: Tensor, mask_RS: Tensor, tokens: Sequence[int]) -> Places:
    """Where the tokens of each image stand, and where text is. tokens: Q of each."""
    at_RS = ids_RS == parts.image_id
    rows_N, columns_N = torch.where(at_RS)
    counts_B = torch.tensor(tokens, dtype=torch.long, device=ids_RS.device)
    ends_B = counts_B.cumsum(0)
    slot_Q = torch.arange(max(tokens, default=0), device=ids_RS.device)
    real_BQ = slot_Q < counts_B[:, None]
    index_BQ = torch.minimum((ends_B - counts_B)[:, None] + slot_Q, ends_B[:, None] - 1)
    return Places(rows_N[ends_B - 1], columns_N[index_BQ], (mask_RS > 0) & ~at_RS, real_BQ)
