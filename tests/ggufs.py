"""Small GGUF files, written as llama.cpp's converter writes them: random weights and a byte-level vocabulary."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig

from mmalign.testing.small import TEXT

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPLIT = pre_tokenizers.Sequence([
    pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False),
])  # fmt: skip
CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADS, KEYS = 4, 2


def words() -> Tokenizer:
    """SmolLM2's shape: digits apart, then GPT-2's words, then bytes."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = SPLIT
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    learned.train_from_iterator([TEXT + "a  1   2    3 " * 20] * 5, trainer)
    return learned


def llama(tied: bool = True, seed: int = 0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KEYS, vocab_size=words().get_vocab_size(), tie_word_embeddings=tied,
        max_position_embeddings=128, rope_theta=5000.0, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
}  # fmt: skip


def write(
    place: Path,
    lm=None,
    kind: str | None = None,
    arch: str = "llama",
    rule: str = "smollm",
    template: str | None = CHATML,
    parts: int | None = None,
    without: str | None = None,
) -> Path:
    """kind: how matrices are quantised, such as Q8_0. rule: of splitting texts. without: a weight that is left out."""
    import gguf

    lm = lm or llama()
    config, vocab = lm.config, json.loads(words().to_str())["model"]
    tokens = sorted(vocab["vocab"], key=vocab["vocab"].get)
    out = gguf.GGUFWriter(place, arch)
    out.add_name("tiny")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KEYS)
    out.add_rope_freq_base(5000.0)
    out.add_rope_dimension_count(config.hidden_size // HEADS)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(config.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(rule)
    out.add_token_list(tokens)
    out.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    out.add_token_merges([" ".join(pair) for pair in vocab["merges"]])
    for name, number in (("unk", 0), ("bos", 1), ("eos", 2), ("pad", 2)):
        getattr(out, f"add_{name}_token_id")(number)
    out.add_add_bos_token(False)
    if template:
        out.add_chat_template(template)
    if parts:
        out.add_uint16("split.count", parts)
    for name, weight in lm.state_dict().items():
        if name == without or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        _add(out, name, weight, gguf.GGMLQuantizationType[kind] if kind and weight.dim() == 2 else None)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return place


def _add(out, name, weight, kind) -> None:
    import gguf

    for heads, part in ((HEADS, "q_proj"), (KEYS, "k_proj")):
        if part in name:  # llama.cpp turns pairs of neighbours, transformers the halves of a head
            weight = weight.view(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
    for theirs, own in NAMES.items():
        name = name.replace(theirs, own)
    values = weight.detach().float().contiguous().numpy()
    if kind is None:
        out.add_tensor(name.removeprefix("model."), values)
    else:
        out.add_tensor(name.removeprefix("model."), gguf.quantize(values, kind), raw_dtype=kind)
