"""What VQA-style scorers make of an answer; each row is a rule of one of the four."""

import itertools
import random

import pytest

from mmalign.benchmarks import vqatext
from mmalign.benchmarks.vqav2 import lmms_eval, official


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("red/blue", "red blue"),  # punctuation becomes a blank
        ("red, blue", "red blue"),  # but is deleted beside a blank
        ("9,876 red/blue", "9876 redblue"),  # and everywhere after one digit-comma-digit
        ("3.", "3"),
        ("3.14 .5", "3.14 .5"),
        (". " * 40, ". . . . . . . ."),  # only 32 periods go
        ("None of the ten", "0 of 10"),
        ("The Eleven tens", "eleven tens"),
        ("dont im", "don't im"),
        ("Somebody'd", "somebodyd"),  # a slip of the table, kept
        ("an", ""),
    ],
)
def test_the_vqa_form(text: str, normal: str) -> None:
    assert vqatext.vqa(vqatext.plain(text)) == normal


def slow_marks(text: str) -> str:
    """Rule a: each of the 21 marks goes where the original has it beside a blank, or has a 1,000 anywhere; else it
    becomes a blank."""
    triples = zip(text, text[1:], text[2:], strict=False)
    thousands = any(comma == "," and one in DIGITS and other in DIGITS for one, comma, other in triples)
    out = ""
    for character in text:
        if character in MARKS:
            beside = character + " " in text or " " + character in text
            out += "" if beside or thousands else " "
        else:
            out += character
    return out


def slow_periods(text: str) -> str:
    """Rule b: the first 32 periods that no digit follows go."""
    out, removed = "", 0
    for at, character in enumerate(text):
        if character == "." and text[at + 1 : at + 2] not in tuple(DIGITS) and removed < 32:
            removed += 1
        else:
            out += character
    return out


def slow_words(text: str) -> str:
    """Rule c: digits for number words, then no articles, then contractions."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    words = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(vqatext.contractions("vqa").get(word, word) for word in words)


DIGITS, MARKS = "0123456789", ';/[]"{}()=+\\_-><@`,?!'
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(NAMES)}
WORDS = "a An the None ten eleven dont Im let's y'all'dve dog's somebody'd Red é İ 日本 1,000 3.5 .5 5.".split()  # noqa: SIM905
PIECES = [*MARKS, *" .':*#$%&\n\t", " ", " ", " ", "." * 31, *WORDS]


def test_the_forms_are_the_rules_one_by_one() -> None:
    rng = random.Random(0)
    for _ in range(4000):
        text = vqatext.plain("".join(rng.choices(PIECES, k=rng.randint(0, 8))))
        assert vqatext.vqa(text) == slow_words(slow_periods(slow_marks(text))), text
        tokens = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
        assert vqatext.m4c(text) == slow_words(slow_periods(slow_marks(tokens))), text


def test_the_other_forms_differ_where_they_should() -> None:
    assert vqatext.m4c("red,blue? The dog's") == "redblue dog 's"
    assert vqatext.m4c("let's") == "let 's"
    assert vqatext.vlmevalkit("3. yes.") == "3. yes"  # a period behind a digit stays
    assert vqatext.vizwiz("dont") == "don\N{RIGHT SINGLE QUOTATION MARK}t"
    assert vqatext.vizwiz("arent") == "aren't"


def slow_consensus(text: str, answers: list[dict[str, str]]) -> float:
    """The definition as loops: for each answer, the others that are not equal to it as whole objects."""
    total = 0.0
    for own in answers:
        others = [other for other in answers if other != own]
        total += min(1.0, sum(other["answer"] == text for other in others) / 3)
    return total / len(answers)


@pytest.mark.parametrize("size", [1, 2, 9, 10])
@pytest.mark.parametrize("ids", ["distinct", "equal", "some"])
def test_consensus_is_the_definition(size: int, ids: str) -> None:
    for right, other in itertools.product(range(size + 1), range(2)):
        texts = ["yes"] * right + ["no"] * (size - right)
        names = {"distinct": range(size), "equal": [0] * size, "some": [n // 2 for n in range(size)]}[ids]
        people = [{"answer": text, "answer_id": str(name)} for text, name in zip(texts, names, strict=True)]
        people = people[other:] + people[:other]
        assert official(people, "yes")[0] == pytest.approx(slow_consensus("yes", people))


def test_the_ladder_of_ten_answers() -> None:
    values = [vqatext.consensus("a", ["a"] * k + ["b"] * (10 - k)) for k in range(6)]
    assert values == pytest.approx([0, 0.3, 0.6, 0.9, 1, 1])


def test_nothing_is_normalised_where_all_ten_agree() -> None:
    people = [{"answer": "Yes ", "answer_id": n} for n in range(10)]
    assert official(people, "yes") == (0.0, "yes")
    assert official(people, "Yes\n") == (1.0, "Yes")
    assert lmms_eval(people, "YES!") == (1.0, "yes")
