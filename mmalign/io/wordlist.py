"""Word lists: a file of words, one a line, from a path, a URL or the package; and the words of a text."""

import re
from collections.abc import Sequence

from mmalign.errors import DataError
from mmalign.io import whole


def read_words(spec: str) -> list[str]:
    """The words of a list in its order.

    spec: a path, a `pkg:` or `data:` path or an fsspec URL. Blank lines, lines that begin with #, surrounding blanks
    and a byte-order mark are dropped. A repeated word stays, so that a list has the size its authors say (2of12 has
    41,242 words, `bout` twice), but only its first place is ever a label. Raises DataError for what is no word list.
    """
    try:
        raw = whole.read(spec)
    except (OSError, ValueError) as err:
        fix = "`words:` takes a path, a URL or pkg:package/file"
        raise DataError(f"cannot read the word list {spec!r}: {err}", at=spec, fix=fix) from err
    if b"\0" in raw:
        raise DataError("the word list is a binary file", at=spec, fix="one word a line, UTF-8")
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as err:
        raise DataError(f"the word list is not UTF-8: {err.reason} at byte {err.start}", at=spec) from err
    words = [word for line in lines if (word := line.strip()) and not word.startswith("#")]
    if not words:
        raise DataError("the word list is empty", at=spec, fix="one word a line")
    return words


def firsts(words: Sequence[str]) -> dict[str, int]:
    """{word: the number of its first place}."""
    found: dict[str, int] = {}
    for number, word in enumerate(words):
        found.setdefault(word, number)
    return found


def tokens(text: str) -> set[str]:
    """The words of a text, in small letters; hyphens and apostrophes inside a word are part of it."""
    return set(re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower()))


# English function words: they stand in texts about anything
STOP = tokens(
    """
    a an the this that these those some any each every either neither both all no none other another such same own
    i me my mine myself we us our ours you your yours he him his she her hers it its itself they them their theirs
    themselves who whom whose which what one ones someone something anything everything nothing
    and or but nor so yet if then than because while although though unless until whether as
    of at by for with without about against between into onto through during before after above below to from up down
    in out on off over under again further near along across behind beside around among within toward towards upon via
    am is are was were be been being have has had having do does did doing done can could may might must shall should
    will would let lets get gets got
    not only very too also just even more most less least much many few there here when where why how now once still
    ever never always often
    """
)

SIBILANT = re.compile(r"(s|x|z|ch|sh|o)$")  # behind these the plural is -es


def forms(word: str) -> set[str]:
    """A word in small letters, its plurals and what it may be the plural of: star, stars; berry, berries; box, boxes.

    Of several words the last one changes: traffic light, traffic lights. By rule, not from a dictionary: -s, -es, -ies,
    of letters alone; `lens` has `len` among its forms.
    """
    before, blank, last = " ".join(word.casefold().split()).rpartition(" ")
    return {f"{before}{blank}{form}" for form in _forms(last)}


def _forms(word: str) -> set[str]:
    if not word.isalpha():
        return {word}
    alike = {word, f"{word}s"}
    if SIBILANT.search(word):
        alike.add(f"{word}es")
    if re.search(r"[^aeiou]y$", word):
        alike.add(f"{word[:-1]}ies")
    if word.endswith("s") and len(word) > 3 and not word.endswith(("ss", "us", "is")):
        alike.add(word[:-1])
    if word.endswith("es") and SIBILANT.search(word[:-2]):
        alike.add(word[:-2])
    if word.endswith("ies") and len(word) > 4:
        alike.add(f"{word[:-3]}y")
    return alike
