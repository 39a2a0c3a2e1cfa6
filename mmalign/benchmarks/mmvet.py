"""MM-Vet: 218 open questions that need several abilities at once, graded by a language model (arXiv 2308.02490)."""

import os
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from mmalign.benchmarks import Gaps, Question, Score, reading
from mmalign.benchmarks.answers import AnswerRow, GapRule, JoinedAnswers, few
from mmalign.benchmarks.filed import FiledBenchmark, no_answers
from mmalign.benchmarks.judge import MODEL, Grade, Judge, Sheet, ask_for_grade, prompt_in
from mmalign.benchmarks.layouts import Layout
from mmalign.benchmarks.pictures import vlmevalkit_rows
from mmalign.errors import DataError
from mmalign.io import files

AGAIN = "\nPredict the correctness of the answer (digit): "  # what the evaluator adds when a reply was no number


class MMVet(FiledBenchmark):
    """Aggregates grades; asks a judge for them only where an endpoint is named. Without either it is not graded.

    grades: a grades file ({id: {model[], content[], score[]}}); where a judge is asked, it is written after each grade,
    with the answer it is for, and what it already holds is not asked again.
    judge: the address of an OpenAI-compatible API (https://.../v1); its key is read from $OPENAI_API_KEY.
    judge_model: the model asked there; the paper's grades are GPT-4's.
    evaluator: the official mm-vet_evaluator.py, whose prompt the judge gets; None: the one beside the data.
    runs: how often each answer is graded (the paper: 5); None: as often as the grades file has.
    """

    max_new_tokens = 1024
    picture_folders = ("mm-vet/images", "images")
    meanings = {
        "total": ("mean grade of the judge, a language model", "percent", "higher"),
        "std": ("standard deviation of the total over the judge's runs", "percent", "lower"),
        "run/*": ("total of one run of the judge", "percent", "higher"),
        "set/*": ("mean grade of the questions that need exactly these abilities", "percent", "higher"),
        "*": ("mean grade of the questions that need this ability", "percent", "higher"),
    }
    index_is_id = True  # counted as LLaVA counts
    official_gaps = GapRule(unknown="skip")

    def __init__(
        self,
        data: str,
        grades: str | None = None,
        judge: str | None = None,
        judge_model: str = MODEL,
        evaluator: str | None = None,
        runs: int | None = None,
        images: str | None = None,
    ) -> None:
        super().__init__(data, images)
        self.grades, self.runs = grades, runs
        self.judge = Judge(judge, judge_model) if judge else None
        if judge and not grades:
            raise DataError("a judge is named, but no file to keep its grades in", fix="grades=FILE.json")
        self.prompt, self.official_prompt = prompt_in(evaluator, self.location) if judge else ("", True)

    @property
    def folder_names(self) -> Sequence[str]:
        return ["mm-vet", "mmvet"]

    def layouts(self) -> Sequence[Layout]:
        official = {"questions": "mm-vet.json"}
        return [
            Layout("LLaVA", {"llava": "llava-mm-vet.jsonl"}, official),
            Layout("official", official, {}),
            Layout("parquet", {"questions": "test-*.parquet"}, {}),
            Layout("TSV", {"questions": "MMVet.tsv"}, {}),
        ]

    @cached_property
    def truth(self) -> dict[str, dict[str, Any]]:
        """{id: question, answer, capability, picture}; ids are v1_0, v1_1, ..."""
        if not self.files.has("questions"):
            raise no_answers("MM-Vet", self.files, "the online evaluator")
        source = self.files.one("questions")
        with reading.shape(source):
            if self.files.layout == "TSV":
                rows = vlmevalkit_rows(source)
                return {official_id(row["index"]): _flat(row, row["category"], row["image"]) for row in rows}
            if self.files.layout == "parquet":
                rows = reading.parquet(self.files.paths["questions"])
                return {official_id(row["question_id"]): _flat(row, row["capability"], row["image"]) for row in rows}
            return {qid: {**row, "picture": row["imagename"]} for qid, row in reading.json_file(source).items()}

    @cached_property
    def question_list(self) -> list[Question]:
        if self.files.layout != "LLaVA":
            return [Question(qid, row["question"], row["picture"]) for qid, row in self.truth.items()]
        source = self.files.one("llava")
        with reading.shape(source):
            lines = reading.json_lines(source)
            return [Question(official_id(row["question_id"]), row["text"], row["image"]) for row in lines]

    def question_id(self, row: AnswerRow) -> str:
        return official_id(row.id)

    def right(self, qid: str) -> str:
        return str(self.truth[qid]["answer"])

    def score_joined(self, joined: JoinedAnswers, protocol: str) -> Score:
        """The mean grade, in percent, in total, by ability and by set of abilities."""
        sheet = self._sheet(joined)
        if sheet is None:
            joined.notes.append("not graded: MM-Vet needs a judge; name a grades file, or a judge's endpoint")
            return Score({}, "total", {}, joined.counts, joined.notes)
        joined.notes += self._ungraded(sheet, joined.gaps)
        runs = self._runs(sheet)
        models = sorted({model for grades in sheet.values() for model in grades["model"]})
        joined.notes.append(f"judge: {', '.join(models)}")
        metrics = self._means(sheet, runs)
        items = {qid: 100 * fmean(sheet[qid]["score"][:runs]) for qid in self.truth if qid in sheet}
        replies = {qid: ", ".join(map(str, sheet[qid]["content"][:runs])) for qid in items}
        printed = {name: nearest_tenth(value) for name, value in metrics.items()}
        parts = {"": {qid: (items.get(qid, 0.0), 1.0) for qid in self.truth}}
        return Score(metrics, "total", items, joined.counts, joined.notes, printed, replies, parts)

    def _sheet(self, joined: JoinedAnswers) -> Sheet | None:
        """{id: its grades}: from the file, completed by the judge where one is named."""
        sheet = _read_sheet(self.grades) if self.grades and os.path.exists(self.grades) else None
        joined.notes += self._check_answers(sheet or {}, joined.texts)
        if self.judge is None:
            if self.grades and sheet is None:
                raise DataError(f"no grades file {self.grades}", fix="name a judge's endpoint, or leave the file out")
            return sheet
        joined.notes.append(f"judge's prompt: {'the official one' if self.official_prompt else 'NOT the official one'}")
        return self._ask_judge(joined.texts, sheet or {}, self.judge)

    def _check_answers(self, sheet: Sheet, texts: Mapping[str, str]) -> list[str]:
        """A note where nothing tells which answers the grades are of; DataError where they are of another run's.

        Our judge keeps each answer beside its grade. The evaluator's own file does not: the results file it graded, by
        whose name it calls its own, is looked for beside it.
        """
        untold = [qid for qid in texts if qid in sheet and len(sheet[qid]["answer"]) < len(sheet[qid]["score"])]
        results = _graded_results(str(self.grades)) if untold else None
        known = {qid: list(sheet[qid]["answer"]) for qid in texts if qid in sheet}
        for qid in untold:
            known[qid] += [] if results is None else [results.get(qid, "")]
        wrong = [qid for qid, answers in known.items() if any(one.strip() != texts[qid].strip() for one in answers)]
        if wrong:
            what = f"{len(wrong)} grades are of other answers than these: {few(wrong)}"
            raise DataError(what, at=str(self.grades), fix="a grades file of its own for each run: grades=FILE.json")
        if untold and results is None:
            return [f"nothing tells that {os.path.basename(str(self.grades))} grades these answers, not another run's"]
        return []

    def _ask_judge(self, texts: Mapping[str, str], sheet: Sheet, judge: Judge) -> Sheet:
        """The sheet with a grade for every run of every answer; written after each."""
        assert self.grades is not None
        for run in range(self.runs or 1):
            for qid, text in texts.items():
                grades = sheet.setdefault(qid, {"model": [], "content": [], "score": [], "answer": []})
                if len(grades["score"]) <= run:
                    _append(grades, ask_for_grade(judge.ask, *self.prompts(qid, text), judge.wait), text)
                    files.write_json(Path(self.grades), sheet)
        return sheet

    def prompts(self, qid: str, text: str) -> tuple[str, str]:
        """What the judge is asked about an answer, and what it is asked again; nothing is escaped."""
        row = self.truth[qid]
        answer = row["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        first = self.prompt + "\n" + " | ".join([row["question"], answer, text, ""])
        return first, first + AGAIN

    def _ungraded(self, sheet: Sheet, gaps: Gaps) -> list[str]:
        missing = [qid for qid in self.truth if qid not in sheet]
        if missing and (gaps != "lenient" or len(missing) == len(self.truth)):
            raise DataError(f"{len(missing)} questions have no grade: {few(missing)}", fix="let the judge finish")
        return [f"{len(missing)} questions have no grade; counted as 0"] if missing else []

    def _runs(self, sheet: Sheet) -> int:
        """How many runs are averaged; each question needs as many grades."""
        grades = {qid: len(sheet[qid]["score"]) for qid in self.truth if qid in sheet}
        runs = self.runs or max(grades.values())
        short = [qid for qid, number in grades.items() if number < runs]
        if short:
            what = f"{len(short)} questions have fewer than {runs} grades: {few(short)}"
            raise DataError(what, fix=f"let the judge finish, or runs={min(grades.values())}")
        return runs

    def _means(self, sheet: Sheet, runs: int) -> dict[str, float]:
        """Denominators come from the questions, not from the grades."""
        metrics: dict[str, float] = {}
        for group, qids in self._groups().items():
            metrics[group] = fmean(_mean_grade(sheet, qids, run) for run in range(runs))
        totals = [_mean_grade(sheet, self.truth, run) for run in range(runs)]
        mean = fmean(totals)
        metrics |= {"total": mean, "std": sqrt(fmean((total - mean) ** 2 for total in totals))}
        return metrics | {f"run/{run + 1}": total for run, total in enumerate(totals)}

    def _groups(self) -> dict[str, list[str]]:
        """Questions by ability, and by their exact set of abilities ("integration")."""
        groups: dict[str, list[str]] = {}
        for qid, row in self.truth.items():
            abilities = sorted(set(row["capability"]))
            for group in [*abilities, f"set/{'_'.join(abilities)}"]:
                groups.setdefault(group, []).append(qid)
        return groups

    def submission(self, answers: Mapping[str, str], target: Path) -> None:
        """The results file of the evaluator and of the online one."""
        files.write_json(target, dict(answers))


def official_id(qid: Any) -> str:
    """LLaVA and VLMEvalKit count 0, 1, ...; the official ids have a prefix."""
    return str(qid) if str(qid).startswith("v1_") else f"v1_{qid}"


def _flat(row: Mapping[str, Any], abilities: str, picture: Any) -> dict[str, Any]:
    capability = [one.strip() for one in abilities.split(",")]
    return {"question": row["question"], "answer": row["answer"], "capability": capability, "picture": picture}


def _mean_grade(sheet: Sheet, qids: Collection[str], run: int) -> float:
    """Percent; a question without a grade counts as 0."""
    return sum(float(sheet[qid]["score"][run]) for qid in qids if qid in sheet) / len(qids) * 100


def _append(grades: dict[str, list[Any]], grade: Grade, answer: str) -> None:
    grades["model"].append(grade.model)
    grades["content"].append(grade.content)
    grades["score"].append(grade.score)
    grades["answer"].append(answer)


def _read_sheet(path: str) -> Sheet:
    with reading.shape(path):
        return {str(qid): _grades(row) for qid, row in reading.json_file(path).items()}


def _graded_results(grades: str) -> dict[str, str] | None:
    """What the evaluator graded: MODEL.json beside MODEL_JUDGE-grade-5runs.json; None where there is none."""
    stem = Path(grades).stem
    names = [stem[:at] for at in range(len(stem) - 1, 0, -1) if stem[at] == "_"] if "-grade-" in stem else []
    place = next((place for name in names if (place := Path(grades).with_name(f"{name}.json")).is_file()), None)
    return {str(qid): str(text) for qid, text in dict(reading.json_file(str(place))).items()} if place else None


def _grades(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {key: list(row[key]) for key in ("model", "content", "score")} | {"answer": list(row.get("answer", ()))}


def nearest_tenth(value: float) -> float:
    """Rounded as numpy does it, which the official tool uses: the nearest tenth of the scaled number."""
    return float(round(value * 10) / 10) if value == value else value
