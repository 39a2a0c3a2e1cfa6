"""`eval` of what is evaluated already: are its pictures still those it was asked about? No model is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mmalign.cli import scores
from PIL import Image

from mmalign.benchmarks import asked
from mmalign.benchmarks.pope import POPE
from mmalign.pipeline import task
from mmalign.plan.cards import Registry
from mmalign.plan.graph import Node
from mmalign.plan.recipe import Evaluate, Part, Recipe


def color(place: Path, name: str) -> None:
    Image.new("RGB", (8, 8), name).save(place)


@pytest.fixture
def data(here: Path) -> Path:
    place = here / "pope"
    (place / "val2014").mkdir(parents=True)
    rows = [{"question_id": n, "image": f"{n}.png", "text": "a cat?", "label": "no"} for n in (1, 2, 3)]
    (place / "coco_pope_random.json").write_text("\n".join(map(json.dumps, rows)))
    for row in rows:
        color(place / "val2014" / row["image"], "red")
    return place


@pytest.fixture
def done(here: Path, data: Path) -> Callable[[], Node]:
    """The evaluation as a plan has it, finished."""
    card = Registry().card("benchmarks", "pope")
    card.args["data"] = str(data)
    stage, folder = Evaluate(kind="evaluate", bench=[Part("pope")]), here / "runs" / "evaluate-1"

    def node() -> Node:
        return Node("score", stage, Recipe(name="r"), {"bench.pope": card}, {}, folder, [])

    task.save(node())
    asked.look(POPE(str(data)))[0].write(folder / "pope.asked.json")
    about = {"metrics": {"pope": {"f1": 1.0}}, "headlines": {"pope": "f1"}}
    task.finish(task.load(folder), about, 0, 1)
    return node


@pytest.fixture
def date(done: Callable[[], Node]) -> str:
    return str(task.done(done().folder)["finished"][:10])


def test_pictures_that_are_as_they_were(done: Callable[[], Node], data: Path, date: str) -> None:
    assert scores.renewed(done()) == [f"evaluated on {date}"]
    for place in data.glob("val2014/*"):
        color(place, "red")  # written again, the same
    assert scores.renewed(done()) == [f"evaluated on {date}"]
    assert done().done


def test_pictures_that_were_replaced_are_asked_about_again(done: Callable[[], Node], data: Path, date: str) -> None:
    for place in data.glob("val2014/*"):
        color(place, "blue")
    node = done()
    kept = node.folder.with_name("evaluate-1.old-1")
    assert scores.renewed(node) == [
        f"pope: 3 of 3 have changed (1.png, 2.png, 3.png) since {date}",
        f"evaluated again; what was there is kept in {kept}",
    ]
    assert not node.done
    assert (kept / "stage.json").exists()
    assert scores.renewed(node) == []


def test_one_that_cannot_be_read_any_more_has_changed(done: Callable[[], Node], data: Path, date: str) -> None:
    (data / "val2014" / "2.png").write_text("")
    assert scores.renewed(done())[0] == f"pope: 1 of 3 have changed (2.png) since {date}"


def test_what_cannot_be_looked_at_is_said_and_how_to_do_it_again(
    done: Callable[[], Node], data: Path, date: str
) -> None:
    node = done()
    again = f"to evaluate again: mv {node.folder} {node.folder}.old"
    (data / "val2014" / "2.png").unlink()
    not_looked = "pope: pictures not looked at again:"
    gone = f"{not_looked} 1 of 3 are not there any more (2.png)"
    assert scores.renewed(node) == [f"evaluated on {date}", gone, again]
    shutil.rmtree(data)
    assert scores.renewed(node) == [f"evaluated on {date}", f"{not_looked} no such file or folder: {data}", again]
    (node.folder / "pope.asked.json").unlink()
    old = f"{not_looked} an older mmalign did not write down what they were"
    assert scores.renewed(node) == [f"evaluated on {date}", old, again]
    assert node.done


def test_a_run_says_that_nobody_looked(done: Callable[[], Node], date: str) -> None:
    told = [f"score: evaluated on {date}, pictures not looked at again; --force score evaluates again"]
    assert scores.unlooked([done()]) == told
    node = done()
    node.folder = node.folder.with_name("evaluate-2")
    assert scores.unlooked([node]) == scores.renewed(node) == []
