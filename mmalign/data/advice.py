"""What to try where an image's path does not lead to a file: the mistakes that people make with paths."""

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

WINDOWS = re.compile(r"[A-Za-z]:[\\/]")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm")
USUAL = ("images", "image", "imgs", "img")  # folders in which pictures lie beside a file of rows


def path_of_url(url: str) -> str | None:
    """The path in `file:///a/b.jpg`, as written there; None for any other URL."""
    if not url.lower().startswith("file://") or "::" in url:
        return None
    parts = urlsplit(url)
    return url2pathname(unquote(parts.path)) if parts.netloc in ("", "localhost") else None


def for_path(path: str, folders: Sequence[str]) -> str:
    """What to try for a path that is in none of the image folders; empty where nothing is known.

    folders: as absolute paths.
    """
    if "\\" in path or WINDOWS.match(path):
        return _for_windows(path, folders)
    if "\0" in path:
        return ""
    if os.path.isabs(path):
        return _for_absolute(path, folders)
    path = os.path.normpath(path) if path.strip() else path
    for folder in folders:
        if above := _above(path, folder):
            return f"images={above}, for the paths begin with {os.path.basename(folder)}/"
        for usual in USUAL:
            if _exists(os.path.join(folder, usual, path)):
                return f"images={os.path.join(folder, usual)}"
    return _for_name(path, folders)


def _for_name(path: str, folders: Sequence[str]) -> str:
    """What to try for a path that is nearly that of a picture below one of the folders."""
    if ".." in PurePosixPath(path).parts:
        return ""
    for name, fix in _near(path):
        if any(_exists(os.path.join(folder, name)) for folder in folders):
            return fix
    if tail := _tail(path, folders):
        return f"write the paths as they are in the image folder: without {path[: len(path) - len(tail)]}"
    return ""


def _near(path: str) -> Iterator[tuple[str, str]]:
    """(a name that is nearly a path, what to try where a picture has it)."""
    yield path, "write the paths alone, without what stands in front of them"  # of a URL that is none
    yield path.strip(), "take the blanks away around the paths"
    yield unquote(path), "write the paths as the files are named: with a blank for %20, and so on"
    for form in ("NFC", "NFD"):
        yield unicodedata.normalize(form, path), f"write the paths in the Unicode form that the files have: {form}"
    yield path.lower(), "write the paths in the small letters that the files have"
    stem = os.path.splitext(path.strip())[0]
    for ending in PICTURES:
        for written in (ending, ending.upper()):
            yield f"{stem}{written}", f"write the ending that the files have: {written}"


def _for_windows(path: str, folders: Sequence[str]) -> str:
    slashed = path.replace("\\", "/")
    tail = _tail(slashed, folders)
    if WINDOWS.match(path) or path.startswith("\\\\"):
        begin = path[: len(path) - len(tail)] if tail else path[:3]
        return f"these are paths of Windows: take {begin} away, and write / for \\"
    where = f", which count from {', '.join(folders)}" if folders and tail != slashed else ""
    return f"write / for \\ in the paths{where}"


def _for_absolute(path: str, folders: Sequence[str]) -> str:
    # Of what is no picture nothing is said: somebody else's rows should not lead a user to open a folder of secrets
    if path.lower().endswith(PICTURES) and _exists(path):
        return f"images={os.path.dirname(path)}, the folder they lie in"
    if tail := _tail(path, folders):
        return f"write the paths as they are in the image folder: without {path[: len(path) - len(tail)]}"
    return "write the paths as they are in the image folder, or images=FOLDER where they are"


def _tail(path: str, folders: Sequence[str]) -> str:
    """The longest end of a path that is a file in one of the folders; empty where none is."""
    for end in _ends(path):
        if any(_exists(os.path.join(folder, end)) for folder in folders):
            return end
    return ""


def _ends(path: str) -> Iterator[str]:
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..", ".")]
    for first in range(len(parts)):
        yield "/".join(parts[first:])


def _above(path: str, folder: str) -> str:
    """The folder above, where a path repeats the folder's own name; empty where it does not."""
    name, above = os.path.basename(folder), os.path.dirname(folder)
    return above if path.startswith(f"{name}/") and _exists(os.path.join(above, path)) else ""


def _exists(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # half a surrogate pair
        return False
