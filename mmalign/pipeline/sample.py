"""A few rows of what every stage trains on, in the model's chat format: before anything expensive is begun.

`check` and `run` ask for it; sampler.py, a process of its own, does it, for it imports what training imports.
"""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NotRequired, TypedDict

from mmalign.errors import CheckError, MMAlignError
from mmalign.io import files
from mmalign.plan import estimate, trust
from mmalign.plan.cards import Card, as_dict, members
from mmalign.plan.graph import Node
from mmalign.plan.recipe import Language, Train

ROWS = 64  # of a data set, spread over it
SURE = 1e-3  # how likely so many unusable rows may be, by chance, where a stage is refused


class Sample(TypedDict):
    """What was seen of a data set; `broken` alone where it, or the chat format, cannot be opened."""

    rows: int  # of the data set
    seen: int
    bad: int
    first: NotRequired[str]  # why the first unusable row is one
    fix: NotRequired[str]
    notes: dict[str, int]
    broken: NotRequired[dict[str, str]]  # what, at, fix, of: data or llm


def look(nodes: Sequence[Node]) -> list[str]:
    """Notes on the rows of the stages that still have to train.

    Looked at are rows in files of this machine, read by a class of mmalign: nothing else is imported or fetched. Raises
    CheckError where more of them than `max_bad` allows cannot be used, or none can be read.
    """
    jobs: dict[str, Node] = {}
    for node in nodes:
        if "vlm" in node.cards:  # whose rows its own processor makes, while it trains
            continue
        if isinstance(node.stage, (Train, Language)) and not node.done and _in_files(node.cards["data"]):
            job = json.dumps(_job(node, node.stage))
            if job not in jobs or _max_bad(node) < _max_bad(
                jobs[job]
            ):  # of stages that share it, the strictest is told
                jobs[job] = node
    if not jobs:
        return []
    samples = _sampled(list(jobs))
    return list(chain.from_iterable(_told(node, one) for node, one in zip(jobs.values(), samples, strict=True)))


def _in_files(card: Card) -> bool:
    """Whether a data set of mmalign's own classes has its rows in files that are here."""
    own = [card, *(one for _, one in members(card))]
    if not all(trust.ours(one.target, "data") for one in own if one.target):
        return False
    paths = [path for one in own for path in _texts(one.args.get("path"))]
    return bool(paths) and not any(files.is_url(path) for path in paths)


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [one for one in value or [] if isinstance(one, str)]


def _job(node: Node, stage: Train | Language) -> dict[str, Any]:
    """What one data set is rendered with."""
    llm, vision = node.cards["llm"], node.cards.get("vision")
    tokens = estimate.visual_tokens(node.cards.get("adapter"), vision.facts.get("grid") if vision else None)
    return {
        "data": as_dict(node.cards["data"]),
        "registry": list(node.recipe.registry),
        "checkpoint": llm.args.get("checkpoint"),
        "template": getattr(stage, "template", None) or llm.args.get("template"),
        "tokens": tokens or 1,
        "max_length": stage.max_length,
        "rows": ROWS,
    }


def _sampled(jobs: Sequence[str]) -> list[Sample]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    line = [sys.executable, "-m", "mmalign.pipeline.sampler"]
    done = subprocess.run(line, input="\n".join(jobs), capture_output=True, text=True, env=env, check=False)
    if done.returncode == -signal.SIGINT:
        raise KeyboardInterrupt
    if done.returncode:
        what = f"the process that looks at a few rows ended (code {done.returncode})"
        last = "".join(f": {line}" for line in done.stderr.splitlines()[-1:])
        raise CheckError(what + last, fix="mmalign data check, which says at which row")
    return [json.loads(text) for text in done.stdout.splitlines()]


def _told(node: Node, sample: Sample) -> Iterator[str]:
    """Notes on a stage's data; a CheckError where it cannot train on it."""
    at = node.recipe.where(f"stages.{node.name}.data")
    data = node.cards["data"].name
    if broken := sample.get("broken"):
        if broken["of"] == "llm" and _from_hub(node.cards["llm"]):
            yield f"stage {node.name!r}: no row of {data} was rendered, for {node.cards['llm'].name} is not here yet"
            return
        raise CheckError(f"stage {node.name!r}: {broken['what']}", at=broken["at"] or at, fix=broken["fix"])
    if sample["bad"]:
        what = f"stage {node.name!r}: {sample['bad']} of {sample['seen']} rows of {data} cannot be used"
        what += f", the first: {sample['first']}"
        if too_many(sample, _max_bad(node)):
            raise CheckError(what, at=at, fix=sample.get("fix") or "mmalign data check, with --llm; or raise max_bad")
        yield what
    for note, count in sample["notes"].items():
        yield f"stage {node.name!r}, {sample['seen']} rows of {data} looked at: {count} {note}"


def _max_bad(node: Node) -> float:
    """The share of unusable rows that a stage allows."""
    return float(getattr(node.stage, "max_bad", 0.0))


def _from_hub(llm: Card) -> bool:
    return files.local(str(llm.args.get("checkpoint"))) is None


def too_many(sample: Mapping[str, Any], max_bad: float) -> bool:
    """Whether so many unusable rows are more than a share `max_bad` of all: exactly, where all were seen, else with
    hardly a doubt: by the binomial distribution."""
    seen, bad = sample["seen"], sample["bad"]
    if seen == sample["rows"]:
        return bool(bad > int(max_bad * seen))
    fewer = math.fsum(math.comb(seen, k) * max_bad**k * (1 - max_bad) ** (seen - k) for k in range(bad))
    return bool(1 - fewer < SURE)


def failed(err: MMAlignError, of: str) -> Sample:
    """What is said where a data set (`data`) or a chat format (`llm`) cannot be opened."""
    broken = {"what": err.what, "at": err.at or "", "fix": err.fix or "", "of": of}
    return {"rows": 0, "seen": 0, "bad": 0, "notes": {}, "broken": broken}
