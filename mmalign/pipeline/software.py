"""What a stage runs with: versions of the packages its numbers depend on, and mmalign's own commit in a checkout."""

import subprocess
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import mmalign

PACKAGES = ("torch", "transformers", "deepspeed")


@cache
def used() -> dict[str, str]:
    """{package: its version} of those installed, and `commit`, where it is known; nothing is imported."""
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions | ({"commit": commit} if (commit := _commit(Path(mmalign.__file__).parents[1])) else {})


def _commit(folder: Path) -> str:
    """The commit of a checkout, `-dirty` where files differ from it; empty: it is none, or there is no git."""
    if not (folder / ".git").exists():
        return ""
    line = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return ""
