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
class Conversation:
    """The turns of a row, one MARK in them for each image, and the references of its images."""

    turns: tuple[Turn, ...]
    images: tuple[Any, ...]


def parse_row(row: Row) -> Conversation:
    """The conversation in a row of any dialect; Unusable when it is none that somebody could learn from."""
    for key in OTHER:
        if row.get(key):
            raise Unusable("shape", f"the row has {key}, which are not read")
    images = _images(row)
    turns = _turns(row, images)
    turns = turns[_first(turns) :]
    _check_turns(turns)
    return Conversation(tuple(_with_marks(turns, len(images))), tuple(images))


def _images(row: Row) -> list[Any]:
    """The references under `image` or `images`: a string, an object, or a list of them."""
    columns = [row[key] for key in ("image", "images") if row.get(key) is not None]
    if len(columns) > 1:
        raise Unusable("shape", "the row has both `image` and `images`")
    references = columns[0] if columns else []
    references = list(references) if isinstance(references, (list, tuple)) else [references]
    return [_reference(reference) for reference in references if reference is not None and reference not in NOTHING]


def _reference(reference: Any) -> Any:
    if isinstance(reference, (int, float)) or (isinstance(reference, Mapping) and not reference):
        raise Unusable("shape", f"an image is {reference!r}, neither a path nor its bytes")
    return reference


def _turns(row: Row, images: list[Any]) -> list[Turn]:
    for key in ("conversations", "messages"):
        if row.get(key) is not None:
            turns = [_RawTurn(item, images).turn() for item in _list(row[key], key)]
            _unwrap_inline(turns, images)
            return turns
    if row.get("texts") is not None:
        exchanges = [_object(item, "texts") for item in _list(row["texts"], "texts")]
        roles: tuple[Role, ...] = ("user", "assistant")
        return [_turn(role, exchange[role]) for exchange in exchanges for role in roles]
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


class _RawTurn:
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
        """The turn with a MARK for each image in its content; Unusable where it is none."""
        if not isinstance(self.content, (list, tuple)):
            return _turn(ROLES[self.role], self.content)
        return _turn(ROLES[self.role], "\n".join(self._part(part) for part in self.content))

    def _part(self, part: Any) -> str:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            return _turn("user", part.get("text")).text
        if kind not in ("image", "image_url"):
            raise Unusable("shape", f"a part of a turn is {_short(part)}, neither text nor an image")
        keys = ("image_url", "image", "url", "path")
        reference = next((part[key] for key in keys if part.get(key) is not None), None)
        reference = reference.get("url") if isinstance(reference, Mapping) and "url" in reference else reference
        if reference is not None:
            self.images.append(_InlineImage(_reference(reference)))
        return MARK


@dataclass(frozen=True)
class _InlineImage:
    """An image that stands in a turn's content."""

    reference: Any


def _unwrap_inline(turns: Sequence[Turn], images: list[Any]) -> None:
    """Images from parts are in order; rows that bring some in parts and some in a column do not say which is which."""
    inline = [image for image in images if isinstance(image, _InlineImage)]
    if inline and len(inline) < len(images):
        raise Unusable("marks", "some images stand in the turns and some in a column of their own")
    if inline:
        images[:] = [image.reference for image in inline]


def _first(turns: Sequence[Turn]) -> int:
    """Where the conversation begins: an answer before any question is left out, as LLaVA does."""
    return 1 if turns and turns[0].role == "assistant" else 0


def _check_turns(turns: Sequence[Turn]) -> None:
    roles = [turn.role for turn in turns if turn.role != "system"]
    if any(turn.role == "system" for turn in turns[1:]):
        raise Unusable("roles", "the system speaks later than first")
    if roles[:1] == ["assistant"]:
        raise Unusable("roles", "the conversation does not begin with the user")
    for number, role in enumerate(roles):
        if role != ("user", "assistant")[number % 2]:
            raise Unusable("roles", f"the {role} speaks twice in a row")
    if "assistant" not in roles:
        raise Unusable("unanswered", "there is no answer in the row")
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.text.strip():
            raise Unusable("blank", f"turn {number}, an answer, says nothing")


def _with_marks(turns: Sequence[Turn], images: int) -> list[Turn]:
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
    turns = [_mark_in_front(turn) if turn.text.count(MARK) == 1 else turn for turn in turns]
    for number, turn in enumerate(turns, 1):
        if not turn.text.strip():
            raise Unusable("blank", f"turn {number}, the {turn.role}'s, says nothing")
    return turns


def _mark_in_front(turn: Turn) -> Turn:
    text = turn.text.replace(MARK, "").strip()
    return Turn(turn.role, f"{MARK}\n{text}" if text else MARK)


def _short(item: Any) -> str:
    text = repr(item)
    return text if len(text) <= 60 else f"{text[:57]}..."
