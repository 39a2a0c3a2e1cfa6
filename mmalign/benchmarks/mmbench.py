"""MMBench and MMBench-CN: multiple choice, asked once for every rotation of the options (arXiv 2307.06281)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from string import ascii_uppercase
from typing import Any, Literal

from mmalign.benchmarks import Question, Score, means, reading
from mmalign.benchmarks.answers import AnswerRow, GapRule, JoinedAnswers
from mmalign.benchmarks.filed import LETTER, FiledBenchmark, no_answers
from mmalign.benchmarks.layouts import Layout
from mmalign.benchmarks.options import VERSIONS, option
from mmalign.benchmarks.pictures import vlmevalkit_rows
from mmalign.benchmarks.reading import Row
from mmalign.errors import DataError, suggest

LETTERS = "ABCD"
PASS = 1_000_000  # pass k of question i has index k * PASS + i
LETTER_CN = "请直接回答选项字母。"

# What pandas reads as an empty cell; both official tools read the file with it.
EMPTY = frozenset(
    {"", "NA", "N/A", "n/a", "<NA>", "#NA", "#N/A", "#N/A N/A", "NULL", "null", "None", "nan", "NaN", "-nan", "-NaN"}
    | {"1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"}
)
ABBREVIATIONS = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
SUBMITTED = ("index", "question", *LETTERS, "prediction", "answer", "split")


class MMBench(FiledBenchmark):
    """language: en or cn. split: dev, or test, whose answers the server keeps; None: the one that is there.

    extraction: the version of VLMEvalKit's rule that finds the letter in an answer (options.VERSIONS). "head" is the
    official one of today; nearly all published numbers are by "before-2025-08". Bare letters mean the same by all.
    all_rounds: ask each row once for every rotation of its options, and want every one right; for files that are not
    circular already.
    """

    max_new_tokens = 1024
    meanings = {
        "Overall": ("share of questions that are right in every pass (CircularEval)", "fraction", "higher"),
        "first_pass": ("share of questions that are right as they are first asked", "fraction", "higher"),
        "all_passes": ("share of passes that are right", "fraction", "higher"),
        "*": ("share of right questions of one ability", "fraction", "higher"),
    }
    joint = True  # the rounds of a question
    protocols = official_protocols = ("official", "vlmevalkit")  # VLMEvalKit is the official tool
    submits = "xlsx"
    rgb = False
    index_is_id = True
    official_gaps = GapRule(missing="skip", unknown="skip")

    def __init__(
        self,
        data: str,
        language: Literal["en", "cn"] = "en",
        split: Literal["dev", "test"] | None = None,
        extraction: str = "head",
        all_rounds: bool = False,
        images: str | None = None,
    ) -> None:
        if extraction not in VERSIONS:
            raise DataError(f"no extraction rule {extraction!r}", fix=suggest(extraction, VERSIONS))
        self.language, self.split, self.extraction, self.all_rounds = language, split, extraction, all_rounds
        super().__init__(data, images)

    @property
    def folder_names(self) -> Sequence[str]:
        return ["mmbench_cn" if self.language == "cn" else "mmbench"]

    def layouts(self) -> Sequence[Layout]:
        splits = [self.split] if self.split else ["dev", "test"]
        patterns = [one for split in splits for one in _patterns(split, self.language)]
        return [Layout(name, {"questions": pattern}, {}) for name, pattern in patterns]

    @cached_property
    def rows(self) -> dict[str, Row]:
        """{index: the row}, pass by pass; every cell a raw string."""
        source = self.files.one("questions")
        with reading.shape(source):
            if self.files.layout == "parquet":
                return {str(row["index"]): _from_parquet(row) for row in reading.parquet(self.files.paths["questions"])}
            return {str(int(row["index"])): row for row in vlmevalkit_rows(source)}

    @cached_property
    def truth(self) -> dict[str, Row]:
        if not any(row.get("answer") for row in self.rows.values()):
            raise no_answers("MMBench", self.files, "the MMBench site")
        return self.rounds

    @cached_property
    def rounds(self) -> dict[str, Row]:
        """{question id: the row as it is asked}; with `all_rounds` once for each rotation, under ids of their own."""
        if not self.all_rounds:
            return self.rows
        return {
            f"{index}/{turn}" if turn else index: rotated(row, turn)
            for index, row in self.rows.items()
            for turn in range(len(shown_options(row)))
        }

    @cached_property
    def question_list(self) -> list[Question]:
        with reading.shape(self.files.one("questions")):
            suffix = LETTER_CN if self.language == "cn" else LETTER
            return [Question(qid, f"{prompt(row)}\n{suffix}", row["image"]) for qid, row in self.rounds.items()]

    def question_id(self, row: AnswerRow) -> str:
        """LLaVA gives the rotations of a row its own id, and each a `round_id`; DataError where only one is asked."""
        turn = row.raw.get("round_id") or 0
        if turn and not self.all_rounds:
            what = f"an answer to round {turn} of question {row.id}, whose options were rotated; here they stay"
            raise DataError(what, at=row.at, fix="all_rounds=true")
        return f"{row.id}/{turn}" if turn else row.id

    def right(self, qid: str) -> str:
        row = self.truth[qid]
        return f"{row['answer']}. {row.get(row['answer'], '')}"

    def score_joined(self, joined: JoinedAnswers, protocol: str) -> Score:
        """CircularEval: a question counts when every pass of it is right; as fractions, with the first pass beside it.

        Letters are found by exact matching; what would need a judge counts as wrong and is told.
        """
        answers = joined.rows if joined.gaps == "official" else list(joined.texts.items())
        letter_of = {answer: self.letter(*answer) for answer in {*answers, *joined.texts.items()}}
        letters = {qid: letter_of[qid, text] for qid, text in joined.texts.items()}
        hits = [(qid, letter_of[qid, text] == self.truth[qid]["answer"]) for qid, text in answers]
        items = {qid: float(all(passes)) for qid, passes in _by_question(hits).items()}
        counted = [qid for qid, _ in hits if _first(qid) == qid]  # a first pass that is there twice counts twice
        joined.counts["unparsable"] = sum(not letter for letter in letters.values())
        joined.notes.append(f"option extraction: exact matching, rule {self.extraction!r} of VLMEvalKit, no judge")
        metrics = self._means(counted, items) | _passes(hits)
        times = Counter(counted)
        parts = {"": {qid: (number * items[qid], float(number)) for qid, number in times.items()}}
        return Score(metrics, "Overall", items, joined.counts, joined.notes, taken=letters, parts=parts)

    def letter(self, qid: str, text: str) -> str:
        """The option an answer means; empty: unresolved. Empty answers reach the tool as the text "nan"."""
        return option("nan" if text in EMPTY else text, options(self.truth[qid]), self.extraction) or ""

    def _means(self, counted: Sequence[str], items: Mapping[str, float]) -> dict[str, float]:
        """Overall, by the six abilities and by category: the mean over questions."""
        if not counted:
            raise DataError("no question has an answer to its first pass", fix="finish the run: every row is asked")
        values = [(qid, items[qid]) for qid in counted]
        return {"Overall": fmean(items[qid] for qid in counted), **means.over(values, self._groups)}

    def _groups(self, qid: str) -> list[str]:
        row = self.rows[qid]
        groups = [row[column] for column in ("l2-category", "category") if row.get(column)]
        return [ABBREVIATIONS.get(group, group) for group in groups]

    def submission(self, answers: Mapping[str, str], target: Path) -> None:
        """LLaVA's sheet for the MMBench site: the question, the options and the answer; empty where there is none."""
        columns = [name for name in SUBMITTED if name == "prediction" or name in next(iter(self.rows.values()))]
        cells = (_cells(index, row, columns, answers.get(index)) for index, row in self.rows.items())
        write_sheet(target, columns, cells)


def _patterns(split: str, language: str) -> list[tuple[str, str]]:
    """(layout, file) by which a split goes around."""
    tsv = f"MMBench_{split.upper()}_{language.upper()}"
    return [
        ("LLaVA", f"mmbench_{split}_cn_*.tsv" if language == "cn" else f"mmbench_{split}_[!c]*.tsv"),
        ("TSV", f"{tsv}*.tsv"),
        ("parquet", f"{language}/{split}-*.parquet"),
        ("parquet", f"{split}-*.parquet"),
    ]


def prompt(row: Row) -> str:
    """Hint, question and options."""
    hint = [] if _is_missing(row["hint"]) else [row["hint"]]
    choices = [f"{letter}. {text}" for letter, text in zip(LETTERS, shown_options(row), strict=False)]
    return "\n".join([*hint, row["question"], *choices])


def rotated(row: Row, turn: int) -> Row:
    """The row with its options rotated left `turn` times, and the answer's letter with them."""
    texts, answer = shown_options(row), row.get("answer", "")
    letters = tuple(LETTERS[: len(texts)])
    choices = dict(zip(letters, texts[turn:] + texts[:turn], strict=True))
    return {**row, **choices, "answer": letters[letters.index(answer) - turn] if answer in letters else answer}


def shown_options(row: Row) -> list[str]:
    """The options that are shown: they end before the first that is missing."""
    return list(takewhile(lambda text: not _is_missing(text), (row.get(letter, "") for letter in LETTERS)))


def _is_missing(cell: str) -> bool:
    """Missing to LLaVA: empty to pandas, or nan or none in any case."""
    return cell in EMPTY or cell.lower() in ("nan", "none")


def options(row: Row) -> dict[str, str]:
    """The options as VLMEvalKit sees them: without the empty ones."""
    return {letter: row[letter] for letter in ascii_uppercase if row.get(letter, "") not in EMPTY}


def _first(qid: str) -> str:
    """The id of a question's first pass."""
    return str(int(qid.partition("/")[0]) % PASS)


def _by_question(hits: Iterable[tuple[str, bool]]) -> dict[str, list[bool]]:
    """{question: whether each of its passes is right}. The number of passes is not that of the options: some
    four-option questions have three. Without its first pass a question does not count."""
    passes: dict[str, list[bool]] = {}
    for qid, hit in sorted(hits, key=lambda pair: pair[0] != _first(pair[0])):  # first passes first
        if qid == _first(qid):
            passes.setdefault(qid, []).append(hit)
        elif _first(qid) in passes:
            passes[_first(qid)].append(hit)
    return passes


def _passes(hits: Sequence[tuple[str, bool]]) -> dict[str, float]:
    """Accuracy over the first passes, and over all passes as if they were questions."""
    first = [hit for qid, hit in hits if qid == _first(qid)]
    return {"first_pass": fmean(first) if first else 0.0, "all_passes": fmean(hit for _, hit in hits)}


def _from_parquet(row: Row) -> Row:
    """The parquet files spell one column otherwise and hold empty cells as null or the text nan."""
    cells = {key.replace("L2-", "l2-"): cell for key, cell in row.items() if key not in ("image", "image_name")}
    return {key: "" if cell in (None, "nan") else str(cell) for key, cell in cells.items()} | {"image": row["image"]}


def _cells(index: str, row: Row, columns: Iterable[str], answer: str | None) -> list[Any]:
    """A row of the sheet; nothing where pandas would have nothing."""
    cells = {key: None if cell in EMPTY else cell for key, cell in row.items()}
    cells |= {"index": int(index), "prediction": answer or None}
    return [cells[column] for column in columns]


def write_sheet(target: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """One sheet with a header, no index column; DataError where openpyxl is not installed."""
    try:
        from openpyxl import Workbook
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError as err:
        raise DataError("writing the sheet needs openpyxl", fix="pip install mmalign[sheets]") from err
    book = Workbook()
    page = book.active
    for number, row in enumerate([columns, *rows], 1):
        for at, value in enumerate(row, 1):
            if value is not None:
                clean = ILLEGAL_CHARACTERS_RE.sub("", value) if isinstance(value, str) else value
                cell = page.cell(number, at, clean)
                cell.data_type = "s" if isinstance(value, str) else "n"  # an answer that starts with = is no formula
    target.parent.mkdir(parents=True, exist_ok=True)
    book.save(target)
