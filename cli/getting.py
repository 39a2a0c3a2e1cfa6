"""`data get`: what recipes and cards need, brought from its sources."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from mmalign.errors import CardError, DataError, suggest
from mmalign.io.visible import one_line, visible
from mmalign.pipeline import getting
from mmalign.pipeline.getting import Got
from mmalign.plan import gaps, read
from mmalign.plan.cards import FAMILIES, Registry
from mmalign.plan.downloads import human
from mmalign.plan.gaps import Gap

from . import live, missing, show
from .lines import complain


def get(words: Sequence[str], dry_run: bool, as_json: bool) -> int:
    """Fetch what recipes and cards lack; the exit code is 2 where something is still missing."""
    lacking = [*{(gap.what, gap.place): gap for gap in _lacking(words)}.values()]
    if dry_run or not lacking:
        return _told(words, lacking, as_json)
    got = getting.get(lacking, _Progress())
    if as_json:
        from . import dump

        failed = [{"place": gap.place, "error": err.what, "try": err.fix} for gap, err in got.failed]
        dump({"got": gaps.as_json(got.done), "left": gaps.as_json(got.left), "failed": failed})
    else:
        _print(got)
    return 2 if got.failed or got.left else 0


def _told(words: Sequence[str], lacking: Sequence[Gap], as_json: bool) -> int:
    if as_json:
        from . import dump

        dump({"gaps": gaps.as_json(lacking)})
    elif lacking:
        missing.tell(lacking, " ".join(words), show.out)
    else:
        show.out.print("all of it is here")
    return 0


def _lacking(words: Sequence[str]) -> list[Gap]:
    """What some words lack: recipes with the `key=value` behind them, or cards, as NAME or FAMILY/NAME."""
    names = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    if not names:
        raise DataError("nothing to get", at="command line", fix="mmalign data get RECIPE | CARD ...")
    found: list[Gap] = []
    for name in names:
        owners = _families(name)
        if owners and name not in read.shipped():
            registry = Registry()
            card = registry.card(owners[0], name.rpartition("/")[2])
            found += gaps.of_card(registry.filled(card), registry)
        elif name in read.shipped() or name.endswith((".yaml", ".yml")):
            variants = read.load(name, overrides)
            found += gaps.of(variants, Registry(variants[0].registry))
        else:
            known = [*read.shipped(), *(one for family in FAMILIES for one in Registry().names(family))]
            raise CardError(f"no recipe or card named {name!r}", at="command line", fix=suggest(name, known))
    return found


def _families(name: str) -> list[str]:
    """The family of a card; a CardError where several have one of this name."""
    family, slash, inner = name.partition("/")
    registry = Registry()
    if slash and family in FAMILIES:
        registry.card(family, inner)  # or it says so
        return [family]
    owners = [family for family in FAMILIES if name in registry.names(family)]
    if len(owners) > 1:
        what = f"{name} is a card of {' and of '.join(owners)}"
        raise CardError(what, at="command line", fix=f"{owners[0]}/{name}")
    return owners


def _print(got: Got) -> None:
    for gap, err in got.failed:
        complain(f"error: {gap.part}: {err}")
    if got.left:
        complain("not fetched, since no program may or can:")
        show.err.print(missing.table(got.left))
    count = len(got.done)
    show.out.print(f"{count} {'things' if count != 1 else 'thing'} fetched")


class _Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.task: Any = None
        self.name, self.last = "", 0.0

    def begin(self, gap: Gap) -> None:
        self.name, self.last = f"{gap.part}: {gap.what}", time.monotonic()
        if sys.stderr.isatty():
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            text = TextColumn("{task.description}", markup=False)
            self.bar = Progress(text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=show.err)
            self.task = self.bar.add_task(one_line(self.name), total=None)
            self.bar.start()

    def progress(self, done: int, total: int | None) -> None:
        if self.bar:
            self.bar.update(self.task, completed=done, total=total)
        elif time.monotonic() - self.last >= live.EVERY:
            self.last = time.monotonic()
            complain(f"{self.name}: {human(done)}" + (f" of {human(total)}" if total else ""))

    def end(self, gap: Gap, how: str) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None
        complain(visible(f"{self.name}: {how}, {gap.place}"))
