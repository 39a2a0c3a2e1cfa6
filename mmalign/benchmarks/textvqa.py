"""TextVQA: questions about text in pictures, ten answers each (arXiv 1904.08920)."""

import ast
import re
from collections import Counter
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
from mmalign.errors import DataError
from mmalign.io import files

OCR = "Reference OCR token: "
PEOPLE = 10  # the official scorer takes exactly ten answers
Key = tuple[str, str]  # image id, question in lower case: what LLaVA's files name a question by


class TextVQA(FiledBenchmark):
    """ocr: give the OCR tokens in the prompt, as LLaVA-1.5 does; only LLaVA's file and the parquet layout have them.

    split: val, test or train.
    """

    protocols = ("official", "lmms-eval", "vlmevalkit")
    official_protocols = ("official", "lmms-eval")
    picture_folders = ("train_images", "test_images")
    meanings = {"accuracy": ("agreement with ten people: 100 where three or more say so", "percent", "higher")}
    official_gaps = GapRule(missing="skip")

    def __init__(self, data: str, split: str = "val", ocr: bool = True, images: str | None = None) -> None:
        self.split, self.ocr = split, ocr
        super().__init__(data, images)

    def layouts(self) -> Sequence[Layout]:
        official = {"questions": f"TextVQA_0.5.1_{self.split}.json"}
        prefix = {"val": "validation"}.get(self.split, self.split)
        layouts = [
            Layout("official", official, {}),
            Layout("parquet", {"questions": f"{prefix}-*.parquet"}, {}),
            Layout("TSV", {"questions": f"TextVQA_{self.split.upper()}.tsv"}, {}),
        ]
        llava = Layout("LLaVA", {"llava": f"llava_textvqa_{self.split}_v051_ocr.jsonl", **official}, {})
        return [llava, *layouts] if self.ocr else layouts

    @cached_property
    def annotations(self) -> list[dict[str, Any]]:
        """question_id, image_id, question and answers of each question, in the order of the file."""
        source = self.files.one("questions")
        with reading.shape(source):
            if self.files.layout == "parquet":
                return reading.parquet(self.files.paths["questions"])
            if self.files.layout == "TSV":
                return [_from_tsv(row) for row in vlmevalkit_rows(source)]
            return list(reading.json_file(source)["data"])

    @cached_property
    def question_list(self) -> list[Question]:
        if self.ocr and self.files.layout in ("official", "TSV"):
            raise DataError(
                f"the {self.files} has no OCR tokens, which LLaVA-1.5's prompts contain",
                at=self.location.root,
                fix="add LLaVA's llava_textvqa_val_v051_ocr.jsonl, or ask without them: ocr=false (scores drop)",
            )
        with reading.shape(self.files.one("questions")):
            if self.files.layout == "LLaVA":
                return self._llava()
            return [Question(str(row["question_id"]), self._prompt(row), _picture(row)) for row in self.annotations]

    @property
    def numbered_questions(self) -> Sequence[Question]:
        """Without OCR tokens, which answers that are there do not need."""
        with reading.shape(self.files.one("questions")):
            return [Question(str(row["question_id"]), str(row["question"])) for row in self.annotations]

    def _llava(self) -> list[Question]:
        """LLaVA's rows; their `question_id` is the image's, so each is given its annotation's own."""
        rows = reading.json_lines(self.files.one("llava"))
        qids = self._question_ids([AnswerRow(str(row["question_id"]), "", {"prompt": row["text"]}) for row in rows])
        return [Question(qid, row["text"], row["image"]) for qid, row in zip(qids, rows, strict=True)]

    def _prompt(self, row: Mapping[str, Any]) -> str:
        """`capitalize` lower-cases all but the first letter: USB becomes usb, as in LLaVA's file."""
        tokens = [OCR + ", ".join(row["ocr_tokens"])] if self.ocr else []
        return "\n".join([row["question"].capitalize(), *tokens, SHORT])

    @cached_property
    def _ids(self) -> dict[Key, list[str]]:
        """The ids of the questions of a key: usually one."""
        ids: dict[Key, list[str]] = {}
        with reading.shape(self.files.one("questions")):
            for row in self.annotations:
                ids.setdefault(_key(row), []).append(str(row["question_id"]))
        return ids

    @cached_property
    def truth(self) -> dict[str, list[str]]:
        """{question id: ten answers}. Of two annotations with one key, the official scorer keeps the later."""
        answers_to = {_key(row): row.get("answers") or () for row in self.annotations}
        if not any(any(answers) for answers in answers_to.values()):
            raise no_answers("TextVQA", self.files, "EvalAI")
        truth = {str(row["question_id"]): list(answers_to[_key(row)]) for row in self.annotations}
        for qid, answers in truth.items():
            if len(answers) != PEOPLE:
                what = f"question {qid} has {len(answers)} answers, not {PEOPLE}"
                raise DataError(what, at=self.files.one("questions"), fix="the file is damaged: fetch it again")
        return truth

    def question_ids(self, rows: Sequence[AnswerRow]) -> list[str]:
        """Our ids as they are; LLaVA's rows by (image, question), the question taken from the logged prompt."""
        rows = [row._replace(id=qid) for row, qid in zip(rows, super().question_ids(rows), strict=True)]
        return self._question_ids(rows)

    def _question_ids(self, lines: Sequence[AnswerRow]) -> list[str]:
        """Rows with one key go to the questions of that key in turn."""
        known = {qid for qids in self._ids.values() for qid in qids}
        rows_of: Counter[Key] = Counter()  # met so far
        ids = []
        for line in lines:
            if line.id in known or "prompt" not in line.raw:
                ids.append(line.id)
                continue
            key = (line.id, question_of(str(line.raw["prompt"])).lower())
            qids = self._ids.get(key, [f"{key[0]} {key[1]!r}"])
            ids.append(qids[min(rows_of[key], len(qids) - 1)])
            rows_of[key] += 1
        return ids

    def references(self) -> dict[str, Any]:
        """Of the annotations: questions that lack the OCR tokens of their prompts have pictures all the same."""
        return {str(row["question_id"]): _picture(row) for row in self.annotations}

    def right(self, qid: str) -> str:
        return by_people(self.truth[qid])

    def score_joined(self, joined: JoinedAnswers, protocol: str) -> Score:
        """The M4C evaluator's accuracy, in percent; lmms-eval's is the same."""
        normalise = vqatext.vlmevalkit if protocol == "vlmevalkit" else vqatext.m4c
        predictions = {qid: normalise(text) for qid, text in joined.texts.items()}
        items = {qid: 100 * self._value(qid, text, normalise) for qid, text in joined.texts.items()}
        rows = list(items.items())
        if joined.gaps == "official":  # LLaVA's script averages over rows, repeated ones too
            rows = [(qid, 100 * self._value(qid, text, normalise)) for qid, text in joined.rows]
        metrics = {"accuracy": fmean(value for _, value in rows)}
        printed = {"accuracy": round(metrics["accuracy"], 2)}
        parts = {"": means.sums(rows)}
        return Score(metrics, "accuracy", items, joined.counts, joined.notes, printed, predictions, parts)

    def _value(self, qid: str, text: str, normalise: vqatext.Normalise) -> float:
        return vqatext.consensus(normalise(text), [normalise(answer) for answer in self.truth[qid]])

    def submission(self, answers: Mapping[str, str], target: Path) -> None:
        """The list EvalAI takes."""
        rows = [{"question_id": int(one.id), "answer": answers.get(one.id, "")} for one in self.question_list]
        files.write_json(target, rows)


def question_of(prompt: str) -> str:
    """The question in a logged prompt, in the forms LLaVA's scorer knows; DataError for any other."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        if legacy := re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL):
            return legacy[1]
    elif len(lines) == 3 and OCR in prompt:
        return lines[1] if prompt.startswith(OCR.rstrip()) else lines[0]
    elif len(lines) == 2:
        return lines[0]
    raise DataError(f"no question can be found in the prompt {prompt[:60]!r}", fix="give the answers our question ids")


def _key(row: Mapping[str, Any]) -> Key:
    return str(row["image_id"]), str(row["question"]).lower()


def _picture(row: Mapping[str, Any]) -> Any:
    return row["image"] if "image" in row else f"{row['image_id']}.jpg"


def _from_tsv(row: Mapping[str, Any]) -> dict[str, Any]:
    """VLMEvalKit's rows have no question id: their index stands for it."""
    try:
        answers = ast.literal_eval(row["answer"])
    except (ValueError, SyntaxError):
        answers = [row["answer"]]
    return {**row, "question_id": row["index"], "image_id": row["index"], "answers": answers}
