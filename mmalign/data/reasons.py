"""Why a row or an image cannot be used: one short word each, the same in errors, checks and quarantine files."""

from mmalign.errors import DataError
from mmalign.io.limits import IMAGE_BYTES, Limit

REASONS = {
    # the image
    "missing": "no image of that name",
    "empty": "an image of zero bytes",
    "html": "a web page where an image should be",
    "truncated": "an image that ends too early",
    "broken": "an image that cannot be decoded",
    "oversized": "more pixels or bytes than are read",
    "outside": "a path that leaves the image folder",
    "host": "a URL of a host that nobody allowed",
    "circular": "a link that leads back to itself",
    "unreadable": "the file system or the network refuses to read it",
    "base64": "not valid base64",
    # the row
    "json": "not valid JSON",
    "nan": "NaN or Infinity, which JSON does not have",
    "deep": "nested too deep",
    "twice": "an object with the same key twice",
    "surrogate": "half of a surrogate pair, which is no character",
    "keys": "a key that changes what is learned, and is not read",
    "flags": "flags of what is trained that cannot be kept",
    "shape": "not built as a conversation",
    "roles": "unknown roles, or roles that do not take turns",
    "blank": "a turn that says nothing",
    "unanswered": "no answer to learn from",
    "marks": "not one mark for each image",
    "template": "turns that the model's chat template refuses",
    "cut": "nothing left to learn, or half an image, within max_length",
    "id": "the id of another record",
    "other": "anything else",
}


class Unusable(DataError):
    """A DataError with its reason, one of REASONS, which its text begins with."""

    def __init__(self, reason: str, detail: str, *, at: str = "", fix: str = "") -> None:
        assert reason in REASONS
        super().__init__(f"{reason}: {detail}", at=at, fix=fix)
        self.reason, self.detail = reason, detail


def large(name: str, size: int, limit: Limit = IMAGE_BYTES) -> Unusable:
    """What is said of what is not read for its size alone."""
    what = f"{name[:80]} has {limit.short(size)}, and no more than {limit.said} are read"
    return Unusable("oversized", what, fix=limit.fix)


def check_size(name: str, size: int, limit: Limit = IMAGE_BYTES) -> None:
    """Unusable where an image file, or whatever the limit is of, is too large to be read."""
    if size > limit.value:
        raise large(name, size, limit)


def reason_of(err: DataError) -> str:
    """The reason of an error, `other` for one that gives none."""
    return err.reason if isinstance(err, Unusable) else "other"
