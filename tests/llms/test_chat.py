"""Turns to tokens: answers marked by the template's spans, images widened, words spelled as inside a sentence."""

from copy import deepcopy

import pytest
from tokenizers import processors

from mmalign.data import Turn
from mmalign.errors import CardError, DataError
from mmalign.io import templates
from mmalign.llms.chat import Chat
from tests import parts

SPELLED = {"sentencepiece": "▁", "bytelevel": "Ġ"}


@pytest.fixture(scope="module", params=list(parts.KINDS))
def chat(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    parts.tokenizer(request.param, folder)
    made = Chat(str(folder))
    made.kind = request.param
    return made


def talk(*texts):
    return [Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]


def trained_text(chat, encoded):
    ids = [i for i, t in zip(encoded.ids, encoded.trained, strict=True) if t]
    return chat.tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    "answers",
    [("red star",), ("Yes", "a large blue ring"), ("1234567", "ünïcödé 東京 😀"), ("Yes", "", "No")],
)
def test_exactly_the_answers_and_their_end_are_trained(chat, answers):
    turns = talk(*(text for answer in answers for text in ("What colour is the star?", answer)))
    encoded = chat.encode(turns)
    said = trained_text(chat, encoded).replace(" ", "")
    assert said == "".join(f"{answer}</s>" for answer in answers).replace(" ", "")


def test_a_system_turn_is_not_trained(chat):
    encoded = chat.encode([Turn("system", "A chat."), *talk("Describe this image.", "red")])
    assert trained_text(chat, encoded).replace(" ", "") == "red</s>"


def test_the_prompt_is_what_stands_before_the_answer(chat):
    turns = talk("What colour is the star?", "red")
    prompt, whole = chat.prompt(turns[:1]), chat.encode(turns)
    first = whole.trained.index(True)
    assert chat.tokenizer.decode(whole.ids[:first]).rstrip() == chat.tokenizer.decode(prompt).rstrip()


def test_an_image_becomes_its_tokens_and_none_is_trained(chat):
    encoded = chat.encode(talk("<image>\nWhat? <image>", "red <star>"), [3, 5])
    assert encoded.ids.count(chat.mark) == 8
    assert not any(t for i, t in zip(encoded.ids, encoded.trained, strict=True) if i == chat.mark)
    first = encoded.ids.index(chat.mark)
    assert encoded.ids[first : first + 3] == [chat.mark] * 3
    assert encoded.ids[first + 3] != chat.mark


@pytest.mark.parametrize("tokens", [[], [4, 4]])
def test_marks_and_images_must_agree(chat, tokens):
    with pytest.raises(DataError, match=rf"1 <image> marks for {len(tokens)} images"):
        chat.encode(talk("<image> What?", "red"), tokens)


def test_words_are_spelled_with_the_tokenizers_own_leading_blank(chat):
    star, long = chat.pieces(["star", "internationalization"])
    assert chat.tokenizer.convert_ids_to_tokens(star)[0].startswith(SPELLED[chat.kind])
    assert chat.tokenizer.decode(star).strip() == "star"
    assert chat.tokenizer.decode(long).strip() == "internationalization"
    inside = chat.tokenizer("the star is", add_special_tokens=False)["input_ids"]
    assert star == inside[len(inside) - len(star) - 1 : len(inside) - 1] or set(star) <= set(inside)


def test_a_word_the_tokenizer_makes_nothing_of(chat):
    assert chat.pieces([""])[0] in ([], chat.tokenizer(" ", add_special_tokens=False)["input_ids"])


def test_an_answers_tokens_are_those_behind_a_prompt(chat):
    turns = talk("What colour?", "red star")
    encoded = chat.encode(turns)
    trained = [i for i, t in zip(encoded.ids, encoded.trained, strict=True) if t]
    assert chat.answer("red star") == trained[:-1]  # without the end of the turn


def test_templates_without_marks_are_refused_for_training(tmp_path):
    parts.tokenizer("bytelevel", tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}")
    made = Chat(str(tmp_path))
    assert made.prompt(talk("red"))
    with pytest.raises(CardError, match="marks no answers"):
        made.encode(talk("red", "star"))


def test_no_template_at_all(tmp_path):
    parts.tokenizer("bytelevel", tmp_path, "")
    with pytest.raises(CardError, match="has no chat template"):
        Chat(str(tmp_path))


def test_a_template_that_refuses_the_turns(tmp_path):
    refusing = "{{ raise_exception('roles must alternate') }}{% generation %}{% endgeneration %}"
    parts.tokenizer("bytelevel", tmp_path, refusing)
    with pytest.raises(DataError, match="refuses these turns: roles must alternate"):
        Chat(str(tmp_path)).encode(talk("red", "star"))


def test_a_template_from_a_file(tmp_path):
    parts.tokenizer("bytelevel", tmp_path, "")
    (tmp_path / "mine.jinja").write_text(parts.TEMPLATE)
    assert Chat(str(tmp_path), str(tmp_path / "mine.jinja")).marks_answers


def begin_token_first(tokenizer):
    """A tokenizer that puts its begin token before every text, as Llama's do, and its end behind."""
    begin, end = tokenizer.bos_token, tokenizer.eos_token
    pairs = [(begin, tokenizer.bos_token_id), (end, tokenizer.eos_token_id)]
    whole = f"{begin} $A {end}"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=whole, special_tokens=pairs)
    return tokenizer


def test_plain_text_begins_as_the_tokenizer_begins_it(chat):
    assert chat.begin == []
    assert chat.plain("red star") == chat.tokenizer("red star")["input_ids"]
    tokenizer = begin_token_first(deepcopy(chat.tokenizer))
    adds = Chat("x", parts.TEMPLATE, tokenizer)
    assert adds.plain("red star") == tokenizer("red star")["input_ids"][:-1]
    assert adds.begin == [tokenizer.bos_token_id]
    assert adds.text(adds.plain("red star")) == "red star"


def test_a_card_says_whether_plain_text_has_a_begin_token(chat):
    bare, tokenizer = chat.plain("red star"), begin_token_first(deepcopy(chat.tokenizer))
    assert Chat(chat.checkpoint, bos=True).plain("red star") == [tokenizer.bos_token_id, *bare]
    assert Chat("x", parts.TEMPLATE, tokenizer, bos=False).plain("red star") == bare
    tokenizer.bos_token = None
    with pytest.raises(CardError, match="the tokenizer of x has no begin token") as told:
        Chat("x", parts.TEMPLATE, tokenizer, bos=True).plain("red star")
    assert told.value.at == "args.bos"
    assert told.value.fix


@pytest.mark.parametrize("name", ["mine.jinja", "mine", "prompts/mine.txt", "https://here/mine.jinja"])
def test_what_is_meant_as_a_path_is_not_taken_for_the_template(chat, name):
    with pytest.raises(CardError, match=f"template '{name}' is neither a file nor jinja") as told:
        Chat(chat.checkpoint, name)
    assert "mine.jinja beside" in told.value.fix


@pytest.mark.parametrize(
    ("text", "marks"),
    [("{%- generation -%}", True), ("{%generation%}", True), ("{% endgeneration %}", False), ("generation %}", False)],
)
def test_where_a_template_marks_an_answer(text, marks):
    assert templates.marks_answers(text) is marks
