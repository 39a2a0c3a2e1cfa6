"""Pictures that rows name by URL: fetched only over HTTP, and only from hosts that the user allowed.

Allowed is the host of a URL under `images:`, and what MMALIGN_IMAGE_HOSTS lists: `images.cocodataset.org,*.org`.
"""

import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from email.message import Message
from fnmatch import fnmatch
from http.client import HTTPException
from typing import IO
from urllib.parse import urlsplit

from mmalign.data.reasons import Unusable
from mmalign.io.limits import IMAGE_BYTES

HOSTS = "MMALIGN_IMAGE_HOSTS"  # names with * for any letters, separated by commas
SECONDS = 60  # until a host has to have said something
PIECE = 1 << 16  # bytes asked for at once
SHOWN = 80  # characters of a URL that stand in a message
AGENT = "mmalign"


def fetch(url: str, roots: Iterable[str] = ()) -> bytes:
    """The bytes behind a URL of a row; Unusable with the reason. roots: the URLs under `images:`."""
    allowed = [*filter(None, map(_host, roots)), *_setting()]
    _check(url, allowed)
    opener = urllib.request.build_opener(_Redirects(allowed))
    request = urllib.request.Request(url, headers={"User-Agent": AGENT})
    try:
        with opener.open(request, timeout=SECONDS) as answer:
            return take(answer, url)
    except urllib.error.HTTPError as err:
        reason = "missing" if err.code in (404, 410) else "unreadable"
        raise Unusable(reason, f"{url[:SHOWN]}: {err.code} {err.reason}", at=url) from err
    except (OSError, HTTPException, ValueError) as err:
        raise Unusable("unreadable", f"{url[:SHOWN]}: {getattr(err, 'reason', None) or err}", at=url) from err


def take(answer: IO[bytes], name: str) -> bytes:
    """All of an open image file; Unusable as soon as it is longer than an image may be."""
    pieces, size = [], 0
    while piece := answer.read(PIECE):
        size += len(piece)
        if size > IMAGE_BYTES.value:
            what = f"{name[:SHOWN]} has more than the {IMAGE_BYTES.said} that are read"
            raise Unusable("oversized", what, fix=IMAGE_BYTES.fix)
        pieces.append(piece)
    return b"".join(pieces)


def _setting() -> list[str]:
    return [name.strip().lower() for name in os.environ.get(HOSTS, "").split(",") if name.strip()]


def _host(url: str) -> str | None:
    """The host of an HTTP URL, small; None of any other."""
    try:
        parts = urlsplit(url)
        return parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        return None


def _check(url: str, allowed: Iterable[str]) -> None:
    """Unusable unless the URL is one of HTTP and its host is allowed."""
    host = _host(url)
    if host is None or "::" in url:  # :: chains file systems, some of this machine
        what = f"{url[:SHOWN]} is not below `images`, and of other places only http and https are read"
        raise Unusable("outside", what, fix="images: [URL of the folder]")
    if not any(fnmatch(host, pattern) for pattern in allowed):
        fix = f"images: [https://{host}], or {HOSTS}={host}"
        raise Unusable("host", f"{url[:SHOWN]}: nobody allowed to fetch pictures from {host}", fix=fix)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """A host may send on only to hosts that are allowed as well."""

    def __init__(self, allowed: list[str]) -> None:
        self.allowed = allowed

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        _check(newurl, self.allowed)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
