"""`eval`, `export` and `import`: models that are there already, and what becomes of them."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from mmalign.errors import RunError
from mmalign.io import files, packaged, packages, templates, whole
from mmalign.io.limits import SETTINGS_BYTES
from mmalign.pipeline import existing, original, task
from mmalign.pipeline.run import Launch
from mmalign.pipeline.run import run as run_
from mmalign.plan.cards import Registry
from mmalign.plan.graph import Node

from . import live, scores, show

if TYPE_CHECKING:
    from mmalign.vlm.model import VLM


def evaluate(
    checkpoint: str | None,
    bench: str,
    data: Path | None,
    protocol: str,
    runs: Path,
    as_json: bool,
    vllm: bool = False,
) -> None:
    names = list(dict.fromkeys(name.strip() for name in bench.split(",") if name.strip()))
    if not names:
        raise RunError("no benchmark is named", fix="--bench toy-pope   (mmalign list benchmarks)")
    place = existing.find(checkpoint) if checkpoint else existing.newest(runs)
    registry = Registry()
    parts = existing.benches(names, data, registry)
    node = existing.evaluation(place, parts, registry, runs, protocol, vllm)
    scores.ready(node)
    show.tell([f"{part.card} reads no folder: --data is not for it" for part in parts if data and not part.args])
    show.tell(scores.renewed(node))
    if not node.done:
        show.err.print(f"evaluating {place}")
    _run(node)
    show.scores(node.folder, as_json)
    show.tell(scores.notes(node.folder))


def export(checkpoint: str, target: Path) -> None:
    """Run an export stage and copy what it wrote, whole or not at all."""
    vacant(target)
    node = existing.export(existing.find(checkpoint), Registry())
    _run(node)
    exported = task.done(node.folder)
    with files.made(target) as beside:
        shutil.copytree(node.folder / exported["exported"], beside, dirs_exist_ok=True)
    if exported["why_not"]:
        show.out.print(f"{target}: loads where mmalign is installed; plain transformers cannot: {exported['why_not']}")
    else:
        difference = f"the largest difference of a logit is {exported['metrics']['difference']:.2e}"
        show.out.print(f"{target}: loads in plain transformers; {difference} (weights in {exported['precision']})")
        show.tell([exported["note"]] if exported["note"] else [])


def import_(source: str, target: Path, template: Path | None) -> None:
    """A LLaVA model as one of mmalign's, a projector as a card, a language model out of a GGUF file as a checkpoint."""
    vacant(target)
    if model := language_model(source):
        _gguf(model, target, template)
        return
    if projector(Path(source)):
        _adapter(source, target)
        return
    place = existing.find(source)
    fix = f"model: {{llm: {source}}}" if isinstance(place, str) else f"mmalign new llm NAME --from {source}"
    existing.seeing(place, "a recipe names its card, and nothing has to be brought in", fix)
    if isinstance(place, Path) and not (place / "config.json").exists():
        raise RunError(f"{source} is mmalign's already", at=source, fix=f"mmalign eval {source} --bench ...")
    if isinstance(place, Path) and existing.whole(place):
        what = f"{source} is asked as it is, by its own classes: nothing has to be brought in"
        raise RunError(what, at=source, fix=f"mmalign eval {source} --bench ...")
    text = _template(template) if template else None
    with loading():
        from mmalign.integrations import llava

        llava.llava(str(existing.fetched(place)), target, text)
    show.out.print(f"{target}: mmalign eval {target} --bench ...")


def language_model(source: str) -> Path | None:
    """The GGUF file that a name means: one that begins as such, or ends in .gguf, or lies in an installed package.

    Raises CardError for a package without one.
    """
    place = Path(source)
    if place.is_file():
        with open(place, "rb") as opened:
            return place if place.suffix == packaged.ENDING or opened.read(4) == packaged.MAGIC else None
    if source.startswith(packaged.PREFIX) or (not files.exists(place) and packages.folder(source.replace("-", "_"))):
        return packaged.file(source.replace("-", "_"))
    return None


def _gguf(source: Path, target: Path, template: Path | None) -> None:
    packaged.reader(str(source))
    text = _template(template) if template else None
    with loading():
        from mmalign.llms import formats, gguf

        told = gguf.write(source, target, text)
    show.out.print(f"{target}: mmalign new llm NAME --from {target}")
    show.tell([] if told and templates.marks_answers(told) else [f"{target}: {formats.UNMARKED}"])


def _template(place: Path) -> str:
    try:
        return whole.read(str(place), SETTINGS_BYTES, RunError).decode("utf-8")
    except (OSError, UnicodeDecodeError) as err:
        reason = getattr(err, "strerror", None) or "it is not UTF-8 text"
        fix = "a file of jinja, with {% generation %} marks around the answers"
        raise RunError(f"cannot read the template {place}: {reason}", at=str(place), fix=fix) from err


def projector(place: Path) -> bool:
    """Whether a name is that of a file, or of a folder with LLaVA's mm_projector and no language model's weights."""
    files_ = [place / f"mm_projector{suffix}" for suffix in (".bin", ".safetensors")]
    alone = any(one.exists() for one in files_) and not original.has_weights(place)
    return place.suffix == ".bin" or place.is_file() or alone


def _adapter(source: str, target: Path) -> None:
    from mmalign.integrations import llava

    name = target.resolve().name
    card = llava.adapter(source, target, name)
    show.out.print(f"{target}: {card['summary']}")
    shelf = target if target.is_absolute() else f"./{target}"
    show.out.print(f"in a recipe: registry: [{shelf}]   model: {{adapter: {name}}}")


def loaded(place: Path | str) -> "VLM":
    with loading():
        from mmalign.pipeline.load import load

        return load(str(place))


@contextmanager
def loading() -> Iterator[None]:
    """What libraries have to say while they load goes to stderr; their bars only where somebody may watch them."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with redirect_stdout(sys.stderr):
        yield


def vacant(target: Path) -> None:
    if target.exists():
        raise RunError(f"{target} is there already", at=str(target), fix="another folder; nothing is overwritten")
    files.writable(target)


def _run(node: Node) -> None:
    launch = Launch()
    with live.display([node], launch) as display:
        run_([node], launch, display)
