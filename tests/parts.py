"""Small parts for tests: random-weight configurations of the real classes, tokenizers built on the spot."""

from mmalign.io import sums
from mmalign.stages import export
from mmalign.testing.small import KINDS, LLMS, TEMPLATE, bytelevel, clip, dinov2, llm, sentencepiece, siglip, tokenizer

__all__ = [
    "FAMILIES", "KINDS", "TEMPLATE", "bytelevel", "clip", "dinov2", "exported", "llm", "sentencepiece", "siglip",
    "tokenizer",
]  # fmt: skip

FAMILIES = {family: LLMS[family] for family in ("llama", "mistral", "gemma", "phi", "phi3", "qwen2")}


def exported(vlm, folder):
    """The folder of an export that nobody has checked, which takes a process of seconds."""
    export.write(vlm, folder)
    sums.write(folder)
