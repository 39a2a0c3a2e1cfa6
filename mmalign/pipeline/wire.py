"""Messages between the commands that run one plan together: JSON, one a line, over a socket."""

import json
import select
import socket
from contextlib import suppress
from typing import Any

IDLE, BETWEEN, TIMES = 60, 10, 6  # seconds of silence, and between so many questions, until a host counts as gone


class Wire:
    """One end of a connection. open: False once the other end is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.open, self._rest = sock, True, b""
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", IDLE), ("TCP_KEEPINTVL", BETWEEN), ("TCP_KEEPCNT", TIMES)):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: dict[str, Any]) -> None:
        try:
            self.sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.open = False

    def hear(self, seconds: float = 0.0) -> list[dict[str, Any]]:
        """The messages that came since; waits so long for some. A ValueError where the other end is none of ours."""
        if not self.open or not select.select([self.sock], [], [], seconds)[0]:
            return []
        try:
            came = self.sock.recv(1 << 16)
        except OSError:
            came = b""
        self.open = bool(came)
        *lines, self._rest = (self._rest + came).split(b"\n")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("no message")
        return messages

    def close(self) -> None:
        self.open = False
        with suppress(OSError):
            self.sock.close()
