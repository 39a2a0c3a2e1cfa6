"""{{ name }}: a language model for mmalign, of plain torch.

Letters: B samples, S positions, D width, V vocabulary, N rows, H heads, E width of a head.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from mmalign.llms import LLM
from mmalign.llms.chat import Chat
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as checkpointed

TOKENIZER = "pkg:mmalign.toyworld/llama"  # its chat template marks answers: {% raw %}{% generation %} ... {% endgeneration %}{% endraw %}
FILES = ("{{ module }}.json", "model.safetensors")  # settings and weights, in a folder that `save` wrote


class {{ cls }}(LLM):
    """One line that says what it is; `mmalign list llms` shows it.

    checkpoint: a folder that `save` wrote, or one with a tokenizer alone: then the weights are drawn from `seed`.
    random: take only the configuration, not the weights (a `language` stage trains from there). dim, depth, heads:
    of a new one.
    """

    def __init__(
        self,
        checkpoint: str = TOKENIZER,
        random: bool = False,
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
        context: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__()
        settings, weights = (Path(checkpoint) / name for name in FILES)
        if settings.is_file():
            about = json.loads(settings.read_text())
            dim, depth, heads, context = (about[key] for key in ("dim", "depth", "heads", "context"))
        self.dim, self.depth, self.heads, self.context = dim, depth, heads, context
        self.chat = Chat(checkpoint)
        self.vocab = len(self.chat.tokenizer)
        with torch.random.fork_rng(devices=[]):
            if not random:  # a `language` stage draws from the recipe's seed
                torch.manual_seed(seed)
            self.words, self.places = nn.Embedding(self.vocab, dim), nn.Embedding(context, dim)
            self.layers, self.norm = nn.ModuleList(Layer(dim, heads) for _ in range(depth)), nn.LayerNorm(dim)
            self.logits = nn.Linear(dim, self.vocab, bias=False)
        if weights.is_file() and not random:
            self.load_state_dict(load_file(weights))
        self.recompute = False

    def embed(self, ids: Tensor) -> Tensor:
        return self.words(ids)

    def forward(self, embeds_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """mask_BS: n at the positions of a row's nth sample, which sees itself alone and begins at position 0."""
        number_S = torch.arange(mask_BS.shape[1], device=mask_BS.device)
        same_BSS = mask_BS[:, :, None] == mask_BS[:, None, :]
        first_BS = same_BSS.int().argmax(-1)
        place_BS = (number_S - first_BS) * (mask_BS > 0)
        sees_B1SS = (same_BSS & (number_S[:, None] >= number_S))[:, None]
        hidden_BSD = embeds_BSD + self.places(place_BS)
        for layer in self.layers:
            if self.recompute and self.training:
                hidden_BSD = checkpointed(layer, hidden_BSD, sees_B1SS, use_reentrant=False)
            else:
                hidden_BSD = layer(hidden_BSD, sees_B1SS)
        return self.norm(hidden_BSD)

    def head(self, hidden_ND: Tensor) -> Tensor:
        return self.logits(hidden_ND)  # a module of its own, so that ZeRO-3 gathers its weight

    def checkpoint_activations(self) -> None:
        self.recompute = True

    def vocabulary(self) -> Tensor:
        return self.words.weight

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.chat.tokenizer.save_pretrained(folder)
        settings, weights = (folder / name for name in FILES)
        about = {"dim": self.dim, "depth": self.depth, "heads": self.heads, "context": self.context}
        settings.write_text(json.dumps(about))
        state = self.state_dict() if state is None else state
        save_file({name: value.contiguous() for name, value in state.items()}, weights)


class Layer(nn.Module):
    """Attention and an MLP, each beside the stream."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, hidden_BSD: Tensor, sees_B1SS: Tensor) -> Tensor:
        q_BHSE, k_BHSE, v_BHSE = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norms[0](hidden_BSD)).chunk(3, dim=-1)
        )
        mixed_BHSE = F.scaled_dot_product_attention(q_BHSE, k_BHSE, v_BHSE, attn_mask=sees_B1SS)
        hidden_BSD = hidden_BSD + self.out(mixed_BHSE.transpose(1, 2).flatten(2))
        return hidden_BSD + self.mlp(self.norms[1](hidden_BSD))
