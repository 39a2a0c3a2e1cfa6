"""The code of a part in a stage's fingerprint: edited, it runs again; nothing else does, and nothing is imported."""

import time
from pathlib import Path

import pytest

from mmalign.io import files
from mmalign.pipeline import existing, task
from mmalign.plan import graph, sources
from mmalign.plan import read as compose
from mmalign.plan.cards import FAMILIES, Registry
from mmalign.plan.recipe import Evaluate, Part
from tests.conftest import TINY

NO = "raise RuntimeError('imported')\n"
ADAPTER = """from mmalign.adapters import Adapter
class Gated(Adapter):
  def __init__(self, patch_dim, llm_dim, grid): ...
"""
EYE = "from mmalign.vision import Vision\nclass Eye(Vision):\n  def __init__(self, checkpoint): "
ROWS = "from mmalign.data import Data\nclass Rows(Data):\n  def __init__(self, size): "


@pytest.fixture
def write(here: Path, monkeypatch: pytest.MonkeyPatch):
    """write(**{"folder/file.py": text}): modules of others on the path; importing any of them fails."""
    (here / "path").mkdir()
    monkeypatch.syspath_prepend(here / "path")

    def write(texts: dict[str, str]) -> None:
        for name, text in texts.items():
            place = here / "path" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(NO + text)

    return write


def names(target: str) -> list[str]:
    return sorted(sources.of(target))


def digest(*targets: str) -> str | None:
    return sources.code(targets, files.Hashes())


# Which files


def test_a_module_alone(write):
    write({"alone.py": ADAPTER})
    assert names("alone.Gated") == ["alone"]


def test_modules_of_a_package_as_far_as_they_are_imported(write):
    write({
        "pack/__init__.py": "from .parts import Gated", "pack/parts/__init__.py": "from .gated import Gated",
        "pack/parts/gated.py": f"from ..maths import scaled\nimport pack.deep.inner\nimport json\n{ADAPTER}",
        "pack/maths.py": "def scaled():\n  from .late import later", "pack/late.py": "x = 1",
        "pack/deep/inner.py": "", "pack/unused.py": "", "other.py": "",
    })  # fmt: skip
    assert names("pack.Gated") == names("pack.parts.gated.Gated")
    assert names("pack.Gated") == ["pack.deep.inner", "pack.late", "pack.maths", "pack.parts.gated"]


def test_what_stands_in_a_package_s_own_file_is_in_it(write):
    write(
        {"pack/__init__.py": "SIZE = 3", "pack/gated.py": f"from . import SIZE, maths\n{ADAPTER}", "pack/maths.py": ""}
    )
    assert names("pack.gated.Gated") == ["pack", "pack.gated", "pack.maths"]


def test_modules_beside_a_loose_one(write):
    write({
        "gated_loose.py": f"import helper_loose\nfrom tools_loose.inner import x\nimport torch, mmalign\n{ADAPTER}",
        "helper_loose.py": "import other_loose", "other_loose.py": "", "unused_loose.py": "",
        "tools_loose/__init__.py": "", "tools_loose/inner.py": "from . import third", "tools_loose/third.py": "",
        "mmalign.py": "",
    })  # fmt: skip
    assert names("gated_loose.Gated") == [
        "gated_loose", "helper_loose", "other_loose", "tools_loose", "tools_loose.inner", "tools_loose.third",
    ]  # fmt: skip


def test_an_installed_module_has_none_beside_it(write, here):
    write({"gated_site.py": f"import helper_site\n{ADAPTER}", "helper_site.py": ""})
    (here / "path" / "gated-1.0.dist-info").mkdir()
    assert names("gated_site.Gated") == ["gated_site"]


def test_modules_that_import_each_other(write):
    write(
        {
            "pack_ring/a.py": f"from . import b\n{ADAPTER}",
            "pack_ring/b.py": "from . import a",
            "pack_ring/__init__.py": "",
        }
    )
    assert names("pack_ring.a.Gated") == ["pack_ring", "pack_ring.a", "pack_ring.b"]


def test_a_huge_package_is_known_by_the_class_s_own_module(write, monkeypatch):
    monkeypatch.setattr(sources, "MOST", 3)
    write({f"huge/m{n}.py": f"from . import m{n + 1}\n{ADAPTER}" for n in range(9)} | {"huge/__init__.py": ""})
    assert names("huge.m0.Gated") == ["huge.m0"]
    assert names("huge.m7.Gated") == ["huge", "huge.m7", "huge.m8"]


@pytest.mark.parametrize("target", ["mmalign.adapters.mlp.MLP", "nowhere.X", "math.sqrt", "X", "zlib.crc32"])
def test_what_is_shipped_or_is_no_text_has_no_code(target):
    assert sources.of(target) == {}
    assert digest(target) is None


def test_no_shipped_card_has_code():
    assert {sources.code([card.target], files.Hashes()) for f in FAMILIES for card in Registry().every(f)} == {None}


def test_a_name_made_when_it_is_imported_and_a_broken_module(write):
    write({"dynamic.py": "Gated = make()", "broken_code.py": "def A(:"})
    assert names("dynamic.Gated") == ["dynamic"]
    assert names("broken_code.A") == ["broken_code"]


# The hash


def test_the_hash_is_of_names_and_bytes(write, here):
    write({"pack/__init__.py": "", "pack/a.py": f"from . import b\n{ADAPTER}", "pack/b.py": "x = 1", "pack/c.py": ""})
    before = digest("pack.a.Gated")
    assert before == digest("pack.a.Gated", "pack.a.Gated")
    write({"pack/c.py": "y = 1"})
    assert digest("pack.a.Gated") == before
    write({"pack/b.py": "x = 22"})
    assert digest("pack.a.Gated") != before
    write({"pack/b.py": "x = 1"})
    assert digest("pack.a.Gated") == before
    write({"pack/a.py": f"from . import b, c\n{ADAPTER}"})
    assert names("pack.a.Gated") == ["pack", "pack.a", "pack.b", "pack.c"]  # read anew: a process may live long
    assert digest("pack.a.Gated") != before


def test_where_it_lies_does_not_count(write, here, monkeypatch):
    write({"moved/__init__.py": "", "moved/a.py": ADAPTER})
    before = digest("moved.a.Gated")
    (here / "path").rename(here / "elsewhere")
    (here / "path").mkdir()
    monkeypatch.syspath_prepend(here / "elsewhere")
    assert digest("moved.a.Gated") == before


# Stages


@pytest.fixture
def plan(here: Path, write):
    """plan(*words): {stage: node} of the tiny recipe with a shelf; its parts are in modules of others."""
    write({
        "gating/__init__.py": "", "gating/adapter.py": f"from .maths import gate\n{ADAPTER}", "gating/maths.py": "",
        "eyes.py": EYE + "...\n",
        "rows.py": ROWS + "...\n",
    })  # fmt: skip
    for family, name, target, args in [
        ("adapters", "gated", "gating.adapter.Gated", "{}"), ("vision", "eye", "eyes.Eye", "{checkpoint: x}"),
        ("data", "rows", "rows.Rows", "{size: 3}"),
    ]:  # fmt: skip
        (here / "shelf" / family).mkdir(parents=True)
        (here / "shelf" / family / f"{name}.yaml").write_text(f"summary: a\ntarget: {target}\nargs: {args}\n")
    (here / "x.yaml").write_text(TINY + "registry: [./shelf]\n")
    gated = "model.adapter=gated"
    return lambda *words: {n.name: n for n in graph.plan(compose.load("x.yaml", words or [gated]), here / "runs")}


def finish(nodes: dict[str, graph.Node]) -> None:
    for node in nodes.values():
        task.save(node)
        task.finish(task.load(node.folder), {"metrics": {}}, 0, 1)


def why(nodes: dict[str, graph.Node]) -> dict[str, str]:
    return {name: graph.why(node) for name, node in nodes.items() if not node.done}


def test_an_edited_class_runs_again_and_the_plan_says_so(plan, write):
    finish(plan())
    assert not why(plan())
    write({"gating/maths.py": "gate = 0"})
    assert why(plan()) == {
        "align": "code of gated changed", "tune": "code of gated changed", "score": "code of gated changed",
        "report": "after score",
    }  # fmt: skip
    assert why(plan("model.adapter=gated", "seed=4"))["align"] == "changed: code of gated, seed 3 -> 4"
    write({"gating/maths.py": ""})
    assert not why(plan())


def test_another_class_is_told_by_its_name(plan):
    finish(plan("model.adapter=linear"))
    told = why(plan())["align"]
    assert "adapter.target mmalign.adapters.mlp.MLP -> gating.adapter.Gated" in told
    assert "code" not in told


def test_a_stage_that_ran_before_code_was_kept_runs_again(plan):
    nodes = plan()
    for node in nodes.values():
        node.what["cards"].get("adapter", {}).pop("code", None)
        node.folder = node.folder.with_name(f"{node.stage.kind}-0{node.fingerprint[1:]}")
    finish(nodes)
    assert why(plan())["align"] == "code of gated changed"


def test_code_of_an_encoder_inside_labels(plan, write):
    words = ("stages.label.source.args.encoder=eye",)
    finish(plan(*words))
    write({"eyes.py": EYE + "self.x = 1\n"})
    assert why(plan(*words))["label"] == "code of eye changed"
    assert why(plan(*words))["align"] == "after label"


def test_code_of_a_member_of_a_mixture(plan, write):
    words = ("stages.tune.data={card: mixture, args: {data: [toy-chat, {card: mixture, args: {data: [rows]}}]}}",)
    finish(plan(*words))
    assert "code" not in plan(*words)["align"].what["cards"]["data"]
    write({"rows.py": ROWS + "self.size = size\n"})
    assert why(plan(*words)) == {"tune": "code of mixture changed", "score": "after tune", "report": "after score"}


def test_an_evaluation_of_a_model_with_edited_code_is_another_one(plan, write):
    nodes = plan()
    finish(nodes)
    stage = Evaluate(kind="evaluate", bench=[Part("toy-perplexity")], precision="fp32")
    registry = Registry(["shelf"])
    before = existing.again(nodes["tune"].folder, stage, registry)
    write({"gating/maths.py": "gate = 0"})
    assert existing.again(nodes["tune"].folder, stage, registry).folder != before.folder


def test_parts_of_mmalign_have_no_code_in_their_fingerprint(plan):
    assert not any("code" in card for node in plan("seed=3").values() for card in node.what["cards"].values())


def test_a_plan_reads_code_once(plan, write):
    write({f"gating/m{n}.py": f"from . import m{n + 1}\n" + "x = [1, 2]\n" * 300 for n in range(40)})
    write({"gating/maths.py": "from . import m0"})
    plan()
    began = time.perf_counter()
    assert len(sources.of("gating.adapter.Gated")) == 43
    assert sources.code(["gating.adapter.Gated"], files.Hashes())
    assert time.perf_counter() - began < 0.5  # not parsed again: that takes some ten milliseconds a module
