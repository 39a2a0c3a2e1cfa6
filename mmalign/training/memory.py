"""How much memory this process could still take: of its machine, and within the limits of its control groups."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# of cgroup v2 and v1: what begins this process's line in /proc/self/cgroup, where the groups lie, the limit, what is
# taken, and what begins the names in memory.stat of pages that only mirror files, which go first
KINDS = (
    ("::", "", "memory.max", "memory.current", ""),
    (":memory:", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)


def free_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes; 0 where the system does not say."""
    found = [*_available(proc / "meminfo"), *_within(proc / "self" / "cgroup", groups)]
    return max(0, min(found)) if found else 0


def _available(meminfo: Path) -> Iterator[int]:
    for line in _lines(meminfo):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _within(member: Path, groups: Path) -> Iterator[int]:
    """What the limits of the process's group, and of those above it, leave; nothing where there is none."""
    for mark, below, limit, taken, total in KINDS:
        for line in _lines(member):
            _, found, path = line.partition(mark)
            root = groups / below
            group = root / path.lstrip("/")
            for place in (group, *group.parents) if found else ():
                if place.is_relative_to(root):
                    yield from _left(place, limit, taken, total)


def _left(group: Path, limit: str, taken: str, total: str) -> Iterator[int]:
    with suppress(OSError, ValueError):  # `max` is no limit
        most, used = int((group / limit).read_text()), int((group / taken).read_text())
        pages = dict(line.split(" ", 1) for line in _lines(group / "memory.stat"))
        yield most - used + sum(int(pages.get(f"{total}{name}_file", 0)) for name in ("active", "inactive"))


def _lines(place: Path) -> list[str]:
    with suppress(OSError):
        return place.read_text(encoding="utf-8", errors="replace").splitlines()
    return []
