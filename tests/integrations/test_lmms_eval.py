"""Inside lmms-eval: requests of its tasks, as its evaluator gives them; its interface is made here."""

import abc
import importlib
import io
import json
import math
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pyarrow.parquet
import pytest
import torch

from mmalign.data import Turn
from mmalign.errors import DataError, RunError
from mmalign.plan.cards import Card
from mmalign.testing import small
from mmalign.vlm.folder import build as vlm_of
from mmalign.vlm.folder import read, save
from tests.integrations import families
from tests.vlm.test_model import picture

GROUP = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
DOCS = [
    {"text": "What colour is the star?", "images": [picture(0)]},
    {"text": "Describe this image.", "images": [picture(1).convert("L")]},
    {"text": "Yes or No?", "images": []},
    {"text": "Is <image> or <image> red?", "images": [picture(2), picture(3)]},
    {"text": "What colour is the star?", "images": [picture(4)]},
]


class Lmms(abc.ABC):
    """What lmms_eval.api.model.lmms asks of a model."""

    def __init__(self):
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass
class GenerationResult:
    """Opened by the evaluator; of any other pair it keeps the text."""

    text: object
    token_counts: object = None


@pytest.fixture
def made(monkeypatch):
    """The class that the entry point leads to."""
    model, registry = ModuleType("lmms_eval.api.model"), ModuleType("lmms_eval.models.registry_v2")
    instance = ModuleType("lmms_eval.api.instance")
    model.lmms, registry.ModelManifest, instance.GenerationResult = Lmms, Manifest, GenerationResult
    for module in (model, registry, instance, *map(ModuleType, ("lmms_eval", "lmms_eval.api", "lmms_eval.models"))):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "mmalign.integrations.lmms_eval", raising=False)
    (name, target), *_ = GROUP["lmms_eval.models"].items()
    module, _, function = target.partition(":")
    found = getattr(importlib.import_module(module), function)()
    assert found.model_id == name == "mmalign"
    module, _, cls = found.simple_class_path.rpartition(".")
    made = getattr(importlib.import_module(module), cls)
    assert issubclass(made, Lmms)
    yield made
    sys.modules.pop("mmalign.integrations.lmms_eval", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An exported model whose answers are not all the same."""
    place = tmp_path_factory.mktemp("lmms")
    linear = Card("linear", "mmalign.adapters.mlp.MLP", {"depth": 1})
    cards = {**small.encoder("clip", place), "adapter": linear, "llm": small.llm_card("llama", place)}
    vlm = vlm_of(cards)
    with torch.no_grad():
        for name, parameter in vlm.llm.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.mul_(4)
    save(place / "exported", vlm, cards)
    return str(place / "exported")


def build(made, folder, **more):
    model = made(pretrained=folder, **more)
    model.task_dict = {"toy": {"test": DOCS}}
    return model


def ask(number, settings, docs=DOCS):
    """A request as lmms-eval makes it."""
    context = docs[number]["text"]
    return SimpleNamespace(args=(context, settings, lambda doc: doc["images"], number, "toy", "test"))


def test_answers_are_those_of_the_model_itself(made, folder):
    own = read(folder)
    settings = [{"max_new_tokens": n} for n in (5, 7, 5, 7, 5)]
    model = build(made, folder, batch_size="3", device="cpu", max_batch_size=64)
    found = model.generate_until([ask(n, given) for n, given in enumerate(settings)])
    for number, text in enumerate(found):
        doc, most = DOCS[number], settings[number]["max_new_tokens"]
        if number == 3:
            turns = [Turn("user", doc["text"])]
            assert [text] == own.generate([turns], [doc["images"]], most)
        else:
            image = doc["images"][0].convert("RGB") if doc["images"] else None
            assert text == own.ask(doc["text"], image, max_new_tokens=most)
    assert len(set(found)) > 2


def test_any_model_of_transformers(made, tmp_path):
    for part in families.make("qwen2_5_vl"):
        part.save_pretrained(tmp_path)
    model = build(made, str(tmp_path), batch_size=2, device="cpu")
    numbers = [n for n, doc in enumerate(DOCS) if len(doc["images"]) == 1]
    found = model.generate_until([ask(n, {"max_new_tokens": 5}) for n in numbers])
    for number, text in zip(numbers, found, strict=True):
        assert text == model.model.ask(DOCS[number]["text"], DOCS[number]["images"][0].convert("RGB"), 5)
    with pytest.raises(RunError, match="options are weighed by models with an encoder"):
        model.loglikelihood([])


def test_the_batch_changes_no_answer(made, folder):
    requests = [ask(n, {"max_new_tokens": 6, "temperature": 0, "do_sample": False}) for n in range(5)]
    assert build(made, folder).generate_until(requests) == build(made, folder, batch_size=5).generate_until(requests)


@pytest.mark.parametrize("size", ["auto", "auto:4", "0", -1, "many"])
def test_a_batch_size_that_is_no_number(made, size):
    with pytest.raises(RunError, match=f"batch_size must be a number of requests, got {size!r}") as caught:
        made(pretrained="nowhere", batch_size=size)  # said before a model is looked for
    assert "--batch_size 16" in caught.value.fix


def test_one_process_says_so(made, folder):
    model = build(made, folder)
    assert (model._rank, model._world_size, model.device.type) == (0, 1, "cpu")
    assert not hasattr(model, "accelerator")


def test_several_processes_say_which_they_are(made, folder, monkeypatch):
    """lmms-eval asks for rank, world_size, device and accelerator, and shards the requests by them."""
    accelerate, given = ModuleType("accelerate"), []
    accelerate.Accelerator = lambda **how: given.append(how) or "accelerator"
    monkeypatch.setitem(sys.modules, "accelerate", accelerate)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    model = build(made, folder)
    assert (model._rank, model._world_size, model.accelerator) == (1, 2, "accelerator")
    assert given == [{"cpu": True}]


def test_each_process_takes_the_gpu_of_its_own(made, monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(RunError):
        made(pretrained="nowhere")
    assert taken == [3]


def test_an_answer_ends_where_the_task_says(made, folder):
    whole = build(made, folder).generate_until([ask(0, {"max_new_tokens": 12})])[0]
    end = whole[4]
    cut = build(made, folder).generate_until([ask(0, {"max_new_tokens": 12, "until": ["\n\n", end]})])[0]
    assert cut == whole.split(end)[0].strip()
    text = sys.modules["mmalign.integrations.lmms_eval"]._cut("One.\n\nTwo.", {"until": ["\n\n"]})
    assert text == "One.\n\nTwo."


def alone(own, text, images, option):
    """The sum of the log-probabilities of an option's tokens, read one at a time."""
    visual_QD = [own.visual_tokens(image.convert("RGB"))[0] for image in images]
    marked = text if "<image>" in text or not images else "<image>\n" + text
    ids, total = own.llm.chat.prompt([Turn("user", marked)], [len(visual) for visual in visual_QD]), 0.0
    with torch.no_grad():
        for token in option:
            mark = torch.tensor([ids]) == own.llm.chat.mark
            embeds = own.llm.embed(torch.tensor([ids]).masked_fill(mark, 0))
            if visual_QD:
                embeds[mark] = torch.cat(visual_QD)
            logits = own.llm.head(own.llm(embeds, torch.ones(1, len(ids)).long()))[0, -1]
            total += float(logits.log_softmax(-1)[token])
            ids = [*ids, token]
    return total


CHOICES = [
    (0, "red"), (0, "a large ring"), (0, lambda doc: "a large ring"), (3, " Yes"), (3, " No"), (2, "Yes"), (1, "blue"),
]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
def test_likelihoods_are_sums_over_the_continuations_tokens(made, folder, batch):
    """As losses, of which lmms-eval takes the least; in the order of the requests, documents mixed and batched."""
    model, own = build(made, folder, batch_size=batch), read(folder)
    requests = [SimpleNamespace(args=(DOCS[n]["text"], choice, see, n, "toy", "test")) for n, choice in CHOICES]
    replies = [reply.text for reply in model.loglikelihood(requests)]
    assert not any(reply.strip() for reply in replies)  # or its cache would keep them, as text
    for (number, choice), (loss, greedy) in zip(CHOICES, replies, strict=True):
        text = choice(None) if callable(choice) else choice
        option = own.llm.chat.answer(text.strip())
        want = alone(own, DOCS[number]["text"], DOCS[number]["images"], option)
        assert loss == pytest.approx(-want, rel=1e-4)
        assert 0 < math.exp(-loss) < 1
        assert not greedy
    assert replies[1].loss == pytest.approx(replies[2].loss)


def see(doc):
    return doc["images"]


def test_the_pictures_of_a_document_are_encoded_once(made, folder, monkeypatch):
    model, seen = build(made, folder, batch_size=2), []
    encode = model.model.encode
    monkeypatch.setattr(model.model, "encode", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    numbers = [(n, choice) for choice in ("red", "blue", "green") for n in (0, 4, 3)]
    model.loglikelihood([SimpleNamespace(args=(DOCS[n]["text"], c, see, n, "toy", "test")) for n, c in numbers])
    assert seen == [1] * 4


def test_a_likelihood_without_a_document(made, folder):
    """Of an option alone, for mutual information."""
    model, own = build(made, folder), read(folder)
    replies = model.loglikelihood([SimpleNamespace(args=("", choice)) for choice in ("red", "blue")])
    for reply, choice in zip(replies, ("red", "blue"), strict=True):
        assert reply.text.loss == pytest.approx(-alone(own, "", [], own.llm.chat.answer(choice)), rel=1e-4)


def test_a_greedy_continuation_is_called_greedy(made, folder):
    model = build(made, folder)
    request = SimpleNamespace(args=(DOCS[2]["text"], "x", lambda doc: [], 2, "toy", "test"))
    chat, llm = model.model.llm.chat, model.model.llm
    ids = chat.prompt([Turn("user", DOCS[2]["text"])])
    with torch.no_grad():
        best = int(llm.head(llm(llm.embed(torch.tensor([ids])), torch.ones(1, len(ids)).long()))[0, -1].argmax())
    chat.answer = lambda text: [best]
    assert model.loglikelihood([request])[0].text.greedy
    chat.answer = lambda text: [best, best + 1]
    assert not model.loglikelihood([request])[0].text.greedy


@pytest.mark.parametrize(
    ("settings", "images", "error", "said"),
    [
        ({"do_sample": True}, [], RunError, "the task samples or searches"),
        ({"num_beams": 5}, [], RunError, "the task samples or searches"),
        ({}, ["film.mp4"], DataError, "the task toy shows a str; mmalign reads pictures"),
    ],
)
def test_what_it_cannot_do_is_said(made, folder, settings, images, error, said):
    model = build(made, folder)
    request = SimpleNamespace(args=("What?", settings, lambda doc: images, 0, "toy", "test"))
    with pytest.raises(error, match=said):
        model.generate_until([request])
    with pytest.raises(RunError, match="no tasks of several rounds"):
        model.generate_until_multi_round([])


# The released package, where it is installed (pip install mmalign[lmms]): two tasks of two kinds, by its own command

UTILS = """
import io
from PIL import Image

def see(doc):
    return [Image.open(io.BytesIO(doc["image"]))]

def target(doc):
    return doc["options"].index(doc["answer"])

def score(doc, results):
    return {"same": float(results[0] == doc["answer"])}

def mean(items):
    return sum(items) / len(items)
"""
TASK = """
task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_visual: !function utils.see
doc_to_text: question
metadata: {{version: 0.0}}
"""
ASKED = """
output_type: generate_until
doc_to_target: answer
generation_kwargs: {max_new_tokens: 6, temperature: 0, do_sample: false}
process_results: !function utils.score
metric_list: [{metric: same, aggregation: !function utils.mean, higher_is_better: true}]
"""
CHOSEN = """
output_type: multiple_choice
doc_to_choice: options
doc_to_target: !function utils.target
metric_list: [{metric: acc}]
"""


@pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
def test_the_released_lmms_eval_gives_the_answers_of_the_model(folder, tmp_path):
    """Rows whose answer is what the model itself says, or takes for the likeliest; every third one is changed."""
    own, options = read(folder), ("red", "a large blue ring", "Yes", "No")
    rows: dict[str, list[dict]] = {"asked": [], "chosen": []}
    for n in range(9):
        image, out, text = picture(n), io.BytesIO(), ("What colour is the star?", "Yes or No?")[n % 2]
        image.save(out, "PNG")
        chat = own.llm.chat
        likely = max(options, key=lambda o: alone(own, text, [image], chat.answer(o)))
        for kind, answer in (("asked", own.ask(text, image, max_new_tokens=6)), ("chosen", likely)):
            wrong = {"asked": "x", "chosen": options[options.index(likely) - 1]}[kind]
            row = {"question": text, "image": out.getvalue(), "options": list(options)}
            rows[kind].append(row | {"answer": wrong if n % 3 == 0 else answer})
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "utils.py").write_text(UTILS)
    for name, kind in (("asked", ASKED), ("chosen", CHOSEN)):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[name]), tmp_path / f"{name}.parquet")
        text = TASK.format(name=f"mmalign_{name}", rows=tmp_path / f"{name}.parquet") + kind
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text)
    command = [sys.executable, "-m", "lmms_eval", "--model", "mmalign", "--model_args", f"pretrained={folder}"]
    command += ["--tasks", "mmalign_asked,mmalign_chosen", "--include_path", str(tmp_path / "tasks")]
    command += ["--batch_size", "4", "--output_path", str(tmp_path / "out"), "--use_cache", str(tmp_path / "cache")]
    home = {"HF_HOME": str(tmp_path / "home"), "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next(tmp_path.glob("out/**/*_results.json")).read_text())["results"]
    assert results["mmalign_asked"]["same,none"] == pytest.approx(6 / 9)
    assert results["mmalign_chosen"]["acc,none"] == pytest.approx(6 / 9)


def test_without_lmms_eval(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.delitem(sys.modules, "mmalign.integrations.lmms_eval", raising=False)
    with pytest.raises(RunError, match="a model of lmms-eval, which is not installed"):
        importlib.import_module("mmalign.integrations.lmms_eval")
