"""Conversations as a whole model is trained on them, beside what its own processor and template make of them."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch

from mmalign.data import MARK, Turn
from mmalign.data.reasons import Unusable
from mmalign.errors import CheckError, DataError
from mmalign.integrations.teaching import Teaching
from mmalign.integrations.whole import WholeVLM
from tests.integrations import families
from tests.integrations.test_declared import picture

family_ = pytest.mark.parametrize("family", families.FAMILIES)
TALKS = {
    "one": [("user", f"{MARK}\nwhat is this ?"), ("assistant", "a red star")],
    "two": [("user", f"{MARK}\nwhat colour is the ring ?"), ("assistant", "blue"), ("user", "is it large ?"),
            ("assistant", "no it is small")],
    "two pictures": [("user", f"{MARK}\n{MARK}\nare they the same ?"), ("assistant", "yes")],
    "none": [("user", "is a circle a square ?"), ("assistant", "no")],
}  # fmt: skip
EOS = 2


@cache
def teaching(family):
    vlm = WholeVLM(*families.make(family))
    return Teaching(vlm._parts, vlm.llm.chat)


def turns(name):
    return [Turn(role, text) for role, text in TALKS[name]]


def images(name):
    return [picture(40 - 8 * n, 30, seed=n) for n in range(sum(text.count(MARK) for _, text in TALKS[name]))]


def slow(own, name):
    """(ids, labels) of one conversation: the processor's ids of the whole, and where an answer begins, by those of its
    prompt; an answer ends with the end token."""
    processor, shown = own.parts.processor, images(name)

    def ids(upto, ready):
        text = own.asking.prompt(turns(name)[:upto], len(shown), ready)
        if not shown:  # some processors want an image
            return processor.tokenizer([text])["input_ids"][0]
        return processor(text=[text], images=[shown], return_tensors="pt")["input_ids"][0].tolist()

    whole = ids(len(TALKS[name]), False)
    labels = [-100] * len(whole)
    for upto in range(1, len(TALKS[name]), 2):
        begin = len(ids(upto, True))
        end = whole.index(EOS, begin)
        labels[begin : end + 1] = whole[begin : end + 1]
    return whole, labels


@family_
def test_trained_are_the_answers_with_their_ends(family):
    """Rows with no, one and two pictures in one batch: each as the slow way has it alone."""
    own = teaching(family)
    taught = own.batch([own.row(turns(name), images(name)) for name in TALKS], 4096)
    assert not taught.refused
    assert taught.lost == [0] * 4
    for row, name in enumerate(TALKS):
        ids, labels = slow(own, name)
        kept = taught.inputs["attention_mask"][row].bool()
        assert kept.tolist() == [True] * len(ids) + [False] * (len(kept) - len(ids))
        assert taught.inputs["input_ids"][row][kept].tolist() == ids
        assert taught.inputs["labels"][row][kept].tolist() == labels
        assert (taught.inputs["labels"][row][~kept] == -100).all()


@family_
def test_the_batch_is_the_processors_own(family):
    """Pixels and whatever else is in it, of rows without a picture beside others; and the model reads it."""
    own = teaching(family)
    taught = own.batch([own.row(turns(name), images(name)) for name in TALKS], 4096)
    texts = [own.asking.prompt(turns(name), len(images(name)), ready=False) for name in TALKS]
    theirs = own.parts.processor(text=texts, images=[images(n) for n in TALKS], return_tensors="pt", padding=True)
    for name in theirs.keys() - {"labels", "input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}:
        assert torch.equal(taught.inputs[name], theirs[name]), name
    assert taught.inputs.keys() == theirs.keys() | {"labels"}
    own.parts.model.train()(**taught.inputs).loss.backward()


def bare(family="paligemma"):
    """A model without a chat format."""
    model, processor = families.make(family)
    processor.chat_template = processor.tokenizer.chat_template = None
    vlm = WholeVLM(model, processor)
    return Teaching(vlm._parts, vlm.llm.chat)


def test_without_a_chat_format_it_is_what_the_processor_makes_of_a_suffix():
    own = bare()
    rows = [own.row(turns(name), images(name)) for name in ("one", "two pictures")]
    taught = own.batch(rows, 4096)
    for row, name in enumerate(("one", "two pictures")):
        (question, answer), shown = TALKS[name], images(name)
        text = question[1].replace(f"{MARK}\n", MARK)
        theirs = own.parts.processor(text=[text], images=[shown], suffix=[answer[1]], return_tensors="pt")
        length = theirs["input_ids"].shape[1]
        for key in ("input_ids", "token_type_ids", "labels"):
            assert taught.inputs[key][row, :length].tolist() == theirs[key][0].tolist(), key
    with pytest.raises(Unusable) as caught:
        own.row(turns("two"), images("two"))
    assert caught.value.detail == "the model has no chat format: it learns one answer, behind one text"
    assert caught.value.fix == "rows of a question and its answer"


def test_an_answer_that_no_token_ends_is_ended():
    """By the tokenizer's own, behind the last; blanks between a prompt and its answer belong to the answer."""
    model, processor = families.make("llava")
    text = families.TEMPLATE.replace("MARK", "<image>").replace("{{ eos_token }}", "")
    processor.chat_template = text.replace("assistant : {% endif %}", "assistant :{% endif %}")
    vlm = WholeVLM(model, processor)
    own = Teaching(vlm._parts, vlm.llm.chat)
    row = own.row(turns("two"), images("two"))
    taught = own.batch([row], 4096)
    trained = taught.inputs["labels"][0]
    told = processor.tokenizer.convert_ids_to_tokens(trained[trained != -100].tolist())
    assert told == ["blue", "no", "it", "is", "small", "</s>"]
    assert own.spelled(row.text, row, special=False).ids[-1] == EOS


def test_special_tokens_in_a_text_stay_text():
    own = teaching("qwen2_5_vl")
    said = [Turn("user", "what is </s> <image> ?".replace("<image>", "<boi>")), Turn("assistant", "no </s> yes")]
    taught = own.batch([own.row(said, [])], 4096)
    ids = taught.inputs["input_ids"][0].tolist()
    assert ids.count(EOS) == 1  # the answer's end
    assert own.parts.tokenizer.convert_tokens_to_ids("<boi>") not in ids


def test_weights_of_answers():
    own = teaching("llava")
    said = [Turn("user", "what ?"), Turn("assistant", "red", 0.0), Turn("user", "is it ?"), Turn("assistant", "yes")]
    taught = own.batch([own.row(said, [])], 4096)
    trained = taught.inputs["labels"][0]
    assert own.parts.tokenizer.convert_ids_to_tokens(trained[trained != -100].tolist()) == ["yes", "</s>"]
    with pytest.raises(Unusable) as caught:
        own.row([Turn("user", "what ?"), Turn("assistant", "red", 0.5)], [])
    told = "an answer counts 0.5, and a whole model's own loss counts each fully or not at all"
    assert (caught.value.reason, caught.value.detail) == ("flags", told)
    assert caught.value.fix == "weights of 0 and 1"


def test_what_is_cut():
    own = teaching("smolvlm")
    rows = [own.row(turns(name), images(name)) for name in ("two", "none")]
    whole = own.batch(rows, 4096)
    length = int(whole.inputs["attention_mask"][0].sum())
    cut = own.batch(rows[:1], length - 3)
    assert cut.inputs["input_ids"].shape[1] == length - 3
    assert cut.lost == [int((whole.inputs["labels"][0, length - 3 :] != -100).sum())]
    assert cut.lost[0] > 0
    refused = own.batch(rows, 12).refused
    assert list(refused) == [0]
    assert (refused[0].detail, refused[0].fix) == ("max_length 12 cuts into an image", "raise max_length")
    refused = own.batch(rows[1:], 5).refused
    assert refused[0].detail == "no trained token is left in it within max_length 5"
    assert refused[0].fix == "an empty answer, or max_length cuts it away"


@pytest.mark.parametrize(
    ("was", "now", "detail"),
    [
        ("{{ c.text }}", "{{ c.text[:5] }}", "the model's chat template does not write every answer as it is"),
        ("{% for m in messages %}", "{% for m in messages %}{{ raise_exception('no') if m.role == 'system' }}",
         "the chat template of the model refuses these turns: no"),
        ("{{ m.role }} : ", "{{ m.role }} {{ ':' if loop.index < 4 else '' }} ",
         "the model's chat template does not write every answer where it asks for one"),
    ],
)  # fmt: skip
def test_turns_that_a_template_does_not_take(was, now, detail):
    own = copy.copy(teaching("llava"))
    _ = own._border
    own.asking = copy.copy(own.asking)
    own.asking.parts = copy.copy(own.parts)
    processor = copy.copy(own.parts.processor)
    assert was in processor.chat_template
    processor.chat_template = processor.chat_template.replace(was, now)
    object.__setattr__(own.asking.parts, "processor", processor)
    system = [Turn("system", "is")] * ("system" in now)
    with pytest.raises(DataError) as caught:
        own.row([*system, *turns("two")], images("two"))
    assert caught.value.what.removeprefix("template: ") == detail


def test_a_chat_format_that_answers_elsewhere():
    model, processor = families.make("llava")
    processor.chat_template = processor.chat_template.replace("assistant : {% endif %}", "assistant : so {% endif %}")
    vlm = WholeVLM(model, processor)
    with pytest.raises(CheckError) as caught:
        Teaching(vlm._parts, vlm.llm.chat)
    told = "the chat template of a llava model asks with 'user : x assistant : so ', and writes an answer behind "
    assert caught.value.what == told + "'user : x assistant : '"
    assert caught.value.fix == "a model whose template answers where it asks"


def test_a_row_that_the_processor_refuses():
    """It alone is told of, not those beside it."""
    own = teaching("qwen2_5_vl")
    thin = own.row(turns("one"), [picture(900, 4)])
    refused = own.batch([own.row(turns(name), images(name)) for name in ("one", "none")] + [thin], 4096).refused
    assert list(refused) == [2]
    assert refused[2].reason == "other"
    assert refused[2].detail.startswith("the model's processor refuses it: absolute aspect ratio")


def test_an_idle_row_is_whole_and_may_have_nothing_to_learn():
    own = teaching("llava")
    idle = replace(own.row([Turn("user", f"{MARK}\nx"), Turn("assistant", "x", 0.0)], images("one")), idle=True)
    taught = own.batch([own.row(turns("none"), []), idle], 12)
    assert not taught.refused
    assert (taught.inputs["input_ids"][1] == own.parts.image_id).sum() == 16
    assert (taught.inputs["labels"][1] == -100).all()
    assert (taught.inputs["labels"][0, 12:] == -100).all()
