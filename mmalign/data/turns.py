"""From a row in any dialect to turns and image references: LLaVA's `conversations`, `messages`, `texts`, captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmalign.data import MARK, Turn
from mmalign.data.reasons import Unusable

Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant",
    "system": "system",
}  # fmt: skip
NOTHING = ("", "None", "none", "nan")  # what stands in Cambrian's `image` where there is none
OTHER = ("video", "videos", "audio", "audios")  # a row about them would be trained as text about nothing

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Said:
    """What a row says, and the images it says it about."""

    turns: tuple[Turn, ...]
    images: tuple[Any, ...]


def said(row: Row) -> Said:
    """The turns and images of a row; Unusable when they are not a conversation somebody could learn from."""
    for key in OTHER:
        if row.get(key):
            raise Unusable("shape", f"the row has {key}, which are not read")
    images = _images(row)
    turns = _turns(row, images)
    turns = turns[_first(turns) :]
    _check(turns)
    return Said(tuple(_marked(turns, len(images))), tuple(images))


def _images(row: Row) -> list[Any]:
    """The references under `image` or `images`: a string, an object, or a list of them."""
    given = [row[key] for key in ("image", "images") if row.get(key) is not None]
    if len(given) > 1:
        raise Unusable("shape", "the row has both `image` and `images`")
    found = given[0] if given else []
    found = list(found) if isinstance(found, (list, tuple)) else [found]
    return [_reference(one) for one in found if one is not None and one not in NOTHING]


def _reference(one: Any) -> Any:
    if isinstance(one, (int, float)) or (isinstance(one, Mapping) and not one):
        raise Unusable("shape", f"an image is {one!r}, neither a path nor its bytes")
    return one


def _turns(row: Row, images: list[Any]) -> list[Turn]:
    for key in ("conversations", "messages"):
        if row.get(key) is not None:
            given = [_Parts(item, images).turn() for item in _list(row[key], key)]
            _spent(given, images)
            return given
    if row.get("texts") is not None:
        pairs = [_object(item, "texts") for item in _list(row["texts"], "texts")]
        return [turn for pair in pairs for turn in (_turn("user", pair["user"]), _turn("assistant", pair["assistant"]))]
    for key in ("caption", "text"):
        if images and isinstance(row.get(key), str):
            return [Turn("user", ""), Turn("assistant", row[key])]
    raise Unusable("shape", "the row has none of conversations, messages, texts, caption")


def _list(item: Any, key: str) -> Sequence[Any]:
    if not isinstance(item, (list, tuple)):
        raise Unusable("shape", f"{key} is {_short(item)}, not a list of turns")
    return item


def _object(item: Any, key: str) -> Row:
    if not (isinstance(item, Mapping) and {"user", "assistant"} <= item.keys()):
        raise Unusable("shape", f"{key} holds {_short(item)}, not a user's and an assistant's text")
    return item


def _turn(role: Role, text: Any) -> Turn:
    if not isinstance(text, str):
        raise Unusable("shape", f"a turn's text is {_short(text)}")
    return Turn(role, text)


class _Parts:
    """One turn: LLaVA's from and value, or role and content; a content in parts brings images of its own."""

    def __init__(self, item: Any, images: list[Any]) -> None:
        if not isinstance(item, Mapping):
            raise Unusable("shape", f"a turn is {_short(item)}, not an object")
        self.role = item.get("from", item.get("role"))
        self.content = item.get("value", item.get("content"))
        self.images = images
        if not isinstance(self.role, str) or self.role not in ROLES:
            raise Unusable("roles", f"no role {_short(self.role)}", fix="one of " + ", ".join(ROLES))

    def turn(self) -> Turn:
        if not isinstance(self.content, (list, tuple)):
            return _turn(ROLES[self.role], self.content)
        return _turn(ROLES[self.role], "\n".join(self._part(part) for part in self.content))

    def _part(self, part: Any) -> str:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            return _turn("user", part.get("text")).text
        if kind not in ("image", "image_url"):
            raise Unusable("shape", f"a part of a turn is {_short(part)}, neither text nor an image")
        given = next((part[key] for key in ("image_url", "image", "url", "path") if part.get(key) is not None), None)
        given = given.get("url") if isinstance(given, Mapping) and "url" in given else given
        if given is not None:
            self.images.append(_Placed(_reference(given)))
        return MARK


@dataclass(frozen=True)
class _Placed:
    """An image that came with its place in the conversation."""

    reference: Any


def _spent(turns: Sequence[Turn], images: list[Any]) -> None:
    """Images from parts are in order; rows that bring some in parts and some in a column do not say which is which."""
    placed = [one for one in images if isinstance(one, _Placed)]
    if placed and len(placed) < len(images):
        raise Unusable("marks", "some images stand in the turns and some in a column of their own")
    if placed:
        images[:] = [one.reference for one in placed]


def _first(turns: Sequence[Turn]) -> int:
    """Where the conversation begins: an answer before any question is left out, as LLaVA does."""
    return 1 if turns and turns[0].role == "assistant" else 0


def _check(turns: Sequence[Turn]) -> None:
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if any(turn.role == "system" for turn in turns[1:]):
        raise Unusable("roles", "the system speaks later than first")
    if spoken[:1] == ["assistant"]:
        raise Unusable("roles", "the conversation does not begin with the user")
    for number, role in enumerate(spoken):
        if role != ("user", "assistant")[number % 2]:
            raise Unusable("roles", f"the {role} speaks twice in a row")
    if "assistant" not in spoken:
        raise Unusable("unanswered", "there is no answer in the row")
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.text.strip():
            raise Unusable("blank", f"turn {number}, an answer, says nothing")


def _marked(turns: Sequence[Turn], images: int) -> list[Turn]:
    """One mark for each image. A turn's only mark goes in front, as in LLaVA; several stay where they are.

    A conversation without any mark gets them all in front of its first question.
    """
    marks = sum(turn.text.count(MARK) for turn in turns)
    if not marks and images:
        first = next(number for number, turn in enumerate(turns) if turn.role == "user")
        texts = [*[MARK] * images, *filter(None, [turns[first].text.strip()])]
        turns = [*turns[:first], Turn("user", "\n".join(texts)), *turns[first + 1 :]]
    elif marks != images:
        raise Unusable("marks", f"{marks} {MARK} marks for {images} images")
    turns = [_in_front(turn) if turn.text.count(MARK) == 1 else turn for turn in turns]
    for number, turn in enumerate(turns, 1):
        if not turn.text.strip():
            raise Unusable("blank", f"turn {number}, the {turn.role}'s, says nothing")
    return turns


def _in_front(turn: Turn) -> Turn:
    text = turn.text.replace(MARK, "").strip()
    return Turn(turn.role, f"{MARK}\n{text}" if text else MARK)


def _short(item: Any) -> str:
    text = repr(item)
    return text if len(text) <= 60 else f"{text[:57]}..."
