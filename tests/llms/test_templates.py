"""Every chat template renders the published format, and trains exactly the answers in it.

The formats were written by hand from their documentation into golden/*.txt; ⟦ ⟧ stand around what is trained.
"""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmalign.data import Turn
from mmalign.errors import DataError
from mmalign.llms.chat import Chat
from mmalign.testing.small import TEXT

HERE = Path(__file__).parent / "golden"
TEMPLATES = Path(__file__).parents[2] / "mmalign" / "llms" / "templates"


def talk(*texts):
    return [Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]


TALKS = {
    "turns": talk("What is red?", "The star.", "And blue?", "The ring."),
    "system": [Turn("system", "Answer briefly."), *talk("What is red?", "The star.")],
    "unicode": talk("Où est 東京 ?", "Au Japon 😀 é."),
    "image": talk("Is <image> red or blue?", "Red."),
    "empty": talk("", "", "And blue?", "The ring."),
    "prompt": talk("What is red?"),
}
TOKENS = {  # (begin, end) and the other special tokens of each format's own tokenizer
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"]),
    "gemma": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "gemma3": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "phi3": ("<s>", "<|endoftext|>", ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]),
    "phi2": ("<|endoftext|>", "<|endoftext|>", []),
    "chatml": (None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"]),
    "qwen2": (None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"]),
    "smollm2": ("<|im_start|>", "<|im_end|>", ["<|endoftext|>"]),
    "mistral": ("<s>", "</s>", []),
    "vicuna_v1": ("<s>", "</s>", []),
    "plain": ("<s>", "</s>", []),
}
# where it is not the tokenizer's own end
ENDS = {"gemma": "<end_of_turn>", "gemma3": "<end_of_turn>", "phi3": "<|end|>", "plain": "\n"}


def golden(template):
    """{conversation: (text, [(start, end) of what is trained])}."""
    found = {}
    for section in (HERE / f"{template}.txt").read_text(encoding="utf-8").split("=== ")[1:]:
        name, _, marked = section.partition("\n")
        text, spans = "", []
        for number, part in enumerate(marked.removesuffix("\n").replace("⟧", "⟦").split("⟦")):
            if number % 2:
                spans.append((len(text), len(text) + len(part)))
            text += part
        found[name] = text, spans
    return found


CASES = [(template, name) for template in TOKENS for name in golden(template)]
TRAINED = [(template, name) for template, name in CASES if name != "prompt"]


def llama2():
    """BPE with a blank in front of every stretch between special tokens, bytes for unknown letters."""
    made = _bpe([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    return made


def gemma():
    """The same without that blank."""
    made = _bpe([normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def _bpe(normalize):
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    bytes_ = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    lines = TEXT.replace("東京", "").replace("😀", "").splitlines()  # these are left to the bytes, as line ends are
    learner.train_from_iterator(lines * 5, trainers.BpeTrainer(vocab_size=600, special_tokens=bytes_))
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    made = Tokenizer(models.BPE(learned["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence(normalize)
    return made


def bytelevel():
    """Llama 3's and Qwen's: words, numbers and line ends apart, then bytes."""
    made = Tokenizer(models.BPE())
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(words), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT] * 5, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    return made


SHAPES = {"llama2": llama2, "gemma": gemma, "bytelevel": bytelevel}


@pytest.fixture(scope="module", params=list(SHAPES))
def chats(request, tmp_path_factory):
    """chats(template): that template on a tokenizer of one shape, with the special tokens the format needs."""
    made = {}

    def get(template):
        if template not in made:
            begin, end, more = TOKENS[template]
            words = PreTrainedTokenizerFast(
                tokenizer_object=SHAPES[request.param](), bos_token=begin, eos_token=end, unk_token=None
            )
            strips = template == "phi3"  # its own take the line end behind them
            words.add_special_tokens({"additional_special_tokens": [
                AddedToken(token, rstrip=strips, normalized=False, special=True) for token in more
            ]})  # fmt: skip
            folder = tmp_path_factory.mktemp(template)
            words.save_pretrained(folder)
            made[template] = Chat(str(folder), str(TEMPLATES / f"{template}.jinja"))
        return made[template]

    return get


def images(name):
    return [1] if name == "image" else []


@pytest.mark.parametrize(("template", "name"), TRAINED)
def test_the_text_and_what_is_trained_are_the_published_format(chats, template, name):
    chat, (text, spans) = chats(template), golden(template)[name]
    assert chat._render(TALKS[name], prompt=False)[0] == text
    encoded = chat.encode(TALKS[name], images(name))
    given = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if template != "plain":  # its end, a line end, is a token of its own, whatever stands in front
        assert encoded.ids == given["input_ids"]
        covered = [False] * len(text)
        for (start, end), trained in zip(given["offset_mapping"], encoded.trained, strict=True):
            covered[start:end] = [trained] * (end - start)
        assert _runs(covered) == spans
    said = "".join(text[start:end] for start, end in spans)
    trained = [i for i, t in zip(encoded.ids, encoded.trained, strict=True) if t]
    decoded = chat.tokenizer.decode(trained, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert "".join(decoded.split()) == "".join(said.split())


def _runs(covered):
    """(start, end) of every stretch of True."""
    edges = [n for n, (a, b) in enumerate(zip([False, *covered], [*covered, False], strict=True)) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.parametrize("template", TOKENS)
def test_the_prompt_is_the_published_format(chats, template):
    chat = chats(template)
    text, spans = golden(template)["prompt"]
    assert not spans
    assert chat._render(TALKS["prompt"], prompt=True)[0] == text


@pytest.mark.parametrize(("template", "name"), TRAINED)
def test_an_answer_is_asked_for_with_the_tokens_it_was_trained_behind(chats, template, name):
    chat, turns = chats(template), TALKS[name]
    encoded = chat.encode(turns, images(name))
    last = max(n for n, t in enumerate(encoded.trained) if t and not encoded.trained[n - 1])
    assert chat.prompt(turns[:-1], images(name)) == encoded.ids[:last]


@pytest.mark.parametrize("template", TOKENS)
def test_answers_end_where_the_format_ends_them(chats, template):
    chat = chats(template)
    first = chat.tokenizer.convert_tokens_to_ids(TOKENS[template][1])
    own = ENDS.get(template)
    more = set() if own is None else {chat.tokenizer(own, add_special_tokens=False)["input_ids"][-1]}
    assert chat.ends == {first} | more


def llava_v1(turns):
    """The prompt of LLaVA-1.5 and what it trains on, by the rules of its conversation v1: roles USER and ASSISTANT,
    each turn `role: text` and then a blank or </s>; everything up to `ASSISTANT:` of a round is masked."""
    system = "A chat between a curious user and an artificial intelligence assistant. "
    system += "The assistant gives helpful, detailed, and polite answers to the user's questions."
    text, spans = f"<s>{system} ", []
    for turn in turns:
        if turn.role == "user":
            text += f"USER: {turn.text} "
        else:
            text += "ASSISTANT:"
            spans.append((len(text), len(text) + len(f" {turn.text}</s>")))
            text += f" {turn.text}</s>"
    return text, spans


@pytest.mark.parametrize("name", ["turns", "unicode", "image"])
def test_vicunas_golden_file_is_llavas_v1(name):
    assert golden("vicuna_v1")[name] == llava_v1(TALKS[name])


def test_every_template_has_a_golden_file_and_every_conversation():
    assert {place.stem for place in TEMPLATES.glob("*.jinja")} == set(TOKENS) == {p.stem for p in HERE.glob("*.txt")}
    lacking = {(template, name) for template in TOKENS for name in TALKS} - set(CASES)
    captions = {("plain", name) for name in TALKS if name not in ("image", "prompt")}  # a caption is all it knows
    assert lacking == captions


@pytest.mark.parametrize(
    ("template", "turns", "said"),
    [
        ("gemma", talk("a", "b", "c")[1:], "user and assistant must alternate"),
        ("gemma3", [TALKS["system"][0], *talk("a", "b")[1:]], "user and assistant must alternate"),
        ("mistral", talk("a", "b", "c")[1:], "user and assistant must alternate"),
        ("vicuna_v1", [*talk("a"), *talk("b", "c")], "user and assistant must alternate"),
    ],
)
def test_turns_a_format_cannot_say_are_refused(chats, template, turns, said):
    with pytest.raises(DataError, match=said):
        chats(template).encode(turns)
