"""A template for plain transformers says what ours says, without its marks; a tokenizer adds nothing and can pad."""

import json

import jinja2
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from mmalign.data import MARK
from mmalign.errors import CardError
from mmalign.llms import plain
from mmalign.llms.chat import PLAIN_BEGIN, Chat
from mmalign.llms.rendering import render
from tests.llms.test_templates import SHAPES, TALKS, TEMPLATES, TOKENS


def chat(template="vicuna_v1", shape="llama2", **tokens):
    """A chat with a tokenizer of these special tokens."""
    words = PreTrainedTokenizerFast(tokenizer_object=SHAPES[shape](), **tokens)
    return Chat("here", (TEMPLATES / f"{template}.jinja").read_text(), words)


LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": None}


@pytest.mark.parametrize("template", TOKENS)
def test_the_template_says_the_same_without_marks(template):
    """As text and as parts, to transformers and to everybody's jinja; a prompt and a conversation."""
    begin, end, _ = TOKENS[template]
    own = chat(template, bos_token=begin, eos_token=end)
    text = plain.template(own)
    jinja2.Environment().from_string(text)
    assert "generation %}" not in text
    assert "generation -%}" not in text
    words = {key: value for key, value in (("bos_token", begin), ("eos_token", end)) if value is not None}
    for turns in TALKS.values():
        texts = [{"role": turn.role, "content": turn.text} for turn in turns]
        parts = [{"role": turn.role, "content": [{"type": "text", "text": turn.text}]} for turn in turns]
        for prompt in (True, False):
            asked = {"add_generation_prompt": prompt, **words}
            said, spans = render(own.template, texts, asked, "ours")
            assert spans or prompt or not any(turn.role == "assistant" for turn in turns)
            assert render(text, texts, asked, "plain") == render(text, parts, asked, "plain") == (said, [])


@pytest.mark.parametrize("tag", ["{% generation %}", "{%- generation -%}", "{%+generation-%}", "{% endgeneration-%}"])
@pytest.mark.parametrize("trims", [True, False])
def test_a_comment_in_the_place_of_a_mark_keeps_its_blanks(tag, trims):
    """As any other block does, here that of an `if`."""
    own = chat()
    own.template = f"a\n  {tag} \n b"
    end, shown = "end" * ("end" in tag), "{% if true %}" if "end" in tag else ""
    like = own.template.replace(f"{end}generation", "endif" if end else "if true") + ("" if end else "{% endif %}")
    if end:
        like = shown + like
    environment = jinja2.Environment(trim_blocks=trims, lstrip_blocks=trims)
    text = plain.template(own).removeprefix(plain.TEXTS)
    assert text != own.template
    assert environment.from_string(text).render() == environment.from_string(like).render()


def test_the_marked_template_comes_back(tmp_path):
    own = chat(**LLAMA)
    assert plain.marked(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    plain.finish(tmp_path, own)
    assert plain.marked(tmp_path) == own.template
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    silent = {"add_bos_token": False, "add_eos_token": False, PLAIN_BEGIN: []}
    assert told == {"eos_token": "</s>", **silent}


def test_a_template_without_marks_has_no_marked_one(tmp_path):
    own = chat(**LLAMA)
    own.template = "{{ messages[0].content }}"
    (tmp_path / "tokenizer_config.json").write_text("{}")
    plain.finish(tmp_path, own)
    assert plain.marked(tmp_path) is None


def test_a_marked_template_that_is_damaged(tmp_path):
    (tmp_path / plain.MARKED).write_bytes(b"\xff\xfe")
    with pytest.raises(CardError, match=r"cannot read the chat template .*chat_template.jinja.marked: ") as error:
        plain.marked(tmp_path)
    assert error.value.fix == "export it again, or --template FILE"


ADDS = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])
BERT = processors.BertProcessing(("</s>", 1), ("<s>", 0))


@pytest.mark.parametrize(
    "post", [None, ADDS, BERT, processors.Sequence([processors.ByteLevel(trim_offsets=False), ADDS])], ids=str
)
def test_the_tokenizer_adds_nothing_and_ours_stays_as_it_is(post):
    own = chat(shape="bytelevel", **LLAMA)
    own.tokenizer.backend_tokenizer.post_processor = post
    before = own.tokenizer("a star")["input_ids"]
    words = plain.tokenizer(own)
    assert words("a star")["input_ids"] == words("a star", add_special_tokens=False)["input_ids"]
    first, second = (words(one)["input_ids"] for one in ("a star", "a ring"))
    assert words("a star", "a ring")["input_ids"] == first + second
    assert words("a star", return_offsets_mapping=True)["offset_mapping"][-1][1] == len("a star")
    assert own.tokenizer("a star")["input_ids"] == before
    assert (len(before) > len(words("a star")["input_ids"])) == (post is not None)
    assert own.tokenizer.padding_side == "right"
    assert own.tokenizer.pad_token is None


@pytest.mark.parametrize(
    ("tokens", "token"),
    [
        ({**LLAMA, "pad_token": "<pad>"}, "<pad>"),
        ({**LLAMA, "unk_token": "<unk>"}, "<unk>"),
        (LLAMA, "</s>"),
        ({**LLAMA, "pad_token": MARK}, "</s>"),
    ],
)
def test_the_token_to_pad_with(tokens, token):
    """Never the mark of images, whose places are counted."""
    own = chat(**tokens)
    assert plain.pad(own) == token
    words = plain.tokenizer(own)
    assert (words.pad_token, words.pad_token_id, words.padding_side) == (token, plain.pad_id(own), "left")
    rows = words(["a", "a star and a ring"], padding=True)
    assert rows["input_ids"][0][0] == plain.pad_id(own)
    assert rows["attention_mask"][0][0] == 0


def test_an_ordinary_token_is_none_to_pad_with():
    own = chat("chatml", bos_token=None, eos_token=None, unk_token=None)
    assert own.pad == 0
    assert plain.pad(own) is None
    assert plain.pad_id(own) is None
    assert plain.tokenizer(own).pad_token is None


@pytest.mark.parametrize("bos", [None, False])
def test_plain_texts_of_an_exported_tokenizer_begin_as_before(tmp_path, bos):
    """It adds nothing by itself, so that a prompt has one begin token; perplexity and MMLU stay what they were."""
    own = Chat("pkg:mmalign.toyworld/llama", bos=bos)
    plain.tokenizer(own).save_pretrained(tmp_path)
    plain.finish(tmp_path, own)
    exported = Chat(str(tmp_path), own.template)
    assert exported.tokenizer("red star")["input_ids"] == own.plain("red star")[-2:]
    assert exported.plain("red star") == own.plain("red star")
    assert (
        exported.begin == own.begin == ([] if bos is False else [own.tokenizer.bos_token_id])
    )  # the toy's scores have one


def test_an_exported_tokenizer_begins_texts_with_all_that_stood_there(tmp_path):
    """Two tokens, neither of them the begin token."""
    own = Chat("pkg:mmalign.toyworld/llama")
    own.__dict__["begin"] = [7, 9]
    plain.tokenizer(own).save_pretrained(tmp_path)
    plain.finish(tmp_path, own)
    assert Chat(str(tmp_path), own.template).begin == [7, 9]
