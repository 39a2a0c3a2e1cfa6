"""Any vision-language model of transformers through mmalign: answers token for token as its own `generate` gives them,
in batches as alone, and what is seen inside as hooks written by hand see it."""

import copy
import json
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

import mmalign
from mmalign.benchmarks import Benchmark, Cut, Question
from mmalign.data import MARK, Turn
from mmalign.errors import CheckError, DataError, RunError
from mmalign.integrations import llava, whole
from mmalign.integrations.asking import _until, likelihood
from mmalign.integrations.whole import WholeVLM
from mmalign.pipeline import build, existing
from mmalign.vision.picture import rgb
from mmalign.vlm.vocabulary import among_tokens
from tests.integrations import families
from tests.integrations.test_declared import by_hand, picture

family_ = pytest.mark.parametrize("family", families.FAMILIES)
and_more = pytest.mark.parametrize("family", [*families.FAMILIES, *families.MORE])
SQUARES = ("llava", "gemma3", "paligemma")
SIZES = [(40, 30), (20, 50), (33, 33)]


@cache
def model_of(family):
    return WholeVLM(*families.make(family))


def by_transformers(vlm, text, images, most=8):
    """The greedy answer to one question: the model's own chat template, processor and `generate`, as its card says."""
    model, processor = vlm.whole, vlm._parts.processor
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    if processor.chat_template:
        talk = [{"role": "user", "content": content}]
        prompt = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    else:
        prompt = processor.image_token * len(images) + text
    if images:
        inputs = processor(text=[prompt], images=[images], return_tensors="pt")
        inputs.pop("labels", None)
    else:
        inputs = processor.tokenizer([prompt], return_tensors="pt")
    out = model.generate(**inputs, do_sample=False, max_new_tokens=most)
    return processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


class Quiz(Benchmark):
    """Questions of unlike lengths about pictures of unlike sizes, some about none."""

    max_new_tokens = 6
    TEXTS = ("what is this ?", "what colour is the small ring left of the large square ?", "yes")

    def __init__(self, options=(), plain=False):
        self.options, self.plain = options, plain

    def questions(self):
        asked = [(text, image) for text in self.TEXTS for image in (0, 1, None)]
        return [
            Question(str(n), text, image, self.options, self.plain)
            for n, (text, image) in enumerate(asked)
            if not (self.plain and image is not None)
        ]

    def image(self, reference):
        return picture(*SIZES[reference], seed=reference)


@and_more
def test_answers_are_those_of_generate(family):
    vlm = model_of(family)
    said = {}
    for count in (0, 1, 2):
        images = [picture(*size, seed=n) for n, size in enumerate(SIZES[:count])]
        for text in Quiz.TEXTS[:2]:
            turns = [Turn("user", f"{MARK}\n" * count + text)]
            (said[count, text],) = vlm.generate([turns], [images], 8)
            assert said[count, text] == by_transformers(vlm, text, images)
    assert len(set(said.values())) > 3
    assert any(len(text.split()) > 3 for text in said.values())


@family_
def test_a_batch_of_four_answers_as_one(family):
    vlm, bench = model_of(family), Quiz()
    questions = bench.questions()
    one, four = ({q.id: text for q, text in vlm.answers(bench, questions, batch)} for batch in (1, 4))
    assert one == four
    assert len(one) == len(questions)
    assert {q.id: type(text) for q, text in vlm.answers(bench, questions, 1)} == {k: type(t) for k, t in four.items()}
    for question in questions[3:6]:
        images = [] if question.image is None else [bench.image(question.image)]
        assert one[question.id] == by_transformers(vlm, question.text, images, bench.max_new_tokens)
    assert len(set(one.values())) > 5


@family_
def test_the_likeliest_option(family):
    vlm, bench = model_of(family), Quiz(options=("red", "blue ring", "no"))
    questions = bench.questions()
    one, four = ({q.id: text for q, text in vlm.answers(bench, questions, batch)} for batch in (1, 4))
    assert one == four
    question = questions[0]
    scores = {}
    for option in question.options:
        prompt = vlm._asking.prompt([Turn("user", f"{MARK}\n{question.text}")], 1)
        inputs = vlm._parts.processor(text=[prompt + option], images=[[bench.image(0)]], return_tensors="pt")
        inputs.pop("labels", None)
        logp = vlm.whole(**inputs).logits[0].log_softmax(-1).detach()
        count = len(option.split())
        scores[option] = sum(float(logp[n - 1, inputs["input_ids"][0, n]]) for n in range(-count, 0))
    assert one[question.id] == max(scores, key=scores.get)
    assert len(set(one.values())) > 1


def test_logits_are_made_where_they_are_wanted():
    """Those of every position of some large images would be gigabytes."""
    vlm, bench, sizes = model_of("qwen2_5_vl"), Quiz(options=("red", "a blue ring")), []
    hook = vlm.whole.lm_head.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    try:
        vlm.visual_tokens(picture(40, 30))
        assert set(sizes) == {1}
        list(vlm.answers(bench, bench.questions(), 4))
        assert set(sizes) <= {1, 2, 4}
    finally:
        hook.remove()


@and_more
def test_what_is_seen_inside(family):
    """Visual tokens and hidden states of an image, alone in a user's turn, caught by hand."""
    vlm = model_of(family)
    image = picture(40, 30)
    processor = vlm._parts.processor
    talk = [{"role": "user", "content": [{"type": "image"}]}]
    text = processor.apply_chat_template(talk) if processor.chat_template else processor.image_token
    inputs = processor(text=[text], images=[[image]], return_tensors="pt")
    inputs.pop("labels", None)
    slow_ND, out = by_hand(vlm.whole, inputs)
    at_S = inputs["input_ids"][0] == vlm.whole.config.image_token_id
    assert torch.allclose(vlm.visual_tokens(image)[0], slow_ND, atol=1e-6)
    states = vlm.hidden_states(image, [0, 1, 3])
    assert list(states) == [0, 1, 3]
    for layer, hidden_BQD in states.items():
        assert torch.allclose(hidden_BQD[0], out.hidden_states[layer][0, at_S], atol=1e-5), layer
    assert vlm.depth == 3


@family_
def test_the_nearest_words(family):
    vlm = model_of(family)
    image = picture(40, 30)
    embed_VD = vlm.whole.get_input_embeddings().weight
    cosine_QV = torch.cosine_similarity(vlm.visual_tokens(image)[0][:, None], embed_VD[None], dim=-1)
    used = sorted(set(vlm._parts.tokenizer.get_vocab().values()) - {vlm.whole.config.image_token_id})
    cosine_BQK, token_BQK = vlm.nearest_tokens(image, [0], top_k=2)[0]
    best = cosine_QV[:, used].topk(2)
    assert torch.allclose(cosine_BQK[0], best.values, atol=1e-5)
    assert token_BQK[0].tolist() == [[used[i] for i in row] for row in best.indices.tolist()]
    words = vlm.nearest_words(image, [0, 2], top_k=2)
    assert len(words.words[0][0]) == cosine_BQK.shape[1]
    assert (words.grid is not None) == (family in SQUARES)
    assert 0 <= words.ceiling[2] <= 1
    assert "<html" in words.html()


def test_our_own_mark_is_no_word_of_a_model_that_has_another():
    """Its id would be one of the rows behind the vocabulary, which nobody trained."""
    own = {"<unk>": 0, "</s>": 1, "<pad>": 2, "<img>": 3, "red": 4, "ring": 5}
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(own, unk_token="<unk>")), eos_token="</s>", pad_token="<pad>"
    )
    processor = SimpleNamespace(tokenizer=words, chat_template=families.TEMPLATE.replace("MARK", "<img>"))
    llm = whole.LanguageModel(replace(model_of("qwen2_5_vl")._parts, processor=processor, image_id=3))
    assert among_tokens(llm, llm.vocabulary()).number_T.tolist() == [0, 1, 2, 4, 5]
    assert words.get_vocab() == own


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_texts_alone(family):
    """Perplexity, and options behind plain texts, are the language model's own."""
    vlm = model_of(family)
    texts = ["the red star is left of a large ring", "what is this"]
    rows = [vlm.llm.chat.plain(text) for text in texts]
    nll = count = 0.0
    for ids in rows:
        logp = vlm.whole(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        nll -= float(logp.detach().gather(1, torch.tensor(ids[1:])[:, None]).sum())
        count += len(ids) - 1
    assert vlm.perplexity(texts) == pytest.approx(torch.tensor(nll / count).exp().item(), rel=1e-4)
    bench = Quiz(options=(" red", " blue"), plain=True)
    assert {text for _, text in vlm.answers(bench, bench.questions(), 2)} <= {" red", " blue"}


def test_images_of_unlike_numbers_of_tokens():
    vlm = model_of("qwen2_5_vl")
    images = [picture(40, 30), picture(20, 50)]
    assert vlm.grid is None
    assert vlm.tokens == 0
    assert vlm.visual_tokens([images[0]] * 2).shape == (2, 20, 32)
    with pytest.raises(CheckError, match="the images become 12 to 20 tokens") as error:
        vlm.visual_tokens(images)
    assert error.value.fix == "one image at a time, or images of one size"
    with pytest.raises(CheckError, match="of a qwen2_5_vl model are no one grid over a picture"):
        vlm.frames(images)
    assert len(vlm.nearest_words(images).words[0]) == 2  # one at a time


@pytest.mark.parametrize("family", SQUARES)
def test_a_model_of_one_square_has_a_grid(family):
    vlm = model_of(family)
    assert vlm.grid == (4, 4)
    assert vlm.tokens == 16
    assert [frame.grid for frame in vlm.frames([picture(40, 30)])] == [(4, 4)]
    assert vlm.shown(picture(40, 30)).size == ((30, 30) if family == "llava" else (40, 30))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "paligemma"])
def test_a_picture_that_is_shown_is_not_the_users_own(family):
    """An evaluation makes it small for its report, and the next benchmark may read the same picture."""
    image = picture(40, 30)
    model_of(family).shown(image).thumbnail((8, 8))
    assert image.size == (40, 30)


def test_a_talk_with_images():
    """As `mmalign chat` holds one: earlier answers and images are part of the question."""
    vlm = model_of("llava_onevision")
    images = [vlm.prepared(picture(*size)) for size in SIZES[:2]]
    talk = [Turn("user", f"{MARK}\nwhat is this ?"), Turn("assistant", "a red ring"), Turn("user", f"{MARK}\nand this")]
    (said,) = vlm.generate([talk], [images], 6)
    content = [[{"type": "image"}, {"type": "text", "text": "what is this ?"}], "a red ring"]
    content += [[{"type": "image"}, {"type": "text", "text": "and this"}]]
    turns = [{"role": turn.role, "content": own} for turn, own in zip(talk, content, strict=True)]
    processor = vlm._parts.processor
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor(text=[text], images=[images], return_tensors="pt")
    out = vlm.whole.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    assert said == processor.tokenizer.decode(out, skip_special_tokens=True).strip()
    with pytest.raises(DataError, match="2 image marks and 1 images"):
        vlm.generate([talk], [images[:1]])


def test_a_model_without_a_chat_format_reads_the_text_as_it_is():
    vlm = WholeVLM(*families.make("paligemma"))
    vlm._parts.processor.chat_template = vlm._parts.tokenizer.chat_template = None
    assert vlm._asking.prompt([Turn("user", f"{MARK}\nwhat is this ?")], 1) == "<image>what is this ?"
    image = picture(40, 30)
    assert vlm.ask("what is this ?", image, 8) == by_transformers(vlm, "what is this ?", [image])


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"do_sample": True, "temperature": 9.0, "top_k": 3, "top_p": 0.9},
        {"eos_token_id": [40, 41, 42, 43, 44, 45], "min_new_tokens": 3},
        {"eos_token_id": list(range(30, 50))},
        {"num_return_sequences": 3, "do_sample": True},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_what_the_models_generation_config_says(settings, monkeypatch):
    """It is heard, but for sampling; in a batch as alone."""
    vlm, bench = model_of("qwen2_5_vl"), Quiz()
    bench.max_new_tokens = 8
    plain = {q.id: text for q, text in vlm.answers(bench, bench.questions(), 1)}
    for name, value in settings.items():
        monkeypatch.setattr(vlm.whole.generation_config, name, value)
    one, four = ({q.id: text for q, text in vlm.answers(bench, bench.questions(), batch)} for batch in (1, 4))
    assert one == four
    assert {n: type(text) for n, text in one.items()} == {n: type(text) for n, text in four.items()}
    assert (one == plain) == ("do_sample" in settings)
    monkeypatch.setattr(vlm.whole.generation_config, "num_return_sequences", 1)
    question = bench.questions()[3]
    assert one[question.id] == by_transformers(vlm, question.text, [bench.image(0)], 8)


def test_the_model_says_what_an_answer_ends_with(monkeypatch):
    """Not the tokenizer, whose own end may be a word like others to it."""
    vlm, images = model_of("qwen2_5_vl"), [picture(40, 30)]
    words = vlm._parts.tokenizer
    red, ring, end = words.convert_tokens_to_ids(["red", "ring", "<eoi>"])
    written = [red, words.eos_token_id, ring, end, words.pad_token_id, words.pad_token_id]

    def generate(input_ids, tokenizer, **_):
        assert tokenizer is words  # a string that ends answers is looked for with it
        return torch.cat([input_ids, torch.tensor([written])], 1)

    monkeypatch.setattr(vlm.whole, "generate", generate)
    prompt = vlm._asking.prompt([Turn("user", f"{MARK}\nwhat")], 1)
    for ends, said in (([end], "red ring"), (words.eos_token_id, "red"), (None, "red")):
        monkeypatch.setattr(vlm.whole.generation_config, "eos_token_id", ends)
        assert vlm._asking.write([prompt], [images], 6) == [(said, False)]


def test_a_row_that_waits_for_others():
    """Behind its end, or behind a string that ended it, where no token says so."""
    assert _until([5, 2, 3, 3], {2}, pad=3) == [5, 2]
    assert _until([5, 6, 3, 3], {2}, pad=3) == [5, 6]
    assert _until([5, 3, 3], {3}, pad=3) == [5, 3]
    assert _until([5, 6], {2}, pad=3) == [5, 6]


def test_generate_that_returns_more_than_tokens(monkeypatch):
    vlm, image = model_of("qwen2_5_vl"), picture(40, 30)
    said = vlm.ask("what is this ?", image, 6)
    monkeypatch.setattr(vlm.whole.generation_config, "return_dict_in_generate", True)
    assert vlm.ask("what is this ?", image, 6) == said


TEXTS = "{% for m in messages %}{{ m.role + ' : ' + m.content + ' ' }}{% endfor %}assistant :"  # no lists
WORDS = (  # no images in lists
    "{% for m in messages %}{{ m.role }} : {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %} {% endfor %}assistant :"
)
SAID = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}assistant :"  # of a list, its Python


def asking(template, family="qwen2_5_vl", tokenizer=None):
    """How a model with another chat template is asked."""
    vlm = WholeVLM(*families.make(family))
    vlm._parts.processor.chat_template, vlm._parts.tokenizer.chat_template = template, tokenizer
    return vlm._asking


@pytest.mark.parametrize("template", [TEXTS, WORDS, SAID])
def test_a_chat_template_that_takes_texts_alone(template):
    """The marks then stand in the text, as the model's own do."""
    turns = [Turn("system", "no"), Turn("user", f"{MARK}\nwhat"), Turn("assistant", "a ring"), Turn("user", "yes")]
    own = asking(template)
    assert own.prompt(turns, 1) == "system : no user : <image>\nwhat assistant : a ring user : yes assistant :"
    assert own.prompt(turns[3:], 0) == "user : yes assistant :"


def test_the_tokenizers_chat_template_where_the_processor_has_none():
    own = asking(None, tokenizer=families.TEMPLATE.replace("MARK", "<image>"))
    assert own.prompt([Turn("user", f"{MARK}\nwhat")], 1) == "user : <image>what assistant : "
    named = asking({"default": TEXTS, "tools": "no"})
    assert named.prompt([Turn("user", "what")], 0) == "user : what assistant :"


def test_a_chat_template_that_shows_no_image():
    own = asking("{% for m in messages %}{{ m.role }} {% endfor %}")
    with pytest.raises(CheckError, match="chat template writes 0 image marks for 1 images"):
        own.prompt([Turn("user", f"{MARK}\nwhat")], 1)


def test_a_chat_template_that_refuses():
    """What it says is an error of the turns, as with other models, and no traceback."""
    own = asking("{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + TEXTS)
    with pytest.raises(DataError, match="refuses these turns: no system turns"):
        own.prompt([Turn("system", "no"), Turn("user", "what")], 0)
    assert own.prompt([Turn("user", "what")], 0) == "user : what assistant :"


def test_an_answer_of_no_words_is_a_turn_like_others():
    first = "{% if m.content[0].type == 'image' %}<image>{% endif %}"
    own = asking("{% for m in messages %}" + first + "{% for c in m.content %}{{ c.text }}{% endfor %};{% endfor %}")
    turns = [Turn("user", f"{MARK}\nwhat"), Turn("assistant", ""), Turn("user", "yes")]
    assert own.prompt(turns, 1) == "<image>what;;yes;"


def test_an_option_stands_where_an_answer_does(monkeypatch):
    """Behind the blank that a template such as SmolVLM's puts between `Assistant:` and an answer."""
    own, read = asking(TEXTS), []
    assert own.blank == " "
    inputs = own.inputs
    monkeypatch.setattr(own, "inputs", lambda texts, images: read.extend(texts) or inputs(texts, images))
    assert len(own.likelihoods([("assistant :", [], "red"), ("assistant :", [], "blue")])) == 2
    assert read == ["assistant : red", "assistant : blue"]
    assert model_of("qwen2_5_vl")._asking.blank == ""
    assert asking(None).blank == ""
    assert asking("{% for m in messages %}{{ m.content }}{% endfor %}").blank == ""


def test_a_processor_that_writes_behind_the_option():
    logits_SV, ids_S = torch.zeros(4, 9), torch.tensor([3, 4, 5, 6])
    assert likelihood(logits_SV, ids_S, [5, 6]) == pytest.approx(-2 * torch.tensor(9.0).log().item())
    with pytest.raises(CheckError, match="writes something behind a prompt, so options cannot be weighed"):
        likelihood(logits_SV, ids_S, [4, 5])


def test_an_answer_that_is_cut_says_so():
    vlm, bench = model_of("llava"), Quiz()
    bench.max_new_tokens = 2
    answers = [text for _, text in vlm.answers(bench, bench.questions(), 4)]
    assert any(isinstance(text, Cut) for text in answers)


@pytest.mark.parametrize(
    ("family", "mark", "token"), [("gemma3", "<boi>", "<image>"), ("qwen2_5_vl", "<video>", "<image>"),
        ("gemma3", "<row_1_col_1>", "<row_1_col_1>")],
)  # fmt: skip
def test_a_text_with_what_stands_for_an_image(family, mark, token, monkeypatch):
    """The mark that the processor expands, of videos too, and the token of the expansion."""
    vlm = model_of(family)
    parts = replace(vlm._parts, image_id=vlm._parts.tokenizer.convert_tokens_to_ids(token))
    monkeypatch.setattr(vlm._asking, "parts", parts)
    with pytest.raises(DataError, match=f"a text has {mark} in it, which stands for an image or another thing"):
        vlm.ask(f"what is {mark} ?", picture(40, 30))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16", "LA", "F"])
def test_pictures_of_every_kind(mode):
    vlm = model_of("qwen2_5_vl")
    image = picture(40, 30).convert("L" if mode == "I;16" else mode)
    image = image.convert("I").point(lambda v: v * 256).convert("I;16") if mode == "I;16" else image
    assert vlm.ask("what is this ?", image, 6) == vlm.ask("what is this ?", rgb(image), 6)


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("size", [(1, 1), (60, 1), (3, 40)])
def test_pictures_of_odd_shapes(family, size):
    """Read as any other, a colour being a colour and not a line of pixels."""
    vlm, image = model_of(family), picture(*size)
    tokens_QD = vlm.visual_tokens(image)[0]
    assert len(tokens_QD)
    assert tokens_QD.isfinite().all()
    assert isinstance(vlm.ask("what is this ?", image, 2), str)


def test_a_picture_that_the_processor_refuses():
    vlm = model_of("qwen2_5_vl")
    with pytest.raises(DataError, match="refuses a picture, of 201 x 1 pixels: absolute aspect ratio") as error:
        vlm.ask("what is this ?", picture(201, 1))
    assert error.value.fix == "leave it out, or show the model a part of it"
    with pytest.raises(DataError, match="refuses a picture"):  # before it is part of a talk
        vlm.prepared(picture(201, 1))
    assert vlm.prepared(picture(200, 1)).size == (200, 1)


def test_a_question_with_an_image_mark_in_it():
    with pytest.raises(DataError, match="2 image marks and 1 images"):
        model_of("llava").ask("what is <image> ?", picture(40, 30))


@family_
def test_half_precision(family):
    vlm = WholeVLM(*families.make(family)).to(torch.bfloat16)
    image = picture(40, 30)
    assert vlm.visual_tokens(image).dtype == torch.bfloat16
    assert isinstance(vlm.ask("what is this ?", image, 4), str)


def test_pixels_are_the_processors():
    with pytest.raises(CheckError, match="through its own processor"):
        model_of("llava").visual_tokens(torch.zeros(1, 3, 16, 16))


# From a folder


def saved(family, place):
    model, processor = families.make(family)
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return place


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision", "idefics3", "gemma3", "internvl"])
def test_a_folder_is_loaded(family, tmp_path):
    place = saved(family, tmp_path / "model")
    assert existing.find(str(place)) == place
    vlm = mmalign.load(place)
    assert isinstance(vlm, WholeVLM)
    assert not vlm.training
    image = picture(40, 30)
    assert vlm.ask("what is this ?", image, 8) == model_of(family).ask("what is this ?", image, 8)


def test_a_llava_model_that_our_own_parts_cannot_hold(tmp_path):
    """As it is, like models of another kind."""
    model, processor = families.make("llava")
    config = copy.deepcopy(model.config)
    config.multimodal_projector_bias = False
    model = LlavaForConditionalGeneration(config).eval()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    vlm, image = mmalign.load(tmp_path / "model"), picture(40, 30)
    assert isinstance(vlm, WholeVLM)
    assert vlm.ask("what is this ?", image, 6) == WholeVLM(model, processor).ask("what is this ?", image, 6)
    with pytest.raises(RunError, match="cannot import .*: its projector has no bias"):
        llava.llava(str(tmp_path / "model"), tmp_path / "ours")


def test_a_folder_without_weights(tmp_path):
    place = saved("qwen2_5_vl", tmp_path / "model")
    (place / "model.safetensors").unlink()
    with pytest.raises(RunError, match="is a model without weights"):
        existing.find(str(place))


def changed(place, **more):
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, **more}))


def test_what_cannot_be_loaded(tmp_path):
    place = saved("qwen2_5_vl", tmp_path / "model")
    changed(place, model_type="qwen9_vl")
    with pytest.raises(RunError, match=f"cannot load {place}: .*qwen9_vl"):
        mmalign.load(place)
    changed(place, model_type="clip", vision_config={})
    with pytest.raises(RunError, match="a clip model is none that answers about images in text"):
        whole.read(place)


def test_a_config_that_makes_no_model(tmp_path):
    """It is the model's class that says what is wrong, not that there were none."""
    place = saved("qwen2_5_vl", tmp_path / "model")
    config = json.loads((place / "config.json").read_text())
    for name, value, said in (("num_attention_heads", 5, "heads"), ("hidden_act", "jelu", "jelu")):
        changed(place, text_config={**config["text_config"], name: value})
        with pytest.raises(RunError, match=f"cannot load {place}: (?!a qwen).*{said}"):
            mmalign.load(place)


def test_a_quantised_model_is_evaluated_as_it_is(monkeypatch):
    vlm = WholeVLM(*families.make("qwen2_5_vl"))
    monkeypatch.setattr(vlm.whole, "hf_quantizer", object(), raising=False)
    build.cast_all("bf16", vlm)
    assert {weight.dtype for weight in vlm.parameters()} == {torch.float32}


def test_a_quantised_checkpoint_without_its_package(tmp_path):
    place = saved("qwen2_5_vl", tmp_path / "model")
    changed(place, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(RunError, match=f"cannot load {place}: "):
        mmalign.load(place)


def test_a_processor_with_code_of_its_own(tmp_path):
    """It is not run, and nobody is asked whether it should be."""
    place = saved("qwen2_5_vl", tmp_path / "model")
    changed(place, auto_map={"AutoConfig": "own.Config"}, model_type="own_vl")
    (place / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(RunError, match=f"cannot load {place}: .*custom code"):
        mmalign.load(place)


def test_tied_embeddings(tmp_path):
    """A head that is not stored, as the embeddings are it, is not lacking."""
    model, processor = families.make("qwen2_5_vl")
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    vlm = mmalign.load(tmp_path / "model")
    assert vlm.whole.lm_head.weight is vlm.llm.vocabulary()
    assert vlm.ask("what is this ?", picture(40, 30), 6) == WholeVLM(model, processor).ask(
        "what is this ?", picture(40, 30), 6
    )


def test_weights_that_lack(tmp_path):
    from safetensors.torch import load_file, save_file

    place = saved("qwen2_5_vl", tmp_path / "model")
    weights = load_file(place / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match=r"it lacks 1 weights, such as lm_head.weight"):
        mmalign.load(place)


def test_a_family_that_cannot_be_served_is_refused_before_weights_are_read(tmp_path, monkeypatch):
    place = saved("qwen2_5_vl", tmp_path / "model")
    monkeypatch.setattr(whole.declared, "parts", lambda *_: (_ for _ in ()).throw(CheckError("no")))
    (place / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckError, match="no"):
        whole.read(place)


# Words in the place of visual tokens


@and_more
def test_other_visual_tokens_stand_in_the_place_of_the_models_own(family):
    """Its own change nothing; with others, two pictures of one size are the same picture."""
    vlm, text = model_of(family), Quiz.TEXTS[0]
    pictures = [picture(*SIZES[0], seed=n) for n in (0, 1)]
    tokens_QD = vlm.visual_tokens(pictures[0])[0]
    if family == "qwen3_vl":
        with pytest.raises(CheckError, match="Qwen3VLForConditionalGeneration adds what it sees of a picture to later"):
            vlm.ask_about(text, pictures[0], tokens_QD, 8)
        return
    assert vlm.ask_about(text, pictures[0], tokens_QD, 8) == by_transformers(vlm, text, pictures[:1])
    words_QD = vlm.llm.embed(torch.arange(len(tokens_QD)) % 40 + 20).detach()
    first, second = (vlm.ask_about(text, one, words_QD, 8) for one in pictures)
    assert first == second
    with pytest.raises(CheckError, match=f"1 visual tokens for {len(tokens_QD)} places of an image") as error:
        vlm.ask_about(text, pictures[0], words_QD[:1])
    assert error.value.fix == "as many as the model makes of the image"
    assert vlm.ask_about(text, pictures[1], vlm.visual_tokens(pictures[1])[0], 8) == by_transformers(
        vlm, text, pictures[1:]
    )


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_replacement_experiment(family):
    vlm = model_of(family)
    image = picture(*SIZES[0], seed=0)
    (one,) = vlm.replaced(image, Quiz.TEXTS[0], max_new_tokens=8)
    number_Q = vlm.nearest_tokens(image)[0][1][0, :, 0]
    assert one.answer == by_transformers(vlm, Quiz.TEXTS[0], [image])
    assert one.replaced == vlm.ask_about(Quiz.TEXTS[0], image, vlm.llm.embed(number_Q), 8)
    assert len(one.words) == len(one.others) == len(number_Q)
