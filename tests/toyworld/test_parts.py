"""The shipped parts: what parts.py builds, tokenizers that lose nothing, and answers marked exactly."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer

from mmalign.toyworld import data, language, parts

SHIPPED = Path(parts.__file__).parent
ELSEWHERE = {"transformers_version", "dtype", "_name_or_path"}  # not of the configuration itself


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    parts.write(folder)
    return folder


@pytest.mark.parametrize("part", ["clip", "llama", "llama-deep"])
def test_shipped_configurations_are_what_parts_builds(built: Path, part: str):
    ours, theirs = (AutoConfig.from_pretrained(folder / part).to_dict() for folder in (built, SHIPPED))
    assert {k: v for k, v in ours.items() if k not in ELSEWHERE} == {
        k: v for k, v in theirs.items() if k not in ELSEWHERE
    }


@pytest.mark.parametrize("part", ["clip", "llama", "llama-deep"])
def test_shipped_tokenizers_are_what_parts_builds(built: Path, part: str):
    ours, theirs = (json.loads((folder / part / "tokenizer.json").read_text()) for folder in (built, SHIPPED))
    assert ours == theirs
    ours, theirs = (AutoTokenizer.from_pretrained(folder / part) for folder in (built, SHIPPED))
    assert ours.chat_template == theirs.chat_template
    assert ours.special_tokens_map == theirs.special_tokens_map


def test_shipped_processor_is_what_parts_builds(built: Path):
    ours, theirs = (AutoImageProcessor.from_pretrained(folder / "clip").to_dict() for folder in (built, SHIPPED))
    assert ours == theirs


@pytest.mark.parametrize("part", ["clip", "llama"])
def test_shipped_weights_are_complete_and_small(part: str):
    _, info = AutoModel.from_pretrained(SHIPPED / part, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert (SHIPPED / part / "model.safetensors").stat().st_size < 2e6


@pytest.mark.parametrize("part", ["clip", "llama"])
def test_tokenizers_lose_nothing(part: str):
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / part)
    texts = [turn.text.replace("<image> ", "") for record in data.Texts(200) for turn in record.turns]
    texts += [record.caption for record in data.Captions(100)]
    for text in texts:
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_some_words_have_two_pieces():
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "llama")
    pieces = {word: tokenizer.tokenize(word) for word in language.word_list("full")}
    assert {word: tuple(tokens) for word, tokens in pieces.items() if len(tokens) > 1} == parts.SPLIT


def chat(messages: list[dict[str, object]], **options: bool) -> tuple[list[str], str]:
    """The tokens of a conversation, and the text of the answers in it."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "llama")
    encoding = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **options)
    tokens = tokenizer.convert_ids_to_tokens(encoding["input_ids"])
    answers = [token for token, inside in zip(tokens, encoding["assistant_masks"], strict=True) if inside]
    return tokens, " ".join(answers)


def test_answers_and_their_ends_are_marked():
    tokens, answers = chat(
        [
            {"role": "system", "content": "describe the image."},
            {"role": "user", "content": "<image> is there a star in the image?"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "where is it?"},
            {"role": "assistant", "content": "top left"},
        ]
    )
    assert answers == "yes <eos> top left <eos>"
    assert tokens[:3] == ["<bos>", "<system>", "describe"]
    assert tokens.count("<image>") == 1


def test_generation_prompt_ends_where_the_answer_begins():
    tokens, answers = chat([{"role": "user", "content": "tell me something."}], add_generation_prompt=True)
    assert tokens[-2:] == [".", "<assistant>"]
    assert not answers


def test_content_may_come_in_parts():
    content = [{"type": "image"}, {"type": "text", "text": " is there a star in the image?"}]
    text = "<image> is there a star in the image?"
    assert chat([{"role": "user", "content": content}]) == chat([{"role": "user", "content": text}])


def test_clip_reads_texts_and_images():
    processor = AutoProcessor.from_pretrained(SHIPPED / "clip")
    inputs = processor(
        text=["a red star", "star"], images=[data.AltTexts(1).image(0)], return_tensors="pt", padding=True
    )
    assert tuple(inputs["pixel_values"].shape) == (1, 3, 72, 72)
    model = AutoModel.from_pretrained(SHIPPED / "clip").float()
    pooled = model.text_model(inputs["input_ids"], inputs["attention_mask"])
    ends = inputs["input_ids"].argmax(-1) * 0 + (inputs["attention_mask"].sum(-1) - 1)
    assert (pooled.pooler_output == pooled.last_hidden_state[[0, 1], ends]).all()  # at <eos>, padded or not
