"""A recipe: one model and the stages that train it. Every setting of mmalign stands here once, with its unit.

The comment beside a field, or right above it, says what it means: `mmalign show stages`, the schema for editors and
the reference print it, see meanings.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from omegaconf import MISSING

SILENT = {"result": False}  # a setting that cannot change what a stage writes: not part of the fingerprint
BESIDE = "evaluate."  # begins the roles of cards that cannot either


def key_of(name: str) -> str:
    """A setting's key in YAML: `from_` is `from`, a word that Python keeps for itself."""
    return name.removesuffix("_")


def _above(low: float, unit: str = "") -> dict[str, Any]:
    return {"above": low, "unit": unit}


def _least(low: float, unit: str = "") -> dict[str, Any]:
    """unit: empty of a number that has none, such as a weight."""
    return {"least": low, "unit": unit}


STEPS = "optimizer steps"
TOKENS = "tokens"
SHARE = "of the steps"
Tracker = Literal["tensorboard", "wandb", "trackio", "csv"]
SEED: dict[str, Any] = {"least": 0, "most": 2**32 - 1, "unit": ""}  # what every random generator takes


@dataclass
class Part:
    """A card, and constructor arguments that differ from the card's. In YAML a bare name means the card."""

    card: str = MISSING  # its name   (mmalign list)
    args: dict[str, Any] = field(default_factory=dict)  # arguments of its class, laid over the card's   (mmalign show)


@dataclass
class ModelParts:
    """Three parts, or a whole model of transformers in their place, whose parts are found in it."""

    vision: Part | None = None  # the vision encoder: pixels to patches
    adapter: Part | None = None  # patches to visual tokens
    llm: Part | None = None  # the language model
    vlm: Part | None = None  # a whole model in place of the three


@dataclass
class ObjectiveSettings:
    """One term of the loss. In YAML a bare number means the weight."""

    weight: float = field(default=1.0, metadata=_least(0))  # factor of this term in the sum
    warmup: float = field(default=0.0, metadata=_least(0, SHARE) | {"most": 1})  # fraction over which the weight rises
    args: dict[str, Any] = field(default_factory=dict)  # arguments of its class   (mmalign show objectives NAME)


@dataclass
class LabelSettings:
    """Labels made in the training step, from the encoder pass it runs anyway. In YAML a bare name means the source."""

    source: Part = field(default_factory=Part)  # which words a patch shows   (mmalign list labels)
    keep: int = field(default=10, metadata=_above(0, "words"))  # words kept per patch (n of SEA, section 4.1)
    store: str | None = None  # a finished label store, path or URL, read instead; refused if `source` did not make it


@dataclass
class Optim:
    """How weights step."""

    # adamw; muon: torch.optim.Muon for hidden matrices, AdamW for the rest
    name: Literal["adamw", "muon"] = "adamw"
    lr: float = field(default=MISSING, metadata=_least(0))  # learning rate after the warm-up
    lr_vision: float | None = field(default=None, metadata=_least(0))  # of the vision encoder; None: lr
    lr_adapter: float | None = field(default=None, metadata=_least(0))  # of the adapter; None: lr
    lr_llm: float | None = field(default=None, metadata=_least(0))  # of the language model; None: lr
    lr_muon: float | None = field(default=None, metadata=_least(0))  # of muon's matrices; None: that of their part
    # of the learning rate behind the warm-up: down to 0 along half a cosine, down to 0 along a line, or as it is
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = field(default=0.03, metadata=_least(0, SHARE) | {"most": 1})  # fraction over which the rates rise
    weight_decay: float = field(default=0.0, metadata=_least(0))  # of AdamW and Muon, decoupled from the gradient
    # Adam's decay rates of the mean gradient and of the mean squared gradient
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999], metadata=_least(0) | {"below": 1, "length": 2})
    clip: float = field(default=1.0, metadata=_least(0))  # largest norm of the gradient; 0: no clipping


# How the pictures of a stage become squares: crop, the middle of each; pad, in the middle of a square of the mean
# colour; squash, their sides made equal; None: as the encoder's card says. Stages that read its weights see alike. It
# is an argument of the encoder's card by the time a stage is planned, and counts in the fingerprint there.
Fit = Literal["crop", "pad", "squash"]

# What becomes of a step that is not finite. A stage that is done left out what it says; another word for the steps to
# come does not make it begin again, so that one that stopped goes on from its checkpoint.
OnNan = Literal["stop", "skip"]


@dataclass
class EngineSettings:
    """How a stage is run; none of it changes the result (beyond the last bits of a sum)."""

    # DeepSpeed's ZeRO stage: 1 divides the optimizer's state over the devices, 2 gradients too, 3 parameters too
    zero: Literal[0, 1, 2, 3] = field(default=2, metadata={"unit": ""})
    offload: bool = False  # keep optimizer state (and ZeRO-3's parameters) in CPU memory
    # recompute activations in the backward pass instead of keeping them, of the language model and of an encoder that
    # learns; auto: on GPUs whose memory would not hold them by the estimate of `mmalign plan`, which says how much that
    # is. The stage's log says what was decided
    checkpointing: Literal[True, False, "auto"] = "auto"
    # have torch compile the layers of the language model and of a transformers encoder: some minutes before the first
    # steps, faster ones then. Not with ZeRO 3, nor with weights in 4 or 8 bits
    compile: bool = False
    # by which kernel the language model computes attention, through transformers: sdpa, torch's own; flash, of the
    # package flash-attn, on GPUs and in bf16; eager, in plain steps; auto, as the model does by itself. BASIC's
    # attention rows are computed beside any of them
    attention: Literal["auto", "sdpa", "flash", "eager"] = "auto"
    save_every: int = field(default=500, metadata=_above(0, STEPS))  # between two checkpoints
    # the newest, which stay; where the newest is damaged, the one before it is gone on from
    keep: int = field(default=2, metadata=_least(1, "checkpoints"))
    workers: int = field(default=2, metadata=_least(0, "threads"))  # that read and prepare samples


@dataclass
class Reads:
    """Edges of the graph: slot = the stage that fills it."""

    labels: str | None = None  # the stage of kind label whose store is read
    weights: str | None = None  # the stage of kind train that it begins with
    vision: str | None = None  # the stage of kind contrast whose encoder is used
    llm: str | None = None  # the stage of kind language whose language model is used
    scores: list[str] = field(default_factory=list)  # one or several stages of kind evaluate

    def edges(self) -> list[tuple[str, str]]:
        """(slot, stage) pairs, in the order of the fields."""
        single = [(slot, getattr(self, slot)) for slot in ("labels", "weights", "vision", "llm")]
        return [(slot, stage) for slot, stage in single if stage] + [("scores", stage) for stage in self.scores]


@dataclass
class Stage:
    kind: str = MISSING  # what the stage does   (mmalign list stages)
    reads: Reads = field(default_factory=Reads)  # the stages it builds on, slot by slot

    version: ClassVar[int] = 1  # raise it when the stage's results change
    gives: ClassVar[tuple[str, ...]] = ()  # slots that other stages may read from it
    takes: ClassVar[tuple[str, ...]] = ()  # slots it may read
    seeded: ClassVar[bool] = True  # False: the result does not depend on the recipe's seed
    parts: ClassVar[tuple[str, ...]] = ()  # parts of the model it uses
    alone: ClassVar[bool] = False  # True: one process does it all, whatever the number of devices

    def named(self) -> Iterator[tuple[str, str, Part]]:
        """(role, family, part) of every card the stage names itself."""
        if isinstance(data := getattr(self, "data", None), Part):
            yield "data", "data", data


@dataclass
class Label(Stage):
    """Words for every patch, into a label store (SEA, section 4.1)."""

    source: Part = field(default_factory=Part)  # which words a patch shows   (mmalign list labels)
    data: Part = field(default_factory=Part)  # whose images are labelled   (mmalign list data)
    fit: Fit | None = field(default=None, metadata=SILENT)  # how pictures become squares; None: as the card says
    keep: int = field(default=10, metadata=_above(0, "words"))  # kept per patch
    # share that may be unreadable; more of them end the stage
    max_bad: float = field(default=0.001, metadata=_least(0, "of the images") | {"most": 1} | SILENT)
    shard: int = field(default=4096, metadata=_above(0, "images"))  # per file of the store
    batch: int = field(default=64, metadata=_above(0, "images") | SILENT)  # per encoder pass

    version = 3  # 2: in fp32; 3: rows say where in the picture their patches lie, and padding has no word
    gives = ("labels",)
    takes = ("vision",)
    seeded = False

    def named(self) -> Iterator[tuple[str, str, Part]]:
        yield "labels", "labels", self.source
        yield from super().named()


@dataclass
class Train(Stage):
    """Train the listed parts on the weighted sum of the objectives."""

    data: Part = field(default_factory=Part)  # what it is trained on   (mmalign list data)
    # the parts whose weights learn; the others stay as they are
    trains: list[Literal["vision", "adapter", "llm"]] = field(default=MISSING, metadata={"once": "each part once"})
    # the terms of the loss, by the names of their cards; a number is a weight   (mmalign list objectives)
    objectives: dict[str, ObjectiveSettings] = field(default_factory=dict)
    labels: LabelSettings | None = None  # words made in the step itself; None: no labels, or those of `reads.labels`
    # how pictures become squares: cut, padded or squashed; None: as the encoder's card says
    fit: Fit | None = field(default=None, metadata=SILENT)
    optim: Optim = field(default_factory=Optim)  # learning rates and how weights step
    batch: int = field(default=MISSING, metadata=_above(0, "samples"))  # per optimizer step, over all devices
    # per device and pass; SEA contrasts within one
    micro_batch: int = field(default=8, metadata=_above(0, "samples"))
    epochs: float = field(default=1.0, metadata=_above(0, "passes over the data"))  # how long it is trained
    steps: int | None = field(default=None, metadata=_above(0, STEPS))  # how many; None: as many as the epochs give
    max_length: int = field(default=2048, metadata=_above(0, TOKENS))  # visual ones included; longer samples are cut
    template: str | None = None  # the chat template of this stage's data; None: the language model's
    precision: Literal["bf16", "fp32"] = "bf16"  # of the weights in a pass; the optimizer's copy is fp32
    # share that may be unusable; more of them end the stage
    max_bad: float = field(default=0.001, metadata=_least(0, "of the samples") | {"most": 1} | SILENT)
    # samples of like length together. step: a step's samples are drawn at random, with images or without, and sorted
    # inside it (LLaVA); epoch: a step is of samples of like length, which pads least; both read all rows once and keep
    # their lengths. None: at random
    group_by_length: Literal["step", "epoch"] | None = None
    # what becomes of a step whose loss or gradient is not finite, which moves no weights: stop ends the stage there;
    # skip leaves it out and goes on, up to ten in a row. Its samples are in nonfinite.jsonl of the stage's folder
    on_nan: OnNan = field(default="stop", metadata=SILENT)
    pack: bool = field(default=False, metadata=SILENT)  # samples of a pass share rows, each seeing itself alone
    # how the stage is run, which does not change its result
    engine: EngineSettings = field(default_factory=EngineSettings, metadata=SILENT)
    log_every: int = field(default=10, metadata=_above(0, STEPS) | SILENT)  # between two lines of the log
    # what is looked at beside training, which it does not change: premise, whether the language model's shallow layers
    # turn visual tokens into words, as BASIC presumes. A stage with a BASIC objective is looked at anyway
    watch: list[Literal["premise"]] = field(default_factory=list, metadata=SILENT | {"once": "each once"})
    # between two looks; a look takes at most a tenth of the training between two, else they become rarer. In the toy
    # world one takes as long as 0.8 steps
    watch_every: int = field(default=100, metadata=_above(0, STEPS) | SILENT)
    # how visual tokens are read: input, the nearest input embedding (the papers); same-layer, the nearest state of a
    # word at that layer; lens, the word whose state a linear model of the layer expects nearest. The last two are made
    # before the first step, in as long as it takes to read 16,000 tokens, or each word up to four times
    watch_readouts: list[Literal["input", "same-layer", "lens"]] = field(
        default_factory=lambda: ["input"], metadata=SILENT | {"once": "each once"}
    )
    # benchmarks measured on the model as it is before the first step, every so many steps and at the end, which changes
    # nothing of the training either; each card once, by its headline
    evaluate: list[Part] = field(default_factory=list, metadata=SILENT | {"once": "each once"})
    evaluate_every: int = field(default=500, metadata=_above(0, STEPS) | SILENT)  # between two measurements
    # of each benchmark, at most: the same ones, from all over it
    evaluate_items: int = field(default=300, metadata=_above(0, "questions") | SILENT)

    # 2: with group_by_length, steps of like length; the language-model loss in fp32; 3: labels where the patch lies;
    # 4: an answer's own tokens and its end are trained, with the weight of its flags
    version = 4
    gives = ("weights",)
    takes = ("labels", "weights", "vision", "llm")
    parts = ("vision", "adapter", "llm", "vlm")

    def named(self) -> Iterator[tuple[str, str, Part]]:
        yield from super().named()
        if self.labels:
            yield "labels", "labels", self.labels.source
        for name, objective in self.objectives.items():
            yield f"objectives.{name}", "objectives", Part(name, objective.args)
        for part in self.evaluate:
            yield f"{BESIDE}{part.card}", "benchmarks", part


@dataclass
class Evaluate(Stage):
    """Ask a trained model the questions of each benchmark, store its answers, score them."""

    # the benchmarks   (mmalign list benchmarks)
    bench: list[Part] = field(default=MISSING, metadata={"once": "a stage of its own for each"})
    batch: int = field(default=32, metadata=_above(0, "questions") | SILENT)  # per pass
    precision: Literal["bf16", "fp32", "fp16"] = "bf16"  # of the weights; fp16: for models stored so, as LLaVA-1.5
    protocol: str = "official"  # whose rules score the answers: official, llava, lmms-eval or vlmevalkit

    version = 3  # 2: a text without chat format begins as its tokenizer begins one; 3: words in any of their spellings
    gives = ("scores",)
    takes = ("weights", "vision", "llm")
    seeded = False
    parts = ("vision", "adapter", "llm", "vlm")

    def named(self) -> Iterator[tuple[str, str, Part]]:
        for part in self.bench:
            yield f"bench.{part.card}", "benchmarks", part


@dataclass
class Report(Stage):
    """One table and one self-contained HTML page for everything the scores rest on."""

    version = 3  # 2: the page begins with the verdict; report.csv, report.tex; 3: figures, samples, meanings
    takes = ("scores",)
    seeded = False
    alone = True


@dataclass
class Export(Stage):
    """A folder that plain transformers loads and answers with, where the parts allow it.

    It is asked before it is kept, in a process without mmalign: the ids of conversations, logits, answers alone and in
    a batch. Weights are in the precision of the stage that trained them.
    """

    tolerance: float = field(default=1e-3, metadata=_above(0))  # largest difference of a logit, in fp32

    version = 4  # 2: weights in the precision they were trained in; 3: the model's fit; 4: padding, one begin token
    takes = ("weights", "vision", "llm")
    seeded = False
    parts = ("vision", "adapter", "llm", "vlm")


@dataclass
class Contrast(Stage):
    """Train the vision encoder's CLIP from its configuration, on images and captions (arXiv 2103.00020)."""

    data: Part = field(default_factory=Part)  # images with captions   (mmalign list data)
    optim: Optim = field(default_factory=Optim)  # learning rates and how weights step
    # how pictures become squares: cut, padded or squashed; None: as the encoder's card says
    fit: Fit | None = field(default=None, metadata=SILENT)
    # what stands for an image. mean: patches carry the words (dense labels are good); cls: CLIP's own
    pool: Literal["mean", "cls"] = "mean"
    # a step whose loss or gradient is not finite: as in a stage of kind train
    on_nan: OnNan = field(default="stop", metadata=SILENT)
    batch: int = field(default=MISSING, metadata=_above(0, "images"))  # per step; all contrasted with each other
    steps: int = field(default=MISSING, metadata=_above(0, STEPS))  # how many
    precision: Literal["bf16", "fp32"] = "bf16"  # of the weights in a pass; the optimizer's copy is fp32
    # how the stage is run, which does not change its result
    engine: EngineSettings = field(default_factory=EngineSettings, metadata=SILENT)
    log_every: int = field(default=10, metadata=_above(0, STEPS) | SILENT)  # between two lines of the log

    gives = ("vision",)
    parts = ("vision",)
    alone = True  # every image of a step is contrasted with every other, in one pass


@dataclass
class GateSettings:
    """Go on training until a benchmark's metric is high enough, or the steps are spent (then it is reported)."""

    bench: Part = field(default_factory=Part)  # of texts   (mmalign list benchmarks)
    metric: str = MISSING  # the name of one of its metrics
    at_least: float = field(default=MISSING, metadata={"unit": "of the metric"})  # what ends the training
    every: int = field(default=100, metadata=_above(0, STEPS))  # between two looks


@dataclass
class Language(Stage):
    """Train the language model on text."""

    data: Part = field(default_factory=Part)  # what it is trained on   (mmalign list data)
    # what it begins with. weights: its card's; config: random ones of its configuration
    from_: Literal["weights", "config"] = "weights"
    optim: Optim = field(default_factory=Optim)  # learning rates and how weights step
    prompt_weight: float = field(default=0.0, metadata=_least(0))  # of tokens that are no answer, in the loss
    gate: GateSettings | None = None  # go on until a benchmark is answered well enough; None: train all steps
    # a step whose loss or gradient is not finite: as in a stage of kind train
    on_nan: OnNan = field(default="stop", metadata=SILENT)
    batch: int = field(default=MISSING, metadata=_above(0, "samples"))  # per optimizer step
    steps: int = field(default=MISSING, metadata=_above(0, STEPS))  # how many
    max_length: int = field(default=2048, metadata=_above(0, TOKENS))  # longer samples are cut
    precision: Literal["bf16", "fp32"] = "bf16"  # of the weights in a pass; the optimizer's copy is fp32
    # how the stage is run, which does not change its result
    engine: EngineSettings = field(default_factory=EngineSettings, metadata=SILENT)
    log_every: int = field(default=10, metadata=_above(0, STEPS) | SILENT)  # between two lines of the log

    version = 2  # 2: an answer's own tokens and its end are trained
    gives = ("llm",)
    parts = ("llm",)

    def named(self) -> Iterator[tuple[str, str, Part]]:
        yield from super().named()
        if self.gate:
            yield "gate", "benchmarks", self.gate.bench


def uneven(batch: int, micro_batch: int, devices: int = 1) -> str:
    """What is wrong with a batch that does not give every device as many passes as the others; empty: nothing."""
    if batch % (micro_batch * devices) == 0:
        return ""
    spread = f" x {devices} devices" if devices > 1 else ""
    return f"batch {batch} is no multiple of micro_batch {micro_batch}{spread}"


KINDS: dict[str, type[Stage]] = {
    "label": Label,
    "train": Train,
    "evaluate": Evaluate,
    "report": Report,
    "export": Export,
    "contrast": Contrast,
    "language": Language,
}


@dataclass
class Matrix:
    """Turns one recipe into a study: every arm with every seed; equal stages are shared."""

    arms: dict[str, dict[str, Any]] = field(default_factory=dict)  # of each what it changes, as {dotted key: value}
    # every arm is run with each; empty: the recipe's alone
    seeds: list[int] = field(default_factory=list, metadata=SEED | {"once": "each seed once"})


@dataclass
class RecipeFile:
    """What a recipe's YAML may say."""

    name: str = MISSING  # of the recipe, in plans and reports
    paper: str = ""  # where what it does was published
    seed: int = field(default=42, metadata=SEED)  # of all that is drawn
    model: ModelParts = field(default_factory=ModelParts)  # the parts that stages train and use
    stages: dict[str, Any] = field(default_factory=dict)  # what is done, each under a name of its own, in any order
    matrix: Matrix | None = None  # arms and seeds that make it a study; None: it is one run
    registry: list[str] = field(default_factory=list)  # more folders of cards; ./ counts from the recipe's own
    # trackers that get the numbers of its stages as they come; they change no result
    log_to: list[Tracker] = field(default_factory=list, metadata=SILENT | {"once": "each tracker once"})


@dataclass
class Recipe(RecipeFile):
    """One variant of a recipe, ready to be planned."""

    arm: str = ""  # the arm of the matrix this is; empty without one
    asked: list[str] = field(default_factory=list)  # the words of its command: file or shipped name, key=value
    sources: dict[str, str] = field(default_factory=dict)  # {file: its text}, the most basic first
    where: Callable[[str], str] = str  # dotted key -> file:line  key
