"""The reference of the library: what `mmalign.__all__` lists, by mkdocstrings."""

import mmalign
from mmalign.plan import signatures

from .tables import said

GROUPS = {  # of the public names, in the order of a reader's day
    "Run and load": ("run", "preview", "load", "Recipe", "MMAlignError"),
    "Models": ("VLM", "nearest_words"),
    "Words of patches": ("label", "Labeller", "PatchLabels"),
    "Your own training loop": ("supervise", "Supervised"),
    "Losses of plain tensors": tuple(sorted(name for name in mmalign.__all__ if name.endswith("_loss"))),
    "What BASIC is made of": ("refined_tokens", "attention_share"),
}
HEAD = """# From Python

What is public is what `mmalign.__all__` lists; each name is imported when it is first used. Letters behind names are
the sides of a tensor: B images, P patches, Q visual tokens, K labels kept per patch, W words, D width of the language
model, V its vocabulary, L its layers.
"""


def pages() -> dict[str, str]:
    """{path: Markdown}"""
    parts = [HEAD]
    for title, names in GROUPS.items():
        parts += [f"## {title}\n", *(_entry(name) for name in names)]
    return {"reference/api.md": "\n".join(parts)}


def _entry(name: str) -> str:
    said(next(signatures.docstrings(f"{mmalign._WHERE[name]}.{name}"), ""), f"mmalign.{name}")
    return f"::: mmalign.{name}\n"
