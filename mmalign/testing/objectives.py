"""The contract of an objective, as a check: it is handed what it declares in `needs`, and nothing else.

Letters: B images, P patches, K words kept for a patch, W words in the list, N trained tokens or patches asked for,
D width of the language model, V its vocabulary, C width of another encoder's features.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.objectives import Context, Objective, Step, Targets, Words
from mmalign.testing.tensors import no_scalars

GRID, DIM, VOCAB, LAYERS, TOKENS, CAPTION = (3, 2), 16, 40, 4, 10, 3
WORDS = ["star", "ring", "red", "blue", "left", "large", "dog"]
NEEDS = {"answers", "labels", "layers", "states", "captions", "targets"}
STATES = {"states", "captions"}
UNITS = ("tokens", "images")


def check_objective(make: Callable[[], Objective]) -> None:
    """An objective keeps its contract. make: builds it, the same every time, as a card's target is called; one of
    targets with an encoder, a small one, of which nothing but its width is asked."""
    objective = _prepared(make)
    _declares(objective)
    no_scalars(objective)
    for dtype in (torch.float32, torch.bfloat16):
        _scalar(_loss(objective, step_of(objective, dtype=dtype)), f"with visual tokens in {dtype}")
    _repeats(objective)
    _learns(objective)
    _notes(objective)
    _is_a_mean(objective)
    _reloads(objective, _prepared(make))
    _without(objective)


def _prepared(make: Callable[[], Objective]) -> Objective:
    torch.manual_seed(0)
    objective = make()
    objective.prepare(Context(layers=LAYERS, dim=DIM, distributed=False, vocabulary=_vocabulary))
    return objective


def _declares(objective: Objective) -> None:
    unknown = set(objective.needs) - NEEDS
    assert not unknown, f"needs names {', '.join(sorted(map(str, unknown)))}; there are {', '.join(sorted(NEEDS))}"
    assert isinstance(objective.needs, frozenset), f"needs is a {type(objective.needs).__name__}, not a frozenset"
    assert objective.unit in UNITS, f"unit is {objective.unit!r}, not one of {', '.join(UNITS)}"
    look = objective.look
    assert (look is not None) == ("layers" in objective.needs), (
        "needs lists layers, and prepare() sets no look" if look is None else "a look is set, and needs lists no layers"
    )
    if look is not None:
        assert 0 < len(look.weights) <= LAYERS, f"look has weights of {len(look.weights)} layers, the model {LAYERS}"
    of, wanted = objective.state_layers, ", ".join(sorted(STATES & objective.needs))
    assert bool(of) == bool(wanted), (
        f"state_layers is {of}, and needs lists neither states nor captions" if of
        else f"needs lists {wanted}, and prepare() sets no state_layers"
    )  # fmt: skip
    _declares_targets(objective)
    assert all(0 <= layer <= LAYERS for layer in of), f"state_layers is {of}, the model has layers 0 to {LAYERS}"


def _declares_targets(objective: Objective) -> None:
    wants = "targets" in objective.needs
    assert bool(objective.encoders) == wants, (
        "needs lists targets, and __init__ keeps no encoder in self.encoders" if wants
        else "encoders are kept, and needs lists no targets"
    )  # fmt: skip
    assert objective.per_patch or not wants, "needs lists targets, which patches have: see per_patch = True"
    own = {id(module) for module in objective.modules()}
    assert not any(id(encoder) in own for encoder in objective.encoders), (
        "its encoder is a module of it, and would be trained and saved: keep it in the tuple self.encoders alone"
    )


def step_of(
    objective: Objective, images: int = 2, repeats: int = 1, dtype: torch.dtype = torch.float32,
    answered: bool = True, labelled: bool = True,
) -> Step:  # fmt: skip
    """A forward pass that holds what the objective declares, as the model would hand it over, and nothing else.

    images: B. repeats: how often the whole of it stands in the pass. answered: with trained tokens. labelled: whether
    patches have words.
    """
    random = torch.Generator().manual_seed(1)
    visual_BPD = torch.randn(2, GRID[0] * GRID[1], DIM, generator=random)[:images]
    step = Step(visual_BPD=visual_BPD.repeat(repeats, 1, 1).to(dtype).requires_grad_(True), random=_generator(0))
    if objective.per_patch:
        step.grid = GRID
        step.seen_BP = torch.ones(step.visual_BPD.shape[:2], dtype=torch.bool)
    if "answers" in objective.needs:
        _answer(step, random, repeats, dtype, answered)
    if "labels" in objective.needs:
        _label(step, images, repeats, labelled)
    if objective.look is not None:
        _see(step, objective, random, images, repeats)
    if STATES & objective.needs:
        _keep(step, objective, images * repeats, dtype)
    if objective.encoders:
        step.targets = {encoder: _target(encoder.dim, images, repeats, dtype) for encoder in objective.encoders}
    return step


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _answer(step: Step, random: torch.Generator, repeats: int, dtype: torch.dtype, answered: bool) -> None:
    count = TOKENS if answered else 0
    answer_ND = torch.randn(TOKENS, DIM, generator=random)[:count]
    token_N = torch.randint(0, VOCAB, (TOKENS,), generator=random)[:count]
    step.answer_ND = answer_ND.repeat(repeats, 1).to(dtype).requires_grad_(True)
    step.answer_N, step.weight_N = token_N.repeat(repeats), torch.ones(count).repeat(repeats)
    _read(step)


def _read(step: Step) -> None:
    """The head, and the losses under it."""
    head_VD = torch.randn(VOCAB, DIM, generator=_generator(4))
    step.head = lambda hidden_ND: F.linear(hidden_ND, head_VD.to(hidden_ND.dtype))

    def nll(hidden_ND: Tensor, token_N: Tensor, weight_N: Tensor) -> Tensor:
        log_NV = step.head(hidden_ND).float().log_softmax(-1)
        token_NT, weight_NT = (one if one.dim() == 2 else one[:, None] for one in (token_N, weight_N))
        return -(log_NV.gather(1, token_NT) * weight_NT).sum()

    step.nll = nll

    def kl(hidden_ND: Tensor, target_ND: Tensor, target_VD: Tensor, weight_N: Tensor) -> Tensor:
        log_own_NV, log_target_NV = (
            logits_NV.float().log_softmax(-1)
            for logits_NV in (step.head(hidden_ND), F.linear(target_ND.to(target_VD.dtype), target_VD))
        )
        return ((log_target_NV.exp() * (log_target_NV - log_own_NV)).sum(-1) * weight_N).sum()

    step.kl = kl


def _keep(step: Step, objective: Objective, images: int, dtype: torch.dtype) -> None:
    """Hidden states at visual tokens, and at the tokens of a caption beside each image."""
    patches = GRID[0] * GRID[1]
    repeats, generator = max(1, images // 2), _generator(5)
    _read(step)
    step.normed = lambda hidden_ND: F.rms_norm(hidden_ND, (DIM,))
    step.vocabulary = _vocabulary
    for need, name, rows in (("states", "states", (2, patches)), ("captions", "captions", (2, CAPTION))):
        if need in objective.needs:
            each = {layer: torch.randn(*rows, DIM, generator=generator) for layer in objective.state_layers}
            whole = {layer: one.repeat(repeats, 1, 1)[:images].to(dtype) for layer, one in each.items()}
            shape = {layer: one if name == "states" else one.flatten(0, 1) for layer, one in whole.items()}
            setattr(step, name, {layer: one.requires_grad_(True) for layer, one in shape.items()})
    if "captions" in objective.needs:
        step.sample_B = torch.arange(images)
        step.caption_M = step.sample_B.repeat_interleave(CAPTION)
        step.caption_id_M = torch.randint(0, VOCAB, (max(1, images) * CAPTION,), generator=generator)[
            : images * CAPTION
        ]


def _target(width: int, images: int, repeats: int, dtype: torch.dtype) -> Targets:
    """Of all patches but the first of an image."""
    features_BPC = torch.randn(2, GRID[0] * GRID[1], width, generator=_generator(6))[:images]
    features_BPC[:, 0] = 0
    known_BP = torch.ones(features_BPC.shape[:2], dtype=torch.bool)
    known_BP[:, 0] = False
    return Targets(features_BPC.repeat(repeats, 1, 1).to(dtype), known_BP.repeat(repeats, 1))


def _label(step: Step, images: int, repeats: int, labelled: bool) -> None:
    embed_VD = torch.randn(VOCAB, DIM, generator=_generator(2))
    pieces_WT = torch.tensor([[n, n + 10 if n % 2 else -1] for n in range(len(WORDS))])
    step.words = Words(list(WORDS), pieces_WT, lambda ids: F.embedding(ids, embed_VD))
    patches = images * GRID[0] * GRID[1]
    words_NK = torch.stack([(torch.arange(patches) + k) % len(WORDS) for k in range(3)], 1).repeat(repeats, 1)
    scores_NK = torch.tensor([[0.9, 0.5, 0.0]]).repeat(patches * repeats, 1) * labelled
    scores_NK[1::5] = 0  # some patches have no word
    step.labels = lambda patch_N: (words_NK[patch_N], scores_NK[patch_N])


def _see(step: Step, objective: Objective, random: torch.Generator, images: int, repeats: int) -> None:
    """What layers show; a pass without images shows nothing, but takes part in gathering the vocabulary."""
    step.vocabulary = _vocabulary
    if images and objective.look is not None:
        refined_BPD = torch.randn(2, GRID[0] * GRID[1], DIM, generator=random)[:images].repeat(repeats, 1, 1)
        step.refined = {objective.look: refined_BPD}
        step.shares = {objective.look: torch.rand(refined_BPD.shape[:2], generator=_generator(3)).softmax(-1)}


@contextmanager
def _vocabulary() -> Iterator[Tensor]:
    yield torch.randn(VOCAB, DIM, generator=_generator(2))


def _loss(objective: Objective, step: Step) -> Tensor:
    try:
        loss: Tensor = objective(step)
    except AttributeError as err:
        if "does the objective list it in `needs`?" not in str(err):
            raise
        name = str(err).removeprefix("this step has no ").split(";")[0]
        fix = "per_patch = True" if name == "grid" else f"needs, which is {set(objective.needs) or '{}'}"
        raise AssertionError(f"it uses step.{name} and does not declare it: see {fix}") from err
    return loss


def _scalar(loss: Tensor, when: str) -> None:
    assert isinstance(loss, Tensor), f"the loss is a {type(loss).__name__}, not a tensor, {when}"
    assert loss.shape == (), f"the loss is {tuple(loss.shape)}, not a scalar, {when}"
    assert loss.dtype == torch.float32, f"the loss is {loss.dtype}, not fp32, {when}"
    assert loss.isfinite(), f"the loss is {loss.item()} {when}"


def _repeats(objective: Objective) -> None:
    """Random numbers come from step.random, so that arms of a study stay paired; nothing it is handed is changed."""
    step, state = step_of(objective), torch.random.get_rng_state()
    before = {name: value.detach().clone() for name, value in vars(step).items() if isinstance(value, Tensor)}
    once = _loss(objective, step)
    assert torch.equal(torch.random.get_rng_state(), state), "it draws from torch's global generator, not step.random"
    for name, value in before.items():
        assert torch.equal(value, vars(step)[name]), f"it changes step.{name}, which others see too"
    assert torch.equal(_loss(objective, step_of(objective)), once), "the same pass gives another loss"


def _learns(objective: Objective) -> None:
    objective.zero_grad()
    step = step_of(objective)
    loss = _loss(objective, step)
    assert loss.requires_grad, "no gradient goes through the loss"
    torch.autograd.backward(loss)
    kept = [hidden.grad for name in STATES for hidden in vars(step).get(name, {}).values()]
    reached = [step.visual_BPD.grad, *kept] + ([step.answer_ND.grad] if "answers" in objective.needs else [])
    gradients = [gradient for gradient in reached if gradient is not None]
    assert any(gradient.any() for gradient in gradients), (
        "no gradient reaches the model: visual tokens, states or answers"
    )
    assert all(gradient.isfinite().all() for gradient in gradients), "the gradient is not finite"
    dead = [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead, f"no gradient reaches {', '.join(dead)}"


def _notes(objective: Objective) -> None:
    step = step_of(objective)
    _loss(objective, step)
    for name, value in step.notes.items():
        assert value.shape == (), f"the note {name!r} is {tuple(value.shape)}, not a number"
        assert value.isfinite(), f"the note {name!r} is {value.item()}"


def _is_a_mean(objective: Objective) -> None:
    """What stands three times in a pass counts as much as what stands there once. Sums would count passes by size."""
    once, thrice = (_loss(objective, step_of(objective, repeats=n)).item() for n in (1, 3))
    summed = abs(once) > 1e-6 and abs(thrice - 3 * once) <= 1e-4 * abs(thrice)
    assert not summed, f"the loss is a sum over its {objective.unit}, not their mean"


def _reloads(objective: Objective, other: Objective) -> None:
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1)
    other.load_state_dict(objective.state_dict())
    found, right = (_loss(one, step_of(one)) for one in (other, objective))
    assert torch.equal(found, right), "state_dict() does not hold everything it needs"


def _without(objective: Objective) -> None:
    """Passes that lack something: harmless, and with a gradient path, so that no rank waits for another."""
    ways: dict[str, dict[str, Any]] = {"of a pass without images": {"images": 0}}
    if "answers" in objective.needs:
        ways["of a pass without trained tokens"] = {"answered": False}
    if "labels" in objective.needs:
        ways["where no patch has a word"] = {"labelled": False}
    for way, lack in ways.items():
        step = step_of(objective, **lack)
        try:
            loss = _loss(objective, step)
        except AssertionError:
            raise
        except Exception as err:
            raise AssertionError(f"the loss {way} dies: {type(err).__name__}: {err}") from err
        _scalar(loss, way)
        if way.endswith("without images") and objective.unit == "images":
            assert loss == 0, f"the loss {way} is {loss.item()}, not 0"
        if loss.requires_grad:
            torch.autograd.backward(loss)
            gradients = [step.visual_BPD.grad, *(p.grad for p in objective.parameters())]
            assert all(g is None or g.isfinite().all() for g in gradients), f"the gradient {way} is not finite"
