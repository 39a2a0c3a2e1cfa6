"""`ceilings`: how much of known tokens each readout reads right, layer by layer, as a table."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast, get_args

from mmalign.benchmarks import ReadoutKind
from mmalign.data import MARK
from mmalign.errors import RunError
from mmalign.io.texts import read_texts
from mmalign.pipeline import existing
from mmalign.plan import building, checkpoints
from mmalign.plan.cards import Registry

from .inspecting import numbers
from .models import loaded, loading
from .show import out, table, tell

if TYPE_CHECKING:
    from mmalign.vlm.ceilingtable import Ceiling

PROSE = "pkg:mmalign.vlm/prose.txt"  # no lens is fitted on it
RECORDS = 200  # whose texts are read, of data; at most
KNOWN = 0.5  # of a text's tokens, at least: what a tokenizer does not know is no text to it
TRAINED = "a folder runs/language-..., which a stage of kind `language` writes"
OWN = "--text: a file in the model's own language; in the toy world's, --text toy-eval-texts"


def ceilings(spec: str, layers: str | None, readouts: str, text: str | None, data: str | None, as_json: bool) -> None:
    _trained(spec)
    place, depths, kinds = existing.find(spec), numbers(layers) if layers else None, _kinds(readouts)
    texts = _texts(text or PROSE)
    probes = {kind: _probe(data, kind) for kind in kinds} if data else {}
    vlm = loaded(place)
    with loading():
        from mmalign.vlm.ceilingtable import Ceiling, Squares, ceiling_table, known, some_layers

        depths = some_layers(vlm.depth) if depths is None else depths
        vlm.check_layers(depths)
        if (share := known(vlm, texts)) < KNOWN:
            tell([f"no text is shown: the tokenizer of {spec} knows {share:.0%} of its tokens   (try {OWN})"])
            texts = []
        rows = ceiling_table(vlm, kinds, depths, texts)
        for kind, probe in probes.items():
            read = probe.ceilings(vlm if vlm.grid else Squares(vlm), depths).items()
            rows += [Ceiling("true", kind, n, one.share / 100, one.strict / 100, one.patches) for n, one in read]
    if as_json:
        from . import dump

        dump([vars(row) for row in rows])
    else:
        out.print(_table(rows))


def _trained(spec: str) -> None:
    """A RunError for the card of a language model that comes without weights: who trained one has a folder."""
    registry = Registry()
    if spec in registry.names("llms") and checkpoints.without_weights(card := registry.card("llms", spec)):
        raise RunError(f"the language model {spec} comes without weights", at=card.path, fix=TRAINED)


def _kinds(readouts: str) -> list[ReadoutKind]:
    """`input,lens` as readouts, each once."""
    names, known = [name.strip() for name in readouts.split(",")], get_args(ReadoutKind)
    for name in names:
        if name not in known:
            raise RunError(f"no readout {name!r}", at="--readout", fix=f"some of {','.join(known)}")
    return cast(list[ReadoutKind], list(dict.fromkeys(names)))


def _texts(spec: str) -> list[str]:
    """The lines of a file, or what is said in the first records of data by the name of its card."""
    registry = Registry()
    if spec not in registry.names("data"):
        return read_texts(spec)
    data = building.build(registry.card("data", spec))
    records = (data[number] for number in range(min(RECORDS, len(data))))
    return [turn.text.replace(MARK, "").strip() for record in records for turn in record.turns]


def _probe(data: str, kind: ReadoutKind) -> Any:
    """The alignment benchmark on data by the name of its card; a RunError for data that does not know its truth."""
    registry = Registry()
    card = registry.card("data", data)
    if not card.facts.get("truth"):
        knowing = [one.name for one in registry.every("data") if one.facts.get("truth")]
        what = f"the data {data} does not know what its images show"
        raise RunError(what, at="--data", fix=f"one of {', '.join(knowing)}")
    return building.build(replace(registry.card("benchmarks", "toy-alignment"), args={"data": data, "readout": kind}))


def _table(rows: "Sequence[Ceiling]") -> Any:
    columns = list(dict.fromkeys((row.shown, row.readout) for row in rows))
    of = {(row.layer, row.shown, row.readout): row for row in rows}
    shown = table("layer", *(" ".join(column) for column in columns))
    for layer in dict.fromkeys(row.layer for row in rows):
        shown.add_row(str(layer), *(_cell(of[layer, *column]) for column in columns))
    return shown


def _cell(row: "Ceiling") -> str:
    """Percent, with the strict number where it is another."""
    share, strict = f"{100 * row.share:.1f}", f"{100 * row.strict:.1f}"
    return share if share == strict else f"{share} ({strict})"
