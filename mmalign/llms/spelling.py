"""A rendered text to token ids, piece by piece: no token crosses a piece's border, and people's texts hold no token of
the format's own.

Each piece is spelled as it is inside the whole text: behind other text without the blank that some tokenizers put in
front of a text. Where a tokenizer would join the end of one piece and the beginning of the next into one token, it
cannot, and so what stands in front is spelled the same whatever comes behind.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

ANCHORS = ("\n", "x", ":", "0")  # a piece is spelled behind the first of them that does not join it; blanks: behind x
STAND_INS = range(0x10F000, 0x10FFFE)  # characters of private use


class Spelling:
    """A fast tokenizer of transformers, which spells texts in pieces. mark: a special token that texts may hold."""

    def __init__(self, tokenizer: Any, mark: str) -> None:
        self.tokenizer = tokenizer.backend_tokenizer
        self.added = dict(tokenizer.added_tokens_decoder)  # {id: token}: what a text is parted at
        strings = sorted({str(t.content) for t in self.added.values() if t.special} - {""}, key=len, reverse=True)
        self.special = _any_of(strings)
        self.look_alike = _any_of([string for string in strings if string != mark])
        self.id_of = {str(token.content): id_ for id_, token in self.added.items()}

    def set_apart(self, texts: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The texts with one character in place of each special token's string, and {character: that string}."""
        if not any(map(self.look_alike.search, texts)):
            return list(texts), {}
        used = set().union(*texts)
        free = (chr(code) for code in STAND_INS if chr(code) not in used)
        strings = sorted({match[0] for text in texts for match in self.look_alike.finditer(text)})
        stand_in = dict(zip(strings, free, strict=False))
        apart = [self.look_alike.sub(lambda match: stand_in.get(match[0], match[0]), text) for text in texts]
        return apart, {character: string for string, character in stand_in.items()}

    def ids(self, pieces: Sequence[str], stand_ins: Mapping[str, str]) -> Iterator[list[int]]:
        """The token ids of each piece of a text. stand_ins: of `set_apart`."""
        last: int | None = None  # the token before; None: there is none
        for piece in pieces:
            if stand_ins and not stand_ins.keys().isdisjoint(piece):
                ids = self._with_stand_ins(piece, last, stand_ins)
            else:
                ids = self._behind(self.tokenizer, piece, last)
            last = ids[-1] if ids else last
            yield ids

    def _with_stand_ins(self, piece: str, last: int | None, stand_ins: Mapping[str, str]) -> list[int]:
        """Special tokens where the template put them; what stands between is spelled as text."""
        ids: list[int] = []
        strips = False
        for part in self.special.split(piece):
            if part in self.id_of:
                ids.append(self.id_of[part])
                strips = self.added[ids[-1]].rstrip
                continue
            text = re.sub(f"[{''.join(stand_ins)}]", lambda match: stand_ins[match[0]], part)
            ids += self._behind(self._as_text, text.lstrip() if strips else text, ids[-1] if ids else last)
            strips = False
        return ids

    def _behind(self, tokenizer: Any, text: str, last: int | None) -> list[int]:
        """A text's ids behind a token."""
        if not text:
            return []
        if last is None or (last in self.added and self._begins_anew):
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
        for anchor in ANCHORS[1:] if text[0].isspace() else ANCHORS:
            anchored = tokenizer.encode(anchor + text, add_special_tokens=False)
            ids, offsets = anchored.ids, anchored.offsets
            own = next((n for n, (_, end) in enumerate(offsets) if end > len(anchor)), len(ids))
            joined = own < len(ids) and offsets[own][0] < len(anchor)
            if not joined and ids[:own] == tokenizer.encode(anchor, add_special_tokens=False).ids:
                return list(ids[own:])
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _begins_anew(self) -> bool:
        """Whether a text behind a special token is spelled as one that begins there."""
        token = next((str(t.content) for t in self.added.values() if t.special and not t.rstrip), "")
        both, alone = (self.tokenizer.encode(text, add_special_tokens=False).ids for text in (f"{token}x", "x"))
        return bool(token) and both[1:] == alone

    @cached_property
    def _as_text(self) -> Any:
        """The tokenizer that takes no string for a special token."""
        twin = copy.deepcopy(self.tokenizer)
        twin.encode_special_tokens = True
        return twin


def _any_of(strings: Sequence[str]) -> re.Pattern[str]:
    """Any of some strings, as a group; the first of them that fits."""
    return re.compile(f"({'|'.join(map(re.escape, strings))})" if strings else r"(?!)()")
