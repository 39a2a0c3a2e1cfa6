"""The hub of models as this machine knows it: its cache, its address, and whether it may be asked."""

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from mmalign.errors import MMAlignError
from mmalign.io import files

PATIENCE = 3  # seconds for an answer of the hub
SET = ("1", "ON", "YES", "TRUE")
WEIGHTS = ("*.safetensors", "*.bin", "*.pt")


def cache() -> Path:
    """The folder that huggingface_hub keeps models in; as there, by $HF_HUB_CACHE, $HF_HOME or $XDG_CACHE_HOME."""
    if own := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(own).expanduser()
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "huggingface"
    return Path(os.environ.get("HF_HOME") or usual).expanduser() / "hub"


def endpoint() -> str:
    """The address of the hub, or of what stands in for it: $HF_ENDPOINT."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def offline() -> bool:
    """Whether the hub must not be asked: $HF_HUB_OFFLINE or $TRANSFORMERS_OFFLINE."""
    return any(os.environ.get(name, "").upper() in SET for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def reachable(seconds: float = PATIENCE) -> bool:
    """Whether the hub answers at all, whatever it says."""
    if offline():
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint(), method="HEAD"), timeout=seconds):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def folder_of(repo: str) -> Path:
    """Where the cache keeps a model."""
    return cache() / f"models--{repo.replace('/', '--')}"


def snapshot(repo: str, revision: str = "") -> Path | None:
    """The folder of a model's files in the cache, at its main branch or another revision; None where there is none."""
    folder = folder_of(repo)
    ref = folder / "refs" / (revision or "main")
    try:
        commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    except (OSError, ValueError):
        return None
    place = folder / "snapshots" / commit
    return place if commit and place.is_dir() else None


def whole(place: Path, weights: bool = True) -> bool:
    """Whether a snapshot has a configuration, and weights with every file that their index names."""
    if not any(place.glob("*config.json")):
        return False
    indexes = sorted(place.glob("*.index.json"))
    return not weights or (all(_shards(one) for one in indexes) and any(_there(place, name) for name in WEIGHTS))


def _there(place: Path, pattern: str) -> bool:
    return any(one.exists() for one in place.glob(pattern))  # not where a link leads nowhere


def _shards(index: Path) -> bool:
    try:
        about: Any = files.read_json(index)
    except MMAlignError:
        return False
    shards = about.get("weight_map") if isinstance(about, dict) else None
    return isinstance(shards, dict) and all((index.parent / str(name)).exists() for name in set(shards.values()))
