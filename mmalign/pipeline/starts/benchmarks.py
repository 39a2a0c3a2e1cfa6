"""{{ name }}: a benchmark for mmalign."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmalign.benchmarks import Benchmark, Question, Score
from PIL import Image

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 80, 220), "yellow": (235, 215, 50)}


class {{ cls }}(Benchmark):
    """One line that says what it asks; `mmalign list benchmarks` shows it.

    size: of the pictures, in pixels.
    """

    max_new_tokens = 4
    meanings = {"accuracy": ("share of colors that are named", "percent", "higher")}  # for the report

    def __init__(self, size: int = 72) -> None:
        self.size = size

    def questions(self) -> Sequence[Question]:
        """Without `options`, the model writes an answer in place of choosing one."""
        return [Question(f"color-{color}", "What color is the image?", color, tuple(COLORS)) for color in COLORS]

    def image(self, reference: Any) -> Image.Image:
        return Image.new("RGB", (self.size, self.size), COLORS[reference])

    def right(self, qid: str) -> str:
        """What the answer should be, shown in the report."""
        return qid.removeprefix("color-")

    def score(self, answers: Mapping[str, str]) -> Score:
        """Accuracy in percent; a question without an answer counts as wrong."""
        items = {
            f"color-{color}": 100.0 * (answers.get(f"color-{color}", "").strip(" .").lower() == color)
            for color in COLORS
        }
        accuracy = sum(items.values()) / len(items)
        return Score({"accuracy": accuracy}, "accuracy", items, {"asked": len(items)})
