"""The process that renders chat templates, see rendering.py: a line of JSON in, a line out, until the input ends.

A script: it imports transformers' sandbox and nothing of mmalign, so that it starts in a second.
"""

import json
import os
import resource
import signal
import sys
from typing import Any

COMPILED = 20_000  # characters of a template that are compiled in a second, on a slow machine


def main(seconds: int, characters: int, memory: int) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    answers, questions = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # what libraries print goes to stderr
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever it is in the midst of
    _bound(memory)
    templates: dict[int, str] = {}
    while line := questions.readline():
        question = json.loads(line)
        given = seconds  # of a processor: a busy machine is not the template's fault
        if "template" in question:
            templates[question["number"]] = question["template"]
            given += len(question["template"]) // COMPILED
        signal.setitimer(signal.ITIMER_PROF, given)
        answer = _answer(render_jinja_template, templates[question["number"]], question, characters)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(answer + b"\n")
        answers.flush()


def _bound(memory: int) -> None:
    """Leave so many bytes of memory beside those in use; only where the system tells them (Linux)."""
    try:
        with open("/proc/self/statm") as source:
            used = int(source.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = used + memory
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


def _answer(render: Any, template: str, question: dict[str, Any], characters: int) -> bytes:
    """{text, spans}, or {error, limit}: what is wrong, and which limit was met, as JSON."""
    try:
        texts, spans = render(
            [question["messages"]],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **question["words"],
        )
        if len(texts[0]) > characters:
            return _error(f"writes more than {characters:,} characters", "length")
        return json.dumps({"text": texts[0], "spans": list(spans[0])}).encode()
    except MemoryError:
        return _error("takes too much memory", "memory")
    except RecursionError:
        return _error("calls itself without an end")
    except Exception as err:  # a template may raise whatever Python does
        kind = "" if type(err).__module__.startswith("jinja2") else f"{type(err).__name__}: "
        return _error(f"refuses these turns: {kind}{str(err)[:500]}")


def _error(what: str, limit: str = "") -> bytes:
    return json.dumps({"error": what, "limit": limit}).encode()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
