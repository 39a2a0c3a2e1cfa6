"""Models that are there already: where a name on the command line finds one, and a stage that reads it again."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmalign.errors import RunError, suggest
from mmalign.io import files, packaged, sums
from mmalign.pipeline import original, task
from mmalign.pipeline.task import Task
from mmalign.plan import building, checkpoints, graph, signatures, trust
from mmalign.plan.cards import Card, Registry
from mmalign.plan.check import of_stage, protocols, unseen
from mmalign.plan.checkpoints import has_weights
from mmalign.plan.exported import cards as exported_cards
from mmalign.plan.graph import Node
from mmalign.plan.recipe import Evaluate, Export, Language, ModelParts, Part, Reads, Recipe, Stage, Train
from mmalign.plan.references import paths, targets

HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FIX = "a folder runs/train-..., an exported folder, or a hub id such as llava-hf/llava-1.5-7b-hf"
MERGE = "merge_and_unload() of the model in peft, save_pretrained of that and of its processor"
OWN_CODE = "one of transformers' own classes, often called ...-hf: code that comes with a checkpoint is not run"
SEES = "a model with an encoder: a folder runs/train-..., an exported folder, a LLaVA model"
CAUSAL = re.compile(r"\w+(ForCausalLM|LMHeadModel)")  # classes of language models, in a config.json
KEPT = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", sums.NAME)  # of a repository on the hub
LOAD, VLLM = trust.OPENERS  # what opens such a checkpoint
WHOLE = "model"  # the role of a checkpoint that stands for vision, adapter and llm together


def models(runs: Path) -> Iterator[tuple[float, Path]]:
    """(when finished, folder) of every finished training stage."""
    for place in runs.glob("train-*/stage.json"):
        if "." not in place.parent.name:  # those that --force set aside end in .old-1, .old-2, ...
            yield place.stat().st_mtime, place.parent


def newest(runs: Path) -> Path:
    """The model trained last; a RunError when there is none."""
    last = max(models(runs), default=None)
    if last is None:
        raise RunError(f"no trained model under {runs}", fix="mmalign run quickstart, or name a checkpoint")
    return last[1]


def find(spec: str) -> Path | str:
    """Where a checkpoint lies: the folder of a training stage, an exported one, or one of a language model alone; a hub
    id and the name of a language model's card come back as they are.

    spec: one of these, the name of a whole model's card, the folder of an export stage, or a folder of runs, which
    means the newest model in it. Raises RunError for anything else; nothing heavy is loaded and nothing is fetched.
    """
    place = Path(spec)
    if not files.exists(place):
        llms, vlms = ([] if "/" in spec else Registry().names(family) for family in ("llms", "vlms"))
        if spec in vlms:
            return find(str(Registry().card("vlms", spec).args["checkpoint"]))
        if spec in llms or (HUB.fullmatch(spec) and not place.parent.exists()):
            return spec
        beside = [str(p) for p in place.parent.glob("*") if p.is_dir()] if place.parent.is_dir() else []
        near = difflib.get_close_matches(spec, [*llms, *vlms], n=1) or beside
        raise RunError(f"no checkpoint {spec}", at=spec, fix=suggest(spec, near) if near else FIX)
    if (place / "stage.yaml").exists():
        return _of_stage(place.resolve())
    if exported(place):
        return place.resolve()
    if place.is_dir() and any(models(place)):
        return newest(place).resolve()
    raise RunError(f"{spec} holds no model", at=spec, fix=FIX)


def fetched(place: Path | str) -> Path:
    """What `find` found as a folder: a hub id is fetched, as huggingface_hub keeps it, where anything is missing.

    Raises RunError for what cannot be fetched, or holds no model.
    """
    if isinstance(place, Path):
        return place
    folder = _fetch(place, KEPT)
    if _is_original(folder) and original.is_pickled(folder):
        folder = _fetch(place, (*KEPT, *original.PICKLED))
    if not exported(folder):
        raise RunError(f"{place} holds no model", at=place, fix=FIX)
    return folder


def _fetch(place: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download  # here, because nothing else on this side needs it

    try:
        return Path(snapshot_download(place, allow_patterns=list(patterns)))
    except (OSError, ValueError) as err:
        what = f"cannot fetch {place}: {str(err).splitlines()[0]}"
        raise RunError(what, at=place, fix="check the name, the network, and HF_TOKEN for a gated model") from err


def _of_stage(place: Path) -> Path:
    """A training or language stage itself, or the folder an export stage wrote."""
    if not (place / "stage.json").exists():
        fix = "a folder runs/train-... with a stage.json in it"
        raise RunError(f"{place} is no finished training stage", at=str(place), fix=fix)
    stored = task.load(place)
    if isinstance(stored.stage, Export):
        return place / str(task.done(place)["exported"])
    if not isinstance(stored.stage, (Train, Language)):
        what = f"{place} is a stage of kind {stored.stage.kind}, not a model"
        raise RunError(what, at=str(place), fix="a folder runs/train-... with a stage.json in it")
    return place


def exported(place: Path) -> bool:
    """Whether a folder is an exported model, ours, LLaVA's or another of transformers, or a language model; a RunError
    for another kind."""
    if (place / "mmalign.json").exists():
        return True
    if _is_original(place):
        original.check(place, _config(place / "config.json"))
        return True
    if (place / original.ADAPTER).exists():  # transformers would load what it names as its base, from elsewhere
        what = f"{place} holds an adapter of peft, such as LoRA, not a whole model"
        raise RunError(what, at=str(place / original.ADAPTER), fix=MERGE)
    if not (place / "config.json").exists():
        return False
    config = _config(place / "config.json")
    if (kind := config.get("model_type")) != "llava" and not alone(place) and not whole(place):
        what = (
            f"{place} is a checkpoint of kind {kind!r}, neither a model of images and text nor a language model alone"
        )
        raise RunError(what, at=str(place / "config.json"), fix=OWN_CODE if "auto_map" in config else FIX)
    return True


def whole(place: Path) -> bool:
    """Whether a folder is a vision-language model of transformers that is not LLaVA: one with a `vision_config`, whose
    class answers in text. Raises RunError for such a checkpoint without weights."""
    if (place / "mmalign.json").exists() or not (place / "config.json").exists():
        return False
    config = _config(place / "config.json")
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    seeing = isinstance(config.get("vision_config"), dict) and isinstance(name, str)
    if config.get("model_type") == "llava" or original.is_original(config) or not seeing:
        return False
    if not str(name).endswith(("ForConditionalGeneration", "ForImageTextToText")):
        return False
    if not has_weights(place):
        raise RunError(f"{place} is a model without weights", at=str(place), fix="the whole checkpoint")
    if not any(place.glob("*.safetensors*")):
        fix = "from_pretrained and save_pretrained in transformers make *.safetensors of them"
        raise RunError(f"{place} has its weights in pickled files, which are not opened", at=str(place), fix=fix)
    return True


def alone(place: Path | str) -> bool:
    """Whether what `find` found is a language model without an encoder: a card's name, a stage that trains one, or a
    checkpoint of its own.

    What a hub id stands for is known once it is fetched. Raises RunError for such a checkpoint without weights.
    """
    if isinstance(place, str):
        return "/" not in place
    if (place / "stage.json").exists():
        return isinstance(task.load(place).stage, Language)
    if (place / "mmalign.json").exists() or not (place / "config.json").exists():
        return False
    config = _config(place / "config.json")
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if original.is_original(config) or not isinstance(name, str) or not CAUSAL.fullmatch(name):
        return False
    if not has_weights(place):
        raise RunError(f"{place} is a language model without weights", at=str(place), fix="the whole checkpoint")
    return True


def seeing(place: Path | str, why: str, fix: str = SEES) -> None:
    """A RunError where what `find` found has no encoder. why: what it is not good for then."""
    if alone(place):
        raise RunError(f"{place} is a language model alone: {why}", at=str(place), fix=fix)


def _is_original(place: Path) -> bool:
    """Whether a folder is of LLaVA's own code."""
    return (place / "config.json").exists() and original.is_original(_config(place / "config.json"))


def evaluation(
    place: Path | str,
    bench: Sequence[Part],
    registry: Registry,
    runs: Path = Path("runs"),
    protocol: str = "official",
    vllm: bool = False,
) -> Node:
    """An evaluation of what `find` found, in the precision it was trained or is stored in; a hub id is fetched.

    vllm: answered inside vLLM; a RunError for what plain transformers cannot load.
    """
    stage = Evaluate(kind="evaluate", bench=list(bench), protocol=protocol)
    _asked("", 0, stage, registry)  # what is wrong with a benchmark is said before anything is fetched
    place = place if alone(place) else fetched(place)
    if vllm:
        seeing(place, "vLLM is asked exported models", "leave out --vllm")
    if isinstance(place, str):
        return _of_card(place, stage, registry, runs)
    stage.precision = _precision(place) or stage.precision
    if not vllm:
        return again(place, stage, registry, runs)
    if _is_original(place):
        raise RunError(f"{place} is no model that vLLM loads", at=str(place), fix="leave out --vllm")
    if not (place / "config.json").exists():
        raise RunError(f"{place} is no model that vLLM loads", at=str(place), fix=f"mmalign export {place} FOLDER")
    stage.precision = "bf16"
    return again(place, stage, registry, runs, VLLM)


def _of_card(name: str, stage: Evaluate, registry: Registry, runs: Path) -> Node:
    """An evaluation of a card's language model alone: the one that a recipe's stage is which reads nothing trained."""
    card = registry.card("llms", name)
    place = checkpoints.folder(card)
    packed = str(card.args.get("checkpoint")).startswith(packaged.PREFIX)  # whose weights are dequantised
    stage.precision = "fp32" if packed else (place and _precision(place)) or stage.precision
    hashes = files.Hashes(runs / ".hashes.json")
    asked, recipe = _asked(name, 42, stage, registry, ModelParts(llm=Part(name)))
    new = graph.node(recipe, VERBS[stage.kind], asked, [], runs, hashes)
    hashes.save()
    return new


def export(place: Path | str, registry: Registry) -> Node:
    """An export of a training stage. Raises RunError for what is exported already, and a language model alone."""
    seeing(place, "there is nothing to export")
    if isinstance(place, str) or not (place / "stage.json").exists():
        raise RunError(f"{place} is exported already", at=str(place), fix="a folder runs/train-...")
    return again(place, Export(kind="export"), registry)


def again(place: Path, stage: Stage, registry: Registry, runs: Path = Path("runs"), load: str = LOAD) -> Node:
    """A stage that reads a model which is there already: beside a training stage, of anything else under `runs`."""
    if (place / "stage.json").exists():
        return _of_parent(task.load(place.resolve()), stage, registry)  # its name is looked at, and `.` has none
    if (place / "mmalign.json").exists():
        exported_cards(place, registry)  # what it may not name is said here, before a worker opens it
    hashes = files.Hashes(runs / ".hashes.json")
    asked, recipe = _asked(str(place), 42, stage, registry)
    _shown(place, stage, asked, recipe)
    whole = Card("", load, {"spec": str(place)}, name=str(place), family="checkpoints")
    content = {WHOLE: {"target": load, "content": _content(place, hashes)}}
    new = graph.node(recipe, VERBS[stage.kind], {WHOLE: whole} | asked, [], runs, hashes, identities=content)
    hashes.save()
    return new


def _shown(place: Path, stage: Stage, asked: dict[str, Card], recipe: Recipe) -> None:
    """Refuse to show pictures to a language model alone."""
    if isinstance(stage, Evaluate) and alone(place):
        for problem in unseen(recipe, VERBS[stage.kind], stage, asked):
            raise problem


def _of_parent(stored: Task, stage: Stage, registry: Registry) -> Node:
    stage.reads = Reads(weights=stored.name)
    hashes = files.Hashes(stored.folder.parent / ".hashes.json")
    asked, recipe = _asked(stored.recipe, stored.seed, stage, registry)
    _shown(stored.folder, stage, asked, recipe)
    own = parts(stored, registry)
    parent = Node(stored.name, stored.stage, recipe, stored.cards, stored.what, stored.folder, [])
    runs = stored.folder.parent
    new = graph.node(recipe, VERBS[stage.kind], own | asked, [("weights", parent)], runs, hashes)
    new.reads += [(slot, _folder(path)) for slot, path in stored.reads if slot in ("vision", "llm")]  # as `parent` says
    hashes.save()
    return new


def parts(stored: Task, registry: Registry) -> dict[str, Card]:
    """The cards of a trained model; a CardError for a class that the registry does not know, see plan/trust.py."""
    own = {
        role: card for role, card in stored.cards.items() if role.split(".")[0] in ("vision", "adapter", "llm", "vlm")
    }
    return {role: building.own(card, registry) for role, card in own.items()}


def _asked(
    name: str, seed: int, stage: Stage, registry: Registry, model: ModelParts | None = None
) -> tuple[dict[str, Card], Recipe]:
    """The cards the stage itself names, checked, in a recipe of one stage. model: with those of it, checked as well."""
    verb = VERBS[stage.kind]
    own = model or ModelParts()
    recipe = Recipe(name=name, seed=seed, model=own, stages={verb: stage}, where=lambda _: "command line")
    asked = graph.cards_of(recipe, verb, registry)
    about_stage = (*targets(recipe, verb, asked), *paths(recipe, verb, asked), *protocols(recipe, verb, stage, asked))
    for problem in of_stage(recipe, verb, stage, asked) if model else about_stage:
        raise problem
    return asked, recipe


VERBS = {"evaluate": "eval", "export": "export"}  # stages made here are called as the verbs that make them


def _folder(place: Path) -> Node:
    stored = task.load(place)
    return Node(stored.name, stored.stage, Recipe(name=stored.recipe), stored.cards, stored.what, place, [])


def _content(place: Path, hashes: files.Hashes) -> dict[str, str | None]:
    """What is in an exported folder, and in those outside it that one of LLaVA's own code needs."""
    content = {str(p.relative_to(place)): hashes.of(str(p)) for p in _all_files(place)}
    for role, other in (original.outside(place) if _is_original(place) else {}).items():
        content |= {f"{role}: {p.relative_to(other)}": hashes.of(str(p)) for p in _all_files(other)}
    return content


def _all_files(place: Path) -> list[Path]:
    return [p for p in sorted(place.rglob("*")) if p.is_file()]


def _precision(place: Path) -> Any:
    """The precision a model was trained or is stored in; None where only its weights would tell."""
    if (place / "stage.json").exists():
        return getattr(task.load(place).stage, "precision", None)
    own = next((p for p in (place / "config.json", place / "llm" / "config.json") if p.exists()), None)
    config = _config(own) if own else {}
    stored = config.get("dtype") or config.get("torch_dtype")  # as transformers called it before 5
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(str(stored))


def _config(place: Path) -> dict[str, Any]:
    """A checkpoint's config.json; empty where that is something else."""
    config = files.read_json(place)
    return config if isinstance(config, dict) else {}


def benches(names: Sequence[str], data: Path | None, registry: Registry) -> list[Part]:
    """Benchmarks by name; `data`, where it is given, goes to those that read a folder; a RunError where none does."""
    parts = []
    for name in names:
        card = registry.card("benchmarks", name)
        reads = "data" in (signatures.takes(card.target) or ()) and "/" in str(card.args.get("data", "/"))
        parts.append(Part(name, {"data": str(data.absolute())} if data and reads else {}))
    if data and not any(part.args for part in parts):
        what = f"{', '.join(names)} {'read' if len(names) > 1 else 'reads'} no folder, and --data names one"
        raise RunError(what, at=str(data), fix="leave --data out, or name a benchmark that has files: pope")
    return parts
