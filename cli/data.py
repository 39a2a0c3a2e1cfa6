"""`data check` and `data show`: what a data set is worth, and what the model will see of it."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.data import Data
from mmalign.errors import CardError, DataError
from mmalign.io import files
from mmalign.plan import cards
from mmalign.plan.cards import Card, Registry
from mmalign.plan.read import setting

from . import live, show

if TYPE_CHECKING:
    from mmalign.data.check import Found
    from mmalign.llms.chat import Chat

LISTED = 100  # bad records of each reason that --json lists; a quarantine file has all
READERS = {
    ".json": "conversations.Conversations", ".jsonl": "conversations.Conversations",
    ".gz": "conversations.Conversations", ".tar": "tars.Tars",
    ".parquet": "table.Table", ".arrow": "table.Table",
}  # fmt: skip
STATES = {"image": "cyan", "trained": "green", "read": "dim"}
ROWS = "a number, or first:last"


def check(data: str, overrides: Sequence[str], jobs: int | None, quarantine: Path | None, as_json: bool) -> int:
    """Check a data set; the exit code is 1 where records cannot be used and no quarantine was written."""
    from mmalign.data import check as doctor

    card = card_of(data, overrides)
    made = cards.build(card)
    if quarantine:
        made.leave_out([])  # it says so if it cannot
        files.writable(quarantine)
        if quarantine.is_dir():
            raise DataError(f"{quarantine} is a folder", at=str(quarantine), fix="--quarantine FILE")
    with _progress(card.name) as progress:
        found = doctor.check(partial(cards.build, card), jobs, progress)
    if quarantine:
        _write(quarantine, card, found)
    if as_json:
        from . import dump

        dump({"data": card.name, "left_out": made.left_out} | _listed(found))
    else:
        _print(card, made, found, quarantine)
    return 1 if found.bad and not quarantine else 0


def card_of(data: str, overrides: Sequence[str]) -> Card:
    """The card of a name, or one made up for a file or folder; `key=value` words go over its arguments."""
    args = dict(setting(word, DataError, "images=./images") for word in overrides)
    known = Registry()
    if data not in known.names("data") and (reader := _reader(data)):
        args = {"path": data if files.is_url(data) else str(Path(data).absolute())} | args
        return Card("", f"mmalign.data.{reader}", args, name=data, family="data", path=data)
    card = known.card("data", data)
    return known.filled(replace(card, args={**card.args, **args}))


def _reader(data: str) -> str | None:
    """The reader of a file or folder; None for what is neither."""
    place = Path(data)
    if place.is_dir():
        return READERS[".tar" if any(place.rglob("*.tar")) else ".parquet"]
    return READERS.get(place.suffix) or (READERS[".json"] if files.exists(place) else None)


def _write(target: Path, card: Card, found: "Found") -> None:
    """The quarantine: what the data leaves out already, and what was found now."""
    from mmalign.data import quarantine

    before = quarantine.entries(card.args["quarantine"]) if card.args.get("quarantine") else []
    quarantine.write(target, [*before, *((bad.id, bad.what) for bad in found.bad)])


def _listed(found: "Found") -> dict[str, Any]:
    by_reason: dict[str, list[dict[str, str]]] = {reason: [] for reason in found.reasons}
    for bad in found.bad:
        if len(by_reason[bad.reason]) < LISTED:
            by_reason[bad.reason].append({"id": bad.id, "what": bad.what})
    return {
        "rows": found.rows, "images": found.images, "files": found.files, "bad": len(found.bad),
        "reasons": found.reasons, "notes": dict(found.notes.most_common()), "listed": by_reason,
        "noted": found.noted,
        "seconds": round(found.seconds, 2),
    }  # fmt: skip


def _print(card: Card, made: Data, found: "Found", quarantine: Path | None) -> None:
    from mmalign.data.reasons import REASONS

    speed = f"{found.files / max(found.seconds, 1e-9):,.0f} images/s"
    out = f", {made.left_out:,} more left out by a quarantine" if made.left_out else ""
    show.out.print(f"{card.name}: {found.rows:,} records{out}, {found.images:,} images, {found.seconds:.1f} s, {speed}")
    if not found.bad:
        show.out.print("every record can be used")
    else:
        share = 100 * len(found.bad) / found.rows
        show.out.print(f"{len(found.bad):,} records cannot be used ({share:.2g} %)\n")
        table = show.table("reason", "records", "what it means", "the first")
        for reason, count in found.reasons.items():
            first = next(bad for bad in found.bad if bad.reason == reason)
            table.add_row(reason, f"{count:,}", REASONS[reason], _plain(f"{first.id}  {first.what.partition(': ')[2]}"))
        show.out.print(table)
    for note, count in found.notes.most_common():
        show.out.print(_plain(f"note: {count:,} {note}, the first: {found.noted[note][0]}"))
    if quarantine:
        show.out.print(f"written: {quarantine}   train without them: args: {{quarantine: {quarantine.absolute()}}}")
    elif found.bad:
        show.out.print("leave them out: --quarantine FILE here, then args: {quarantine: FILE} where the data is named")


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _Lines(name)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=show.err, transient=True) as bar:
        task = bar.add_task(name)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    def __init__(self, name: str) -> None:
        self.name, self.began = name, time.monotonic()
        self.last = self.began

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self.last < live.EVERY:
            return
        self.last = time.monotonic()
        left = (self.last - self.began) * (total - done) / max(1, done)
        print(f"{self.name}: {done}/{total}  {left:.0f} s left", file=sys.stderr, flush=True)


def look(data: str, overrides: Sequence[str], llm: str, vision: str | None, rows: str, as_json: bool) -> None:
    """Show records as the model gets them: the prompt, which tokens are trained, the images and their grid."""
    chat, grid = _chat(llm), _grid(vision)
    made = cards.build(card_of(data, overrides))
    seen = [_seen(made, number, chat, grid) for number in _numbers(rows, len(made))]
    if as_json:
        from . import dump

        dump(seen)
        return
    for one in seen:
        _draw(one)


def _chat(name: str) -> "Chat":
    from mmalign.llms.chat import Chat

    card = Registry().card("llms", name)
    if "checkpoint" not in card.args:
        raise CardError(f"llms {name!r} names no checkpoint, so its tokenizer is not known", at=card.path)
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
        found = range(int(first or 0), min(int(last or size), size) if colon else int(first) + 1)
    except ValueError as err:
        raise DataError(f"--rows {rows!r} is not {ROWS}", at="command line", fix="--rows 0:3") from err
    if not 0 <= found.start < found.stop <= size:
        raise DataError(f"--rows {rows}: the data has {size:,} records", at="command line", fix=f"--rows 0:{size}")
    return found


def _seen(data: Data, number: int, chat: "Chat", grid: list[int] | None) -> dict[str, Any]:
    """A record in plain values; where it cannot be used, what is wrong with it."""
    try:
        record = data[number]
        tokens = grid[0] * grid[1] if grid else 1
        found = chat.encode(record.turns, [tokens] * len(record.images))
    except DataError as err:
        return {"row": number, "id": data.id_of(number), "error": err.what}
    states = ["image" if i == chat.mark else "trained" if t else "read"
              for i, t in zip(found.ids, found.trained, strict=True)]  # fmt: skip
    return {
        "row": number,
        "id": record.id,
        "images": [_image(data, reference, grid) for reference in record.images],
        "tokens": {state: states.count(state) for state in STATES} | {"all": len(states)},
        "parts": _parts(chat, found.ids, states),
    }


def _image(data: Data, reference: Any, grid: list[int] | None) -> dict[str, Any]:
    try:
        image = data.image(reference)
    except DataError as err:
        return {"error": err.what}
    return {"width": image.width, "height": image.height, "grid": grid}


def _parts(chat: "Chat", ids: Sequence[int], states: Sequence[str]) -> list[dict[str, Any]]:
    """Runs of tokens of one state, each token's text apart: as the whole text is read, so that no space is lost."""
    texts: list[str] = []
    for at, state in enumerate(states):
        texts.append("" if state == "image" else _text(chat, ids[max(0, at - 8) : at], ids[at]))
    runs = groupby(range(len(ids)), key=lambda at: states[at])
    return [{"state": state, "tokens": [texts[at] for at in run]} for state, run in runs]


def _text(chat: "Chat", before: Sequence[int], own: int) -> str:
    """What a token adds to the text of the few before it."""
    decode = partial(chat.tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    whole, known = decode([*before, own]), decode(list(before))
    return str(whole[len(known) :] if whole.startswith(known) else decode([own]))


def _draw(one: dict[str, Any]) -> None:
    show.out.print(f"record {one['row']}  {one['id']}", style="bold")
    if "error" in one:
        show.out.print(f"  cannot be used: {one['error']}\n")
        return
    for image in one["images"]:
        size = f"{image['width']} x {image['height']} pixels" if "width" in image else image["error"]
        grid = " x ".join(map(str, image.get("grid") or []))
        show.out.print(f"  image: {size}" + (f", {grid} patches" if grid else ""))
    count = one["tokens"]
    show.out.print(f"  {count['all']} tokens: {count['trained']} trained, {count['read']} read, {count['image']} image")
    for part in one["parts"]:
        show.out.print(_part(part))
    show.out.print()


def _part(part: dict[str, Any]) -> Any:
    """A run of tokens: a colour for its state and stripes for its tokens; its state in words where colours are off."""
    from rich.text import Text

    made = Text(f"  {part['state']:<8}| ")
    if part["state"] == "image":
        return made.append(f"<image> x {len(part['tokens'])}", STATES["image"])
    for number, text in enumerate(part["tokens"]):
        style = STATES[part["state"]] + (" underline" if number % 2 else "")
        made.append(text.replace("\n", "\\n"), style)
    return made
