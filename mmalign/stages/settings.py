"""The one setting in which the arms of a study differ, where it is a number; and the scores over it.

An objective that an arm does not have weighs 0 there; its arguments and its labels are then nothing that could differ.
"""

import ast
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.errors import MMAlignError
from mmalign.plan import signatures
from mmalign.plan.graph import flat
from mmalign.stages.charts import Chart
from mmalign.stages.lineage import ancestors
from mmalign.stages.measures import Measure
from mmalign.stages.verdict import Row, Verdict

FEWEST = 3  # values of a setting that make a line
ABSENT, UNSAID = object(), object()  # an arm lacks a setting; it lacks what the setting is of


@dataclass(frozen=True)
class Setting:
    """name: as an axis says it. keys: where it stands, `align.labels.keep`. values: {arm: its value}. without: arms
    that lack what it is a setting of."""

    name: str
    keys: list[str]
    values: dict[str, float]
    without: list[str]


@dataclass
class _Arm:
    """What was set for an arm, as a flat table; prefixes: of settings whose object it lacks."""

    flat: dict[str, Any] = field(default_factory=dict)
    objectives: dict[str, set[str]] = field(default_factory=dict)  # training stage: its
    prefixes: set[str] = field(default_factory=set)

    def get(self, key: str) -> Any:
        return self.flat.get(key, UNSAID if any(key.startswith(prefix) for prefix in self.prefixes) else ABSENT)


def varied(scores: Sequence[Path], arms: Sequence[str]) -> Setting | None:
    """None where the arms differ in something else, in several things, or in fewer than three values."""
    known = _arms(scores, arms)
    keys = list(dict.fromkeys(key for arm in known.values() for key in arm.flat))
    differing = [key for key in keys if len({repr(v) for v in _said(known, key).values()}) > 1]
    candidates = [_setting(known, key, differing) for key in differing]
    return max(filter(None, candidates), key=lambda one: len(one.values), default=None)


def _arms(scores: Sequence[Path], arms: Sequence[str]) -> dict[str, _Arm]:
    """The settings of each arm, of its first seed."""
    known: dict[str, _Arm] = {}
    for folder, arm_seed in zip(scores, arms, strict=True):
        arm = arm_seed.rpartition(" ")[0]
        if arm not in known:
            known[arm] = _arm(folder)
    labels = {key.split(".")[0] for arm in known.values() for key, kind in arm.flat.items() if _is_label(key, kind)}
    named: dict[str, set[str]] = {}
    for one in known.values():
        for stage, own in one.objectives.items():
            named.setdefault(stage, set()).update(own)
    for one in known.values():
        one.prefixes |= {f"{stage}." for stage in labels if f"{stage}.kind" not in one.flat}
        for stage, own in one.objectives.items():
            for objective in named[stage] - own:
                one.prefixes.add(f"{stage}.objectives.{objective}.")
                one.flat[f"{stage}.objectives.{objective}.weight"] = 0.0
    return known


def _is_label(key: str, value: Any) -> bool:
    return key.count(".") == 1 and key.endswith(".kind") and value == "label"


def _arm(folder: Path) -> _Arm:
    arm = _Arm()
    for _, about in ancestors(folder):
        stage, what = about["name"], about["what"]
        settings = what.get("settings", {})
        arm.flat[f"{stage}.kind"] = about["kind"]
        arm.flat |= {f"{stage}.{key}": value for key, value in flat(settings) if ".args" not in f".{key}"}
        for role, card in what.get("cards", {}).items():
            arm.flat[f"{stage}.{role}.target"] = card["target"]
            arm.flat |= {f"{stage}.{role}.{key}": value for key, value in flat(_arguments(card))}
        if isinstance(objectives := settings.get("objectives"), Mapping):
            arm.objectives[stage] = set(objectives)
        if "labels" in settings and settings["labels"] is None:
            arm.prefixes.add(f"{stage}.labels.")
            del arm.flat[f"{stage}.labels"]
    return arm


def _arguments(card: Mapping[str, Any]) -> dict[str, Any]:
    """What a card gives its class, and the class's defaults for the rest, as far as its text tells them."""
    known: dict[str, Any] = {}
    with suppress(MMAlignError):
        for name, parameter in (signatures.parameters(card["target"]) or {}).items():
            with suppress(ValueError, TypeError, SyntaxError):
                known[name] = ast.literal_eval(parameter.default) if parameter.default else ABSENT
    return {name: value for name, value in {**known, **card["args"]}.items() if value is not ABSENT}


def _said(known: Mapping[str, _Arm], key: str) -> dict[str, Any]:
    """{arm: value} of the arms that could say it."""
    values = {name: arm.get(key) for name, arm in known.items()}
    return {name: value for name, value in values.items() if value is not UNSAID}


def _setting(known: Mapping[str, _Arm], key: str, differing: Sequence[str]) -> Setting | None:
    """The setting at a key, with all others that go along with it, if the arms that have it differ in nothing else."""
    values = _said(known, key)
    if not all(type(value) in (int, float) for value in values.values()) or len({*values.values()}) < FEWEST:
        return None
    own = {name: known[name] for name in values}
    along = [other for other in differing if _said(known, other) == values]
    apart = [other for other in differing if len({repr(v) for v in _said(own, other).values()}) > 1]
    if set(apart) - set(along):
        return None
    return Setting(_name(along), along, {n: float(v) for n, v in values.items()}, [n for n in known if n not in values])


def _name(keys: Sequence[str]) -> str:
    """What the axis says: the last word, and whose it is where that is one thing."""
    last = keys[0].rpartition(".")[2]
    owners = {key.split(".")[-2] for key in keys}
    return f"{last} of {owners.pop()}" if len(owners) == 1 else last


def charts(said: Verdict, setting: Setting | None, known: Mapping[tuple[str, str], Measure]) -> list[Chart]:
    """The headline of each benchmark over the setting, else by arm. Bars: 95 % intervals of one seed, the standard
    deviation of several; a grey line: of the arm without what is set."""
    return [_chart(rows, setting, known) for rows in said.by_bench.values()] if said.study else []


def _chart(rows: Sequence[Row], setting: Setting | None, known: Mapping[tuple[str, str], Measure]) -> Chart:
    bench, metric = rows[0].bench, rows[0].metric
    own = [row for row in rows if setting is None or row.arm in setting.values]
    xs = [float(number) if setting is None else setting.values[row.arm] for number, row in enumerate(own)]
    line = sorted((x, row.mean) for x, row in zip(xs, own, strict=True))
    chart = Chart(
        f"{bench}: {metric}" + (f", over {setting.name}" if setting else ", by arm"),
        across=setting.name if setting else "arm",
        unit=known.get((bench, metric), Measure()).axis(metric),
        lines={metric: {"": line}},
        intervals={metric: {x: ends for x, row in zip(xs, own, strict=True) if (ends := _ends(row))}},
        places=[] if setting else [row.arm for row in own],
        points=True,
    )
    without = [row.mean for row in rows if setting and row.arm in setting.without]
    chart.level = without[0] if len(without) == 1 else None
    return chart


def _ends(row: Row) -> tuple[float, float] | None:
    if row.interval:
        return row.interval.low, row.interval.high
    return None if row.spread is None else (row.mean - row.spread, row.mean + row.spread)
