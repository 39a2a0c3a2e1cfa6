"""Any encoder, any adapter, any language model: one training step, saved, loaded, and identical logits."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mmalign.adapters import Adapter
from mmalign.adapters.mlp import MLP
from mmalign.errors import CheckError
from mmalign.llms.causal import CausalLM
from mmalign.plan.building import build, target
from mmalign.plan.cards import Card, Registry, inside
from mmalign.testing import check_model, small
from mmalign.vlm.model import VLM

SMALL = {"width": 32, "depth": 2, "heads": 4, "tokens": 4}  # in place of a card's settings, where it has them
ADAPTERS = {
    card.name: replace(card, args={key: SMALL.get(key, value) for key, value in card.args.items()})
    for card in Registry().every("adapters")
}
# Every pair of encoder and language model, with adapters that take turns. The whole product is ten times as long.
TURNS = [
    (encoder, family, list(ADAPTERS)[(first + 3 * second) % len(ADAPTERS)])
    for first, encoder in enumerate(small.ENCODERS)
    for second, family in enumerate(small.LLMS)
]


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    """cards(encoder, family, adapter): small checkpoints, each made once."""
    folder, made = tmp_path_factory.mktemp("small"), {}

    def get(encoder, family, adapter):
        if encoder not in made:
            made[encoder] = small.encoder(encoder, folder)
        same = ADAPTERS[adapter].facts.get("same_width")
        name = (family, made[encoder]["vision"].facts["dim"] if same else 32)
        if name not in made:
            made[name] = small.llm_card(name[0], folder, name[1])
        return {**made[encoder], "llm": made[name], "adapter": ADAPTERS[adapter]}

    return get


@pytest.mark.parametrize(("encoder", "family", "adapter"), TURNS)
def test_every_encoder_with_every_language_model(cards, tmp_path, encoder, family, adapter):
    check_model(cards(encoder, family, adapter), tmp_path / "saved")


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", small.LLMS)
@pytest.mark.parametrize("encoder", small.ENCODERS)
def test_the_whole_product(cards, tmp_path, encoder, family, adapter):
    check_model(cards(encoder, family, adapter), tmp_path / "saved")


def test_new_parts_are_a_model(start, tmp_path):
    """What `mmalign new` writes, put together."""
    kinds = {"vision": "vision", "adapter": "adapter", "llm": "llm"}
    parts = {role: start(kind) for role, kind in kinds.items()}
    check_model(
        {role: Card(role, f"{part.__module__}.{part.__name__}") for role, part in parts.items()}, tmp_path / "saved"
    )


def test_a_head_that_takes_rows_and_nothing_else_is_enough(start):
    """The contract says hidden_ND: no client hands over hidden states of another shape."""

    class Rows(start("llm")):
        def head(self, hidden_ND):
            _, dim = hidden_ND.shape
            assert dim == self.dim
            return super().head(hidden_ND)

    llm = Rows()
    model = VLM(None, None, llm)
    assert model(torch.zeros(2, 3, dtype=torch.long)).shape == (2, 3, llm.vocab)
    assert model.perplexity(["a red star", "blue"]) > 1
    assert len(model.ask(["what color is the star?", "is there a ring?"], max_new_tokens=2)) == 2


def test_turns_leave_nobody_out():
    encoders, families, adapters = (set(part) for part in zip(*TURNS, strict=True))
    assert (encoders, families, adapters) == (set(small.ENCODERS), set(small.LLMS), set(ADAPTERS))


def test_small_parts_cover_the_registry(tmp_path):
    """A class of encoders or a family of language models that a new card names needs a small one here."""
    made = {kind: small.encoder(kind, tmp_path) for kind in small.ENCODERS}
    classes = {card.target for cards in made.values() for card in cards.values()}
    assert {card.target for card in Registry().every("vision")} == classes
    llms = Registry().every("llms")
    assert {target(card) for card in llms} == {CausalLM}
    assert {card.facts["family"] for card in llms if "family" in card.facts} <= set(small.LLMS)
    assert all(cards["vision"].facts["dim"] == _dim(cards) for cards in made.values())


def _dim(given):
    named = {role: replace(card, family="vision") for role, card in given.items()}
    return build(named["vision"], inner=inside("vision", named)).dim


class Forgetful(MLP):
    """Draws a shift that is in no state_dict."""

    def __init__(self, patch_dim, llm_dim, grid):
        super().__init__(patch_dim, llm_dim, grid)
        self.shift = torch.randn(llm_dim)

    def forward(self, patches_BPC):
        return super().forward(patches_BPC) + self.shift


class Detached(Adapter):
    """No gradient reaches what it has."""

    def __init__(self, patch_dim, llm_dim, grid):
        super().__init__(patch_dim, llm_dim, grid)
        self.layer = nn.Linear(patch_dim, llm_dim)

    def forward(self, patches_BPC):
        return self.layer(patches_BPC).detach()


class Stuck(CausalLM):
    """Its gradients are nothing."""

    def forward(self, embeds_BSD, mask_BS):
        for parameter in filter(lambda p: p.requires_grad, self.parameters()):
            parameter.register_hook(torch.zeros_like)
        return super().forward(embeds_BSD, mask_BS)


class Overflowing(MLP):
    def forward(self, patches_BPC):
        return super().forward(patches_BPC) * 1e38 * 1e38


@pytest.mark.parametrize(
    ("role", "part", "error", "said"),
    [
        ("adapter", Forgetful, AssertionError, "what was saved and loaded gives other logits"),
        ("adapter", Detached, CheckError, "lists 'vision', but lm gives it no gradient"),
        ("adapter", Overflowing, AssertionError, "the loss is nan"),
        ("llm", Stuck, AssertionError, "a training step leaves the llm as it was"),
    ],
)
def test_what_breaks_the_contract_is_said(cards, tmp_path, role, part, error, said):
    given = cards("siglip", "llama", "linear")
    args = given["llm"].args if role == "llm" else {}
    broken = Card("broken", f"{part.__module__}.{part.__name__}", args)
    with pytest.raises(error, match=said):
        check_model({**given, role: broken}, tmp_path / "saved")
