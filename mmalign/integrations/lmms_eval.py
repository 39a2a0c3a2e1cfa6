"""A trained model inside lmms-eval, which finds it through the entry point `lmms_eval.models`.

    python -m lmms_eval --model mmalign --model_args pretrained=runs/train-... --tasks mme --batch_size 16

Letters: Q visual tokens of an image, D width of the language model.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import torch

from mmalign.data import MARK, Turn
from mmalign.errors import DataError, RunError
from mmalign.integrations.whole import WholeVLM
from mmalign.pipeline.load import load
from mmalign.vlm.likelihood import likelihoods
from mmalign.vlm.prefix import Group

try:
    from lmms_eval.api.instance import GenerationResult
    from lmms_eval.api.model import lmms
except ModuleNotFoundError as err:
    what = "mmalign.lmms is a model of lmms-eval, which is not installed"
    raise RunError(what, fix="pip install mmalign[lmms], or mmalign eval") from err

T = TypeVar("T")
LENGTH = 1024  # new tokens, where a task does not say


def manifest() -> Any:
    """What lmms-eval is told about this model; called by it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="mmalign", simple_class_path="mmalign.integrations.lmms_eval.MMAlign")


class Likelihood(NamedTuple):
    """What lmms-eval keeps of a likelihood request, inside its GenerationResult; of a bare tuple it keeps the text."""

    loss: float
    greedy: bool

    def strip(self) -> str:
        """Nothing that its cache would keep: what comes out of that again is text."""
        return ""


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
                turns, images = zip(*(self._prompt(*_shown(requests[n].args)) for n in some), strict=True)
                texts = self.model.generate(turns, images, most)
                answers |= {n: _cut(text, requests[n].args[1]) for n, text in zip(some, texts, strict=True)}
        return [answers[n] for n in range(len(requests))]

    @torch.no_grad()
    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """(loss, whether it is the greedy answer) of each request's continuation, in a wrapper that lmms-eval opens.

        args: context, continuation or a function of the document, doc_to_visual, doc_id, task, split; or the first two.
        The loss is the sum over the continuation's tokens: lmms-eval takes the option of the least for the answer,
        which so is the one of `mmalign eval`. `batch_size` documents a pass; the pictures of one are encoded once.
        """
        if isinstance(self.model, WholeVLM):
            what = "lmms-eval's options are weighed by models with an encoder and an adapter of mmalign's"
            raise RunError(what, fix="a task that is answered in words, or mmalign eval")
        documents: dict[tuple[Any, ...], list[int]] = {}
        for number, request in enumerate(requests):
            documents.setdefault(request.args[3:] or (number,), []).append(number)
        replies: dict[int, Likelihood] = {}
        for some in _batches(list(documents.values()), self.batch_size):
            numbers = [number for document in some for number in document]
            groups = [group for document in some for group in self._groups([requests[n] for n in document])]
            likely = likelihoods(self.model.llm, groups, [[self._option(*requests[n].args)] for n in numbers])
            replies |= {n: Likelihood(-logp, greedy) for n, ((logp, greedy),) in zip(numbers, likely, strict=True)}
        return [GenerationResult(replies[n]) for n in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise RunError("mmalign answers no tasks of several rounds", fix="another task; `mmalign chat` for a talk")

    def _groups(self, requests: Sequence[Any]) -> list[Group]:
        """The prompts of requests about one document, which share its pictures."""
        prompts = [self._prompt(*_shown(request.args)) for request in requests]
        visual = [self.model.visual_tokens(image)[0] for image in prompts[0][1]]
        chat = self.model.llm.chat
        ids = [chat.prompt(turns, [len(visual_QD) for visual_QD in visual]) for turns, _ in prompts]
        return Group.of(ids, torch.cat(visual).to(self.device) if visual else None, chat.mark)

    def _option(self, _: str, continuation: Any, *document: Any) -> list[int]:
        """A continuation's token ids behind a prompt."""
        if not isinstance(continuation, str):
            _, doc_id, task, split = document
            continuation = continuation(self.task_dict[task][split][doc_id])
        return self.model.llm.chat.answer(continuation.strip())

    def _prompt(
        self, context: str, doc_to_visual: Any, doc_id: Any, task: str, split: str
    ) -> tuple[list[Turn], list[Any]]:
        """The turns of one request, and its pictures."""
        visual = doc_to_visual(self.task_dict[task][split][doc_id]) if doc_to_visual else ()
        images = [_picture(one, task) for one in visual or ()]
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


def _batches(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _shown(args: Sequence[Any]) -> tuple[Any, ...]:
    """What of a request's arguments makes the prompt: all but the settings, or the continuation."""
    context, _, *document = args
    return (context, *(document or (None, None, "", "")))


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
