"""The features of a frozen encoder at the visual tokens: of the right patch, for whatever grids and fits meet; and the
objectives of them in a model, from the pictures to what is saved."""

import json

import pytest
import torch
from safetensors.torch import load_file

import mmalign
from mmalign.adapters.mlp import MLP
from mmalign.adapters.squares import AveragePool
from mmalign.data import MARK, Data, Record, Turn
from mmalign.errors import CheckError
from mmalign.llms.causal import CausalLM
from mmalign.objectives import Objective
from mmalign.objectives.reconstruction import Reconstruction
from mmalign.objectives.representation import Representation
from mmalign.pipeline import task
from mmalign.plan import building, cards, graph
from mmalign.plan import read as compose
from mmalign.plan.cards import Registry
from mmalign.stages import train
from mmalign.training.batches import BadSamples, Collate
from mmalign.vision.hf import HFVision
from mmalign.vlm.model import VLM
from mmalign.vlm.supervised import Supervised
from tests import parts
from tests.conftest import TINY
from tests.objectives.test_representation import by_hand
from tests.vision.test_frame import places

SIZES = [(40, 30), (30, 40), (80, 20), (24, 24)]
SAMPLES = [(0,), (), (1, 2), (3,)]  # pictures of each
FITS = [("pad", "crop"), ("pad", "pad"), ("crop", "pad"), ("squash", "pad"), ("pad", "squash"), ("squash", "crop")]


class Pictures(Data):
    """A sample of one picture, of none, of two, and of one."""

    def __len__(self):
        return len(SAMPLES)

    def __getitem__(self, number):
        asked = Turn("user", MARK * len(SAMPLES[number]) + "\nWhat colour is the star?")
        return Record(f"r{number}", (asked, Turn("assistant", "red")), SAMPLES[number])

    def image(self, reference):
        return places(*SIZES[reference])


class Looking(Objective):
    """Keeps what it is handed."""

    needs = frozenset({"targets"})
    per_patch = True

    def __init__(self, encoder):
        super().__init__()
        self.encoders = (encoder,)

    def forward(self, step):
        self.step = step
        return step.visual_BPD.float().square().mean()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model of 8 x 8 patches, another encoder of 5 x 5."""
    folder = tmp_path_factory.mktemp("targets")
    return {
        "clip": parts.clip(folder / "clip", size=24, patch=3),
        "dinov2": parts.dinov2(folder / "dinov2", size=30, patch=6),
        "llama": parts.llm("llama", folder / "llama", num_hidden_layers=4),
    }


def encoder_of(folders, fit="pad"):
    return HFVision(str(folders["dinov2"]), fit=fit)


def build(folders, fit="pad", **objectives):
    """The model, and what makes its batches."""
    torch.manual_seed(0)
    vision, llm = HFVision(str(folders["clip"]), fit=fit), CausalLM(str(folders["llama"]))
    model = Supervised(VLM(vision, MLP(vision.dim, llm.dim, vision.grid), llm), objectives).eval()
    model.prepare()
    vlm = model.vlm
    collate = Collate(
        Pictures(), llm.chat, vision, vlm.tokens, 400, BadSamples(0), grid=vlm.grid, encoders=model.encoders
    )
    return model, collate


def slow(encoder, frames):
    """(features, known): token by token, of the patch under its centre, where both show at least half of themselves."""
    features, known = [], []
    for number, frame in enumerate(frames):
        with torch.no_grad():
            (patches_PC,) = encoder(encoder.pixels(places(*SIZES[number]))[None])
        theirs = encoder.frame(SIZES[number])
        for (x0, y0, x1, y1), shows in zip(frame.patch_boxes(), frame.visible(), strict=True):
            at = theirs.patch_at((x0 + x1) / 2, (y0 + y1) / 2)
            there = at >= 0 and shows > 0.499 and theirs.visible()[at] > 0.499
            known.append(there)
            features.append(patches_PC[at] if there else torch.zeros(encoder.dim))
    return torch.stack(features).view(len(frames), -1, encoder.dim), torch.tensor(known).view(len(frames), -1)


@pytest.mark.parametrize(("ours", "theirs"), FITS)
def test_each_token_has_the_feature_of_the_patch_under_its_centre(folders, ours, theirs):
    encoder = encoder_of(folders, theirs)
    model, collate = build(folders, ours, looking=Looking(encoder))
    batch = collate.batch(range(4), seed=0)
    model(batch)
    targets = model.objectives["looking"].step.targets[encoder]
    features, known = slow(encoder, batch.frames)
    assert targets.known_BP.tolist() == known.tolist()
    assert torch.allclose(targets.features_BPC, features, atol=1e-5)
    assert not targets.features_BPC.requires_grad
    whole = known.float().mean(1)
    assert whole[-1] == 1  # a square is all there
    assert 0 < whole[:3].min() < 1 or (ours, theirs) in [("squash", "squash")]
    assert len({tuple(row) for row in targets.features_BPC[-1].tolist()}) == 25  # all of its patches are somebody's


def test_padding_neither_counts_nor_gets_a_gradient(folders):
    model, collate = build(
        folders, viral=Representation(encoder_of(folders), width=8), ross=Reconstruction(encoder_of(folders), width=8)
    )
    model.freeze_all_but(["adapter", "llm"])
    batch = collate.batch([0, 1, 2], seed=0)
    hidden = {}

    def keep(_, args):
        hidden.update(args[0].states)
        for state in hidden.values():
            state.retain_grad()

    for objective in model.objectives.values():
        objective.register_forward_pre_hook(keep)
    terms, _ = model(batch)
    known = slow(encoder_of(folders), batch.frames)[1]
    assert known.sum(1).tolist() == [32, 32, 16]  # of 64: the other's outer rows show less than half
    own = model.objectives["viral"]
    features = slow(encoder_of(folders), batch.frames)[0].double()
    want = by_hand(own.project(hidden[2]).double(), features, known, "cosine")
    assert terms["viral"].item() == pytest.approx(want.item(), rel=1e-5)
    for name, layer in (("viral", 2), ("ross", 4)):
        terms[name].backward(retain_graph=True)
        assert torch.equal(hidden[layer].grad.abs().sum(-1) > 0, known)
        for state in hidden.values():
            state.grad = None


def test_the_encoder_stays_as_it_is_and_outside(folders):
    encoder = encoder_of(folders)
    model, collate = build(folders, viral=Representation(encoder, width=8), ross=Reconstruction(encoder, width=8))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    own = {id(p) for p in encoder.parameters()}
    model.freeze_all_but(["adapter", "llm"])
    model.train()
    assert not own & {id(p) for p in model.parameters()}
    assert not any("encoder" in name for name in model.objectives.state_dict())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    terms, _ = model(collate.batch(range(4), seed=0))
    assert len(calls) == 1  # both are after the same features
    sum(terms.values()).backward()
    assert all(p.grad is None for p in encoder.parameters())
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_it_runs_in_the_models_precision(folders):
    encoder = encoder_of(folders)
    model, collate = build(folders, viral=Representation(encoder, width=8))
    model.bfloat16()
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    model.prepare()
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
    terms, _ = model(collate.batch([0, 2], seed=0))
    assert terms["viral"].dtype == torch.float32
    assert terms["viral"].isfinite()


@pytest.mark.parametrize("method", ["denoise", "regression"])
def test_a_pass_without_images_goes_back_through_every_layer_and_not_to_the_encoder(folders, method):
    encoder = encoder_of(folders)
    both = {"viral": Representation(encoder, width=8), "ross": Reconstruction(encoder, method, width=8)}
    model, collate = build(folders, **both)
    model.freeze_all_but(["adapter", "llm"])
    encoder.register_forward_hook(lambda *_: pytest.fail("there is nothing to see"))
    terms, _ = model(collate.batch([1], seed=0))
    assert terms["viral"] == terms["ross"] == 0
    sum(terms.values()).backward()
    ways = [*model.vlm.llm.lm.base_model.layers.parameters(), *model.objectives.parameters()]
    assert all(p.grad is not None and not p.grad.any() for p in ways)


def test_noise_is_the_passes_own(folders):
    model, collate = build(folders, ross=Reconstruction(encoder_of(folders), width=8))
    one, same, other = (model(collate.batch([0, 2], seed=seed))[0]["ross"] for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_equal_cards_are_one_encoder():
    registry = Registry()

    def named(**encoders):
        made = {name: registry.card("objectives", name.split("_")[0]) for name in encoders}
        for name, encoder in encoders.items():
            made[name].args |= {"encoder": encoder}
        inner = {k: v for name, card in made.items() for k, v in cards.below(name, registry.inside(card)).items()}
        return building.build_all(made, inner)

    parts_ = named(representation="toy-clip", reconstruction="toy-clip")
    assert parts_["representation"].encoders[0] is parts_["reconstruction"].encoders[0]
    assert parts_["representation"].encoders[0].dim == 96


# In a stage


def planned(folder, *words):
    (folder / "tiny.yaml").write_text(TINY)
    rest = ["stages.label=~", "stages.tune=~", "stages.score=~", "stages.report=~", "stages.align.reads=~"]
    name = "stages.align.objectives."
    own = [f"{name}{one}={{args: {{encoder: toy-clip, width: 16}}}}" for one in ("representation", "reconstruction")]
    words = [*rest, f"{name}sea=~", *own, "stages.align.steps=4", *words]
    (align,) = graph.plan(compose.load(folder / "tiny.yaml", words), folder / "runs")
    return align


def test_a_stage_trains_saves_and_goes_on(tmp_path):
    node = planned(tmp_path)
    given = task.load(node.folder, task.save(node))
    train.run(given)
    log = (given.folder / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(0 < line["representation"] < 2 and line["reconstruction"] > 0 for line in lines)
    assert {place.name for place in (given.folder / "weights").iterdir()} == {
        "adapter.safetensors", "objectives.safetensors",
    }  # fmt: skip
    weights = load_file(given.folder / "weights" / "objectives.safetensors")
    assert {name.rsplit(".", 2)[0].split(".")[0] for name in weights} == {"representation", "reconstruction"}
    assert not any("encoder" in name for name in weights)
    (given.folder / "weights" / "objectives.safetensors").unlink()
    train.run(given)  # the last step once more, from the checkpoint before it
    again = load_file(given.folder / "weights" / "objectives.safetensors")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    untimed = [{k: v for k, v in line.items() if k in ("step", "loss", *node.stage.objectives)} for line in lines]
    resumed = [json.loads(line) for line in (given.folder / "metrics.jsonl").read_text().splitlines()]
    assert [{k: line[k] for k in one} for one, line in zip(untimed, resumed, strict=True)] == untimed


def test_another_encoder_is_another_stage(tmp_path):
    key = "stages.align.objectives.representation.args.encoder"
    names = {planned(tmp_path, *words).folder.name for words in ([], [f"{key}=dinov2-l"], [f"{key}=clip-vit-l-336"])}
    assert len(names) == 3


# In somebody else's loop


def test_supervise_sees_what_the_model_is_shown(folders):
    model, collate = build(folders)
    setting = {"encoder": "toy-clip", "width": 8}
    supervised = mmalign.supervise(model.vlm, objectives={"representation": setting, "reconstruction": setting})
    (encoder,) = supervised.encoders
    batch = collate.batch([0, 2], seed=0)
    labels = torch.where(batch.weight_RS > 0, batch.ids_RS, -100)
    steps = []
    supervised.objectives["representation"].register_forward_pre_hook(lambda _m, args: steps.append(args[0]))
    sizes = torch.tensor([SIZES[n][::-1] for n in (0, 1, 2)])
    out = supervised(batch.ids_RS, batch.mask_RS, batch.pixels_B3SS, labels, sizes)
    terms = {"lm", "representation", "reconstruction"}
    assert set(out) == {"loss", *terms}
    assert out["loss"].item() == pytest.approx(sum(out[name].item() for name in terms), rel=1e-5)
    targets = steps[0].targets[encoder]
    assert targets.known_BP.sum(1).tolist() == [48, 48, 16]  # of 64: what is no padding
    assert targets.features_BPC.shape == (3, 64, 96)
    words = collate.batch([1], seed=0)
    without = supervised(words.ids_RS, words.mask_RS, labels=words.ids_RS)
    assert without["representation"] == without["reconstruction"] == 0
    assert without["lm"] > 0


def test_supervise_takes_an_encoder_that_is_there(folders):
    encoder = encoder_of(folders)
    setting = {"encoder": encoder, "width": 8}
    supervised = mmalign.supervise(build(folders)[0].vlm, objectives={"representation": setting})
    assert supervised.encoders == (encoder,)


def test_supervise_refuses_an_adapter_without_a_grid(folders):
    model, _ = build(folders)
    vlm = model.vlm
    vlm.adapter = AveragePool(vlm.vision.dim, vlm.llm.dim, vlm.vision.grid, factor=2)
    with pytest.raises(CheckError, match="representation supervises single patches, and AveragePool does not keep"):
        mmalign.supervise(vlm, objectives={"representation": 0.5})  # of an encoder that is not here
