"""`mmalign watch --page`: how all runs of a folder fare, as a page that this machine alone can open.

Two addresses answer, `/` and `/status.json`, to GET; nothing of an address reaches the file system. A request has to
name this machine (`Host`), so that a page from elsewhere cannot have a browser read it under a name of its own.
"""

import secrets
import sys
import time
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmalign.errors import RunError
from mmalign.io import pages
from mmalign.pipeline import progress, standing, status

from . import as_text, show
from .lines import say
from .status import far, heading, plain, remark, spent

EVERY = 2.0  # seconds between two questions of the page
LOOPBACK = "127.0.0.1"
NAMES = (LOOPBACK, "localhost")  # what a request may call this machine, with any port: one may be forwarded by ssh


def serve(runs: Path, port: int | None) -> None:
    """Show the page until Ctrl-C. port: None: any that is free. RunError where it cannot be had."""
    try:
        server = ThreadingHTTPServer((LOOPBACK, port or 0), partial(Handler, runs))
    except OSError as err:
        what = f"cannot open port {port or 'of any number'} on {LOOPBACK}: {err.strerror}"
        raise RunError(what, at="--port", fix="another one, or leave --port out") from err
    with server:
        say(f"http://{LOOPBACK}:{server.server_port}/   Ctrl-C ends it")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # how it is ended; nothing is cut short
            return


class Handler(BaseHTTPRequestHandler):
    """A request, of which the address and the host are looked at, and nothing else."""

    server_version, sys_version = "mmalign", ""
    timeout = 10  # seconds that a request may take to arrive

    def __init__(self, runs: Path, *of: Any) -> None:
        self.runs = runs
        super().__init__(*of)

    def do_GET(self) -> None:
        if _name(self.headers.get("Host", "")) not in NAMES:
            self._send(HTTPStatus.FORBIDDEN, "text/plain", f"ask for {LOOPBACK}\n")
        elif self.path == "/":
            self._page()
        elif self.path == "/status.json":
            self._send(HTTPStatus.OK, "application/json", as_text(now(self.runs)))
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "there are / and /status.json\n")

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        text = pages.page("mmalign.cli", "watch.html", folder=str(self.runs), seconds=EVERY, nonce=nonce)
        self._send(HTTPStatus.OK, "text/html", text, f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; ")

    def _send(self, code: HTTPStatus, kind: str, text: str, more: str = "") -> None:
        body = text.encode()
        self.send_response(code)
        rest = "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"default-src 'none'; {more}{rest}",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed for a request."""


def _name(host: str) -> str | None:
    """The name in a Host header, without its port; None for one that is none."""
    try:
        return urlsplit(f"//{host}").hostname if "@" not in host else None
    except ValueError:
        return None


def now(runs: Path) -> dict[str, Any]:
    """What `status --json` says, and beside it how the page tells it, with the curves of what runs."""
    answer: dict[str, Any] = {"folder": str(runs), "time": round(time.time(), 3), "note": "", "runs": []}
    try:
        all_ = status.of(runs)
    except RunError as err:
        return {**answer, "note": err.what}
    if not all_:
        answer["note"] = f"nothing ran in {runs}"
    for run in all_:
        about = {**plain(run), "heading": heading(run)}
        about["stages"] = [stage | _told(row) for stage, row in zip(about["stages"], run.rows, strict=True)]
        answer["runs"].append(about)
    return answer


def _told(row: status.Row) -> dict[str, Any]:
    """A stage in words, and the curves of one that runs."""
    failed = standing.failure(row.standing, row.folder)
    return {
        "title": row.title,
        "far": far(row),
        "remark": remark(row),
        "time": spent(row),
        "failure": show.failure(row.title, failed) if failed else "",
        "curves": progress.curves(row.folder) if row.state in status.WORKS else [],
    }
