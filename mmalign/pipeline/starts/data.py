"""{{ name }}: a data set for mmalign."""

from typing import Any

from mmalign.data import MARK, Data, Record, Turn
from mmalign.errors import DataError
from PIL import Image


class {{ cls }}(Data):
    """One line that says what is in it.

    folder: where its images are.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.rows = [("a.png", "What is this?", "An example.")]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Record:
        file, question, answer = self.rows[number]
        turns = (Turn("user", f"{MARK}\n{question}"), Turn("assistant", answer))
        return Record(f"row-{number}", turns, (file,))

    def image(self, reference: Any) -> Image.Image:
        try:
            return Image.open(f"{self.folder}/{reference}").convert("RGB")
        except OSError as err:
            raise DataError(f"cannot read {reference}: {err}", at=self.folder) from err
