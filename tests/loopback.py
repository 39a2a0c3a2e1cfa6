"""A server on loopback that stands in for the hub and for any address: whole, slow, broken or lying, as a test asks."""

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Loopback:
    """files: {path: content} at an address; repos: {hub id, with datasets/ for data sets: {name: content}}.

    cuts: {path: [bytes after which each answer breaks off]}; refused: {path: status}, gated: hub ids; ranges: whether
    the rest of a file can be asked for; slow: seconds before each 64 kB; asked: (method, path, Range) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    lies: dict[str, str] = field(default_factory=dict)  # {file of the hub: a checksum that it has not}
    ranges: bool = True
    slow: float = 0.0
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""
    server: Any = None

    def __enter__(self) -> "Loopback":
        handler = type("Handler", (_Handler,), {"back": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def got(self, path: str) -> list[str | None]:
        """The ranges in which a file was asked for."""
        return [asked for method, where, asked in self.asked if method == "GET" and where == path]


class _Handler(BaseHTTPRequestHandler):
    back: Loopback
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.back.asked.append((self.command, path, self.headers.get("Range")))
        if path in self.back.refused:
            self._plain(self.back.refused[path], b"no", body)
        elif path.startswith("/api/"):
            self._about(path, body)
        elif "/resolve/" in path:
            repo, _, rest = path.strip("/").partition("/resolve/")
            name = rest.partition("/")[2]
            if repo in self.back.gated:
                self._plain(403, b"gated", body, {"X-Error-Code": "GatedRepo"})
            elif name not in self.back.repos.get(repo, {}):
                self._plain(404, b"none", body, {"X-Error-Code": "EntryNotFound"})
            else:
                self._file(path, self.back.repos[repo][name], body)
        elif path in self.back.files:
            self._file(path, self.back.files[path], body)
        else:
            self._plain(404, b"none", body)

    def _about(self, path: str, body: bool) -> None:
        parts = path.split("/")
        kind, owner, name = (*parts[2:5], "", "", "")[:3]
        repo = f"{owner}/{name}" if kind == "models" else f"{kind}/{owner}/{name}"
        if repo not in self.back.repos:
            self._plain(404, b"none", body, {"X-Error-Code": "RepoNotFound"})
            return
        siblings = [
            {"rfilename": file, "size": len(content), "blobId": "x",
             "lfs": {"sha256": self._sum(file, content), "size": len(content), "pointerSize": 130}}
            for file, content in self.back.repos[repo].items()
        ]  # fmt: skip
        about = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
        self._plain(200, json.dumps(about).encode(), body, {"Content-Type": "application/json"})

    def _sum(self, name: str, content: bytes) -> str:
        return self.back.lies.get(name) or hashlib.sha256(content).hexdigest()

    def _plain(self, code: int, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _file(self, path: str, content: bytes, body: bool) -> None:
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        start, asked = 0, self.headers.get("Range")
        same = self.headers.get("If-Range") in (None, etag)
        if asked and self.back.ranges and same:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                self._plain(416, b"", body)
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", etag)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            self._send(path, content[start:])

    def _send(self, path: str, content: bytes) -> None:
        cuts = self.back.cuts.get(path, [])
        most = cuts.pop(0) if cuts else len(content)
        for at in range(0, min(most, len(content)), 1 << 16):
            time.sleep(self.back.slow)
            self.wfile.write(content[at : min(at + (1 << 16), most)])
            self.wfile.flush()
        if most < len(content):
            self.close_connection = True
            self.connection.shutdown(2)
