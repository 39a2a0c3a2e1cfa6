"""Pages that the repository's own files are: how to contribute, what changed, how to cite."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CITE = """# To cite

{message}

```bibtex
@software{{mmalign,
  title = {{{title}: {abstract}}},
  author = {{{{{author}}}}},
  version = {{{version}}},
  license = {{{license}}}
}}
```

The methods it is built around:

```bibtex
@article{{sea,
  title = {{{{SEA}}: Supervised Embedding Alignment for Token-Level Visual-Textual Integration in {{MLLMs}}}},
  journal = {{arXiv preprint arXiv:2408.11813}},
  year = {{2024}}
}}

@article{{basic,
  title = {{{{BASIC}}: Boosting Visual Alignment with Intrinsic Refined Embeddings
    in Multimodal Large Language Models}},
  author = {{Tang, Jianting and Wang, Yubo and Cao, Haoyu and Xu, Linli}},
  journal = {{arXiv preprint arXiv:2508.06895}},
  year = {{2025}}
}}
```

`mmalign show objectives NAME`, and the `paper` column of the [reference](reference/objectives.md), name the paper of
every other method; the cards of encoders, language models, data and benchmarks name theirs.
"""
PAGES = {  # where what the repository's files name stands here; other files are named and not linked
    "docs/objectives.md": "objectives.md",
    "docs/baselines.md": "baselines.md",
    "README.md#adding-a-part": "guide/own-parts.md",
    "CHANGELOG.md": "changes.md",
    "CITATION.cff": "citation.md",
}


def pages() -> dict[str, str]:
    """{path: Markdown}"""
    return {
        "contributing.md": linked(_text("CONTRIBUTING.md")),
        "changes.md": linked(_text("CHANGELOG.md")),
        "citation.md": cited(),
    }


def linked(text: str) -> str:
    """A text of the repository as a page: links to other pages follow them, files that are no pages are only named."""

    def place(found: re.Match[str]) -> str:
        name, target = found[1], found[2]
        if "://" in target or target.startswith("#"):
            return found[0]
        plain = name.replace("`", "")
        return f"[{name}]({PAGES[target]})" if target in PAGES else f"`{plain}`"

    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", place, text)


def cited() -> str:
    """CITATION.cff as a page."""
    told = yaml.safe_load(_text("CITATION.cff"))
    words = {key: told[key].strip() for key in ("message", "title", "abstract", "version", "license")}
    return CITE.format(**words | {"abstract": words["abstract"].rstrip(".")}, author=told["authors"][0]["name"])


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")
