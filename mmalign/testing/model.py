"""Parts that keep their contracts, put together: one training step, saved, loaded, and identical logits.

Letters: B images, R rows (samples), S positions, N real positions, V vocabulary.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmalign.data import MARK, Turn
from mmalign.objectives.lm import NextToken
from mmalign.plan.cards import Card
from mmalign.testing.vision import pictures
from mmalign.vlm.batch import Batch, Sample, collate
from mmalign.vlm.folder import build, read, save
from mmalign.vlm.model import PARTS, VLM
from mmalign.vlm.supervised import Supervised, keep_reached, part_of


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
    again = _logits(read(folder, cards), batch)
    assert torch.equal(again, _logits(vlm, batch)), "what was saved and loaded gives other logits"


def _conversation(vlm: VLM) -> Batch:
    """Two pictures, one in the middle of the text, and two answers of different lengths; padded."""
    said = [(f"{MARK}\nWhat is this?", "A red star."), (f"Look: {MARK}\nWhat colour?", "Blue, and large.")]
    samples = []
    for (question, answer), pixels_3SS in zip(said, vlm.pixels(pictures()[:2]), strict=True):
        row = vlm.llm.chat.encode([Turn("user", question), Turn("assistant", answer)], [vlm.tokens])
        samples.append([Sample(question, row.ids, row.weights, [pixels_3SS])])
    return collate(samples, vlm.llm.chat)


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
