"""GQA: compositional questions about scene graphs, one answer each (arXiv 1902.09506)."""

import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from mmalign.benchmarks import Question, Score, means, reading
from mmalign.benchmarks.answers import Joined, Official, few
from mmalign.benchmarks.filed import SHORT, FiledBenchmark, no_answers
from mmalign.benchmarks.pictures import tabled
from mmalign.benchmarks.places import Layout
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
    folders = ("data/images", "images")
    official_gaps = Official(unknown="skip")

    def __init__(
        self, data: str, tier: str | None = None, consistency: bool = False, images: str | None = None
    ) -> None:
        self.tier, self.consistency = tier, consistency
        super().__init__(data, images)
        tiers = self.files.files["questions"]
        if len(tiers) > 1 and self.files.layout == "official":
            raise DataError(f"{len(tiers)} tiers of GQA: {few(tiers)}", at=data, fix="say which: tier=val_balanced")
        if consistency and self.files.layout in ("parquet", "TSV"):
            raise DataError(f"the {self.files} does not say what a question entails", fix="use the official files")

    def layouts(self) -> Sequence[Layout]:
        return [one for tier in ([self.tier] if self.tier else ["testdev_balanced", "*"]) for one in _layouts(tier)]

    @cached_property
    def asked(self) -> list[Question]:
        if self.files.has("llava"):
            source = self.files.one("llava")
            with reading.shape(source):
                rows = reading.json_lines(source)
                return [Question(str(row["question_id"]), row["text"], row["image"]) for row in rows]
        with reading.shape(self.files.one("questions")):
            asked = [(name, row) for name, row in self.rows.items() if self.consistency or row["isBalanced"]]
            return [Question(name, f"{row['question']}\n{SHORT}", self._picture(row)) for name, row in asked]

    @cached_property
    def rows(self) -> dict[str, Row]:
        """{question id: what the file says of it}; the parquet and TSV layouts hold balanced questions only."""
        source = self.files.one("questions")
        with reading.shape(source):
            if self.files.layout == "TSV":
                rows = tabled(source)
                return {row.get("question_id") or row["index"]: {**row, "isBalanced": True} for row in rows}
            if self.files.layout == "parquet":
                return {str(row["id"]): row for row in reading.parquet(self.files.files["questions"])}
            return dict(reading.json_file(source))

    @cached_property
    def _stored(self) -> dict[str, Any]:
        return {str(row["id"]): row["image"] for row in reading.parquet(self.files.files["images"])}

    def _picture(self, row: Row) -> Any:
        if self.files.layout == "TSV":
            return row["image"]
        name = str(row["imageId"])
        return self._stored.get(name) if self.files.has("images") else f"{name}.jpg"

    @cached_property
    def choices(self) -> dict[str, dict[str, list[str]]]:
        """{question id: its valid and plausible answers}; empty where the tier has no such file."""
        return dict(reading.json_file(self.files.one("choices"))) if self.files.has("choices") else {}

    @cached_property
    def truth(self) -> dict[str, Row]:
        """The questions that must be answered: the balanced ones; for consistency, all."""
        rows = self.rows if self.files.has("questions") else {}
        rows = {name: row for name, row in rows.items() if self.consistency or row["isBalanced"]}
        if not rows or not all("answer" in row for row in rows.values()):
            raise no_answers("GQA", self.files, "EvalAI")
        return rows

    def scored(self, joined: Joined, protocol: str) -> Score:
        """Accuracy by exact match, in percent, with the official sub-scores."""
        return self._official(joined) if protocol == "official" else self._peer(joined, protocol)

    def _official(self, joined: Joined) -> Score:
        said = {name: converted(text) for name, text in joined.texts.items()}
        rows = {name: self.truth[name] for name in said if self.truth[name]["isBalanced"]}
        items = {name: 100.0 * (said[name] == row["answer"]) for name, row in rows.items()}
        metrics = {"accuracy": fmean(items.values()), **self._parts(items), **self._choices(said, rows)}
        if all("groups" in row for row in rows.values()):
            told = ((row["groups"]["global"], row["answer"], said[name]) for name, row in rows.items())
            metrics["distribution"] = distribution(told)
        if self.consistency:
            metrics["consistency"] = self._consistent(said, items)
        if not self.choices:
            joined.notes.append("validity and plausibility are 0: this tier has no choices file")
        counts = joined.counts | means.sizes(items, self._kinds)  # the official tool prints them too
        return Score(metrics, "accuracy", items, counts, joined.notes, taken=said)

    def _peer(self, joined: Joined, protocol: str) -> Score:
        """lmms-eval gives a fraction, VLMEvalKit a percentage; neither has sub-scores."""
        name, scale, same = PEERS[protocol]
        items = {one: scale * same(text, self.truth[one]["answer"]) for one, text in joined.texts.items()}
        return Score({name: fmean(items.values())}, name, items, joined.counts, joined.notes)

    def _parts(self, items: Mapping[str, float]) -> dict[str, float]:
        return _open_or_binary(items, self.truth) | means.over(items, self._kinds)

    def _kinds(self, name: str) -> list[str]:
        """By structure, topic, steps of reasoning and words; a layout that does not tell them (TSV) has none."""
        row = self.truth[name]
        if "types" not in row:
            return []
        found = [f"{kind}/{row['types'][kind]}" for kind in ("structural", "semantic")]
        return [*found, f"steps/{steps(row)}", f"words/{len(row['question'].split())}"]

    def _choices(self, said: Mapping[str, str], balanced: Mapping[str, Row]) -> dict[str, float]:
        """The share of answers that are among the valid, and among the plausible ones."""
        if not self.choices:
            return {"validity": 0.0, "plausibility": 0.0}
        with reading.shape(self.files.one("choices")):
            valid, plausible = (
                fmean(100.0 * (said[name] in self._among(name, kind)) for name in balanced)
                for kind in ("valid", "plausible")
            )
        return {"validity": valid, "plausibility": plausible}

    def _among(self, name: str, kind: str) -> Sequence[str]:
        return COMMON if "Common" in self.truth[name]["types"]["detailed"] else self.choices[name][kind]

    def _consistent(self, said: Mapping[str, str], items: Mapping[str, float]) -> float:
        """Over the questions answered right that entail others: how many of those are right too; the mean."""
        shares = []
        for name in items:
            others = [one for one in self.truth[name]["entailed"] if one != name]
            if items[name] and others:
                shares.append(fmean(said.get(one) == self._answer(one, name) for one in others))
        return 100 * fmean(shares) if shares else 0.0

    def _answer(self, name: str, entailed_by: str) -> str:
        if name not in self.truth:
            raise DataError(f"question {entailed_by} entails {name}, which this tier lacks", fix="tier=val_all")
        return str(self.truth[name]["answer"])

    def submission(self, answers: Mapping[str, str], target: Path) -> None:
        """The list GQA's server and its eval.py take."""
        rows = [{"questionId": name, "prediction": converted(text)} for name, text in answers.items()]
        files.write_json(target, rows)


def _layouts(tier: str) -> list[Layout]:
    stem = tier.split("_")[0]
    tsv = "GQA_TestDev_Balanced" if tier == "testdev_balanced" else f"GQA_{tier}"
    official = {"questions": f"{tier}_questions.json"}
    choices = {"choices": f"{stem}_choices.json"}
    parquet = {"questions": f"{tier}_instructions/*.parquet", "images": f"{tier}_images/*.parquet"}
    return [
        Layout("LLaVA", {"llava": f"llava_gqa_{tier}.jsonl"}, official | choices),
        Layout("official", official, choices),
        Layout("parquet", parquet, {}),
        Layout("TSV", {"questions": f"{tsv}.tsv"}, {}),
    ]


def converted(text: str) -> str:
    """LLaVA's conversion: all periods at the end go, then lower case; blanks stay."""
    return text.rstrip(".").lower()


def steps(row: Row) -> int:
    """The length of the reasoning, without the steps that only ask."""
    told = (f"{one['operation']}: {one['argument']}" for one in row["semantic"])
    return sum(not any(word in step for word in NOT_A_STEP) for step in told)


def distribution(rows: Iterable[tuple[str | None, str, str]]) -> float:
    """Chi-square of answers against gold answers in each global group, weighted by its size, / 100; lower is better.

    rows: (global group, gold answer, given answer).
    """
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for group, right, said in rows:
        if group is not None:
            gold[group][right] += 1
            given[group][said] += 1
    size = sum(counts.total() for counts in gold.values())
    total = sum(counts.total() * _chi_square(counts, given[group]) for group, counts in gold.items())
    return total / size / 100 if size else 0.0


def _chi_square(gold: Counter[str], given: Counter[str]) -> float:
    return sum((given[answer] - count) ** 2 / count for answer, count in gold.items())


def _open_or_binary(items: Mapping[str, float], rows: Mapping[str, Row]) -> dict[str, float]:
    """Open questions are those of structural type query, binary all others; 0 where there are none."""
    if not all("types" in rows[name] for name in items):
        return {}
    found = means.over(items, lambda name: ["open" if rows[name]["types"]["structural"] == "query" else "binary"])
    return {"binary": 0.0, "open": 0.0} | found


def _lmms_eval(text: str, answer: str) -> bool:
    """Equal without case and ASCII punctuation."""
    return _bare(text) == _bare(answer)


def _bare(text: str) -> str:
    return text.strip().lower().translate(str.maketrans("", "", string.punctuation))


def _vlmevalkit(text: str, answer: str) -> bool:
    return text.strip().lower() == answer.strip().lower()


# protocol: its metric, its scale, its rule
PEERS = {"lmms-eval": ("exact_match", 1.0, _lmms_eval), "vlmevalkit": ("accuracy", 100.0, _vlmevalkit)}
