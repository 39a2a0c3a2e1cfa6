"""GQA: compositional questions about scene graphs, one answer each (arXiv 1902.09506)."""

import os
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from mmalign.benchmarks import Question, Score, means, reading
from mmalign.benchmarks.answers import GapRule, JoinedAnswers, few
from mmalign.benchmarks.filed import SHORT, FiledBenchmark, no_answers
from mmalign.benchmarks.layouts import Layout
from mmalign.benchmarks.pictures import vlmevalkit_rows
from mmalign.benchmarks.reading import Row
from mmalign.errors import DataError
from mmalign.io import files

COMMON = ("color", "material", "shape")  # what a question about something in common may be answered with
NOT_A_STEP = ("exist", "query: name", "choose name")


class GQA(FiledBenchmark):
    """tier: testdev_balanced, val_balanced, val_all, ...; None: testdev_balanced if there, else the one that is.

    consistency: score also the questions a right answer entails; all of the tier's questions must then be answered.
    """

    protocols = ("official", "lmms-eval", "vlmevalkit")
    picture_folders = ("data/images", "images")
    meanings = {
        "accuracy": ("share of answers that are the right word", "percent", "higher"),
        "exact_match": ("the same, as lmms-eval gives it", "fraction", "higher"),
        "binary": ("accuracy on questions of yes or no, or of two choices", "percent", "higher"),
        "open": ("accuracy on open questions", "percent", "higher"),
        "validity": ("share of answers of the kind that is asked for, a color for a color", "percent", "higher"),
        "plausibility": ("share of answers that occur of such objects", "percent", "higher"),
        "distribution": ("distance of the answers' distribution from the true one (chi-square)", "none", "lower"),
        "consistency": ("share of right answers among the questions a right answer entails", "percent", "higher"),
        "*/*": ("accuracy on questions of one structure, topic, number of steps or of words", "percent", "higher"),
    }
    official_gaps = GapRule(unknown="skip")

    def __init__(
        self, data: str, tier: str | None = None, consistency: bool = False, images: str | None = None
    ) -> None:
        self.tier, self.consistency = tier, consistency
        super().__init__(data, images)
        tiers = max((self.files.paths.get(role, []) for role in ("llava", "questions")), key=len)
        if len(tiers) > 1 and self.files.layout != "parquet":
            raise DataError(f"{len(tiers)} tiers of GQA: {few(tiers)}", at=data, fix="say which: tier=val_balanced")
        if consistency and self.files.layout in ("parquet", "TSV"):
            raise DataError(f"the {self.files} does not say what a question entails", fix="use the official files")

    def layouts(self) -> Sequence[Layout]:
        return [one for tier in ([self.tier] if self.tier else ["testdev_balanced", "*"]) for one in _layouts(tier)]

    @cached_property
    def question_list(self) -> list[Question]:
        if self.files.has("llava"):
            source = self.files.one("llava")
            with reading.shape(source):
                lines = reading.json_lines(source)
                return [Question(str(row["question_id"]), row["text"], row["image"]) for row in lines]
        with reading.shape(self.files.one("questions")):
            rows = [(qid, row) for qid, row in self.rows.items() if self.consistency or row["isBalanced"]]
            return [Question(qid, f"{row['question']}\n{SHORT}", self._picture(row)) for qid, row in rows]

    @cached_property
    def rows(self) -> dict[str, Row]:
        """{question id: what the file says of it}; the parquet and TSV layouts hold balanced questions only."""
        source = self.files.one("questions")
        with reading.shape(source):
            if self.files.layout == "TSV":
                rows = vlmevalkit_rows(source)
                return {row.get("question_id") or row["index"]: {**row, "isBalanced": True} for row in rows}
            if self.files.layout == "parquet":
                return {str(row["id"]): row for row in reading.parquet(self.files.paths["questions"])}
            return dict(reading.json_file(source))

    @cached_property
    def _parquet_images(self) -> dict[str, Any]:
        return {str(row["id"]): row["image"] for row in reading.parquet(self.files.paths["images"])}

    def _picture(self, row: Row) -> Any:
        if self.files.layout == "TSV":
            return row["image"]
        name = str(row["imageId"])
        return self._parquet_images.get(name) if self.files.has("images") else f"{name}.jpg"

    @cached_property
    def choices(self) -> dict[str, dict[str, list[str]]]:
        """{question id: its valid and plausible answers}; empty where the tier has no such file."""
        return dict(reading.json_file(self._choices)) if self._choices else {}

    @property
    def _choices(self) -> str:
        """The choices file of the questions' own tier; empty where there is none."""
        own = f"{os.path.basename(self.files.one('questions')).split('_')[0]}_choices.json"
        return next((path for path in self.files.paths.get("choices", []) if os.path.basename(path) == own), "")

    @cached_property
    def truth(self) -> dict[str, Row]:
        """The questions that must be answered: the balanced ones; for consistency, all."""
        rows = self.rows if self.files.has("questions") else {}
        rows = {qid: row for qid, row in rows.items() if self.consistency or row["isBalanced"]}
        if not rows or not all("answer" in row for row in rows.values()):
            raise no_answers("GQA", self.files, "EvalAI")
        return rows

    def right(self, qid: str) -> str:
        return str(self.truth[qid]["answer"])

    def score_joined(self, joined: JoinedAnswers, protocol: str) -> Score:
        """Accuracy by exact match, in percent, with the official sub-scores."""
        return self._official(joined) if protocol == "official" else self._peer(joined, protocol)

    def _official(self, joined: JoinedAnswers) -> Score:
        predictions = {qid: converted(text) for qid, text in joined.texts.items()}
        rows = {qid: self.truth[qid] for qid in predictions if self.truth[qid]["isBalanced"]}
        items = {qid: 100.0 * (predictions[qid] == row["answer"]) for qid, row in rows.items()}
        metrics = {"accuracy": fmean(items.values()), **self._parts(items), **self._validity(predictions, rows)}
        if all("groups" in row for row in rows.values()):
            answers = ((row["groups"]["global"], row["answer"], predictions[qid]) for qid, row in rows.items())
            metrics["distribution"] = distribution(answers)
        if self.consistency:
            metrics["consistency"] = self._consistency(predictions, items)
        if not self.choices:
            joined.notes.append("validity and plausibility are 0: this tier has no choices file")
        counts = joined.counts | means.sizes(items, self._kinds)  # the official tool prints them too
        return Score(metrics, "accuracy", items, counts, joined.notes, taken=predictions)

    def _peer(self, joined: JoinedAnswers, protocol: str) -> Score:
        """lmms-eval gives a fraction, VLMEvalKit a percentage; neither has sub-scores."""
        metric, scale, matches = PEERS[protocol]
        items = {qid: scale * matches(text, self.truth[qid]["answer"]) for qid, text in joined.texts.items()}
        return Score({metric: fmean(items.values())}, metric, items, joined.counts, joined.notes)

    def _parts(self, items: Mapping[str, float]) -> dict[str, float]:
        return _open_or_binary(items, self.truth) | means.over(items, self._kinds)

    def _kinds(self, qid: str) -> list[str]:
        """By structure, topic, steps of reasoning and words; a layout that does not tell them (TSV) has none."""
        row = self.truth[qid]
        if "types" not in row:
            return []
        types = [f"{kind}/{row['types'][kind]}" for kind in ("structural", "semantic")]
        return [*types, f"steps/{steps(row)}", f"words/{len(row['question'].split())}"]

    def _validity(self, predictions: Mapping[str, str], balanced: Mapping[str, Row]) -> dict[str, float]:
        """The share of answers that are among the valid, and among the plausible ones."""
        if not self.choices:
            return {"validity": 0.0, "plausibility": 0.0}
        with reading.shape(self._choices):
            valid, plausible = (
                fmean(100.0 * (predictions[qid] in self._allowed(qid, kind)) for qid in balanced)
                for kind in ("valid", "plausible")
            )
        return {"validity": valid, "plausibility": plausible}

    def _allowed(self, qid: str, kind: str) -> Sequence[str]:
        return COMMON if "Common" in self.truth[qid]["types"]["detailed"] else self.choices[qid][kind]

    def _consistency(self, predictions: Mapping[str, str], items: Mapping[str, float]) -> float:
        """Over the questions answered right that entail others: how many of those are right too; the mean."""
        shares = []
        for qid in items:
            entailed = [other for other in self.truth[qid]["entailed"] if other != qid]
            if items[qid] and entailed:
                shares.append(fmean(predictions.get(other) == self._answer(other, qid) for other in entailed))
        return 100 * fmean(shares) if shares else 0.0

    def _answer(self, qid: str, entailed_by: str) -> str:
        if qid not in self.truth:
            raise DataError(f"question {entailed_by} entails {qid}, which this tier lacks", fix="tier=val_all")
        return str(self.truth[qid]["answer"])

    def submission(self, answers: Mapping[str, str], target: Path) -> None:
        """The list GQA's server and its eval.py take."""
        rows = [{"questionId": qid, "prediction": converted(text)} for qid, text in answers.items()]
        files.write_json(target, rows)


def _layouts(tier: str) -> list[Layout]:
    stem = tier.split("_")[0]
    tsv = "GQA_TestDev_Balanced" if tier == "testdev_balanced" else f"GQA_{tier}"
    official = {"questions": f"{tier}_questions.json"}
    choices = {"choices": f"{stem}_choices.json"}
    parquet = {"questions": f"{tier}_instructions/*.parquet", "images": f"{tier}_images/*.parquet"}
    return [
        Layout("LLaVA", {"llava": f"llava_gqa_{tier}.jsonl"}, official | choices, "files"),
        Layout("official", official, choices, "files"),
        Layout("parquet", parquet, {}),
        Layout("TSV", {"questions": f"{tsv}.tsv"}, {}),
    ]


def converted(text: str) -> str:
    """LLaVA's conversion: all periods at the end go, then lower case; blanks stay."""
    return text.rstrip(".").lower()


def steps(row: Row) -> int:
    """The length of the reasoning, without the steps that only ask."""
    operations = (f"{one['operation']}: {one['argument']}" for one in row["semantic"])
    return sum(not any(word in operation for word in NOT_A_STEP) for operation in operations)


def distribution(rows: Iterable[tuple[str | None, str, str]]) -> float:
    """Chi-square of answers against gold answers in each global group, weighted by its size, / 100; lower is better.

    rows: (global group, gold answer, predicted answer).
    """
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    predicted: dict[str, Counter[str]] = defaultdict(Counter)
    for group, answer, prediction in rows:
        if group is not None:
            gold[group][answer] += 1
            predicted[group][prediction] += 1
    size = sum(counts.total() for counts in gold.values())
    total = sum(counts.total() * _chi_square(counts, predicted[group]) for group, counts in gold.items())
    return total / size / 100 if size else 0.0


def _chi_square(gold: Counter[str], predicted: Counter[str]) -> float:
    return sum((predicted[answer] - count) ** 2 / count for answer, count in gold.items())


def _open_or_binary(items: Mapping[str, float], rows: Mapping[str, Row]) -> dict[str, float]:
    """Open questions are those of structural type query, binary all others; 0 where there are none."""
    if not all("types" in rows[qid] for qid in items):
        return {}
    shares = means.over(items, lambda qid: ["open" if rows[qid]["types"]["structural"] == "query" else "binary"])
    return {"binary": 0.0, "open": 0.0} | shares


def _lmms_eval(text: str, answer: str) -> bool:
    """Equal without case and ASCII punctuation."""
    return _without_punctuation(text) == _without_punctuation(answer)


def _without_punctuation(text: str) -> str:
    return text.strip().lower().translate(str.maketrans("", "", string.punctuation))


def _vlmevalkit(text: str, answer: str) -> bool:
    return text.strip().lower() == answer.strip().lower()


# protocol: its metric, its scale, its rule
PEERS = {"lmms-eval": ("exact_match", 1.0, _lmms_eval), "vlmevalkit": ("accuracy", 100.0, _vlmevalkit)}
