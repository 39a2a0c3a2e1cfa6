"""What a user gets wrong before anything runs: exit code 2, what / at / try with the value in it, nothing touched."""

import fcntl
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmalign.pipeline import task
from mmalign.plan import graph
from mmalign.plan import read as compose
from tests.conftest import TINY, Said

CARD = "summary: mine\ntarget: mmalign.adapters.mlp.MLP\nfacts: {keeps_grid: true}\n"


@dataclass
class Mistake:
    """One change to the tiny recipe, or words behind it, and what the command has to say."""

    name: str
    what: str
    fix: str
    old: str = ""  # this text of the recipe
    new: str = ""  # is replaced by this; the error is to point at its line
    words: tuple[str, ...] = ()  # or these stand behind the recipe
    at: str | None = None  # None: the line of `new`; else a part of the place
    line: int = 0  # lines below the first one of `new`


def shelf(here: Path, family: str, name: str, text: str) -> Path:
    place = here / "shelf" / family / f"{name}.yaml"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    return place


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(place): place.read_bytes() for place in folder.rglob("*") if place.is_file()}


def assert_mistake(said: Said, what: str, at: str, fix: str) -> None:
    assert said.code == 2, said.err
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[0].startswith("error: ")
    assert what in lines[0]
    assert "Traceback" not in said.err
    if at:
        assert re.match(r"  at   \S", lines[1]), said.err
        assert at in lines[1]
    assert lines[-1].startswith("  try  "), said.err
    assert fix in lines[-1]


SIMPLE = [
    # misspelt keys, at every depth
    Mistake("top-level key", "no setting 'sed' here", "did you mean 'seed'?", "seed: 3", "sed: 3"),
    Mistake("model key", "no setting 'visoin' here", "'vision'", "model: {vision", "model: {visoin"),
    Mistake("stage key", "no setting 'bach' here", "'batch'", "    batch: 8", "    bach: 8"),
    Mistake("optim key", "no setting 'lrr' here", "'lr'", "optim: {lr: 1e-3}", "optim: {lrr: 1e-3}"),
    Mistake("engine key", "no setting 'sero' here", "'zero'", "engine: {zero: 0", "engine: {sero: 0"),
    Mistake("reads key", "no setting 'weight' here", "'weights'", "reads: {weights: align}",
            "reads: {weight: align}"),
    Mistake("objective key", "no setting 'wieght' here", "'weight'", "lm: 1.0, sea", "lm: {wieght: 1.0}, sea"),
    Mistake("part key", "no setting 'arg' here", "'args'", "{card: toy-captions, args: {size: 48}}\n    trains",
            "{card: toy-captions, arg: {size: 48}}\n    trains"),
    Mistake("argument of a card", "data 'toy-chat' takes no argument 'sise'", "did you mean 'size'?",
            "{card: toy-chat, args: {size: 48}}", "{card: toy-chat, args: {sise: 48}}"),
    Mistake("argument of an objective", "objectives 'sea' takes no argument 'windw'", "did you mean 'window'?",
            "sea: 1.0", "sea: {args: {windw: 3}}"),
    Mistake("argument the stage sets", "labels 'toy-words': 'keep' is set by the stage", "take it out",
            "source: toy-words", "source: {card: toy-words, args: {keep: 3}}"),
    Mistake("gone argument", "data 'sizeless' needs the argument 'size'",
            "{card: sizeless, args: {size: ...}}",
            words=("registry=[./shelf]", "stages.align.data=sizeless"), at="stages.align.data"),
    # wrong types and values
    Mistake("a word for a number", "optim.lr must be a number, got 'fast'", "lr: 1e-3", "lr: 1e-3}", "lr: fast}"),
    Mistake("a fraction for a whole number", "batch must be a whole number, got 8.5", "batch: 8", "batch: 8",
            "batch: 8.5"),
    Mistake("true for a number", "batch must be a whole number, got True", "batch: 8", "    batch: 8",
            "    batch: true"),
    Mistake("a list for a mapping", "stages.align.optim must be a mapping, got [1]", "keys: name, lr",
            "optim: {lr: 1e-3}",
            "optim: [1]"),
    Mistake("a mapping for a word", "name must be a word, got {'a': 1}", "one value, without brackets", "name: tiny",
            "name: {a: 1}"),
    Mistake("a number for a stage", "stage 'score' must be a mapping, got 3", "{kind: train, ...}",
            "score: {kind: evaluate, reads: {weights: tune}, bench: [toy-perplexity], precision: fp32}", "score: 3"),
    Mistake("stages that are a list", "`stages` must be a mapping", "{align: {kind: train, ...}}",
            words=("stages=[1]",),
            at="command line  stages"),
    Mistake("an unknown choice", "precision must be one of bf16, fp32, got 'fp16'", "did you mean", "precision: fp32",
            "precision: fp16"),
    Mistake("an unknown number of a choice", "engine.zero must be one of 0, 1, 2, 3, got 4", "zero: 2", "zero: 0",
            "zero: 4"),
    Mistake("an unknown part to train", "trains.0 must be one of vision, adapter, llm, got 'adaptor'", "'adapter'",
            "trains: [adapter]", "trains: [adaptor]"),
    Mistake("negative learning rate", "optim.lr must be at least 0, got -0.001", "lr: 1e-3", "lr: 1e-3}",
            "lr: -1e-3}"),
    Mistake("NaN", "optim.lr must be finite, got nan", "lr: 1e-3", "lr: 1e-3}", "lr: .nan}"),
    Mistake("NaN as a word", "optim.lr must be finite, got nan", "lr: 1e-3", "lr: 1e-3}", "lr: nan}"),
    Mistake("infinity", "optim.clip must be finite, got inf", "clip: 1.0", "lr: 1e-3}", "lr: 1e-3, clip: .inf}"),
    Mistake("warm-up above 1", "optim.warmup must be at most 1, got 3.0", "warmup: 0.03", "lr: 1e-3}",
            "lr: 1e-3, warmup: 3}"),
    Mistake("one beta", "optim.betas must have 2 numbers, got [0.9]", "betas: [0.9, 0.999]", "lr: 1e-3}",
            "lr: 1e-3, betas: 0.9}"),
    Mistake("a beta of 1", "optim.betas must be below 1", "betas: [0.9, 0.999]", "lr: 1e-3}",
            "lr: 1e-3, betas: [0.9, 1]}"),
    Mistake("no steps", "steps must be above 0, got 0", "steps: 8", "    steps: 6", "    steps: 0"),
    Mistake("negative seed", "seed must be at least 0, got -1", "seed: 42", "seed: 3", "seed: -1"),
    Mistake("negative weight", "weight must be at least 0, got -1.0", "weight: 1.0", "lm: 1.0, sea", "lm: -1, sea"),
    Mistake("batch and micro_batch", "batch 8 is no multiple of micro_batch 3", "a divisor of batch", "    batch: 8",
            "    batch: 8", words=("stages.align.micro_batch=3",)),
    # missing
    Mistake("no learning rate", "stages.align lacks 'lr'", "lr: ...", "optim: {lr: 1e-3}", "optim: {clip: 1}"),
    Mistake("no optim", "stages.align lacks 'optim'", "optim: ...", "    optim: {lr: 1e-3}\n", "",
            at=":6  stages.align.optim"),
    Mistake("no data", "stages.align lacks 'data'", "data: ...", words=("stages.align.data=~",),
            at="stages.align.data"),
    Mistake("no batch", "stages.align lacks 'batch'", "batch: ...", words=("stages.align.batch=~",),
            at="stages.align.batch"),
    Mistake("no name", "the recipe lacks 'name'", "name: ...", "name: tiny\n", "", at="x.yaml:1  name"),
    Mistake("no kind", "stage 'align' has no kind", "kind: label | train", "  align:\n    kind: train", "  align:"),
    Mistake("no stages", "a recipe needs stages", "stages: {", words=("stages=~",), at="x.yaml:1"),
    Mistake("no adapter", "stage 'align' (kind train) has no adapter", "model: {adapter: NAME}", "adapter: linear, ",
            "",
            at="x.yaml:3  model"),
    Mistake("nothing trained", "nothing is trained", "trains: [adapter]", "trains: [adapter]", "trains: []"),
    Mistake("no objective", "no objective", "{lm: 1.0}", "objectives: {lm: 1.0, sea: 1.0}", "objectives: {}"),
    Mistake("no benchmark", "no benchmark is named", "[toy-pope]", "bench: [toy-perplexity]", "bench: []"),
    Mistake("no scores", "a report needs scores", "scores: <a stage of kind evaluate>", ", reads: {scores: score}",
            "",
            at="stages.report.reads"),
    # unknown names
    Mistake("unknown vision card", "no vision card named 'toy-clp'", "did you mean 'toy-clip'?", "toy-clip",
            "toy-clp"),
    Mistake("unknown adapter", "no adapters card named 'linar'", "did you mean 'linear'?", "linear", "linar"),
    Mistake("unknown llm", "no llms card named 'toy-lama'", "did you mean 'toy-llama'?", "toy-llama", "toy-lama"),
    Mistake("unknown data", "no data card named 'toy-chats'", "did you mean 'toy-chat'?", "toy-chat", "toy-chats"),
    Mistake("unknown label source", "no labels card named 'toy-word'", "'toy-words'", "toy-words", "toy-word"),
    Mistake("unknown objective", "no objectives card named 'see'", "did you mean 'sea'?", "sea: 1.0", "see: 1.0"),
    Mistake("unknown benchmark", "no benchmarks card named 'toy-pop'", "'toy-pope'", "bench: [toy-perplexity]",
            "bench:\n    [toy-perplexity,\n     toy-pop]", line=2),
    Mistake("unknown kind", "no stage kind 'trian'", "did you mean 'train'?", "    kind: train", "    kind: trian"),
    Mistake("benchmark named twice", "toy-pope is named twice", "a stage of its own", "bench: [toy-perplexity]",
            "bench: [toy-pope, toy-pope]"),
    # the graph
    Mistake("circle", "in a circle: align -> tune -> align", "take one of the `reads` out", "reads: {weights: align}",
            "reads: {weights: align}", words=("stages.align.reads.weights=tune",)),
    Mistake("missing parent", "reads weights from 'alin', which is no stage", "did you mean 'align'?",
            "weights: align",
            "weights: alin"),
    Mistake("wrong slot", "a stage of kind report reads no weights", "it can read: scores", "{scores: score}",
            "{weights: score}"),
    Mistake("slot of the wrong kind", "stage 'align' (kind train) gives no labels", "a label stage",
            "{weights: align}",
            "{labels: align}"),
    # parts that do not fit
    Mistake("a width that does not fit",
            "adapter 'identity' keeps the width, but toy-clip is 96 wide and toy-llama 128",
            "such as mlp2x-gelu", "adapter: linear", "adapter: identity"),
    Mistake("squares that do not fit the grid",
            "adapter 'pixel-shuffle' joins squares of 4 x 4 patches, and toy-clip has 6 x 6",
            "factor: a divisor of both", "adapter: linear", "adapter: {card: pixel-shuffle, args: {factor: 4}}",
            words=("stages.align.objectives.sea=~",)),
    Mistake("too few bits", "bits is 4 or 8, not 3", "bits: 4",
            "llm: toy-llama", "llm: {card: toy-llama, args: {bits: 3, lora: 4}}"),
    Mistake("LoRA of no rank", "lora is a rank of 1 or more, not 0", "lora: 16",
            "llm: toy-llama", "llm: {card: toy-llama, args: {lora: 0}}"),
    Mistake("LoRA by a word", "lora is a rank of 1 or more, not 'high'", "lora: 16",
            "llm: toy-llama", "llm: {card: toy-llama, args: {lora: high}}"),
    Mistake("LoRA that counts nothing", "lora_alpha is above 0, not 0", "lora_alpha: 32",
            "llm: toy-llama", "llm: {card: toy-llama, args: {lora: 4, lora_alpha: 0}}"),
    Mistake("LoRA that drops all", "lora_dropout is at least 0 and below 1, not 1", "lora_dropout: 0.05",
            "llm: toy-llama", "llm: {card: toy-llama, args: {lora: 4, lora_dropout: 1}}"),
    Mistake("a misspelt LoRA", "takes no argument 'lora_rank'", "did you mean 'lora_",
            "llm: toy-llama", "llm: {card: toy-llama, args: {lora_rank: 4}}"),
    Mistake("few bits that learn", "weights held in 4 bits cannot learn", "bits: 4, lora: 16",
            "llm: toy-llama", "llm: {card: toy-llama, args: {bits: 4}}", at="stages.tune.trains"),
    Mistake("few bits in pieces", "ZeRO 3 cannot divide weights in 8 bits", "engine: {zero: 2}",
            "llm: toy-llama", "llm: {card: toy-llama, args: {bits: 8, lora: 2}}",
            words=("stages.tune.engine.zero=3",), at="stages.tune.engine.zero"),
    Mistake("an objective without labels", "sea needs labels", "labels: {source: NAME, keep: 10}",
            "    reads: {labels: label}\n", "", at="stages.align.objectives.sea"),
    Mistake("labels from two places", "labels come from `labels` and from `reads.labels`", "keep one of the two",
            "    steps: 6", "    labels: toy-words\n    steps: 6"),
    Mistake("an adapter that loses the grid", "sea supervises single patches, and pooled does not keep the grid",
            "an adapter with keeps_grid", "sea: 1.0", "sea: 1.0",
            words=("registry=[./shelf]", "model.adapter=pooled")),
    Mistake("data without images", "toy-texts has no images", "data with images",
            "data: {card: toy-captions, args: {size: 48}}\n    trains", "data: toy-texts\n    trains"),
    Mistake("labels of data without images", "toy-texts has no images", "data with images",
            words=("stages.label.data=toy-texts",),
            at="stages.label.data"),
    Mistake("a store of what the data says itself", "toy-truth takes the data's own words", "in the training stage",
            "source: toy-words", "source: toy-truth"),
    Mistake("labels by an encoder without words",
            "toy-words compares patches with words, and dinov2-l has no text tower",
            "such as clip-vit-l-336", "source: toy-words", "source: {card: toy-words, args: {encoder: dinov2-l}}"),
    Mistake("labels in the step by an encoder without words", "and dinov2-l has no text tower",
            "the model may keep its own", "    reads: {labels: label}\n",
            "    labels: {source: {card: toy-words, args: {encoder: dinov2-l}}}\n"),
    Mistake("an empty word list", "the word list is empty", "one word a line",
            "source: toy-words", "source: {card: toy-words, args: {words: ./empty.txt}}", at="empty.txt"),
    Mistake("a word list that is a picture", "the word list is a binary file", "one word a line",
            "source: toy-words", "source: {card: toy-words, args: {words: ./binary.txt}}", at="binary.txt"),
    Mistake("no store where one is named", "there is no label store in", "a finished stage of kind label",
            "    reads: {labels: label}\n", "    labels: {source: toy-words, store: ./nowhere}\n"),
    Mistake("muon with ZeRO", "muon steps on whole matrices", "engine: {zero: 0}", "engine: {zero: 0",
            "engine: {zero: 1",
            words=("stages.align.optim.name=muon",)),
    Mistake("compiled layers with ZeRO 3", "ZeRO 3 gathers weights inside a layer, which cannot be compiled",
            "engine: {zero: 2, compile: true}", words=("stages.align.engine={zero: 3, compile: true}",),
            at="stages.align.engine.compile"),
    Mistake("compiled layers in few bits", "layers held in 8 bits are not compiled", "compile: false",
            "llm: toy-llama", "llm: {card: toy-llama, args: {bits: 8, lora: 2}}",
            words=("stages.tune.engine.compile=true",), at="stages.tune.engine.compile"),
    Mistake("flash attention in fp32", "flash attention is not for fp32", "precision: bf16, or",
            words=("stages.align.engine.attention=flash", "stages.align.precision=fp32"), at="engine.attention"),
    Mistake("flash attention over packed rows", "does not keep apart the samples that share a row", "pack: false, or",
            words=("stages.align.engine.attention=flash", "stages.align.precision=bf16", "stages.align.pack=true"),
            at="engine.attention"),
    Mistake("a word that is none of three", "engine.checkpointing must be one of True, False, auto, got 'atuo'", "auto",
            words=("stages.align.engine.checkpointing=atuo",), at="stages.align.engine.checkpointing"),
    # cards
    Mistake("card that lacks a key", "the card 'keyless' lacks 'target'", "add `target: ...`",
            words=("registry=[./shelf]", "model.adapter=keyless"), at="shelf/adapters/keyless.yaml"),
    Mistake("card with an unknown key", "a card has no key 'targt'", "did you mean 'target'?",
            words=("registry=[./shelf]", "model.adapter=misspelt"), at="shelf/adapters/misspelt.yaml:2  targt"),
    Mistake("card with a target that is no module", "mmalign.adapters.mpl does not exist", "check `target:`",
            words=("registry=[./shelf]", "model.adapter=moduleless"), at="shelf/adapters/moduleless.yaml  target"),
    Mistake("card with a target that is no class", "mmalign.adapters.mlp has no MPL", "check `target:`",
            words=("registry=[./shelf]", "model.adapter=classless"), at="shelf/adapters/classless.yaml  target"),
    Mistake("card of a package that is not installed", "no package 'nowhere' is installed", "check `target:`",
            words=("registry=[./shelf]", "model.adapter=packageless"), at="shelf/adapters/packageless.yaml  target"),
    Mistake("missing file of a card", "checkpoint /nowhere/clip does not exist", "check the path",
            words=("model.vision.args.checkpoint=/nowhere/clip",), at="command line  model.vision.args.checkpoint"),
    Mistake("missing registry folder", "no registry folder", "a folder with vision/, adapters/", "seed: 3",
            "seed: 3\nregistry: [./nowhere]", line=1),
    # YAML
    Mistake("broken YAML", "not valid YAML", "brackets", "objectives: {lm: 1.0, sea: 1.0}",
            "objectives: {lm: 1.0, sea: 1.0",
            line=1),
    Mistake("tabs", "not valid YAML", "indentation", "    batch: 8", "\tbatch: 8"),
    Mistake("duplicate key", "the key 'batch' is written twice", "keep one of the two", "    batch: 8\n",
            "    batch: 8\n    batch: 16\n", line=1),
    Mistake("self-extending recipe", "x.yaml extends itself", "break the circle", "name: tiny",
            "extends: x.yaml\nname: tiny",
            at="x.yaml"),
    Mistake("extends what is not there", "no recipe 'quickstrat' to extend", "'quickstart'", "name: tiny",
            "extends: quickstrat\nname: tiny"),
    Mistake("alias loop", "an alias refers to itself", "write the value out", "    optim: {lr: 1e-3}",
            "    optim: &o {lr: 1e-3, betas: *o}"),
    Mistake("a part trained twice", "adapter is named twice", "each part once",
            words=("stages.align.trains=[adapter, adapter]",), at="stages.align.trains.1"),
    Mistake("a benchmark that is none, beside training", "no benchmarks card named 'toy-lokup'", "'toy-lookup'",
            words=("stages.align.evaluate=[toy-perplexity, toy-lokup]",), at="stages.align.evaluate.1"),
    Mistake("a benchmark without its files, beside training", "/nowhere does not exist", "check the path",
            words=("stages.align.evaluate=[{card: mmlu, args: {data: ./nowhere}}]",),
            at="stages.align.evaluate.0.args.data"),
    Mistake("an argument no benchmark has, beside training", "takes no argument 'imags'", "did you mean 'images'?",
            words=("stages.align.evaluate=[{card: toy-pope, args: {imags: 3}}]",),
            at="stages.align.evaluate.0.args.imags"),
    Mistake("a benchmark named twice, beside training", "toy-pope is named twice", "each once",
            words=("stages.align.evaluate=[toy-pope, toy-pope]",), at="stages.align.evaluate.1"),
    Mistake("nobody watches that", "watch.0 must be one of premise, got 'premises'", "'premise'",
            words=("stages.align.watch=[premises]",), at="stages.align.watch.0"),
    Mistake("nobody reads so", "watch_readouts.1 must be one of input, same-layer, lens, got 'lense'", "'lens'",
            words=("stages.align.watch_readouts=[input, lense]",), at="stages.align.watch_readouts.1"),
    Mistake("nothing is read", "nothing is read", "watch_readouts: [input]",
            words=("stages.align.watch_readouts=[]",), at="stages.align.watch_readouts"),
    Mistake("nothing to watch", "toy-texts has no images, so there are no visual tokens to watch", "data with images",
            words=("stages.tune.data=toy-texts", "stages.tune.trains=[llm]", "stages.tune.watch=[premise]"),
            at="stages.tune.watch"),
    Mistake("a seed named twice", "5 is named twice", "each seed once", words=("matrix.seeds=[5, 6, 5]",),
            at="command line  matrix.seeds.2"),
    Mistake("an interpolation of nothing", "seeed", "check the ${...}", "seed: 3", "seed: ${seeed}"),
    # the command line
    Mistake("override that is none", "'batch' is not key=value", "stages.tune.optim.lr=1e-4", words=("batch",),
            at="command line"),
    Mistake("override of an unknown key", "no setting 'bach' here", "'batch'", words=("stages.tune.bach=8",),
            at="command line  stages.tune.bach"),
    Mistake("override with a broken value", "cannot read '[1'", "quote it", words=("stages.tune.batch=[1",),
            at="command line  stages.tune.batch"),
    Mistake("override that nests without end", f"cannot read '{'[' * 60}': nested more than 100 deep", "quote it",
            words=("stages.tune.batch=" + "[" * 10_000,), at="command line  stages.tune.batch"),
    Mistake("override into a value", "data.args must be a mapping, got 3", "args: {key: value}",
            words=("stages.tune.data.args=3",), at="command line  stages.tune.data.args"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", SIMPLE, ids=lambda m: m.name)
def test_mistakes_in_a_recipe(here, mmalign, mistake):
    shelf(here, "adapters", "pooled", CARD.replace("mlp.MLP", "squares.AveragePool").replace("true", "false"))
    shelf(here, "adapters", "keyless", "summary: mine\n")
    shelf(here, "adapters", "misspelt", CARD.replace("target:", "targt:"))
    shelf(here, "adapters", "moduleless", CARD.replace("adapters.mlp", "adapters.mpl"))
    shelf(here, "adapters", "classless", CARD.replace("MLP", "MPL"))
    shelf(here, "adapters", "packageless", CARD.replace("mmalign", "nowhere"))
    shelf(here, "data", "sizeless", "summary: mine\ntarget: mmalign.toyworld.data.Captions\n")
    (here / "empty.txt").write_text("# no word\n\n")
    (here / "binary.txt").write_bytes(b"\x89PNG\r\n\0\0")
    assert mistake.old in TINY
    text = TINY.replace(mistake.old, mistake.new, 1) if mistake.old else TINY
    at = mistake.at
    if at is None:
        number = text[: text.index(mistake.new)].count("\n") + 1 + mistake.line
        at = f"x.yaml:{number}"
    (here / "x.yaml").write_text(text)
    before = snapshot(here)
    for verb in ("check", "plan", "run"):
        assert_mistake(mmalign(verb, "x.yaml", *mistake.words), mistake.what, at, mistake.fix)
    assert snapshot(here) == before


# Files


def test_a_recipe_that_is_not_there(here, mmalign):
    assert_mistake(mmalign("run", "tiny.yml"), "no recipe 'tiny.yml'", "", "mmalign list recipes")
    assert_mistake(mmalign("run", "quickstat"), "no recipe 'quickstat'", "", "did you mean 'quickstart'?")
    assert_mistake(mmalign("run", here), f"no recipe '{here}'", "", "a path")
    assert not list(here.iterdir())


def test_a_recipe_that_is_not_utf8(here, mmalign):
    (here / "x.yaml").write_bytes(TINY.encode() + b"# caf\xe9\n")
    assert_mistake(mmalign("plan", "x.yaml"), "x.yaml is not UTF-8 text", "x.yaml", "save it as UTF-8")


def test_a_recipe_that_is_something_else(here, mmalign):
    (here / "x.yaml").write_text("just words\n")
    assert_mistake(mmalign("plan", "x.yaml"), "expected `key: value` lines", "x.yaml:1", "name: ...")
    (here / "x.yaml").write_text("")
    assert_mistake(mmalign("plan", "x.yaml"), "the recipe lacks 'name'", "x.yaml:1", "name: ...")
    (here / "x.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    assert_mistake(mmalign("plan", "x.yaml"), "not UTF-8", "x.yaml", "UTF-8")


# The command line


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (["frobnicate"], "no command 'frobnicate'", "one of"),
        (["pln", "x"], "no command 'pln'", "did you mean 'plan'?"),
        (["run"], "Missing argument 'RECIPE'", "mmalign run --help"),
        (["run", "--devcies", "2", "x"], "--devcies", "mmalign run --help"),
        (["run", "quickstart", "--devices", "two"], "--devices", "mmalign run --help"),
        (["run", "quickstart", "--devices", "0"], "--devices", "mmalign run --help"),
        (["list", "adapter"], "no family 'adapter'", "did you mean 'adapters'?"),
        (["show", "adapter", "linear"], "no family 'adapter'", "did you mean 'adapters'?"),
        (["show", "adapters", "linaer"], "no adapters card named 'linaer'", "did you mean 'linear'?"),
        (["show", "recipes", "quickstat"], "no recipe 'quickstat'", "did you mean 'quickstart'?"),
        (["show", "stages", "trian"], "no stage kind 'trian'", "did you mean 'train'?"),
        (["eval", "--bench", "toy-pope"], "no trained model under runs", "mmalign run quickstart"),
        (["eval"], "no benchmark is named", "--bench toy-pope"),
        (["report"], "no report under runs", "kind report"),
        (["report", "nowhere"], "cannot read nowhere/report.json", "a finished report stage"),
        (["run", "quickstart", "--hosts", "nowhere"], "nowhere is no host file", "slots=8"),
        (["run", "quickstart", "--hosts", "h", "--devices", "2"], "--devices 2 and --hosts h", "--hosts alone"),
        (["run", "quickstart", "--force", "algn"], "--force algn: no such stage", "did you mean 'align'?"),
        (["run", "quickstart", "--devices", "3"], "batch 32 is no multiple of micro_batch 32 x 3 devices", "--devices"),
    ],
)
def test_mistakes_on_the_command_line(here, mmalign, words, what, fix):
    assert_mistake(mmalign(*words), what, "", fix)
    assert not list(here.iterdir())


def test_an_unknown_benchmark_for_a_trained_model(tiny, mmalign):
    node = next(node for node in graph.plan(compose.load(tiny), "runs") if node.name == "tune")
    task.save(node)
    said = mmalign("eval", node.folder, "--bench", "toy-pope")
    assert_mistake(said, "is no finished training stage", str(node.folder), "runs/train-")
    task.finish(task.load(node.folder), {"metrics": {}}, 0, 1)
    said = mmalign("eval", node.folder, "--bench", "toy-pop")
    assert "no benchmarks card named 'toy-pop'" in said.err
    assert "did you mean 'toy-pope'?" in said.err
    said = mmalign("eval", node.folder, "--bench", "pope")
    what = "benchmarks 'pope': data data:eval/pope does not exist"
    assert_mistake(said, what, "pope.yaml  args.data", "MMALIGN_DATA")
    said = mmalign("eval", node.folder, "--bench", "toy-pope,pope", "--data", "nowhere")
    assert_mistake(said, f"data {tiny.parent}/nowhere does not exist", "command line", "check the path")


def test_a_stage_that_is_no_model_is_not_evaluated(tiny, mmalign):
    node = next(node for node in graph.plan(compose.load(tiny), "runs") if node.name == "label")
    task.save(node)
    task.finish(task.load(node.folder), {"metrics": {}}, 0, 1)
    said = mmalign("eval", node.folder, "--bench", "toy-pope")
    assert_mistake(said, "is a stage of kind label", str(node.folder), "runs/train-")


# Run folders


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not valid JSON"),
        ('{"format": 1, "name": ', "not valid JSON"),
        ("[]", "was written in format None"),
        ('{"format": 2}', "was written in format 2; this mmalign reads format 1"),
        ('{"format": 1}', "stage.json is damaged: it lacks 'name'"),
    ],
)
def test_a_stage_folder_that_is_damaged_or_of_another_format(tiny, mmalign, text, what):
    node = graph.plan(compose.load(tiny), "runs")[0]
    node.folder.mkdir(parents=True)
    (node.folder / "stage.json").write_text(text)
    before = snapshot(tiny.parent)
    for verb in ("plan", "run"):
        assert_mistake(mmalign(verb, "tiny.yaml"), what, f"{node.folder}/stage.json", "--force label")
    assert {name for name in snapshot(tiny.parent) if ".hashes" not in name} == before.keys() | set()


def test_a_stage_begun_in_another_format(tiny, mmalign):
    node = graph.plan(compose.load(tiny), "runs")[0]
    task.save(node)
    place = node.folder / "stage.yaml"
    place.write_text(place.read_text().replace("format: 1", "format: 2"))
    text = place.read_text()
    assert_mistake(mmalign("run", "tiny.yaml"), "was begun in format 2", str(node.folder), "--force the stage")
    assert place.read_text() == text


def test_two_runs_in_one_folder(tiny, mmalign):
    node = graph.plan(compose.load(tiny), "runs")[0]
    node.folder.mkdir(parents=True)
    with open(node.folder / "lock", "w+") as lock:
        lock.write(f"process {os.getpid()} on here")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = mmalign("run", "tiny.yaml")
    assert_mistake(said, f"process {os.getpid()} on here is working in this folder", str(node.folder), "wait for it")
    assert not (node.folder / "stage.yaml").exists()


def test_runs_that_is_a_file(tiny, mmalign):
    (tiny.parent / "taken").touch()
    said = mmalign("run", "tiny.yaml", "--runs", "taken")
    assert_mistake(said, "cannot write to taken/label-", "taken/label-", "another --runs")
