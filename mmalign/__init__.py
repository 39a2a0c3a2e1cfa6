"""mmalign: train, evaluate and explain models whose visual tokens are aligned with the words a language model knows.

    model = mmalign.load("runs/train-...")              # what `mmalign eval` takes
    model.ask("Is there a cat?", image)
    model.nearest_words(image, layers=[0, 8, 16])
    labels = mmalign.label(images, "siglip-words")
    loss = mmalign.sea_loss(model.visual_tokens(images), labels, model.word_embeddings(labels.words))
    supervised = mmalign.supervise(llava, processor, {"sea": 1.0}, labels="siglip-words")
    results = mmalign.run("quickstart", "seed=7")

What is public is in `__all__`. Each name is imported when it is first used: `import mmalign` loads no library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mmalign.errors import MMAlignError as MMAlignError
    from mmalign.integrations.trainer import supervise as supervise
    from mmalign.labels import PatchLabels as PatchLabels
    from mmalign.objectives.assignment import assignment_loss as assignment_loss
    from mmalign.objectives.basic import attention_share as attention_share
    from mmalign.objectives.basic import basic_direction_loss as basic_direction_loss
    from mmalign.objectives.basic import basic_distribution_loss as basic_distribution_loss
    from mmalign.objectives.basic import refined_tokens as refined_tokens
    from mmalign.objectives.next_embedding import next_embedding_loss as next_embedding_loss
    from mmalign.objectives.reconstruction import denoising_loss as denoising_loss
    from mmalign.objectives.reconstruction import reconstruction_loss as reconstruction_loss
    from mmalign.objectives.representation import representation_loss as representation_loss
    from mmalign.objectives.sea import sea_loss as sea_loss
    from mmalign.objectives.visual_words import visual_words_loss as visual_words_loss
    from mmalign.objectives.vocabulary_regression import vocabulary_regression_loss as vocabulary_regression_loss
    from mmalign.pipeline.load import load as load
    from mmalign.pipeline.recipes import preview as preview
    from mmalign.pipeline.recipes import run as run
    from mmalign.plan.recipe import Recipe as Recipe
    from mmalign.vlm.labelling import Labeller as Labeller
    from mmalign.vlm.labelling import label as label
    from mmalign.vlm.model import VLM as VLM
    from mmalign.vlm.model import nearest_words as nearest_words
    from mmalign.vlm.supervised import Supervised as Supervised

_WHERE = {  # name: the module it stands in
    "Labeller": "mmalign.vlm.labelling",
    "MMAlignError": "mmalign.errors",
    "PatchLabels": "mmalign.labels",
    "Recipe": "mmalign.plan.recipe",
    "Supervised": "mmalign.vlm.supervised",
    "VLM": "mmalign.vlm.model",
    "assignment_loss": "mmalign.objectives.assignment",
    "attention_share": "mmalign.objectives.basic",
    "basic_direction_loss": "mmalign.objectives.basic",
    "basic_distribution_loss": "mmalign.objectives.basic",
    "denoising_loss": "mmalign.objectives.reconstruction",
    "label": "mmalign.vlm.labelling",
    "load": "mmalign.pipeline.load",
    "nearest_words": "mmalign.vlm.model",
    "next_embedding_loss": "mmalign.objectives.next_embedding",
    "preview": "mmalign.pipeline.recipes",
    "reconstruction_loss": "mmalign.objectives.reconstruction",
    "refined_tokens": "mmalign.objectives.basic",
    "representation_loss": "mmalign.objectives.representation",
    "run": "mmalign.pipeline.recipes",
    "sea_loss": "mmalign.objectives.sea",
    "supervise": "mmalign.integrations.trainer",
    "visual_words_loss": "mmalign.objectives.visual_words",
    "vocabulary_regression_loss": "mmalign.objectives.vocabulary_regression",
}
__all__ = [
    "VLM",
    "Labeller",
    "MMAlignError",
    "PatchLabels",
    "Recipe",
    "Supervised",
    "assignment_loss",
    "attention_share",
    "basic_direction_loss",
    "basic_distribution_loss",
    "denoising_loss",
    "label",
    "load",
    "nearest_words",
    "next_embedding_loss",
    "preview",
    "reconstruction_loss",
    "refined_tokens",
    "representation_loss",
    "run",
    "sea_loss",
    "supervise",
    "visual_words_loss",
    "vocabulary_regression_loss",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'mmalign' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
