"""The toy world's data sets: captions for both kinds of alignment, conversations about images, and texts."""

from typing import TYPE_CHECKING, ClassVar

from numpy.random import Generator
from PIL import Image

from mmalign.data import MARK, Data, Record, Truth, Turn
from mmalign.errors import CheckError, DataError, suggest
from mmalign.toyworld import language, render
from mmalign.toyworld.world import SIDE, Scene, scene, stream

if TYPE_CHECKING:
    from mmalign.vision import Frame

SPLITS = ("train", "eval")  # no scene of one is a scene of the other
MOST_QUESTIONS = 12  # that differ, about any scene


class Scenes:
    """The images of one split: drawn when asked for, always the same. A CheckError for a split that is not there."""

    def __init__(self, split: str, seed: int) -> None:
        if split not in SPLITS:
            raise CheckError(f"the toy world has no split {split!r}", fix=suggest(split, SPLITS))
        self.split, self.seed = split, seed

    def scene(self, number: int) -> Scene:
        """What stands in an image."""
        return scene(self.seed, self.split, number)

    def image(self, number: int) -> Image.Image:
        """SIDE x SIDE pixels, RGB."""
        noise = self.stream("noise", number).bytes(SIDE * SIDE * 3)
        return Image.fromarray(render.pixels(self.scene(number), noise))

    def truth(self, number: int, frame: "Frame") -> Truth:
        """What each patch of a frame of an image shows."""
        return render.truth(self.scene(number), frame.grid, frame.region)

    def stream(self, purpose: str, number: int) -> Generator:
        """Random numbers of an image for one purpose, always the same."""
        return stream(purpose, self.seed, self.split, number)


class ToyData(Data):
    """Records of a split. The same number means the same scene in every data set of that split and seed.

    size: how many records. split: train or eval; no scene is in both. seed: of another world.

    A CheckError for a negative size.
    """

    kind: ClassVar[str]

    def __init__(self, size: int, split: str = "train", seed: int = 0) -> None:
        if size < 0:
            raise CheckError(f"size cannot be negative, got {size}")
        self.size, self.scenes = size, Scenes(split, seed)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> Record:
        if not 0 <= number < self.size:
            raise DataError(f"no record {number}", fix=f"0 to {self.size - 1}")
        texts = self.texts(self.scenes.stream(self.kind, number), self.scenes.scene(number))
        turns = tuple(Turn("assistant" if index % 2 else "user", text) for index, text in enumerate(texts))
        return Record(f"{self.scenes.split}-{number}", turns, (number,) if MARK in texts[0] else ())

    def texts(self, random: Generator, scene: Scene) -> list[str]:
        """The texts of user and assistant in turn."""
        raise NotImplementedError

    def image(self, reference: int) -> Image.Image:
        return self.scenes.image(reference)

    def truth(self, reference: int, frame: "Frame") -> Truth:
        return self.scenes.truth(reference, frame)


class AltTexts(ToyData):
    """Images with short, incomplete captions, as CLIP is trained on."""

    kind = "pairs"

    def texts(self, random: Generator, scene: Scene) -> list[str]:
        return [MARK, language.alt_text(random, scene)]


class Captions(ToyData):
    """Images with brief captions that leave things out, for the align stage."""

    kind = "captions"

    def texts(self, random: Generator, scene: Scene) -> list[str]:
        return [f"{MARK} {language.WHAT}", language.brief(random, scene)]


class VisualChat(ToyData):
    """Images with a conversation, for the tune stage.

    questions: with their answers, about one image; at most 12.
    """

    kind = "chat"

    def __init__(self, size: int, split: str = "train", seed: int = 0, questions: int = 3) -> None:
        super().__init__(size, split, seed)
        self.questions = _check_questions(questions)

    def texts(self, random: Generator, scene: Scene) -> list[str]:
        texts = conversation(random, scene, self.questions)
        return [f"{MARK} {texts[0]}", *texts[1:]]


class Texts(ToyData):
    """Texts without images: scenes told and asked about, scenes told again in other words, lists to repeat, and tales.

    retold, repeats, tales: shares of those; the rest are told scenes. questions: about each of them, at most 12.
    """

    kind = "texts"

    def __init__(
        self,
        size: int,
        split: str = "train",
        seed: int = 0,
        questions: int = 4,
        retold: float = 0.2,
        repeats: float = 0.12,
        tales: float = 0.1,
    ) -> None:
        super().__init__(size, split, seed)
        self.questions, self.retold, self.repeats, self.tales = _check_questions(questions), retold, repeats, tales

    def texts(self, random: Generator, scene: Scene) -> list[str]:
        drawn = random.random()
        if drawn < self.repeats:
            return list(language.repeat(random))
        if drawn < self.repeats + self.tales:
            return [language.TELL, language.tale(random)]
        description = language.description(random, scene)
        if drawn < self.repeats + self.tales + self.retold:
            return [f"{description} {language.DESCRIBE}", language.caption(random, scene)]
        texts = conversation(random, scene, self.questions)
        return [f"{description} {texts[0]}", *texts[1:]]


def _check_questions(questions: int) -> int:
    if not 1 <= questions <= MOST_QUESTIONS:
        raise CheckError(f"questions must be 1 to {MOST_QUESTIONS}, got {questions}")
    return questions


def conversation(random: Generator, scene: Scene, questions: int) -> list[str]:
    """Questions and answers in turn."""
    drawn = language.questions(random, scene, questions)
    return [text for question in drawn for text in (question.text, question.answer)]
