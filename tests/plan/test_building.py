"""`building.build`: a whole part of its family, the cards inside it built first, or an error at the card."""

from dataclasses import replace
from pathlib import Path

import pytest

from mmalign.benchmarks.perplexity import Perplexity
from mmalign.data import Data
from mmalign.errors import CardError
from mmalign.labels.words import NearestWords
from mmalign.plan import building, cards, trust
from mmalign.plan.cards import Card, Registry
from mmalign.toyworld.data import Captions
from mmalign.vision import Vision
from mmalign.vision.s2 import S2

TOY = {"checkpoint": "pkg:mmalign.toyworld/clip", "layer": -2, "norm": True}
WORDS = "pkg:mmalign.toyworld/words/clean.txt"
HF = "mmalign.vision.hf.HFVision"


def shelf(folder: Path, family: str, name: str, target: str, args: str = "{}") -> Registry:
    place = folder / "shelf" / family / f"{name}.yaml"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"summary: mine\ntarget: {target}\nargs: {args}\n")
    return Registry([str(folder / "shelf")])


def test_a_card_named_inside_is_built_first():
    source = building.build(Registry().card("labels", "toy-words"), keep=3)
    assert isinstance(source, NearestWords)
    assert source.encoder.identity() == building.build(Registry().card("vision", "toy-clip")).identity()


def test_cards_inside_cards(here):
    shelf(here, "vision", "wide", "mmalign.vision.s2.S2", "{encoder: toy-clip, scales: [1, 2]}")
    registry = shelf(here, "labels", "wider", "mmalign.labels.words.NearestWords",
                     "{encoder: wide, words: 'pkg:mmalign.toyworld/words/clean.txt'}")  # fmt: skip
    card = registry.card("labels", "wider")
    assert {role: one.name for role, one in registry.inside(card).items()} == {
        "encoder": "wide", "encoder.encoder": "toy-clip",
    }  # fmt: skip
    source = building.build(card, registry=registry, keep=3)
    assert isinstance(source.encoder, S2)
    assert source.encoder.encoder.dim == 96


def test_the_cards_of_a_stage_are_handed_over_and_nothing_is_looked_up(here):
    """As a worker does it: its registry may lack the recipe's own shelf."""
    own = Card("", HF, {**TOY, "layer": -1}, name="mine", family="vision")
    stage = {
        "labels": replace(Registry().card("labels", "toy-words"), args={"encoder": "gone", "words": WORDS}),
        "labels.encoder": Card("", "mmalign.vision.s2.S2", {"encoder": "lost", "scales": [1]}, family="vision"),
        "labels.encoder.encoder": own,
    }
    source = building.build(stage["labels"], inner=cards.inside("labels", stage), keep=3)
    assert source.encoder.encoder.depth == 4


def test_a_part_that_is_there_already_wins():
    encoder = building.build(Registry().card("vision", "toy-clip"))
    card = replace(Registry().card("labels", "toy-words"), args={
        "encoder": "no-such-card", "words": WORDS,
    })  # fmt: skip
    assert building.build(card, encoder=encoder, keep=3).encoder is encoder
    assert building.build(card, inner={"encoder": encoder}, keep=3).encoder is encoder


def test_data_of_a_benchmark_is_a_card_or_a_path(here):
    assert isinstance(building.build(Registry().card("benchmarks", "toy-perplexity")), Perplexity)
    assert len(building.build(Registry().card("benchmarks", "toy-perplexity")).data) == 400
    for path in ("./pope", "data:pope", "hf://a/b"):
        assert not list(cards.named_inside(Card("", "x.Y", {"data": path}, family="benchmarks")))


def test_members_of_a_mixture_are_built(here):
    (here / "a.jsonl").write_text(
        '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}\n'
    )
    members = [
        "toy-eval",
        {"card": "toy-eval", "args": {"size": 3}},
        {"kind": "conversations", "path": f"{here}/a.jsonl"},
    ]
    card = replace(Registry().card("data", "mixture"), args={"data": members})
    for one in (card, Registry().filled(card)):
        data = building.build(one)
        assert [type(member).__name__ for member in data.members] == ["Captions", "Captions", "Conversations"]
        assert len(data) == 404
    assert isinstance(data.members[0], Captions)
    inside = {"card": "mixture", "args": {"data": ["toy-eval"]}}
    assert len(building.build(replace(card, args={"data": [inside, "toy-eval"]}))) == 800
    assert isinstance(building.build(replace(card, args={"data": [building.build(one)]})), Data)


@pytest.mark.parametrize(
    ("family", "target", "args", "what", "fix"),
    [
        ("labels", "mmalign.labels.words.NearestWords", "{encoder: toy-clp, words: w}",
         "no vision card named 'toy-clp'", "did you mean 'toy-clip'?"),
        ("vision", "mmalign.vision.s2.S2", "{encoder: mine, scales: [1]}",
         "vision 'mine' would be inside itself", "another vision card for its encoder"),
        ("benchmarks", "mmalign.benchmarks.perplexity.Perplexity", "{data: toy-evil}",
         "no data card named 'toy-evil'", "did you mean 'toy-eval"),
    ],
)  # fmt: skip
def test_a_name_inside_that_cannot_be_built(here, family, target, args, what, fix):
    registry = shelf(here, family, "mine", target, args)
    given = {"keep": 3} if family == "labels" else {}
    for attempt in (lambda card: building.build(card, registry=registry, **given), registry.inside):
        with pytest.raises(CardError) as caught:
            attempt(registry.card(family, "mine"))
        assert what in caught.value.what
        assert (
            caught.value.at
            == f"{here}/shelf/{family}/mine.yaml  args.{'data' if family == 'benchmarks' else 'encoder'}"
        )
        assert fix in caught.value.fix


def test_members_that_cannot_be_built():
    card = replace(Registry().card("data", "mixture"), path="m.yaml")
    for member, what in [
        ({"target": "mmalign.nothing.Data"}, "cannot import 'mmalign.nothing.Data'"),
        ({"target": "collections.Counter"}, "data 'mixture/0': collections.Counter is no class of mmalign.data.Data"),
        ({"target": "mmalign.toyworld.data.Captions", "args": {"size": 3, "sise": 3}}, "sise"),
        ("toy-evil", "no data card named 'toy-evil'"),
    ]:
        with pytest.raises(CardError) as caught:
            building.build(replace(card, args={"data": [member]}))
        assert what in caught.value.what


@pytest.mark.parametrize(
    "target", ["collections.Counter", "subprocess.getoutput", "yaml.SafeLoader", "jinja2.Template"]
)
@pytest.mark.parametrize("family", cards.FAMILIES)
def test_a_part_that_is_none_of_its_family_is_refused(family, target):
    card = Card("", target, name="odd", family=family, path="odd.yaml")
    with pytest.raises(CardError) as caught:
        building.build(card)
    names = " or ".join(trust.CONTRACTS[family])
    assert caught.value.what == f"{family} 'odd': {target} is no class of {trust.contract(family)}"
    assert (caught.value.at, caught.value.fix) == ("odd.yaml", f"a {family} part subclasses {names}")


def test_a_card_of_no_family_promises_nothing():
    assert building.build(Card("", "collections.Counter", {"a": 2}))["a"] == 2


def test_a_built_part_is_of_its_family():
    assert isinstance(building.build(Registry().card("vision", "toy-clip")), Vision)
