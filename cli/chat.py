"""`chat`: questions and answers in the terminal, with images."""

from pathlib import Path
from typing import Any

from mmalign.errors import DataError

HELP = "/image FILE shows another image, /forget begins anew, /quit ends"


def chat(checkpoint: str, image: Path | None, most: int) -> None:
    """Read lines, answer each; the turns so far are part of every question."""
    from mmalign.checkpoints import load

    model = load(checkpoint)
    talk = Talk(model, most)
    if image:
        talk.show(image)
    print(HELP)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        try:
            if line.startswith("/image "):
                talk.show(Path(line.removeprefix("/image ").strip()))
            elif line == "/forget":
                talk.turns.clear()
            elif line.startswith("/"):
                print(HELP)
            elif line:
                print(talk.answer(line))
        except DataError as err:
            print(err)


class Talk:
    """A conversation about at most one image at a time."""

    def __init__(self, model: Any, most: int) -> None:
        self.model, self.most = model, most
        self.turns: list[Any] = []
        self.visual: Any = None
        self.fresh = False  # an image was shown since the last question

    def show(self, place: Path) -> None:
        """Open an image; the conversation about the one before it ends."""
        from PIL import Image

        try:
            with Image.open(place) as source:
                picture = source.convert("RGB")
        except (OSError, ValueError) as err:
            raise DataError(f"cannot open the image {place}: {err}", at=str(place), fix="a picture file") from err
        self.turns.clear()
        self.visual, self.fresh = self.model.see(picture), True

    def answer(self, text: str) -> str:
        from mmalign.data import MARK, Turn

        self.turns.append(Turn("user", f"{MARK}\n{text}" if self.fresh else text))
        said = str(self.model.reply(self.turns, self.visual, self.most))
        self.fresh = False
        self.turns.append(Turn("assistant", said))
        return said
