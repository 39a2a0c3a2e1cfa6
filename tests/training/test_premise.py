"""BASIC's premise: shares by layer against transformers' hidden states, and the warning when it fails."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from mmalign.adapters.mlp import MLP
from mmalign.errors import DataError
from mmalign.llms.causal import CausalLM
from mmalign.objectives.basic import Direction
from mmalign.objectives.lm import NextToken
from mmalign.stages import train, watching
from mmalign.toyworld.data import Captions
from mmalign.training import premise as premises
from mmalign.training.batches import BadSamples, Collate
from mmalign.training.events import Events
from mmalign.training.premise import Premise
from mmalign.training.shallow import readouts
from mmalign.vision.hf import HFVision
from mmalign.vlm import kept
from mmalign.vlm.control import lists
from mmalign.vlm.model import VLM
from mmalign.vlm.readout import readout
from mmalign.vlm.supervised import Supervised
from mmalign.vlm.vocabulary import word_tokens
from tests.objectives.test_basic import batch_of, build, eager, folders  # noqa: F401
from tests.stages.test_train_labels import ONLINE, collated, labelled

TIMING = {"steps_per_second", "peak_memory_gib", "time"}


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch):
    """Nothing is trained between most looks here, so each would be one too many."""
    monkeypatch.setattr(premises, "SHARE", float("inf"))


def made(model, tmp_path, right=None):
    batch = batch_of(model, [0, 2])
    chat = model.vlm.llm.chat
    tokens = chat.tokenizer.convert_ids_to_tokens(range(len(chat.tokenizer)))
    words = [chat.is_word(token) for token in tokens]
    assert 0 < sum(words) < len(words)
    return batch, words, Premise(model, batch, right, tmp_path / "premise.jsonl", every=2, steps=5)


def test_shares_by_layer(folders, tmp_path):  # noqa: F811
    model = build(folders, "llama", a=Direction(3))
    right = [[{n % model.vlm.llm.vocab, 5} if n % 2 else set() for n in range(25)] for _ in range(3)]
    batch, words, premise = made(model, tmp_path, right)
    found = premise.look()
    hidden, _ = eager(model, batch, 3)
    at = torch.where(batch.ids_RS == model.vlm.llm.chat.mark)
    with torch.no_grad():
        stages = [model.see(batch)[0].flatten(0, 1), *(h[at] for h in hidden)]
        weights = model.looks[0].weights
        stages.append(sum(w * h for w, h in zip(weights, stages[1:], strict=True)))
        embed = normalize(model.vlm.llm.vocabulary(), dim=-1)
    chat = model.vlm.llm.chat
    used = [n for n in range(min(len(embed), len(chat.tokenizer))) if n != chat.mark]  # rows that a token has
    for name, tokens in zip(["layer 0", "layer 1", "layer 2", "layer 3", "refined"], stages, strict=True):
        nearest = [max(used, key=(embed @ normalize(t, dim=-1)).tolist().__getitem__) for t in tokens]
        assert found["words"][name] == pytest.approx(sum(bool(words[n]) for n in nearest) / len(nearest))
        flat = [r for rows in right for r in rows]
        hits = [n in r for n, r in zip(nearest, flat, strict=True) if r]
        assert found["right"][name] == pytest.approx(sum(hits) / len(hits))


def test_a_line_now_and_then(folders, tmp_path):  # noqa: F811
    model = build(folders, "llama", a=Direction())
    _, _, premise = made(model, tmp_path)
    assert [premise(done) for done in range(6)] == [False] * 6
    lines = [json.loads(line) for line in premise.place.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4, 5]  # before the first step, and the last one too


def test_what_the_looks_cost_is_told(folders, tmp_path, monkeypatch):  # noqa: F811
    """Three looks of 2 s each among five steps of 10 s."""
    clock = [100.0]
    monkeypatch.setattr(premises.time, "monotonic", lambda: clock[0])
    _, _, premise = made(build(folders, "llama", a=Direction()), tmp_path)
    look = premise.look

    def slow():
        clock[0] += 2
        return look()

    monkeypatch.setattr(premise, "look", slow)
    for done in range(1, 6):
        clock[0] += 10
        premise(done)
    assert premise.cost() == "looks at BASIC's premise: 3, 6.0 s, 10.7% of the training (every 2 steps: watch_every)"


@pytest.mark.parametrize(
    ("before", "after", "says"), [(0.5, 0.2, True), (0.5, 0.505, True), (0.1, 0.4, False)]
)  # fmt: skip
def test_the_warning(folders, tmp_path, before, after, says):  # noqa: F811
    _, _, premise = made(build(folders, "llama", a=Direction()), tmp_path)
    assert premise.warning() is None
    premise.last = {"words": {"layer 0": before, "refined": after}}
    found = premise.warning()
    assert (found is not None) == says
    if says:
        assert f"{before:.1%} of visual tokens" in found
        assert f"{after:.1%} after its shallow layers" in found


def test_the_ceiling_by_a_loop(folders, tmp_path):  # noqa: F811
    """Words in place of the visual tokens, read at transformers' hidden states: nearest to the word they are?"""
    model = build(folders, "llama", a=Direction(3))
    batch, _, premise = made(model, tmp_path)
    found = premise.ceiling()["input"]
    llm = model.vlm.llm
    own = lists(word_tokens(llm), batch.images * model.vlm.tokens, seed=0)
    model.see = lambda batch: (llm.embed(own).view(batch.images, -1, llm.dim), None)
    hidden, _ = eager(model, batch, 3)
    at = torch.where(batch.ids_RS == llm.chat.mark)
    with torch.no_grad():
        stages = [llm.embed(own), *(h[at] for h in hidden)]
        stages.append(sum(w * h for w, h in zip(model.looks[0].weights, stages[1:], strict=True)))
        embed = normalize(llm.vocabulary(), dim=-1)
    used = [n for n in range(min(len(embed), len(llm.chat.tokenizer))) if n != llm.chat.mark]
    assert list(found) == ["layer 0", "layer 1", "layer 2", "layer 3", "refined"]
    for share, tokens in zip(found.values(), stages, strict=True):
        nearest = [max(used, key=(embed @ normalize(t, dim=-1)).tolist().__getitem__) for t in tokens]
        assert share == pytest.approx(sum(n == o for n, o in zip(nearest, own.tolist(), strict=True)) / len(own))
    assert found["layer 0"] == 1


@pytest.mark.parametrize(
    ("before", "after", "ceiling", "warns", "remarks"),
    [
        (0.5, 0.2, 0.9, True, False), (0.5, 0.2, 0.4, False, True), (1.0, 0.0, 0.0, False, True),
        (1.0, 0.8, 0.8, False, False), (1.0, 0.7, 0.8, False, False), (1.0, 0.65, 0.8, True, False),
        (0.1, 0.3, 0.9, False, False),
    ],
)  # fmt: skip
def test_nothing_is_concluded_where_perfect_tokens_are_not_read(
    folders, tmp_path, before, after, ceiling, warns, remarks  # noqa: F811
):  # fmt: skip
    _, _, premise = made(build(folders, "llama", a=Direction()), tmp_path)
    assert premise.remark() is None
    premise.last = {"right": {"layer 0": before, "refined": after}, "ceiling": {"layer 0": 1.0, "refined": ceiling}}
    assert (premise.warning() is not None) == warns
    assert (premise.remark() is not None) == remarks
    if remarks:
        assert f"of perfect visual tokens, {ceiling:.1%} are nearest to the word they are" in premise.remark()


def test_the_ceiling_is_measured_at_the_first_look_and_the_last(folders, tmp_path, monkeypatch):  # noqa: F811
    _, _, premise = made(build(folders, "llama", a=Direction()), tmp_path)
    measured = []
    monkeypatch.setattr(premise, "ceiling", lambda: measured.append(1) or {"input": {"refined": len(measured) / 10}})
    for done in range(6):
        premise(done)
    lines = [json.loads(line)["ceiling"]["refined"] for line in premise.place.read_text().splitlines()]
    assert lines == [0.1, 0.1, 0.1, 0.2]


def test_an_unusable_sample_is_not_looked_at(tmp_path, monkeypatch):
    """Nor is the truth about it: the others' would be taken for each other's."""
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    given = labelled(tmp_path, "stages.label=~", *ONLINE, "stages.align.objectives={lm: 1, basic-direction: 1}")
    model, collate = collated(given)
    plain, refused = collate.data.image, collate.data[1].images[0]

    def image(reference):
        if reference == refused:
            raise DataError("truncated")
        return plain(reference)

    monkeypatch.setattr(collate.data, "image", image)
    collate.bad.budget = 1
    premise = watching.premise(given, given.stage, model, collate, 5, list, Events(given.folder))
    assert premise.batch.images == len(premise.right_BQ) == 47
    assert set(premise.look()) == {"words", "right"}


# How often is looked


@pytest.mark.parametrize(
    ("took", "looked", "tells"),
    [
        (2, [0, 2, 4, 6, 8, 10, 12], ""),  # 2 s of 20: a tenth
        (3, [0, 4, 8, 12], "from now on every 4 steps (watch_every: 2)"),
        (70, [0, 12], "from now on every 16 steps (watch_every: 2)"),
    ],
)
def test_a_look_takes_at_most_a_tenth_of_the_training_between_two(
    folders, tmp_path, monkeypatch, took, looked, tells  # noqa: F811
):  # fmt: skip
    """Steps of 10 s. The first look and the last are never left out."""
    clock, said = [100.0], []
    monkeypatch.setattr(premises, "SHARE", 0.1)
    monkeypatch.setattr(premises.time, "monotonic", lambda: clock[0])
    _, _, premise = made(build(folders, "llama", a=Direction()), tmp_path)
    premise.steps, premise.say = 12, said.append
    monkeypatch.setattr(premise, "ceiling", lambda: clock.__setitem__(0, clock[0] + 1000) or {"input": {"refined": 1}})
    monkeypatch.setattr(premise, "look", lambda: clock.__setitem__(0, clock[0] + took) or {"words": {}})
    for done in range(13):
        clock[0] += 10 * bool(done)
        premise(done)
    assert [json.loads(line)["step"] for line in premise.place.read_text().splitlines()] == looked
    assert [line for line in said if tells in line] == said
    assert bool(said) == bool(tells)


def test_ceilings_of_an_interrupted_stage_are_not_measured_again(folders, tmp_path, monkeypatch):  # noqa: F811
    model = build(folders, "llama", a=Direction())
    _, _, premise = made(model, tmp_path)
    premise(0)
    _, _, again = made(model, tmp_path)
    monkeypatch.setattr(again, "ceiling", lambda: pytest.fail("it is known"))
    again(2)
    first, second = (json.loads(line) for line in premise.place.read_text().splitlines())
    assert second["ceiling"] == first["ceiling"]
    assert second["step"] == 2


# Other readouts


@pytest.fixture(scope="module")
def toy():
    """The toy model with its own language model, whose layers cannot be read by the nearest input embedding."""
    torch.manual_seed(0)
    encoder, llm = HFVision("pkg:mmalign.toyworld/clip"), CausalLM("pkg:mmalign.toyworld/llama")
    return VLM(encoder, MLP(encoder.dim, llm.dim, encoder.grid, depth=1), llm)


@pytest.fixture
def read(toy, tmp_path, monkeypatch):
    """A premise of the toy model, read in all three ways, and perfect tokens for it."""
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    model = Supervised(toy, {"lm": NextToken(), "a": Direction(attention="equal")})
    model.prepare()
    batch = Collate(Captions(4), toy.llm.chat, toy.vision, toy.tokens, 200, BadSamples(0)).batch([0, 1, 2, 3], seed=0)
    perfect_BQ = lists(word_tokens(toy.llm), 4 * toy.tokens, seed=3).view(4, -1)
    layers = len(model.looks[0].weights)
    reads = readouts(toy, ["input", "same-layer", "lens"], layers)
    right = [[{token} for token in row] for row in perfect_BQ.tolist()]
    premise = Premise(model, batch, right, tmp_path / "premise.jsonl", every=2, steps=5, reads=reads)
    return premise, perfect_BQ


def test_each_readout_stands_beside_its_own_ceiling(read, toy, monkeypatch):
    """Of perfect tokens, the embeddings of words: as many are read right as of the control's, and nobody is warned."""
    premise, perfect_BQ = read
    monkeypatch.setattr(premise.model, "see", lambda batch: (toy.llm.embed(perfect_BQ), None))
    premise(0)
    line = json.loads(premise.place.read_text())
    assert set(line) == {"step", "words", "right", "ceiling", "same-layer", "lens"}
    assert set(line["same-layer"]) == {"right", "ceiling"}
    for kind in ("input", "same-layer", "lens"):
        own = line if kind == "input" else line[kind]
        assert own["right"]["layer 0"] == own["ceiling"]["layer 0"] == 1
        for name, share in own["right"].items():
            assert share == pytest.approx(own["ceiling"][name], abs=0.15), (kind, name)
    assert line["ceiling"]["layer 2"] < 0.5 < line["lens"]["ceiling"]["layer 2"]
    assert line["same-layer"]["ceiling"]["layer 2"] > 0.7
    assert premise.warning() is None


def test_what_a_readout_reads_by_its_definition(read):
    """Each layer by vlm/readout.py; `refined` through the lens by the sum of what it makes of the layers."""
    premise, _ = read
    model, vlm, batch = premise.model, premise.model.vlm, premise.batch
    line = premise.look()
    weights = premise.looks[0].weights
    with torch.no_grad():
        visual_BQD, _ = model.see(batch)
        states = {0: visual_BQD, **vlm.watch(batch.ids_RS, batch.mask_RS, visual_BQD, len(weights))}

        def share(token_BQ):
            pairs = zip(token_BQ.flatten().tolist(), (r for row in premise.right_BQ for r in row), strict=True)
            return sum(token in right for token, right in pairs) / token_BQ.numel()

        for kind in ("input", "same-layer", "lens"):
            own = line if kind == "input" else line[kind]
            whole = readout(vlm, kind, states)
            for n, state_BQD in states.items():
                assert own["right"][f"layer {n}"] == share(whole(n, state_BQD)[1][..., 0]), (kind, n)
        lens = readout(vlm, "lens", states)
        refined_BQD = sum(w * lens.back(n, states[n]) for n, w in enumerate(weights, 1))
        assert line["lens"]["right"]["refined"] == share(lens.near[0](refined_BQD)[1][..., 0])
    by_layer = line["same-layer"]["right"]
    mean = sum(w * by_layer[f"layer {n}"] for n, w in enumerate(weights, 1))
    assert by_layer["refined"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("through", "warns"),
    [
        ({"layer 0": 0.3, "refined": 0.6}, None),  # the lens sees it refined, and is the one to be believed
        (
            {"layer 0": 0.6, "refined": 0.3},
            "60.0% .* 30.0% after its shallow layers, read by lens; what they",
        ),
    ],
)
def test_the_best_readout_decides(folders, tmp_path, through, warns):  # noqa: F811
    _, _, premise = made(build(folders, "llama", a=Direction()), tmp_path)
    premise.reads = dict.fromkeys(["input", "lens"])
    illegible = {"right": {"layer 0": 0.5, "refined": 0.0}, "ceiling": {"refined": 0.1}}
    premise.last = {**illegible, "lens": {"right": through, "ceiling": {"refined": 0.9}}}
    assert premise.remark() is None
    assert re.search(warns, premise.warning()) if warns else premise.warning() is None
    premise.last["lens"]["ceiling"]["refined"] = 0.4
    assert premise.warning() is None
    assert "of perfect visual tokens, 10.0% (by input) and 40.0% (by lens) are nearest" in premise.remark()


# Of any stage: a baseline is looked at, and learns what it learns without

ALONE = ["stages.label=~", "stages.align.reads=~", "stages.align.objectives.sea=~", "stages.align.steps=3"]
ALONE += ["stages.align.trains=[adapter, llm]", "stages.align.engine.save_every=100"]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """What a baseline leaves, unwatched and watched in every way: its weights, log, lines and stage.json."""
    left, patch = {}, pytest.MonkeyPatch()
    patch.setenv("MMALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(premises, "SHARE", float("inf"))
    words = ["stages.align.watch=[premise]", "stages.align.watch_every=2"]
    words += ["stages.align.watch_readouts=[input, lens, same-layer]"]
    for name, more in (("unwatched", []), ("watched", words)):
        given = labelled(tmp_path_factory.mktemp(name), *ALONE, *more)
        results = train.run(given)
        weights = {p.name: load_file(p) for p in sorted((given.folder / "weights").rglob("*.safetensors"))}
        left[name] = given.folder, weights, results
    patch.undo()
    return left


def test_training_is_the_same_to_the_bit_with_and_without(baseline):
    (plain, before, _), (watched, after, _) = baseline["unwatched"], baseline["watched"]
    assert plain.name == watched.name  # the fingerprint says so, too
    assert before.keys() == after.keys() == {"adapter.safetensors", "model.safetensors"}
    for file, weights in before.items():
        assert all(torch.equal(weights[name], after[file][name]) for name in weights)
    logs = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (plain, watched)]
    told = [[{k: v for k, v in line.items() if k not in TIMING} for line in log] for log in logs]
    assert told[0] == told[1]
    assert not (plain / "premise.jsonl").exists()


def test_a_baseline_is_looked_at_where_basic_would_look(baseline):
    """Half of its layers by default; at the beginning, now and then, and at the end."""
    folder, _, results = baseline["watched"]
    lines = [json.loads(line) for line in (folder / "premise.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 3]
    for line in lines:
        for own in (line, line["lens"], line["same-layer"]):
            assert list(own["right"]) == list(own["ceiling"]) == ["layer 0", "layer 1", "layer 2", "refined"]
    assert lines[0]["right"]["layer 0"] < 0.5  # no adapter is trained yet
    assert not [line for line in results["warnings"] if "premise" in line]  # nothing teaches, so nothing teaches worse
    said = [json.loads(line).get("say", "") for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [line for line in said if line.startswith("looks at BASIC's premise: 3, ")]


def test_a_baseline_is_told_what_basic_would_teach_as_a_remark(folders, tmp_path):  # noqa: F811
    model = build(folders, "llama", a=NextToken())
    llm = model.vlm.llm
    premise = Premise(model, batch_of(model, [0]), None, tmp_path / "p", 2, 5, looks=[watching._default(model.vlm)])
    assert len(premise.looks[0].weights) == llm.depth // 2
    premise.last = {"words": {"layer 0": 0.5, "refined": 0.2}}
    assert "; what BASIC would teach them is no better than what they are" in premise.warning()
    collate = SimpleNamespace(bad=BadSamples(0), data=SimpleNamespace(left_out=0))
    told = train._account(
        SimpleNamespace(folder=tmp_path / "none"), SimpleNamespace(batch=1, max_length=9), collate, 5, premise
    )
    assert told["warnings"] == []
    assert told["account"] == [premise.warning()]


def test_tokens_that_are_no_patches_are_looked_at_without_truth(tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    words = ["model.adapter={card: average-pool, args: {factor: 2}}", "stages.align.watch=[premise]"]
    given = labelled(tmp_path, *ALONE, *words, "stages.align.trains=[llm]", "stages.align.steps=1")
    train.run(given)
    lines = [json.loads(line) for line in (given.folder / "premise.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"step", "words", "ceiling"}] * 2


def test_of_weights_that_zero_3_has_divided_nothing_is_kept(folders, tmp_path, monkeypatch):  # noqa: F811
    """They all look alike: empty. What was worked out for some would be taken for that of others."""
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    llm, computed = build(folders, "llama", a=Direction()).vlm.llm, []
    compute = lambda: computed.append(1) or {"x": torch.ones(1)}  # noqa: E731
    for expected in (1, 1):
        kept.kept(llm, ["x"], compute)
        assert len(computed) == expected
    next(llm.parameters()).ds_id = 0
    for expected in (2, 3):
        kept.kept(llm, ["x"], compute)
        assert len(computed) == expected
