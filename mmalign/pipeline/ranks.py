"""Which rank of a stage hangs or died, on which host, behind which step: from what the ranks left, see io/beats.py."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmalign.io import beats
from mmalign.io.beats import Beat
from mmalign.io.visible import one_line

ABSENT = 180.0  # seconds without a sign of life of one rank, where others give theirs; shared folders lag
SHOWN = 4  # ranks that are named
LEFT = "ended with the others"
KILLED = "killed by signal"
KILLED_9 = f"{KILLED} 9"
# what a rank raises because another is gone
PEER = re.compile(r"connection (closed|reset|refused)|peer|gloo|nccl|socket|broken pipe|store", re.IGNORECASE)


def told(beat: Beat) -> str:
    """A rank in words."""
    return f"rank {beat['rank']} (process {beat['process']} on {one_line(beat['host'])})"


def far(beat: Beat) -> str:
    """Where it is."""
    return f"{beat['done']:,} {one_line(beat['unit'])} done, {one_line(beat['doing'])}"


def standing(folder: Path) -> str:
    """Where the ranks are: those that are not where most are by name; empty where nobody said."""
    alive = [beat for beat in beats.of(folder) if "ended" not in beat]
    if not alive:
        return ""
    if len(alive) == 1:
        return far(alive[0])
    counts, done = Counter(map(far, alive)), {far(beat): beat["done"] for beat in alive}
    most, count = max(counts.items(), key=lambda item: (item[1], done[item[0]]))  # of two, who is behind has a name
    others = [beat for beat in alive if far(beat) != most]
    if not others:
        return f"all {count} ranks: {most}"
    named = "; ".join(f"{told(beat)}: {far(beat)}" for beat in others[:SHOWN])
    more = f"; {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    return f"{named}{more}; the other{'s' * (count > 1)}: {most}"


def where(folder: Path, rank: int) -> str:
    """A rank and where it is; of the only one where it is; empty where it did not say."""
    all_ = beats.of(folder)
    own = [beat for beat in all_ if beat["rank"] == rank]
    return f"{f'{told(own[0])}: ' * (len(all_) > 1)}{far(own[0])}" if own else ""


def of_process(folder: Path, process: int) -> str:
    """Which rank a process of this machine is, and where, to be put behind its number; empty: none, or the only one."""
    all_ = beats.of(folder)
    mine = [beat for beat in all_ if beat["process"] == process] if len(all_) > 1 else []
    return f" (rank {mine[0]['rank']}: {far(mine[0])})" if mine else ""


class Absent:
    """Ranks of which no sign of life comes while others give theirs: their process or their host stands still."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.looked = 0.0
        self.heard: dict[int, tuple[float, float]] = {}  # rank: its last sign, and when we saw it, by our own clock
        self.told: set[int] = set()

    def look(self) -> Iterator[str]:
        """What there is to tell now."""
        now = time.monotonic()
        if now - self.looked < beats.EVERY / 2:
            return
        self.looked = now
        alive = [beat for beat in beats.of(self.folder) if "ended" not in beat]
        for beat in alive:
            rank, sign = beat["rank"], beat["alive"]
            if self.heard.get(rank, (0.0, 0.0))[0] != sign:
                self.heard[rank] = sign, now
        since = {beat["rank"]: now - self.heard[beat["rank"]][1] for beat in alive}
        if min(since.values(), default=0.0) >= ABSENT / 2:  # of nobody: the folder lags, or we were stopped
            return
        for beat in alive:
            rank = beat["rank"]
            if since[rank] < ABSENT:
                self.told.discard(rank)
            elif rank not in self.told:
                self.told.add(rank)
                yield f"no sign of life of {told(beat)} for {since[rank] / 60:.0f} minutes; {far(beat)}"


def left(folder: Path, failed: dict[int, int]) -> None:
    """Note how ranks of this machine ended that could not say so. failed: {rank: exit code} of those that ended first;
    the others were ended for it."""
    for beat in beats.of(folder):
        code = failed.get(beat["rank"])
        if "ended" in beat and not (code is not None and code < 0):
            continue
        why = LEFT if code is None else f"{KILLED} {-code}" if code < 0 else f"ended with code {code}"
        beats.place(folder, beat["rank"]).write_bytes(beats.as_bytes({**beat, "ended": why, "time": time.time()}))


def fate(folder: Path) -> str:
    """Which rank ended first, and why; empty where there is one rank, or none ended badly."""
    all_ = beats.of(folder)
    if len(all_) < 2:
        return ""
    raised = sorted((beat for beat in all_ if beat.get("ended") not in (None, "", LEFT)), key=lambda beat: beat["time"])
    killed = [beat for beat in raised if beat["ended"].startswith(KILLED)]
    own = [beat for beat in raised if not PEER.search(beat["ended"])]
    silent = [beat for beat in all_ if "ended" not in beat]
    first = killed or own[:1] or silent or raised[:1]
    more = f"; {len(first) - SHOWN} more" if len(first) > SHOWN else ""
    why = [f"{told(beat)} {one_line(beat.get('ended', 'ended without a word'))}; {far(beat)}" for beat in first[:SHOWN]]
    return "; ".join(why) + more
