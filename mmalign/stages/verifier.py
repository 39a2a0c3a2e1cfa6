"""The process that checks exported folders, see verify.py: plain transformers, which cannot import mmalign.

A script: the file of jobs in, the file of what was seen out. Of a folder: {difference, failure}; a failure is what
check it is of, what was expected, and what to try.
"""

import ctypes
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

sys.modules["mmalign"] = None  # type: ignore[assignment]  # an import of it, or of anything in it, is an ImportError

AGAIN = "report it; the folder was not kept"
TEMPLATE = "another `template:` on the language model's card, or report it; the folder was not kept"


class Wrong(Exception):
    """check: the name of what failed. fix: what to try."""

    def __init__(self, check: str, what: str, fix: str = AGAIN) -> None:
        super().__init__(what)
        self.check, self.what, self.fix = check, what, fix


def main(jobs: str, seen: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: who asks may be killed
    import torch
    from transformers import logging

    logging.set_verbosity_error()
    asked = json.loads(Path(jobs).read_text(encoding="utf-8"))
    torch.set_num_threads(asked["threads"])
    Path(seen).write_text(json.dumps([look(job) for job in asked["jobs"]]), encoding="utf-8")


def checked() -> None:
    """Tell whoever asks that one more check is done."""
    print("checked", flush=True)


def look(job: dict[str, Any]) -> dict[str, Any]:
    about: dict[str, Any] = {"difference": None, "failure": None}
    try:
        Folder(job, about).look()
    except Wrong as wrong:
        about["failure"] = {"check": wrong.check, "what": wrong.what, "fix": wrong.fix}
    return about


class Folder:
    """One exported folder, its checks from the cheap to the dear."""

    def __init__(self, job: dict[str, Any], about: dict[str, Any]) -> None:
        self.job, self.about, self.place = job, about, Path(job["folder"])
        self.most, self.near = job["most"], max(job["tolerance"], 1e-3)  # logits nearer than this are a tie

    def look(self) -> None:
        self.files()
        self.config()
        self.template()
        self.processor = self.loaded("processor")
        self.padding()
        checked()
        for talk in self.job["talks"]:
            self.ids(talk)
            checked()
        self.pixels()
        checked()
        self.model = self.loaded("model")
        checked()
        self.logits()
        checked()
        for chats in self.job["questions"]:
            self.answers(chats)
            checked()

    def files(self) -> None:
        """No file says where it was made."""
        for place in sorted(self.place.rglob("*")):
            if place.is_file() and place.suffix != ".safetensors":
                name, content = place.relative_to(self.place).as_posix(), place.read_bytes()
                known = next((path for path in self.job["paths"] if path.encode() in content), None)
                try:
                    path = known or (self.path_in(json.loads(content)) if place.suffix == ".json" else None)
                except ValueError as err:
                    raise Wrong("paths", f"JSON without a path of a machine; {name} is no JSON: {err}") from err
                if path:
                    raise Wrong("paths", f"no path of a machine in a file; {name} has {path!r}")

    def path_in(self, value: Any) -> str | None:
        """A setting that is a path; the keys of a vocabulary are none."""
        if isinstance(value, str):
            return value if re.match(self.job["machine"], value) else None
        if isinstance(value, dict) and {"vocab", "merges"} & value.keys():
            return None
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return next((path for path in map(self.path_in, inner) if path), None)

    def config(self) -> None:
        """Without one transformers would draw a Llava of 7 billion weights."""
        place = self.place / "config.json"
        if not place.exists() or json.loads(place.read_bytes()).get("model_type") != "llava":
            raise Wrong("loading", "a config.json of a llava model")

    def template(self) -> None:
        """chat_template.jinja is jinja as everybody knows it."""
        import jinja2

        if not (place := self.place / "chat_template.jinja").exists():
            raise Wrong("template", "a chat_template.jinja; there is none")
        text = place.read_text(encoding="utf-8")
        try:
            jinja2.Environment().from_string(text)
        except jinja2.TemplateSyntaxError as err:
            what = f"a chat_template.jinja that plain jinja2 parses; it says {str(err)!r} in line {err.lineno}"
            raise Wrong("template", what, TEMPLATE) from err

    def loaded(self, part: str) -> Any:
        import torch
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        try:
            if part == "processor":
                return AutoProcessor.from_pretrained(self.place)
            wanted = {"dtype": torch.float32, "output_loading_info": True}
            model, loading = LlavaForConditionalGeneration.from_pretrained(self.place, **wanted)
        except Exception as err:
            what = f"a {part} that plain transformers loads; it says {type(err).__name__}: {str(err)[:500]}"
            raise Wrong("loading", what) from err
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if names := sorted(map(str, loading.get(kind) or ())):
                what = f"every weight in its place; {kind.replace('_', ' ')}: {len(names)}, such as {names[0]}"
                raise Wrong("weights", what)
        return model.eval()

    def padding(self) -> None:
        """Answers of a batch begin right behind their prompts."""
        from transformers import GenerationConfig

        words = self.processor.tokenizer
        if words.padding_side != "left":
            raise Wrong("padding", f"a tokenizer that pads on the left; it pads on the {words.padding_side}")
        if words.pad_token_id is None:
            fix = "a tokenizer with a pad_token, an unk_token or an eos_token"
            raise Wrong("padding", "a tokenizer with a padding token; it has none", fix)
        told = GenerationConfig.from_pretrained(self.place).pad_token_id
        if told != words.pad_token_id:
            what = f"the same padding token everywhere; the tokenizer's is {words.pad_token_id}, generation_config's"
            raise Wrong("padding", f"{what} {told}")

    def pictures(self, chat: dict[str, Any]) -> list[Any]:
        from PIL import Image

        return [Image.open(place) for place in chat["pictures"]]

    def ids(self, talk: dict[str, Any]) -> None:
        """Turns become the ids that mmalign trains and asks with, in whatever way a processor is asked."""
        processor, words = self.processor, self.processor.tokenizer
        prompt = {"add_generation_prompt": talk["prompt"]}
        pictures = self.pictures(talk) or None
        asked = {"tokenize": True, "return_dict": True, **prompt}
        try:
            texts = [processor.apply_chat_template(talk[kind], **prompt) for kind in ("parts", "texts")]
            ways = {
                "apply_chat_template(tokenize=True)": processor.apply_chat_template(talk["parts"], **asked),
                "processor(text=apply_chat_template(...))": processor(text=texts[0], images=pictures),
                "processor(text=...) of turns as texts": processor(text=texts[1], images=pictures),
            }
            if not pictures:
                ways["tokenizer.apply_chat_template"] = words.apply_chat_template(talk["texts"], **asked)
        except Exception as err:
            what = f"{talk['name']}: {len(talk['ids'])} tokens; it says {type(err).__name__}: {str(err)[:500]}"
            raise Wrong("ids", what, TEMPLATE) from err
        for way, inputs in ways.items():
            ids = inputs["input_ids"]
            ids = list(ids[0]) if len(ids) and not isinstance(ids[0], int) else list(ids)
            if ids != talk["ids"]:
                raise Wrong("ids", f"{talk['name']}, by {way}: {self.unlike(talk['ids'], ids)}", TEMPLATE)

    def unlike(self, expected: list[int], ids: list[int]) -> str:
        """Where two lists of ids part."""
        at = parted(expected, ids)
        shown = (self.processor.tokenizer.convert_ids_to_tokens(part[at : at + 4]) for part in (expected, ids))
        first, second = (" ".join(map(repr, tokens)) or "the end" for tokens in shown)
        return f"{len(expected)} tokens; there are {len(ids)}, at token {at} {second} in place of {first}"

    def pixels(self) -> None:
        import torch

        if self.job["exact_pixels"]:
            pictures = self.pictures({"pictures": self.job["pictures"]})
            ours = self.tensors()["pixels"]
            theirs = torch.as_tensor(self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"])
            if ours.shape != theirs.shape or (ours - theirs).abs().max() > 1e-4:
                gap = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else tuple(theirs.shape)
                raise Wrong("pixels", f"the pixels {tuple(ours.shape)} of the model's encoder; they differ: {gap}")

    def tensors(self) -> Any:
        from safetensors.torch import load_file

        return load_file(self.job["tensors"])

    def logits(self) -> None:
        """The largest difference of a logit; behind the cap, where there is one. What is too large, mmalign says."""
        import torch

        tensors, cap, differences = self.tensors(), self.job["cap"], []
        for talk in self.job["talks"]:
            if (name := f"logits {talk['name']}") in tensors:
                ids, ours = torch.tensor([talk["ids"]]), tensors[name]
                pixels = [self.job["pictures"].index(one) for one in talk["pictures"]]
                more = {"pixel_values": tensors["pixels"][pixels]} if pixels else {}
                with torch.no_grad():
                    out = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), **more)
                theirs = out.logits[0, -len(ours) :].float()
                theirs = (theirs / cap).tanh() * cap if cap else theirs
                differences.append((ours - theirs[:, : ours.shape[1]]).abs().max().item())
        self.about["difference"] = max(differences)

    def answers(self, chats: list[dict[str, Any]]) -> None:
        """Greedy answers in a batch are those of each alone: where its tokens are no tie, by less than `near`."""
        import torch

        processor = self.processor
        parts, seen = [chat["parts"] for chat in chats], [self.pictures(chat) for chat in chats]
        asked = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
        alone = [self.said(processor.apply_chat_template(turns, **asked)) for turns in parts]
        texts = [processor.apply_chat_template(turns, add_generation_prompt=True) for turns in parts]
        pictures = {"images": seen} if any(seen) else {}
        try:
            inputs = processor(text=texts, padding=True, return_tensors="pt", **pictures)
            tokens, logits = self.said(inputs)
            piped = self.piped(parts, inputs["input_ids"].shape[1])
        except Exception as err:
            what = f"answers of a batch of {len(chats)}; it says {type(err).__name__}: {str(err)[:500]}"
            raise Wrong("batch", what) from err
        for row, (own, own_logits) in enumerate(alone):
            question = chats[row]["texts"][-1]["content"]
            gap = (own_logits[0, 0] - logits[0, row]).abs().max().item()
            if not gap <= self.near:
                what = (
                    f"the logits of question {row + 1} ({question!r}) alone, in a batch of {len(chats)} padded to one"
                )
                raise Wrong("batch", f"{what} length; they differ by {gap:.2e}")
            for way, answer in (("padding=True", tokens[row]), ("a pipeline", piped[row])):
                at = parted(own[0], answer)
                if at == len(own[0]) == len(answer):
                    continue
                short = at >= min(len(own[0]), len(answer))
                if short or (own_logits[at, 0].max() - own_logits[at, 0, answer[at]]) > self.near:
                    shown = [processor.tokenizer.decode(torch.tensor(ids)) for ids in (own[0], answer)]
                    what = f"the answer to question {row + 1} ({question!r}) alone, {shown[0]!r}; in a batch of"
                    raise Wrong("batch", f"{what} {len(chats)}, by {way}, it is {shown[1]!r}")

    def said(self, inputs: Any) -> tuple[list[list[int]], Any]:
        """Greedy answers, and logits_TRV."""
        import torch

        how = {"max_new_tokens": self.most, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        out = self.model.generate(**inputs, **how)
        rows = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        return [self.whole(row) for row in rows], torch.stack(out.logits).float()

    def piped(self, parts: list[Any], wide: int) -> list[list[int]]:
        """Answers of transformers' pipeline, behind prompts padded to `wide` tokens."""
        from transformers import pipeline

        asked = pipeline("image-text-to-text", model=self.model, processor=self.processor)
        how = {"max_new_tokens": self.most, "do_sample": False}
        out = asked(text=parts, batch_size=len(parts), return_tensors=True, generate_kwargs=how)
        return [self.whole(row[0]["generated_token_ids"][wide:].tolist()) for row in out]

    def whole(self, row: list[int]) -> list[int]:
        """An answer up to its end, and that."""
        ends = self.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        return row[: next((n + 1 for n, i in enumerate(row) if i in ends), len(row))]


def parted(one: list[int], other: list[int]) -> int:
    """The first place where two lists differ, or where the shorter one ends."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # taking down torch and transformers takes longer than a check, and frees nothing that is needed
