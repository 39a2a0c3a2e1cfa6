"""What people's rows say is what is trained: through `data check`, `data show`, and a training stage."""

import json

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.conftest import TINY, command
from tests.data.samples import images, jsonl
from tests.llms.test_templates import TEMPLATES, TOKENS, bytelevel

ALL = list(TOKENS)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A shelf of language models, one for each template, on a byte-level tokenizer that has its special tokens."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "llms").mkdir()
    for template, (begin, end, more) in TOKENS.items():
        words = PreTrainedTokenizerFast(tokenizer_object=bytelevel(), bos_token=begin, eos_token=end, unk_token=None)
        tokens = [AddedToken(token, rstrip=template == "phi3", normalized=False, special=True) for token in more]
        words.add_special_tokens({"additional_special_tokens": tokens})
        words.save_pretrained(folder / template)
        args = {"checkpoint": str(folder / template), "template": str(TEMPLATES / f"{template}.jinja")}
        card = {"summary": "x", "target": "mmalign.llms.causal.CausalLM", "args": args}
        (folder / "llms" / f"tiny-{template}.yaml").write_text(json.dumps(card))
    return folder


@pytest.fixture
def say(here, shelf, monkeypatch, mmalign):
    """say(rows, verb, words ...): what a verb of `data` says of rows; of `show` and with --json, what it gives."""
    monkeypatch.setenv("MMALIGN_REGISTRY", str(shelf))

    def run(rows, verb, *words):
        place = jsonl(here / "rows.jsonl", rows)
        return mmalign("data", verb, place, *words)

    return run


def row(*turns, **beside):
    """Turns as (who says it, what, flags)."""
    talk = [{"from": who, "value": text, **(more[0] if more else {})} for who, text, *more in turns]
    return {"id": "a", "conversations": talk, **beside}


PAIR = (("human", "What is red?"), ("gpt", "The star."))


def shown(said, state):
    """The texts of all runs of a state, of each record."""
    return [
        ["".join(part["tokens"]) for part in record["parts"] if part["state"] == state]
        for record in json.loads(said.out)
    ]


@pytest.mark.parametrize(
    "flag",
    [{"loss": False}, {"loss_mask": 0}, {"loss_weight": 0}, {"weight": 0}, {"train": False}, {"masked": True}],
)
def test_an_answer_that_is_flagged_is_not_trained(say, flag):
    rows = [row(*PAIR, ("human", "And?"), ("gpt", "bad", flag))]
    assert shown(say(rows, "show", "--llm", "tiny-chatml", "--rows", "0", "--json"), "trained") == [
        ["The star.<|im_end|>"]
    ]
    assert say(rows, "check", "--llm", "tiny-chatml").code == 0


def test_a_weight_between_is_one(say):
    said = say([row(*PAIR, ("human", "And?"), ("gpt", "so so", {"weight": 0.25}))], "show", "--rows", "0")
    assert "weights of the answers: 1, 0.25" in said.out


def test_flags_that_contradict_each_other_are_refused(say):
    said = say([row(PAIR[0], ("gpt", "x", {"loss": True, "weight": 0}))], "check", "--json")
    assert said.code == 1
    assert json.loads(said.out)["reasons"] == {"flags": 1}


def test_a_rows_own_system_turn_takes_the_place_of_the_default(say):
    rows = [row(*PAIR, system="Answer in French."), row(*PAIR)]
    own, default = shown(say(rows, "show", "--llm", "tiny-qwen2", "--rows", "0:2", "--json"), "read")
    assert "<|im_start|>system\nAnswer in French.<|im_end|>" in own[0]
    assert "You are a helpful assistant." not in own[0]
    assert "You are a helpful assistant." in default[0]


@pytest.mark.parametrize("key", ["tools", "tool_calls", "reasoning_content", "rejected"])
def test_keys_that_change_what_is_learned_are_refused(say, key):
    said = say([row(*PAIR, **{key: [{"a": 1}]}), row(PAIR[0], ("gpt", "x", {key: "y"}))], "check", "--json")
    listed = json.loads(said.out)["listed"]["keys"]
    assert said.code == 1
    assert f"the row has {key}, which is not read" in listed[0]["what"]
    assert f"the turn has {key}, which is not read" in listed[1]["what"]


def test_keys_that_are_not_read_are_named_and_counted(say):
    said = say([row(*PAIR, source="x"), row(*PAIR, source="y", width=3), row(*PAIR, source=None)], "check")
    assert said.code == 0
    assert "note: 2 rows with the key 'source', which is not read, the first: a@0" in said.out
    assert "note: 1 rows with the key 'width'" in said.out


@pytest.mark.parametrize("template", [template for template in ALL if template != "plain"])
def test_a_system_turn_is_said_in_every_template(say, template):
    rows = [row(("system", "Be brief."), *PAIR)]
    assert say(rows, "check", "--llm", f"tiny-{template}").code == 0
    (read,) = shown(say(rows, "show", "--llm", f"tiny-{template}", "--rows", "0", "--json"), "read")
    assert "Be brief." in read[0]


def test_what_a_template_refuses_or_leaves_out_is_told(say, shelf):
    card = json.loads((shelf / "llms" / "tiny-chatml.yaml").read_text())
    card["args"]["template"] = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% generation %}{{ messages[-1].content }}{% endgeneration %}"
    )
    (shelf / "llms" / "tiny-strict.yaml").write_text(json.dumps(card))
    rows = [row(("system", "Be brief."), *PAIR), row(*PAIR)]
    said = say(rows, "check", "--llm", "tiny-strict", "--json")
    told = json.loads(said.out)
    assert said.code == 1
    assert told["reasons"] == {"template": 1}
    assert "refuses these turns: no system" in told["listed"]["template"][0]["what"]
    assert told["notes"]["rows where the chat template leaves out what the user says"] == 1


@pytest.mark.parametrize("answer", ["\nStars.", " Stars.", "Stars. \n", "\n\nStars.\n"])
@pytest.mark.parametrize("template", ALL)
def test_an_answers_own_tokens_and_its_end_are_trained(say, template, answer):
    rows = [{**row(("human", "<image>\nWhat?"), ("gpt", answer)), "image": "0.jpg"}]
    said = say(rows, "show", "--llm", f"tiny-{template}", "--rows", "0", "--json")
    trims = template in ("llama3", "gemma", "gemma3")
    front = " " if template in ("mistral", "vicuna_v1", "phi2") else ""
    end = {"llama3": "<|eot_id|>", "phi3": "<|end|>", "plain": "\n", "chatml": "<|im_end|>", "phi2": "<|endoftext|>"}
    end |= dict.fromkeys(("gemma", "gemma3"), "<end_of_turn>\n") | dict.fromkeys(("mistral", "vicuna_v1"), "</s>")
    end |= dict.fromkeys(("qwen2", "smollm2"), "<|im_end|>")
    (trained,) = shown(said, "trained")
    assert "".join(trained) == front + (answer.strip() if trims else answer) + end[template]


@pytest.mark.parametrize("template", ALL)
def test_strings_of_special_tokens_stay_text(say, template):
    """As many tokens of the format's own as without them, and the text is read as it stands."""
    strings = [token for token in (*TOKENS[template][:2], *TOKENS[template][2]) if token]
    texts = [f"Is {token} a token?" for token in strings]
    rows = [row(("human", text), ("gpt", text), ("human", "x"), ("gpt", "y")) for text in ("plain", *texts)]
    said = say(rows, "show", "--llm", f"tiny-{template}", "--rows", f"0:{len(rows)}", "--json")
    plain, *others = (
        sum(token in strings for part in record["parts"] for token in part["tokens"]) for record in json.loads(said.out)
    )
    assert set(others) == {plain}
    for text, trained in zip(texts, shown(said, "trained")[1:], strict=True):
        assert text in "".join(trained)


LONG = row(("human", "what is red?"), ("gpt", "the star is red. " * 24))  # 120 words


def test_cut_answers_are_counted_before_training(say):
    said = say([LONG, row(*PAIR)], "check", "--llm", "toy-llama", "--max-length", "100")
    assert said.code == 0
    assert "note: 1 rows whose answers are cut at max_length 100, the first: a@0" in said.out
    assert "note: 28 trained tokens that are cut away, the first: a@0" in said.out
    said = say([LONG], "show", "--llm", "toy-llama", "--max-length", "100", "--rows", "0")
    assert "128 tokens: 93 trained, 7 read, 0 image, 28 cut away, 28 of them trained" in said.out
    said = say([LONG], "check", "--llm", "toy-llama", "--max-length", "5", "--json")
    assert json.loads(said.out)["reasons"] == {"cut": 1}


def test_max_length_needs_a_model(say):
    said = say([LONG], "check", "--max-length", "100")
    assert (said.code, said.err.count("max_length counts a model's tokens")) == (2, 1)
    assert "--llm NAME" in said.err


MARKS = ["<image_1>", "<Image>", "<ImageHere>", "<img>images/4.jpg</img>"]


def test_marks_of_other_models_are_noted_with_what_to_do(say, here):
    images(here, 1)
    rows = [row(("human", f"{mark} What?"), ("gpt", "A star."), image="0.jpg") for mark in (*MARKS, MARKS[0])]
    said = say(rows, "check")
    assert said.code == 0
    counts = {"<image_1>": 2, "<Image>": 1, "<ImageHere>": 1, "<img>": 1}
    for mark, count in counts.items():
        note = f"note: {count} rows with {mark} in a text, where it stays text: the mark of an image is <image>"
        assert note in " ".join(said.out.split())


def test_a_run_says_what_was_cut_and_left_out(here):
    images(here, 1)
    long = ("gpt", "the star is red. " * 24)
    rows = [row(("human", "<image>\nwhat?"), long, image="0.jpg")] * 3
    rows += [
        row(
            ("human", "<image>\nwhat?"),
            ("gpt", "bad", {"loss": False}),
            ("human", "and?"),
            ("gpt", "red"),
            image="0.jpg",
        )
    ]
    rows += [row(("human", "<image>\nwhat?"), ("gpt", "red"), tools="x", image="0.jpg")] * 4
    jsonl(here / "rows.jsonl", rows)
    data = "{card: conversations, args: {path: ./rows.jsonl}}"
    (here / "tiny.yaml").write_text(TINY)
    off = [f"stages.{name}=~" for name in ("label", "align", "score")]
    words = [f"stages.tune.data={data}", "stages.tune.reads=~", "stages.tune.max_length=100", "stages.tune.max_bad=1"]
    words += ["stages.tune.steps=2", "stages.tune.trains=[adapter]", "stages.report=~"]
    said = command("run", "tiny.yaml", *off, *words, cwd=here)
    assert said.code == 0, said.err
    (about,) = (json.loads(place.read_text()) for place in here.glob("runs/train-*/stage.json"))
    assert about["bad_reasons"] == {"keys": 4}
    lost = about["cut"]["tokens"] // 6
    assert about["cut"] == {"samples": 6, "tokens": 6 * lost, "of": 16}
    cut = f"6 of 16 samples were cut at max_length 100: {6 * lost:,} trained tokens lost"
    left = "4 unusable samples were left out (keys 4)"
    assert cut in said.err
    last = " ".join(said.out.split())
    assert f"tune: {cut}; raise max_length" in last
    assert f"tune: {left}" in last


def test_what_a_model_makes_of_a_row_comes_with_what_to_try(say):
    said = say([row(*PAIR)], "check", "--llm", "tiny-chatml", "--max-length", "3", "--json")
    assert said.code == 1
    assert json.loads(said.out)["listed"]["cut"][0]["try"] == "an empty answer, or max_length cuts it away"
    shown_ = json.loads(
        say([row(*PAIR)], "show", "--llm", "tiny-chatml", "--rows", "0", "--max-length", "3", "--json").out
    )
    assert shown_[0]["cannot"] == "cut: no trained token is left in it within max_length 3"
    said = say([row(*PAIR)], "show", "--llm", "tiny-chatml", "--rows", "0", "--max-length", "3")
    assert "cannot be used: cut: no trained token is left in it within max_length 3" in said.out
    fits = say([row(*PAIR)], "show", "--llm", "tiny-chatml", "--rows", "0", "--max-length", "300", "--json")
    assert json.loads(fits.out)[0]["cannot"] == ""
