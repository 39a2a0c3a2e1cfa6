"""`check` by facts and contracts: parts of a shelf or a plug-in are refused as ours are, and none is imported."""

from pathlib import Path

import pytest

from mmalign.errors import CardError, CheckError, MMAlignError
from mmalign.plan import estimate, facts, graph, signatures
from mmalign.plan import read as compose
from mmalign.plan.cards import FAMILIES, Card, Registry
from mmalign.plan.check import check
from mmalign.plan.objectives import unmet
from tests.conftest import TINY

PATCHES = "mine supervises single patches, and pooled does not keep the grid"

PARTS = '''
"""Never imported: a check reads it."""
raise RuntimeError("imported")

from typing import ClassVar

import mmalign.objectives as terms
from mmalign import labels
from mmalign.adapters import Adapter
from mmalign.benchmarks import Benchmark
from mmalign.labels import LabelSource
from mmalign.llms import LLM
from mmalign.objectives import Objective
from mmalign.vision import Vision

class Needy(Objective):
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})

class Needier(Needy):
    """Needs what its base class does."""

class NeedyToo(terms.Objective):
    needs = {"labels"}

class Patchy(Objective):
    per_patch = True

class Pooled(Adapter):
    keeps_grid = False

class Moody(Adapter):
    def __init__(self, patch_dim, llm_dim, grid, pool=False):
        super().__init__(patch_dim, llm_dim, grid)
        self.keeps_grid = not pool

class Closed(LLM):
    def __init__(self, size: int = 3): ...

class Open(LLM):
    def __init__(self, checkpoint: str): ...

class Templated(LLM):
    def __init__(self, checkpoint: str, template: str): ...

class OpenAgain(LLM):
    def __init__(self, checkpoint: str, random: bool = False): ...

class Blind(Vision):
    def __init__(self, size: int = 3): ...

class Dense(LabelSource):
    def __init__(self, words: str, keep: int): ...

class DenseToo(labels.LabelSource):
    def __init__(self, keep: int): ...

class Shy(LabelSource):
    def __init__(self, words: str, keep: int, encoder=None): ...

class Truthful(LabelSource):
    needs = "truth"
    def __init__(self, words: str, keep: int): ...

class Ruled(Benchmark):
    protocols = ("official", "mine")

class Silent(Benchmark):
    def __init__(self, shows=True):
        self.shows = shows


class Sized(LLM):
    bounds = {"size": {"least": 1, "whole": True, "words": "a size of 1 or more", "example": 7}}
    def __init__(self, checkpoint: str, size: int = 1): ...

def factory(patch_dim, llm_dim, grid): ...
'''


@pytest.fixture
def parts(here: Path, monkeypatch: pytest.MonkeyPatch):
    """parts(family="Class", ...): a shelf with a card `mine` of each, and its module on the path."""
    (here / "no_import.py").write_text(PARTS)
    monkeypatch.syspath_prepend(here)

    def write(args: str = "{}", facts: str = "{}", **families: str) -> None:
        for family, cls in families.items():
            (here / "shelf" / family).mkdir(parents=True, exist_ok=True)
            text = f"summary: mine\ntarget: no_import.{cls}\nargs: {args}\nfacts: {facts}\n"
            (here / "shelf" / family / "mine.yaml").write_text(text)

    return write


def checked(here: Path, *words: str, text: str = TINY) -> list[str]:
    (here / "shelf").mkdir(exist_ok=True)
    (here / "x.yaml").write_text(text + "registry: [./shelf]\n")
    return check(compose.load("x.yaml", words))


def refused(here: Path, *words: str, text: str = TINY) -> MMAlignError:
    with pytest.raises(MMAlignError) as caught:
        checked(here, *words, text=text)
    assert caught.value.at
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    ("needs", "per_patch", "labels", "keeps_grid", "told"),
    [
        ([], False, False, False, []),
        (["labels"], False, True, False, []),
        (["labels"], False, False, True, ["mine needs labels"]),
        (frozenset({"labels", "layers"}), True, False, False, ["mine needs labels", PATCHES]),
        ([], True, False, True, []),
        ([], True, True, False, [PATCHES]),
    ],
)
def test_what_an_objective_lacks(needs, per_patch, labels, keeps_grid, told):
    assert [what for what, _ in unmet("mine", needs, per_patch, labels, keeps_grid, "pooled")] == told


# Objectives and adapters of others

MINE = ("stages.align.objectives.sea=~", "stages.align.objectives.mine=1")
WITHOUT = ("stages.align.reads=~", *MINE)


@pytest.mark.parametrize("cls", ["Needy", "Needier", "NeedyToo"])
def test_an_objective_that_needs_labels(parts, here, cls):
    parts(objectives=cls)
    error = refused(here, *WITHOUT)
    assert error.what == "stage 'align': mine needs labels"
    assert error.at.endswith("stages.align.objectives.mine")
    assert error.fix.startswith("labels: {source: NAME, keep: 10}")
    assert not checked(here, *MINE)


def test_an_objective_of_single_patches(parts, here):
    parts(objectives="Patchy", adapters="Pooled")
    error = refused(here, *WITHOUT, "model.adapter=mine")
    assert error.what == "stage 'align': mine supervises single patches, and mine does not keep the grid"
    assert "keeps_grid" in error.fix
    assert not checked(here, *WITHOUT)


def test_an_adapter_that_decides_when_it_is_built_is_known_by_its_card(parts, here):
    for told, fits in (("{}", True), ("{keeps_grid: true}", True), ("{keeps_grid: false}", False)):
        parts(adapters="Moody", facts=told)
        assert fits or "does not keep the grid" in refused(here, "model.adapter=mine").what
        assert not fits or not checked(here, "model.adapter=mine")


# What is trained is read back


def test_a_language_model_that_cannot_be_read_back(parts, here):
    parts(llms="Closed")
    error = refused(here, "model.llm=mine")
    assert error.what == "stage 'tune': mine is trained here, and its class takes no argument `checkpoint`"
    assert error.at.endswith("stages.tune.trains")
    assert "the folder that its `save` wrote" in error.fix
    assert not checked(here, "model.llm=mine", "stages.tune.trains=[adapter]")
    parts(llms="Open", args="{checkpoint: x}")
    assert not checked(here, "model.llm=mine")


def test_a_language_stage_that_starts_from_a_configuration(parts, here):
    words = "  words: {kind: language, data: toy-texts, optim: {lr: 1e-3}, batch: 8, steps: 1}\n"
    parts(llms="Open", args="{checkpoint: x}")
    fresh = ("model.llm=mine", "stages.words.from=config")
    error = refused(here, *fresh, text=TINY + words)
    assert error.what == "stage 'words': mine is trained here, and its class takes no argument `random`"
    assert checked(here, "model.llm=mine", text=TINY + words)  # its weights need no such argument
    parts(llms="OpenAgain", args="{checkpoint: x}")
    assert checked(here, *fresh, text=TINY + words) == ["stage 'words': mine starts from random weights (from: config)"]


def test_an_encoder_that_cannot_be_read_back(parts, here):
    parts(vision="Blind")
    words = ("model.vision=mine", "stages.tune.trains=[adapter, vision]")
    assert "mine is trained here, and its class takes no argument `checkpoint`" in refused(here, *words).what
    wide = "{card: clip-vit-l-336-s2, args: {encoder: mine}}"
    error = refused(here, f"model.vision={wide}", words[1])
    assert error.what.startswith("stage 'tune': mine is trained here")  # the encoder inside is what has the weights
    assert checked(here, "model.vision=clip-vit-l-336-s2", words[1])  # a note, and nothing wrong


# Label sources of others


@pytest.mark.parametrize("cls", ["Dense", "DenseToo"])
def test_dense_labels_without_an_encoder(parts, here, cls):
    parts(labels=cls, args="{words: 'pkg:mmalign.toyworld/words/clean.txt'}" if cls == "Dense" else "{}")
    for words, key in [
        (("stages.label.source=mine",), "stages.label.source"),
        (("stages.align.reads=~", "stages.align.labels=mine"), "stages.align.labels"),
    ]:
        error = refused(here, *words)
        what = "mine labels by an encoder's features, and its class takes no argument `encoder`"
        assert error.what.endswith(what)
        assert error.at.endswith(key)
        assert 'needs = "truth"' in error.fix


def test_dense_labels_that_name_no_encoder(parts, here):
    parts(labels="Shy", args="{words: 'pkg:mmalign.toyworld/words/clean.txt'}")
    error = refused(here, "stages.label.source=mine")
    assert error.what.endswith("mine labels by an encoder's features, and names no encoder")
    assert error.fix.startswith("{card: mine, args: {encoder: NAME}}")
    assert not checked(here, "stages.label.source={card: mine, args: {encoder: toy-clip}}")


def test_labels_of_the_data_itself_need_no_encoder(parts, here):
    parts(labels="Truthful", args="{words: 'pkg:mmalign.toyworld/words/clean.txt'}")
    assert not checked(here, "stages.label=~", "stages.align.reads=~", "stages.align.labels=mine")
    assert "need no store" in refused(here, "stages.label.source=mine").what


def test_the_word_list_of_any_source_is_read(parts, here):
    (here / "empty.txt").write_text("# no word\n")
    parts(labels="Shy", args="{words: ../../empty.txt, encoder: toy-clip}")
    assert "the word list is empty" in refused(here, "stages.label.source=mine").what


# Bounds, protocols, and cards that contradict their class


def test_bounds_of_a_class_of_others(parts, here):
    parts(llms="Sized", args="{checkpoint: x}")
    error = refused(here, "model.llm={card: mine, args: {size: 0}}")
    assert (error.what, error.fix) == ("size is a size of 1 or more, not 0", "size: 7")
    assert error.at.endswith("model.llm.args.size")
    parts(llms="Sized", args="{checkpoint: x, size: half}")
    assert refused(here, "model.llm=mine").what == "size is a size of 1 or more, not 'half'"


def test_protocols_of_a_class(parts, here):
    parts(benchmarks="Ruled")
    assert not checked(here, "stages.score={bench: [mine], protocol: mine}")
    error = refused(here, "stages.score={bench: [mine], protocol: mien}")
    assert (error.what, error.fix) == ("stage 'score': mine has no protocol 'mien'", "did you mean 'mine'?")


@pytest.mark.parametrize(
    ("family", "cls", "told", "what"),
    [
        ("objectives", "Patchy", "{per_patch: false}", "per_patch: False, its class True"),
        ("objectives", "Needy", "{needs: []}", "needs: [], its class ['labels']"),
        ("adapters", "Pooled", "{keeps_grid: true}", "keeps_grid: True, its class False"),
        ("labels", "Truthful", "{truth: false}", "truth: False, its class True"),
        ("benchmarks", "Ruled", "{shows: false}", "shows: False, its class True"),
        ("benchmarks", "Ruled", "{protocols: [official]}", "protocols: ['official'], its class ['mine', 'official']"),
    ],
)
def test_a_card_that_contradicts_its_class(parts, here, family, cls, told, what):
    parts(**{family: cls}, facts=told)
    (problem,) = facts.contradicted(Registry(["shelf"]).card(family, "mine"))
    assert problem.what == f"{family} 'mine': the card says {what}"
    assert problem.at.endswith(f"{family}/mine.yaml  facts.{told[1:].partition(':')[0]}")
    assert problem.fix.endswith("it is read from the class")


def test_check_says_that_a_card_contradicts_its_class(parts, here):
    parts(adapters="Pooled", facts="{keeps_grid: true}")
    assert "the card says keeps_grid: True" in refused(here, "model.adapter=mine").what


def test_no_shipped_card_contradicts_its_class():
    told = 0
    for family in FAMILIES:
        for card in Registry().every(family):
            assert not list(facts.contradicted(card)), card.path
            told += len(facts.declared(card))
    assert told >= 40


@pytest.mark.parametrize("words", [[], ["stages.score.reads={llm: speak}"]])
def test_an_evaluation_of_a_language_model_alone(here, words):
    """A recipe without an encoder: benchmarks of texts can be asked, others are refused."""
    alone = "{name: x, model: {llm: toy-llama}, stages: {speak: {kind: language, data: toy-texts, optim: {lr: 1}, "
    alone += "batch: 1, steps: 1}, score: {kind: evaluate, bench: [mmlu, toy-perplexity, toy-lookup]}}}\n"
    (here / "x.yaml").write_text(alone)
    (recipe,) = compose.load("x.yaml", [*words, "stages.score.bench=[toy-perplexity, toy-lookup]"])
    assert [type(part).__name__ for part in vars(recipe.model).values()] == ["NoneType", "NoneType", "Part", "NoneType"]
    check([recipe])
    (recipe,) = compose.load("x.yaml", [*words, "stages.score.bench=[toy-pope, toy-lookup, toy-alignment]"])
    with pytest.raises(CheckError) as caught:
        check([recipe])
    assert (caught.value.what, caught.value.at, caught.value.fix) == (
        "stage 'score': toy-pope, toy-alignment show pictures, and toy-llama is a language model alone",
        "command line  stages.score.bench",
        "a benchmark of texts, such as mmlu; or a model with an encoder",
    )
    (recipe,) = compose.load("x.yaml", [*words, "model.vision=toy-clip", "stages.score.bench=[toy-lookup]"])
    with pytest.raises(CheckError, match=r"stage 'score' \(kind evaluate\) has no adapter"):
        check([recipe])
    (recipe,) = compose.load("x.yaml", ["stages.speak.gate={bench: toy-pope, metric: f1, at_least: 1}"])
    with pytest.raises(CheckError, match=r"'speak': toy-pope shows pictures, and this stage trains a language model"):
        check([recipe])


def test_a_benchmark_that_does_not_say_whether_it_shows_pictures(parts, here):
    """It is asked of the whole model, and of a language model alone where there is no other."""
    parts(benchmarks="Silent")
    checked(here, "stages.score={bench: [mine], reads: {weights: null}}")
    (recipe,) = compose.load("x.yaml", ["stages.score={bench: [mine], reads: {weights: null}}"])
    assert {"vision", "adapter", "llm"} < graph.cards_of(recipe, "score", Registry(["shelf"])).keys()
    alone = (
        "{name: x, model: {llm: toy-llama}, stages: {score: {kind: evaluate, bench: [mine]}}, registry: [./shelf]}\n"
    )
    (here / "x.yaml").write_text(alone)
    check(compose.load("x.yaml"))


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [
        ("no_import.Needier", "needs", frozenset({"labels"})),
        ("no_import.NeedyToo", "needs", {"labels"}),
        ("no_import.NeedyToo", "per_patch", False),
        ("no_import.DenseToo", "needs", "dense"),
        ("no_import.Moody", "keeps_grid", signatures.UNKNOWN),
        ("no_import.factory", "keeps_grid", signatures.UNKNOWN),
        ("no_import.Nothing", "keeps_grid", signatures.UNKNOWN),
        ("nowhere.Nothing", "keeps_grid", signatures.UNKNOWN),
        ("no_import.Pooled", "unit", signatures.ABSENT),
    ],
)
def test_attributes_are_read_from_the_text(parts, target, name, value):
    assert signatures.attribute(target, name) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("class A:\n  x = 3", 3),
        ("class A:\n  x: int = -3", -3),
        ("class A:\n  x: int", signatures.ABSENT),
        ("class A:\n  x = frozenset()", frozenset()),
        ("class A:\n  x = tuple([1, 2])", (1, 2)),
        ("class A:\n  x = sorted({1})", signatures.UNKNOWN),
        ("class A:\n  x = y", signatures.UNKNOWN),
        ("class A:\n  @property\n  def x(self): return 3", signatures.UNKNOWN),
        ("class A:\n  x = 3\n  def __init__(self): self.x = 4", signatures.UNKNOWN),
        ("class B:\n  x = 3\nclass A(B):\n  x = 4", 4),
        ("class B:\n  y = 3\nclass C:\n  x = 5\nclass A(B, C): ...", 5),
        ("class B:\n  x = 3\nclass C:\n  x = 5\nclass A(B, C): ...", 3),
        ("from somewhere import B\nclass A(B): ...", signatures.UNKNOWN),
        ("import json\nclass A(json.JSONDecoder): ...", signatures.ABSENT),
        ("import torch\nclass A(torch.nn.Module):\n  x = 3", 3),
        ("class A(A): ...", signatures.UNKNOWN),
        ("A = 3", signatures.UNKNOWN),
    ],
)
def test_what_an_attribute_is(here, monkeypatch, text, value):
    (here / "told.py").write_text(text)
    monkeypatch.syspath_prepend(here)
    assert signatures.attribute("told.A", "x") == value


# Chat templates


MARKED = "{% generation %}{{ messages }}{% endgeneration %}"


def test_a_template_beside_its_card_needs_no_dot(parts, here):
    parts(llms="Templated", args="{checkpoint: x, template: mine.jinja}")
    error = refused(here, "model.llm=mine")
    assert error.what == f"llms 'mine': template {here}/shelf/llms/mine.jinja does not exist"
    assert error.at.endswith("mine.yaml  args.template")
    (here / "shelf" / "llms" / "mine.jinja").write_text(MARKED)
    assert not checked(here, "model.llm=mine")
    recipe = compose.load("x.yaml", ["model.llm=mine"])[0]
    card = graph.cards_of(recipe, "tune", Registry(["shelf"]))["llm"]
    assert card.args["template"] == f"{here}/shelf/llms/mine.jinja"


def test_a_template_of_a_stage(here):
    at = "stages.tune.template"
    error = refused(here, f"{at}=mine.jinja")
    assert error.what == f"stage 'tune': template {here}/mine.jinja does not exist"
    error = refused(here, f"{at}=qwen2")
    assert error.what == "stage 'tune': template 'qwen2' is neither a file nor jinja"
    assert "templates/qwen2.jinja" in error.fix
    (here / "mine.jinja").write_text(MARKED)
    for one in ("mine.jinja", f"'{MARKED}'", "'pkg:mmalign.llms/templates/qwen2.jinja'"):
        assert not checked(here, f"{at}={one}")


def test_the_texts_of_a_lens(here):
    """`./` counts from the recipe; the file is looked at before anything runs, and counts in the fingerprint."""
    lensed = "stages.align.objectives.basic-direction={weight: 1, args: {space: lens, lens_texts: ./a.txt}}"
    error = refused(here, lensed)
    assert error.what == f"objectives 'basic-direction': lens_texts {here}/a.txt does not exist"
    for content, what in ((b" \n", "empty"), (b"\xff\xfe", "not UTF-8"), (b"a\0", "a binary file")):
        (here / "a.txt").write_bytes(content)
        error = refused(here, lensed)
        assert error.what.startswith(f"the text is {what}")
        assert error.at == f"{here}/a.txt"
    (here / "a.txt").write_text("a red star\n")
    assert not checked(here, lensed)
    folders = []
    for text in ("a red star\n", "a blue star\n"):
        (here / "a.txt").write_text(text)
        folders.append({node.name: node.folder for node in graph.plan(compose.load("x.yaml", [lensed]))}["align"])
    assert folders[0] != folders[1]
    error = refused(here, lensed.replace("space: lens", "space: input"))
    assert (error.what, error.fix) == ("basic-direction: no lens is fitted on `lens_texts`", "space: lens")
    assert error.at.startswith("command line  stages.align.objectives.basic-direction")
    error = refused(here, lensed.replace("./a.txt", "a.txt"))
    assert (error.what, error.fix) == ("basic-direction: lens_texts a.txt is no path", "./a.txt, beside the recipe")


# Estimates


def test_an_estimate_goes_by_facts(parts, here):
    """An MLP is known by the fact `linears`, whoever ships it; without facts nothing is claimed."""
    for told, size in (("{linears: depth}", 96 * 128 + 128 + 2 * (128 * 128 + 128)), ("{}", None)):
        card = Card("", "no_import.Moody", {"depth": 3}, {"linears": "depth"} if size else {}, family="adapters")
        assert estimate.adapter_parameters(card, 96, 128) == size, told
    parts(adapters="Pooled", args="{tokens: 9}", facts="{tokens: tokens}")
    pooled = Registry(["shelf"]).card("adapters", "mine")
    assert estimate.visual_tokens(pooled, (6, 6)) == 9
    assert estimate.visual_tokens(Card("", "mmalign.adapters.mlp.MLP", family="adapters"), (6, 6)) == 36


def test_the_facts_of_a_card_and_its_class_are_one(parts):
    parts(objectives="Needy", facts="{paper_lambda: 3}")
    card = Registry(["shelf"]).card("objectives", "mine")
    assert facts.of(card) == {"needs": ["labels"], "per_patch": False, "unit": "images", "paper_lambda": 3}
    with pytest.raises(CardError):
        Registry(["shelf"]).card("objectives", "mien")


def test_the_word_list_of_a_benchmark(here):
    """Known before anything runs, where it is."""
    text = "name: x\nmodel: {vision: toy-clip, adapter: linear, llm: toy-llama}\nstages:\n"
    text += "  score: {kind: evaluate, bench: [{card: toy-alignment, args: {words: ./words.txt}}]}\n"
    error = refused(here, text=text)
    assert "words" in error.what
    assert "does not exist" in error.what
    (here / "words.txt").write_bytes(b"a\0b")
    error = refused(here, text=text)
    assert error.what == "the word list is a binary file"
    (here / "words.txt").write_text("star\nring\n")
    assert checked(here, text=text) == []
