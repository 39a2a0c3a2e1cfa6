"""MM-Vet's judge: asks an OpenAI-compatible endpoint for grades, and reads its replies as the evaluator does."""

import ast
import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, NamedTuple

from mmalign.benchmarks import reading
from mmalign.benchmarks.layouts import DataLocation
from mmalign.errors import DataError

MODEL = "gpt-4-0613"  # the official evaluator's default
REPLY_TOKENS = 3
TRIES = 5  # replies that are read; a sixth is asked for and ignored, as in the evaluator
STEP = 0.5  # by which the temperature rises with each further reply
EVALUATOR = "mm-vet_evaluator.py"
# sha256 of the prompt in yuweihao/MM-Vet at commit acde843. The text itself is not shipped: it is read from the user's
# copy of the evaluator, and a grade by any other text is marked as such.
PROMPT_SHA256 = "d1b3e0a5b4e72c888b77164489d705bba4dd149934fff564dfba6443d81afe3f"

Sheet = dict[str, dict[str, list[Any]]]  # {question id: {"model": [...], "content": [...], "score": [...], ...}}
Ask = Callable[[str, float], tuple[str | None, str]]  # (prompt, temperature) -> (reply, the model's name)


class Grade(NamedTuple):
    """What the judge says of one answer."""

    score: float  # 0 to 1
    content: str | None  # the reply the score was read from; the ignored one where none could be read
    model: str


class BusyError(Exception):
    """The judge asks to wait (HTTP 429)."""


def parse_score(reply: str | None) -> float | None:
    """The number before the first blank, from 0 to 1; None: ask again. nan passes, as in the evaluator."""
    try:
        score = float(_first_word(reply))
    except ValueError:
        return None
    return None if score > 1.0 or score < 0.0 else score


def _first_word(reply: str | None) -> str:
    return (reply or "").split(" ")[0].strip()


def ask_for_grade(ask: Ask, first: str, again: str, wait: Callable[[], None]) -> Grade:
    """One grade: the first reply that can be read; after five that cannot, 0.

    A judge that is busy is asked again after a while; the count of tries then starts anew, the temperature does not.
    """
    prompt, temperature = first, 0.0
    while True:
        try:
            reply, model = ask(prompt, temperature)
            for _ in range(TRIES):
                score = parse_score(reply)
                if score is not None:
                    return Grade(score, _first_word(reply), model)
                prompt = again
                reply, model = ask(prompt, temperature)
                temperature += STEP
            return Grade(0.0, reply, model)
        except BusyError:
            wait()


@dataclass
class Judge:
    """An OpenAI-compatible chat endpoint. The key comes from the environment, and goes nowhere else."""

    endpoint: str  # https://host/v1
    model: str = MODEL
    timeout: float = 120.0  # seconds
    pause: float = 30.0  # seconds after it says that it is busy
    patience: int = 60  # times it may say so before we give up
    busy: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not self.endpoint.startswith(("http://", "https://")):
            raise DataError(f"the judge's address is no http address: {self.endpoint}", fix="judge=https://HOST/v1")

    def ask(self, prompt: str, temperature: float) -> tuple[str | None, str]:
        """(the reply, the model's name); BusyError where it asks to wait, DataError where it cannot be asked."""
        reply = self._post(self._body(prompt, temperature))
        try:
            return reply["choices"][0]["message"]["content"], str(reply["model"])
        except (KeyError, IndexError, TypeError) as err:
            fix = "is it a chat endpoint (.../v1)?"
            raise DataError(f"the judge's answer has no {err}", at=self.endpoint, fix=fix) from err

    def wait(self) -> None:
        """Sleep after it said that it is busy."""
        time.sleep(self.pause)

    def _body(self, prompt: str, temperature: float) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}]
        return {"model": self.model, "max_tokens": REPLY_TOKENS, "temperature": temperature, "messages": messages}

    def _post(self, body: dict[str, Any]) -> Any:
        address, head = f"{self.endpoint.rstrip('/')}/chat/completions", {"Content-Type": "application/json"}
        request = urllib.request.Request(address, json.dumps(body).encode(), head)
        if key := os.environ.get("OPENAI_API_KEY"):
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as err:
            raise self._refusal(err) from err
        except (OSError, ValueError, HTTPException) as err:
            fix = "check the address; the grades so far are kept"
            raise DataError(f"the judge does not answer: {err}", at=self.endpoint, fix=fix) from err

    def _refusal(self, err: urllib.error.HTTPError) -> Exception:
        if err.code == 429 and self.busy < self.patience:
            self.busy += 1
            return BusyError()
        fix = "set OPENAI_API_KEY" if err.code in (401, 403) else "grades so far are kept; the same command goes on"
        return DataError(f"the judge says {err.code} {err.reason}", at=self.endpoint, fix=fix)


def prompt_in(evaluator: str | None, location: DataLocation) -> tuple[str, bool]:
    """(the prompt in the user's copy of the evaluator, whether it is the official one); the file is read, never run."""
    paths = [evaluator] if evaluator else location.find(EVALUATOR)
    if not paths:
        raise DataError(
            f"asking a judge needs its prompt, and there is no {EVALUATOR}",
            at=location.root,
            fix=f"put {EVALUATOR} of github.com/yuweihao/MM-Vet beside the data, or name it: evaluator=FILE",
        )
    prompt = _prompt_string(reading.text(paths[0]), paths[0])
    return prompt, hashlib.sha256(prompt.encode()).hexdigest() == PROMPT_SHA256


def _prompt_string(source: str, path: str) -> str:
    """The string that the file assigns to `prompt`."""
    try:
        tree = ast.parse(source)
    except SyntaxError as err:
        raise DataError(f"not Python: {err}", at=path, fix=f"take {EVALUATOR} as it is in the repository") from err
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign) and "prompt" in map(ast.unparse, node.targets) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return value.value
    raise DataError("no `prompt = ...` in the evaluator", at=path, fix=f"take {EVALUATOR} as it is in the repository")
