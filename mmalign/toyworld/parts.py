"""The toy world's tiny CLIP and Llama before training: their configurations and tokenizers.

    python -m mmalign.toyworld.parts [FOLDER]

writes them into FOLDER/clip, FOLDER/llama and FOLDER/llama-deep, by default the folders shipped here (weights stay as
they are; the deep one has none).

    python -m mmalign.toyworld.parts --weights RUNS

puts the weights that recipes/toyworld.yaml gave under RUNS into the folders shipped here, as bf16.
"""

import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessor, LlamaConfig, PreTrainedTokenizerFast

from mmalign.toyworld.language import vocabulary
from mmalign.toyworld.world import SIDE

PATCH = 12  # pixels: 6 x 6 patches
PAD, UNKNOWN, BOS, EOS = SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")
IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}  # the order of SPECIAL
ROLES = ("<image>", "<system>", "<user>", "<assistant>")
SPLIT = {"triangle": ("tri", "##angle"), "purple": ("pur", "##ple")}  # words of two pieces, as real tokenizers have

CHAT = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- set content = message['content'] -%}
  {%- if content is not string -%}
    {%- set content -%}
      {%- for part in content -%}{{- '<image>' if part['type'] == 'image' else part['text'] -}}{%- endfor -%}
    {%- endset -%}
  {%- endif -%}
  {%- if message['role'] == 'assistant' -%}
    {{- '<assistant>' -}}{%- generation -%}{{- content + eos_token -}}{%- endgeneration -%}
  {%- else -%}
    {{- '<' + message['role'] + '>' + content -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}
"""


def clip(folder: Path) -> None:
    """A CLIPModel of 0.5 M parameters: a ViT of 4 layers, 96 wide, and a text tower of 2, 64 wide."""
    tokenizer = word_pieces(SPECIAL, split=False, model_max_length=32, ending=True)
    shared = {"num_attention_heads": 4, "hidden_act": "gelu", "projection_dim": 64}
    text = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "max_position_embeddings": 32}
    vision = {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 4, "image_size": SIDE}
    CLIPConfig(
        text_config={**shared, **text, **IDS, "vocab_size": len(tokenizer)},
        vision_config={**shared, **vision, "patch_size": PATCH},
        projection_dim=64,
        architectures=["CLIPModel"],
    ).save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    square = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square, image_mean=half, image_std=half).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)


def llama(folder: Path, layers: int = 4) -> None:
    """A LlamaForCausalLM, 128 wide, embeddings tied: 0.8 M parameters in 4 layers, 1.6 M in 8."""
    tokenizer = word_pieces((*SPECIAL, *ROLES), split=True, model_max_length=512, ending=False)
    tokenizer.chat_template = CHAT
    LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        **IDS,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def word_pieces(special: tuple[str, ...], split: bool, model_max_length: int, ending: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of the toy world's words. split: some have two pieces. ending: texts end in <eos>, as CLIP's do."""
    words = [piece for word in vocabulary() for piece in (SPLIT.get(word, (word,)) if split else (word,))]
    ids = {token: number for number, token in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(), decoders.Replace(" :", ":")])
    template = f"{BOS} $A {EOS}" if ending else f"{BOS} $A"
    tokenizer.post_processor = processors.TemplateProcessing(
        template, special_tokens=[(BOS, ids[BOS]), (EOS, ids[EOS])]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens=list(special[len(SPECIAL) :]),
    )


def write(folder: Path) -> None:
    """All three parts, each in a folder of its own."""
    clip(folder / "clip")
    llama(folder / "llama")
    llama(folder / "llama-deep", layers=8)


def ship(trained: Path, folder: Path) -> None:
    """The weights of a trained checkpoint into a folder that holds its configuration, as bf16."""
    state = load_file(trained / "model.safetensors")
    bf16 = {name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()}
    save_file(bf16, folder / "model.safetensors", metadata={"format": "pt"})


def _newest(runs: Path, kind: str) -> Path:
    """The folder of the last finished stage of a kind."""
    return max(runs.glob(f"{kind}-*/stage.json"), key=lambda file: file.stat().st_mtime).parent


if __name__ == "__main__":
    here = Path(__file__).parent
    if sys.argv[1:2] == ["--weights"]:
        ship(_newest(Path(sys.argv[2]), "contrast") / "weights" / "vision", here / "clip")
        ship(_newest(Path(sys.argv[2]), "language") / "weights" / "llm", here / "llama")
    else:
        write(Path(sys.argv[1]) if len(sys.argv) > 1 else here)
