"""The trained weights a task reads, and the hashes they were written with: compared once on a machine.

Nothing heavy is imported here, so that hashing can begin before the libraries that read the weights are loaded.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmalign.io import seal, sums
from mmalign.pipeline.task import Task, done


def places(task: Task) -> dict[str, str]:
    """{part: weights, relative to the runs folder} of the stages a task reads; a part nobody trained is not in it."""
    weights: dict[str, str] = {}
    for slot in ("vision", "llm", "weights"):
        if (parent := task.parent(slot)) is not None:
            weights |= done(parent).get("parts", {})
    return weights


def begin(task: Task) -> None:
    """Begin to hash what a task reads, for the `verified` that comes."""
    for place in places(task).values():
        sums.begin(_known(task.folder.parent, place))


@contextmanager
def verified(runs: Path, weights: Iterable[str]) -> Iterator[None]:
    """Compare weights with their hashes while the body reads them; Damaged names a file and the stage to run again.

    weights: files and folders relative to `runs`. One process of a machine does it for all. What 0.1.0 wrote has no
    hashes, and is read as it is.
    """
    known = {place: _known(runs, place) for place in weights}
    with sums.verifying({k: v for each in known.values() for k, v in each.items()}, _fix(runs, known)):
        yield


def _known(runs: Path, place: str) -> dict[Path, str]:
    """{file: hash} of the weights that a stage wrote at a place, a file or a folder."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return {}
    stage, _, inside = place.partition("/")
    hashes = done(runs / stage).get(seal.HASHES, {})
    return {runs / stage / name: digest for name, digest in hashes.items() if f"{name}/".startswith(f"{inside}/")}


def _fix(runs: Path, weights: Iterable[str]) -> str:
    names = {str(done(runs / place.partition("/")[0])["name"]) for place in weights}
    return f"run the stage that wrote it again: {' '.join(f'--force {name}' for name in sorted(names))}"
