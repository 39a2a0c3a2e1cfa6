"""`source:` of cards: every shipped one that reads files says where from; what is none is told at its key."""

import re

import pytest

from mmalign.errors import CardError
from mmalign.io import files
from mmalign.plan import downloads
from mmalign.plan.cards import FAMILIES, Registry, as_dict
from mmalign.plan.downloads import UNKNOWN, File, Source
from mmalign.plan.gaps import _Search, _specs
from tests.plan.test_cards import CARD, shelf

CARDS = [card for family in FAMILIES for card in Registry().every(family)]
READING = [card for card in CARDS if [*_specs(card)] or _Search(Registry()).repository(card, None)]
HUB = "source: {hub: some/model"


@pytest.mark.parametrize("card", READING, ids=lambda card: f"{card.family}/{card.name}")
def test_every_card_that_reads_files_says_where_from_how_much_and_under_which_licence(card):
    sources = Registry().sources(card)
    assert sources
    for source in sources:
        assert source.address(source.files[0] if source.files else None)
        assert source.license not in ("", UNKNOWN)
        sizes = [file.size for file in source.files] or [source.size]
        assert all(downloads.about(size) for size in sizes), (source.address(), sizes)
    for _, spec in _specs(card):  # each place is one that a source fills
        assert any(files.local(file.place).is_relative_to(files.local(spec)) for s in sources for file in s.files), spec


@pytest.mark.parametrize("family", ["vision", "llms", "vlms"])
def test_the_hub_id_of_a_model_is_its_checkpoint(family):
    models = [card for card in CARDS if card.family == family and not card.name.startswith("toy-")]
    assert len(models) > 10
    for card in models:
        ids = [source.hub for source in Registry().sources(card) if source.model]
        assert len(ids) == 1
        checkpoint = "HuggingFaceTB/SmolLM2-135M-Instruct" if "smollm2" in card.name else card.args.get("checkpoint")
        assert ids == [checkpoint or ids[0]]


def test_what_is_gated_says_where_to_agree():
    gated = {card.name: card.source[0].gate for card in CARDS if card.source and card.source[0].gate}
    assert {"gemma-2b-it", "gemma2-2b-it", "gemma3-1b-it", "llama3-8b-instruct", "dinov3-l", "paligemma-3b"} <= {*gated}
    for gate in gated.values():
        assert re.search(r"https://huggingface.co/\S+", gate)
    assert all(card.source[0].gate for card in CARDS if card.family == "vlms" and card.facts["gated"])


def test_encoders_of_timm_and_open_clip_are_where_those_packages_look():
    timm, open_clip = pytest.importorskip("timm"), pytest.importorskip("open_clip")
    looked = 0
    for card in CARDS:
        if card.family == "vision" and card.args.get("pretrained"):
            name, tag = card.args["model"], card.args["pretrained"]
            if card.name.startswith("timm"):
                known = timm.models.get_pretrained_cfg(f"{name}.{tag}").hf_hub_id
            else:
                known = open_clip.get_pretrained_cfg(name, tag)["hf_hub"].rstrip("/")
            assert Registry().sources(card)[0].hub == known
            looked += 1
    assert looked == 6


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        (HUB + ", huub: x}", "source", "huub"),
        ("source: {hub: justaname}", "source.hub", "must be OWNER/NAME or datasets/OWNER/NAME, got 'justaname'"),
        ("source: {license: MIT}", "source", "names one of hub, url, page and like, got none"),
        (HUB + ", url: https://x.org/a}", "source", "got hub and url"),
        (HUB + ", size: large}", "source.size", "about so many as in `27 GB`, or 'not known', got 'large'"),
        (HUB + ", size: -3}", "source.size", "got -3"),
        (HUB + ", revision: 3}", "source.revision", "must be text, got 3"),
        ("source: {url: x.org}", "source.url", "must be an address such as https://..., got 'x.org'"),
        ("source: {url: https://x.org, revision: main}", "source.revision", "this is no source of the hub"),
        ("source: {url: https://x.org}", "source.files", "are needed, each with `name` and `to` or `unpack`"),
        ("source: [{hub: datasets/a/b, files: [{name: x}]}]", "source.0.files.0.to", "is needed, or `unpack`"),
        ("source: {hub: datasets/a/b, files: [{to: 'data:x'}]}", "source.files.0", "lacks 'name'"),
        ("source: {url: https://x.org, files: [{name: x, to: /etc/x}]}", "files.0.to", "below data:, got '/etc/x'"),
        ("source: {url: https://x.org, files: [{name: x, to: 'data:a/../../x'}]}", "source.files.0.to", "below data:"),
        ("source: {url: https://x.org, files: [{name: x, unpack: 'data:/x'}]}", "source.files.0.unpack", "below data:"),
        ("source: {url: https://x.org, files: [{name: x, to: 'data:x', sha256: abc}]}", "files.0.sha256", "64 hex"),
        ("source: {url: https://x.org, files: [{name: x, unpack: 'data:x', member: a}]}", "files.0.member", "goes"),
        ("source: {like: clip-words}", "source.like", "must be FAMILY/NAME"),
        (HUB + ", without: [x]}", "source.without", "goes with `like`"),
        ("source: 3", "source", "must be"),
    ],
)  # fmt: skip
def test_mistakes_in_a_source(here, text, key, what):
    place = shelf(here / "shelf", adapters="mine") / "adapters" / "mine.yaml"
    place.write_text(CARD + text + "\n")
    with pytest.raises(CardError) as caught:
        Registry([str(here / "shelf")]).card("adapters", "mine")
    assert what in caught.value.what
    assert caught.value.at.startswith(f"{place}:")
    assert key in caught.value.what or key in caught.value.at
    assert "mmalign show llms vicuna-7b" in caught.value.fix


def test_like_another_card_and_without_some_of_its_files(here):
    first = "source: {url: https://x.org, files: [{name: a, to: 'data:a'}, {name: b, to: 'data:b'}]}\n"
    for name, text in (
        ("one", first),
        ("two", "source: {like: adapters/one, without: [a]}\n"),
        ("three", "source: {like: adapters/two}\n"),
        ("loop", "source: {like: adapters/loop}\n"),
        ("lost", "source: {like: adapters/on}\n"),
    ):
        (shelf(here / "shelf", adapters=name) / "adapters" / f"{name}.yaml").write_text(CARD + text)
    registry = Registry([str(here / "shelf")])
    assert [file.name for file in registry.sources(registry.card("adapters", "three"))[0].files] == ["b"]
    with pytest.raises(CardError, match="the source of adapters/loop is like itself"):
        registry.sources(registry.card("adapters", "loop"))
    with pytest.raises(CardError, match="no adapters card named 'on'"):
        registry.sources(registry.card("adapters", "lost"))


def test_sizes():
    assert [downloads.about(size) for size in (12, "1.5 kB", "27 GB", UNKNOWN)] == [12, 1500, 27 * 10**9, None]
    assert [downloads.told(size) for size in (1992138, 12, "27 GB", UNKNOWN)] == [
        "1.99 MB", "12 B", "about 27 GB", "not known",
    ]  # fmt: skip
    assert downloads.human(999_999_999) == "1000 MB"


def test_addresses():
    file = File("a.zip", to="data:a")
    assert Source(hub="a/b", revision="v1").address() == "hub a/b at v1"
    assert Source(url="https://x.org/y/").address(file) == "https://x.org/y/a.zip"
    assert Source(page="https://x.org/z").address(file) == "https://x.org/z"
    assert Source(hub="a/b").model
    assert not Source(hub="datasets/a/b").model
    assert Source(hub="datasets/a/b").repo == "a/b"


def test_files_that_travel_do_not_hold_sources():
    card = Registry().card("llms", "vicuna-7b")
    assert card.source[0].hub == "lmsys/vicuna-7b-v1.5"
    assert "source" not in as_dict(card)


def test_show_prints_where_from(mmalign):
    said = mmalign("show", "llms", "gemma-2b-it").out
    assert "source   hub google/gemma-2b-it, about 5.01 GB, gemma; gate: agree to Google's terms" in said
    said = mmalign("show", "labels", "siglip-words").out
    assert "source   https://downloads.sourceforge.net/wordlist/12dicts-6.0.2.zip, 1.99 MB, public domain" in said
    assert '"member": "American/2of12.txt"' in mmalign("show", "labels", "clip-words", "--json").out
