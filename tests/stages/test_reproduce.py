"""How to make a report again: what its page says of command, recipe, versions, dates and times."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

from mmalign.pipeline import software, task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.stages import reproduce


def of(asked: list[str], **sources: str) -> SimpleNamespace:
    return SimpleNamespace(asked=asked, sources=sources)


def test_the_command_is_the_words_it_was_asked_for(tiny):
    (one,) = compose.load(tiny, ["seed=7", "stages.tune.optim.lr=1e-4"])
    assert one.asked == [str(tiny), "seed=7", "stages.tune.optim.lr=1e-4"]
    assert one.sources == {"tiny.yaml": tiny.read_text()}
    stages = [("a", {"devices": 1, "seconds": 1}), ("b", {"devices": 4, "seconds": 1})]
    assert reproduce.command(of(["a b.yaml", "name=a b"]), stages[:1]) == "mmalign run 'a b.yaml' 'name=a b'"
    assert reproduce.command(of(["x"]), stages) == "mmalign run x --devices 4"
    spread = [(name, {**about, "hosts": ["one", "two"]}) for name, about in stages]
    assert reproduce.command(of(["x"]), spread) == "mmalign run x --hosts hosts"
    assert reproduce.command(of([]), stages) == ""


def test_every_arm_knows_all_files_of_its_recipe():
    variants = compose.load("study_contest")
    assert {tuple(one.sources) for one in variants} == {("quickstart.yaml", "study_contest.yaml")}
    assert {tuple(one.asked) for one in variants} == {("study_contest",)}


def test_the_report_is_handed_them_and_no_folder_is_another_for_it(tiny):
    nodes = {node.name: node for node in graph.plan(compose.load(tiny), "runs")}
    folder = nodes["report"].folder
    for node in nodes.values():
        task.save(node)
    kept = task.load(folder)
    assert (kept.asked, kept.sources) == ([str(tiny)], {"tiny.yaml": tiny.read_text()})
    assert task.load(nodes["tune"].folder).asked == []
    same = {node.name: node for node in graph.plan(compose.load(tiny, ["seed=3"]), "runs")}  # its own seed
    assert same["report"].folder == folder


def test_what_a_stage_ran_with_stands_in_its_record(tiny):
    node = graph.plan(compose.load(tiny), "runs")[0]
    task.save(node)
    task.finish(task.load(node.folder), {"metrics": {}}, 0, 1)
    about = task.done(node.folder)
    assert about["software"] == software.used()
    assert reproduce.versions([("x", about)]).items() >= {"mmalign": about["mmalign"], **software.used()}.items()


def test_the_commit_of_a_checkout_and_of_none(tmp_path):
    assert software._commit(tmp_path) == ""
    (tmp_path / ".git").mkdir()
    assert software._commit(tmp_path) == ""  # no repository
    (tmp_path / ".git").rmdir()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / "a").write_text("1")
    for words in (["init", "-q"], ["add", "a"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *words], check=True)
    commit = software._commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "a").write_text("2")
    assert software._commit(tmp_path) == f"{commit}-dirty"


def test_versions_that_differ_are_all_told():
    stages = [(torch, {"mmalign": "1", "software": {"torch": torch}}) for torch in ("2.1", "2.2")]
    assert reproduce.versions([*stages, ("c", {})]) == {"mmalign": "1", "torch": "2.1, 2.2"}


def test_the_section():
    about = {"devices": 1, "seconds": 40.0, "finished": "2026-01-02T03:04:05Z", "hardware": {"python": "3.11.7"}}
    later = {**about, "finished": "2026-01-03T00:00:00Z", "resumed": True}
    page = reproduce.html(of(["<x>"], **{"<x>.yaml": "name: <b>\nseed: 1\n"}), [("a", later), ("b", about)])
    assert "<pre>mmalign run &#39;&lt;x&gt;&#39;</pre>" in page
    assert "2026-01-02T03:04:05Z to 2026-01-03T00:00:00Z" in page
    assert "80 s, and more" in page
    assert "<details><summary>&lt;x&gt;.yaml</summary><pre>name: &lt;b&gt;\nseed: 1\n</pre></details>" in page


def test_an_older_report_says_that_its_command_is_not_known():
    assert "The command was not written down." in reproduce.html(of([]), [("a", {"devices": 1, "seconds": 1})])


def test_a_report_begun_by_an_older_mmalign_is_read(tiny: Path):
    node = next(node for node in graph.plan(compose.load(tiny), "runs") if node.name == "report")
    node.recipe.asked, node.recipe.sources = [], {}
    task.save(node)
    text = (node.folder / "stage.yaml").read_text()
    kept = text.replace("asked: []\n", "").replace("sources: {}\n", "")
    assert kept != text
    (node.folder / "stage.yaml").write_text(kept)
    assert task.load(node.folder).sources == {}
    assert json.dumps(task.load(node.folder).asked) == "[]"
