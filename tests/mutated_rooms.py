"""What is broken, and what reads it: for each kind of file a whole folder, and the calls a user's command makes."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.benchmarks import Score
from mmalign.errors import MMAlignError
from mmalign.io import document, files
from mmalign.plan.cards import Card, Registry
from tests.conftest import TINY

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # one pixel


@dataclass
class Room:
    """share: of all mutations. forms: {glob of the files that are broken: their form}, see mutate.py.

    read: takes the folder and the file that is broken; None: all are whole.
    """

    name: str
    share: float
    forms: dict[str, str]
    make: Callable[[Path], None]
    read: Callable[[Path, Path | None], object]

    def files(self, folder: Path) -> dict[str, str]:
        """{file: its form}, below the folder."""
        return {
            str(place.relative_to(folder)): form
            for pattern, form in self.forms.items()
            for place in sorted(folder.glob(pattern))
        }


# ------------------------------------------------------------------------------------------------- recipes and cards


def _recipe(folder: Path) -> None:
    from mmalign.plan import read

    (folder / "tiny.yaml").write_text(TINY)
    (folder / "study.yaml").write_bytes(read.shipped()["quickstart"].read_bytes())


def _planned(place: Path) -> None:
    """As `mmalign plan` does."""
    from mmalign.pipeline import recipes
    from mmalign.plan import estimate, graph

    plan = recipes.preview(place, ahead=True)
    for node in plan:
        graph.why(node)
        if told := estimate.of(node, 2):
            estimate.lines(told), json.dumps(estimate.as_json(told))


def _read_recipe(folder: Path, broken: Path | None) -> None:
    for place in [broken] if broken else sorted(folder.glob("*.yaml")):
        _planned(place)


SHELF = {
    "vision": ["toy-clip"], "adapters": ["mlp2x-gelu", "q-former", "pixel-shuffle"], "llms": ["toy-llama", "vicuna-7b"],
    "labels": ["toy-words"], "objectives": ["sea", "basic-distribution"], "data": ["toy-captions"],
    "benchmarks": ["toy-pope", "toy-perplexity"],
}  # fmt: skip


def _shelf(folder: Path) -> None:
    from mmalign.plan import cards

    for family, names in SHELF.items():
        (folder / "shelf" / family).mkdir(parents=True)
        for name in names:
            text = (cards.shipped() / family / f"{name}.yaml").read_text()
            text = text.replace("encoder: toy", "encoder: own-toy")
            (folder / "shelf" / family / f"own-{name}.yaml").write_text(text)
    arms = [("mlp2x-gelu", "toy-llama", "own-sea"), ("pixel-shuffle", "vicuna-7b", "lm")]
    for number, (adapter, llm, objective) in enumerate([*arms, ("q-former", "vicuna-7b", "lm")]):
        model = f"{{vision: own-toy-clip, adapter: own-{adapter}, llm: {{card: own-{llm}, args: {{lora: 4}}}}}}"
        text = f"""\
name: own
registry: [./shelf]
model: {model}
stages:
  label: {{kind: label, source: own-toy-words, data: own-toy-captions, keep: 3}}
  align:
    kind: train
    reads: {{labels: label}}
    data: own-toy-captions
    trains: [adapter, llm]
    objectives: {{{objective}: 1.0}}
    optim: {{lr: 1e-3}}
    batch: 8
    engine: {{checkpointing: {"true" if number else "false"}}}
  score: {{kind: evaluate, reads: {{weights: align}}, bench: [own-toy-pope, own-toy-perplexity]}}
"""
        (folder / f"own{number}.yaml").write_text(text)


def _read_shelf(folder: Path, broken: Path | None) -> None:
    if broken:
        Registry([str(folder / "shelf")]).card(broken.parent.name, broken.stem)
    for place in sorted(folder.glob("own*.yaml")):
        if broken is None or broken.stem in place.read_text():
            _planned(place)


def _installed(folder: Path) -> None:
    place = folder / "site" / "own_parts-1.0.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: own-parts\nVersion: 1.0\n")
    text = "[console_scripts]\nown = own:main\n\n[mmalign.adapters]\nown = mmalign.adapters.mlp:MLP\n"
    (place / "entry_points.txt").write_text(f"{text}\n[mmalign.vision]\nsee = mmalign.vision.hf:HFVision [more]\n")


def _read_installed(folder: Path, broken: Path | None) -> None:
    import sys

    from mmalign.plan import installed

    installed.packages.cache_clear()
    sys.path.insert(0, str(folder / "site"))
    try:
        registry = Registry()
        for family in ("adapters", "vision"):
            assert "linear" in registry.names("adapters")  # one package does not take the family down
            list(registry.every(family))
    finally:
        sys.path.remove(str(folder / "site"))
        installed.packages.cache_clear()


# ------------------------------------------------------------------------------------------------------ runs folders


def _runs(folder: Path) -> None:
    """Every stage of the tiny recipe as it looks when it is done."""
    from mmalign.pipeline import task
    from mmalign.plan import graph, read
    from mmalign.stages import report

    (folder / "tiny.yaml").write_text(TINY)
    for node in graph.plan(read.load(folder / "tiny.yaml"), folder / "runs"):
        task.save(node)
        more: dict[str, Any] = {"metrics": {}}
        if node.stage.kind == "train":
            terms = {"lm": 0.5, "sea": 1.5}
            more = {"metrics": {"step": 6, **terms}, "parts": {"adapter": f"{node.folder.name}/adapter.safetensors"}}
            rows = [{"step": step, "lm": 1.0 / step, "loss": 2.0 / step, "lr": 1e-3} for step in (1, 2)]
            (node.folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            share = {"layer 0": 0.5, "layer 1": 0.25, "refined": 0.4}
            looks = [{"step": step, "words": share, "right": share} for step in (1, 2)]
            looks = [{**look, "lens": {"right": share, "ceiling": share}} for look in looks]
            (node.folder / "premise.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in looks))
            rows = [{"step": step, "scores": {"toy-pope": {"accuracy": 0.5}}, "items": {}} for step in (0, 2)]
            (node.folder / "evaluations.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        if node.stage.kind == "evaluate":
            more = {"metrics": {"toy-perplexity": {"perplexity": 4.5, "before": 4.0}}, "warnings": ["short"]}
            more["headlines"] = {"toy-perplexity": "perplexity"}
            score = Score({"perplexity": 4.5, "before": 4.0}, "perplexity", {"a": 1.0}, {"asked": 1}, ["a note"])
            files.write_json(node.folder / "toy-perplexity.json", asdict(score))
            (node.folder / "toy-perplexity.jsonl").write_text('{"id": "a", "text": "yes"}\n{"id": "b", "text": "no"}\n')
            picture = {"png": PNG, "grid": [1, 2], "words": ["a", "b"], "question": "what?", "id": "a"}
            files.write_json(node.folder / "pictures.json", [picture])
        if node.stage.kind == "report":
            rows = report.cells([other.folder for _, other in node.reads], [""])
            cells = [{**asdict(c), "mean": c.mean, "spread": c.spread} for c in rows]
            cells.append(cells[0] | {"arm": "x"})
            files.write_json(node.folder / "report.json", {"recipe": "tiny", "cells": cells})
            (node.folder / "report.html").touch()
        task.finish(task.load(node.folder), more, 0, 1)


@cache
def _nodes(folder: Path) -> list[Any]:
    from mmalign.plan import graph, read

    return graph.plan(read.load(folder / "tiny.yaml"), folder / "runs")


def _read_stages(folder: Path, broken: Path | None) -> None:
    """As `plan`, `eval` and the report stage do."""
    from mmalign.pipeline import existing, recipes, task
    from mmalign.plan import graph
    from mmalign.plan.recipe import Part
    from mmalign.stages import report

    def opened() -> None:
        for place in folder.glob("runs/*/stage.yaml"):
            if broken in (None, place):
                task.load(place.parent)

    def planned() -> None:
        for node in _nodes(folder):
            node.__dict__.pop("done", None)  # a cached answer
            assert node.done
            graph.why(node)
        assert recipes.results(_nodes(folder)).rows()

    def evaluated() -> None:
        own = broken.parent if broken and "train-" in str(broken) else sorted(folder.glob("runs/train-*"))[0]
        place = existing.find(str(own))
        existing.evaluation(place, [Part("toy-perplexity")], Registry(), folder / "runs")

    def reported() -> None:
        report.cells(sorted(folder.glob("runs/evaluate-*")), [""])

    about_json = broken is None or broken.suffix == ".json"
    about_model = broken is None or "train-" in str(broken)
    _every(opened, *[evaluated] * about_model, *[planned, reported] * about_json)


def _read_reports(folder: Path, broken: Path | None) -> None:
    """As `report` and the report stage do."""
    from cli import show
    from mmalign.stages import charts, curves, draw, explored, measures, report, samples, settings

    evaluations, arms = sorted(folder.glob("runs/evaluate-*")), ["own 1"]

    def charted() -> None:
        drawn = [one for of in (charts.premise, charts.evaluations) for one in of(evaluations, arms)]
        drawn += curves.curves(evaluations, arms).all
        assert all(draw.mean(seeds.values()) is not None for chart in drawn for seeds in chart.lines.values())

    def explained() -> None:
        assert measures.known(evaluations, arms)
        assert settings.varied(evaluations, arms) is None
        assert samples.shown(evaluations, arms) is not None

    def pictured() -> None:
        assert explored.html(evaluations, arms) is not None
        assert report.told(evaluations, arms, "warnings")

    _every(charted, explained, pictured, lambda: show.report(None, folder / "runs", False))


def _read_scores(folder: Path, broken: Path | None) -> None:
    """As `eval` and `compare` do."""
    from cli import comparing, scores, show
    from mmalign.benchmarks import compare

    done = comparing.evaluation(str(folder / "runs"))

    def noted() -> None:
        show.scores(done, False)
        show.tell(scores.notes(done))

    def compared() -> None:
        runs = [comparing._run(name, done) for name in "ab"]
        rows = compare.compare(runs)
        comparing._side_by_side(runs, rows)
        compare.page(runs, rows, {}).encode()

    _every(noted, compared)


def _every(*looks: Callable[[], object]) -> None:
    """All of them, whichever refuses; then the last refusal."""
    told: MMAlignError | None = None
    for look in looks:
        try:
            look()
        except MMAlignError as err:
            told = err
    if told:
        raise told


# ------------------------------------------------------------------------------------------- stores and checkpoints


def _store(folder: Path) -> None:
    from mmalign.labels import store
    from mmalign.vision import Frame

    words = ["red", "star", "blue", "ring"]
    head = store.Header("clip abc", store.words_hash(words), (2, 3), 2, {"sign": 1}, "toy", size=len(words))
    how = np.random.default_rng(0)
    for number in range(2):
        frame = Frame("pad", (40, 30), (2, 3), (0.0, -0.125, 1.0, 1.125))
        rows = [store.pack(head, how.integers(0, 4, (6, 2)), how.random((6, 2)) - 0.2, frame) for _ in range(3)]
        bad = [["bad", "cut off"]] if number else []
        store.write_shard(folder, number, head, rows, [f"{number}/{n}" for n in range(3)], bad)
    store.finish(folder, head, words, 2)


def _read_store(folder: Path, broken: Path | None) -> None:
    from mmalign.labels.figures import stats
    from mmalign.labels.store import Store

    read = Store(folder)
    assert read.bad is not None
    for key in [f"{number}/{n}" for number in range(2) for n in range(3)]:
        if key in read:
            words_PK, scores_PK, frame = read[key]
            frame.seen(), frame.onto(frame), frame.patch_boxes()
            [read.words[word] for word in words_PK.flatten()]
            assert words_PK.shape == scores_PK.shape
            words_PK.reshape(*read.header.grid, read.header.keep)
    stats(read)


def _checkpoint(folder: Path) -> None:
    import torch

    from mmalign.training import checkpoint

    state = {"a": torch.arange(12.0).reshape(3, 4), "a/exp_avg": torch.ones(3, 4), "b": torch.zeros(1)}
    checkpoint.save(folder, 5, iter(state.items()), 0)
    (folder / "metrics.jsonl").write_text('{"step": 1, "lm": 2.0}\n{"step": 5, "lm": 1.0}\n')


def _read_checkpoint(folder: Path, broken: Path | None) -> None:
    from mmalign.training import checkpoint

    log = (folder / "metrics.jsonl").read_bytes()
    try:
        checkpoint.trim(folder / "metrics.jsonl", 5)
    finally:
        (folder / "metrics.jsonl").write_bytes(log)
    newest = checkpoint.last(folder, print)
    assert newest is None or range(newest[1])


# ------------------------------------------------------------------------------------------------------------ models


def _exported(folder: Path) -> None:
    from mmalign.testing import small
    from mmalign.vlm import folder as folders

    (folder / "parts").mkdir()
    mlp = {"adapter": Card("", "mmalign.adapters.mlp.MLP", {"depth": 2})}
    cards = {**small.encoder("clip", folder / "parts"), "llm": small.llm_card("llama", folder / "parts"), **mlp}
    folders.save(folder / "out", folders.build(cards), cards)


def _read_exported(folder: Path, broken: Path | None) -> None:
    from mmalign.pipeline import existing
    from mmalign.vlm import folder as folders

    place = existing.find(str(folder / "out"))
    assert isinstance(place, Path)
    existing._precision(place)
    folders.read(place)


def _llm(folder: Path) -> None:
    from mmalign.testing import small

    small.llm("llama", folder)


def _read_llm(folder: Path, broken: Path | None) -> None:
    import torch

    from mmalign.data import Turn
    from mmalign.llms.causal import CausalLM

    llm = CausalLM(str(folder))
    turns = [Turn("user", "What colour?"), Turn("assistant", "red")]
    llm.chat.encode(turns), llm.chat.prompt(turns[:1])
    assert llm.chat.ends is not None
    llm.chat.text(llm.chat.plain("a word"))
    ids = torch.tensor([llm.chat.prompt(turns[:1])])
    if int(ids.max()) < llm.vocab:
        llm.head(llm.forward(llm.embed(ids), torch.ones_like(ids)))


def _vision(folder: Path) -> None:
    from mmalign.testing import small

    small.clip(folder)


def _read_vision(folder: Path, broken: Path | None) -> None:
    from PIL import Image

    from mmalign.vision.hf import HFVision

    encoder = HFVision(str(folder))
    encoder.both(encoder.pixels(Image.new("RGB", (40, 30)))[None])
    encoder.words(["star"])


# -------------------------------------------------------------------------------------------------------- benchmarks


def _benchmarks(folder: Path) -> None:
    from tests.benchmarks import test_benchmarks as small
    from tests.benchmarks import test_cards as least

    for name in least.NAMES:
        (folder / "small" / name).mkdir(parents=True)
        least.files(folder / "small" / name, name)
    small.textvqa(folder / "more" / "textvqa")
    small.vizwiz(folder / "more" / "vizwiz")
    small.scienceqa(folder / "more" / "scienceqa")
    small.mmbench(folder / "more" / "mmbench")
    small.pope(folder / "more" / "pope", {})
    small.mmlu(folder / "more" / "mmlu")
    rows = {"1": small.gqa_row(entailed=["2"]), "2": small.gqa_row("blue")}
    small.put(folder / "more" / "gqa", "val_all_questions.json", rows)
    small.put(folder / "more" / "gqa", "val_choices.json", {n: {"valid": ["red"], "plausible": ["red"]} for n in "12"})
    rows = [{"question_id": n, "image": "a.jpg", "text": "What?", "category": "generic"} for n in (1, 2)]
    small.put(folder / "more" / "vqav2", "llava_vqav2_mscoco_val2014.jsonl", rows)
    kinds = {"answer_type": "other", "question_type": "what", "answers": small.people(*["a"] * 9, "b")}
    rows = [{"question_id": n, **kinds} for n in (1, 2)]
    small.put(folder / "more" / "vqav2", "v2_mscoco_val2014_annotations.json", {"annotations": rows})
    row = {"imagename": "a.png", "question": "?", "answer": "x<AND>y", "capability": ["ocr", "math"]}
    small.put(folder / "more" / "mmvet", "mm-vet.json", {"v1_0": row, "v1_1": row})
    grade = {"model": ["judge"], "content": ["0.5"], "score": [0.5], "answer": ["red"]}
    small.put(folder / "more" / "mmvet", "grades.json", {"v1_0": grade, "v1_1": grade})
    tables = {
        "pope/POPE.tsv": "index\timage\tquestion\tanswer\tcategory\n0\tx\tIs it?\tYes\trandom,popular\n",
        "textvqa/TextVQA_VAL.tsv": f"index\timage\tquestion\tanswer\n7\tx\tWhat?\t{['red'] * 10!r}\n",
        "vizwiz/VizWiz.tsv": f"index\timage\tquestion\tanswers\n7\tx\tWhat?\t{['red'] * 10!r}\n",
        "scienceqa/ScienceQA_TEST.tsv": "index\timage\tquestion\thint\tA\tB\tanswer\n7\tx\tWhich?\t\ta\tb\tA\n",
        "mmvet/MMVet.tsv": "index\timage\tquestion\tanswer\tcategory\n0\tx\tWhat?\tred\tocr,math\n",
        "gqa/GQA_TestDev_Balanced.tsv": "index\timage\tquestion\tanswer\n0\tx\tWhat?\tred\n",
    }
    for name, text in tables.items():
        small.put(folder / "tables", name, text)
    picture = {"bytes": b"x", "path": "a.jpg"}
    row = {"question_id": 1, "question": "Is it?", "answer": "yes", "category": "random", "image_source": "a"}
    _parquet(folder / "columns/pope/test-00000-of-00001.parquet", row | {"image": picture})
    row = {"index": 1, "question": "Which?", "hint": "nan", "answer": "B", "A": "urn", "B": "kettle", "category": "c"}
    _parquet(folder / "columns/mmbench/dev-00000-of-00001.parquet", row | {"image": picture, "L2-category": "x"})
    for place in [*folder.glob("*/*")]:
        bench = _bench(place)
        lines = [{"id": qid, "text": "red", "prompt": f"What?\n{small.SHORT}"} for qid in bench.truth]
        small.put(place, "answers.jsonl", lines)


def _parquet(place: Path, row: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    place.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row, row | {"question": "And this?"}]), place)


ARGS: dict[str, dict[str, Any]] = {
    "more/gqa": {"consistency": True}, "more/mmbench": {"all_rounds": False}, "more/mmlu": {"shots": 1},
    "tables/textvqa": {"ocr": False},
}  # fmt: skip


def _bench(place: Path) -> Any:
    from mmalign.plan.building import build

    card = Registry().card("benchmarks", place.name)
    own = dict(ARGS.get(f"{place.parent.name}/{place.name}", {}))
    if (place / "grades.json").exists():
        own["grades"] = str(place / "grades.json")
    card.args |= {"data": str(place), **own}
    return build(card)


WAYS = (("official", "strict"), ("lmms-eval", "official"), ("vlmevalkit", "lenient"))


def _read_benchmarks(folder: Path, broken: Path | None) -> None:
    """As `eval` and `score` do, by every protocol and every way to treat gaps."""
    for place in sorted(folder.glob("*/*")):
        if broken is None or broken.is_relative_to(place):
            _every(*(partial(_scored, place, *way) for way in WAYS), partial(_asked, place))


def _scored(place: Path, protocol: str, gaps: Any) -> None:
    from mmalign.benchmarks import filed
    from mmalign.benchmarks.bootstrap import interval
    from mmalign.benchmarks.headline import Headline

    bench = _bench(place)
    answers = bench.read(str(place / "answers.jsonl"))
    if protocol in bench.protocols:
        score = filed.score(bench, answers, protocol, gaps)
        json.dumps(asdict(score), ensure_ascii=False).encode()
        assert not document.problem(asdict(score), Score)
        if (headline := Headline.of(score)) and protocol == "official":
            interval(headline, {}, draws=10)


def _asked(place: Path) -> None:
    bench = _bench(place)
    for question in bench.questions():
        assert hash(question.image) is not None
        f"{question.id}{question.text}".encode()
    try:
        bench.ready()
    except MMAlignError as err:
        if "pictures are missing" not in err.what:
            raise


ROOMS = [
    Room("recipes", 0.125, {"*.yaml": "yaml"}, _recipe, _read_recipe),
    Room("cards", 0.125, {"shelf/*/*.yaml": "yaml"}, _shelf, _read_shelf),
    Room("installed", 0.05, {"site/*/*": "text"}, _installed, _read_installed),
    Room("stages", 0.1, {"runs/*/stage.json": "json", "runs/*/stage.yaml": "yaml"}, _runs, _read_stages),
    Room(
        "reports", 0.075,
        {"runs/*/report.json": "json", "runs/*/pictures.json": "json", "runs/*/metrics.jsonl": "jsonl",
         "runs/*/premise.jsonl": "jsonl", "runs/*/evaluations.jsonl": "jsonl",
         "runs/evaluate-*/toy-perplexity.jsonl": "jsonl"},
        _runs, _read_reports,
    ),
    Room(
        "scores", 0.075, {"runs/*/toy-perplexity.json": "json", "runs/*/toy-perplexity.jsonl": "jsonl"},
        _runs, _read_scores,
    ),
    Room(
        "store", 0.1,
        {"header.json": "json", "words.txt": "text", "index.npy": "bytes", "shard-*.bin": "bytes"}, _store, _read_store,
    ),
    Room(
        "checkpoint", 0.05,
        {"step-5/step.json": "json", "step-5/*.safetensors": "bytes", "metrics.jsonl": "jsonl"},
        _checkpoint, _read_checkpoint,
    ),
    Room(
        "exported", 0.05,
        {"out/mmalign.json": "json", "out/llm/config.json": "json", "out/vision/config.json": "json",
         "out/adapter.safetensors": "bytes"},
        _exported, _read_exported,
    ),
    Room("llm", 0.035, {"*.json": "json", "*.jinja": "text", "*.safetensors": "bytes"}, _llm, _read_llm),
    Room("vision", 0.035, {"*.json": "json", "*.safetensors": "bytes"}, _vision, _read_vision),
    Room(
        "benchmarks", 0.18,
        {"*/*/**/*.json": "json", "*/*/**/*.jsonl": "jsonl", "*/*/**/*.tsv": "text", "*/*/**/*.csv": "text",
         "columns/*/*.parquet": "bytes"},
        _benchmarks, _read_benchmarks,
    ),
]  # fmt: skip
