"""The tables of docs/scale.md, each between <!-- NAME --> and <!-- end -->."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mmalign.io.times import lasting
from tests.scale import model, simulation
from tests.scale.model import Job

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
DEVICES = (8, 64, 512)
LABELS = {"CLIP ViT-L/14-336": 589, "SigLIP so400m-384": 326}  # images a second and device, bf16, RESULTS.md
ROWS, TEXT = 7_000_000, 200  # of the tune stage's data


def jobs() -> dict[str, Job]:
    align = model.job("sea_prime_llama3", "align")
    tune = model.job("sea_prime_llama3", "tune", ROWS, TEXT)
    return {
        "align, as in the recipe": align,
        "tune, as in the recipe": tune,
        "tune, batch 512": replace(tune, batch=512),
        "tune, batch 1,024 and ZeRO 2": replace(tune, batch=1024, zero=2),
    }


def fits(job: Job, devices: int) -> Job | None:
    """With as many samples a step as there are devices, at least; None where a recipe's own batch is too small."""
    return job if job.batch >= devices else None


def stages() -> str:
    rows = []
    for name, job in jobs().items():
        for devices in DEVICES:
            if (own := fits(job, devices)) is None:
                rows.append([name, devices, f"no: {job.batch} samples a step", "", "", "", "", ""])
                continue
            cost = model.cost(own, devices)
            step, used = cost.step, cost.efficiency(own, devices)
            waits = (step.talk - step.hidden) / step.seconds
            rows.append([
                name, devices, lasting(cost.seconds), f"{cost.seconds * devices / 3600:,.0f}", f"{step.seconds:.2f} s",
                f"{waits:.0%}", f"{cost.saving / cost.seconds:.1%}", f"{used:.0%}",
            ])  # fmt: skip
    head = (
        "stage",
        "devices",
        "time",
        "device-hours",
        "a step",
        "waits for others",
        "checkpoints",
        "of the arithmetic",
    )
    return table(head, rows)


def data() -> str:
    rows = []
    align = jobs()["align, as in the recipe"]
    for devices in DEVICES:
        own = replace(align, batch=max(align.batch, devices))
        seconds = model.step(own, devices).seconds
        images = own.batch * own.images / seconds
        rows.append([
            devices, f"{images:,.0f}", f"{images * model.PICTURE / 1e9:.2f} GB/s",
            f"{images / devices / model.PICTURES:.2f}", f"{images / model.OPENS:.0%}",
        ])  # fmt: skip
    head = ("devices", "images/s", "out of storage", "cores a device", f"of {model.OPENS:,.0f} opened files a second")
    return table(head, rows)


def labels() -> str:
    images = jobs()["align, as in the recipe"].rows
    rows = [[name, *(lasting(images / rate / devices) for devices in DEVICES)] for name, rate in LABELS.items()]
    return table(("encoder", *(f"{devices} devices" for devices in DEVICES)), rows)


def checkpoints() -> str:
    tune = replace(jobs()["tune, as in the recipe"], batch=512)
    rows = []
    for every in (100, 500, 2000):
        costs = [(model.cost(replace(tune, save_every=every), devices)) for devices in DEVICES]
        rows.append([every, *(f"{c.saving / c.seconds:.1%} + {c.lost / c.seconds:.2%}" for c in costs)])
    return table(("save_every", *(f"{devices} devices" for devices in DEVICES)), rows)


def simulated() -> str:
    rows = []
    for name, job in jobs().items():
        for devices in DEVICES:
            if own := fits(job, devices):
                told = model.step(own, devices).seconds
                found = simulation.simulate(own, devices, steps=200, failing=False) / 200
                rows.append([name, devices, f"{told:.3f} s", f"{found:.3f} s", f"{found / told - 1:+.1%}"])
    return table(("stage", "devices", "a step, by the formula", "simulated", "difference"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "stages": stages, "data": data, "labels": labels, "checkpoints": checkpoints, "simulated": simulated,
}  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def filled(text: str) -> str:
    """The page with its tables as they are now."""
    for name, make in TABLES.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(\n<!-- end -->)",
            lambda found, made=make(): f"{found[1]}\n{made}\n{found[2]}",
            text,
            flags=re.DOTALL,
        )
    return text
