"""What VQA-style scorers make of an answer; each row is a rule of one of the four."""

import itertools

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
