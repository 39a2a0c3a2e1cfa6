"""A model and the objectives that look at it: what the training stage trains.

Letters: B images, S positions of R rows (samples), P patches, Q visual tokens of an image, D width of the language
model, N trained tokens or patches asked for, K labels kept per patch, C width of another encoder's features.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmalign.errors import CheckError, StageError
from mmalign.io.texts import read_texts
from mmalign.labels import LabelSource
from mmalign.llms import Look, Places
from mmalign.objectives import Context, Labels, Objective, Step, Targets, Words
from mmalign.vision import Frame, Vision
from mmalign.vlm import states
from mmalign.vlm.batch import Batch
from mmalign.vlm.lens import Lens, lens_of
from mmalign.vlm.model import PARTS, VLM
from mmalign.vlm.readout import ceilings, readout

log = logging.getLogger(__name__)

STATES = frozenset({"states", "captions"})  # needs that are met by hidden states with a gradient


@dataclass
class PassLabels:
    """Where a pass's labels come from. words: the list they are numbers into, as the language model spells it.

    source: makes them in the pass, where no batch brings any; None: every batch does. encoder: the source's own; None:
    the model's, in the pass that it runs anyway.
    """

    words: Words
    source: LabelSource | None = None
    encoder: Vision | None = None


class Supervised(nn.Module):
    """vlm, and objectives by name; forward returns every objective's mean.

    Of the objectives' needs the model computes what some objective asks for, and no more. `prepare` comes before the
    first pass.
    """

    def __init__(self, vlm: VLM, objectives: Mapping[str, Objective], labels: PassLabels | None = None) -> None:
        super().__init__()
        self.vlm = vlm
        self.objectives = nn.ModuleDict(objectives)
        self.needs = frozenset[str]().union(*(o.needs for o in objectives.values()))
        self._labels = (labels,)  # outside the module: never trained, cast to bf16 or partitioned
        self.looks: tuple[Look, ...] = ()  # what the objectives want to see of the LLM's layers
        self.layers: tuple[int, ...] = ()  # whose hidden states they want, with a gradient
        # frozen ones whose features are their targets; in a tuple, so outside the module as well
        self.encoders = tuple(dict.fromkeys(encoder for o in objectives.values() for encoder in o.encoders))

    def freeze_all_but(self, trained: Iterable[str]) -> None:
        """Only these parts of the model, and what the objectives own, learn; the others stay in eval mode."""
        self.vlm.freeze_all_but(trained)

    def prepare(self, distributed: bool = False, texts: Callable[[], Sequence[str]] = list) -> None:
        """Tell objectives what they may know, and the language model what will be looked at. Before the first pass.

        texts: what a lens is fitted on beside lists of words, where some objective asks for one and names no file.
        """

        @cache
        def lens(layers: int, place: str | None = None) -> Lens:
            return self._lens(range(1, layers + 1), read_texts(place) if place else texts(), distributed)

        llm = self.vlm.llm
        parts: list[nn.Module] = [part for part in (self.vlm.adapter, llm) if part is not None]
        every = (p for part in parts for p in part.parameters() if p.is_floating_point())  # in 4 bits none is
        weight: Tensor = next(every, torch.zeros(()))
        for name, objective in self._objectives():
            if objective.needs & STATES and not llm.keeps_states:
                what = f"{name} needs hidden states with a gradient, which {type(llm).__name__} does not hand out"
                fix = "a model of a vision encoder, an adapter and a CausalLM; or basic-direction, sea"
                raise CheckError(what, at=f"objectives.{name}", fix=fix)
            own = weight.device, weight.dtype
            objective.prepare(Context(llm.depth, llm.dim, *own, distributed, lens, self.vlm.vocabulary))
        for encoder in self.encoders:
            encoder.requires_grad_(False).eval().to(weight.device, weight.dtype)
        self.looks = tuple(dict.fromkeys(o.look for _, o in self._objectives() if o.look is not None))
        self.layers = tuple(sorted({layer for _, o in self._objectives() for layer in o.state_layers}))
        if self.looks:
            self.vlm.llm.prepare_looks(self.looks)

    def _lens(self, layers: Sequence[int], texts: Sequence[str], distributed: bool) -> Lens:
        """The same on all ranks, and only the maps back; what can be read through it is logged."""
        lens = Lens(dict(lens_of(self.vlm, layers, texts).maps))
        if distributed:
            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            for layer in layers:
                lens.maps[layer] = lens.maps[layer].to(device)
                dist.broadcast(lens.maps[layer], 0)
        read = ceilings(self.vlm, replace(readout(self.vlm, "input", layers), seen=lens))
        shares = ", ".join(f"{share:.0%} at layer {layer}" for layer, share in read.items())
        log.info("of perfect visual tokens are read right through the lens: %s", shares)
        return lens

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """({objective: its mean over this pass}, {note: number}); scalars, fp32."""
        visual_BQD, dense_BPJ = self.see(batch)
        step = Step(random=self._random(batch))
        if self.vlm.grid is not None:
            step.grid = self.vlm.grid
        if visual_BQD is not None:
            step.visual_BPD = visual_BQD if batch.images else visual_BQD[:0]
        if self.vlm.grid is not None:
            step.seen_BP = self.seen(batch)
        if "labels" in self.needs:
            self._label(step, batch, dense_BPJ)
        if self.encoders:
            step.targets = self._targets(batch)
        if self.needs & {"answers", "layers", *STATES}:
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
        if self.vlm.vision is None:
            return None, None
        pixels_B3SS = batch.pixels_B3SS
        if pixels_B3SS is None:
            side = self.vlm.vision.image_size
            pixels_B3SS = torch.zeros(1, 3, side, side, device=batch.ids_RS.device)
        (labels,) = self._labels
        dense = labels is not None and labels.source is not None and labels.source.needs == "dense"
        shared = dense and labels is not None and labels.encoder is None and batch.words_BPK is None
        return self.vlm.encode(pixels_B3SS, joint=shared)

    def embed(self, batch: Batch, visual_BQD: Tensor | None) -> Tensor:
        """embeds_RSD: words as the LLM embeds them, visual tokens where the marks stand."""
        if visual_BQD is not None and not batch.images:
            # ZeRO-3: back through the language model like a rank with images, frozen or not
            embeds_RSD = self.vlm.embed(batch.ids_RS)
            return embeds_RSD + (visual_BQD.sum() * 0).to(embeds_RSD.dtype)
        try:
            return self.vlm.embed(batch.ids_RS, visual_BQD)
        except StageError as err:
            raise StageError(err.what, at=", ".join(batch.ids[:3]), fix=err.fix) from err

    def places(self, batch: Batch) -> Places:
        """Where each image's tokens stand, and where text is; StageError for an image with no text behind it, where
        that text says how much its tokens count."""
        places = self.vlm.places(batch.ids_RS, batch.mask_RS, batch.images)
        if any(look.attention for look in self.looks):
            places.check_text_behind(batch.mask_RS, batch.ids)
        return places

    def _read(self, step: Step, batch: Batch, visual_BQD: Tensor | None) -> None:
        """Hidden states of the trained tokens only: the head never sees another row."""
        llm = self.vlm.llm
        places = self.places(batch) if (self.looks or self.layers) and batch.images else None
        embeds_RSD = self.embed(batch, visual_BQD)
        watched = llm.watched(self.looks, places) if places and self.looks else nullcontext()
        inner = [layer for layer in self.layers if 0 < layer < llm.depth]
        keeping = llm.keeping(inner) if inner else nullcontext(dict[int, Tensor]())
        with watched as seen, keeping as kept:
            hidden_RSD = llm(embeds_RSD, batch.mask_RS)
        if self.looks or self.layers:
            step.vocabulary = self.vlm.vocabulary  # a pass without images takes part in gathering it
        if seen is not None:
            step.refined, step.shares = seen.refined, seen.shares
        if self.layers:
            ends = {0: embeds_RSD, llm.depth: hidden_RSD}
            by_layer = {layer: kept[layer] if layer in kept else ends[layer] for layer in self.layers}
            self._keep(step, batch, by_layer, places or states.no_places(self.vlm.tokens, embeds_RSD.device))
        rows, columns = torch.where(batch.weight_RS[:, 1:] > 0)
        step.answer_ND = hidden_RSD[rows, columns]
        step.answer_N = batch.ids_RS[rows, columns + 1]
        step.weight_N = batch.weight_RS[rows, columns + 1]
        step.head, step.nll, step.kl = llm.head, llm.nll, llm.kl

    def _keep(self, step: Step, batch: Batch, by_layer: Mapping[int, Tensor], places: Places) -> None:
        states.hand(step, self.vlm.llm, by_layer, places)
        if "captions" in self.needs:
            row_R1 = torch.arange(len(batch.mask_RS), device=batch.mask_RS.device)[:, None]
            sample_RS = batch.mask_RS + row_R1 * (batch.mask_RS.amax() + 1)  # samples that share a row have own numbers
            states.caption(step, by_layer, places, batch.ids_RS, sample_RS, batch.weight_RS > 0)

    def _label(self, step: Step, batch: Batch, dense_BPJ: Tensor | None) -> None:
        (labels,) = self._labels
        assert labels is not None, "objectives need labels, and nobody gave them"
        assert self.vlm.adapter is not None
        words = step.words = labels.words
        if batch.words_BPK is not None and batch.scores_BPK is not None:
            words_NK, scores_NK = batch.words_BPK.flatten(0, 1), batch.scores_BPK.flatten(0, 1)
            scores_NK = words.scored(words_NK, scores_NK)
            step.labels = lambda patch_N: (words_NK[patch_N], scores_NK[patch_N])
            return
        if not batch.images:
            none_NK = torch.zeros(0, 1, device=batch.ids_RS.device)
            step.labels = lambda patch_N: (none_NK.long(), none_NK)
            return
        source, encoder = labels.source, labels.encoder or self.vlm.vision
        assert source is not None, "no batch brings labels, and no source makes them"
        assert encoder is not None
        frames = batch.frames or self._whole(self.vlm.adapter.grid, batch)
        sources = batch.label_frames
        if labels.encoder is None or sources is None:  # the same square of each picture
            sources = [replace(frame, grid=encoder.grid) for frame in frames]
        if labels.encoder is not None:
            assert batch.label_pixels_B3SS is not None, "the label source's encoder has a size and colours of its own"
            with torch.no_grad():
                _, dense_BPJ = labels.encoder.both(batch.label_pixels_B3SS)
        assert dense_BPJ is not None
        pairs = enumerate(zip(sources, frames, strict=True))
        index = [image * encoder.patches + p if p >= 0 else -1 for image, (s, t) in pairs for p in s.onto(t)]
        step.labels = labels_under(source, words, dense_BPJ, index)

    @torch.no_grad()
    def _targets(self, batch: Batch) -> dict[Vision, Targets]:
        """What the encoders of targets make of the pass's pictures, each visual token's from the patch under it."""
        assert self.vlm.grid is not None, "targets are of patches, and the adapter does not keep them"
        device, frames = batch.ids_RS.device, batch.frames or self._whole(self.vlm.grid, batch)
        targets = {}
        for number, encoder in enumerate(self.encoders):
            if not batch.images:
                none_BP = torch.zeros(0, self.vlm.tokens, dtype=torch.bool, device=device)
                targets[encoder] = Targets(torch.zeros(0, self.vlm.tokens, encoder.dim, device=device), none_BP)
                continue
            patches_BPC = encoder.to(device)(batch.target_pixels[number])
            own = batch.target_frames[number] if batch.target_frames else []
            own = own or [replace(frame, grid=encoder.grid) for frame in frames]  # the same square of each picture
            under = [source.onto(frame) for source, frame in zip(own, frames, strict=True)]
            targets[encoder] = targets_under(patches_BPC, torch.tensor(under, device=device))
        return targets

    def seen(self, batch: Batch) -> Tensor:
        """seen_BQ: whether each visual token's patch shows picture, not padding."""
        assert self.vlm.grid is not None
        frames = batch.frames or self._whole(self.vlm.grid, batch)
        seen = [frame.seen() for frame in frames]
        return torch.tensor(seen, dtype=torch.bool, device=batch.ids_RS.device).view(len(frames), self.vlm.tokens)

    def _whole(self, grid: tuple[int, int], batch: Batch) -> list[Frame]:
        """Frames of pictures of which nobody says how they became squares: their patches show all of them."""
        return [Frame("squash", (1, 1), grid)] * batch.images

    def _random(self, batch: Batch) -> torch.Generator:
        """The pass's own stream, apart from the global one: arms of a study stay paired."""
        return torch.Generator(device=batch.ids_RS.device).manual_seed(batch.seed)


def labels_under(source: LabelSource, words: Words, dense_BPJ: Tensor, index: Sequence[int]) -> Labels:
    """The words of patches by those of the source's encoder. index: of each, b * P + p of the one under it, or -1."""
    under_N, dense_NJ = torch.tensor(index, device=dense_BPJ.device), dense_BPJ.detach().flatten(0, 1)

    def label(patch_N: Tensor) -> tuple[Tensor, Tensor]:
        words_NK, scores_NK = source.label(dense_NJ[under_N[patch_N].clamp(min=0)])
        return words_NK, words.scored(words_NK, scores_NK) * (under_N[patch_N] >= 0)[:, None]

    return label


def targets_under(patches_BPC: Tensor, under_BP: Tensor) -> Targets:
    """Of an encoder's patches, however many, those under the visual tokens. under_BP: the number of each, or -1."""
    known_BP = under_BP >= 0
    index_BPC = under_BP.clamp(min=0)[..., None].expand(-1, -1, patches_BPC.shape[-1])
    features_BPC = patches_BPC.gather(1, index_BPC)
    return Targets(features_BPC.masked_fill(~known_BP[..., None], 0), known_BP)


def part_of(name: str) -> str:
    """The part a parameter of a Supervised belongs to: vision, adapter, llm or objectives."""
    return name.removeprefix("vlm.").split(".")[0]


def reached(loss: Tensor) -> set[int]:
    """ids of the parameters a loss has a gradient path to, found by walking its graph, without a backward pass."""
    parameters: set[int] = set()
    visited: set[Any] = set()
    ahead = [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            parameters.add(id(variable))
        ahead.extend(inner for inner, _ in node.next_functions)
    return parameters


def counts(model: Supervised) -> dict[str, tuple[int, int]]:
    """{part: (parameters, of them trained)}."""
    vlm = model.vlm
    there = [name for name in PARTS if getattr(vlm, name) is not None or vlm.parameters_of(name)]
    parts = {name: vlm.parameters_of(name) for name in there}
    if own := list(model.objectives.parameters()):
        parts["objectives"] = own
    return {
        name: (sum(p.numel() for p in part), sum(p.numel() for p in part if p.requires_grad))
        for name, part in parts.items()
    }


def keep_reached(model: Supervised, terms: Mapping[str, Tensor]) -> None:
    """Refuse a trained part no objective has a gradient path to; freeze the parameters of a part that none reaches."""
    alive = set().union(*(reached(loss) for loss in terms.values() if loss.requires_grad))
    for name in model.vlm.trained:
        if not any(id(p) in alive for p in model.vlm.parameters_of(name)):
            losses = " + ".join(terms)
            fix = f"take {name!r} out of `trains`, or add an objective that reaches it"
            raise CheckError(f"`trains` lists {name!r}, but {losses} gives it no gradient", at="trains", fix=fix)
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in alive:
            parameter.requires_grad_(False)
