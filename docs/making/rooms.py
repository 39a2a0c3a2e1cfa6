"""The graph of rooms: which folder of the library imports which, as tests/test_layers.py has it, drawn and listed."""

import ast
import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmalign.plan.cards import FAMILIES

from .tables import code, opening, prose, table

ROOT = Path(__file__).resolve().parents[2]
MARK = "<!-- rooms -->"
WIDE, HIGH, GAP, ROW = 224, 46, 26, 96  # of a box, between boxes, and from row to row; pixels
Graph = dict[str, set[str]]


def layers() -> Graph:
    """{room: what it may import}, with all families as one room, which is called `families`."""
    text = (ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8")
    named: dict[str, Any] = {"FAMILIES": FAMILIES}
    for node in ast.parse(text).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(one, ast.Name) and one.id in ("FAMILY", "LAYERS") for one in targets):
            assert isinstance(node, (ast.Assign, ast.AnnAssign))
            assert node.value
            own = ast.fix_missing_locations(ast.Module([ast.Assign(targets, node.value)], []))
            exec(compile(own, "tests/test_layers.py", "exec"), named)
    return {_name(room): {_name(one) for one in below} for room, below in named["LAYERS"].items()}


def _name(room: str) -> str:
    return "families" if room in (*FAMILIES, "family") else room


def joined(graph: Graph) -> Graph:
    """Rooms that import each other as one, named `a + b`; no room imports itself."""
    names = {room: " + ".join(sorted(one for one in graph if one == room or _both(graph, room, one))) for room in graph}
    merged: Graph = {name: set() for name in names.values()}
    for room, below in graph.items():
        merged[names[room]] |= {names[one] for one in below} - {names[room]}
    return merged


def _both(graph: Graph, one: str, other: str) -> bool:
    return other in graph[one] and one in graph[other]


def reduced(graph: Graph) -> Graph:
    """Without what is imported through another room anyway."""
    return {room: below - {far for one in below for far in _reach(graph, one)} for room, below in graph.items()}


def _reach(graph: Graph, room: str) -> Iterator[str]:
    for one in graph[room]:
        yield one
        yield from _reach(graph, one)


def rows(graph: Graph) -> list[list[str]]:
    """Rooms by the longest way down: the first row imports nothing."""
    depth = {room: _depth(graph, room) for room in graph}
    return [sorted(room for room in graph if depth[room] == level) for level in range(max(depth.values()) + 1)]


def _depth(graph: Graph, room: str) -> int:
    return 1 + max((_depth(graph, one) for one in graph[room]), default=-1)


def drawn(graph: Graph) -> str:
    """The graph as one SVG in the colours of the page; arrows go from who imports to what is imported."""
    levels = rows(graph)[::-1]
    wide = max(map(len, levels)) * (WIDE + GAP) + GAP
    spot: dict[str, tuple[float, float]] = {}
    for number, level in enumerate(levels):
        left = (wide - len(level) * (WIDE + GAP) + GAP) / 2
        spot |= {room: (left + place * (WIDE + GAP), GAP + number * ROW) for place, room in enumerate(level)}
    arrows = "".join(_arrow(spot[room], spot[one]) for room, below in graph.items() for one in sorted(below))
    boxes = "".join(_box(room, *place) for room, place in spot.items())
    return (
        f'<svg class="rooms" viewBox="0 0 {wide} {len(levels) * ROW}" role="img" aria-label="which room imports which">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z"/></marker></defs>{arrows}{boxes}</svg>'
    )


def _arrow(above: tuple[float, float], below: tuple[float, float]) -> str:
    x, y, to_x, to_y = above[0] + WIDE / 2, above[1] + HIGH, below[0] + WIDE / 2, below[1]
    bend = (to_y - y) / 2
    return f'<path class="arrow" d="M{x:g} {y:g}C{x:g} {y + bend:g} {to_x:g} {to_y - bend:g} {to_x:g} {to_y:g}"/>'


def _box(room: str, x: float, y: float) -> str:
    middle = f'x="{x + WIDE / 2:g}" y="{y + HIGH / 2:g}"'
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{WIDE}" height="{HIGH}" rx="5"/>'
        f'<text {middle} dominant-baseline="central" text-anchor="middle">{html.escape(room)}</text>'
    )


def listed(graph: Mapping[str, set[str]]) -> str:
    """Each room, what it is for, and what it may import."""
    lines = [
        (code(room), prose(_purpose(room)), ", ".join(map(code, sorted(graph[room] - {room}))) or "nothing")
        for room in graph
    ]
    return table(("room", "what it holds", "may import"), lines)


def _purpose(room: str) -> str:
    """The first paragraph of its module or package."""
    if room == "families":
        return f"{', '.join(FAMILIES[:-1])} and {FAMILIES[-1]}: a contract and its classes each"
    folder = ROOT if room == "cli" else ROOT / "mmalign"
    places = [folder / room / "__init__.py", folder / f"{room}.py", folder / "__init__.py"]
    return opening(next(one for one in places if one.exists()), f"the room {room}").removeprefix("mmalign: ")


def figure() -> str:
    """What stands on the page in place of the mark."""
    return f"<figure class='rooms'>{drawn(reduced(joined(layers())))}</figure>\n\n{listed(layers())}"
