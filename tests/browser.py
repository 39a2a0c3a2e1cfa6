"""A real browser for tests of pages: Chromium, driven over a pipe by its DevTools protocol; nothing more is needed."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--remote-debugging-pipe",
]  # fmt: skip
KEYS = {
    "ArrowRight": 39, "ArrowLeft": 37, "ArrowUp": 38, "ArrowDown": 40, "PageDown": 34, "PageUp": 33, "Tab": 9,
    "Escape": 27, "Enter": 13, "Home": 36, "End": 35,
}  # fmt: skip
WAIT = 60  # seconds for any answer


class Browser:
    """One tab. said: what its console and its pages' errors said. asked: the addresses that were asked for."""

    def __init__(self, program: str, profile: Path) -> None:
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()

        def wire() -> None:  # a browser reads from 3 and writes to 4
            own = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(own[0], 3)
            os.dup2(own[1], 4)

        quiet: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        line = [program, *FLAGS, f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(line, pass_fds=(3, 4), preexec_fn=wire, **quiet)
        os.close(theirs_in)
        os.close(theirs_out)
        self.out, self.into, self.rest, self.numbers = ours_out, ours_in, b"", itertools.count(1)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.loaded = False
        self.session: str | None = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> Any:
        """The result of one command; AssertionError with what the browser says of one that fails."""
        number = next(self.numbers)
        command = {"id": number, "method": method, "params": params}
        if self.session:
            command["sessionId"] = self.session
        data = json.dumps(command).encode() + b"\0"
        while data:
            data = data[os.write(self.out, data) :]
        while (answer := self._message()).get("id") != number:
            self._event(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            assert select.select([self.into], [], [], WAIT)[0], "the browser does not answer"
            more = os.read(self.into, 1 << 20)
            assert more, "the browser has ended"
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(message))

    def _event(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.said.append(json.dumps(params["exceptionDetails"])[:2000])
        elif method in ("Runtime.consoleAPICalled", "Log.entryAdded"):
            self.said.append(json.dumps(params)[:2000])
        elif method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"][:200])
        elif method == "Page.loadEventFired":
            self.loaded = True

    def open(self, page: Path, ready: str = "true") -> None:
        """Load a file, and wait until an expression of its script is true."""
        self.said, self.asked, self.loaded = [], [], False
        self("Page.navigate", url=page.absolute().as_uri())
        until = time.monotonic() + WAIT
        while not (self.do("document.readyState === 'complete'") and self.loaded and self.do(ready)):
            assert time.monotonic() < until, (ready, self.said)
            time.sleep(0.02)

    def do(self, script: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise."""
        done = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in done, json.dumps(done["exceptionDetails"])[:2000]
        return done["result"].get("value")

    def screen(self, width: int, height: int = 900, dark: bool = False) -> None:
        """The size of the window, and whether the reader likes it dark."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self("Emulation.setEmulatedMedia", features=scheme)

    def hover(self, x: float, y: float) -> None:
        self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def picture(self, place: Path, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        place.write_bytes(base64.b64decode(self("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))

    def close(self) -> None:
        self.session = None
        try:
            self("Browser.close")
            self.process.wait(10)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self.out)
        os.close(self.into)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser for as long as the `with` lasts; the test is skipped where none is installed."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium to show pages")
    own = Browser(program, profile)
    try:
        yield own
    finally:
        own.close()
