"""Prompts and answers in a model's own words: its chat template, its processor, and its `generate`.

Rows are padded on the left; what prompts have in common is read again for each.

Letters: R rows, S positions, N tokens of an option, V the vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from mmalign.data import MARK, Turn
from mmalign.errors import CheckError, DataError
from mmalign.integrations.declared import Parts
from mmalign.llms.chat import ANSWER, Chat
from mmalign.llms.rendering import render
from mmalign.vision.picture import rgb

Images = Sequence[Any]  # PIL images
# Whatever a model's generation_config says besides, such as a penalty for repetitions, stays as it is.
GREEDY: dict[str, Any] = {
    "do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None, "num_return_sequences": 1,
    "return_dict_in_generate": False,
}  # fmt: skip


class Asking:
    """chat: the model's tokenizer, as other models here are asked with one."""

    def __init__(self, parts: Parts, chat: Chat) -> None:
        self.parts, self.chat = parts, chat

    def prompt(self, turns: Sequence[Turn], images: int, ready: bool = True) -> str:
        """Turns in the model's own chat format, an image mark for each image; one without a format reads them as they
        are. ready: up to where the answer begins. Raises DataError where marks and images differ in number, and for
        turns that the template refuses, CheckError for a template that writes no marks."""
        marks = sum(turn.text.count(MARK) for turn in turns)
        if marks != images:
            raise DataError(f"{marks} image marks and {images} images", fix="one mark for each image")
        for mark in sorted(self.parts.marks - {MARK}):
            if any(mark in turn.text for turn in turns):
                what = f"a text has {mark} in it, which stands for an image or another thing shown to this model"
                raise DataError(what, fix="leave it out")
        own = self.parts.mark
        if self.parts.template is None:
            return "\n".join(turn.text.replace(f"{MARK}\n", MARK).replace(MARK, own) for turn in turns)
        text = self._rendered([{"role": turn.role, "content": self._content(turn.text)} for turn in turns], ready)
        if (written := text.count(own)) != images:
            what = f"the model's chat template writes {written} image marks for {images} images"
            raise CheckError(what, at="chat_template", fix="a processor whose template shows images")
        return text

    def _rendered(self, talk: Sequence[Mapping[str, Any]], ready: bool) -> str:
        words = {"add_generation_prompt": ready, **self.parts.tokenizer.special_tokens_map}
        return render(self.parts.template or "", talk, words, self.chat.checkpoint)[0]

    @cached_property
    def _content(self) -> Callable[[str], Any]:
        """Of a turn, as the template takes it: a list of texts and images, else a text with the model's own marks."""
        with suppress(DataError):
            text = self._rendered([{"role": "user", "content": _listed(f"{MARK}\n{ANSWER}")}], ready=True)
            if text.count(self.parts.mark) == 1 and ANSWER in text:
                return _listed
        return lambda text: text.replace(MARK, self.parts.mark)

    def before(self, text: str) -> list[int]:
        """The token ids in front of the first image of a prompt."""
        words, front = self.parts.tokenizer, text[: text.index(self.parts.mark)]
        begun = bool(words.bos_token) and front.startswith(words.bos_token)
        return list(words(front, add_special_tokens=not begun)["input_ids"])

    def inputs(self, texts: Sequence[str], images: Sequence[Images]) -> dict[str, Any]:
        """A batch of the model's own processor, on its device and in its precision; as many images in each row."""
        words, weight = self.parts.tokenizer, next(self.parts.embeddings.parameters())
        if words.pad_token is None:
            words.pad_token = words.eos_token
        options: dict[str, Any] = {"return_tensors": "pt", "padding": True, "padding_side": "left"}
        if words.bos_token and all(text.startswith(words.bos_token) for text in texts):  # by the template
            options["add_special_tokens"] = False
        if any(images):
            pictures = [[rgb(image) for image in own] for own in images]
            made = self._processed(list(texts), pictures, options)
        else:  # some processors want an image
            kinds = "token_type_ids" in self.parts.processor.model_input_names
            made = words(list(texts), return_token_type_ids=kinds, **options)
        made.pop("labels", None)
        tensors = {name: value.to(weight.device) for name, value in made.items() if isinstance(value, Tensor)}
        return {name: value.to(weight.dtype) if value.is_floating_point() else value for name, value in tensors.items()}

    def _processed(self, texts: list[str], pictures: list[list[Any]], options: dict[str, Any]) -> Any:
        try:
            return self.parts.processor(text=texts, images=pictures, **options)
        except Exception as err:  # every processor has its own
            sizes = list(dict.fromkeys(f"{one.width} x {one.height}" for own in pictures for one in own))
            said = ", ".join(sizes[:8]) + (" ..." if len(sizes) > 8 else "")
            reason = (str(err).strip() or type(err).__name__).splitlines()[0]
            what = f"the model's processor refuses a picture, of {said} pixels: {reason}"
            raise DataError(what, fix="leave it out, or show the model a part of it") from err

    def write(self, texts: Sequence[str], images: Sequence[Images], most: int) -> list[tuple[str, bool]]:
        """(greedy answer, whether it was cut) of each prompt; those with as many images are read together, but each
        alone by a model that looks back at its prompt, where padding would count as said before."""
        apart = self._looks_back()

        def together(n: int) -> tuple[int, int]:
            return len(images[n]), n if apart else 0

        written: dict[int, tuple[str, bool]] = {}
        for _, group in groupby(sorted(range(len(texts)), key=together), key=together):
            some = list(group)
            inputs = self.inputs([texts[n] for n in some], [images[n] for n in some])
            out = self.parts.model.generate(
                **inputs, **GREEDY, max_new_tokens=most, pad_token_id=self.chat.pad, tokenizer=self.parts.tokenizer
            )
            ends = self._ends()
            for n, ids in zip(some, out[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                own = _until(ids, ends, self.chat.pad)
                written[n] = (self.chat.text(own), len(own) >= most and own[-1] not in ends)
        return [written[n] for n in range(len(texts))]

    def _looks_back(self) -> bool:
        """Whether what was said before is less likely, as the model's generation_config has it."""
        config = self.parts.model.generation_config
        return bool(config.no_repeat_ngram_size) or config.repetition_penalty not in (None, 1)

    def _ends(self) -> set[int]:
        """What the model ends an answer with: of its own saying, else its tokenizer's."""
        own = self.parts.model.generation_config.eos_token_id
        own = self.parts.tokenizer.eos_token_id if own is None else own
        return {i for i in (own if isinstance(own, (list, tuple)) else [own]) if i is not None}

    @cached_property
    def blank(self) -> str:
        """What the template puts between the end of a prompt and an answer, where that is white space."""
        if self.parts.template is None:
            return ""
        with suppress(DataError):
            asked = [Turn("user", ANSWER)]
            front, talk = self.prompt(asked, 0), self.prompt([*asked, Turn("assistant", ANSWER)], 0, ready=False)
            between, _, _ = talk.removeprefix(front).partition(ANSWER)
            return between if talk.startswith(front) and between.isspace() else ""
        return ""

    @torch.no_grad()
    def likelihoods(self, rows: Sequence[tuple[str, Images, str]]) -> list[float]:
        """Of (prompt, images, option): the sum of the log-probabilities of the option's tokens behind the prompt, as
        the template has an answer there."""
        rows = [(text, images, self.blank + option) for text, images, option in rows]
        inputs = self.inputs([text + option for text, _, option in rows], [images for _, images, _ in rows])
        options = [self.chat.behind(text, option) for text, _, option in rows]
        last = self.parts.keep(1 + max(map(len, options)))
        logits_RSV = self.parts.model(**inputs, **last, use_cache=False).logits
        return [likelihood(*row) for row in zip(logits_RSV, inputs["input_ids"], options, strict=True)]


def likelihood(logits_SV: Tensor, ids_S: Tensor, option: list[int]) -> float:
    """The log-probability of an option that a row ends with."""
    own_N = ids_S[len(ids_S) - len(option) :]
    if not option or own_N.tolist() != option:
        what = "the model's processor writes something behind a prompt, so options cannot be weighed"
        raise CheckError(what, at="model", fix="a benchmark that is answered in words")
    logp_NV = torch.log_softmax(logits_SV[-len(option) - 1 : -1].float(), -1)
    return float(logp_NV.gather(1, own_N[:, None]).sum())


def _listed(text: str) -> list[dict[str, str]]:
    first, *rest = text.split(MARK)
    content = [{"type": "text", "text": first}] if first else []
    for one in rest:
        content.append({"type": "image"})
        if said := one.removeprefix("\n"):  # the line break is our own format's
            content.append({"type": "text", "text": said})
    return content or [{"type": "text", "text": ""}]


def _until(ids: list[int], ends: set[int], pad: int) -> list[int]:
    """What was written before a row waited for the others, the end with it."""
    first = next((n for n, i in enumerate(ids) if i in ends), len(ids))
    own = ids[: first + 1]
    while own and own[-1] == pad and pad not in ends:  # it ended without a token, as with a string that stops it
        own.pop()
    return own
