"""The process that checks an exported whole model, see export_whole.py: plain transformers, without mmalign.

A script: the file of a job in, the file of what was seen out: {difference, failure}.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.modules["mmalign"] = None  # type: ignore[assignment]  # an import of it, or of anything in it, is an ImportError


class Wrong(Exception):
    """check: the name of what failed."""

    def __init__(self, check: str, what: str) -> None:
        super().__init__(what)
        self.check, self.what = check, what


def main(job: str, seen: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: who asks may be killed
    import torch
    from transformers import logging

    logging.set_verbosity_error()
    about: dict[str, Any] = {"difference": None, "failure": None}
    asked = json.loads(Path(job).read_text(encoding="utf-8"))
    torch.set_num_threads(asked["threads"])
    try:
        about["difference"] = look(asked)
    except Wrong as wrong:
        about["failure"] = {"check": wrong.check, "what": wrong.what}
    Path(seen).write_text(json.dumps(about), encoding="utf-8")


def look(asked: dict[str, Any]) -> float:
    """The largest difference of a logit."""
    processor, model = loaded(asked["folder"])
    checked()
    differences = []
    for job in asked["jobs"]:
        differences.append(one(processor, model, job, asked))
        checked()
    return max(differences)


def checked() -> None:
    """Tell whoever asks that one more check is done."""
    print("checked", flush=True)


def loaded(place: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(place)
        wanted = {"dtype": torch.float32, "output_loading_info": True}
        model, loading = AutoModelForImageTextToText.from_pretrained(place, **wanted)
    except Exception as err:
        what = f"what plain transformers loads; it says {type(err).__name__}: {str(err)[:500]}"
        raise Wrong("loading", what) from err
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, loading.get(kind) or ())):
            what = f"every weight in its place; {kind.replace('_', ' ')}: {len(names)}, such as {names[0]}"
            raise Wrong("weights", what)
    return processor, model.eval()


def one(processor: Any, model: Any, job: dict[str, Any], asked: dict[str, Any]) -> float:
    """Questions read together: what the processor makes of them, their logits, their answers."""
    import torch
    from safetensors.torch import load_file

    ours = load_file(job["tensors"])
    logits_RV, texts = ours.pop("logits_RV"), job["texts"]
    for name, theirs in inputs(processor, job).items():
        if name in ours and not alike(theirs, ours[name]):
            raise Wrong("processor", f"the {name} of {texts[0]!r} as the model's own processor makes them")
    with torch.no_grad():
        theirs_RV = model(**ours, use_cache=False).logits[:, -1].float()
        how = {"do_sample": False, "num_beams": 1, "max_new_tokens": asked["most"], "pad_token_id": job["pad"]}
        out = model.generate(**ours, **how, output_logits=True, return_dict_in_generate=True)
    difference = (theirs_RV - logits_RV).abs().max().item()
    if difference > asked["near"]:
        return float(difference)  # mmalign says it
    rows = out.sequences[:, ours["input_ids"].shape[1] :].tolist()
    for row, (said, expected) in enumerate(zip(rows, job["answers"], strict=True)):
        at = next((n for n, (a, b) in enumerate(zip(said, expected, strict=False)) if a != b), None)
        if at is not None and out.logits[at][row].max() - out.logits[at][row, expected[at]] > asked["near"]:
            words = [processor.tokenizer.decode(torch.tensor(ids)) for ids in (expected, said)]
            raise Wrong("answers", f"the answer {words[0]!r} to {texts[row]!r}; it is {words[1]!r}")
    return float(difference)


def alike(theirs: Any, ours: Any) -> bool:
    return theirs.shape == ours.shape and bool((theirs.float() - ours.float()).abs().max() <= 1e-4)


def inputs(processor: Any, job: dict[str, Any]) -> dict[str, Any]:
    """What the exported processor makes of the texts and pictures; of texts alone nothing but ids is compared."""
    from PIL import Image

    words = processor.tokenizer
    if words.pad_token is None:
        words.pad_token = words.eos_token
    options: dict[str, Any] = {"return_tensors": "pt", "padding": True, "padding_side": "left"}
    if words.bos_token and all(text.startswith(words.bos_token) for text in job["texts"]):
        options["add_special_tokens"] = False
    if not any(job["pictures"]):
        return {"input_ids": words(job["texts"], **options)["input_ids"]}
    pictures = [[Image.open(place).convert("RGB") for place in own] for own in job["pictures"]]
    return dict(processor(text=job["texts"], images=pictures, **options))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # taking down torch and transformers takes longer than a check, and frees nothing that is needed
