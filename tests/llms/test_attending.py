"""`engine.attention`: every kernel computes the same, BASIC's attention rows stand beside each; what is not there is
refused. Flash attention runs on GPUs: a kernel that takes the same inputs stands in its place in the registry.
"""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmalign.errors import CheckError
from mmalign.llms import LLM, attending, watch
from mmalign.llms.causal import CausalLM
from mmalign.objectives.basic import Direction
from mmalign.vlm.prefix import Pass
from tests import parts
from tests.llms.test_decoding import GROUPS
from tests.objectives.test_basic import batch_of, build, folders  # noqa: F401

FLASH = "flash_attention_2"


def stand_in(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **_):
    """As transformers calls flash attention: it hides the future itself, and a mask is (R, S) of what is no padding."""
    assert attention_mask is None or attention_mask.dim() == 2
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    place = torch.arange(query.shape[2])
    gap = place[:, None] - place
    seen = (gap >= 0) & (gap < (sliding_window or len(place)))
    if attention_mask is not None:
        seen = seen & (attention_mask[:, None, None, :] > 0)
    out = scaled_dot_product_attention(query, key, value, seen, scale=scaling).nan_to_num()
    return out.transpose(1, 2).contiguous(), None


@pytest.fixture
def flash(monkeypatch):
    """Flash attention, as if there were a GPU and the package."""
    before = ALL_ATTENTION_FUNCTIONS[FLASH]
    AttentionInterface.register(FLASH, stand_in)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def switch(lm, kernel):
        lm.config._attn_implementation_internal = kernel

    def attend(llm):
        monkeypatch.setattr(type(llm.lm), "set_attn_implementation", switch)
        llm.attend("flash")
        assert llm.lm.config._attn_implementation == FLASH

    yield attend
    AttentionInterface.register(FLASH, before)


@torch.no_grad()
def states(llm, left=False):
    torch.manual_seed(1)
    embeds, mask = torch.randn(2, 9, llm.dim), torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0 if left else 1
    mask[1, 7:] = 1 if left else 0
    return llm(embeds, mask)[mask > 0]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_every_kernel_gives_the_same(tmp_path, family, left, flash):
    llm = CausalLM(str(parts.llm(family, tmp_path))).eval()
    by_itself = states(llm, left)
    for kind in ("sdpa", "eager"):
        llm.attend(kind)
        assert llm.lm.config._attn_implementation == kind
        assert torch.allclose(states(llm, left), by_itself, atol=1e-5)
    llm.attend("auto")
    assert llm.lm.config._attn_implementation == "eager"  # as it was
    flash(llm)
    assert torch.allclose(states(llm, left), by_itself, atol=1e-5)


@torch.no_grad()
def test_answers_are_decoded_with_masks_of_our_own(tmp_path, flash):
    llm = CausalLM(str(parts.llm("llama", tmp_path))).eval()
    expected = Pass(llm, GROUPS).write(6)
    flash(llm)
    assert Pass(llm, GROUPS).write(6) == expected
    assert llm.lm.config._attn_implementation == FLASH
    llm.lm.config._attn_implementation_internal = watch.EAGER
    AttentionInterface.register(watch.EAGER, watch.eager)
    assert Pass(llm, GROUPS).write(6) == expected


def rows(model, batch):
    places = model.vlm.places(batch.ids_RS, batch.mask_RS, batch.images)
    with torch.no_grad(), model.vlm.llm.watched(model.looks, places) as seen:
        model.vlm.llm(model.embed(batch, model.see(batch)[0]), batch.mask_RS)
    (look,) = model.looks
    return seen.refined[look], seen.shares[look]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_attention_rows_stand_beside_every_kernel(folders, family, left, flash):  # noqa: F811
    batch = batch_of(build(folders, family), [0, 1, 2, 3], left)
    refined, shares = rows(build(folders, family, direction=Direction()), batch)
    for kind in ("eager", "flash"):
        model = build(folders, family)
        flash(model.vlm.llm) if kind == "flash" else model.vlm.llm.attend(kind)
        model.objectives["direction"] = Direction()
        model.prepare()
        kernel = model.vlm.llm.lm.config._attn_implementation
        assert kernel == (FLASH if kind == "flash" else watch.EAGER)
        model.prepare()  # again changes nothing
        assert model.vlm.llm.lm.config._attn_implementation == kernel
        ours = rows(model, batch)
        assert torch.allclose(ours[0], refined, rtol=1e-4, atol=1e-5)
        assert torch.allclose(ours[1], shares, rtol=1e-4, atol=1e-6)


def test_the_mask_of_a_kernel_that_hides_the_future_itself():
    """By the definition, position by position: windows of 3, rows with padding on either side, and none of both."""
    query = torch.zeros(2, 1, 5, 4)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert watch._seen(query, None, None) is None
    assert watch._seen(query, None, 5) is None
    four = torch.ones(2, 1, 5, 5)
    assert watch._seen(query, four, 3) is four
    for given, window in ((mask, None), (mask, 3), (None, 3)):
        seen = watch._seen(query, given, window)
        for r in range(2):
            for i in range(5):
                for j in range(5):
                    real = given is None or bool(given[r, j])
                    assert bool(seen[r, 0, i, j]) == (j <= i and i - j < (window or 5) and real)


# What is refused


def refusal(call, *words):
    with pytest.raises(CheckError) as caught:
        call(*words)
    assert caught.value.at == "engine.attention"
    return caught.value.what, caught.value.fix


def test_flash_attention_without_a_gpu_or_its_package(tmp_path, monkeypatch):
    llm = CausalLM(str(parts.llm("llama", tmp_path)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    what, fix = refusal(llm.attend, "flash")
    assert (what, fix) == ("flash attention runs on a GPU, and here is none", "engine: {attention: sdpa}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def missing(kernel):
        raise ImportError("FlashAttention2 has been toggled on, but it cannot be used\nmore")

    monkeypatch.setattr(llm.lm, "set_attn_implementation", missing)
    what, fix = refusal(llm.attend, "flash")
    assert what == "flash attention of LlamaForCausalLM: FlashAttention2 has been toggled on, but it cannot be used"
    assert fix == "pip install flash-attn, or engine: {attention: sdpa}"
    assert refusal(llm.attend, "eager")[1] == "engine: {attention: auto}"


def test_a_model_without_the_switch(tmp_path, monkeypatch):
    """transformers warns and goes on as before."""
    llm = CausalLM(str(parts.llm("llama", tmp_path)))
    monkeypatch.setattr(llm.lm, "set_attn_implementation", lambda kernel: None)
    assert refusal(llm.attend, "eager")[0] == "LlamaForCausalLM has no eager attention"
    assert refusal(LLM().attend, "sdpa")[0] == "how LLM computes attention cannot be chosen"
    LLM().attend("auto")


def test_only_flash_attention_is_left_for_a_mask(tmp_path):
    config = CausalLM(str(parts.llm("llama", tmp_path))).lm.config
    with attending.masked(config):
        assert config._attn_implementation == "sdpa"
    config._attn_implementation_internal = FLASH
    with pytest.raises(KeyError), attending.masked(config):
        assert config._attn_implementation == "sdpa"
        raise KeyError
    assert config._attn_implementation == FLASH
