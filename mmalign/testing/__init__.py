"""What every part must do, alone and in a model, as checks that the author of a part runs in their own tests.

    def test_mine(tmp_path):
        check_adapter(MyAdapter)
        mine = {"adapter": Card("mine", "my_package.MyAdapter")}
        for family in small.LLMS:
            llm = {"llm": small.llm_card(family, tmp_path)}
            check_model({**small.encoder("siglip", tmp_path), **llm, **mine}, tmp_path / family / "saved")

Each check raises an AssertionError that says what was expected.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from mmalign.adapters import Adapter
from mmalign.data import MARK, Turn
from mmalign.errors import CardError
from mmalign.objectives.lm import NextToken
from mmalign.plan.cards import Card
from mmalign.vision import Vision
from mmalign.vlm.batch import Batch
from mmalign.vlm.folder import build, read, save
from mmalign.vlm.model import PARTS, VLM
from mmalign.vlm.supervised import Supervised, keep_reached, part_of

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}  # between a sample alone and the same one in a batch


def check_adapter(
    make: Callable[[int, int, tuple[int, int]], Adapter],
    patch_dim: int = 32,
    llm_dim: int = 48,
    grid: tuple[int, int] = (6, 4),
) -> None:
    """An adapter keeps its contract. make: from patch_dim, llm_dim and grid, as a card's target is called."""
    torch.manual_seed(0)
    adapter = make(patch_dim, llm_dim, grid)
    _no_scalars(adapter)
    for dtype in (torch.float32, torch.bfloat16):
        adapter = adapter.to(dtype).eval()
        patches_BPC = torch.randn(3, grid[0] * grid[1], patch_dim).to(dtype)
        _shape(adapter(patches_BPC), (3, adapter.tokens, llm_dim), dtype)
        _repeats(adapter, patches_BPC)
    adapter = adapter.float()
    _adapter_learns(adapter, torch.randn(2, grid[0] * grid[1], patch_dim))
    _reloads(adapter, make(patch_dim, llm_dim, grid), torch.randn(2, grid[0] * grid[1], patch_dim))
    if adapter.keeps_grid:
        _keeps_grid(adapter, torch.randn(1, grid[0] * grid[1], patch_dim))


def check_vision(make: Callable[[], Vision], folder: Path, reload: Callable[[Path], Vision]) -> None:
    """A vision encoder keeps its contract.

    make: builds it, the same weights every time. folder: where it may be saved. reload: builds it from such a folder,
    as its card does with `checkpoint: folder`. It is built with a small configuration: this runs it a dozen times.
    """
    vision = make().eval()
    _no_scalars(vision)
    assert vision.identity(), "identity() is empty"
    assert make().identity() == vision.identity(), "two encoders built alike have different identities"
    pixels_B3SS = torch.stack([_pixels(vision, image) for image in _pictures()])
    for dtype in (torch.float32, torch.bfloat16):
        cast = make().eval().to(dtype)
        with torch.no_grad():
            _shape(cast(pixels_B3SS[:3]), (3, vision.patches, vision.dim), dtype)
        _repeats(cast, pixels_B3SS[:3])
    _vision_learns(vision, pixels_B3SS[:2])
    (_joint if vision.joint else _no_joint)(vision, pixels_B3SS[:2])
    _saves(vision, folder, reload, pixels_B3SS[:1])


def check_model(cards: Mapping[str, Card], folder: Path) -> None:
    """Parts are one model: a training step moves each of them, and what is saved and loaded gives identical logits.

    cards: vision, adapter and llm; vision.encoder, where the encoder wraps another. folder: a new one, to save in.
    With those of testing/small.py it takes a fraction of a second. A CheckError names a part no gradient reaches.
    """
    torch.manual_seed(0)
    vlm = build(cards)
    model = Supervised(vlm, {"lm": NextToken()}).train()
    batch = _conversation(vlm)
    _step(model, batch)
    save(folder, vlm, cards)
    again = _logits(read(folder), batch)
    assert torch.equal(again, _logits(vlm, batch)), "what was saved and loaded gives other logits"


def _conversation(vlm: VLM) -> Batch:
    """Two pictures, one in the middle of the text, and two answers of different lengths; padded."""
    chat = vlm.llm.chat
    said = [("What is this?", "A red star."), (f"Look: {MARK}\nWhat colour?", "Blue, and large.")]
    rows = [
        chat.encode(
            [Turn("user", f"{MARK}\n{ask}" if MARK not in ask else ask), Turn("assistant", answer)], [vlm.tokens]
        )
        for ask, answer in said
    ]
    wide = max(len(row.ids) for row in rows)
    ids_RS = torch.tensor([row.ids + [chat.pad] * (wide - len(row.ids)) for row in rows])
    mask_RS = torch.tensor([[1] * len(row.ids) + [0] * (wide - len(row.ids)) for row in rows])
    weight_RS = torch.tensor([[float(t) for t in row.trained] + [0.0] * (wide - len(row.ids)) for row in rows])
    return Batch(ids_RS, mask_RS, weight_RS, vlm.pixels(_pictures()[:2]), chat.mark)


def _step(model: Supervised, batch: Batch) -> None:
    """One training step of all parts that have parameters; they have to move by it."""
    model.freeze_all_but([part for part in PARTS if any(True for _ in getattr(model.vlm, part).parameters())])
    model.prepare()
    terms, _ = model(batch)
    keep_reached(model, {"lm": terms["lm"]})
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    terms["lm"].backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0).step()
    assert terms["lm"].isfinite(), f"the loss is {terms['lm'].item()}"
    now = dict(model.named_parameters())
    for part in {part_of(name) for name in before}:
        moved = [n for n, value in before.items() if part_of(n) == part and not torch.equal(value, now[n])]
        assert moved, f"a training step leaves the {part} as it was"


@torch.no_grad()
def _logits(vlm: VLM, batch: Batch) -> Tensor:
    logits_NV: Tensor = vlm.eval()(batch.ids_RS, batch.mask_RS, batch.pixels_B3SS)[batch.mask_RS > 0]
    assert logits_NV.isfinite().all(), "logits are not finite"
    return logits_NV


def _no_scalars(module: nn.Module) -> None:
    scalars = [name for name, p in module.named_parameters() if p.dim() == 0]
    assert not scalars, f"parameters without a dimension, which optimizers and ZeRO mistreat: {', '.join(scalars)}"


def _shape(found: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert found.shape == shape, f"the output is {tuple(found.shape)}, declared was {shape}"
    assert found.dtype == dtype, f"the output is {found.dtype}, the weights are {dtype}"
    assert found.isfinite().all(), f"the output is not finite in {dtype}"


@torch.no_grad()
def _repeats(module: nn.Module, given: Tensor) -> None:
    once = module(given)
    assert torch.equal(module(given), once), "the same input gives another output in eval mode"
    alone = module(given[:1])
    limit = TOLERANCE[once.dtype] * float(once.abs().max())
    assert (alone - once[:1]).abs().max() <= limit, "a sample's output depends on the others in its batch"


def _adapter_learns(adapter: Adapter, patches_BPC: Tensor) -> None:
    patches_BPC.requires_grad_(True)
    weights = torch.randn(len(patches_BPC), adapter.tokens, adapter.llm_dim)
    (adapter.train()(patches_BPC) * weights).sum().backward()
    adapter.eval()
    dead = [name for name, p in adapter.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead, f"no gradient reaches {', '.join(dead)}"
    assert patches_BPC.grad is not None, "no gradient reaches the patches"
    unseen = int((patches_BPC.grad.abs().sum((0, 2)) == 0).sum())
    assert not unseen, f"{unseen} patches change no token"


@torch.no_grad()
def _reloads(adapter: Adapter, other: Adapter, patches_BPC: Tensor) -> None:
    other.eval().load_state_dict(adapter.state_dict())
    assert torch.equal(other(patches_BPC), adapter(patches_BPC)), "state_dict() does not hold everything it needs"


def _keeps_grid(adapter: Adapter, patches_BPC: Tensor) -> None:
    rows, columns = adapter.grid
    assert adapter.tokens == rows * columns, f"keeps_grid, but {adapter.tokens} tokens of {rows * columns} patches"
    for patch in range(adapter.tokens):
        changed_BPC = patches_BPC.clone()
        changed_BPC[:, patch] += 1
        with torch.no_grad():
            moved_Q = (adapter(changed_BPC) - adapter(patches_BPC)).norm(dim=-1)[0]
        assert int(moved_Q.argmax()) == patch, f"keeps_grid, but patch {patch} changes token {int(moved_Q.argmax())}"


def _pictures() -> list[Image.Image]:
    """Small pictures of every kind that data may hold."""
    made = [Image.effect_noise((width, height), 80) for width, height in ((40, 30), (30, 40), (9, 9), (1, 1), (90, 1))]
    return [made[0].convert("RGB"), *made, *(made[0].convert(mode) for mode in ("RGBA", "P", "1", "LA", "CMYK"))]


def _pixels(vision: Vision, image: Image.Image) -> Tensor:
    pixels_3SS = vision.pixels(image)
    side = vision.image_size
    what = f"pixels of a {image.size[0]} x {image.size[1]} {image.mode} image are {tuple(pixels_3SS.shape)}"
    assert pixels_3SS.shape == (3, side, side), f"{what}, not (3, {side}, {side})"
    assert pixels_3SS.dtype == torch.float32, f"pixels are {pixels_3SS.dtype}, not fp32"
    assert pixels_3SS.isfinite().all(), f"pixels of a {image.mode} image are not finite"
    twice = vision.pixels(image, scale=2).shape
    assert twice == (3, 2 * side, 2 * side), f"pixels at scale 2 are {tuple(twice)}"
    return pixels_3SS


def _vision_learns(vision: Vision, pixels_B3SS: Tensor) -> None:
    vision.requires_grad_(True)
    vision.train()(pixels_B3SS).square().sum().backward()
    alive = [name for name, p in vision.named_parameters() if p.grad is not None and p.grad.any()]
    assert alive, "no gradient reaches the encoder"
    vision.eval().zero_grad()


@torch.no_grad()
def _joint(vision: Vision, pixels_B3SS: Tensor) -> None:
    patches_BPC, dense_BPJ = vision.both(pixels_B3SS)
    assert torch.allclose(patches_BPC, vision(pixels_B3SS), atol=1e-5), "both() and forward() give other patches"
    _shape(dense_BPJ, (len(pixels_B3SS), vision.patches, vision.joint), torch.float32)
    text_WJ = vision.words(["dog", "a red car", "dog"])
    _shape(text_WJ, (3, vision.joint), torch.float32)
    assert torch.allclose(text_WJ.norm(dim=-1), torch.ones(3), atol=1e-4), "words() gives no unit vectors"
    alone_WJ = vision.words(["dog"])
    assert torch.allclose(text_WJ[[0, 2]], alone_WJ.expand(2, -1), atol=1e-4), "a word depends on its neighbours"


def _no_joint(vision: Vision, pixels_B3SS: Tensor) -> None:
    for name, call in (("both", lambda: vision.both(pixels_B3SS)), ("words", lambda: vision.words(["dog"]))):
        try:
            call()
        except CardError:
            continue
        raise AssertionError(f"joint is 0, but {name}() raises no CardError")


@torch.no_grad()
def _saves(vision: Vision, folder: Path, reload: Callable[[Path], Vision], pixels_B3SS: Tensor) -> None:
    vision.save(folder / "own")
    assert torch.equal(reload(folder / "own").eval()(pixels_B3SS), vision(pixels_B3SS)), "a saved encoder differs"
    state = {name: value * 1.25 for name, value in vision.state_dict().items()}
    vision.save(folder / "trained", state)
    vision.load_state_dict(state)
    found = reload(folder / "trained").eval()(pixels_B3SS)
    assert torch.equal(found, vision(pixels_B3SS)), "an encoder saved with trained weights differs"
