"""VizWiz-VQA: questions blind people asked about their own photographs, ten answers each (arXiv 1802.08218)."""

import ast
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from mmalign.benchmarks import Question, Score, means, reading, vqatext
from mmalign.benchmarks.answers import AnswerRow, GapRule, JoinedAnswers
from mmalign.benchmarks.filed import SHORT, FiledBenchmark, by_people, no_answers
from mmalign.benchmarks.layouts import Layout
from mmalign.benchmarks.pictures import vlmevalkit_rows
from mmalign.errors import DataError, suggest
from mmalign.io import files

UNSURE = "When the provided information is insufficient, respond with 'Unanswerable'."
SPLITS = ("val", "test", "train")  # test: no answers


class VizWiz(FiledBenchmark):
    """split: val, test or train; None: the first of them that is there. A question's id is the name of its picture."""

    protocols = ("official", "llava", "lmms-eval", "vlmevalkit")
    picture_folders = SPLITS
    meanings = {
        "overall": ("agreement with ten people: 100 where three or more say so", "percent", "higher"),
        "lmms-eval": ("the same with lmms-eval's rule for spelling", "percent", "higher"),
        "exact_match": ("the same with lmms-eval's rule, as it gives it", "fraction", "higher"),
        "answer_type/*": ("the same of the questions with one type of answer", "percent", "higher"),
        "answerability/average_precision": ("of finding the questions without an answer", "percent", "higher"),
        "answerability/f1": ("F1 of finding the questions without an answer", "percent", "higher"),
    }
    official_gaps = GapRule(unknown="skip")

    def __init__(self, data: str, split: str | None = None, images: str | None = None) -> None:
        if split is not None and split not in SPLITS:
            raise DataError(f"VizWiz has no split {split!r}", fix=suggest(split, SPLITS))
        self.split = split
        super().__init__(data, images)

    def layouts(self) -> Sequence[Layout]:
        return [one for split in ([self.split] if self.split else SPLITS) for one in _layouts(split)]

    @cached_property
    def annotations(self) -> list[dict[str, Any]]:
        """name, question, and answers where the split has them."""
        if not self.files.has("questions"):
            return []
        source = self.files.one("questions")
        with reading.shape(source):
            if self.files.layout == "TSV":
                return [_from_tsv(row) for row in vlmevalkit_rows(source)]
            if self.files.layout == "parquet":
                return [_from_parquet(row) for row in reading.parquet(self.files.paths["questions"])]
            return [{**row, "name": _text(row["image"])} for row in reading.json_file(source)]

    @cached_property
    def _llava(self) -> list[dict[str, Any]]:
        if not self.files.has("llava"):
            return []
        rows = reading.json_lines(self.files.one("llava"))
        with reading.shape(self.files.one("llava")):
            return [{**row, "image": _text(row["image"])} for row in rows]

    @cached_property
    def question_list(self) -> list[Question]:
        with reading.shape(self.files.one("llava" if self._llava else "questions")):
            if self._llava:
                return [Question(row["image"], row["text"], row["image"]) for row in self._llava]
            return [Question(row["name"], _prompt(row["question"]), row["image"]) for row in self.annotations]

    @cached_property
    def truth(self) -> dict[str, list[str]]:
        """{question id: the answers of ten people, as they wrote them}."""
        answered = [row for row in self.annotations if row.get("answers")]
        if not answered:
            raise no_answers("VizWiz", self.files, "EvalAI (challenge 2185)")
        return {row["name"]: [_answer_text(answer) for answer in row["answers"]] for row in answered}

    @cached_property
    def _rows(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.annotations}

    @cached_property
    def _names(self) -> dict[str, str]:
        """{LLaVA's running number: picture}: from its file, else the place in the official one."""
        if self._llava:
            return {str(row["question_id"]): row["image"] for row in self._llava}
        return {str(number): row["name"] for number, row in enumerate(self.annotations)}

    def question_id(self, row: AnswerRow) -> str:
        return row.id if row.id in self._rows else self._names.get(row.id, row.id)

    def right(self, qid: str) -> str:
        return by_people(self.truth[qid])

    def score_joined(self, joined: JoinedAnswers, protocol: str) -> Score:
        """Consensus with ten people, in percent: the answer normalised, theirs raw.

        Most published val numbers follow lmms-eval instead, so its value stands next to the official one.
        """
        normalise, normalise_people = RULES[protocol]
        predictions = {qid: normalise(text) for qid, text in joined.texts.items()}
        items = {qid: 100 * self._value(qid, text, normalise_people) for qid, text in predictions.items()}
        if protocol == "lmms-eval":  # it gives one fraction
            fraction = {"exact_match": fmean(items.values()) / 100}
            return Score(fraction, "exact_match", items, joined.counts, joined.notes, taken=predictions)
        metrics = {"overall": fmean(items.values()), **means.over(items, self._type)}
        if protocol in ("official", "llava"):
            metrics |= self._answerability(predictions)
        if protocol == "official":
            metrics["lmms-eval"] = self._lmms_eval(joined.texts)
            joined.notes += self._as_written(predictions, items, joined.texts)
        printed = {name: round(value, 2) for name, value in metrics.items()}
        return Score(metrics, "overall", items, joined.counts, joined.notes, printed, predictions)

    def _as_written(
        self, predictions: Mapping[str, str], items: Mapping[str, float], texts: Mapping[str, str]
    ) -> list[str]:
        """A note where it decides that people's answers, on which all agree, are taken as they are written."""
        agreed = [qid for qid in predictions if len(set(self.truth[qid])) == 1]
        turned = [qid for qid in agreed if 100 * self._value(qid, predictions[qid], vqatext.vizwiz) != items[qid]]
        if not turned:
            return []
        normalise, people = RULES["llava"]
        by_llava = fmean(100 * self._value(qid, normalise(text), people) for qid, text in texts.items())
        return [vqatext.as_written(len(turned), len(agreed), by_llava)]

    def _lmms_eval(self, texts: Mapping[str, str]) -> float:
        return fmean(100 * self._value(qid, vqatext.m4c(text), vqatext.m4c) for qid, text in texts.items())

    def _value(self, qid: str, text: str, normalise_people: vqatext.Normalise) -> float:
        return vqatext.consensus(text, [normalise_people(answer) for answer in self.truth[qid]])

    def _type(self, qid: str) -> list[str]:
        """The type of answer, where the layout tells it (the official files)."""
        kind = self._rows[qid].get("answer_type")
        return [f"answer_type/{kind}"] if kind else []

    def _answerability(self, predictions: Mapping[str, str]) -> dict[str, float]:
        """How well the answer `unanswerable` finds the unanswerable questions; percent.

        The official tool takes a number of its own for this; we take the answer at its word.
        """
        if not all("answerable" in self._rows[qid] for qid in predictions):
            return {}
        pairs = [(not self._rows[qid]["answerable"], text == "unanswerable") for qid, text in predictions.items()]
        metrics = {"average_precision": average_precision(pairs), "f1": f1(pairs)}
        return {f"answerability/{name}": 100 * value for name, value in metrics.items()}

    def submission(self, answers: Mapping[str, str], target: Path) -> None:
        """The upload for EvalAI, as LLaVA makes it: every picture, the M4C form of the answer."""
        qids = [question.id for question in self.question_list]
        missing = [qid for qid in qids if qid not in answers]
        if missing:
            raise DataError(f"the server wants every picture; {len(missing)} have no answer", fix="finish the run")
        files.write_json(target, [{"image": qid, "answer": vqatext.m4c(answers[qid])} for qid in qids])


def _text(value: Any) -> str:
    """The name of a picture; TypeError for what is none."""
    if not isinstance(value, str):
        raise TypeError(f"a picture is named {value!r}")
    return value


def _layouts(split: str) -> list[Layout]:
    official = {"questions": f"{split}.json"}
    return [
        Layout("LLaVA", {"llava": f"llava_{split}.jsonl"}, official),
        Layout("official", official, {}),
        Layout("parquet", {"questions": f"{split}-*.parquet"}, {}),
        Layout("TSV", {"questions": "VizWiz.tsv" if split == "val" else f"VizWiz_{split.upper()}.tsv"}, {}),
    ]


def _prompt(question: str) -> str:
    """Capitalised as in LLaVA's file: all but the first letter in lower case."""
    return f"{question.capitalize()}\n{UNSURE}\n{SHORT}"


def _answer_text(answer: Mapping[str, Any] | str) -> str:
    return answer if isinstance(answer, str) else str(answer["answer"])


def _from_parquet(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "name": row.get("image_name") or f"{row['question_id']}.jpg"}


def _from_tsv(row: Mapping[str, Any]) -> dict[str, Any]:
    """VLMEvalKit's rows name no picture: their index stands for it."""
    return {**row, "name": row["index"], "answers": ast.literal_eval(row["answers"])}


def average_precision(pairs: Sequence[tuple[bool, bool]]) -> float:
    """The area under precision and recall of a yes/no prediction; pairs of (true, predicted)."""
    hits, predicted, true = _tally(pairs)
    recall, precision = hits / true if true else 0.0, hits / predicted if predicted else 0.0
    return recall * precision + (1 - recall) * true / len(pairs)


def f1(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Of a yes/no prediction, as a fraction; pairs of (true, predicted)."""
    hits, predicted, true = _tally(pairs)
    return 2 * hits / (predicted + true) if predicted + true else 0.0


def _tally(pairs: Sequence[tuple[bool, bool]]) -> tuple[int, int, int]:
    """(both, predicted, true)."""
    return sum(a and b for a, b in pairs), sum(b for _, b in pairs), sum(a for a, _ in pairs)


def _unchanged(text: str) -> str:
    return text


def _llava(text: str) -> str:
    """What the official rule makes of LLaVA's upload, which holds the M4C form."""
    return vqatext.vizwiz(vqatext.m4c(text))


# protocol: what is done to the answer, and to people's answers
RULES: dict[str, tuple[vqatext.Normalise, vqatext.Normalise]] = {
    "official": (vqatext.vizwiz, _unchanged),
    "llava": (_llava, _unchanged),
    "lmms-eval": (vqatext.m4c, vqatext.m4c),
    "vlmevalkit": (vqatext.vlmevalkit, vqatext.vlmevalkit),
}
