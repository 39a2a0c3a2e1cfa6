"""Whatever stands in a row, its answers' own tokens and their ends are trained, and nothing else.

What is expected is worked out from the formats as they are written down, with tokenizers that never see a whole text.
"""

import copy
import random

import pytest
from transformers import PreTrainedTokenizerFast

from mmalign.data import MARK, Turn
from tests.llms.test_templates import TOKENS, chats, gemma, talk

assert chats  # a fixture

FULL = 5000  # conversations a template
FEW = 40
BLANKS = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", " \n "]
STRINGS = [  # what formats have between turns, of this tokenizer or of another
    "</s>", "<s>", "<|im_end|>", "<|im_start|>assistant\n", "<|eot_id|>", "<end_of_turn>\n", "<|end|>", "<|assistant|>",
    "<bos>", "<|endoftext|>", "[/INST]", "ASSISTANT:", "USER:", "<|im_", "end|>", "<imag", "<", ">", "<unk>", "<0x0A>",
]  # fmt: skip
WORDS = ["star", "The", "red.", "?", ":", "1234", "東京", "e\u0301", "\u0301", "😀", "don't", "...", "x", "0"]
FORMATS = {  # (what stands in front of an answer inside its marks, what stands behind it, whether blanks are trimmed)
    "llama3": ("", "<|eot_id|>", True), "gemma": ("", "<end_of_turn>\n", True), "gemma3": ("", "<end_of_turn>\n", True),
    "phi3": ("", "<|end|>\n", False), "chatml": ("", "<|im_end|>", False), "qwen2": ("", "<|im_end|>", False),
    "smollm2": ("", "<|im_end|>", False),
    "mistral": (" ", "</s>", False), "vicuna_v1": (" ", "</s>", False),
    "phi2": (" ", "<|endoftext|>", False), "plain": ("", "\n", False),
}  # fmt: skip


def text(draw):
    kinds = [BLANKS, BLANKS, STRINGS, WORDS, WORDS]
    parts = [draw.choice(draw.choice(kinds)) for _ in range(draw.randrange(1, 6))]
    if draw.random() < 0.3:
        parts.append(chr(draw.choice([draw.randrange(1, 0xD800), draw.randrange(0xE000, 0x110000)])))
    draw.shuffle(parts)
    return "".join(parts)


def conversation(draw, template):
    """(turns, images)."""
    turns = talk(*(text(draw) for _ in range(2 * draw.randrange(1, 3))))
    turns = [Turn(t.role, t.text, draw.choice([1.0, 1.0, 0.5, 0.0]) if t.role == "assistant" else 1.0) for t in turns]
    marked = template == "plain" or draw.random() < 0.3
    if marked:
        turns[0] = Turn("user", f"{MARK}\n{turns[0].text}")
    if draw.random() < 0.3:
        turns.insert(0, Turn("system", text(draw)))
    return turns, [2] if marked else []


def trained(whole, bare, template, turns):
    """[(id, weight)] of what is trained, by the format: a piece alone, no string in it for a special token."""
    front, behind, trims = FORMATS[template]
    expected = []
    answers = [turn for turn in turns if turn.role == "assistant"]
    for number, turn in enumerate(answers):
        if turn.weight:
            own = front + (turn.text.strip() if trims else turn.text)
            behind_a_token = template == "phi3" or (template == "plain" and number == 0)
            spells = whole if behind_a_token else bare
            ids = spells(own, add_special_tokens=False, split_special_tokens=True)["input_ids"] if own else []
            end = whole if behind != "\n" else bare
            ids = [*ids, *end(behind, add_special_tokens=False)["input_ids"]]
            expected += [(i, turn.weight) for i in ids]
    return expected


def mismatches(chat, template, shape, rows, seed):
    """[turns] of the rows where something else is trained than the answers, or the prompt is no beginning."""
    whole = bare = copy.deepcopy(chat.tokenizer)
    if shape == "llama2":  # without the blank that it puts in front of a text
        begin, end, more = TOKENS[template]
        bare = PreTrainedTokenizerFast(tokenizer_object=gemma(), bos_token=begin, eos_token=end, unk_token=None)
        bare.add_special_tokens({"additional_special_tokens": more})
    wrong = []
    draw = random.Random(seed)
    for _ in range(rows):
        turns, images = conversation(draw, template)
        encoded = chat.encode(turns, images)
        got = [(i, w) for i, w in zip(encoded.ids, encoded.weights, strict=True) if w]
        prompt = chat.prompt(turns[:-1], images)
        if got != trained(whole, bare, template, turns) or encoded.ids[: len(prompt)] != prompt:
            wrong.append(turns)
    return wrong


@pytest.mark.parametrize("template", TOKENS)
def test_the_answers_own_tokens_and_their_end_are_trained(chats, request, template):
    assert mismatches(chats(template), template, request.node.callspec.params["chats"], FEW, seed=1) == []


@pytest.mark.slow
@pytest.mark.parametrize("template", TOKENS)
def test_of_many_conversations(chats, request, template):
    assert mismatches(chats(template), template, request.node.callspec.params["chats"], FULL, seed=2) == []
