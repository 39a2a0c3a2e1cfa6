"""Does a recipe fit together? Answered from the cards' facts, before any weight is loaded."""

from collections.abc import Iterator, Sequence
from itertools import combinations

from mmalign.errors import CheckError, MMAlignError, suggest
from mmalign.io import bounds, packaged
from mmalign.plan import checkpoints, facts, gaps, signatures, signs, trackers, unused, whole
from mmalign.plan.cards import Card, Registry
from mmalign.plan.graph import cards_of, named, order, showing
from mmalign.plan.labelling import of_labels, word_list
from mmalign.plan.mistake import mistake, takes
from mmalign.plan.objectives import lens_texts, of_objective
from mmalign.plan.recipe import BESIDE, Contrast, Evaluate, Label, Language, Recipe, Report, Stage, Train, uneven
from mmalign.plan.references import NoFileError, NotThereError, paths, targets


def check(variants: Sequence[Recipe], registry: Registry | None = None, ahead: bool = False) -> list[str]:
    """Raise the first thing that is wrong, then a GapsError for all that is missing; returns notes for a reader.

    ahead: what the data folder lacks is no error, so that a recipe can be planned before its data is fetched, and a
    package that is not installed a note.
    """
    registry = registry or Registry(variants[0].registry)
    told = []
    for problem in (problem for recipe in variants for problem in problems(recipe, registry)):
        if not (isinstance(problem, NoFileError) or (ahead and isinstance(problem, NotThereError))):
            raise problem
        told += [] if isinstance(problem, NoFileError) else [problem.what]
    lacking = [] if ahead else gaps.of(variants, registry)
    if any(gap.blocks and not gap.fetched for gap in lacking):
        raise gaps.GapsError(lacking, gaps.asked(variants))
    told += [note for recipe in variants for note in [*notes(recipe, registry), *signs.undecided(recipe, registry)]]
    return list(dict.fromkeys([*told, *_equal_arms(variants)]))


def _equal_arms(variants: Sequence[Recipe]) -> Iterator[str]:
    """Arms are there to be compared. The usual slip: a mapping meant to replace one, which is laid over it."""
    for one, other in combinations(variants, 2):
        if one.seed == other.seed and (one.model, one.stages) == (other.model, other.stages):
            yield f"the arms {one.arm!r} and {other.arm!r} are the same; null takes a thing away: objectives.sea: null"


def problems(recipe: Recipe, registry: Registry) -> Iterator[MMAlignError]:
    """Everything that is wrong with one variant of a recipe."""
    yield from trackers.absent(recipe.log_to, recipe.where("log_to"))
    try:
        order(recipe)
    except MMAlignError as err:
        yield err
        return
    for name, stage in recipe.stages.items():
        try:
            cards = cards_of(recipe, name, registry)
        except MMAlignError as err:
            yield err
            continue
        yield from of_stage(recipe, name, stage, cards)


def of_stage(recipe: Recipe, name: str, stage: Stage, cards: dict[str, Card]) -> Iterator[MMAlignError]:
    """Everything that is wrong with a stage of those cards."""
    yield from whole.parts(recipe, name, stage)
    yield from _needed(recipe, name, stage)
    yield from targets(recipe, name, cards)
    yield from paths(recipe, name, cards)
    if "vlm" in cards:
        yield from whole.fits(recipe, name, stage, cards)
    yield from (problem for card in cards.values() for problem in facts.contradicted(card))
    yield from _checkpoints(recipe, name, stage, cards)
    yield from protocols(recipe, name, stage, cards)
    if isinstance(stage, Evaluate) and not {"vision", "vlm"} & cards.keys():
        yield from unseen(recipe, name, stage, cards)
    if isinstance(stage, Language) and stage.gate and facts.of(cards["gate"]).get("shows", False):
        what = f"{cards['gate'].name} shows pictures, and this stage trains a language model alone"
        yield mistake(recipe, name, "gate.bench", what, "a benchmark of texts, such as toy-lookup")
    for role, card in cards.items():
        if role.startswith(("bench.", BESIDE)) and "words" in (takes(card) or ()):
            yield from word_list(card.args.get("words"))
    yield from _images(recipe, name, stage, cards)
    yield from of_labels(recipe, name, stage, cards)
    yield from lens_texts(recipe, name, cards)
    yield from _bounded(recipe, name, cards)
    yield from _read_back(recipe, name, stage, cards)
    if isinstance(stage, Train):
        yield from _train(recipe, name, stage, cards)
    if isinstance(stage, Language):
        yield from _language(recipe, name, stage, cards["llm"])
    if isinstance(stage, (Train, Language)) and "llm" in cards:
        yield from _template(recipe, name, cards["llm"], getattr(stage, "template", None))
    if isinstance(stage, (Train, Evaluate)):
        yield from _model(recipe, cards)
    if isinstance(stage, (Train, Language, Contrast)) and stage.optim.name == "muon" and stage.engine.zero:
        yield mistake(recipe, name, "engine.zero", "muon steps on whole matrices", "engine: {zero: 0}")
    if isinstance(stage, (Train, Language, Contrast)) and stage.engine.compile:
        yield from _compiled(recipe, name, stage, cards)
    if isinstance(stage, (Train, Language, Contrast)) and stage.engine.attention != "auto":
        yield from _attending(recipe, name, stage)
    if isinstance(stage, Contrast) and stage.engine.checkpointing is True:
        what = "a stage of kind contrast recomputes nothing"
        yield mistake(recipe, name, "engine.checkpointing", what, "engine: {checkpointing: false}, or a smaller batch")


def _compiled(
    recipe: Recipe, name: str, stage: Train | Language | Contrast, cards: dict[str, Card]
) -> Iterator[MMAlignError]:
    """What torch.compile cannot do."""
    key, off = "engine.compile", "engine: {compile: false}"
    if isinstance(stage, Contrast):
        yield mistake(recipe, name, key, "a stage of kind contrast is not compiled", off)
    if stage.engine.zero == 3:
        what = "ZeRO 3 gathers weights inside a layer, which cannot be compiled"
        yield mistake(recipe, name, key, what, "engine: {zero: 2, compile: true}")
    if bits := cards["llm"].args.get("bits") if "llm" in cards else None:
        yield mistake(recipe, name, key, f"layers held in {bits} bits are not compiled", off)


def _attending(recipe: Recipe, name: str, stage: Train | Language | Contrast) -> Iterator[MMAlignError]:
    """What a kernel of attention cannot do."""
    key, sdpa = "engine.attention", "engine: {attention: sdpa}"
    if isinstance(stage, Contrast):
        what = "a stage of kind contrast has no language model, whose attention it is"
        yield mistake(recipe, name, key, what, "engine: {attention: auto}")
    if stage.engine.attention == "flash" and stage.precision == "fp32":
        yield mistake(recipe, name, key, "flash attention is not for fp32", f"precision: bf16, or {sdpa}")
    if stage.engine.attention == "flash" and getattr(stage, "pack", False):
        what = "flash attention does not keep apart the samples that share a row"
        yield mistake(recipe, name, key, what, f"pack: false, or {sdpa}")


def _images(recipe: Recipe, name: str, stage: Stage, cards: dict[str, Card]) -> Iterator[MMAlignError]:
    """Stages that look at images need some."""
    if not isinstance(stage, (Label, Contrast)):
        return
    if not cards["data"].facts.get("images", True):
        yield mistake(recipe, name, "data", f"{cards['data'].name} has no images", "data with images")
    if "labels" in cards and facts.of(cards["labels"]).get("truth"):
        what = f"{cards['labels'].name} takes the data's own words, which need no store"
        fix = f"labels: {cards['labels'].name} in the training stage, without this one"
        yield mistake(recipe, name, "source", what, fix)


def _needed(recipe: Recipe, name: str, stage: Stage) -> Iterator[MMAlignError]:
    """Parts and edges a stage cannot do without."""
    alone = isinstance(stage, Evaluate) and recipe.model.vision is None and recipe.model.adapter is None
    whole_model = recipe.model.vlm is not None and "vlm" in stage.parts
    for part in () if whole_model else ("llm",) if alone else [part for part in stage.parts if part != "vlm"]:
        if getattr(recipe.model, part) is None:
            what = f"stage {name!r} (kind {stage.kind}) has no {part}"
            yield CheckError(what, at=recipe.where("model"), fix=f"model: {{{part}: NAME}}   (mmalign list)")
    if isinstance(stage, Report) and not stage.reads.scores:
        fix = "reads: {scores: <a stage of kind evaluate>}"
        yield mistake(recipe, name, "reads", "a report needs scores to read", fix)
    if isinstance(stage, Evaluate) and not stage.bench:
        yield mistake(recipe, name, "bench", "no benchmark is named", "bench: [toy-pope]   (mmalign list benchmarks)")


def protocols(recipe: Recipe, name: str, stage: Stage, cards: dict[str, Card]) -> Iterator[MMAlignError]:
    """Does every benchmark know the rules it is to be scored by? One that does not tell knows the official ones."""
    if not isinstance(stage, Evaluate):
        return
    for part in stage.bench:
        known = facts.of(cards[f"bench.{part.card}"]).get("protocols", ["official"])
        if stage.protocol not in known:
            what = f"{part.card} has no protocol {stage.protocol!r}"
            yield mistake(recipe, name, "protocol", what, suggest(stage.protocol, known))


def unseen(recipe: Recipe, name: str, stage: Evaluate, cards: dict[str, Card]) -> Iterator[MMAlignError]:
    """A language model alone is shown no picture."""
    if names := showing(stage, cards):
        model = cards["llm"].name if "llm" in cards else recipe.name
        what = f"{', '.join(names)} show{'s' * (len(names) == 1)} pictures, and {model} is a language model alone"
        yield mistake(recipe, name, "bench", what, "a benchmark of texts, such as mmlu; or a model with an encoder")


def _model(recipe: Recipe, cards: dict[str, Card]) -> Iterator[MMAlignError]:
    """Do vision encoder, adapter and language model fit? Facts a card does not give are not checked."""
    vision, adapter, llm = (cards.get(role) for role in ("vision", "adapter", "llm"))
    if not (vision and adapter and llm):
        return
    at = recipe.where("model.adapter")
    wide, wanted = vision.facts.get("dim"), llm.facts.get("dim")
    if adapter.facts.get("same_width") and wide and wanted and wide != wanted:
        what = f"adapter {adapter.name!r} keeps the width, but {vision.name} is {wide} wide and {llm.name} {wanted}"
        yield CheckError(what, at=at, fix="an adapter that maps widths, such as mlp2x-gelu")
    grid, factor = vision.facts.get("grid"), adapter.args.get(adapter.facts.get("divides", ""))
    if grid and isinstance(factor, int) and (factor < 1 or any(side % factor for side in grid)):
        what = f"adapter {adapter.name!r} joins squares of {factor} x {factor} patches, "
        what += f"and {vision.name} has {grid[0]} x {grid[1]}"
        yield CheckError(what, at=at, fix=f"{adapter.facts['divides']}: a divisor of both, or another encoder")
    come, go = adapter.facts.get("patch_dim", wide), adapter.facts.get("llm_dim", wanted)
    if None not in (wide, wanted) and (come, go) != (wide, wanted):  # one that has weights
        what = f"adapter {adapter.name!r} was trained for {come} to {go}"
        what += f", but {vision.name} is {wide} wide and {llm.name} {wanted}"
        yield CheckError(what, at=at, fix="the parts it was trained with")


def _read_back(recipe: Recipe, name: str, stage: Stage, cards: dict[str, Card]) -> Iterator[MMAlignError]:
    """Weights that a stage trains are read again through the argument `checkpoint` of what has them."""
    trained, key = (stage.trains, "trains") if isinstance(stage, Train) else (stage.gives, "kind")
    for part in set(trained) & {"vision", "llm"} & cards.keys():
        role = max((role for role in cards if role == part or role.startswith(f"{part}.")), key=len)  # the innermost
        fresh = isinstance(stage, Language) and stage.from_ == "config"
        wanted = ("random", "checkpoint") if fresh else ("checkpoint",)
        taken = takes(cards[role])
        for arg in wanted if taken is not None else ():
            if arg not in (taken or ()):
                what = f"{cards[role].name} is trained here, and its class takes no argument `{arg}`"
                yield mistake(recipe, name, key, what, f"an argument `{arg}`: {READ_BACK[arg]}")


READ_BACK = {"checkpoint": "the folder that its `save` wrote", "random": "only the configuration, not the weights"}


def _bounded(recipe: Recipe, name: str, cards: dict[str, Card]) -> Iterator[MMAlignError]:
    """Are the numbers among a part's arguments within the bounds that its class declares?"""
    keys = {role: key for role, _, _, key in named(recipe, name)}
    for role, card in cards.items():
        declared = signatures.attribute(card.target, "bounds")
        for arg, what, fix in bounds.broken(declared, card.args) if isinstance(declared, dict) else ():
            at = recipe.where(f"{keys[role]}.args.{arg}") if role in keys else f"{card.path}  args.{arg}"
            yield CheckError(what, at=at, fix=fix)


def _train(recipe: Recipe, name: str, stage: Train, cards: dict[str, Card]) -> Iterator[MMAlignError]:
    if not stage.trains:
        yield mistake(recipe, name, "trains", "nothing is trained", "trains: [adapter]")
    if not stage.objectives:
        yield mistake(recipe, name, "objectives", "no objective", "objectives: {lm: 1.0}")
    bits = cards["llm"].args.get("bits") if "llm" in cards else None
    if bits and "llm" in stage.trains and not cards["llm"].args.get("lora"):
        what = f"weights held in {bits} bits cannot learn"
        yield mistake(recipe, name, "trains", what, f"llm: {{args: {{bits: {bits}, lora: 16}}}}")
    if bits and stage.engine.zero == 3:
        yield mistake(recipe, name, "engine.zero", f"ZeRO 3 cannot divide weights in {bits} bits", "engine: {zero: 2}")
    if problem := uneven(stage.batch, stage.micro_batch):
        yield mistake(recipe, name, "batch", problem, "micro_batch: a divisor of batch")
    if stage.labels and stage.reads.labels:
        what = "labels come from `labels` and from `reads.labels`"
        yield mistake(recipe, name, "labels", what, "keep one of the two")
    if not cards["data"].facts.get("images", True) and "adapter" in stage.trains:
        what = f"{cards['data'].name} has no images, so the adapter would learn nothing"
        yield mistake(recipe, name, "data", what, "data with images")
    for objective in stage.objectives:
        yield from of_objective(recipe, name, stage, cards, objective)
    yield from _watch(recipe, name, stage, cards)
    if "labels" in cards and facts.of(cards["labels"]).get("truth") and not cards["data"].facts.get("truth", True):
        what = f"{cards['labels'].name} takes the data's own words, and {cards['data'].name} has none"
        yield mistake(recipe, name, "labels", what, "data with per-patch truth, or another label source")


def _watch(recipe: Recipe, name: str, stage: Train, cards: dict[str, Card]) -> Iterator[MMAlignError]:
    """Is there anything to look at?"""
    if stage.watch and not cards["data"].facts.get("images", True):
        what = f"{cards['data'].name} has no images, so there are no visual tokens to watch"
        yield mistake(recipe, name, "watch", what, "no `watch` in this stage, or data with images")
    if not stage.watch_readouts:
        yield mistake(recipe, name, "watch_readouts", "nothing is read", "watch_readouts: [input]")


def _template(recipe: Recipe, name: str, llm: Card, own: str | None) -> Iterator[MMAlignError]:
    """Does the chat template mark what is trained? A missing file of the card is said by `paths`."""
    if wrong := checkpoints.template(llm, own):
        what, fix = wrong
        at = recipe.where(f"stages.{name}.template") if own else f"{llm.path}  args.template"
        if own or not what.endswith("does not exist"):
            yield CheckError(f"stage {name!r}: {what}", at=at, fix=fix)


def _language(recipe: Recipe, name: str, stage: Language, llm: Card) -> Iterator[MMAlignError]:
    """Can the language model start where the stage says, and learn?"""
    if stage.from_ == "config" and llm.args.get("lora"):
        what = "LoRA learns beside trained weights, and these are random"
        yield mistake(recipe, name, "from", what, "from: weights, or a language model without `lora:`")
    if stage.from_ == "weights" and llm.args.get("random"):
        yield mistake(recipe, name, "from", f"{llm.name} is drawn at random (args.random)", "from: config")


def _checkpoints(recipe: Recipe, name: str, stage: Stage, cards: dict[str, Card]) -> Iterator[MMAlignError]:
    """Is what lies here what the cards say, with the weights that the stage starts from?"""
    for role, card in cards.items():
        yield from checkpoints.broken(card)
        if not _elsewhere(recipe, name, role):
            yield from (error for _, error in checkpoints.contradicted(card))
        if _needs_weights(recipe, stage, role, card) and checkpoints.without_weights(card):
            what = f"stage {name!r}: {card.args['checkpoint']}, the checkpoint of {card.name}, has no weights"
            fix = "from: config" if isinstance(stage, Language) else "reads: a stage that trains them, or another card"
            places = {own: recipe.where(key) for own, _, _, key in named(recipe, name)}
            yield CheckError(what, at=places.get(role, f"{card.path}  args.checkpoint"), fix=fix)


def _needs_weights(recipe: Recipe, stage: Stage, role: str, card: Card) -> bool:
    """Whether a stage starts from the weights of a card's own checkpoint."""
    if card.args.get("random") or (isinstance(stage, Language) and stage.from_ == "config"):
        return False
    part = {"vision": "vision", "llms": "llm"}.get(card.family, "")
    return role.startswith("objectives.") or not _given(recipe, stage, part)  # targets are of the card's own weights


def _elsewhere(recipe: Recipe, name: str, role: str) -> bool:
    """Whether the recipe gives a card another checkpoint than its own, which its facts are not of."""
    return any("checkpoint" in part.args for own, _, part, _ in named(recipe, name) if own == role)


def _given(recipe: Recipe, stage: Stage, part: str) -> bool:
    """Whether a stage reads a part's weights from another one."""
    for slot, other in stage.reads.edges():
        source = recipe.stages[other]
        if slot == part or (slot == "weights" and part in getattr(source, "trains", ())):
            return True
        if slot == "weights" and _given(recipe, source, part):
            return True
    return False


def notes(recipe: Recipe, registry: Registry) -> Iterator[str]:
    """What is allowed but should not go unseen."""
    for name, stage in recipe.stages.items():
        cards = cards_of(recipe, name, registry)
        yield from _starts(name, stage, cards)
        if isinstance(stage, Train):
            yield from unused.settings(name, stage, cards)
        yield from _others_facts(recipe, name, cards)
        for card in cards.values():
            if str(card.args.get("checkpoint")).startswith(packaged.PREFIX):
                spec = card.args["checkpoint"]
                yield f"{card.family} {card.name}: its checkpoint is that of an installed package, {spec}"
        encoder = cards.get("labels.encoder")
        own = recipe.model.vision
        if not encoder or not own or (isinstance(stage, Label) and not _labels_used(recipe, name)):
            continue
        vision = registry.card("vision", own.card)
        if encoder.name != vision.name:
            ours, theirs = vision.facts.get("grid"), encoder.facts.get("grid")
            more = f"; its {theirs} grid is resampled to {ours}" if ours and theirs and ours != theirs else ""
            yield f"stage {name!r}: labels come from {encoder.name}, the model sees through {vision.name}{more}"


def _starts(name: str, stage: Stage, cards: dict[str, Card]) -> Iterator[str]:
    """Where a stage that trains a whole tower starts."""
    if isinstance(stage, Language):
        where = "its card's weights" if stage.from_ == "weights" else "random weights"
        yield f"stage {name!r}: {cards['llm'].name} starts from {where} (from: {stage.from_})"
    if isinstance(stage, Contrast):
        yield f"stage {name!r}: {cards['vision'].name} starts from random weights"


def _others_facts(recipe: Recipe, name: str, cards: dict[str, Card]) -> Iterator[str]:
    for role, card in cards.items():
        if _elsewhere(recipe, name, role):
            yield from (f"{error.what}; it counts as the card says" for _, error in checkpoints.contradicted(card))


def _labels_used(recipe: Recipe, name: str) -> bool:
    return any(stage.reads.labels == name for stage in recipe.stages.values())
