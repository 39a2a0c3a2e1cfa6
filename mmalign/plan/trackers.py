"""The trackers that `log_to` may name, and whether their packages are here; none of them is imported."""

from collections.abc import Iterator, Sequence
from typing import get_args

from mmalign.errors import CheckError, suggest
from mmalign.io import packages
from mmalign.plan.recipe import Tracker
from mmalign.plan.references import NotThereError

NAMES: tuple[str, ...] = get_args(Tracker)
BUILT_IN = "csv"  # needs no package; those of the others are called as they are
OPTION = "--log-to"


def listed(text: str) -> list[str]:
    """The trackers of `--log-to tensorboard,csv`, each once; a CheckError for a name that is none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise CheckError(f"no tracker {name!r}", at=OPTION, fix=suggest(name, NAMES))
    if not names:
        raise CheckError("no tracker is named", at=OPTION, fix=f"some of {','.join(NAMES)}")
    return list(dict.fromkeys(names))


def absent(names: Sequence[str], at: str) -> Iterator[NotThereError]:
    """An error for each tracker whose package is not installed, with the extra that brings it."""
    for name in names:
        known = None if name == BUILT_IN else packages.spec(name)
        if name != BUILT_IN and (known is None or known.origin is None):  # a folder `wandb` here has no origin
            fix = f'pip install "mmalign[{name}]", or without {name}'
            yield NotThereError(f"the tracker {name} needs the package {name}, which is not installed", at=at, fix=fix)
