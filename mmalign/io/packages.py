"""Where packages lie, found without importing any of them."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path


def spec(name: str) -> ModuleSpec | None:
    """What the import system knows of a module; None where there is none.

    importlib.util.find_spec imports the packages above a module, and so runs their code; this asks the finders alone.
    """
    known: ModuleSpec | None = None
    above: list[str] | None = None
    words = name.split(".")
    for number in range(1, len(words) + 1):
        if number > 1 and (above := _folders(known)) is None:
            return None
        if (known := _spec(".".join(words[:number]), above)) is None:
            return None
    return known


def _spec(name: str, above: list[str] | None) -> ModuleSpec | None:
    """The first finder's answer, as in an import statement. above: folders of the package around it."""
    if not name.rpartition(".")[2].isidentifier():
        return None
    for finder in sys.meta_path:
        try:
            known: ModuleSpec | None = finder.find_spec(name, above, None)
        except KeyError:  # a folder without __init__.py asks the package above it, which is not imported
            return _bare(name, above or [])
        except (ImportError, ValueError, AttributeError):  # of another package's finder
            continue
        if known is not None:
            return known
    return None


def _bare(name: str, above: list[str]) -> ModuleSpec | None:
    """A folder without __init__.py inside a package."""
    places = [place for one in above if (place := Path(one) / name.rpartition(".")[2]).is_dir()]
    known = ModuleSpec(name, None, is_package=True)
    known.submodule_search_locations = list(map(str, places))
    return known if places else None


def _folders(known: ModuleSpec | None) -> list[str] | None:
    """The folders of a package; None for a module."""
    places = known.submodule_search_locations if known else None
    if places is None:
        return None
    return [place for place in places if isinstance(place, str)]


def folder(name: str) -> Path | None:
    """The first folder of a package; None where there is no such package."""
    return next((Path(place) for place in _folders(spec(name)) or []), None)
