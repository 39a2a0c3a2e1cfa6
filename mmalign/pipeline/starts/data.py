"""{{ name }}: a data set for mmalign."""

import json
from pathlib import Path
from typing import Any

from mmalign.data import MARK, Data, Record, Turn
from mmalign.errors import DataError
from PIL import Image


class {{ cls }}(Data):
    """One line that says what is in it; `mmalign list data` shows it.

    folder: with rows.jsonl, a line {"image": "a.png", "question": ..., "answer": ...} for each record, and the images.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        try:
            self.rows = (self.folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError as err:
            raise DataError(f"cannot read rows.jsonl: {err}", at=folder, fix="the folder that holds it") from err

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Record:
        try:
            row = json.loads(self.rows[number])
            turns = (Turn("user", f"{MARK}\n{row['question']}"), Turn("assistant", row["answer"]))
            return Record(f"row-{number}", turns, (row["image"],))
        except (ValueError, KeyError, TypeError) as err:
            raise DataError(f"line {number + 1} is no record: {err}", at=f"{self.folder}/rows.jsonl") from err

    def image(self, reference: Any) -> Image.Image:
        try:
            return Image.open(self.folder / reference).convert("RGB")
        except OSError as err:
            raise DataError(f"cannot read {reference}: {err}", at=str(self.folder)) from err
