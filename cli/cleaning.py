"""`doctor --clean`: the cache, and how to be rid of it."""

from mmalign.errors import RunError
from mmalign.io import cache, files

from .lines import say


def state() -> str:
    """How much the cache holds, of how much it may, and since when."""
    present = cache.entries()
    size = cache.BYTES.short(sum(entry.size for entry in present))
    return f"{size} of {cache.BYTES.said} in {files.cache('')}, unused for {cache.DAYS.said} at most"


def clean(as_json: bool) -> None:
    """Remove all of the cache; whoever needs something of it works it out again."""
    from . import dump

    present = cache.entries()
    gone = cache.remove(present)
    size = sum(entry.size for entry in gone)
    if as_json:
        dump({"cache": str(files.cache("")), "files": len(gone), "bytes": size})
    else:
        say(f"removed: {len(gone):,} files, {cache.BYTES.short(size)}, from {files.cache('')}")
    if left := [entry for entry in present if entry not in gone]:
        place = str(left[0].place)
        raise RunError(f"{len(left):,} files of the cache cannot be removed", at=place, fix="check the rights to it")
