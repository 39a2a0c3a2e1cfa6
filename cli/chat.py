"""`chat`: questions and answers in the terminal, with images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmalign.errors import CheckError, DataError
from mmalign.pipeline import existing

from .images import open_rgb
from .lines import say
from .models import loaded

if TYPE_CHECKING:
    from PIL.Image import Image

HELP = "/image FILE shows an image, /forget begins anew, /quit ends"


def chat(spec: str, images: Sequence[str], most: int) -> None:
    """Read lines, answer each; the turns so far, and their images, are part of every question."""
    place = existing.find(spec)
    if images:
        existing.seeing(place, "it can be shown no image")
    pictures = [open_rgb(image) for image in images]
    talk = Talk(loaded(place), most)
    for picture in pictures:
        talk.show(picture)
    say(HELP)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        try:
            if line.startswith("/image "):
                talk.show(open_rgb(line.removeprefix("/image ").strip()))
            elif line == "/forget":
                talk.forget()
            elif line.startswith("/"):
                say(HELP)
            elif line:
                say(talk.answer(line))
        except (DataError, CheckError) as err:
            say(str(err))


class Talk:
    """A conversation; images shown since the last question come before the next one."""

    def __init__(self, model: Any, most: int) -> None:
        self.model, self.most = model, most
        self.forget()

    def forget(self) -> None:
        self.turns: list[Any] = []
        self.images: list[Any] = []  # of every mark in the turns, as `prepared` gives them
        self.fresh = 0

    def show(self, picture: "Image") -> None:
        self.images.append(self.model.prepared(picture))
        self.fresh += 1

    def answer(self, text: str) -> str:
        from mmalign.data import MARK, Turn

        turns = [*self.turns, Turn("user", f"{MARK}\n" * self.fresh + text)]
        (said,) = self.model.generate([turns], [self.images], self.most)
        self.turns, self.fresh = [*turns, Turn("assistant", said)], 0
        return str(said)
