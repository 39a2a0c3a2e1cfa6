"""`plan` says what a recipe will take, for every shipped one, offline and without torch; its data need not be there."""

import json
import os
import subprocess
import sys

import pytest

from mmalign.plan.read import shipped
from tests.plan.test_gaps import last
from tests.plan.test_mistakes import assert_mistake
from tests.test_layers import HEAVY

EVERY = """
import contextlib, io, json, socket, sys
def refuse(*_): raise AssertionError("plan uses the network")
socket.socket.connect = refuse
from mmalign.cli import main
for name in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(["plan", name, "--devices", "8", "--json"])
    print(json.dumps({"name": name, "code": code or 0, "plan": json.loads(out.getvalue() or "null")}))
heavy = HEAVY & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """{recipe: its plan}, all made in one process."""
    folder = tmp_path_factory.mktemp("plans")
    line = [sys.executable, "-c", EVERY.replace("HEAVY", repr(HEAVY)), *sorted(shipped())]
    env = {key: value for key, value in os.environ.items() if key != "MMALIGN_DATA"}
    process = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert not list(folder.iterdir())  # it only looks
    return {row["name"]: row for row in map(json.loads, process.stdout.splitlines())}


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe(plans, name):
    assert plans[name]["code"] == 0
    for stage in plans[name]["plan"]["stages"]:
        estimate = stage["estimate"]
        assert (estimate is not None) == (stage["kind"] in ("train", "label"))
        if stage["kind"] == "train":
            assert None not in estimate["parameters"].values()
            assert 0 < estimate["trained"] <= sum(estimate["parameters"].values())
            assert estimate["visual"] < estimate["tokens"]
            totals = [estimate["memory"][f"ZeRO {n}"]["total"] for n in range(4)]
            assert totals == sorted(totals, reverse=True)
            assert estimate["checkpoint"] > 0


def test_what_is_printed(here, mmalign):
    result = mmalign("plan", "llava_vicuna7b", "--devices", "8")
    assert result.code == 0
    assert "parameters: vision 304 M, adapter 21 M, llm 6.74 B; trained 21 M" in result.out
    assert "tokens a sample: about 640, 576 of them visual; steps: 2,181" in result.out
    row = next(line for line in result.out.splitlines() if line.startswith("data llava-pretrain-558k"))
    assert "blip_laion_cc_sbu_558k.json" in row
    assert "hub datasets/liuhaotian/LLaVA-Pretrain" in row
    assert "about 181 MB" in row
    assert str(here / "data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json") in row
    assert "all that can be fetched: mmalign data get llava_vicuna7b" in result.out
    assert "label store: 1.6 MiB" in mmalign("plan", "quickstart").out


def test_data_that_is_not_there_stops_a_run(here, mmalign):
    result = last(mmalign("run", "llava_vicuna7b"))
    assert_mistake(result, "llava-pretrain-558k", "data/LLaVA-Pretrain", "mmalign data get llava_vicuna7b")
    result = last(mmalign("check", "llava_vicuna7b"))
    assert_mistake(result, "more things are missing", "data/LLaVA-Pretrain", "MMALIGN_DATA")
