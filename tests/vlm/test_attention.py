"""How much a text looks at each visual token, beside transformers' own eager attention, image by image."""

import pytest
import torch

from mmalign.data import MARK, Turn
from mmalign.errors import CheckError
from tests.vlm.test_model import build, folders, picture  # noqa: F401

TEXT = "a red square"


@torch.no_grad()
def slow(vlm, image, layers):
    """Eq. 5 by loops over layers, heads and the rows of the text behind the image."""
    lm, mark = vlm.llm.lm, vlm.llm.chat.mark
    ids = vlm.llm.chat.prompt([Turn("user", f"{MARK}\n{TEXT}")], [vlm.tokens])
    own = [place for place, token in enumerate(ids) if token == mark]
    lm.set_attn_implementation("eager")
    embeds = vlm.embed(torch.tensor([ids]), vlm.visual_tokens(image))
    seen = lm.base_model(inputs_embeds=embeds, output_attentions=True, use_cache=False).attentions
    total = torch.zeros(len(own))
    for layer in seen[:layers]:
        for head in layer[0]:
            for row in range(own[-1] + 1, len(ids)):
                total += head[row, own].float()
    return total / total.sum()


@pytest.mark.parametrize("family", ["llama", "gemma", "phi3"])
@pytest.mark.parametrize("layers", [None, 1, 3])
def test_it_is_what_eager_attention_sums_to(folders, family, layers):  # noqa: F811
    vlm = build(folders, family=family).vlm
    images = [picture(3), picture(5)]
    share_BQ = vlm.attention(images, TEXT, layers)
    assert share_BQ.shape == (2, vlm.tokens)
    depth = layers or vlm.depth // 2
    for share_Q, image in zip(share_BQ, images, strict=True):
        torch.testing.assert_close(share_Q, slow(vlm, image, depth), atol=1e-6, rtol=1e-4)
    again = vlm.attention(images[0], TEXT, layers)
    assert torch.allclose(again[0], share_BQ[0], atol=1e-6)  # alone as among others, and after it was watched before


def test_layers_there_are_not(folders):  # noqa: F811
    vlm = build(folders).vlm
    with pytest.raises(CheckError, match=f"no layer 9: the language model has {vlm.depth}"):
        vlm.attention(picture(1), TEXT, 9)
    with pytest.raises(CheckError, match="attention of 0 layers"):
        vlm.attention(picture(1), TEXT, 0)
