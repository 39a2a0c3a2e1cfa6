"""The model: vision encoder, adapter and language model; visual tokens stand among the words, objectives look at them.

Letters: B images, S positions of R rows (samples), P patches, C their width, Q visual tokens, D width of the language
model, N trained tokens.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmalign.adapters import Adapter
from mmalign.errors import CheckError, StageError
from mmalign.labels import LabelSource
from mmalign.llms import LLM, Look, Places
from mmalign.objectives import Context, Objective, Step, Words
from mmalign.vision import Vision

PARTS = ("vision", "adapter", "llm")


@dataclass
class Batch:
    """What one device sees in one pass."""

    ids_RS: Tensor  # token ids; the mark's id where a visual token goes
    mask_RS: Tensor  # n at the positions of a row's nth sample, 0 at padding
    weight_RS: Tensor  # how much predicting the token at a position counts; 0: not trained
    pixels_B3SS: Tensor | None  # None: no image in this pass
    mark: int  # the id that holds an image's place
    words_BPK: Tensor | None = None  # labels from a store, or from the data itself
    scores_BPK: Tensor | None = None
    label_pixels_B3SS: Tensor | None = None  # the same images, prepared for the label source's own encoder
    seed: int = 0  # of this pass's random numbers
    ids: list[str] = field(default_factory=list)  # the samples' ids

    @property
    def images(self) -> int:
        return 0 if self.pixels_B3SS is None else len(self.pixels_B3SS)

    @property
    def units(self) -> dict[str, float]:
        """How much of each unit this pass holds, known before it runs."""
        return {"tokens": float(self.weight_RS[:, 1:].sum()), "images": float(self.images)}

    def to(self, device: torch.device) -> "Batch":
        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, non_blocking=True) for k, v in given.items() if isinstance(v, Tensor)}
        return replace(self, **cast(Any, moved))


class Model(nn.Module):
    """vision, adapter and llm, and the objectives that look at them; forward returns every objective's mean.

    vision and adapter may both be None: a language model alone. labels: makes labels in the pass, where no batch
    brings any. encoder: the label source's own encoder, where it is not the model's.
    """

    def __init__(
        self,
        vision: Vision | None,
        adapter: Adapter | None,
        llm: LLM,
        objectives: Mapping[str, Objective],
        words: Words | None = None,
        labels: LabelSource | None = None,
        encoder: Vision | None = None,
    ) -> None:
        super().__init__()
        self.vision, self.adapter, self.llm = vision, adapter, llm
        self.objectives = nn.ModuleDict(objectives)
        self.needs = frozenset[str]().union(*(o.needs for o in objectives.values()))
        # outside the module: never trained, cast to bf16 or partitioned
        self._words, self._labels, self._encoder = (words,), (labels,), (encoder,)
        self.trained: tuple[str, ...] = PARTS
        self.looks: tuple[Look, ...] = ()  # what the objectives want to see of the LLM's layers

    def freeze_all_but(self, trained: Iterable[str]) -> None:
        """Only these parts, and what the objectives own, learn; the others stay in eval mode."""
        self.trained = tuple(trained)
        if "llm" in self.trained:
            self.llm.prepare_training()
        for name in PARTS:
            if (part := getattr(self, name)) is not None:
                part.requires_grad_(name in self.trained)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Model":
        super().train(mode)
        for name in PARTS:
            if (part := getattr(self, name)) is not None and name not in self.trained:
                part.eval()
        return self

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """({objective: its mean over this pass}, {note: number}); scalars, fp32."""
        visual_BQD, dense_BPJ = self.see(batch)
        step = Step(random=self._random(batch))
        if self.adapter is not None and self.adapter.keeps_grid:
            step.grid = self.adapter.grid
        if visual_BQD is not None:
            step.visual_BPD = visual_BQD if batch.images else visual_BQD[:0]
        if "labels" in self.needs:
            self._label(step, batch, dense_BPJ)
        if self.needs & {"answers", "layers"}:
            self._read(step, batch, visual_BQD)
        terms = {name: self._term(objective, step, batch, visual_BQD) for name, objective in self._objectives()}
        return terms, step.notes

    def _objectives(self) -> Iterable[tuple[str, Objective]]:
        return self.objectives.items()  # type: ignore[return-value]

    def _term(self, objective: Objective, step: Step, batch: Batch, visual_BQD: Tensor | None) -> Tensor:
        # an image-less pass still runs encoder and adapter on a blank one, so that no rank waits for another
        blank = visual_BQD.float().sum() * 0 if visual_BQD is not None and not batch.images else 0
        loss: Tensor = objective(step)
        return loss + blank

    def see(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """visual_BQD and, where labels are made in the pass, dense_BPJ. A pass without images sees a blank one."""
        if self.vision is None or self.adapter is None:
            return None, None
        pixels_B3SS = batch.pixels_B3SS
        if pixels_B3SS is None:
            side = self.vision.image_size
            pixels_B3SS = torch.zeros(1, 3, side, side, device=batch.ids_RS.device)
        (labels,), (encoder,) = self._labels, self._encoder
        shared = labels is not None and labels.needs == "dense" and encoder is None and batch.words_BPK is None
        with nullcontext() if "vision" in self.trained else torch.no_grad():
            seen = self.vision.both(pixels_B3SS) if shared else (self.vision(pixels_B3SS), None)
        patches_BPC, dense_BPJ = seen
        weight = next(self.adapter.parameters(), next(self.llm.parameters()))
        return self.adapter(patches_BPC.to(weight.dtype)), dense_BPJ

    def embed(self, batch: Batch, visual_BQD: Tensor | None) -> Tensor:
        """embeds_RSD: words as the LLM embeds them, visual tokens where the marks stand."""
        at_RS = batch.ids_RS == batch.mark
        embeds_RSD = self.llm.embed(batch.ids_RS.masked_fill(at_RS, 0))
        if visual_BQD is None:
            return embeds_RSD
        if not batch.images:  # ZeRO-3: back through the language model like a rank with images, frozen or not
            return embeds_RSD + (visual_BQD.sum() * 0).to(embeds_RSD.dtype)
        if (places := int(at_RS.sum())) != (tokens := visual_BQD.shape[0] * visual_BQD.shape[1]):
            what = f"{places} places for visual tokens, {tokens} tokens: the adapter's count is not what it declared"
            raise StageError(what, at=", ".join(batch.ids[:3]))
        rows, columns = torch.where(at_RS)
        return embeds_RSD.index_put((rows, columns), visual_BQD.flatten(0, 1).to(embeds_RSD.dtype))

    def prepare(self, distributed: bool = False) -> None:
        """Tell objectives what they may know, and the language model what will be looked at. Before the first step."""
        for _, objective in self._objectives():
            objective.prepare(Context(layers=self.llm.depth, distributed=distributed))
        self.looks = tuple(dict.fromkeys(o.look for _, o in self._objectives() if o.look is not None))
        if self.looks:
            self.llm.prepare_looks(self.looks)

    def _read(self, step: Step, batch: Batch, visual_BQD: Tensor | None) -> None:
        """Hidden states of the trained tokens only: the head never sees another row."""
        places = self.places(batch) if self.looks and batch.images else None
        with self.llm.watched(self.looks, places) if places else nullcontext() as seen:
            hidden_RSD = self.llm(self.embed(batch, visual_BQD), batch.mask_RS)
        if self.looks:
            step.vocabulary = self.vocabulary  # a pass without images takes part in gathering it
        if seen is not None:
            step.refined, step.shares = seen.refined, seen.shares
        rows, columns = torch.where(batch.weight_RS[:, 1:] > 0)
        step.answer_ND = hidden_RSD[rows, columns]
        step.answer_N = batch.ids_RS[rows, columns + 1]
        step.weight_N = batch.weight_RS[rows, columns + 1]
        step.head, step.nll = self.llm.head, self.llm.nll

    def places(self, batch: Batch) -> Places:
        """Where each image's tokens stand, and where text is."""
        at_RS = batch.ids_RS == batch.mark
        rows, columns = (index.view(batch.images, -1) for index in torch.where(at_RS))
        places = Places(rows[:, 0], columns, (batch.mask_RS > 0) & ~at_RS)
        if any(look.attention for look in self.looks):
            places.check_text_behind(batch.mask_RS, batch.ids)
        return places

    @contextmanager
    def vocabulary(self) -> Iterator[Tensor]:
        """embed_VD; under ZeRO-3 gathered for as long as the `with` lasts."""
        embed_VD = self.llm.vocabulary()
        if not hasattr(embed_VD, "ds_id"):
            yield embed_VD
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([embed_VD]):
            yield embed_VD

    def _label(self, step: Step, batch: Batch, dense_BPJ: Tensor | None) -> None:
        (labels,), (encoder,), (words,) = self._labels, self._encoder, self._words
        assert words is not None, "objectives need labels, and nobody gave their words"
        assert self.adapter is not None
        step.words = words
        if batch.words_BPK is not None and batch.scores_BPK is not None:
            words_NK, scores_NK = batch.words_BPK.flatten(0, 1), batch.scores_BPK.flatten(0, 1)
            scores_NK = words.scored(words_NK, scores_NK)
            step.labels = lambda patch_N: (words_NK[patch_N], scores_NK[patch_N])
            return
        if not batch.images:
            none_NK = torch.zeros(0, 1, device=batch.ids_RS.device)
            step.labels = lambda patch_N: (none_NK.long(), none_NK)
            return
        assert labels is not None
        come = self.adapter.grid
        if encoder is not None:
            come = encoder.grid
            assert batch.label_pixels_B3SS is not None, "the label source's encoder has a size and colours of its own"
            with torch.no_grad():
                _, dense_BPJ = encoder.both(batch.label_pixels_B3SS)
        assert dense_BPJ is not None
        under_P = resampled(come, self.adapter.grid).to(dense_BPJ.device)
        dense_NJ = dense_BPJ.detach()[:, under_P].flatten(0, 1)

        def made(patch_N: Tensor) -> tuple[Tensor, Tensor]:
            words_NK, scores_NK = labels.label(dense_NJ[patch_N])
            return words_NK, words.scored(words_NK, scores_NK)

        step.labels = made

    def _random(self, batch: Batch) -> torch.Generator:
        """The pass's own stream, apart from the global one: arms of a study stay paired."""
        return torch.Generator(device=batch.ids_RS.device).manual_seed(batch.seed)


def resampled(come: tuple[int, int], go: tuple[int, int]) -> Tensor:
    """For every patch of the grid `go`, the patch of the grid `come` under its centre. P of them, row by row."""
    rows = ((torch.arange(go[0]) + 0.5) * come[0] / go[0]).long()
    columns = ((torch.arange(go[1]) + 0.5) * come[1] / go[1]).long()
    return (rows[:, None] * come[1] + columns[None, :]).flatten()


def reached(loss: Tensor) -> set[int]:
    """ids of the parameters a loss has a gradient path to, found by walking its graph, without a backward pass."""
    found: set[int] = set()
    seen: set[Any] = set()
    ahead = [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        ahead.extend(inner for inner, _ in node.next_functions)
    return found


def counts(model: Model) -> dict[str, tuple[int, int]]:
    """{part: (parameters, of them trained)}."""
    parts: dict[str, nn.Module | None] = {name: getattr(model, name) for name in PARTS}
    parts["objectives"] = model.objectives if any(True for _ in model.objectives.parameters()) else None
    return {
        name: (sum(p.numel() for p in part.parameters()), sum(p.numel() for p in part.parameters() if p.requires_grad))
        for name, part in parts.items()
        if part is not None
    }


def keep_reached(model: Model, terms: Mapping[str, Tensor]) -> None:
    """Refuse a trained part no objective has a gradient path to; freeze the parameters of a part that none reaches."""
    alive = set().union(*(reached(loss) for loss in terms.values() if loss.requires_grad))
    for name in model.trained:
        part: nn.Module = getattr(model, name)
        if not any(id(p) in alive for p in part.parameters()):
            losses = " + ".join(terms)
            fix = f"take {name!r} out of `trains`, or add an objective that reaches it"
            raise CheckError(f"`trains` lists {name!r}, but {losses} gives it no gradient", at="trains", fix=fix)
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in alive:
            parameter.requires_grad_(False)
