"""What an exported folder must answer, and the asking: the folder as it is written, in a process of plain transformers.

verifier.py is what runs there; mmalign cannot be imported in it. It has the folder, and from here token ids, pixels and
logits of a few short conversations; it loads the weights once, and decodes a few tokens.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypedDict, cast

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mmalign.data import MARK, Turn
from mmalign.errors import DataError, StageError
from mmalign.llms.causal import CausalLM
from mmalign.stages.checks import DONE
from mmalign.vision.hf import HFVision
from mmalign.vlm.folder import MACHINE
from mmalign.vlm.model import VLM

TOKENS = 4  # decoded for an answer
BEHIND = 32  # places whose logits are compared: the last of a conversation, which see all of it
SEEN, ASKED, TOLD = Turn("user", f"{MARK}\nWhat colour is the star?"), "Où est 東京 ?", "A red ring."
TALKS = {  # a conversation ends with a question, which is asked, or with an answer, which is trained
    "one turn with a picture": [SEEN],
    "two turns with a picture": [SEEN, Turn("assistant", TOLD), Turn("user", ASKED)],
    "one turn without a picture": [Turn("user", ASKED)],
    "two turns without a picture": [Turn("user", "Hello."), Turn("assistant", TOLD), Turn("user", ASKED)],
    "two pictures": [Turn("user", f"{MARK}\n{MARK}\nWhich of them is larger?")],
    "a system turn": [Turn("system", "Answer briefly."), SEEN],
    "two turns as they are trained": [SEEN, Turn("assistant", TOLD), Turn("user", ASKED), Turn("assistant", "Yes")],
}
CHECKS = len(TALKS) + 6  # the folder's, of each conversation, pixels, loading, logits, questions with pictures, without
COMPARED = ("two turns with a picture", "two turns without a picture", "two pictures")  # their logits
QUESTIONS = (
    "What is this?",
    "Which colours are there in the picture, from left to right and from top to bottom?",
    "Why?",
    "Describe it in one sentence, and say what you would expect to see and do not.",
)
JOINED = (
    "its chat template joins answers to the text around them: where a conversation has earlier answers, plain "
    "transformers spells their borders with other tokens than mmalign trained; a first answer is asked for exactly so"
)


@dataclass
class Asked:
    """A folder and what it must answer. tensors: pixels_B3SS and logits, by name. note: what it cannot answer. seconds:
    that computing the logits took."""

    folder: Path
    job: dict[str, Any]
    tensors: dict[str, Tensor]
    note: str = ""
    seconds: float = 0.0


class Failure(TypedDict):
    check: str
    what: str
    fix: str


class Seen(TypedDict):
    """difference: the largest of a logit, computed in fp32; None: it was not reached."""

    difference: float | None
    failure: Failure | None


def pictures() -> list[Image.Image]:
    """Two of unlike shapes, wide and high."""
    wide, high = Image.radial_gradient("L").resize((97, 61)), Image.linear_gradient("L").resize((50, 83))
    return [Image.merge("RGB", (one, one.transpose(Image.Transpose.ROTATE_180), one)) for one in (wide, high)]


@torch.no_grad()
def asked(vlm: VLM, folder: Path, tolerance: float) -> Asked:
    """What a folder with the weights of a model must answer. Turns that its own chat template refuses, or leaves out,
    are not asked. tolerance: the largest difference of a logit."""
    encoder, llm = cast(HFVision, vlm.vision), cast(CausalLM, vlm.llm)
    talks = [talk for name, turns in TALKS.items() if (talk := _talk(vlm, name, turns))]
    if not talks:
        what = f"the chat template of {llm.checkpoint} refuses every conversation that an export is asked"
        raise StageError(what, at="args.template", fix="a template that takes a user's turn with a picture")
    tensors = {"pixels": vlm.pixels(pictures()).contiguous()}
    compared = {talk["name"] for talk in talks if talk["name"] in COMPARED} or {talks[0]["name"]}
    began = time.monotonic()
    for talk in talks:
        if talk["name"] in compared:
            pixels = {"pixels_B3SS": tensors["pixels"][talk["pictures"]]} if talk["pictures"] else {}
            logits_SV = vlm.eval()(torch.tensor([talk["ids"]]), **pixels)[0, -BEHIND:].float()
            tensors[f"logits {talk['name']}"] = logits_SV.contiguous()
    seconds = time.monotonic() - began
    seen = [_talk(vlm, "", [Turn("user", f"{MARK}\n{text}")]) for text in QUESTIONS]
    unseen = [_talk(vlm, "", [Turn("user", text)]) for text in QUESTIONS]
    places = {str(place) for place in (llm.checkpoint, encoder.checkpoint, folder.resolve().parent)}
    job = {
        "folder": str(folder.resolve()), "tolerance": tolerance, "most": TOKENS, "cap": llm.softcap, "talks": talks,
        "questions": [whole for chats in (seen, unseen) if (whole := [chat for chat in chats if chat])],
        "exact_pixels": not encoder.pil, "machine": MACHINE,
        "paths": sorted(place for place in places if Path(place).is_absolute() and len(Path(place).parts) > 2),
    }  # fmt: skip
    return Asked(folder, job, tensors, JOINED if any(talk["joined"] for talk in talks) else "", seconds)


def _talk(vlm: VLM, name: str, turns: Sequence[Turn]) -> dict[str, Any] | None:
    """Turns as texts and as lists of parts, and their ids; None where the template does not take them whole."""
    chat, shown = vlm.llm.chat, sum(turn.text.count(MARK) for turn in turns)
    tokens, prompt = [vlm.tokens] * shown, turns[-1].role == "user"
    try:
        if len(turns) > 1 and chat.left_out(turns):
            return None
        ids = chat.prompt(turns, tokens) if prompt else chat.encode(turns, tokens).ids
        at_once = chat.at_once(turns, tokens, prompt) if _answered(turns) else ids
    except DataError:
        return None
    if not ids:
        return None
    texts = [{"role": turn.role, "content": turn.text} for turn in turns]
    about = {"name": name, "prompt": prompt, "ids": at_once, "joined": at_once != ids}
    return {**about, "texts": texts, "turns": turns, "pictures": [*range(shown)]}


def _answered(turns: Sequence[Turn]) -> bool:
    return any(turn.role == "assistant" for turn in turns)


def _parts(turns: Sequence[Turn], places: Sequence[str]) -> list[dict[str, Any]]:
    """Turns whose content is a list of parts, each picture in front of the text, as chat templates take them."""
    rest, parted = iter(places), []
    for turn in turns:
        seen = [{"type": "image", "path": next(rest)} for _ in range(turn.text.count(MARK))]
        text = {"type": "text", "text": turn.text.replace(f"{MARK}\n", "")}
        parted.append({"role": turn.role, "content": [*seen, text]})
    return parted


def ask(folders: Sequence[Asked], checked: Callable[[], None] = lambda: None) -> list[Seen]:
    """What was seen in each folder, all in one process. A StageError where that process ends early.

    checked: called behind every check, see `times`."""
    with tempfile.TemporaryDirectory(prefix="mmalign-") as work:
        place = Path(work)
        (place / "jobs.json").write_text(json.dumps(_jobs(folders, place)), encoding="utf-8")
        seen = in_plain_process("verifier.py", place / "jobs.json", place / "seen.json", folders[0].folder, checked)
        return list(seen)


def times(one: Asked, start: float, load: float) -> list[float]:
    """Seconds of each check of a folder, in their order, from those that the same took here: the start of a process,
    loading the weights, and computing the logits that are compared."""
    logits, compared = one.seconds, len(one.tensors) - 1
    # an answer is asked for three times: alone, in a batch and by a pipeline
    answers = [logits / compared * 3 * len(chats) for chats in one.job["questions"]]
    return [start, *[0.0 for _ in one.job["talks"]], 0.0, load, logits, *answers]


def in_plain_process(script: str, jobs: Path, seen: Path, folder: Path, checked: Callable[[], None]) -> Any:
    """What a script beside this one writes to `seen` of its `jobs`, in a process that cannot import mmalign, offline.

    A StageError, about the exported folder, where that process ends early. checked: called as often as the script says
    that a check is done."""
    command = [sys.executable, "-P", str(Path(__file__).with_name(script)), str(jobs), str(seen)]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environ = {**os.environ, **offline, "PYTHONIOENCODING": "utf-8"}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8") as child:
            for line in cast(IO[str], child.stdout):
                if line.strip() == DONE:
                    checked()
        with suppress(OSError, ValueError):
            return json.loads(seen.read_text(encoding="utf-8"))
        errors.seek(0)
        said = errors.read().strip().splitlines()[-1:] or [""]
    what = f"the process that checks what is exported ended early (code {child.returncode}): {said[0][:500]}"
    fix = "memory for the weights once more in fp32" if child.returncode < 0 else "pip check"
    raise StageError(what, at=str(folder), fix=fix)


def _jobs(folders: Sequence[Asked], place: Path) -> dict[str, Any]:
    """The jobs as JSON, their pictures and tensors in files beside it."""
    shown = [str(place / f"{number}.png") for number in range(2)]
    for picture, file in zip(pictures(), shown, strict=True):
        picture.save(file)

    def put(talk: dict[str, Any]) -> dict[str, Any]:
        own = [shown[number] for number in talk["pictures"]]
        return {**talk, "turns": [], "parts": _parts(talk["turns"], own), "pictures": own}

    jobs = []
    for number, one in enumerate(folders):
        tensors = place / f"{number}.safetensors"
        save_file(one.tensors, tensors)
        talks = [put(talk) for talk in one.job["talks"]]
        questions = [[put(chat) for chat in chats] for chats in one.job["questions"]]
        jobs.append({**one.job, "talks": talks, "questions": questions, "tensors": str(tensors), "pictures": shown})
    return {"threads": torch.get_num_threads(), "jobs": jobs}
