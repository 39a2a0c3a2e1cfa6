"""What is exported answers as the model did, in plain transformers and in a process without mmalign."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, processors
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from mmalign.adapters.mlp import MLP
from mmalign.data import MARK, Turn
from mmalign.llms.causal import CausalLM
from mmalign.pipeline import task
from mmalign.plan import graph
from mmalign.plan import read as compose
from mmalign.plan.cards import Card, Registry
from mmalign.plan.recipe import Export
from mmalign.stages import export, verify
from mmalign.stages.checks import Checks
from mmalign.testing import small
from mmalign.training.events import Events
from mmalign.vision import FITS
from mmalign.vision.hf import HFVision
from mmalign.vlm.folder import read
from mmalign.vlm.model import VLM
from mmalign.vlm.prefix import Pass
from tests import parts
from tests.llms.test_templates import SHAPES, TEMPLATES, TOKENS
from tests.vlm.test_model import picture
from tests.vlm.test_prefix import Quiz

VISION = {  # as on their cards: CLIP padded to a square, DINOv2 at a size of its own and normed
    "clip": (parts.clip, {"fit": "pad"}),
    "siglip": (parts.siglip, {}),
    "dinov2": (parts.dinov2, {"layer": -1, "norm": True, "fit": "pad", "image_size": 24}),
}
# family and chat template of the registry's language models: the shape of their tokenizer, rows beyond its tokens
FORMATS = {
    ("llama", "vicuna_v1"): ("llama2", 0),
    ("llama", "llama3"): ("bytelevel", 0),
    ("llama", "smollm2"): ("bytelevel", 0),
    ("mistral", "mistral"): ("llama2", 0),
    ("gemma", "gemma"): ("gemma", 0),
    ("gemma2", "gemma"): ("gemma", 0),
    ("gemma3_text", "gemma3"): ("gemma", 0),
    ("phi3", "phi3"): ("llama2", 5),
    ("qwen2", "qwen2"): ("bytelevel", 5),
    ("qwen3", "chatml"): ("bytelevel", 5),
}
# Tokenizers as they come: one that adds a begin token, beside that of the template or where it has none, pads on the
# right and has no token to pad with; one without any of it; and one that pads as it should.
WORDS = ("adds", "bare", "pads")
SOME = [
    ("clip", "llama", "vicuna_v1", 2, "adds"),
    ("siglip", "qwen3", "chatml", 2, "adds"),
    ("dinov2", "gemma3_text", "gemma3", 1, "pads"),
    ("siglip", "phi3", "phi3", 1, "bare"),
]
EVERY = [
    case
    for n, (eye, format_) in enumerate(itertools.product(VISION, FORMATS))
    for case in ((eye, *format_, 2, "adds"), (eye, *format_, 1, WORDS[1 + n % 2]))
]
CASES = [*SOME, *(pytest.param(*case, marks=pytest.mark.slow) for case in EVERY if case not in SOME)]
RING = [Turn("assistant", "A red ring."), Turn("user", "Où est 東京 ?")]
QUESTIONS = [
    "What colour is the star?",
    "Describe this image.",
    "Why?",
    "Is there a cat in it, or a dog, or both of them?",
]
SEEN = [[Turn("user", f"{MARK}\n{text}")] for text in QUESTIONS]
UNSEEN = [[Turn("user", text)] for text in QUESTIONS]
TALKS = [  # the first four are asked in a batch, and the next four
    *SEEN, *UNSEEN, [*SEEN[1], *RING], [*UNSEEN[2], *RING], [Turn("user", f"{MARK}\n{MARK}\nWhich is larger?"), *RING],
]  # fmt: skip
TOLD = [*TALKS[8], Turn("assistant", "Yes")]
MOST = 6

PLAIN = """
import json, sys
sys.modules["mmalign"] = None  # it cannot be imported
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, pipeline

def given(talk):
    rest = iter(["a.png", "b.png"])
    def parts(text):
        shown = [{"type": "image", "path": next(rest)} for _ in range(text.count("<image>"))]
        return [*shown, {"type": "text", "text": text.replace("<image>\\n", "")}]
    return [{"role": turn["role"], "content": parts(turn["content"])} for turn in talk]

def seen(talk):
    return [Image.open(name) for name in ["a.png", "b.png"][: sum(t["content"].count("<image>") for t in talk)]]

torch.set_num_threads(1)
jobs, said = json.load(open("jobs.json")), []
greedy = {"max_new_tokens": jobs["most"], "do_sample": False}
for folder in jobs["folders"]:
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto")
    processor = AutoProcessor.from_pretrained(folder)
    how = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    told = processor.apply_chat_template(given(jobs["told"]), **how)
    about = {"told": told["input_ids"][0].tolist(), "prompts": [], "answers": [], "batched": [], "piped": []}
    for talk in jobs["talks"]:
        inputs = processor.apply_chat_template(given(talk), add_generation_prompt=True, **how)
        text = processor.apply_chat_template(given(talk), add_generation_prompt=True)
        steps = processor(text=text, images=seen(talk) or None, return_tensors="pt")
        ids = model.generate(**inputs, **greedy)[0]
        size = inputs["input_ids"].shape[1]
        about["prompts"].append([ids[:size].tolist(), steps["input_ids"][0].tolist()])
        about["answers"].append(ids[size:].tolist())
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    for start in (0, 4):
        talks = jobs["talks"][start : start + 4]
        texts = [processor.apply_chat_template(given(talk), add_generation_prompt=True) for talk in talks]
        images = {"images": [seen(talk) for talk in talks]} if start == 0 else {}
        inputs = processor(text=texts, padding=True, return_tensors="pt", **images)
        size = inputs["input_ids"].shape[1]
        about["batched"] += model.generate(**inputs, **greedy)[:, size:].tolist()
        piped = pipe(text=[given(talk) for talk in talks], batch_size=4, return_tensors=True, generate_kwargs=greedy)
        about["piped"] += [row[0]["generated_token_ids"][size:].tolist() for row in piped]
    said.append(about)
json.dump(said, open("said.json", "w"))
"""


def tokenizer(shape, template, kind):
    """A tokenizer of some shape with its format's own special tokens, of one of the kinds in WORDS."""
    begin, end, more = TOKENS[template]
    if kind == "adds" and template == "chatml":
        begin = "<s>"  # as where ChatML was put on a Llama
    words = PreTrainedTokenizerFast(tokenizer_object=SHAPES[shape](), bos_token=begin, eos_token=end, unk_token=None)
    words.add_special_tokens({"additional_special_tokens": [
        AddedToken(token, rstrip=template == "phi3", normalized=False, special=True) for token in more
    ]})  # fmt: skip
    if kind == "pads":
        words.add_special_tokens({"pad_token": "<pad>"})
        words.init_kwargs["padding_side"] = "left"
    if kind == "adds":
        words.init_kwargs["padding_side"] = "right"
        token = begin or more[-1]
        adds = processors.TemplateProcessing(
            single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, words.convert_tokens_to_ids(token))]
        )
        words.backend_tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), adds])
    return words


def llm(family, template, folder, kind="bare"):
    """A small language model with its format's own special tokens, and as many rows as tokens, or a few more."""
    shape, spare = FORMATS[family, template]
    words = tokenizer(shape, template, kind)
    words.save_pretrained(folder)
    torch.manual_seed(0)
    shape = small._LLM | small.LLMS[family] | {"vocab_size": len(words) + spare, "max_position_embeddings": 512}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folders = {}

    def folder(name, make):
        if name not in folders:
            folders[name] = str(make(tmp_path_factory.mktemp(name)))
        return folders[name]

    def make(vision="clip", family="llama", template="vicuna_v1", depth=2, words="bare"):
        kind, more = VISION[vision]
        eye = HFVision(folder(vision, kind), **more)
        place = folder(f"{family}-{template}-{words}", lambda place: llm(family, template, place, words))
        mouth = CausalLM(place, str(TEMPLATES / f"{template}.jinja"))
        torch.manual_seed(2)
        for name, parameter in mouth.named_parameters():  # sharper than as initialised, so that answers differ
            if parameter.dim() > 1 and "embed" not in name:
                parameter.data.mul_(3)
        for parameter in (*eye.parameters(), *mouth.parameters()):  # no norm is plain, no bias nothing
            if parameter.dim() == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
        return VLM(eye, MLP(eye.dim, mouth.dim, eye.grid, depth), mouth).eval()

    return make


def ours(given, shown):
    """What the plain process is to see: token ids of a talk as it is trained on, of prompts, and of answers."""
    chat, prompts, answers = given.llm.chat, [], []
    for talk in TALKS:
        images = shown[: sum(turn.text.count(MARK) for turn in talk)]
        prompts.append(chat.prompt(talk, [given.tokens] * len(images)))
        with torch.no_grad():
            answers += Pass(given.llm, given.groups(talk, images)).write(MOST)
    return {"told": chat.encode(TOLD, [given.tokens]).ids, "prompts": prompts, "answers": answers, "ends": chat.ends}


def asked(build, place, cases):
    """{(encoder, family, template, depth, words): (what mmalign's check saw, what we say, what transformers says)}."""
    shown = [picture(3, size=40).resize((50, 40)), picture(4, size=40).resize((30, 40))]
    for name, image in zip(("a.png", "b.png"), shown, strict=True):
        image.save(place / name)
    written, we = [], []
    for number, case in enumerate(cases):
        given = build(*case)
        we.append(ours(given, shown))
        written.append(export.write(given, place / str(number)))
    jobs = {"folders": [str(one.folder) for one in written], "most": MOST}
    jobs |= {"talks": [_plain(talk) for talk in TALKS], "told": _plain(TOLD)}
    (place / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True, cwd=place, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    they = json.loads((place / "said.json").read_text())
    return dict(zip(cases, zip(verify.ask(written), we, they, strict=True), strict=True))


@pytest.fixture(scope="module")
def some(build, tmp_path_factory):
    return asked(build, tmp_path_factory.mktemp("some"), SOME)


@pytest.fixture(scope="module")
def every(build, tmp_path_factory):
    return asked(build, tmp_path_factory.mktemp("every"), EVERY)


def _plain(talk):
    return [{"role": turn.role, "content": turn.text} for turn in talk]


@pytest.mark.parametrize(("vision", "family", "template", "depth", "words"), CASES)
def test_plain_transformers_says_the_same(request, vision, family, template, depth, words):
    """The same logits, the same tokens for a talk as it was trained on and for prompts, in one step and in two; and the
    same answers, alone, in a padded batch and in a pipeline."""
    case = (vision, family, template, depth, words)
    seen, we, they = request.getfixturevalue("some" if case in SOME else "every")[case]
    assert seen["failure"] is None
    assert seen["difference"] < 1e-4
    assert they["told"] == we["told"]
    assert they["prompts"] == [[ids, ids] for ids in we["prompts"]]
    for way, number in (("answers", len(TALKS)), ("batched", 8), ("piped", 8)):
        until = [next((n for n, i in enumerate(ids) if i in we["ends"]), len(ids)) for ids in they[way]]
        said = [ids[:n] for ids, n in zip(they[way], until, strict=True)]
        assert said == we["answers"][:number], way


def test_the_answers_are_not_all_alike(some):
    said = [tuple(ids) for _, we, _ in some.values() for ids in we["answers"]]
    assert len(set(said)) > len(said) / 2


def test_the_product_has_every_language_model_of_the_registry():
    published = [card for card in Registry().every("llms") if "family" in card.facts]
    formats = {(card.facts["family"], Path(card.args["template"]).stem) for card in published}
    assert formats - {("phi", "phi2")} == set(FORMATS)  # whose head no Llava can hold


def test_weights_are_written_in_the_precision_they_were_trained_in(build, tmp_path):
    """Half the bytes of fp32, and the same logits as the rounded weights give."""
    written = []
    for family, template in (("llama", "llama3"), ("gemma3_text", "gemma3")):
        sizes = {}
        for precision in ("fp32", "bf16"):
            place = tmp_path / f"{family}-{precision}"
            written.append(export.write(build("siglip", family, template), place, precision))
            sizes[precision] = (place / "model.safetensors").stat().st_size
            loaded = LlavaForConditionalGeneration.from_pretrained(place, dtype="auto")
            assert {p.dtype for p in loaded.parameters()} == {export.DTYPES[precision]}
        assert 0.45 < sizes["bf16"] / sizes["fp32"] < 0.6
    seen = verify.ask(written)
    assert all(one["failure"] is None and one["difference"] < 1e-4 for one in seen)


@pytest.mark.parametrize("given", ["bf16", "fp32"])
def test_the_precision_is_that_of_the_stage_it_exports(tiny, given):
    recipe = compose.load(tiny, [f"stages.tune.precision={given}"])
    (node,) = (node for node in graph.plan(recipe, "runs") if node.name == "tune")
    task.save(node)
    exports = task.Task(tiny.parent, "export", "tiny", 0, Export(kind="export"), {}, [("weights", node.folder)], {})
    assert export.precision(exports) == given
    assert export.precision(replace(exports, reads=[])) == "fp32"


SIZES = [
    (300, 300), (400, 300), (300, 400), (600, 150), (150, 600), (7, 220), (220, 7), (333, 217), (31, 29), (3, 90),
    (24, 24), (640, 427),
]  # fmt: skip
LONG = [(7, 1000), (1000, 7), (1, 90)]  # whose ends `middle` takes off before they are resized and cropped


@pytest.mark.parametrize("more", [{}, {"image_size": 24}, {"pil": True}], ids=str)
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_its_processor_makes_the_pixels_of_the_stage(kind, fit, more, tmp_path_factory, tmp_path):
    """Whatever the checkpoint's own habit was; a folder does not say whether Pillow resizes, so it is asked to."""
    encoder = HFVision(str(VISION[kind][0](tmp_path_factory.mktemp(kind))), fit=fit, **more)
    export.images(encoder).save_pretrained(tmp_path)
    backend = {"backend": "pil"} if encoder.pil else {}
    processor = AutoImageProcessor.from_pretrained(tmp_path, **backend)
    for width, height in SIZES if fit == "crop" else SIZES + LONG:
        image = picture(width, max(width, height)).crop((0, 0, width, height))
        theirs = torch.as_tensor(processor(images=image, return_tensors="pt")["pixel_values"][0])
        assert (theirs - encoder.pixels(image)).abs().max() <= 1e-6, (width, height)
    other = next(one for one in FITS if one != fit)
    elsewhere = HFVision(encoder.checkpoint, fit=other, **more)
    image = picture(1, 400).crop((0, 0, 400, 300))
    assert (elsewhere.pixels(image) - encoder.pixels(image)).abs().max() > 0.1  # it matters


@pytest.mark.parametrize("fit", FITS)
def test_what_is_exported_sees_as_the_stage_did_when_it_is_loaded(build, tmp_path, fit):
    model = build("siglip")
    model.vision = HFVision(model.vision.checkpoint, fit=fit)
    export.processor(model).image_processor.save_pretrained(tmp_path / "vision")
    model.vision.save(tmp_path / "saved")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "vision" / name).write_bytes((tmp_path / "saved" / name).read_bytes())
    loaded = HFVision(str(tmp_path / "vision"))
    assert loaded.fit == fit
    image = picture(1, 400).crop((0, 0, 400, 300))
    assert torch.equal(loaded.pixels(image), model.vision.pixels(image))
    assert loaded.frame((400, 300)) == model.vision.frame((400, 300))


def test_pictures_resized_by_pillow_are_said(build):
    model = build()
    model.vision = HFVision(model.vision.checkpoint, pil=True)
    assert 'AutoImageProcessor.from_pretrained(FOLDER, backend="pil")' in export.note(model)


def test_a_row_nobody_trained_is_never_the_likeliest(build, tmp_path):
    given = build()
    rows = given.llm.lm.get_output_embeddings().weight.shape[0]
    assert given.llm.chat.mark == rows
    whole = export.llava(given)
    hidden_ND = torch.randn(50, given.llm.dim)
    logits_NV = whole.lm_head(hidden_ND)
    assert torch.allclose(logits_NV[:, rows], logits_NV[:, :rows].mean(1), atol=1e-5)
    assert (logits_NV.argmax(1) < rows).all()


def _cards(given, depth):
    return {
        "vision": Card("", "mmalign.vision.hf.HFVision", {"checkpoint": given.vision.checkpoint, "fit": "pad"}),
        "adapter": Card("", "mmalign.adapters.mlp.MLP", {"depth": depth}),
        "llm": Card("", "mmalign.llms.causal.CausalLM", {"checkpoint": given.llm.checkpoint}),
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_llava_cannot_hold_loads_where_mmalign_is(build, tmp_path, precision):
    given = build(depth=3)
    cards = type("Task", (), {"cards": _cards(given, 3)})
    made = export.export(given, cards, tmp_path / "out", Checks(Events(tmp_path), 1), precision)
    assert made.difference is None
    assert made.why_not == "its adapter has 3 linear layers"
    loaded = read(tmp_path / "out")
    for name, value in given.adapter.state_dict().items():
        assert torch.equal(loaded.adapter.state_dict()[name], value)
        assert value.dtype == export.DTYPES[precision]
    bench = Quiz(images=1, each=1)
    ours = {q.id: text for q, text in given.answers(bench, bench.questions()[:1], batch=1)}
    question = bench.questions()[0]
    if precision == "fp32":
        assert loaded.ask(question.text, bench.image(question.image), max_new_tokens=6) == ours[question.id]


def test_a_cap_that_llava_does_not_know_is_said(build):
    assert "caps its logits at 30, which Llava does not" in export.note(build(family="gemma2", template="gemma"))
    assert export.note(build()) == ""


def test_a_final_norm_is_no_layer_for_fp16(build):
    assert "not fp16" in export.note(build("dinov2"))


def test_a_final_norm_needs_a_layer_wide_enough(build):
    """Twice the width: a CLIP whose MLP has 32 for a width of 24, and a DINOv2 that has 48."""
    for vision, reason in [("clip", "its patches pass the encoder's final norm, which no layer"), ("dinov2", "")]:
        given = build(vision)
        given.vision.norm = True
        assert export.why_not(given).startswith(reason)
        assert bool(export.why_not(given)) == bool(reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: setattr(p, "adapter", torch.nn.Identity()), "its adapter is a Identity"),
        (lambda p: setattr(p, "llm", torch.nn.Identity()), "its language model is a Identity"),
        (lambda p: setattr(p, "vision", torch.nn.Identity()), "its encoder is a Identity"),
        (lambda p: p.llm.lm.set_output_embeddings(torch.nn.Linear(2, 2)), "head has a bias, which Llava's has not"),
    ],
)
def test_why_not(build, change, reason):
    given = build()
    assert export.why_not(given) == ""
    change(given)
    assert reason in export.why_not(given)
