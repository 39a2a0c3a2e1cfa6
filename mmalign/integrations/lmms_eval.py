"""A trained model inside lmms-eval, which finds it through the entry point `lmms_eval.models`.

    python -m lmms_eval --model mmalign --model_args pretrained=runs/train-... --tasks mme --batch_size 16

Letters: V, the language model's vocabulary.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from mmalign.data import MARK, Turn
from mmalign.errors import DataError, RunError
from mmalign.pipeline.load import load
from mmalign.vlm.prefix import Pass

try:
    from lmms_eval.api.model import lmms
except ModuleNotFoundError as err:
    what = "mmalign.lmms is a model of lmms-eval, which is not installed"
    raise RunError(what, fix="pip install lmms-eval, or mmalign eval") from err

LENGTH = 1024  # new tokens, where a task does not say


def manifest() -> Any:
    """What lmms-eval is told about this model; called by it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="mmalign", simple_class_path="mmalign.integrations.lmms_eval.MMAlign")


class MMAlign(lmms):  # type: ignore[misc]
    """Answers the requests of lmms-eval's tasks; greedy.

    pretrained: what `mmalign chat` takes. batch_size: requests a pass. device: None: a GPU where there is one, of
    several processes each its own. max_batch_size: lmms-eval names it to every model; nothing here searches for one.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = _size(batch_size)
        self._rank, self._world_size, local = (_environ(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if device is None and torch.cuda.is_available():
            torch.cuda.set_device(local)
        model = load(pretrained)
        self.model = model if device is None else model.to(device)
        self.device = self.model.device
        if self._world_size > 1:  # lmms-eval gives each process its share of the requests, and gathers through this
            from accelerate import Accelerator  # lmms-eval brings it

            self.accelerator = Accelerator(cpu=self.device.type == "cpu")

    @torch.no_grad()
    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request, in their order. args: context, settings, doc_to_visual, doc_id, task, split."""
        answers: dict[int, str] = {}
        lengths = [_length(request.args[1]) for request in requests]
        order = sorted(range(len(requests)), key=lengths.__getitem__)
        for most, numbers in groupby(order, key=lengths.__getitem__):
            for some in _batches(list(numbers), self.batch_size):
                turns, images = zip(*(self._prompt(*_asked(requests[n].args)) for n in some), strict=True)
                texts = self.model.generate(turns, images, most)
                answers |= {n: _cut(text, requests[n].args[1]) for n, text in zip(some, texts, strict=True)}
        return [answers[n] for n in range(len(requests))]

    @torch.no_grad()
    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-probability of a continuation, whether it is the greedy one) of each request.

        args: context, continuation or a function of the document, doc_to_visual, doc_id, task, split.
        """
        return [self._likelihood(*request.args) for request in requests]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise RunError("mmalign answers no tasks of several rounds", fix="another task; `mmalign chat` for a talk")

    def _likelihood(
        self, context: str, continuation: Any, doc_to_visual: Any, doc_id: Any, task: str, split: str
    ) -> tuple[float, bool]:
        if not isinstance(continuation, str):
            continuation = continuation(self.task_dict[task][split][doc_id])
        option = self.model.llm.chat.answer(continuation.strip())
        turns, images = self._prompt(context, doc_to_visual, doc_id, task, split)
        prompt = Pass(self.model.llm, self.model.groups(turns, images, more=option[:-1]))
        hidden_BSD = prompt.read()
        total, greedy = 0.0, True
        for back, token in enumerate(reversed(option)):
            logp_V = self.model.llm.head(prompt.behind(hidden_BSD, back))[0].float().log_softmax(-1)
            total += float(logp_V[token])
            greedy &= int(logp_V.argmax()) == token
        return total, greedy

    def _prompt(
        self, context: str, doc_to_visual: Any, doc_id: Any, task: str, split: str
    ) -> tuple[list[Turn], list[Any]]:
        """The turns of one request, and its pictures."""
        images = [_picture(one, task) for one in doc_to_visual(self.task_dict[task][split][doc_id]) or ()]
        text = context if MARK in context or not images else "\n".join([*[MARK] * len(images), context])
        return [Turn("user", text)], images


def _size(size: int | str) -> int:
    """Requests a pass; a RunError for what is no such number, "auto" too."""
    if not str(size).isdecimal() or int(size) < 1:
        fix = "--batch_size 16; nothing here searches for the largest"
        raise RunError(f"batch_size must be a number of requests, got {size!r}", fix=fix)
    return int(size)


def _environ(name: str) -> int:
    """What a launcher tells its processes; without one there is a single process."""
    return int(os.environ.get(name, "1" if name == "WORLD_SIZE" else "0"))


def _batches(numbers: list[int], size: int) -> Iterator[list[int]]:
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


def _asked(args: Sequence[Any]) -> tuple[str, Any, Any, str, str]:
    """A request's arguments without the settings of generation."""
    context, _, doc_to_visual, doc_id, task, split = args
    return context, doc_to_visual, doc_id, task, split


def _length(settings: dict[str, Any]) -> int:
    """How many tokens a task wants; a RunError where it wants them drawn at random."""
    if settings.get("do_sample") or int(settings.get("num_beams") or 1) > 1:
        fix = "--gen_kwargs do_sample=False,num_beams=1"
        raise RunError("the task samples or searches, and mmalign's answers are greedy", fix=fix)
    return int(settings.get("max_new_tokens") or LENGTH)


def _cut(text: str, settings: dict[str, Any]) -> str:
    """An answer up to where the task ends it. Tasks that do not say inherit a blank line, made for few-shot prompts,
    which would cut every answer of several paragraphs; it is left out."""
    until = settings.get("until") or []
    for end in [until] if isinstance(until, str) else until:
        if end.strip("\n"):
            text = text.split(end)[0]
    return text.strip()


def _picture(one: Any, task: str) -> Any:
    """A PIL image, 8-bit RGB."""
    if not hasattr(one, "convert"):
        raise DataError(f"the task {task} shows a {type(one).__name__}; mmalign reads pictures", fix="another task")
    return one.convert("RGB")
