"""`check_objective`: every objective of ours and a new one pass, and what breaks a clause is said."""

import pytest
import torch
from torch import nn

from mmalign.llms import Look
from mmalign.objectives import Objective
from mmalign.plan import building, facts
from mmalign.plan.cards import Registry
from mmalign.testing import check_objective
from mmalign.vision import Vision


def ours(name, **args):
    """Objectives of targets with an encoder of their own width."""
    card = Registry().card("objectives", name)
    encoder = {"encoder": Encoder(12)} if "targets" in facts.of(card)["needs"] else {}
    return lambda: building.build(card, **encoder, **args)


@pytest.mark.parametrize("name", Registry().names("objectives"))
def test_ours_pass(name):
    check_objective(ours(name))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("representation", {"distance": "smooth-l1"}),
        ("representation", {"layer": "last"}),
        ("reconstruction", {"method": "regression"}),
        ("reconstruction", {"method": "regression", "distance": "cosine"}),
    ],
)
def test_settings_of_targets_pass(name, args):
    check_objective(ours(name, **args))


@pytest.mark.parametrize("args", [{"window": 1}, {"temperature": 0.0}])
def test_settings_of_sea_pass(args):
    check_objective(lambda: building.build(Registry().card("objectives", "sea"), **args))


def test_a_new_one_passes(start):
    check_objective(start("objective"))


class Encoder(Vision):
    def __init__(self, dim=5):
        super().__init__()
        self.dim, self.weight = dim, nn.Parameter(torch.ones(1))


class Kept(Objective):
    """Keeps the contract: the mean over images of the mean square of the tokens, with a learnt weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, step):
        return (self.weight * step.visual_BPD.float().square().mean()).sum()


class Unknown(Kept):
    needs = frozenset({"answer"})


class Listed(Kept):
    needs = ["labels"]


class Unit(Kept):
    unit = "patches"


class Blind(Kept):
    needs = frozenset({"layers"})


class Watching(Kept):
    look = Look((1.0,), attention=False)


class Deep(Kept):
    needs = frozenset({"layers"})
    look = Look((1.0,) * 9, attention=False)


class Scalar(Kept):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


class Rows(Kept):
    def forward(self, step):
        return step.visual_BPD.float().mean((1, 2)) * self.weight


class Half(Kept):
    def forward(self, step):
        return super().forward(step).to(step.visual_BPD.dtype)


class Number(Kept):
    def forward(self, step):
        return super().forward(step).item()


class Infinite(Kept):
    def forward(self, step):
        return super().forward(step) / 0


class AsksLabels(Kept):
    def forward(self, step):
        return super().forward(step) + step.labels(torch.arange(2))[1].sum()


class AsksGrid(Kept):
    def forward(self, step):
        return super().forward(step) * step.grid[0]


class AsksAnswers(Kept):
    needs = frozenset({"labels"})

    def forward(self, step):
        return super().forward(step) + step.answer_ND.float().sum()


class Global(Kept):
    def forward(self, step):
        return super().forward(step) * torch.rand(())


class InPlace(Kept):
    def forward(self, step):
        step.visual_BPD.data.mul_(2)
        return super().forward(step)


class Counting(Kept):
    count = 0

    def forward(self, step):
        self.count += 1
        return super().forward(step) * self.count


class Detached(Kept):
    def forward(self, step):
        return super().forward(step).detach()


class OwnOnly(Kept):
    def forward(self, step):
        return self.weight.square().sum() * step.visual_BPD.detach().float().mean()


class Spare(Kept):
    def __init__(self):
        super().__init__()
        self.spare = nn.Parameter(torch.ones(1))


class NanGradient(Kept):
    def forward(self, step):
        return super().forward(step) + (step.visual_BPD.float() * 0).norm(dim=-1).pow(0.5).sum()


class Notes(Kept):
    def forward(self, step):
        step.note("norms", step.visual_BPD.float().norm(dim=-1))
        return super().forward(step)


class Summed(Kept):
    def forward(self, step):
        return super().forward(step) * len(step.visual_BPD)


class Forgetful(Kept):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(1))
        self.weight = nn.Parameter(torch.ones(1))

    def state_dict(self, *args, **more):
        return {"weight": self.weight, "shift": torch.zeros(1)}

    def forward(self, step):
        return super().forward(step) * self.shift.square().sum()


class Dies(Kept):
    collective = True

    def forward(self, step):
        return super().forward(step) + 0 * step.visual_BPD[0].float().mean()


class Nan(Kept):
    collective = True


class NeedsLabels(Kept):
    needs = frozenset({"labels"})

    def forward(self, step):
        _, scores_NK = step.labels(torch.arange(len(step.visual_BPD)))
        return super().forward(step) + (scores_NK / scores_NK.sum()).sum()


class NeedsAnswers(Kept):
    needs = frozenset({"answers"})
    unit = "tokens"

    def forward(self, step):
        return step.answer_ND.float().square().mean() * self.weight.sum()


class Constant(Kept):
    collective = True

    def forward(self, step):
        return super().forward(step) if len(step.visual_BPD) else self.weight.sum()


class Ungathered(Kept):
    """A gradient of no image that is no number."""

    collective = True

    def forward(self, step):
        if len(step.visual_BPD):
            return super().forward(step)
        return (self.weight - self.weight).sum().sqrt()


class Targeted(Kept):
    needs = frozenset({"targets"})
    per_patch = True

    def __init__(self):
        super().__init__()
        self.encoders = (Encoder(),)

    def forward(self, step):
        target = step.targets[self.encoders[0]]
        return super().forward(step) + (target.features_BPC.float().mean(-1) * target.known_BP).sum()


class Aimless(Kept):
    needs = frozenset({"targets"})
    per_patch = True


class Idle(Kept):
    def __init__(self):
        super().__init__()
        self.encoders = (Encoder(),)


class Pooled(Targeted):
    per_patch = False


class Owner(Targeted):
    def __init__(self):
        super().__init__()
        (self.encoder,) = self.encoders


class AsksTargets(Kept):
    def forward(self, step):
        return super().forward(step) * len(step.targets)


BROKEN = {
    Unknown: "needs names answer; there are answers, captions, labels, layers, states, targets",
    Aimless: "needs lists targets, and __init__ keeps no encoder in self.encoders",
    Idle: "encoders are kept, and needs lists no targets",
    Pooled: "needs lists targets, which patches have: see per_patch = True",
    Owner: "its encoder is a module of it, and would be trained and saved",
    AsksTargets: "it uses step.targets and does not declare it: see needs",
    Listed: "needs is a list, not a frozenset",
    Unit: "unit is 'patches', not one of tokens, images",
    Blind: r"needs lists layers, and prepare\(\) sets no look",
    Watching: "a look is set, and needs lists no layers",
    Deep: "look has weights of 9 layers, the model 4",
    Scalar: "parameters without a dimension, .*: scale",
    Rows: r"the loss is \(2,\), not a scalar, with visual tokens in torch.float32",
    Half: "the loss is torch.bfloat16, not fp32, with visual tokens in torch.bfloat16",
    Number: "the loss is a float, not a tensor",
    Infinite: "the loss is inf",
    AsksLabels: "it uses step.labels and does not declare it: see needs",
    AsksGrid: "it uses step.grid and does not declare it: see per_patch = True",
    AsksAnswers: r"it uses step.answer_ND and does not declare it: see needs, which is {'labels'}",
    Global: "it draws from torch's global generator, not step.random",
    InPlace: "it changes step.visual_BPD, which others see too",
    Counting: "the same pass gives another loss",
    Detached: "no gradient goes through the loss",
    OwnOnly: "no gradient reaches the model: visual tokens, states or answers",
    Spare: "no gradient reaches spare",
    NanGradient: "the gradient is not finite",
    Notes: r"the note 'norms' is \(2, 6\), not a number",
    Summed: "the loss is a sum over its images, not their mean",
    Forgetful: r"state_dict\(\) does not hold everything it needs",
    Dies: "the loss of a pass without images dies: IndexError",
    Nan: "the loss is nan of a pass without images",
    NeedsLabels: "the loss is nan where no patch has a word",
    NeedsAnswers: "the loss is nan of a pass without trained tokens",
    Constant: r"the loss of a pass without images is 1.\d*, not 0",
    Ungathered: "the gradient of a pass without images is not finite",
}


@pytest.mark.parametrize("objective", [Kept, Targeted])
def test_the_unbroken_objective_passes(objective):
    check_objective(objective)


@pytest.mark.parametrize("objective", BROKEN, ids=lambda objective: objective.__name__)
def test_what_breaks_the_contract_is_said(objective):
    with pytest.raises(AssertionError, match=BROKEN[objective]):
        check_objective(objective)


def test_an_error_of_its_own_is_no_broken_contract():
    class Wrong(Kept):
        def forward(self, step):
            return self.no_such_thing

    with pytest.raises(AttributeError, match="no_such_thing"):
        check_objective(Wrong)
