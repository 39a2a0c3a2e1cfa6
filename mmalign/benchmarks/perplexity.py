"""What training did to the language: perplexity on texts without images, now and before."""

import re
from copy import copy
from typing import TYPE_CHECKING

from mmalign.benchmarks import Probe, Score, Subject
from mmalign.benchmarks.some import some
from mmalign.errors import CheckError, DataError

if TYPE_CHECKING:
    from mmalign.data import Data

MARK = re.compile(r"\s*<image>\s*")


class Perplexity(Probe):
    """exp of the mean loss per token over texts of a data set, images left out.

    data: where they come from, from the first on. texts: how many.

    `perplexity` is the trained model's, `before` that of the language model it started from; a model from elsewhere has
    only the first, and so has a language model alone. A text is all that is said in a record, its turns joined by
    blanks.
    """

    shows = False
    meanings = {
        "perplexity": ("exp of the mean loss per token of texts without pictures, after training", "none", "lower"),
        "before": ("the same of the language model before any training", "none", "lower"),
        "change": ("what training added to it", "none", "lower"),
    }

    def __init__(self, data: "Data", texts: int = 200) -> None:
        if texts < 1:
            raise CheckError(f"perplexity: texts must be at least 1, got {texts}")
        self.data, self.texts = data, texts
        self.most: int | None = None  # of these texts

    def limited(self, items: int) -> "Perplexity":
        limited = copy(self)
        limited.most = items
        return limited

    def takes(self) -> int:
        return 2 * 3 * min(self.texts, self.most or self.texts)  # now and before; a text is longer than an answer

    def measure(self, model: Subject) -> Score:
        texts = self._texts()
        metrics = {"perplexity": (now := model.perplexity(texts))}
        if model.untrained:
            before = model.untrained().perplexity(texts)
            metrics |= {"before": before, "change": now - before}
        return Score(metrics, "perplexity", counts={"texts": len(texts)})

    def _texts(self) -> list[str]:
        texts: list[str] = []
        for record in self.data:
            text = " ".join(MARK.sub(" ", turn.text).strip() for turn in record.turns).strip()
            texts += [text] if text else []
            if len(texts) == self.texts:
                break
        if not texts:
            raise DataError("perplexity: the data has no text", fix="a data set with turns that say something")
        return some(texts, self.most)
