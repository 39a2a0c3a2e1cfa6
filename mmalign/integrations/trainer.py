"""Supervision of visual tokens in somebody else's loop: forward(**batch) gives the loss, and every term by name.

    supervised = mmalign.supervise(model, processor, {"sea": 1.0, "basic-direction": 1.0}, labels="siglip-words")
    Trainer(model=supervised, ..., callbacks=[supervised.log_terms()]).train()

Letters: B images, R rows, S positions, and pixels of a side.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback

from mmalign.errors import CheckError
from mmalign.integrations import sft
from mmalign.integrations.transformers_vlm import is_llava, wrap
from mmalign.integrations.whole import WholeVLM
from mmalign.objectives import Objective, Step
from mmalign.plan import building, facts
from mmalign.plan.cards import Card, Registry, below
from mmalign.plan.objectives import unmet
from mmalign.vision import Frame, Vision
from mmalign.vlm.batch import IGNORED, Batch
from mmalign.vlm.labelling import Labeller
from mmalign.vlm.model import VLM
from mmalign.vlm.pictures import pictures
from mmalign.vlm.supervised import PassLabels, Supervised

LABELLED = 'supervise(..., labels="siglip-words")'
# what trainers ask of a model beside its forward pass: answered by the user's own
OF_THE_MODEL = frozenset({
    "config", "generation_config", "add_model_tags", "get_input_embeddings", "get_output_embeddings",
    "activation_checkpointing_enable", "activation_checkpointing_disable", "gradient_checkpointing_enable",
    "gradient_checkpointing_disable", "enable_input_require_grads", "_no_split_modules",
})  # fmt: skip


@dataclass
class Means:
    """Means of the terms since they were last asked for, over their units, all passes and ranks."""

    sums: dict[str, Tensor] = field(default_factory=dict)  # of each term, times its units in the pass; and the units

    def add(self, terms: Mapping[str, Tensor], units: Mapping[str, float]) -> None:
        for name, term in terms.items():
            pair = torch.stack([term.detach().float() * units[name], torch.tensor(units[name], device=term.device)])
            self.sums[name] = self.sums.get(name, torch.zeros_like(pair)) + pair

    def take(self) -> dict[str, float]:
        names = sorted(self.sums)
        if not names:
            return {}
        sums = torch.stack([self.sums[name] for name in names])
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        self.sums.clear()
        return {name: float(total / units.clamp(min=1e-9)) for name, (total, units) in zip(names, sums, strict=True)}


class SupervisedModel(Supervised):
    """Supervised, called as transformers calls its models.

    weights: of each objective; the loss is the weighted sum of their means over the pass. labeller: makes the labels of
    a pass from its own pictures; None: no objective needs labels. model: the user's own; None: `vlm` is.
    """

    accepts_loss_kwargs = False  # a Trainer divides the loss by the passes of a step: it is a mean over each

    def __init__(
        self, vlm: VLM, objectives: Mapping[str, Objective], weights: Mapping[str, float], labeller: Labeller | None,
        model: Any = None,
    ) -> None:  # fmt: skip
        labels = None
        if labeller is not None:
            labels = PassLabels(vlm.word_embeddings(labeller.source.words), labeller.source, labeller.encoder)
        super().__init__(vlm, objectives, labels)
        self._model = (model,)  # outside the module tree: its modules are in it already
        self.weights, self.means = dict(weights), Means()
        self._scored: dict[str, Tensor] | None = None
        hooks: Any = self
        hooks.register_state_dict_post_hook(_without_tied)
        hooks.register_load_state_dict_pre_hook(_with_tied)
        self.prepare(distributed=dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)

    def __getattr__(self, name: str) -> Any:
        (model,) = self.__dict__.get("_model", (None,))
        if name == "base_model_prefix":  # peft asks for it
            raise sft.LoraAround
        return getattr(model, name) if name in OF_THE_MODEL and model is not None else super().__getattr__(name)

    def __call__(self, *args: Any, fused_lm_head: bool = False, **inputs: Any) -> Any:
        """What `forward` returns; to TRL, which asks for its own head's output, see sft.py."""
        if not fused_lm_head:
            return super().__call__(*args, **inputs)
        return sft.fused(super().__call__(*args, scores=True, **inputs))

    def base_model(self, *args: Any, **inputs: Any) -> None:
        """What TRL's head goes through where it is not called by `__call__`."""
        raise sft.LoraAround

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        picture_sizes: Tensor | None = None,
        use_cache: bool = False,
        scores: bool = False,
    ) -> dict[str, Any]:
        """{"loss": the weighted sum, and every objective's mean under its name}. Scalars, fp32.

        input_ids, attention_mask, labels: (R, S); the image mark's id stands once for every visual token, labels are
        -100 where nothing is trained and else the ids themselves, as transformers shifts them. pixel_values: (B, 3, S,
        S), the pictures in the order of their marks. picture_sizes: (B, 2), height and width of each upright
        picture, by which padding is known and left out; None: all of `pixel_values` counts as picture. A plain tensor
        batch of the model's own processor has all of it but these. use_cache: ignored. scores: `scores` is among what
        is returned, see `sft.scores`.
        """
        batch = self.batch(input_ids, attention_mask, pixel_values, labels, picture_sizes)
        self._scored = {} if scores else None
        terms, _ = super().forward(batch)
        units = batch.units
        if self.training:  # a line of the log is about training alone
            self.means.add(terms, {name: units[self._unit(name)] for name in terms})
        loss = sum((self.weights[name] * term for name, term in terms.items()), torch.zeros((), device=self.vlm.device))
        return {"loss": loss, **terms, **({"scores": self._scored} if scores else {})}

    def _read(self, step: Step, batch: Batch, visual_BQD: Tensor | None) -> None:
        super()._read(step, batch, visual_BQD)
        if self._scored is not None:
            with torch.no_grad():
                self._scored = sft.scores(step.head(step.answer_ND), step.answer_N)

    def batch(
        self, ids_RS: Tensor, mask_RS: Tensor | None, pixels_B3SS: Tensor | None, label_RS: Tensor | None,
        sizes_B2: Tensor | None = None,
    ) -> Batch:  # fmt: skip
        trained_RS = torch.zeros_like(ids_RS, dtype=torch.bool) if label_RS is None else label_RS != IGNORED
        if label_RS is not None and bool((label_RS[trained_RS] != ids_RS[trained_RS]).any()):
            what = "labels are other tokens than input_ids where they are trained"
            raise CheckError(
                what, at="labels", fix="input_ids, with -100 where nothing is trained; transformers shifts them"
            )
        batch = Batch(
            ids_RS=ids_RS,
            mask_RS=torch.ones_like(ids_RS) if mask_RS is None else mask_RS.long(),
            weight_RS=trained_RS.float(),
            pixels_B3SS=pixels_B3SS,
            frames=self._frames(sizes_B2),
            seed=int(torch.randint(1 << 31, ())),  # of the global generator: a seeded run draws the same labels
        )
        (labels,) = self._labels
        labeller = labels.encoder if labels else None
        if pixels_B3SS is None or self.vlm.vision is None or not (labeller or self.encoders):
            return batch
        shown = pictures(self.vlm.vision, pixels_B3SS)  # labels of what the model is shown, not of the file

        def pixels(encoder: Vision) -> Tensor:
            return torch.stack([encoder.pixels(picture) for picture in shown]).to(ids_RS.device)

        label_pixels = pixels(labeller) if labeller else None
        return replace(batch, label_pixels_B3SS=label_pixels, target_pixels=[pixels(own) for own in self.encoders])

    def _frames(self, sizes_B2: Tensor | None) -> list[Frame] | None:
        if sizes_B2 is None or self.vlm.grid is None:
            return None
        return [self.vlm.frame((width, height)) for height, width in sizes_B2.tolist()]

    def _unit(self, name: str) -> str:
        objective: Any = self.objectives[name]
        return str(objective.unit)

    def log_terms(self) -> "LogTerms":
        """A callback for transformers' Trainer: every term beside the loss, in each line that it logs."""
        return LogTerms(self.means)


def _tied(model: nn.Module) -> dict[str, str]:
    """{another name of a parameter: its first one}, such as of a head that is the embeddings."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in named if first.setdefault(id(p), name) != name}


def _without_tied(model: nn.Module, state: dict[str, Any], prefix: str, *more: Any) -> None:
    """A tied parameter stands once in what is saved: the Trainer writes safetensors, which refuse it twice."""
    for name in _tied(model):
        state.pop(prefix + name, None)


def _with_tied(model: nn.Module, state: dict[str, Any], prefix: str, *more: Any) -> None:
    for name, first in _tied(model).items():
        if prefix + first in state:
            state.setdefault(prefix + name, state[prefix + first])


class LogTerms(TrainerCallback):  # type: ignore[misc]
    """Adds the terms' means since the last line to what a Trainer logs."""

    def __init__(self, means: Means) -> None:
        self.means = means

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        sft.check(args)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **more: Any) -> None:
        if logs is not None and "loss" in logs:
            terms = self.means.take()
            logs.update(terms)
            if state.log_history:
                state.log_history[-1].update(terms)


def supervise(
    model: Any,
    processor: Any = None,
    objectives: Mapping[str, float | Mapping[str, Any]] | None = None,
    labels: "str | Labeller | None" = None,
    top_k: int = 10,
) -> SupervisedModel:
    """A model whose visual tokens are supervised: forward(**batch) gives the loss, and every term by name.

    model: a VLM (mmalign.load), or a model that AutoModelForImageTextToText loads and its processor, LoRA of peft
    around it or not; forward takes that processor's batch and labels. Its modules are shared, so what trains here
    trains there; which of its parameters learn, and its modes, are left as they are. For BASIC its language model gets
    sdpa attention whose weights can be seen. objectives: {card: weight}, or {card: {weight: ..., other arguments}}
    (`mmalign list objectives`); `lm`, the language-model loss, is among them with weight 1 unless it is named; those
    that need labels are for models whose visual tokens are known to be patches. labels: a label source (`mmalign list
    labels`), or a Labeller, for objectives that need one; labels are made in the pass, of the pictures as the model is
    shown them. top_k: words kept a patch, where `labels` is a name.

    What a Trainer saves and resumes from is the whole of it; for a checkpoint of your model save that itself.

    Raises CardError for a name that is no card, CheckError for an objective that the model or the labels do not fit.
    """
    if isinstance(model, WholeVLM):
        model, processor = model.whole, model.processor
        return _any_model(model, processor, objectives or {}, labels, top_k)
    if not isinstance(model, VLM) and not is_llava(model):
        return _any_model(model, processor, objectives or {}, labels, top_k)
    vlm = model if isinstance(model, VLM) else wrap(model, processor)
    adapter, grid = type(vlm.adapter).__name__, vlm.grid is not None
    for name in () if grid else _of_targets(objectives or {}):  # before their encoders are read
        for what, fix in unmet(name, {"targets"}, True, True, grid, adapter):
            raise CheckError(what, at=f"objectives.{name}", fix=fix)
    weights, parts = _objectives(objectives or {})
    for name, part in parts.items():
        for what, fix in unmet(name, part.needs, part.per_patch, labels is not None, grid, adapter):
            unlabelled = "labels" in part.needs and labels is None
            raise CheckError(what, at=f"objectives.{name}", fix=LABELLED if unlabelled else fix)
    return SupervisedModel(vlm, parts, weights, _labeller(labels, top_k), None if vlm is model else model)


def _labeller(labels: "str | Labeller | None", top_k: int) -> Labeller | None:
    return Labeller(labels, top_k) if isinstance(labels, str) else labels


def _of_targets(settings: Mapping[str, float | Mapping[str, Any]]) -> list[str]:
    """Those objectives that another encoder's features are handed to; none is built."""
    registry = Registry()
    return [name for name in settings if "targets" in facts.of(registry.card("objectives", name)).get("needs", ())]


def _objectives(settings: Mapping[str, float | Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, Objective]]:
    """Weights and objectives by name; `lm` is among them."""
    registry, weights, named = Registry(), dict[str, float](), dict[str, Card]()
    for name, setting in {"lm": 1.0, **settings}.items():
        args = {"weight": setting} if isinstance(setting, (int, float)) else dict(setting)
        weights[name] = float(args.pop("weight", 1.0))
        card = registry.card("objectives", name)
        named[name] = replace(card, args={**card.args, **args})
    inner = {role: own for name, card in named.items() for role, own in below(name, registry.inside(card)).items()}
    return weights, building.build_all(named, inner, registry)


def _any_model(
    model: Any,
    processor: Any,
    objectives: Mapping[str, float | Mapping[str, Any]],
    labels: "str | Labeller | None",
    top_k: int,
) -> SupervisedModel:
    """Of any family that transformers declares."""
    from mmalign.integrations import declared, shown, supervising  # they import this module

    own = declared.parts(model, processor)
    known, family = shown.known(own), model.config.model_type

    def of_patches(name: str) -> CheckError:
        what = f"{name} supervises single patches, and where those of a {family} model lie is not known"
        return CheckError(what, at=f"objectives.{name}", fix="basic-direction or basic-distribution")

    for name in () if known else _of_targets(objectives):  # before their encoders are read
        raise of_patches(name)
    weights, parts = _objectives(objectives)
    for name, part in parts.items():
        if "answers" in part.needs and name != supervising.LM:
            what = f"{name} looks at the answers, and a {family} model keeps them to itself"
            raise CheckError(what, at=f"objectives.{name}", fix="lm, the model's own loss")
        if "labels" in part.needs and labels is None:
            raise CheckError(f"{name} needs labels", at=f"objectives.{name}", fix=LABELLED)
        if part.needs & supervising.GRIDS and not known:
            raise of_patches(name)
    labelled = any("labels" in part.needs for part in parts.values())
    labeller = _labeller(labels, top_k) if labelled else None
    return supervising.SupervisedWhole(model, processor, parts, weights, labeller)
