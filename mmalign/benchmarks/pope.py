"""POPE: is there such an object in the picture? Hallucination by yes and no (arXiv 2305.10355)."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import PurePath
from statistics import fmean
from typing import Any, NamedTuple

from mmalign.benchmarks import Question, Score, reading, vqatext
from mmalign.benchmarks.answers import JoinedAnswers, few
from mmalign.benchmarks.filed import SHORT, FiledBenchmark
from mmalign.benchmarks.layouts import Layout
from mmalign.benchmarks.pictures import vlmevalkit_rows
from mmalign.benchmarks.reading import Row
from mmalign.errors import DataError

# What LLaVA's file adds to the ids of each category, whose official files all count from 1; in the order of its file.
OFFSETS = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}
LLAVA_RANDOM = 2910  # rows of the random file LLaVA's questions were made from; POPE's current one has 3,000


class LabeledQuestion(NamedTuple):
    """A question with its official label."""

    question: str
    image: Any
    picture: str  # its file name, where the layout tells it
    yes: bool
    categories: tuple[str, ...]


class POPE(FiledBenchmark):
    """Three categories of questions: about objects drawn at random, popular ones, and those that often come along."""

    protocols = ("official", "lmms-eval", "vlmevalkit")
    logs_have_ids = False  # its question_id counts from 1 in each category
    picture_folders = ("val2014", "images/val2014")
    meanings = {
        "f1": ("F1 of `yes`, the mean of the kinds of questions", "fraction", "higher"),
        "accuracy": ("share of right answers, the mean of the kinds of questions", "fraction", "higher"),
        "precision": ("share of the answers `yes` that are right, the mean of the kinds", "fraction", "higher"),
        "recall": ("share of the objects there that are said to be, the mean of the kinds", "fraction", "higher"),
        "yes_ratio": ("share of answers `yes`, the mean of the kinds; half of the true ones are", "fraction", ""),
        "all/yes_ratio": ("share of `yes`, of all questions in one pool", "fraction", ""),
        "all/*": ("the same of all questions in one pool", "fraction; percent with vlmevalkit", "higher"),
        "*/TP": ("objects there, and said to be", "questions", "higher"),
        "*/TN": ("objects not there, and said not to be", "questions", "higher"),
        "*/FP": ("objects not there, and said to be: hallucinated", "questions", "lower"),
        "*/FN": ("objects there, and said not to be", "questions", "lower"),
        "*/yes_ratio": ("the same of one kind of questions", "fraction", ""),
        "*/*": ("the same of one kind of questions", "fraction; percent with vlmevalkit", "higher"),
    }

    def layouts(self) -> Sequence[Layout]:
        labels = {"labels": "coco_pope_*.json"}
        full = {category: f"{category}-*.parquet" for category in OFFSETS}
        return [
            Layout("LLaVA", {"llava": "llava_pope_test.jsonl", **labels}, {}, "files"),
            Layout("official", labels, {}, "files"),
            Layout("parquet", {"questions": "test-*.parquet"}, {}),
            Layout("parquet", full, {}),
            Layout("TSV", {"questions": "POPE.tsv"}, {}),
        ]

    @cached_property
    def truth(self) -> dict[str, LabeledQuestion]:
        """{question id: question and label}."""
        if self.files.layout == "LLaVA":
            return _matched(self._llava, self._official)
        if self.files.layout == "official":
            return self._official
        paths = [path for paths in self.files.paths.values() for path in paths]
        with reading.shape(paths[0]):
            if self.files.layout == "TSV":
                return {row["index"]: _from_tsv(row) for row in vlmevalkit_rows(paths[0])}
            return dict(map(_from_parquet, reading.parquet(paths)))

    @cached_property
    def _llava(self) -> list[Row]:
        return reading.json_lines(self.files.one("llava"))

    @cached_property
    def _official(self) -> dict[str, LabeledQuestion]:
        path_of = {PurePath(path).stem.removeprefix("coco_pope_"): path for path in self.files.paths["labels"]}
        return {
            qid: question
            for category in sorted(path_of, key=lambda one: list(OFFSETS).index(one) if one in OFFSETS else 9)
            for qid, question in _labels(path_of[category], category)
        }

    @cached_property
    def question_list(self) -> list[Question]:
        if self.files.layout == "LLaVA":
            with reading.shape(self.files.one("llava")):
                return [Question(str(row["question_id"]), row["text"], row["image"]) for row in self._llava]
        return [Question(qid, f"{labeled.question}\n{SHORT}", labeled.image) for qid, labeled in self.truth.items()]

    def right(self, qid: str) -> str:
        return "yes" if self.truth[qid].yes else "no"

    def score_joined(self, joined: JoinedAnswers, protocol: str) -> Score:
        """F1 of yes in each category and their mean, as fractions; joined by id, never by position."""
        joined.notes += [*self._revision(), *self._absent()]
        if protocol == "official":
            return self._mean_of_three(joined)
        return self._peer(joined, protocol, *PEERS[protocol])

    def _mean_of_three(self, joined: JoinedAnswers) -> Score:
        predictions = {qid: yes_or_no(text) for qid, text in joined.texts.items()}
        joined.counts["unparsable"] = sum(unclear(text) for text in joined.texts.values())
        metrics: dict[str, float] = {}
        for category, qids in self._categories().items():
            pairs = [(self.truth[qid].yes, predictions[qid] == "yes") for qid in qids]
            metrics |= {f"{category}/{name}": value for name, value in confusion(pairs).items()}
            if (True, True) not in pairs:  # it divides by the number of these
                joined.notes.append(f"{category}: no yes is right; the official script stops here, we give an F1 of 0")
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            metrics[name] = fmean(metrics[f"{category}/{name}"] for category in self._categories())
        items = {qid: float(self.truth[qid].yes == (word == "yes")) for qid, word in predictions.items()}
        parts = {
            category: {qid: f1_part(self.truth[qid].yes, predictions[qid] == "yes") for qid in qids}
            for category, qids in self._categories().items()
        }
        return Score(metrics, "f1", items, joined.counts, joined.notes, taken=predictions, parts=parts)

    def _peer(self, joined: JoinedAnswers, protocol: str, parse: Callable[[str], str], metrics_of: "Metrics") -> Score:
        """Both toolkits pool the questions for their headline, and give each category beside it."""
        predictions = {qid: parse(text) for qid, text in joined.texts.items()}
        groups = self._categories()
        pooled = [qid for qids in groups.values() for qid in qids]
        metrics: dict[str, float] = {}
        for group, qids in {"all": pooled, **groups}.items():
            pairs = [(self.truth[qid].yes, predictions[qid]) for qid in qids]
            metrics |= {f"{group}/{name}": value for name, value in metrics_of(pairs).items()}
        items = {qid: float(("yes" if self.truth[qid].yes else "no") == word) for qid, word in predictions.items()}
        parts = {"all": {qid: _pooled(self.truth[qid], word, protocol) for qid, word in predictions.items()}}
        return Score(metrics, "all/f1", items, joined.counts, joined.notes, taken=predictions, parts=parts)

    def _categories(self) -> dict[str, list[str]]:
        """{category: its question ids}; a question of VLMEvalKit's TSV may be in several."""
        categories: dict[str, list[str]] = {}
        for qid, question in self.truth.items():
            for category in question.categories:
                categories.setdefault(category, []).append(qid)
        return categories

    def _revision(self) -> list[str]:
        rows = len(self._categories().get("random", ()))
        if rows <= LLAVA_RANDOM:
            return []
        return [f"{rows} random questions: POPE's current revision; LLaVA's published numbers are on {LLAVA_RANDOM}"]

    def _absent(self) -> list[str]:
        absent = [category for category in OFFSETS if category not in self._categories()]
        return [f"without {', '.join(absent)}, whose files are not there: no mean of three"] if absent else []


Metrics = Callable[[Sequence[tuple[bool, str]]], dict[str, float]]


def _labels(path: str, category: str) -> list[tuple[str, LabeledQuestion]]:
    with reading.shape(path):
        return [
            (
                str(OFFSETS.get(category, 0) + int(row["question_id"])),
                LabeledQuestion(row["text"], row["image"], row["image"], row["label"] != "no", (category,)),
            )
            for row in reading.json_lines(path)
        ]


def _matched(llava: Sequence[Row], labels: Mapping[str, LabeledQuestion]) -> dict[str, LabeledQuestion]:
    """LLaVA's questions with their labels: by id where all of a category agree, else by picture and question.

    The trap: POPE's repository later replaced the random file. LLaVA's own scorer, which goes by position, then gives
    an F1 of 46 for 87 and says nothing.
    """
    labeled: dict[str, LabeledQuestion | None] = {}
    categories = list(dict.fromkeys(str(row["category"]) for row in llava))
    absent = [one for one in categories if not any(one in question.categories for question in labels.values())]
    if absent:
        what = f"no labels of {', '.join(absent)}"
        raise DataError(what, fix=f"fetch {', '.join(f'coco_pope_{one}.json' for one in absent)}")
    for category in categories:
        rows = {str(row["question_id"]): row for row in llava if row["category"] == category}
        by_id = {qid: question for qid, question in labels.items() if category in question.categories}
        agree = all(qid in by_id and _same(row, by_id[qid]) for qid, row in rows.items())
        labeled |= {qid: by_id[qid] for qid in rows} if agree else _by_content(rows, list(by_id.values()))
    unlabeled = [qid for qid, question in labeled.items() if question is None]
    if unlabeled:
        raise DataError(
            f"the label files are of another revision than LLaVA's questions; of its {len(labeled)} questions,"
            f" {len(unlabeled)} have no label: {few(unlabeled)}",
            fix="take coco_pope_*.json of RUCAIBox/POPE at commit e3e3926 (2,910 random rows)",
        )
    return {qid: question for qid, question in labeled.items() if question}


def _by_content(rows: Mapping[str, Row], labels: Sequence[LabeledQuestion]) -> dict[str, LabeledQuestion | None]:
    """The label of the same picture and question; None where there is none, or two that differ."""
    labeled: dict[tuple[str, str], LabeledQuestion | None] = {}
    for label in labels:
        key = label.picture, _mended(label.question)
        earlier = labeled.get(key, label)
        labeled[key] = label if earlier and earlier.yes == label.yes else None
    return {qid: labeled.get((row["image"], _mended(_question(row)))) for qid, row in rows.items()}


def _same(row: Row, label: LabeledQuestion) -> bool:
    return bool(row["image"] == label.picture and _mended(_question(row)) == _mended(label.question))


def _question(row: Row) -> str:
    """The question in a row of LLaVA's, without its suffix."""
    text: str = row["text"]
    return text.removesuffix(f"\n{SHORT}")


def _mended(question: str) -> str:
    """Later revisions mend a spelling."""
    return question.replace("imange", "image")


def yes_or_no(text: str) -> str:
    """The official reading: no where the first sentence has the word No, no or not; yes for everything else."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def unclear(text: str) -> bool:
    """Taken for a yes only because it is no `no`."""
    return yes_or_no(text) == "yes" and "yes" not in vqatext.without_marks(text.lower()).split()


def confusion(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Counts and rates of (label, answer) pairs, both True for yes; a rate over nothing is 0."""
    hits, false = pairs.count((True, True)), pairs.count((False, True))
    missed, rejected = pairs.count((True, False)), pairs.count((False, False))
    precision, recall = _share(hits, hits + false), _share(hits, hits + missed)
    return {
        "TP": hits,
        "FP": false,
        "TN": rejected,
        "FN": missed,
        "accuracy": (hits + rejected) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": (hits + false) / len(pairs),
    }


def f1_part(label: bool, answer: bool) -> tuple[float, float]:
    """What a question adds to 2 TP and to 2 TP + FP + FN, whose ratio F1 is."""
    return 2.0 * (label and answer), float(label) + float(answer)


def _pooled(question: LabeledQuestion, word: str, protocol: str) -> tuple[float, float]:
    """The same for a toolkit: once for each category; percent with VLMEvalKit, nothing for lmms-eval if unclear."""
    above, below = f1_part(question.yes, word == "yes")
    times = len(question.categories) * (protocol == "vlmevalkit" or word in ("yes", "no"))
    return times * above * (100 if protocol == "vlmevalkit" else 1), float(times * below)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _lmms_metrics(pairs: Sequence[tuple[bool, str]]) -> dict[str, float]:
    """Answers that are neither are wrong for accuracy, nothing for the others; yes_ratio is that of the labels."""
    clear = confusion([(yes, word == "yes") for yes, word in pairs if word in ("yes", "no")] or [(False, False)])
    rates = {name: clear[name] for name in ("precision", "recall", "f1")}
    return {"accuracy": _accuracy(pairs), **rates, "yes_ratio": fmean(yes for yes, _ in pairs)}


def _accuracy(pairs: Sequence[tuple[bool, str]]) -> float:
    return fmean(word == ("yes" if yes else "no") for yes, word in pairs)


def _word(text: str) -> str:
    """VLMEvalKit's reading: the word yes or no, but not both; in percent."""
    words = vqatext.without_marks(text.lower()).split()
    return "unknown" if ("yes" in words) == ("no" in words) else "yes" if "yes" in words else "no"


def _vlmevalkit_metrics(pairs: Sequence[tuple[bool, str]]) -> dict[str, float]:
    """Unknown answers count as no for precision, recall and F1, and as wrong for accuracy."""
    rates = confusion([(yes, word == "yes") for yes, word in pairs]) | {"accuracy": _accuracy(pairs)}
    return {name: 100 * rates[name] for name in ("f1", "accuracy", "precision", "recall")}


def _lower_case(text: str) -> str:
    return text.lower().strip()


# protocol: its reading of an answer, its metrics
PEERS: dict[str, tuple[Callable[[str], str], Metrics]] = {
    "lmms-eval": (_lower_case, _lmms_metrics),
    "vlmevalkit": (_word, _vlmevalkit_metrics),
}


def _from_parquet(row: Mapping[str, Any]) -> tuple[str, LabeledQuestion]:
    category = str(row["category"])
    name = f"{row['image_source']}.jpg"
    labeled = LabeledQuestion(row["question"], row["image"], name, str(row["answer"]).lower() != "no", (category,))
    return str(OFFSETS.get(category, 0) + int(row["question_id"])), labeled


def _from_tsv(row: Mapping[str, Any]) -> LabeledQuestion:
    yes, categories = row["answer"].lower() != "no", tuple(row["category"].split(","))
    return LabeledQuestion(row["question"], row["image"], row.get("image_path", ""), yes, categories)
