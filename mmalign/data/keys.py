"""The keys of a row: which are refused because they change what is learned, and which are left over."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from mmalign.data import flags
from mmalign.data.reasons import Unusable

SYSTEM = ("system", "system_prompt", "system_message")  # a row's own system turn, where its turns have none
NAMED = 8  # keys of a row that are named; the others are counted together

TOOLS = (
    "tools", "tool_calls", "tool_call", "tool_call_id", "tool_choice", "tool_plan", "functions", "function_call",
    "function_calls",
)  # fmt: skip
REASONING = (
    "reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks", "thought", "thoughts",
)  # fmt: skip
PAIRS = (
    "chosen", "rejected", "chosen_response", "rejected_response", "chosen_messages", "rejected_messages",
    "chosen_images", "rejected_images", "rejected_conversations", "chosen_conversations", "kto_tag",
)  # fmt: skip
MASKS = (  # of a whole row: which of its turns or tokens are meant does not say so itself
    "loss_mask", "loss_weight", "loss_scale", "masked", "train_on_turn", "train_detail", "assistant_masks",
    "completion_mask",
)  # fmt: skip
ROW_FLAGS = flags.KEYS | frozenset(MASKS)
OTHER = ("video", "videos", "audio", "audios")  # a row about them would be trained as text about nothing
PICTURES = ("image", "images")  # the same in a turn, where they are read in a row only
WHY = {
    **dict.fromkeys(TOOLS, "write calls and results into the turns' texts, or leave such rows out"),
    **dict.fromkeys(REASONING, "put it into the answer's text, as the model is to write it, or take the key out"),
    **dict.fromkeys(PAIRS, "preference pairs are not trained on: keep one answer, in the conversation"),
    "train_detail": flags.FIX,
}
ABSENT = ("", "[]", "{}", "null", "None", "none", "nan")

Row = Mapping[str, Any]


def refuse(row: Row, turn: bool = False) -> None:
    """Unusable where a row, or a turn, has something that would be lost in silence. turn: it is one."""
    whose = "turn" if turn else "row"
    for key in row.keys() & WHY.keys() | set(filter(_is_of_pair, row)):
        if _is_there(row[key]) and (row[key] is not False or key == "kto_tag"):
            what = f"the {whose} has {key}, which is not read, and changes what is learned"
            raise Unusable("keys", what, fix=WHY.get(key, WHY["rejected"]))
    for key in (*OTHER, *(PICTURES if turn else ())):
        if row.get(key):
            fix = "the row's own `images`, or parts of the turn's content" if key in PICTURES else ""
            raise Unusable("shape", f"the {whose} has {key}, which are not read", fix=fix)
    if turn:
        return
    if isinstance(row.get("label"), bool):
        raise Unusable("keys", "the row has label, which says whether its answer is wanted, and is not read",
                       fix="leave out the rows whose label is false, and take the key away")  # fmt: skip
    for key in row.keys() & ROW_FLAGS:
        if _is_mask(key, row[key]):
            what = f"the row has {key}: {str(row[key])[:40]!r}, and such a flag is read in its turns only"
            raise Unusable("flags", what, fix=flags.FIX)


def _is_mask(key: str, value: Any) -> bool:
    """Whether a row's own key says which tokens count; `mask: User`, as NeMo has it, is what is done anyway."""
    if key == "mask" and isinstance(value, str):
        return value.lower() not in ("", "user", "human", "system")
    if isinstance(value, str):  # of a CSV
        value = {"false": False, "0": False, "0.0": False, "no": False}.get(value.strip().lower(), value)
    is_off = isinstance(value, (int, float)) and value == 0
    return value is not None and (key in MASKS or isinstance(value, (list, tuple)) or is_off)


@lru_cache(1024)  # the keys of rows are few
def _is_of_pair(key: Any) -> bool:
    """Whether a key is of a preference pair, as trainers spell it: `rejected_answer`, `conversations_rejected`."""
    name = str(key).lower()
    return name.startswith("rejected") or name.endswith("_rejected")


def system(row: Row) -> str:
    """The text of a row's own system turn, empty where it has none; Unusable where it is no text, or there are two."""
    texts = [row[key] for key in SYSTEM if row.get(key) is not None]
    if wrong := next((text for text in texts if not isinstance(text, str)), None):
        raise Unusable("shape", f"the row's system turn is {str(wrong)[:40]!r}, not a text")
    said = dict.fromkeys(text for text in texts if isinstance(text, str) and text.strip())
    if len(said) > 1:
        raise Unusable("keys", f"the row has several system turns: {', '.join(key for key in SYSTEM if key in row)}")
    return next(iter(said), "")


def unread(mapping: Row, read: frozenset[str], whose: Callable[[str], str]) -> Iterator[str]:
    """A note for every key with something in it that is not read. whose: the note of a key."""
    keys = sorted(str(key) for key in mapping.keys() - read if _is_there(mapping[key]))
    yield from (whose(repr(key[:40])) for key in keys[:NAMED])
    if len(keys) > NAMED:
        yield whose("(and others)")


def _is_there(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() not in ABSENT
    return value is not None and (not isinstance(value, (list, tuple, dict)) or len(value) > 0)
