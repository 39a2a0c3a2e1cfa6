"""Chat templates, rendered in a process of their own: one that never ends, or fills the memory, ends that process.

A template is a program from whoever wrote the checkpoint. transformers' sandbox keeps it from files and networks; how
long it runs and how much it writes is limited here. The process is started once, told of each template once, and
asked over pipes; renderer.py is what runs in it.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from mmalign.errors import DataError
from mmalign.io.limits import Limit

SECONDS = Limit("MMALIGN_TEMPLATE_SECONDS", 10, "seconds")  # of a processor, for one rendering; see renderer.py
CHARACTERS = Limit("MMALIGN_TEMPLATE_CHARACTERS", 1 << 26, "characters")  # of what it writes, or is itself
MEMORY = Limit("MMALIGN_TEMPLATE_BYTES", 1 << 30, "bytes")  # beside what Python and transformers take
OTHER = "turns as it knows them, or another `template:`"

Spans = list[tuple[int, int]]


class Renderer:
    """One process; used by all threads in turn."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Know of no process: one that was forked must not talk to that of its parent."""
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.known: dict[str, int] = {}  # templates it was told of

    def render(
        self, template: str, messages: Sequence[Mapping[str, Any]], words: Mapping[str, Any], name: str
    ) -> tuple[str, Spans]:
        """(the text, the spans between generation marks).

        words: what else the template may ask for, special tokens among it. name: whose template it is.
        A DataError where it refuses, fails, does not end, or writes too much.
        """
        if len(template) > CHARACTERS.value:
            what = f"the chat template of {name} has more than {CHARACTERS.said}"
            raise DataError(what, at=name, fix=CHARACTERS.fix)
        with self.lock:
            answer = self._ask(template, {"messages": list(messages), "words": dict(words)}, name)
        if "error" in answer:
            limit = {"memory": MEMORY, "length": CHARACTERS}.get(answer["limit"])
            raise DataError(
                f"the chat template of {name} {answer['error']}", at=name, fix=limit.fix if limit else OTHER
            )
        return answer["text"], [(start, end) for start, end in answer["spans"]]

    def start(self) -> None:
        """Begin to start the process, which takes a second, while something else is done."""
        with self.lock:
            self._running()

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process and self.process.poll() is None:
            return self.process
        self.stop()
        script = Path(__file__).with_name("renderer.py")
        env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "USE_TORCH": "0"}
        limits = [str(limit.value) for limit in (SECONDS, CHARACTERS, MEMORY)]
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script), *limits], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
        )
        self.known = {}
        return self.process

    def _ask(self, template: str, question: dict[str, Any], name: str) -> dict[str, Any]:
        process = self._running()
        number = self.known.get(template)
        if number is None:
            number = self.known[template] = len(self.known)
            question["template"] = template
        assert process.stdin
        assert process.stdout
        line = b""
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"number": number, **question}, default=str).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if line:
            return dict(json.loads(line))
        code = process.wait()
        self.stop()
        if code == -signal.SIGPROF:
            fix = SECONDS.fix
            raise DataError(f"the chat template of {name} does not end within {SECONDS.said}", at=name, fix=fix)
        raise DataError(
            f"the chat template of {name} ends the process that renders it (code {code})", at=name, fix=OTHER
        )

    def stop(self) -> None:
        """End the process, if it is this one's."""
        process, self.process = self.process, None
        if process:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    with suppress(OSError):
                        pipe.close()


def render(
    template: str, messages: Sequence[Mapping[str, Any]], words: Mapping[str, Any], name: str
) -> tuple[str, Spans]:
    """As `Renderer.render`; a template that comes with mmalign is rendered here, which is five times as fast."""
    if template not in _ours():
        return renderer.render(template, messages, words, name)
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, spans = render_jinja_template(  # it is annotated as str and returns both
            [list(messages)], chat_template=template, return_assistant_tokens_mask=True, **words
        )
    except jinja2.TemplateError as err:
        raise DataError(f"the chat template of {name} refuses these turns: {err}", at=name, fix=OTHER) from err
    return texts[0], list(spans[0])


@cache
def _ours() -> frozenset[str]:
    """The texts of the templates that come with mmalign."""
    places = Path(__file__).parents[1].rglob("*.jinja")
    return frozenset(place.read_text(encoding="utf-8") for place in places)


renderer = Renderer()
atexit.register(renderer.stop)
os.register_at_fork(after_in_child=renderer.forget)
