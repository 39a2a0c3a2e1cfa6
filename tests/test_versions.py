"""constraints.txt: a pin for everything the README's two commands install, within the bounds of pyproject.toml.

python -m tests.test_versions   writes the versions installed now into it, for a reader to look over.
"""

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
FILE = ROOT / "constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NAMED = [Requirement(line) for line in [*PROJECT["dependencies"], *EXTRAS["train"], *EXTRAS["test"]]]
PLATFORM = re.compile(r"nvidia-.*|cuda-.*|triton")
HEAD = """\
# One set of versions with which all tests passed: what `.[train,test]` brings in, on Python {python} under Linux.
# README, "Versions", says how it is renewed. Bounds stand in pyproject.toml.
# CUDA's packages and triton are left out: they differ from platform to platform, and torch names those it needs.
"""


def pins(text: str) -> dict[str, str]:
    """{name: version}; any line that is not `name==version` is an error."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, version = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line).groups()
            assert name not in found, line
            found[name] = version
    return found


def brought(requirements: Iterable[Requirement]) -> dict[str, set[str]]:
    """{name: the extras asked for} of all that the requirements need here, by what the installed packages say."""
    extras: dict[str, set[str]] = {}
    todo = list(requirements)
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if name in extras and wanted.extras <= extras[name]:
            continue
        extras[name] = extras.get(name, set()) | wanted.extras
        inner = map(Requirement, importlib.metadata.requires(name) or [])
        todo += [one for one in inner if _applies(one, extras[name])]
    return extras


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    return not requirement.marker or any(requirement.marker.evaluate({"extra": extra}) for extra in ["", *extras])


def as_pinned() -> bool:
    """Whether this environment is the set of constraints.txt."""
    try:
        return all(importlib.metadata.version(name) == pin for name, pin in pins(FILE.read_text()).items())
    except importlib.metadata.PackageNotFoundError:
        return False


def outside(requirements: Iterable[Requirement], pinned: dict[str, str]) -> list[str]:
    """The requirements that no pin satisfies."""
    found = [(one, pinned.get(canonicalize_name(one.name))) for one in requirements]
    return [str(one) for one, pin in found if pin is None or not one.specifier.contains(pin, prereleases=True)]


def test_every_dependency_has_a_pin_within_its_bounds():
    assert len(NAMED) > 20
    assert outside(NAMED, pins(FILE.read_text())) == []


def test_the_comparison_can_fail():
    asked = [Requirement(line) for line in ("types-PyYAML", "torch>=2.11", "deepspeed>=0.19,<0.20", "rich>=13")]
    found = outside(asked, {"types-pyyaml": "6.0", "torch": "2.9", "deepspeed": "0.20.0"})
    assert [Requirement(line).name for line in found] == ["torch", "deepspeed", "rich"]


@pytest.mark.skipif(not as_pinned(), reason="other versions are installed here, which may need other packages")
def test_what_they_bring_in_has_a_pin_too():
    needed = {name for name in brought(NAMED) if not PLATFORM.fullmatch(name)}
    assert {"torch", "tokenizers", "einops"} <= needed
    assert needed <= set(pins(FILE.read_text()))


@pytest.mark.parametrize("line", ["torch==2.9+cpu", "-e .", "mmalign @ file:///x", "--index-url https://x", "torch>=2"])
def test_only_pins_from_the_ordinary_index(line):
    pins(FILE.read_text())
    with pytest.raises(AttributeError):
        pins(line)


def test_the_file_is_sorted_and_leaves_out_what_belongs_to_a_platform():
    found = list(pins(FILE.read_text()))
    assert found == sorted(found)
    assert "mmalign" not in found
    assert not any(PLATFORM.fullmatch(name) for name in found)


def test_deepspeed_has_an_upper_bound():
    """Its internals are used, and its minor releases change them."""
    (deepspeed,) = [one for one in NAMED if one.name == "deepspeed"]
    pinned = Version(pins(FILE.read_text())["deepspeed"])
    assert not deepspeed.specifier.contains(f"{pinned.major}.{pinned.minor + 1}")


@pytest.mark.parametrize("place", ["README.md", ".ci/run"])
def test_both_commands_use_the_file(place):
    installs = re.findall(r"^pip install .*-e .*$", (ROOT / place).read_text(), re.M)
    assert len(installs) == 2
    assert all(line.startswith("pip install -c constraints.txt -e ") for line in installs)


def _write() -> None:
    import platform

    python = ".".join(platform.python_version_tuple()[:2])
    names = sorted(name for name in brought(NAMED) if not PLATFORM.fullmatch(name))
    lines = [f"{name}=={Version(importlib.metadata.version(name)).public}\n" for name in names]
    FILE.write_text(HEAD.format(python=python) + "".join(lines))


if __name__ == "__main__":
    _write()
