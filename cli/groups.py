"""The verbs about data and about labels: `mmalign data ...`, `mmalign labels ...`."""

from pathlib import Path
from typing import Annotated

import typer

from .helping import Verbs
from .options import AllowCode, Json

data_app = typer.Typer(cls=Verbs, no_args_is_help=True, help="Look at a data set, or get one.")
DataArg = Annotated[str, typer.Argument(metavar="DATA", help="a card's name, or a file or folder of records")]
DataArgs = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="arguments of the reader")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="tokens a sample is cut at; left out: none is cut")]


@data_app.command("check")
def data_check(
    data: DataArg,
    overrides: DataArgs = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="processes; left out: one a core")] = None,
    quarantine: Annotated[Path | None, typer.Option(help="write the records that cannot be used there")] = None,
    llm: Annotated[str | None, typer.Option(help="whose chat format every record must fit; left out: none")] = None,
    vision: Annotated[str | None, typer.Option(help="whose patches; left out: an image is one token")] = None,
    max_length: MaxLength = None,
    as_json: Json = False,
    allow_code: AllowCode = False,
) -> int:
    """Read every record and image, and say what cannot be used."""
    from . import data as verbs

    model = verbs.Model(llm, vision, max_length)
    return verbs.check(data, overrides or [], jobs, quarantine, as_json, model)


@data_app.command("show")
def data_show(
    data: DataArg,
    overrides: DataArgs = None,
    llm: Annotated[str, typer.Option(help="whose chat format and tokens")] = "toy-llama",
    vision: Annotated[str | None, typer.Option(help="whose patches; left out: an image is one token")] = None,
    rows: Annotated[str, typer.Option(help="a number, or first:last")] = "0:3",
    max_length: MaxLength = None,
    as_json: Json = False,
    allow_code: AllowCode = False,
) -> None:
    """Show records as a model gets them: which tokens are trained, and the images."""
    from . import data as verbs

    verbs.look(data, overrides or [], llm, vision, rows, as_json, max_length)


@data_app.command("get")
def data_get(
    names: Annotated[
        list[str], typer.Argument(metavar="RECIPE|CARD...", help="recipes, with key=value behind them, or cards")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be fetched; no network")] = False,
    as_json: Json = False,
) -> int:
    """Fetch the files, word lists and weights that recipes or cards need and this machine lacks.

    What broke off goes on with the same command. HF_HUB_OFFLINE=1: nothing is fetched. HF_ENDPOINT: another hub.
    """
    from . import getting

    return getting.get(names, dry_run, as_json)


labels_app = typer.Typer(cls=Verbs, no_args_is_help=True, help="Look at a label store, or decide a source's sign.")
Store = Annotated[str, typer.Argument(metavar="LABELS", help="the folder of a label stage, or a store (path or URL)")]


@labels_app.command("stats")
def labels_stats(
    place: Store,
    out: Annotated[Path | None, typer.Option(help="write them there, as .html with charts and .json")] = None,
    as_json: Json = False,
) -> None:
    """Similarities, words a patch, words used and how often, mean score of each (SEA, figure 6)."""
    from . import labels as verbs

    verbs.stats(place, out, as_json)


@labels_app.command("show")
def labels_show(
    place: Store,
    keys: Annotated[list[str] | None, typer.Argument(metavar="KEY", help="record ids; left out: the first")] = None,
    out: Annotated[Path, typer.Option(help="a page, .html; or .png, one a picture")] = Path("labels.html"),
    allow_code: AllowCode = False,
) -> None:
    """Show the labels of images on their patches."""
    from . import labels as verbs

    verbs.show(place, keys or [], out)


@labels_app.command("sign")
def labels_sign(
    source: Annotated[str, typer.Argument(metavar="CARD", help="a label source   (mmalign list labels)")],
    data: DataArg,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="labels.words=..., data.size=..., fit=pad")
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="looked at, spread over the data")] = 256,
    out: Annotated[Path, typer.Option(help="a few images labelled under both signs, as .png")] = Path("signs.png"),
    as_json: Json = False,
    allow_code: AllowCode = False,
) -> None:
    """Decide the sign of a label source by captions, without anything else."""
    from . import signs

    signs.decide(source, data, overrides or [], images, out, as_json)
