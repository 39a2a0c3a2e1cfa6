"""The documentation as a browser gets it: built without a warning, whole in itself, with links that lead on."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

pytest.importorskip("material", reason='pip install -e ".[docs]"')
pytest.importorskip("mkdocstrings", reason='pip install -e ".[docs]"')

ROOT = Path(__file__).parent.parent


class Links(HTMLParser):
    """What a page fetches by itself, and where it leads; and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.led: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.anchors |= {given[key] for key in ("id", "name") if key in given}
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect", "prefetch"):
            self.fetched.append(given["href"])
        if tag in ("script", "img", "iframe", "source", "video") and "src" in given:
            self.fetched.append(given["src"])
        if tag == "a" and "href" in given:
            self.led.append(given["href"])


def build(folder: Path) -> None:
    """The site into a folder; any warning ends the build, and with it the test."""
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"}
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr


def test_it_builds_is_whole_in_itself_and_every_link_leads_on(tmp_path):
    """One build for all that is asked of it."""
    build(tmp_path)
    texts = {place: place.read_text(encoding="utf-8") for place in tmp_path.rglob("*.html") if place.name != "404.html"}
    assert len(texts) > 25
    for place, text in texts.items():
        assert str(ROOT) not in text, place.name
        assert f"{Path.home()}/" not in text, place.name
    pages = {place: Links(text) for place, text in texts.items()}
    for place, page in pages.items():
        for address in page.fetched:
            assert not urlsplit(address).netloc, f"{place.name} fetches {address}"
            assert (place.parent / urlsplit(address).path).exists(), address
        for address in page.led:
            _leads_on(address, place, pages)
    index = (tmp_path / "search" / "search_index.json").read_text(encoding="utf-8")
    for word in ("group_by_length", "--allow-code", "clip-words-surgery", "basic_direction_loss"):
        assert word in index


def _leads_on(address: str, place: Path, pages: dict[Path, Links]) -> None:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        assert parts.scheme == "https", f"{place.name}: {address}"
        assert re.fullmatch(r"[a-z0-9.-]+\.[a-z]+", parts.netloc), address
        return
    target = (place.parent / parts.path).resolve() if parts.path else place
    assert target.exists(), f"{place.name}: {address}"
    if parts.fragment and target in pages and not parts.fragment.startswith("__"):
        assert parts.fragment in pages[target].anchors, f"{place.name}: {address}"


def test_the_extra_is_part_of_the_tests():
    """So that CI, which installs `.[train,test]`, builds the documentation."""
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    docs = re.findall(r"^docs = \[(.*?)\]$", extras, re.M | re.S)[0]
    test = re.findall(r"^test = \[(.*?)^\]", extras, re.M | re.S)[0]
    names = re.findall(r'"([^"]+)"', re.sub(r"\s*#.*", "", docs))
    assert names
    assert all(f'"{name}"' in test for name in names)


def test_every_page_of_the_folder_is_in_the_navigation():
    text = re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = set(re.findall(r"[\w./-]+\.md", str(yaml.safe_load(text)["nav"])))
    assert {str(place.relative_to(ROOT / "docs")) for place in (ROOT / "docs").rglob("*.md")} <= named
