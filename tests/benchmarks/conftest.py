"""A judge that says what it is told to: an OpenAI-compatible endpoint on this machine."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

Says = Callable[[dict[str, Any]], Any]  # the request's body -> a reply's text, a status that is an error, or any JSON


class StubJudge:
    """Answers with `says`; keeps the requests."""

    def __init__(self, says: Says) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.server = HTTPServer(("127.0.0.1", 0), self._handler(says))
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _handler(self, says: Says) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.requests.append({"path": self.path, **body})
                stub.headers.append(dict(self.headers))
                reply = says(body)
                self.send_response(reply if isinstance(reply, int) else 200)
                self.end_headers()
                self.wfile.write(json.dumps(reply if isinstance(reply, dict) else _reply(reply)).encode())

            def log_message(self, *_: Any) -> None: ...

        return Handler


def _reply(text: Any) -> dict[str, Any]:
    return {"model": "stub-judge", "choices": [{"message": {"role": "assistant", "content": text}}]}


@pytest.fixture
def stub_judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Says], StubJudge]]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    running: list[StubJudge] = []

    def start(says: Says) -> StubJudge:
        running.append(StubJudge(says))
        return running[-1]

    yield start
    for stub in running:
        stub.server.shutdown()
        stub.server.server_close()
