"""What is said in the toy world: captions, questions with their answers, and texts that need no image."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from numpy.random import Generator

from mmalign.toyworld.world import BACKGROUNDS, COLORS, PARTNERS, PLACES, SHAPES, SIZES, Scene, Thing, draw

T = TypeVar("T")

YES_NO = ("yes", "no")
NUMBERS = ("one", "two", "three")

WHAT = "what is in the image?"
DESCRIBE = "describe the image."
EXISTS = "is there a {what} in the image?"
COLOR = "what color is the {shape}?"
SHAPE = "what shape is the {color} object?"
SIZE = "how large is the {shape}?"
PLACE = "where is the {shape}?"
COUNT = "how many objects are there?"
BACKGROUND = "what color is the background?"
REPEAT = "repeat: {words}."
TELL = "tell me something."

ADJECTIVES = (
    *("happy", "sad", "cold", "warm", "old", "young", "quiet", "loud", "dark", "bright", "heavy", "light"),
    *("soft", "hard", "clean", "dirty", "empty", "full", "strong", "weak", "brave", "lazy", "hungry", "tired"),
)
NOUNS = (
    *("soup", "forest", "child", "dog", "cat", "horse", "bird", "fish", "tree", "river", "mountain", "house", "garden"),
    *("street", "car", "train", "boat", "bread", "apple", "table", "chair", "window", "door", "book", "letter", "song"),
    *("friend", "teacher", "king", "queen", "doctor", "farmer", "winter", "summer", "morning", "night", "stone"),
    *("hand", "blood"),
)
VERBS = ("sees", "likes", "finds", "takes", "loves", "follows", "hears", "forgets", "brings", "needs")
JOINS = ("and", "but", "because", "while")


@dataclass(frozen=True)
class SceneQuestion:
    """A question about a scene and its one true answer. topic: `exists`, or an attribute. options: all answers."""

    topic: str
    text: str
    answer: str
    options: tuple[str, ...]


def exists(scene: Scene, what: str) -> SceneQuestion:
    """Whether a shape ("star") or a coloured shape ("red star") is there."""
    there = any(what in (thing.shape, f"{thing.color} {thing.shape}") for thing in scene.things)
    return SceneQuestion("exists", EXISTS.format(what=what), YES_NO[not there], YES_NO)


def attributes(scene: Scene) -> list[SceneQuestion]:
    """Every attribute question with exactly one answer: things are named by what only they are."""
    places, sizes = tuple(PLACES), tuple(SIZES)
    answerable = [
        SceneQuestion("count", COUNT, NUMBERS[len(scene.things) - 1], NUMBERS),
        SceneQuestion("background", BACKGROUND, scene.background, tuple(BACKGROUNDS)),
    ]
    for thing in scene.things:
        if sum(other.shape == thing.shape for other in scene.things) == 1:
            answerable.append(SceneQuestion("color", COLOR.format(shape=thing.shape), thing.color, tuple(COLORS)))
            answerable.append(SceneQuestion("size", SIZE.format(shape=thing.shape), thing.size, sizes))
            answerable.append(SceneQuestion("place", PLACE.format(shape=thing.shape), thing.place, places))
        if sum(other.color == thing.color for other in scene.things) == 1:
            answerable.append(SceneQuestion("shape", SHAPE.format(color=thing.color), thing.shape, tuple(SHAPES)))
    return answerable


def questions(random: Generator, scene: Scene, count: int) -> list[SceneQuestion]:
    """Different questions in random order; every other one, on average, is about existence."""
    by_text: dict[str, SceneQuestion] = {}
    while len(by_text) < count:
        question = _existence(random, scene) if random.random() < 0.5 else _attribute(random, scene)
        by_text.setdefault(question.text, question)
    return list(by_text.values())


def _existence(random: Generator, scene: Scene) -> SceneQuestion:
    """As often yes as no, for shapes and for coloured shapes."""
    thing = draw(random, scene.things)
    is_there, colored = random.random(2) < 0.5
    if is_there:
        return exists(scene, f"{thing.color} {thing.shape}" if colored else thing.shape)
    if not colored:
        return exists(scene, draw(random, absent(scene)))
    there = {f"{other.color} {other.shape}" for other in scene.things}
    # one word fits a thing that is there, the other may not
    half_true = [f"{color} {thing.shape}" for color in COLORS] + [f"{thing.color} {shape}" for shape in SHAPES]
    return exists(scene, draw(random, [what for what in half_true if what not in there]))


def _attribute(random: Generator, scene: Scene) -> SceneQuestion:
    answerable = attributes(scene)
    topic = draw(random, tuple(dict.fromkeys(question.topic for question in answerable)))
    return draw(random, [question for question in answerable if question.topic == topic])


def absent(scene: Scene) -> tuple[str, ...]:
    """Shapes that are not there, the most frequent first."""
    return tuple(shape for shape in sorted(SHAPES, key=lambda shape: -SHAPES[shape]) if shape not in scene.shapes)


def likely(scene: Scene) -> tuple[str, ...]:
    """Shapes that are not there, first those that often come with what is there."""
    partners = {PARTNERS[shape] for shape in scene.shapes}
    return tuple(sorted(absent(scene), key=lambda shape: shape not in partners))


def caption(random: Generator, scene: Scene) -> str:
    """All there is to say about an image, in one sentence."""
    things = [f"{_phrase_of(thing)} at the {thing.place}" for thing in _shuffled(random, scene.things)]
    return f"{_join(things)} on a {scene.background} background."


def alt_text(random: Generator, scene: Scene) -> str:
    """What a CLIP is trained on: no places, and one time in three only a word or two.

    Places would fill the batch with differences that mean pooling cannot see.
    """
    return _word_or_two(random, scene) if random.random() < 1 / 3 else _phrase(random, scene, len(scene.things))


def brief(random: Generator, scene: Scene) -> str:
    """Some of what is there, as captions from the web have it."""
    return f"{_phrase(random, scene, int(random.integers(1, len(scene.things) + 1)))}."


def _phrase(random: Generator, scene: Scene, things: int) -> str:
    """So many of the things, with or without their sizes, with or without the background."""
    with_size, with_background = random.random(2) < 0.5
    phrase = _join([_phrase_of(thing, with_size=bool(with_size)) for thing in _shuffled(random, scene.things)[:things]])
    return f"{phrase} on a {scene.background} background" if with_background else phrase


def _word_or_two(random: Generator, scene: Scene) -> str:
    if random.random() < 0.25:
        return draw(random, (scene.background, f"{scene.background} background"))
    thing = draw(random, scene.things)
    color, shape = thing.color, thing.shape
    return draw(random, (color, shape, f"a {shape}", f"{color} {shape}", f"{thing.size} {shape}"))


def _phrase_of(thing: Thing, with_size: bool = True) -> str:
    return f"a {thing.size} {thing.color} {thing.shape}" if with_size else f"a {thing.color} {thing.shape}"


def _join(parts: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def description(random: Generator, scene: Scene) -> str:
    """A scene told in one of several ways; each tells everything."""
    return draw(random, (caption, _sentences, _overview_then_details, _catalogue, _map))(random, scene)


def _sentences(random: Generator, scene: Scene) -> str:
    parts = [f"there is {_phrase_of(thing)} at the {thing.place}." for thing in scene.things]
    return " ".join(_shuffled(random, [*parts, f"the background is {scene.background}."]))


def _overview_then_details(random: Generator, scene: Scene) -> str:
    """First what is there, then more about each."""
    overview = f"the image shows {_join([_phrase_of(thing, with_size=False) for thing in scene.things])}."
    details = [f"the {t.color} {t.shape} is {t.size} and at the {t.place}." for t in _shuffled(random, scene.things)]
    return " ".join([overview, *details, f"the background is {scene.background}."])


def _catalogue(random: Generator, scene: Scene) -> str:
    things = [f"{t.size} {t.color} {t.shape} {t.place}" for t in _shuffled(random, scene.things)]
    return f"objects: {', '.join(things)}. background: {scene.background}."


def _map(random: Generator, scene: Scene) -> str:
    """What stands in each quadrant, in reading order and loose words, some of them again: much as patches tell it."""
    words_at = {thing.place: (thing.size, thing.color, thing.shape) for thing in scene.things}
    quadrants = [(place, _shuffled(random, words_at.get(place, (scene.background, "background")))) for place in PLACES]
    lists = [[place, *words, *words[: int(random.integers(3))]] for place, words in quadrants]
    return f"map: {', '.join(' '.join(words) for words in lists)}."


def repeat(random: Generator) -> tuple[str, str]:
    """A list of words and the same again: what teaches a small model to look up."""
    words = " ".join(draw(random, word_list("full")) for _ in range(int(random.integers(4, 13))))
    return REPEAT.format(words=words), f"{words}."


def tale(random: Generator) -> str:
    """A sentence that has nothing to do with images."""
    phrases = [f"the {draw(random, ADJECTIVES)} {draw(random, NOUNS)}" for _ in range(4)]
    first, second = f"{draw(random, VERBS)} {phrases[1]}", f"{draw(random, VERBS)} {phrases[3]}"
    return f"{phrases[0]} {first} {draw(random, JOINS)} {phrases[2]} {second}."


@cache
def word_list(name: str) -> tuple[str, ...]:
    """The words of words/<name>.txt."""
    return tuple((Path(__file__).parent / "words" / f"{name}.txt").read_text().split())


def vocabulary() -> list[str]:
    """Every word and mark that any text here can have, sorted."""
    questions = (EXISTS, COLOR, SHAPE, SIZE, PLACE, COUNT, BACKGROUND)
    other = "there is at the background is the image shows and objects map on a"
    frames = [re.sub(r"{\w+}", "", text) for text in (*questions, WHAT, DESCRIBE, REPEAT, TELL, other)]
    lists = [*YES_NO, *NUMBERS, *PLACES, *SHAPES, *COLORS, *SIZES, *BACKGROUNDS, *VERBS, *JOINS, *word_list("full")]
    return sorted({word for text in [*frames, *lists, ". , : ?"] for word in re.findall(r"\w+|[^\w\s]", text)})


def _shuffled(random: Generator, items: Sequence[T]) -> list[T]:
    return [items[int(at)] for at in random.permutation(len(items))]
