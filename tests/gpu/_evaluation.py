"""Labels and answers a second: label extraction beside the encoder alone, packed questions beside one at a time."""

from functools import partial

import torch
from PIL import Image
from torch import Tensor

from mmalign.labels import store
from mmalign.labels.store import Header
from mmalign.vision.hf import HFVision
from tests.speed import engine
from tests.speed.topn import KEEP

from ._shapes import CLIP, LLMS, SIGLIP, SMALL, SMALL_CLIP, SMALL_SIGLIP, encoder, model
from ._sheet import Sheet, in_rounds
from ._training import WORDS, Nearest

TEXTS = 18  # questions an image


def labels(sheet: Sheet, tiny: bool) -> None:
    """Pixels that are on the CPU to packed rows of a store, as the label stage makes them; fp32, as it has its encoder,
    and bf16."""
    shapes = {"CLIP ViT-L/14-336": SMALL_CLIP, "SigLIP so400m-384": SMALL_SIGLIP} if tiny else {
        "CLIP ViT-L/14-336": CLIP, "SigLIP so400m-384": SIGLIP}  # fmt: skip
    words, images, times = (300, 2, 1) if tiny else (WORDS, 32, 5)
    table = f"Label extraction, {words:,} words, {KEEP} kept"
    for name, shape in shapes.items():
        for dtype in (torch.float32, torch.bfloat16):
            what = f"{name}, {str(dtype).removeprefix('torch.')}"
            try:
                eye = encoder(shape).to("cuda" if torch.cuda.is_available() else "cpu", dtype).eval()
                _labelled(sheet, table, what, eye, Nearest(words, shape.joint, eye_device(eye)), images, times)
            except Exception as err:
                sheet.failed(table, what, err)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def eye_device(eye: HFVision) -> torch.device:
    return next(eye.parameters()).device


def _labelled(sheet: Sheet, table: str, what: str, eye: HFVision, source: Nearest, images: int, times: int) -> None:
    pixels_B3SS, device = torch.randn(images, 3, eye.image_size, eye.image_size), eye_device(eye)
    picture = Image.new("RGB", (640, 480), (90, 120, 30)).effect_spread(20)
    about = Header("", "", eye.grid, KEEP, {}, "", len(source.bank.text_WJ))

    @torch.no_grad()
    def dense() -> Tensor:
        return eye.both(pixels_B3SS.to(device))[1]

    def labelled() -> None:
        words_NK, scores_NK = source.label(dense().flatten(0, 1))
        each = (t.cpu().view(images, -1, KEEP).numpy() for t in (words_NK, scores_NK))
        frames = [eye.frame((640, 480))] * images
        assert len([store.pack(about, *one) for one in zip(*each, frames, strict=True)]) == images

    def ranked() -> None:
        source.label(there_NJ)

    there_NJ = dense().flatten(0, 1)
    arms = {
        "the encoder alone": dense,
        "encoder, words, rows of the store": labelled,
        "the words alone": ranked,
        "pictures of 640 x 480 to pixels, one after the other": lambda: [eye.pixels(picture) for _ in range(images)],
    }
    found = in_rounds(arms, times, partial(sheet.failed, table))
    for name, (seconds, memory) in found.items():
        alone = found["the encoder alone"][0]
        with_target = name.startswith("encoder,")
        ratio = f"{alone / seconds:.3f} of the encoder alone" if with_target else None
        sheet.add(table, what=f"{what}: {name}", **{"images/s": images / seconds}, peak_GiB=memory, ratio=ratio,
                  target=0.95 if with_target else None)  # fmt: skip


def evaluation(sheet: Sheet, tiny: bool) -> None:
    """18 questions an image, Vicuna-7B's shape, bf16: ours beside transformers' generate, one question at a time."""
    vlm = model(SMALL_CLIP, SMALL["Vicuna-7B"]) if tiny else model(CLIP, LLMS["Vicuna-7B"])
    times = 1 if tiny else 3
    lengths = (2,) if tiny else (2, 16)
    for length in lengths:
        bench = engine.Objects(TEXTS)
        bench.max_new_tokens = length  # type: ignore[misc]
        questions = bench.questions()
        table = f"Evaluation, {TEXTS} questions an image of {vlm.tokens} tokens, up to {length} new tokens, bf16"
        packed = {one.id: text for one, text in vlm.answers(bench, questions, batch=len(questions))}
        alone = dict(engine._alone(vlm, bench))
        same = sum(packed[name] == text for name, text in alone.items())
        arms = {
            "one at a time, generate": lambda: list(engine._alone(vlm, bench)),  # noqa: B023
            "ours": lambda: list(vlm.answers(bench, questions, batch=len(questions))),  # noqa: B023
        }
        found = in_rounds(arms, times, partial(sheet.failed, table))
        for what, (seconds, memory) in found.items():
            ours = what == "ours" and len(found) == 2
            ratio = found["one at a time, generate"][0] / seconds if ours else None
            sheet.add(table, what=what, **{"questions/s": len(questions) / seconds}, peak_GiB=memory, times=ratio,
                      target="at least 10" if ours else None,
                      equal_answers=f"{same} of {len(alone)}" if ours else None)  # fmt: skip
