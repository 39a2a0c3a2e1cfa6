"""The export of a whole model of transformers: a checkpoint of its own class, asked before it is kept.

verifier_whole.py asks it, in a process of plain transformers that cannot import mmalign: the ids and pixels of its own
processor, logits, and greedy answers, alone and in a batch, against what the model says here.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmalign.data import MARK, Turn
from mmalign.errors import StageError
from mmalign.integrations.asking import GREEDY
from mmalign.integrations.checkpoint import Checkpoint
from mmalign.io import files, sums
from mmalign.pipeline import build
from mmalign.stages.checks import Checks
from mmalign.stages.verify import in_plain_process, pictures
from mmalign.vlm import folder

TOKENS = 4  # decoded for an answer
ASKED: tuple[tuple[str, list[int]], ...] = (
    (f"{MARK}\nWhat is this?", [0]),
    (f"{MARK}\n{MARK}\nWhich of them is larger?", [0, 1]),
    ("Why?", []),
)
CHECKS = 2 + len(ASKED)  # the folder's, those of each question, and of a batch
ALIKE = (f"{MARK}\nWhat is this?", f"{MARK}\nWhich colours are there in the picture, from left to right?")  # a batch


def export(vlm: Checkpoint, target: Path, weights_in: str, tolerance: float, checks: Checks) -> float:
    """Write the folder, weights in the precision given; the largest difference of a logit, computed in fp32.

    Raises StageError for a folder that plain transformers does not read, or that answers otherwise. checks: begun
    before the model was loaded.
    """
    load = checks.lap()
    with files.made(target) as beside:
        build.cast_all(weights_in, vlm)
        vlm.write(beside)
        folder.forget_paths(beside)
        build.cast_all("fp32", vlm)
        difference = _judged(_asked(vlm, beside, tolerance, checks, load), target, tolerance)
        sums.write(beside)
    return difference


@torch.no_grad()
def _asked(vlm: Checkpoint, place: Path, tolerance: float, checks: Checks, load: float) -> dict[str, Any]:
    """What was seen in the folder, where it was asked what the model says here."""
    vlm.eval()
    with tempfile.TemporaryDirectory(prefix="mmalign-") as work:
        shown = [str(Path(work) / f"{number}.png") for number in range(2)]
        for picture, file in zip(pictures(), shown, strict=True):
            picture.save(file)
        groups = [[question] for question in ASKED] + [[(text, [0]) for text in ALIKE]]
        jobs, seconds = [], [checks.start + load]
        checks.lap()
        for number, group in enumerate(groups):
            own, tensors = _job(vlm, group)
            tensors_in = Path(work) / f"{number}.safetensors"
            save_file({name: value.contiguous() for name, value in tensors.items()}, tensors_in)
            jobs.append(
                {**own, "pictures": [[shown[n] for n in seen] for _, seen in group], "tensors": str(tensors_in)}
            )
            seconds.append(checks.lap())
        about = {"folder": str(place.resolve()), "jobs": jobs, "threads": torch.get_num_threads()}
        (Path(work) / "job.json").write_text(
            json.dumps({**about, "most": TOKENS, "near": max(tolerance, 1e-3)}), encoding="utf-8"
        )
        checks.expect(seconds)
        where = Path(work)
        return dict(in_plain_process("verifier_whole.py", where / "job.json", where / "seen.json", place, checks.done))


def _job(vlm: Checkpoint, group: list[tuple[str, list[int]]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(texts as the processor is handed them, and what is answered, what the processor made of them, and logits)."""
    asking, images = vlm.asking, pictures()
    texts = [asking.prompt([Turn("user", text)], len(seen)) for text, seen in group]
    inputs = asking.inputs(texts, [[images[n] for n in seen] for _, seen in group])
    logits_RV = vlm.whole(**inputs, use_cache=False).logits[:, -1].float()
    out = vlm.whole.generate(**inputs, **GREEDY, max_new_tokens=TOKENS, pad_token_id=vlm.llm.chat.pad)
    answers = out[:, inputs["input_ids"].shape[1] :].tolist()
    tensors = {name: value.cpu() for name, value in inputs.items()} | {"logits_RV": logits_RV.cpu()}
    return {"texts": texts, "answers": answers, "pad": vlm.llm.chat.pad}, tensors


def _judged(seen: dict[str, Any], target: Path, tolerance: float) -> float:
    """The largest difference of a logit. Raises StageError where a check failed."""
    if failure := seen["failure"]:
        what = f"the exported folder fails the check of its {failure['check']}: expected is {failure['what']}"
        raise StageError(what, at=str(target), fix="report it; the folder was not kept")
    difference = float(seen["difference"])
    if not difference <= tolerance:
        gap = f"{difference:.2e}, more than {tolerance:g}"
        what = f"the exported folder fails the check of its logits: they differ from the model's by {gap}"
        raise StageError(what, at=str(target), fix="report it; a larger `tolerance` keeps the folder")
    return difference
