"""`data check` and `data show`: what a data set is worth, and what the model will see of it."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.data import Data, Record
from mmalign.errors import CardError, DataError
from mmalign.io import files
from mmalign.io.times import lasting
from mmalign.io.visible import one_line, visible
from mmalign.pipeline.progress import Pace
from mmalign.plan import building
from mmalign.plan.cards import Card, Registry
from mmalign.plan.read import setting

from . import live, show
from .lines import complain

if TYPE_CHECKING:
    from mmalign.data.check import CheckResult, MakeRender, Progress
    from mmalign.llms.chat import Chat

FIXES = 5  # ways out that are told at once
LISTED = 100  # bad records of each reason that --json lists; a quarantine file has all
CLASSES = {"conversations": "Conversations", "table": "Table", "tars": "Tars"}
STATES = {"image": "cyan", "trained": "green", "read": "dim", "cut": "red"}  # cut: behind max_length
ROWS = "a number, or first:last"


@dataclass(frozen=True)
class Model:
    """What records are rendered for. max_length: tokens; None: nothing is cut."""

    llm: str | None = None
    vision: str | None = None
    max_length: int | None = None


def check(
    data: str, overrides: Sequence[str], jobs: int | None, quarantine: Path | None, as_json: bool,
    model: Model = Model(),
) -> int:  # fmt: skip
    """Check a data set; the exit code is 1 where records cannot be used and no quarantine was written."""
    from mmalign.data import check as doctor

    make_render = _make_render(model)
    card = card_of(data, overrides)
    dataset = building.build(card)
    if quarantine:
        dataset.leave_out([])  # it says so if it cannot
        files.writable(quarantine)
        if quarantine.is_dir():
            raise DataError(f"{quarantine} is a folder", at=str(quarantine), fix="--quarantine FILE")
    with _progress(card.name) as progress:
        result = doctor.check(partial(building.build, card), jobs, progress, make_render)
    if quarantine:
        _write(quarantine, card, result)
    if as_json:
        from . import dump

        dump({"data": card.name, "left_out": dataset.left_out} | _as_json(result))
    else:
        _print_result(card, dataset, result, quarantine)
    return 1 if result.bad and not quarantine else 0


def _make_render(model: Model) -> "MakeRender | None":
    """What makes each process's own renderer; a mistake in the names is told before any record is read."""
    if model.llm is None:
        if model.max_length is None and model.vision is None:
            return None
        raise DataError("max_length counts a model's tokens", at="command line", fix="--llm NAME")
    from mmalign.llms.rendered import Rendered

    llm, grid = _llm(model.llm), _grid(model.vision)
    make = partial(Rendered.of, llm.args["checkpoint"], llm.args.get("template"), _tokens(grid), model.max_length)
    make()
    return make


def _tokens(grid: list[int] | None) -> int:
    """Tokens of an image."""
    return grid[0] * grid[1] if grid else 1


def card_of(data: str, overrides: Sequence[str]) -> Card:
    """The card of a name, or one made up for a file or folder; `key=value` words go over its arguments."""
    from mmalign.data import cache, kinds

    args = dict(setting(word, DataError, "images=./images") for word in overrides)
    known = Registry()
    if data not in known.names("data") and (reader := kinds.reader_of(data)):
        if "path" in args:
            what = f"{data} is the path, and path={args['path']} is another"
            raise DataError(what, at="command line", fix="leave path= out")
        args = {"path": data if files.is_url(data) else str(cache.path(data).absolute())} | args
        return Card("", f"mmalign.data.{reader}.{CLASSES[reader]}", args, name=data, family="data", path=data)
    card = known.card("data", data)
    return known.filled(replace(card, args={**card.args, **args}))


def _write(target: Path, card: Card, result: "CheckResult") -> None:
    """The quarantine: what the data leaves out already, and what was found now."""
    from mmalign.data import quarantine

    entries = quarantine.entries(card.args["quarantine"]) if card.args.get("quarantine") else []
    quarantine.write(target, [*entries, *((record.id, record.what) for record in result.bad)])


def _as_json(result: "CheckResult") -> dict[str, Any]:
    by_reason: dict[str, list[dict[str, str]]] = {reason: [] for reason in result.reasons}
    for record in result.bad:
        if len(by_reason[record.reason]) < LISTED:
            entry = {"id": record.id, "what": record.what} | ({"try": record.fix} if record.fix else {})
            by_reason[record.reason].append(entry)
    return {
        "rows": result.rows, "images": result.images, "files": result.files, "bad": len(result.bad),
        "reasons": result.reasons, "notes": dict(result.notes.most_common()), "listed": by_reason,
        "noted": result.noted, "remarks": result.remarks,
        "seconds": round(result.seconds, 2),
    }  # fmt: skip


def _print_result(card: Card, data: Data, result: "CheckResult", quarantine: Path | None) -> None:
    from mmalign.data.reasons import REASONS

    speed = f"{result.files / max(result.seconds, 1e-9):,.0f} images/s"
    out = f", {data.left_out:,} more left out by a quarantine" if data.left_out else ""
    show.out.print(
        f"{card.name}: {result.rows:,} records{out}, {result.images:,} images, {result.seconds:.1f} s, {speed}"
    )
    if not result.bad:
        show.out.print("every record can be used")
    else:
        show.out.print(f"{len(result.bad):,} records cannot be used ({_share(len(result.bad), result.rows)} %)\n")
        table = show.table("reason", "records", "what it means", "the first")
        for reason, count in result.reasons.items():
            first = next(record for record in result.bad if record.reason == reason)
            table.add_row(reason, f"{count:,}", REASONS[reason], _plain(f"{first.id}  {first.what.partition(': ')[2]}"))
        show.out.print(table)
        for fix, count in islice(result.fixes.items(), FIXES):
            show.out.print(_plain(f"try, for {count:,}: {fix}"))
    for remark in result.remarks:
        show.out.print(_plain(f"note: {remark}"))
    for note, count in result.notes.most_common():
        show.out.print(_plain(f"note: {count:,} {note}, the first: {result.noted[note][0]}"))
    if quarantine:
        show.out.print(f"written: {quarantine}   train without them: args: {{quarantine: {quarantine.absolute()}}}")
    elif result.bad:
        show.out.print("leave them out: --quarantine FILE here, then args: {quarantine: FILE} where the data is named")


def _share(bad: int, rows: int) -> str:
    """In percent, with two figures that count."""
    share = 100 * bad / rows
    return f"{share:.2g}" if share < 99.5 else f"{share:.0f}"


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(visible(text))


@contextmanager
def _progress(name: str) -> Iterator["Progress"]:
    """A bar on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _Lines(name)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    left = TextColumn("records  {task.fields[left]}", markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), left)
    with Progress(*columns, console=show.err, transient=True) as bar:
        task, pace = bar.add_task(one_line(name), total=None, left=""), Pace()

        def tell(done: int, total: int, work: tuple[int, int]) -> None:
            bar.update(task, completed=done, total=total, left=_left(pace, *work))

        yield tell


def _left(pace: Pace, done: int, total: int) -> str:
    seconds = pace.left(time.monotonic(), done, total)
    return "" if seconds is None else f"{lasting(seconds)} left"


class _Lines:
    def __init__(self, name: str) -> None:
        self.name, self.pace = name, Pace()
        self.last = time.monotonic()

    def __call__(self, done: int, total: int, work: tuple[int, int]) -> None:
        left = _left(self.pace, *work)
        if time.monotonic() - self.last >= live.EVERY:
            self.last = time.monotonic()
            complain(f"{self.name}: {live.far(done, total, 'records')}  {left}".rstrip())


def look(
    data: str, overrides: Sequence[str], llm: str, vision: str | None, rows: str, as_json: bool,
    max_length: int | None = None,
) -> None:  # fmt: skip
    """Show records as the model gets them: the prompt, which tokens are trained, the images and their grid."""
    chat, grid = _chat(llm), _grid(vision)
    records = building.build(card_of(data, overrides))
    views = [_view(records, number, chat, grid, max_length) for number in _numbers(rows, len(records))]
    if as_json:
        from . import dump

        dump(views)
        return
    for view in views:
        _print_record(view)


def _llm(name: str) -> Card:
    card = Registry().card("llms", name)
    if "checkpoint" not in card.args:
        raise CardError(f"llms {name!r} names no checkpoint, so its tokenizer is not known", at=card.path)
    return card


def _chat(name: str) -> "Chat":
    from mmalign.llms.chat import Chat

    card = _llm(name)
    return Chat(card.args["checkpoint"], card.args.get("template"))


def _grid(name: str | None) -> list[int] | None:
    """(rows, columns) of an encoder's patches; without one, an image stands as a single token."""
    if name is None:
        return None
    card = Registry().card("vision", name)
    if "grid" not in card.facts:
        raise CardError(f"the card of {name!r} gives no grid", at=card.path, fix="facts: {grid: [24, 24]}")
    return list(card.facts["grid"])


def _numbers(rows: str, size: int) -> range:
    first, colon, last = rows.partition(":")
    try:
        numbers = range(int(first or 0), min(int(last or size), size) if colon else int(first) + 1)
    except ValueError as err:
        raise DataError(f"--rows {rows!r} is not {ROWS}", at="command line", fix="--rows 0:3") from err
    if not 0 <= numbers.start < numbers.stop <= size:
        raise DataError(f"--rows {rows}: the data has {size:,} records", at="command line", fix=f"--rows 0:{size}")
    return numbers


def _view(
    data: Data, number: int, chat: "Chat", grid: list[int] | None, max_length: int | None = None
) -> dict[str, Any]:
    """A record in plain values; where it cannot be used, what is wrong with it."""
    try:
        record = data[number]
        encoding = chat.encode(record.turns, [_tokens(grid)] * len(record.images))
    except DataError as err:
        return {"row": number, "id": data.id_of(number), "error": err.what} | ({"try": err.fix} if err.fix else {})
    states = ["image" if id_ == chat.mark else "trained" if trained else "read"
              for id_, trained in zip(encoding.ids, encoding.trained, strict=True)]  # fmt: skip
    lost = 0
    if max_length is not None:
        lost = states[max_length:].count("trained")
        states[max_length:] = ["cut"] * len(states[max_length:])
    weights = [turn.weight for turn in record.turns if turn.role == "assistant"]
    return {
        "row": number,
        "id": record.id,
        "images": [_image_view(data, reference, grid) for reference in record.images],
        "tokens": {state: states.count(state) for state in STATES} | {"all": len(states)},
        "lost": lost,
        "cannot": _cannot(chat, record, grid, max_length),
        "weights": weights,
        "notes": list(record.notes),
        "parts": _runs(chat, encoding.ids, states),
    }


def _cannot(chat: "Chat", record: Record, grid: list[int] | None, max_length: int | None) -> str:
    """Why a record cannot be trained on within max_length; empty where it can."""
    if max_length is None:
        return ""
    try:
        chat.fitted(record.turns, [_tokens(grid)] * len(record.images), max_length)
    except DataError as err:
        return err.what
    return ""


def _image_view(data: Data, reference: Any, grid: list[int] | None) -> dict[str, Any]:
    try:
        image = data.image(reference)
    except DataError as err:
        return {"error": err.what} | ({"try": err.fix} if err.fix else {})
    return {"width": image.width, "height": image.height, "grid": grid}


def _runs(chat: "Chat", ids: Sequence[int], states: Sequence[str]) -> list[dict[str, Any]]:
    """Runs of tokens of one state, each token's text apart: as the whole text is read, so that no space is lost."""
    texts: list[str] = []
    for index, state in enumerate(states):
        texts.append("" if state == "image" else _token_text(chat, ids[max(0, index - 8) : index], ids[index]))
    runs = groupby(range(len(ids)), key=lambda index: states[index])
    return [{"state": state, "tokens": [texts[index] for index in run]} for state, run in runs]


def _token_text(chat: "Chat", before: Sequence[int], own: int) -> str:
    """What a token adds to the text of the few before it."""
    decode = partial(chat.tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    text, prefix = decode([*before, own]), decode(list(before))
    return str(text[len(prefix) :] if text.startswith(prefix) else decode([own]))


def _print_record(record: dict[str, Any]) -> None:
    show.out.print(f"record {record['row']}  {record['id']}", style="bold")
    if "error" in record:
        show.out.print(_plain(f"  cannot be used: {record['error']}{_try(record)}\n"))
        return
    for image in record["images"]:
        size = f"{image['width']} x {image['height']} pixels" if "width" in image else image["error"]
        grid = " x ".join(map(str, image.get("grid") or []))
        show.out.print(_plain(f"  image: {size}" + (f", {grid} patches" if grid else "") + _try(image)))
    count = record["tokens"]
    line = f"  {count['all']} tokens: {count['trained']} trained, {count['read']} read, {count['image']} image"
    cut = f", {count['cut']} cut away, {record['lost']} of them trained" if count["cut"] else ""
    show.out.print(line + cut)
    if any(weight != 1 for weight in record["weights"]):
        show.out.print(f"  weights of the answers: {', '.join(f'{weight:g}' for weight in record['weights'])}")
    if record["cannot"]:
        show.out.print(_plain(f"  cannot be used: {record['cannot']}"))
    for note in record["notes"]:
        show.out.print(_plain(f"  note: {note}"))
    for run in record["parts"]:
        show.out.print(_run_text(run))
    show.out.print()


def _try(view: dict[str, Any]) -> str:
    return f"   try {view['try']}" if "try" in view else ""


def _run_text(run: dict[str, Any]) -> Any:
    """A run of tokens: a colour for its state and stripes for its tokens; its state in words where colours are off."""
    from rich.text import Text

    styled = Text(f"  {run['state']:<8}| ")
    if run["state"] == "image":
        return styled.append(f"<image> x {len(run['tokens'])}", STATES["image"])
    for number, text in enumerate(run["tokens"]):
        style = STATES[run["state"]] + (" underline" if number % 2 else "")
        styled.append(one_line(text), style)
    return styled
