"""VQAv2: open questions about COCO images, ten answers each (arXiv 1612.00837)."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from mmalign.benchmarks import Question, Score, means, reading, vqatext
from mmalign.benchmarks.answers import JoinedAnswers
from mmalign.benchmarks.filed import SHORT, FiledBenchmark, by_people, no_answers
from mmalign.benchmarks.layouts import Layout
from mmalign.benchmarks.reading import Row
from mmalign.errors import DataError, suggest
from mmalign.io import files

# our name: the official files', the parquet files'; the split with answers first
SPLITS = {
    "val": ("val2014", "validation"),
    "test-dev": ("test-dev2015", "testdev"),
    "test": ("test2015", "test"),
    "train": ("train2014", "train"),
}


class VQAv2(FiledBenchmark):
    """split: val, test-dev, test or train; None: the first of them whose files are there."""

    protocols = ("official", "llava", "lmms-eval")
    picture_folders = ("val2014", "test2015", "train2014", "images/val2014", "images/test2015")
    meanings = {
        "overall": ("agreement with ten people: 100 where three or more say so", "percent", "higher"),
        "exact_match": ("the same with lmms-eval's rule, as it gives it", "fraction", "higher"),
        "*/*": ("the same of one type of answer or of question", "percent", "higher"),
    }

    def __init__(self, data: str, split: str | None = None, images: str | None = None) -> None:
        if split is not None and split not in SPLITS:
            raise DataError(f"VQAv2 has no split {split!r}", fix=suggest(split, SPLITS))
        self.split = split
        super().__init__(data, images)

    def layouts(self) -> Sequence[Layout]:
        return [layout for split in ([self.split] if self.split else SPLITS) for layout in _layouts(*SPLITS[split])]

    @cached_property
    def question_list(self) -> list[Question]:
        with reading.shape(self.files.one("questions")):
            if self.files.layout == "LLaVA":
                return [Question(str(row["question_id"]), row["text"], row["image"]) for row in self._rows]
            rows = self._rows
            return [Question(str(row["question_id"]), f"{row['question']}\n{SHORT}", _picture(row)) for row in rows]

    @cached_property
    def _rows(self) -> list[Row]:
        source = self.files.one("questions")
        if self.files.layout == "parquet":
            return reading.parquet(self.files.paths["questions"])
        if self.files.layout == "LLaVA":
            return reading.json_lines(source)
        with reading.shape(source):
            official = reading.json_file(source)
            return [{**row, "subtype": official["data_subtype"]} for row in official["questions"]]

    @cached_property
    def truth(self) -> dict[str, Row]:
        """The annotation of each question; DataError where the split keeps its answers to itself."""
        if self.files.layout == "parquet":
            rows = [row for row in self._rows if row.get("answers")]
        else:
            rows = self._annotations(self.files.one("answers")) if self.files.has("answers") else []
        if not rows:
            raise no_answers("VQAv2", self.files, "EvalAI (challenge 830)")
        return {str(row["question_id"]): row for row in rows}

    def _annotations(self, source: str) -> list[Row]:
        with reading.shape(source):
            return list(reading.json_file(source)["annotations"])

    def references(self) -> dict[str, Any]:
        if self.files.has("answers") and all("image_id" in row for row in self.truth.values()):
            return {qid: row["image_id"] for qid, row in self.truth.items()}  # the questions need not be read for it
        return {question.id: question.image for question in self.questions()}

    def right(self, qid: str) -> str:
        return by_people(person["answer"] for person in _people(self.truth[qid]))

    def score_joined(self, joined: JoinedAnswers, protocol: str) -> Score:
        """Consensus with ten people, overall, by type of answer and by type of question; percent."""
        rule = RULES[protocol]
        items: dict[str, float] = {}
        predictions: dict[str, str] = {}
        for qid, text in joined.texts.items():
            value, predictions[qid] = rule(_people(self.truth[qid]), text)
            items[qid] = 100 * value
        if protocol == "lmms-eval":  # it gives one fraction
            fraction = {"exact_match": fmean(items.values()) / 100}
            return Score(fraction, "exact_match", items, joined.counts, joined.notes, taken=predictions)
        if protocol == "official":
            joined.notes += self._as_written(joined.texts, items)
        metrics = {"overall": fmean(items.values()), **means.over(items, self._types)}
        printed = {name: round(value, 2) for name, value in metrics.items()}
        return Score(metrics, "overall", items, joined.counts, joined.notes, printed, predictions)

    def _as_written(self, texts: Mapping[str, str], items: Mapping[str, float]) -> list[str]:
        """A note where it decides that answers are compared as they are written, because all people agree."""
        agreed = [qid for qid in texts if _agree(self.truth[qid]["answers"])]
        turned = [qid for qid in agreed if 100 * lmms_eval(_people(self.truth[qid]), texts[qid])[0] != items[qid]]
        if not turned:
            return []
        by_llava = fmean(100 * llava(_people(self.truth[qid]), text)[0] for qid, text in texts.items())
        return [vqatext.as_written(len(turned), len(agreed), by_llava)]

    def _types(self, qid: str) -> list[str]:
        return [f"{kind}/{self.truth[qid][kind]}" for kind in ("answer_type", "question_type")]

    def submission(self, answers: Mapping[str, str], target: Path) -> None:
        """The upload for EvalAI, as LLaVA makes it: every test2015 id, the M4C form of the answer, or "" (1.4, 1.5)."""
        rows = [{"question_id": int(qid), "answer": vqatext.m4c(answers.get(qid, ""))} for qid in self._upload_ids()]
        files.write_json(target, rows)

    def _upload_ids(self) -> list[str]:
        """Every id of test2015 where test-dev is asked: the server refuses less."""
        test_dev = "test-dev2015" in self.files.one("questions")
        test2015 = self.location.find("llava_vqav2_mscoco_test2015.jsonl") if test_dev else []
        if not test2015:
            return [question.id for question in self.question_list]
        return [str(row["question_id"]) for row in reading.json_lines(test2015[0])]


def _layouts(official: str, parquet: str) -> list[Layout]:
    answers = {"answers": f"v2_mscoco_{official}_annotations.json"}
    return [
        Layout("LLaVA", {"questions": f"llava_vqav2_mscoco_{official}.jsonl"}, answers),
        Layout("official", {"questions": f"v2_OpenEnded_mscoco_{official}_questions.json"}, answers),
        Layout("parquet", {"questions": f"{parquet}-*.parquet"}, {}),
    ]


def _picture(row: Row) -> Any:
    """The official files name no picture: its name follows from the image id."""
    if "image" in row:
        return row["image"]
    folder = str(row["subtype"]).replace("test-dev", "test")
    return f"COCO_{folder}_{int(row['image_id']):012d}.jpg"


def _people(annotation: Row) -> list[Row]:
    answers: list[Row] = annotation["answers"]
    if not answers:
        raise DataError(f"question {annotation['question_id']} has no answers", fix="the annotation file is damaged")
    return answers


def official(people: Sequence[Row], text: str) -> tuple[float, str]:
    """(value of an answer, what it was compared as). Nothing is normalised where all ten say the same."""
    answers, text = [vqatext.plain(one["answer"]) for one in people], vqatext.plain(text)
    if len(set(answers)) > 1:
        answers, text = [vqatext.vqa(answer) for answer in answers], vqatext.vqa(text)
    return vqatext.consensus(text, answers, _keys(people, answers)), text


def _agree(people: Sequence[Row]) -> bool:
    """Whether all people say the same, as they wrote it."""
    return len({vqatext.plain(one["answer"]) for one in people}) == 1


def llava(people: Sequence[Row], text: str) -> tuple[float, str]:
    """The official rule on what LLaVA uploads: the M4C form of the answer. Its published numbers are the server's on
    that."""
    return official(people, vqatext.m4c(text))


def lmms_eval(people: Sequence[Row], text: str) -> tuple[float, str]:
    """The same, but always normalised."""
    answers, text = [vqatext.vqa3(vqatext.plain(one["answer"])) for one in people], vqatext.vqa3(vqatext.plain(text))
    return vqatext.consensus(text, answers, _keys(people, answers)), text


def _keys(people: Sequence[Row], answers: Sequence[str]) -> list[tuple[str, ...]] | None:
    """Answers are the same where all their fields are; None: their ids tell all of them apart."""
    if len({one.get("answer_id") for one in people}) == len(people):
        return None
    rest = [sorted((key, repr(value)) for key, value in one.items() if key != "answer") for one in people]
    return [(text, *map(str, fields)) for text, fields in zip(answers, rest, strict=True)]


RULES = {"official": official, "llava": llava, "lmms-eval": lmms_eval}
