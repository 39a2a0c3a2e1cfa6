"""What a recipe needs and this machine lacks: files, word lists and weights, each with where it comes from.

Looked at are the data folder and the hub's cache; nothing is asked of any network, and nothing heavy is imported.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mmalign.io import files, hub, packaged
from mmalign.plan import checkpoints, signatures
from mmalign.plan.cards import Card, Registry, members
from mmalign.plan.downloads import UNKNOWN, File, Source, told
from mmalign.plan.graph import cards_of
from mmalign.plan.recipe import Language, Recipe, Stage
from mmalign.plan.references import NotThereError, sure

GET = "mmalign data get"
BY_HAND = "by hand, from there"
MINE = "or put it there, or set MMALIGN_DATA"
SETS = ("data", "benchmarks", "labels")  # families whose cards name files of the data folder
PLACE = "data:"
WEIGHTS = "weights"
CONFIGURATION = "configuration"  # of a model whose weights are drawn at random


@dataclass(frozen=True)
class Gap:
    """One thing that is not there.

    part: `data llava-pretrain-558k`, whose it is. what: the file, or `weights`. origin: where from. size, license: in
    words. gate: what has to be agreed to. place: where it goes on this machine. get: the command, or what to do.
    blocks: whether no run can do without.
    """

    part: str
    what: str
    origin: str
    size: str
    license: str
    gate: str
    place: str
    get: str
    blocks: bool = True
    source: Source | None = field(default=None, repr=False, compare=False)  # None: not known
    file: File | None = field(default=None, repr=False, compare=False)  # None: the weights of a model

    @property
    def fetched(self) -> bool:
        """Whether a stage would fetch it by itself, where the hub answers."""
        return self.what in (WEIGHTS, CONFIGURATION)


class GapsError(NotThereError):
    """Something that a recipe needs is not there. gaps: all of that."""

    def __init__(self, gaps: Sequence[Gap], recipe: str) -> None:
        self.gaps = list(gaps)
        first, *more = [gap for gap in gaps if gap.blocks]
        what = f"{first.part}: {first.what} is not here"
        if more:
            what += f", and {len(more)} more {'things are' if len(more) > 1 else 'thing is'} missing"
        super().__init__(what, at=first.place, fix=f"{GET} {recipe}   ({MINE})")


def of(variants: Sequence[Recipe], registry: Registry) -> list[Gap]:
    """Everything that the variants of a recipe lack, once each, in the order of the stages that need it."""
    found: dict[tuple[str, str], Gap] = {}
    search = _Search(registry)
    seen = set()  # arms of a study have most cards in common
    for recipe in variants:
        for name, stage in recipe.stages.items():
            for card in cards_of(recipe, name, registry).values():
                fresh = _fresh(stage, card)
                if (key := repr((card.family, card.name, card.args, fresh))) in seen:
                    continue
                seen.add(key)
                for gap in search.of_card(card, fresh):
                    known = found.get((gap.what, gap.place))
                    if known is None or (gap.blocks and not known.blocks):
                        found[gap.what, gap.place] = gap
    return list(found.values())


def asked(variants: Sequence[Recipe]) -> str:
    """A recipe, and what was laid over it, as the command line names it."""
    return " ".join(variants[0].asked) or variants[0].name


def of_card(card: Card, registry: Registry) -> list[Gap]:
    """What one card lacks, with the cards inside it."""
    search = _Search(registry)
    return [gap for one in (card, *registry.inside(card).values()) for gap in search.of_card(one)]


def unreachable(gaps: Sequence[Gap]) -> list[Gap]:
    """The gaps once the hub was asked whether it is there: without it, nothing is fetched on the way."""
    if not any(gap.fetched and not gap.blocks for gap in gaps) or hub.reachable():
        return list(gaps)
    return [replace(gap, blocks=gap.blocks or gap.fetched) for gap in gaps]


def _fresh(stage: Stage, card: Card) -> bool:
    """Whether only the configuration of a model is read, and its weights are drawn."""
    drawn = card.family == "llms" and isinstance(stage, Language) and stage.from_ == "config"
    return drawn or bool(card.args.get("random"))


class _Search:
    """Looks for what cards name; where a card does not say where from, another one may."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    @cached_property
    def others(self) -> list[tuple[str, Source, File]]:
        """(card, source, file) of all that any card says of the data folder."""
        cards = (card for family in SETS for card in self.registry.every(family))
        return [(card.name, *pair) for card in cards for pair in _listed(self.registry.sources(card))]

    def of_card(self, card: Card, fresh: bool = False) -> Iterator[Gap]:
        sources = self.registry.sources(card)
        yield from self._weights(card, sources, fresh)
        listed = [(card.name, *pair) for pair in _listed(sources)]
        for key, spec in _specs(card):
            if not files.exists(sure(_local(spec))):
                told_of = _filling(listed, spec) or _filling(self.others, spec)
                lacking = [one for one in told_of if not files.exists(_local(one[2].place))]
                yield from (_gap(card, *one) for one in lacking)
                if not lacking:
                    yield _unknown(card, key, spec)
            elif card.family == "data" or self._begun(listed):
                inside = (one for one in _filling(listed, spec) if not files.exists(_local(one[2].place)))
                yield from (replace(_gap(card, *one), blocks=False) for one in inside)

    @staticmethod
    def _begun(listed: Sequence[tuple[str, Source, File]]) -> bool:
        """Whether some of the files are there, so that it is this layout and no other one that the part reads."""
        return any(files.exists(_local(file.place)) for _, _, file in listed)

    def _weights(self, card: Card, sources: Sequence[Source], fresh: bool) -> Iterator[Gap]:
        """The model of the hub that a card names, where the cache has not all of it."""
        told_of = next((one for one in sources if one.model), None)
        repo = self.repository(card, told_of)
        if not repo:
            return
        own = told_of if told_of and told_of.hub == repo else Source(hub=repo)
        place = hub.snapshot(repo, own.revision)
        if place is None or not hub.whole(place, weights=not fresh):
            what, where = f"{card.family} {card.name}", str(hub.folder_of(repo))
            get = f"{GET} {card.name}" if own is told_of else f"hf download {repo}"
            size = "a few MB" if fresh else told(own.size)
            kind, blocks = CONFIGURATION if fresh else WEIGHTS, hub.offline()
            yield Gap(what, kind, own.address(), size, own.license, own.gate, where, get, blocks, own)

    def repository(self, card: Card, source: Source | None) -> str:
        """The hub's id of the weights that a card's part loads; empty where they are here, or it has none."""
        spec = card.args.get("checkpoint")
        if signatures.attribute(card.target, "checkpoints") == "transformers":
            return spec if isinstance(spec, str) and _of_the_hub(spec) else ""
        if source is None or spec is not None or not card.args.get("pretrained"):
            return ""
        own = self.registry.card(card.family, card.name).args  # a recipe may name other weights
        return source.hub if all(own.get(key) == card.args.get(key) for key in ("model", "pretrained")) else ""


def _of_the_hub(spec: str) -> bool:
    """Whether a checkpoint is named by the hub's id."""
    elsewhere = files.local(spec) is None and not files.is_url(spec) and not spec.startswith(packaged.PREFIX)
    return bool(spec) and elsewhere and Path(spec).suffix.lower() not in checkpoints.FILES


def _listed(sources: Sequence[Source]) -> Iterator[tuple[Source, File]]:
    return ((source, file) for source in sources for file in source.files)


def _specs(card: Card) -> Iterator[tuple[str, str]]:
    """(argument, spec) of all that a card and the members of its mixture name in the data folder."""
    for one in (card, *(member for _, member in members(card))):
        for key, value in one.args.items():
            for spec in value if isinstance(value, list) else [value]:
                if isinstance(spec, str) and spec.startswith(PLACE):
                    yield key, spec


def _local(spec: str) -> Path:
    place = files.local(spec)
    assert place is not None, spec
    return place.absolute()


def _filling(listed: Sequence[tuple[str, Source, File]], spec: str) -> list[tuple[str, Source, File]]:
    """Those of the files that a place of the data folder is, holds or lies in."""
    place = _local(spec)
    return [one for one in listed if _related(_local(one[2].place), place)]


def _related(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


def _gap(card: Card, name: str, source: Source, file: File) -> Gap:
    get = BY_HAND if source.page else f"{GET} {name}"
    origin, place = source.address(file), str(_local(file.place))
    part, size = f"{card.family} {card.name}", told(file.size)
    return Gap(part, file.name, origin, size, source.license, source.gate, place, get, True, source, file)


def _unknown(card: Card, key: str, spec: str) -> Gap:
    part, what = f"{card.family} {card.name}", f"{key} {spec}"
    return Gap(part, what, UNKNOWN, UNKNOWN, UNKNOWN, "", str(_local(spec)), MINE)


def as_json(gaps: Sequence[Gap]) -> list[dict[str, Any]]:
    names = [one.name for one in fields(Gap) if one.compare]
    return [{name: getattr(gap, name) for name in names} for gap in gaps]
