"""All that a recipe lacks, with where it comes from: known in a second, without torch and without any network."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from mmalign.io import hub
from mmalign.pipeline import recipes
from mmalign.plan import gaps
from mmalign.plan import read as compose
from mmalign.plan.cards import Registry
from mmalign.plan.check import check
from mmalign.plan.downloads import UNKNOWN
from mmalign.plan.gaps import GapsError
from mmalign.plan.read import shipped
from tests.conftest import TINY, Said
from tests.plan.test_mistakes import assert_mistake
from tests.test_layers import HEAVY


def last(said: Said) -> Said:
    """Without the table."""
    return replace(said, err="\n".join(said.err.splitlines()[-3:]))


EVERY = """
import contextlib, io, json, socket, sys, time
def refuse(*_): raise AssertionError("check uses the network")
socket.socket.connect = refuse
from mmalign.cli import main
for name in sys.argv[1:]:
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
        code = main(["check", name, "--json"])
    print(json.dumps({"name": name, "code": code or 0, "said": json.loads(out.getvalue() or "null"),
                      "seconds": time.process_time() - began}))
heavy = HEAVY & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    """{recipe: what `check --json` says of it on a machine that has nothing}, all in one process."""
    folder = tmp_path_factory.mktemp("checks")
    line = [sys.executable, "-c", EVERY.replace("HEAVY", repr(HEAVY)), *sorted(shipped())]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MMALIGN_", "HF_"))}
    env |= {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    process = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return {row["name"]: row for row in map(json.loads, process.stdout.splitlines())}


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_lists_all_its_gaps_with_sources(checks, name):
    row = checks[name]
    assert row["seconds"] < 2 or not row["said"]["gaps"]
    for gap in row["said"]["gaps"]:
        assert gap["origin"].startswith(("hub ", "http"))
        assert gap["license"] not in ("", UNKNOWN)
        assert gap["size"] not in ("", UNKNOWN)
        assert os.path.isabs(gap["place"])
        assert gap["get"].startswith("mmalign data get ") or gap["get"] == gaps.BY_HAND
    assert row["code"] == (2 if any(gap["blocks"] for gap in row["said"]["gaps"]) else 0)


def test_a_large_recipe_lists_data_words_weights_and_benchmarks(checks):
    rows = checks["sea_prime_llama3"]["said"]["gaps"]
    assert len(rows) > 13
    told = {gap["part"]: gap for gap in rows}
    assert {"labels siglip-words", "vision siglip-so400m-384", "llms llama3-8b-instruct", "benchmarks pope"} <= {*told}
    assert "2of12.txt" in told["labels siglip-words"]["place"]
    assert told["llms llama3-8b-instruct"] | {"place": ""} == {
        "part": "llms llama3-8b-instruct", "what": "weights", "origin": "hub meta-llama/Meta-Llama-3-8B-Instruct",
        "size": "about 16.1 GB", "license": "llama3", "place": "", "get": "mmalign data get llama3-8b-instruct",
        "gate": "ask for access on https://huggingface.co/meta-llama/Meta-Llama-3-8B-Instruct under Meta's licence, "
                "then: hf auth login",
        "blocks": False,
    }  # fmt: skip
    assert not checks["quickstart"]["said"]["gaps"]


def test_the_table_on_the_terminal(here, mmalign):
    said = mmalign("check", "llava_vicuna7b", "seed=3")
    assert said.code == 2
    assert "things are not here yet" in said.err
    row = next(line for line in said.err.splitlines() if line.startswith("llms vicuna-7b"))
    assert row.split("  ")[0:1] == ["llms vicuna-7b"]
    for cell in ("weights", "hub lmsys/vicuna-7b-v1.5", "about 13.5 GB", "llama2", "mmalign data get vicuna-7b"):
        assert cell in row
    assert "all that can be fetched: mmalign data get llava_vicuna7b seed=3" in said.err
    assert said.err.count("error: ") == 1


# A recipe of the toy world with a list of words of one's own

WORDS = TINY.replace("source: toy-words", "source: {card: toy-words, args: {words: 'data:WORDS'}}")


def lacking(here, words: str, *overrides: str) -> list[gaps.Gap]:
    (here / "r.yaml").write_text(WORDS.replace("WORDS", words))
    variants = compose.load(here / "r.yaml", overrides)
    return gaps.of(variants, Registry(variants[0].registry))


def test_what_another_card_knows_the_source_of(here):
    (gap,) = lacking(here, "words/2of12.txt")
    assert (gap.part, gap.what) == ("labels toy-words", "12dicts-6.0.2.zip")
    assert gap.place == str(here / "data/words/2of12.txt")
    (here / "data/words").mkdir(parents=True)
    (here / "data/words/2of12.txt").write_text("a\n")
    assert lacking(here, "words/2of12.txt") == []


def test_what_nobody_knows_the_source_of(here, mmalign):
    (gap,) = lacking(here, "mine.txt")
    assert (gap.what, gap.origin, gap.get) == ("words data:mine.txt", "not known", gaps.MINE)
    assert_mistake(
        last(mmalign("check", "r.yaml")),
        "labels toy-words: words data:mine.txt is not here",
        "data/mine.txt",
        "MMALIGN_DATA",
    )


def test_a_mistake_is_told_before_what_is_missing(here):
    (here / "r.yaml").write_text(WORDS.replace("WORDS", "mine.txt").replace("{lm: 1.0}", "{}"))
    with pytest.raises(Exception, match="no objective"):
        check(compose.load(here / "r.yaml"))


def test_pictures_that_rows_may_do_without_stop_no_run(here):
    card = Registry().card("data", "llava-mix-665k")
    assert all(gap.blocks for gap in gaps.of_card(card, Registry()))
    (here / "data").mkdir()
    (here / "data/llava_v1_5_mix665k.json").write_text("[]")
    (here / "data/coco/train2017").mkdir(parents=True)
    left = gaps.of_card(card, Registry())
    assert not any(gap.blocks for gap in left)
    assert "train2017.zip" not in [gap.what for gap in left]
    assert len(left) == 5


def test_the_folder_of_a_benchmark_may_have_another_layout(here):
    card = Registry().card("benchmarks", "pope")
    assert len(gaps.of_card(card, Registry())) == 4
    (here / "data/eval/pope").mkdir(parents=True)
    assert gaps.of_card(card, Registry()) == []


# Weights

CLIP = "model.vision={card: toy-clip, args: {checkpoint: openai/clip-vit-base-patch16}}"


@pytest.fixture
def cache(here, monkeypatch):
    """An empty cache of the hub, which may be asked."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(here / "hf"))
    return here / "hf/hub"


def kept(cache, repo: str, *names: str) -> None:
    place = cache / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs/main").write_text("abc")
    for name in names:
        (place / "snapshots/abc").mkdir(parents=True, exist_ok=True)
        (place / "snapshots/abc" / name).write_text('{"weight_map": {"a": "model-1.safetensors"}}')


def test_weights_in_the_cache_are_no_gap(cache):
    card, registry = Registry().card("vision", "clip-vit-b-16"), Registry()
    repo = "openai/clip-vit-base-patch16"
    assert [gap.what for gap in gaps.of_card(card, registry)] == ["weights"]
    kept(cache, repo, "config.json")
    assert [gap.what for gap in gaps.of_card(card, registry)] == ["weights"]
    kept(cache, repo, "model.safetensors.index.json", "model-2.safetensors")
    assert [gap.what for gap in gaps.of_card(card, registry)] == ["weights"]  # a shard is missing
    kept(cache, repo, "model-1.safetensors")
    assert gaps.of_card(card, registry) == []


def test_a_model_drawn_at_random_needs_its_configuration_alone(cache):
    registry = Registry()
    card = registry.card("llms", "qwen3-1.7b")
    card.args["random"] = True
    kept(cache, "Qwen/Qwen3-1.7B", "config.json")
    search = gaps._Search(registry)
    assert [*search.of_card(card, fresh=True)] == []
    assert [gap.what for gap in search.of_card(card, fresh=False)] == ["weights"]


def test_other_weights_than_the_cards_have_no_known_licence(cache):
    registry = Registry()
    card = registry.card("vision", "clip-vit-b-16")
    card.args["checkpoint"] = "some/other"
    (gap,) = gaps.of_card(card, registry)
    assert (gap.origin, gap.license, gap.get) == ("hub some/other", "not known", "hf download some/other")
    timm = registry.card("vision", "timm-dinov2-b")
    assert gaps.of_card(timm, registry)[0].origin == "hub timm/vit_base_patch14_dinov2.lvd142m"
    timm.args["model"] = "vit_large"
    assert gaps.of_card(timm, registry) == []  # not known which


def test_weights_stop_a_run_where_the_hub_must_not_be_asked(cache, tiny, mmalign, monkeypatch):
    words = ["model.llm=qwen3-1.7b"]
    plan = recipes.preview(tiny, *words)
    assert [gap.what for gap in plan.gaps] == ["weights"]
    assert not plan.gaps[0].blocks
    said = mmalign("check", "tiny.yaml", *words)
    assert said.code == 0
    assert "1 of them stop no run" in said.err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(GapsError, match="llms qwen3-1.7b: weights is not here"):
        recipes.preview(tiny, *words)
    assert mmalign("plan", "tiny.yaml", *words).code == 0


def test_a_hub_that_does_not_answer_stops_a_run_in_its_first_second(cache, tiny, mmalign, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    began = time.monotonic()
    said = mmalign("run", "tiny.yaml", "model.llm=qwen3-1.7b")
    assert_mistake(
        last(said),
        "llms qwen3-1.7b: weights is not here",
        "models--Qwen--Qwen3-1.7B",
        "mmalign data get tiny.yaml model.llm=qwen3-1.7b",
    )
    assert time.monotonic() - began < 20
    assert not list(tiny.parent.glob("runs/train-*"))
    with pytest.raises(GapsError):
        recipes.run(tiny, "model.llm=qwen3-1.7b")


def test_the_cache_is_where_huggingface_hub_has_it(cache, monkeypatch, here):
    constants = pytest.importorskip("huggingface_hub.constants")
    del constants
    for env, place in (
        ({"HF_HOME": "/a"}, "/a/hub"), ({"HF_HUB_CACHE": "/b"}, "/b"),
        ({"HF_HOME": "", "XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
    ):  # fmt: skip
        with monkeypatch.context() as here_alone:
            for key, value in env.items():
                here_alone.setenv(key, value)
            assert str(hub.cache()) == place
            line = "import os; from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
            theirs = {key: value for key, value in os.environ.items() if value}
            told = subprocess.run([sys.executable, "-c", line], env=theirs, capture_output=True, text=True, check=True)
            assert told.stdout.strip() == place
