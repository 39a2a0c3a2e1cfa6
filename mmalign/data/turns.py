"""From a row in any dialect to turns and image references: LLaVA's `conversations`, `messages`, `texts`, captions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmalign.data import MARK, Turn, flags, keys, marks
from mmalign.data.reasons import Unusable

Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant",
    "system": "system",
}  # fmt: skip
NOTHING = ("", "None", "none", "nan")  # what stands in Cambrian's `image` where there is none
DIALECTS = ("conversations", "messages", "texts")  # what a row's turns stand under, the first that is there
IMAGE_KEYS = ("image_url", "image", "url", "path")  # what an image stands under in a part of a turn
FILE_NAME = "file_name"  # a picture's path, in the metadata of a folder of pictures
READ = frozenset(("id", "image", "images", *keys.SYSTEM))  # of a row, beside what its turns stand under
PLAIN_ROW = frozenset(("id", "image", "conversations"))  # LLaVA's: nothing to be looked at closer
PLAIN = frozenset(("from", "role", "value", "content"))  # and of a turn
READ_TURN = PLAIN | flags.KEYS
READ_EXCHANGE = frozenset(("user", "assistant")) | flags.KEYS
READ_PART = frozenset(("type", "text", "index", *IMAGE_KEYS))
ROW_NOTE = "rows with the key {}, which is not read".format
TURN_NOTE = "rows whose turns have the key {}, which is not read".format
PART_NOTE = "rows whose turns have parts with the key {}, which is not read".format

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """The turns of a row, one MARK in them for each image, and the references of its images.

    notes: what is worth knowing of a row that can be used: keys nobody reads, marks of other models.
    """

    turns: tuple[Turn, ...]
    images: tuple[Any, ...]
    notes: tuple[str, ...] = ()


def parse_row(row: Row) -> Conversation:
    """The conversation in a row of any dialect; Unusable when it is none that somebody could learn from.

    A turn's loss flags give its weight, see flags.py; a row's own `system` is its system turn; what would change what
    is learned and is not read is refused, see keys.py, and every other key that is not read gets a note.
    """
    is_plain = row.keys() <= PLAIN_ROW
    if not is_plain:
        keys.refuse(row)
    images, notes = _images(row), list[str]()
    turns = _turns(row, images, notes)
    if _first(turns):
        notes.append("rows that begin with an answer, which is left out")
    turns = turns[_first(turns) :]
    if not is_plain:
        turns = _with_system(keys.system(row), turns)
    _check_turns(turns)
    try:
        turns = marks.place(turns, len(images))
    except Unusable as err:
        if err.reason == "marks" and not images and (key := _image_elsewhere(row)):
            raise Unusable("marks", err.detail, fix=f"write `image`, or `images`, for {key[:40]!r}") from err
        raise
    notes += map(marks.note, marks.foreign(turns))
    return Conversation(tuple(turns), tuple(images), tuple(dict.fromkeys(notes)))


def _with_system(text: str, turns: list[Turn]) -> list[Turn]:
    """The turns behind the row's own system turn; one that the conversation has too must say the same."""
    if not text:
        return turns
    if not turns or turns[0].role != "system":
        return [Turn("system", text), *turns]
    if turns[0].text.strip() != text.strip():
        raise Unusable("roles", "the row has a system turn of its own, and another one among its turns")
    return turns


def _images(row: Row) -> list[Any]:
    """The references under `image` or `images`, else `file_name`: a string, an object, or a list of them."""
    columns = [row[key] for key in ("image", "images") if row.get(key) is not None]
    if _names_a_file(row):
        columns = [row[FILE_NAME]]
    if len(columns) > 1:
        raise Unusable("shape", "the row has both `image` and `images`")
    references = columns[0] if columns else []
    references = list(references) if isinstance(references, (list, tuple)) else [references]
    return [_reference(reference) for reference in references if reference is not None and reference not in NOTHING]


def _names_a_file(row: Row) -> bool:
    """Whether a row's only image stands under `file_name`."""
    return row.get(FILE_NAME) is not None and row.get("image") is None and row.get("images") is None


def _image_elsewhere(row: Row) -> str:
    """The key of a row under which an image seems to stand, and is not read; empty where there is none."""
    rest = sorted(str(key) for key in row.keys() - READ if row[key])
    return next((key for key in rest if re.search("image|img|picture|photo", key.lower())), "")


def _reference(reference: Any) -> Any:
    if isinstance(reference, (int, float)) or (isinstance(reference, Mapping) and not reference):
        raise Unusable("shape", f"an image is {reference!r}, neither a path nor its bytes")
    return reference


def _turns(row: Row, images: list[Any], notes: list[str]) -> list[Turn]:
    key = next((key for key in DIALECTS if row.get(key) is not None), None)
    if key is None:
        key = next((key for key in ("caption", "text") if images and isinstance(row.get(key), str)), None)
    if key is None:
        raise _without_turns(row)
    if not row.keys() <= PLAIN_ROW:
        notes += keys.unread(row, READ | {key, *([FILE_NAME] if _names_a_file(row) else [])}, ROW_NOTE)
    if key in ("caption", "text"):
        if len(images) > 1:
            notes.append("rows with one caption for several images")
        return [Turn("user", ""), Turn("assistant", row[key])]
    if key == "texts":
        return [turn for item in _list(row[key], key) for turn in _exchange(item, notes)]
    parts = _Parts(images, notes)
    turns = [_plain(item) or _RawTurn(item, parts).turn() for item in _list(row[key], key)]
    _unwrap_inline(turns, images)
    return turns


def _without_turns(row: Row) -> Unusable:
    """What is said of a row without a conversation; it may have a caption all the same."""
    key = next((key for key in ("caption", "text") if row.get(key) is not None), None)
    if key is None:
        fix = "messages: [{role: user, content: ...}, {role: assistant, content: ...}]"
        return Unusable("shape", "the row has none of conversations, messages, texts, caption", fix=fix)
    if isinstance(row[key], str):
        return Unusable("shape", f"the row has none of conversations, messages, texts, and no image for its {key}")
    fix = "one text, and a row for each of several"
    return Unusable("shape", f"the row's {key} is {_short(row[key])}, not a text", fix=fix)


def _list(item: Any, key: str) -> Sequence[Any]:
    if not isinstance(item, (list, tuple)):
        raise Unusable("shape", f"{key} is {_short(item)}, not a list of turns")
    return item


def _exchange(item: Any, notes: list[str]) -> list[Turn]:
    """A question and its answer, as the Cauldron has them."""
    if not (isinstance(item, Mapping) and {"user", "assistant"} <= item.keys()):
        raise Unusable("shape", f"texts holds {_short(item)}, not a user's and an assistant's text")
    keys.refuse(item, turn=True)
    notes += keys.unread(item, READ_EXCHANGE, TURN_NOTE)
    weight = flags.weight(item)
    return [_turn("user", item["user"]), _turn("assistant", item["assistant"], weight)]


def _turn(role: Role, text: Any, weight: float | None = None) -> Turn:
    if not isinstance(text, str):
        raise Unusable("shape", f"a turn's text is {_short(text)}")
    if weight and role != "assistant":
        raise Unusable("flags", f"a flag asks to train on what the {role} says, and only answers are", fix=flags.FIX)
    return Turn(role, text, 1.0 if weight is None else weight)


def _either(item: Row, one: str, other: str) -> Any:
    """What stands under one of two keys; where it stands under both, it must be the same."""
    first, second = item.get(one), item.get(other)
    if first is not None and second is not None and first != second:
        raise Unusable("shape", f"a turn has both `{one}` and `{other}`, and they differ")
    return second if first is None else first


def _plain(item: Any) -> Turn | None:
    """A turn of nothing but `from` and `value`, as nearly all are, as `_RawTurn` reads it; None for any other."""
    if type(item) is dict and len(item) == 2 and type(text := item.get("value")) is str:
        role = item.get("from")
        return Turn(ROLES[role], text) if type(role) is str and role in ROLES else None
    return None


@dataclass
class _Parts:
    """What the contents of a row's turns bring. images: those of its columns, then those in parts; marks: in parts."""

    images: list[Any]
    notes: list[str]
    marks: int = 0

    def mark(self, part: Row) -> str:
        """The MARK of a part that is an image; its `index` in the column, where it has one, must be the next."""
        index = part.get("index")
        if index is not None and index != self.marks:
            what = f"image {self.marks} in the turns is number {index!r} of the column, and they are taken in order"
            raise Unusable("marks", what, fix="images in the order in which the turns show them")
        self.marks += 1
        return MARK


class _RawTurn:
    """One turn: LLaVA's from and value, or role and content; a content in parts brings images of its own."""

    def __init__(self, item: Any, parts: _Parts) -> None:
        if not isinstance(item, Mapping):
            raise Unusable("shape", f"a turn is {_short(item)}, not an object")
        is_plain = item.keys() <= PLAIN
        if not is_plain:
            keys.refuse(item, turn=True)
            parts.notes += keys.unread(item, READ_TURN, TURN_NOTE)
        self.role, self.content = _either(item, "from", "role"), _either(item, "value", "content")
        self.parts = parts
        if not isinstance(self.role, str) or self.role not in ROLES:
            raise Unusable("roles", f"no role {_short(self.role)}", fix="one of " + ", ".join(ROLES))
        self.weight = None if is_plain else flags.weight(item)

    def turn(self) -> Turn:
        """The turn with a MARK for each image in its content; Unusable where it is none."""
        parts = isinstance(self.content, (list, tuple))
        text = "\n".join(map(self._part, self.content)) if parts else self.content
        return _turn(ROLES[self.role], text, self.weight)

    def _part(self, part: Any) -> str:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "image", "image_url"):
            raise Unusable("shape", f"a part of a turn is {_short(part)}, neither text nor an image")
        notes = self.parts.notes
        notes += keys.unread(part, READ_PART, PART_NOTE)
        if kind == "text":
            if other := next((key for key in IMAGE_KEYS if part.get(key)), None):
                raise Unusable("shape", f"a part of a turn is a text and has {other}", fix="a part of its own for each")
            return _turn("user", part.get("text")).text
        if part.get("text"):
            raise Unusable("shape", "a part of a turn is an image and has text", fix="a part of its own for each")
        reference = next((part[key] for key in IMAGE_KEYS if part.get(key) is not None), None)
        if isinstance(reference, Mapping) and "url" in reference:
            notes += keys.unread(reference, frozenset(("url",)), PART_NOTE)
            reference = reference["url"]
        if reference is not None:
            self.parts.images.append(_InlineImage(_reference(reference)))
        return self.parts.mark(part)


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
    if not any(turn.weight for turn in turns if turn.role == "assistant"):
        raise Unusable("unanswered", "no answer in the row is trained: the flags of its turns say so")
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.text.strip():
            raise Unusable("blank", f"turn {number}, an answer, says nothing")


def _short(item: Any) -> str:
    text = repr(item)
    return text if len(text) <= 60 else f"{text[:57]}..."
