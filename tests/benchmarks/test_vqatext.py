"""What VQA-style scorers make of an answer; each row is a rule of one of the four."""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from mmalign.benchmarks import vizwiz, vqatext
from mmalign.benchmarks.vqav2 import llava, lmms_eval, official


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


Is = Callable[[str], bool]


def ascii_digit(text: str) -> bool:
    """What Python 2 takes for a digit, under which the VQA evaluation runs."""
    return text != "" and text in "0123456789"


def any_digit(text: str) -> bool:
    """What Python 3 takes for one."""
    return text.isdecimal()


def slow_marks(text: str, digit: Is) -> str:
    """Rule a: each of the 21 marks goes where the original has it beside a blank, or has a 1,000 anywhere; else it
    becomes a blank."""
    triples = zip(text, text[1:], text[2:], strict=False)
    thousands = any(comma == "," and digit(one) and digit(other) for one, comma, other in triples)
    out = ""
    for character in text:
        if character in MARKS:
            beside = character + " " in text or " " + character in text
            out += "" if beside or thousands else " "
        else:
            out += character
    return out


def slow_periods(text: str, digit: Is, behind: bool = False) -> str:
    """Rule b: the first 32 periods that no digit follows go; behind: nor stands before."""
    out, removed = "", 0
    for at, character in enumerate(text):
        stays = digit(text[at + 1 : at + 2]) or (behind and at > 0 and digit(text[at - 1]))
        if character == "." and not stays and removed < 32:
            removed += 1
        else:
            out += character
    return out


def slow_words(text: str, table: str = "vqa") -> str:
    """Rule c: digits for number words, then no articles, then contractions."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    words = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(vqatext.contractions(table).get(word, word) for word in words)


def slow_tokens(text: str) -> str:
    """What the M4C evaluator does first."""
    return slow_plain(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def slow_plain(text: str) -> str:
    return "".join(" " if character in "\n\t" else character for character in text).strip()


def slow_m4c(text: str) -> str:
    return slow_words(slow_periods(slow_marks(slow_tokens(text), any_digit), any_digit))


def slow_vizwiz(text: str) -> str:
    return slow_words(slow_periods(slow_marks(slow_plain(text), ascii_digit), ascii_digit), "vizwiz")


RULES: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "vqa": (
        lambda text: vqatext.vqa(vqatext.plain(text)),
        lambda text: slow_words(slow_periods(slow_marks(slow_plain(text), ascii_digit), ascii_digit)),
    ),
    "lmms-eval's vqa": (
        lambda text: vqatext.vqa3(vqatext.plain(text)),
        lambda text: slow_words(slow_periods(slow_marks(slow_plain(text), any_digit), any_digit)),
    ),
    "m4c": (vqatext.m4c, slow_m4c),
    "vizwiz": (vqatext.vizwiz, slow_vizwiz),
    "llava's vizwiz": (vizwiz.RULES["llava"][0], lambda text: slow_vizwiz(slow_m4c(text))),
    "vlmevalkit's vqa": (
        vqatext.vlmevalkit,
        lambda text: slow_words(slow_periods(slow_marks(slow_plain(text), any_digit), any_digit, behind=True)),
    ),
}
MARKS = ';/[]"{}()=+\\_-><@`,?!'
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(NAMES)}
WORDS = [
    *"a An the None ten eleven dont Im let's y'all'dve dog's somebody'd Red é İ 日本 1,000 3.5 .5 5. ٣,٤ ٣.".split(),  # noqa: SIM905
    *"arent shouldn’t don’t ma'am o'clock ' 's".split(),  # noqa: SIM905
]
PIECES = [*MARKS, *" .':*#$%&\n\t\u00a0\u2028", " ", " ", " ", "." * 31, *WORDS]
MESSY = 10_000


def messy(pieces: Sequence[str], most: int = 8) -> Iterator[str]:
    rng = random.Random(0)
    return ("".join(rng.choices(pieces, k=rng.randint(0, most))) for _ in range(MESSY))


@pytest.mark.parametrize("rule", RULES)
def test_a_form_is_its_rules_one_by_one(rule: str) -> None:
    fast, slow = RULES[rule]
    assert [text for text in messy(PIECES) if fast(text) != slow(text)] == []


def slow_official(people: Sequence[Mapping[str, Any]], text: str) -> float:
    """Section by section: nothing is normalised where all ten say the same; ten answers, each against the others."""
    answers, text = [slow_plain(one["answer"]) for one in people], slow_plain(text)
    if any(one != answers[0] for one in answers):
        answers, text = [RULES["vqa"][1](one) for one in answers], RULES["vqa"][1](text)
    values = []
    for own in range(len(answers)):
        others = [one for at, one in enumerate(answers) if at != own]
        values.append(min(1.0, sum(one == text for one in others) / 3))
    return sum(values) / len(values)


def test_the_official_score_and_llavas_are_the_definition() -> None:
    """LLaVA: the M4C form of the answer is what the official program gets."""
    rng, texts = random.Random(1), list(messy(PIECES, 3))
    for text in texts[: MESSY // 10]:
        said = [text if rng.random() < 0.7 else rng.choice(texts) for _ in range(10)]
        said = [said[0]] * 10 if rng.random() < 0.3 else said
        people = [{"answer": one, "answer_id": n} for n, one in enumerate(said)]
        asked = rng.choice([text, text.lower(), f"{text}."])
        assert official(people, asked)[0] == pytest.approx(slow_official(people, asked)), (said, asked)
        assert llava(people, asked)[0] == pytest.approx(slow_official(people, slow_m4c(asked))), (said, asked)


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
