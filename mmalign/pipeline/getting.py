"""`mmalign data get`: what is missing, brought from its sources: resumed, checked, unpacked where its card reads it.

Hub files come through huggingface_hub: weights into its own cache, data sets by way of a folder `.get` in the data
folder, where whatever broke off waits for the same command. Nothing is fetched but what was asked for and is missing.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mmalign.errors import DataError, MMAlignError
from mmalign.io import files, hub, transfer, unpack
from mmalign.plan.downloads import DATASETS, File, Source
from mmalign.plan.gaps import CONFIGURATION, Gap

WAITING = ".get"  # in the data folder: what is being fetched
SETTINGS = (".json", ".txt", ".model", ".jinja", ".tiktoken")
OFFLINE = "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE"


class Show(Protocol):
    """What a front end is told while files come."""

    def begin(self, gap: Gap) -> None: ...
    def progress(self, done: int, total: int | None) -> None: ...
    def end(self, gap: Gap, how: str) -> None: ...


@dataclass
class Got:
    """What became of the gaps. done: fetched or linked; left: for people, or not known where from; failed: and why."""

    done: list[Gap] = field(default_factory=list)
    left: list[Gap] = field(default_factory=list)
    failed: list[tuple[Gap, MMAlignError]] = field(default_factory=list)


def get(gaps: Sequence[Gap], show: Show) -> Got:
    """Fetch all that can be fetched; what fails does not keep the others from coming, but for a full disk.

    Raises DataError at once where the network must not be used (HF_HUB_OFFLINE), and NoSpaceError.
    """
    got = Got(left=[gap for gap in gaps if gap.source is None or gap.source.page])
    wanted = [gap for gap in gaps if gap not in got.left]
    if wanted and hub.offline():
        what = f"{len(wanted)} files are missing, and the network must not be used"
        raise DataError(what, at="HF_HUB_OFFLINE", fix=OFFLINE)
    there: dict[tuple[str, str], Path] = {}
    for gap in wanted:
        show.begin(gap)
        try:
            how = _one(gap, there, show)
        except transfer.NoSpaceError:
            raise
        except MMAlignError as err:
            got.failed.append((gap, err))
            how = "failed"
        else:
            got.done.append(gap)
        show.end(gap, how)
    return got


def _one(gap: Gap, there: dict[tuple[str, str], Path], show: Show) -> str:
    """Fetch one thing; how it came. there: {(address, which part of it): its place} of what came before."""
    assert gap.source
    if gap.file is None:
        return _model(gap.source, show, weights=gap.what != CONFIGURATION)
    place = Path(gap.place)
    key = (f"{gap.source.address(gap.file)}/{gap.file.name}", gap.file.member)
    if key in there and not files.exists(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(there[key], target_is_directory=there[key].is_dir())
        return f"linked to {there[key]}"
    archive = _fetched(gap.source, gap.file, show)
    try:
        _put(archive, gap.file, place)
    except transfer.NoSpaceError:
        raise
    except DataError:
        archive.unlink(missing_ok=True)  # what cannot be unpacked is not kept for the next time
        raise
    archive.unlink(missing_ok=True)
    shutil.rmtree(archive.parent, ignore_errors=True)
    there[key] = place
    return "fetched"


def _put(archive: Path, file: File, place: Path) -> None:
    """A file that has come, where its card reads it."""
    if file.member:
        unpack.take(archive, file.member, place)
    elif file.unpack:
        folder = files.local(file.unpack)
        assert folder
        unpack.unpack(archive, folder)
        if not files.exists(place):
            what = f"{file.name} was unpacked into {folder}, and {place} is not there"
            raise DataError(what, at=str(folder), fix="look where it went; `source:` of the card says otherwise")
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(archive, place)


def _fetched(source: Source, file: File, show: Show) -> Path:
    """A file of a data set, or at an address, as it came."""
    root = files.local("data:")
    assert root
    folder = root / WAITING / (source.hub or source.url).replace("://", "/").replace("/", "--")
    name = file.name.rpartition("/")[2]
    if not source.hub:
        size = file.size if isinstance(file.size, int) else None
        transfer.fetch(source.address(file), folder / name, size, file.sha256, show.progress)
        return folder / name
    about = _repository(source)
    known = next((one for one in about.siblings or [] if one.rfilename == file.name), None)
    if known is None:
        raise DataError(f"{source.address()} has no file {file.name}", at=source.hub, fix="has it moved?")
    size, sha256 = _told(known)
    transfer.room(_made(folder), (size or 0) - transfer.come(folder))
    place = _downloaded(source, file.name, about.sha, show, size, local_dir=str(folder))
    _held(place, file.sha256 or sha256, source)
    return place


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _model(source: Source, show: Show, weights: bool = True) -> str:
    """What transformers, timm or open_clip read of a model, into the hub's cache; without weights the rest of it."""
    about = _repository(source)
    siblings = {one.rfilename: one for one in about.siblings or []}
    names = [name for name in chosen(list(siblings)) if weights or name.endswith(SETTINGS)]
    if not names:
        raise DataError(f"{source.address()} holds no model", at=source.hub, fix="check `source:` of the card")
    have = hub.folder_of(source.repo)
    sizes = [_told(siblings[name])[0] or 0 for name in names]
    transfer.room(_made(hub.cache()), sum(sizes) - transfer.come(have))
    for name in names:
        size, sha256 = _told(siblings[name])
        place = _downloaded(source, name, source.revision or None, show, size)
        _held(place, sha256, source)
    return "fetched"


def chosen(names: Sequence[str]) -> list[str]:
    """Of a model's files those that are read: configuration, tokenizer, and the weights in one format, not several.

    Weights as safetensors where there are any, else as PyTorch's; those of open_clip where it is one of its models.
    """
    top = [name for name in names if "/" not in name]
    settings = [name for name in top if name.endswith(SETTINGS) and not name.endswith(".index.json")]
    prefix = "open_clip_" if any(name.startswith("open_clip_") for name in top) else ""
    for ending in (".safetensors", ".bin"):
        weights = [name for name in top if name.endswith(ending) and name.startswith(prefix) and _main(name)]
        if weights:
            return [*settings, *(name for name in top if name.endswith(f"{ending}.index.json")), *weights]
    return []


def _main(name: str) -> bool:
    """Not a second copy of the weights, an optimizer's state or settings of a trainer's."""
    return not name.startswith(("consolidated", "training_args", "optimizer", "scheduler"))


def _told(sibling: Any) -> tuple[int | None, str]:
    """(bytes, SHA-256 or nothing) that the hub tells of a file."""
    return sibling.size, sibling.lfs.sha256 if sibling.lfs else ""


def _held(place: Path, sha256: str, source: Source) -> None:
    """Compare a file with its checksum; one that is not as it should be is removed, in the hub's cache, too."""
    if sha256 and (came := transfer.digest(place)) != sha256:
        real = place.resolve()
        place.unlink()
        real.unlink(missing_ok=True)
        what = f"{source.hub}/{place.name}: its SHA-256 is {came}, and should be {sha256}"
        raise DataError(what, at=str(place), fix="the same command fetches it again")


def _repository(source: Source) -> Any:
    """What the hub says of a repository: its commit and its files."""
    with _asking(source):
        from huggingface_hub import HfApi

        api, revision = HfApi(endpoint=hub.endpoint()), source.revision or None
        return api.repo_info(source.repo, repo_type=_kind(source), revision=revision, files_metadata=True)


def _kind(source: Source) -> str:
    return "dataset" if source.hub.startswith(DATASETS) else "model"


def _downloaded(
    source: Source, name: str, revision: str | None, show: Show, size: int | None, local_dir: str | None = None
) -> Path:
    """A file of the hub, where huggingface_hub puts it; it goes on where it broke off."""
    with _asking(source):
        from huggingface_hub import hf_hub_download

        place = Path(
            hf_hub_download(
                source.repo, name, repo_type=_kind(source), revision=revision, endpoint=hub.endpoint(),
                tqdm_class=_bar(show), local_dir=local_dir,
            )
        )  # fmt: skip
    if size is not None and place.stat().st_size != size:
        raise DataError(f"{source.hub}/{name}: {place.stat().st_size:,} bytes came of {size:,}", at=source.hub)
    return place


def _bar(show: Show) -> Any:
    """huggingface_hub's progress, as ours."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})
            self.n = options.get("initial") or 0

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            show.progress(int(self.n), int(self.total) if self.total else None)

    return Bar


@contextmanager
def _asking(source: Source) -> Iterator[None]:
    """Around what asks the hub: whatever goes wrong is a DataError, and a gate says how to pass it."""
    try:
        yield
    except MMAlignError:
        raise
    except ImportError as err:
        raise DataError("the hub needs the package huggingface_hub", fix="pip install huggingface_hub") from err
    except OSError as err:
        if err.errno == errno.ENOSPC:
            raise transfer.NoSpaceError(f"no space left for {source.hub}", at=source.hub, fix="free some") from err
        raise _refused(source, err) from err
    except Exception as err:  # httpx's and huggingface_hub's own
        raise _refused(source, err) from err


def _refused(source: Source, err: Exception) -> DataError:
    reason = (str(err).strip() or type(err).__name__).splitlines()[0]
    if type(err).__name__ == "GatedRepoError":
        page = f"{hub.endpoint()}/{source.hub}"
        fix = source.gate or f"agree to its terms on {page}, then: hf auth login"
        return DataError(f"{source.hub} is behind a gate", at=source.hub, fix=fix)
    fix = source.gate or "check the name, the network, and HF_TOKEN; the same command goes on"
    return DataError(f"cannot fetch {source.address()}: {reason}", at=source.hub, fix=fix)
