"""What was measured: rows of tables, written down as they come, and the page that they make."""

import gc
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tests.speed import seconds
from tests.speed._work import wall

Row = dict[str, Any]


class Sheet:
    """Rows of one part, a line of JSON each: what a part that is cut off has measured is there."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def add(self, table: str, **cells: Any) -> None:
        """cells: what a column is called (`_` for a blank) and what stands in it; None: nothing."""
        row = {name.replace("_", " "): value for name, value in cells.items()}
        with open(self.place, "a", encoding="utf-8") as lines:
            lines.write(json.dumps({"table": table, "row": row}) + "\n")
        print(table, row, flush=True)

    def failed(self, table: str, name: str, err: BaseException) -> None:
        self.add(table, what=name, error=told(err))

    def rows(self) -> list[tuple[str, Row]]:
        if not self.place.exists():
            return []
        lines = self.place.read_text(encoding="utf-8").splitlines()
        return [(line["table"], line["row"]) for line in map(json.loads, lines)]


def told(err: BaseException) -> str:
    """An exception in one line."""
    first = (str(err).strip() or "no message").splitlines()[0]
    return f"{type(err).__name__}: {first}"[:300]


def page(title: str, about: Sequence[str], rows: Iterable[tuple[str, Row]]) -> str:
    """Markdown: a table for each name, its columns in the order in which they came."""
    tables: dict[str, list[Row]] = {}
    for table, row in rows:
        tables.setdefault(table, []).append(row)
    parts = [f"# {title}", "\n".join(about)]
    for table, own in tables.items():
        columns = list(dict.fromkeys(column for row in own for column in row))
        lines = [_line(columns), _line(["---"] * len(columns))]
        lines += [_line([_cell(row.get(column)) for column in columns]) for row in own]
        parts += [f"## {table}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "/").replace("\n", " ")


def most(call: Callable[[], object]) -> float | None:
    """GiB of the GPU's memory in use at the worst moment of a call; None without a GPU."""
    if not torch.cuda.is_available():
        call()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def in_rounds(
    arms: dict[str, Callable[[], object]], times: int, failed: Callable[[str, BaseException], None]
) -> dict[str, tuple[float, float | None]]:
    """{arm: (median seconds, peak GiB)}: each once to warm up, once for its memory, then all in turn, `times` times.

    An arm that fails is told and left out.
    """
    taken: dict[str, list[float]] = {}
    peaks: dict[str, float | None] = {}
    for name, call in arms.items():
        try:
            call()
            peaks[name], taken[name] = most(call), []
        except Exception as err:
            failed(name, err)
        if name not in taken and torch.cuda.is_available():  # its frames are gone, and what they held
            gc.collect()
            torch.cuda.empty_cache()
    for name in [name for _ in range(times) for name in taken]:
        try:
            taken[name].append(seconds(arms[name], wall))
        except Exception as err:
            failed(name, err)
    return {name: (median(each), peaks[name]) for name, each in taken.items() if each}


def peak_rate() -> tuple[float, str]:
    """bf16 operations a second that the device is sold with (dense), or, where that is not known, those of a product;
    and which of both."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    for known, rate in (("H100", 989e12), ("H200", 989e12), ("A100", 312e12)):
        if known in name and "PCIe" not in name and "NVL" not in name:
            return rate, f"{rate / 1e12:.0f} TFLOP/s, the {known}'s dense bf16 rate"
    rate = product_rate()
    return rate, f"{rate / 1e12:.3g} TFLOP/s, a product of its own"


def product_rate() -> float:
    """bf16 operations a second of a square product, random numbers."""
    cuda = torch.cuda.is_available()
    size, device = (8192, "cuda") if cuda else (256, "cpu")
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    calls = 10
    run = lambda: [one @ other for _ in range(calls)]  # noqa: E731
    run()
    return calls * 2 * size**3 / median(seconds(run, wall) for _ in range(3))
