"""Answers in every official form are scored, uploads too; what can be read in two ways is refused."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mmalign.benchmarks.answers import answer_rows
from mmalign.benchmarks.filed import FiledBenchmark
from mmalign.benchmarks.gqa import GQA
from mmalign.benchmarks.mmbench import MMBench
from mmalign.benchmarks.mmlu import MMLU
from mmalign.benchmarks.mmvet import MMVet
from mmalign.benchmarks.pope import POPE
from mmalign.benchmarks.scienceqa import ScienceQA
from mmalign.benchmarks.textvqa import TextVQA
from mmalign.benchmarks.vizwiz import VizWiz
from mmalign.benchmarks.vqav2 import VQAv2
from mmalign.errors import DataError
from tests.benchmarks.test_benchmarks import SHORT, people, put
from tests.benchmarks.test_files import parquet
from tests.benchmarks.test_records import sheet
from tests.conftest import Said

Run = Callable[..., Said]
UNANIMOUS = [("yes", "Yes"), ("no", "No"), ("yes", "Yes"), ("black", "Black"), ("2", "2")]  # people's, the model's


# ------------------------------------------------------------------------------------------------- small benchmarks


def vqav2(folder: Path) -> VQAv2:
    told = [(1 + n, said) for n, (said, _) in enumerate(UNANIMOUS)]
    questions = [{"question_id": qid, "image_id": 7, "question": f"what is {qid}?"} for qid, _ in told]
    rows = [
        {"question_id": qid, "answer_type": "other", "question_type": "what", "answers": people(*[said] * 10)}
        for qid, said in told
    ]
    put(folder, "v2_OpenEnded_mscoco_val2014_questions.json", {"data_subtype": "val2014", "questions": questions})
    put(folder, "v2_mscoco_val2014_annotations.json", {"annotations": rows})
    return VQAv2(str(folder))


def gqa(folder: Path) -> GQA:
    row = {"imageId": "n1", "isBalanced": True, "groups": {"global": None}, "semantic": []}
    row |= {"types": {"structural": "query", "semantic": "obj", "detailed": "x"}}
    rows = {qid: row | {"question": f"is {qid} red?", "answer": a} for qid, a in (("201", "no"), ("0202", "urn"))}
    put(folder, "testdev_balanced_questions.json", rows)
    return GQA(str(folder))


def textvqa(folder: Path) -> TextVQA:
    rows = [
        {"question_id": 34602 + n, "image_id": f"a{n}", "question": f"What is {word}?", "answers": [word] * 10}
        for n, word in enumerate(("red", "urn"))
    ]
    put(folder, "TextVQA_0.5.1_val.json", {"data": rows})
    llava = [
        {"question_id": f"a{n}", "image": f"a{n}.jpg", "text": f"What is {word}?\nReference OCR token: x\n{SHORT}"}
        for n, word in enumerate(("red", "urn"))
    ]
    put(folder, "llava_textvqa_val_v051_ocr.jsonl", llava)
    return TextVQA(str(folder))


def vizwiz(folder: Path) -> VizWiz:
    rows = [{"image": f"{n}.jpg", "question": f"what is {n}?", "answers": people(*["red"] * 10)} for n in range(2)]
    put(folder, "val.json", rows)
    return VizWiz(str(folder))


def mmvet(folder: Path) -> MMVet:
    rows = {
        f"v1_{n}": {"imagename": f"{n}.png", "question": f"what is {n}?", "answer": "x", "capability": ["ocr"]}
        for n in range(40)
    }
    put(folder, "mm-vet.json", rows)
    return MMVet(str(folder))


HEADER = "index\tquestion\thint\tA\tB\tanswer\tcategory\timage"


def mmbench(folder: Path, **more: Any) -> MMBench:
    rows = [f"{index}\twhat is {index}?\t\ta\tb\t{answer}\tocr\tiVBO" for index, answer in ((1, "A"), (241, "B"))]
    put(folder, "mmbench_dev_20230712.tsv", "\n".join([HEADER, *rows, ""]))
    return MMBench(str(folder), **more)


def pope(folder: Path) -> POPE:
    rows = [{"question_id": n, "image": "a.jpg", "text": f"is there a {n}?", "label": "yes"} for n in (1, 2)]
    put(folder, "coco_pope_random.json", rows)
    return POPE(str(folder))


def scienceqa(folder: Path) -> ScienceQA:
    problem = {"question": "which?", "choices": ["a", "b"], "answer": 1, "hint": "", "image": "image.png"}
    put(folder, "problems.json", {qid: problem | {"question": f"which {qid}?"} for qid in ("11", "5")})
    put(folder, "pid_splits.json", {"test": ["11", "5"]})
    return ScienceQA(str(folder))


Maker = Callable[[Path], FiledBenchmark]
RIGHT: dict[Maker, dict[str, str]] = {
    vqav2: {str(1 + n): said for n, (said, _) in enumerate(UNANIMOUS)},
    gqa: {"201": "No.", "0202": "urn"},
    textvqa: {"34602": "red", "34603": "urn"},
    vizwiz: {"0.jpg": "Red.", "1.jpg": "red"},
    mmvet: {f"v1_{n}": f"it is {n}" for n in range(40)},
    mmbench: {"1": "A", "241": "B"},
    scienceqa: {"11": "B", "5": "B"},
    pope: {"10000001": "yes", "10000002": "yes"},
}


def read(bench: FiledBenchmark, folder: Path, content: Any, name: str = "answers.json") -> Mapping[str, str]:
    return bench.read(str(put(folder / "answers", name, content)))


def refused(bench: FiledBenchmark, folder: Path, content: Any, name: str = "answers.json") -> DataError:
    with pytest.raises(DataError) as error:
        read(bench, folder, content, name)
    return error.value


# ------------------------------------------------------------------------------------------------------ submissions


@pytest.mark.parametrize("make", [vqav2, gqa, textvqa, vizwiz, mmvet, mmbench], ids=lambda make: make.__name__)
def test_what_a_submission_writes_score_reads(make: Maker, tmp_path: Path) -> None:
    bench, right = make(tmp_path), RIGHT[make]
    upload = tmp_path / f"upload.{bench.submits}"
    bench.submission(right, upload)
    again = bench.read(str(upload))
    assert list(again) == [question.id for question in bench.questions()]
    expected, result = bench.score(right), bench.score(again)
    assert (result.metrics, result.items, result.counts) == (expected.metrics, expected.items, expected.counts)
    assert result.notes == expected.notes
    if make is not mmvet:
        assert result.metrics[result.headline] == {"mmbench": 1}.get(make.__name__, 100)
    bench.submission(again, tmp_path / f"again.{bench.submits}")
    if bench.submits == "json":
        assert (tmp_path / "again.json").read_bytes() == upload.read_bytes()


OFFICIAL: dict[str, tuple[Maker, Any]] = {
    "a list of VQA": (vqav2, [{"question_id": int(qid), "answer": text} for qid, text in RIGHT[vqav2].items()]),
    "a list of TextVQA": (textvqa, [{"question_id": int(qid), "answer": a} for qid, a in RIGHT[textvqa].items()]),
    "a list of GQA": (gqa, [{"questionId": qid, "prediction": text} for qid, text in RIGHT[gqa].items()]),
    "an upload of VizWiz": (vizwiz, [{"image": qid, "answer": text} for qid, text in RIGHT[vizwiz].items()]),
    "a dictionary of MM-Vet": (mmvet, RIGHT[mmvet]),
    "LLaVA's numbers of VizWiz": (vizwiz, [{"question_id": n, "text": t} for n, t in enumerate(["Red.", "red"])]),
    "LLaVA's numbers of MM-Vet": (mmvet, [{"question_id": n, "text": f"it is {n}"} for n in range(40)]),
    "LLaVA's result of ScienceQA": (
        scienceqa,
        {"acc": 100.0, "correct": 2, "count": 2, "results": {"11": 1, "5": 1}, "outputs": RIGHT[scienceqa]},
    ),
    "LLaVA's outputs of ScienceQA": (
        scienceqa,
        {
            "correct": [{"question_id": qid, "parsed_ans": "B", "pred": "B"} for qid in RIGHT[scienceqa]],
            "incorrect": [],
        },
    ),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_forms(name: str, tmp_path: Path) -> None:
    make, content = OFFICIAL[name]
    assert read(make(tmp_path), tmp_path, content) == RIGHT[make]


def test_what_llavas_scorer_calls_failed_is_missing(tmp_path: Path) -> None:
    """It fills in the word for a question without an answer; a mean over such rows is no score of the model."""
    bench, outputs = scienceqa(tmp_path), {"11": "B", "5": "FAILED"}
    rows = [{"question_id": qid, "question": "Unknown", "pred": text} for qid, text in outputs.items()]
    for content in ({"acc": 50.0, "outputs": outputs}, {"correct": rows[:1], "incorrect": rows[1:]}):
        answers = read(bench, tmp_path, content)
        assert answers == {"11": "B"}
        with pytest.raises(DataError, match="1 of 2 questions have no answer: 5"):
            bench.score(answers)


def test_a13_each_is_scored_by_the_command(tmp_path: Path, mmalign: Run) -> None:
    for make, card in ((vqav2, "vqav2"), (gqa, "gqa"), (vizwiz, "vizwiz"), (mmvet, "mmvet")):
        folder = tmp_path / card
        make(folder)
        content = next(content for maker, content in OFFICIAL.values() if maker is make)
        place = put(tmp_path, f"{card}.json", content)
        words = ["score", "--bench", card, "--data", folder, "--answers", place, "--json"]
        result = mmalign(*words, "--submission", tmp_path / f"{card}-up.json")
        assert result.code == 0, result.err
        first = json.loads(result.out)
        assert first["counts"]["answered"] == len(RIGHT[make])
        words[words.index(place)] = tmp_path / f"{card}-up.json"
        again = json.loads(mmalign(*words).out)
        assert (again["metrics"], again["items"]) == (first["metrics"], first["items"])


def test_chunks_of_llava_put_together(tmp_path: Path) -> None:
    """merge.jsonl: the files of all chunks, one behind the other."""
    row = {"prompt": "?", "answer_id": "x", "model_id": "llava-v1.5-7b", "metadata": {}}
    chunks = [{"question_id": qid, "text": text} | row for qid, text in RIGHT[gqa].items()]
    assert read(gqa(tmp_path), tmp_path, chunks, "merge.jsonl") == RIGHT[gqa]


# ------------------------------------------------------------------------------------- VLMEvalKit's and lmms-eval's


def kit(qids: Mapping[str, str], **more: Any) -> list[dict[str, Any]]:
    return [
        {"index": int(qid), "question": f"what is {qid}?", "answer": "C", "prediction": text, **more}
        for qid, text in qids.items()
    ]


@pytest.mark.parametrize("form", ["xlsx", "tsv", "json"])
def test_result_files_of_vlmevalkit(form: str, tmp_path: Path) -> None:
    """`answer` is the label there; a number is what pandas made of a text."""
    bench, rows = mmbench(tmp_path), kit(RIGHT[mmbench])
    place = tmp_path / f"model_MMBench_DEV_EN.{form}"
    if form == "json":
        place.write_text(json.dumps(rows, indent=4))
    elif form == "tsv":
        place.write_text("\n".join("\t".join(map(str, row)) for row in [list(rows[0]), *(r.values() for r in rows)]))
    else:
        place.write_bytes(sheet([list(rows[0]), *(list(row.values()) for row in rows)]))
    assert bench.read(str(place)) == RIGHT[mmbench]
    assert bench.score(bench.read(str(place))).metrics["Overall"] == 1


def test_an_index_that_is_another_question(tmp_path: Path) -> None:
    """VLMEvalKit's index counts the rows of its own TSV; 10000001 here is somebody else's question there."""
    bench = mmbench(tmp_path)
    error = refused(bench, tmp_path, kit({"1": "A"}) + kit({"241": "B"}, question="Which is it?"))
    assert error.what.startswith("`index` 241 was asked 'Which is it?'; here that is \"what is 241?")
    assert error.at.endswith("answers.json item 2")
    assert error.fix == "name the files those answers were made with: --data FOLDER"
    other = pope(tmp_path / "pope")
    error = refused(other, tmp_path, [{"index": 10000001, "prediction": "yes"}])
    assert "is the number of a row elsewhere, and nothing says what it asks" in error.what
    assert read(mmbench(tmp_path), tmp_path, [{"index": 1, "prediction": None}]) == {"1": ""}


def log(number: int, text: Any, asked: str, **kept: Any) -> dict[str, Any]:
    """A line of lmms-eval 0.7's samples, from its evaluation tracker."""
    row = {"doc_id": number, "target": "x", "filtered_resps": text, "token_counts": [None], "doc_hash": "0a"}
    return row | kept | {"input": asked}


def test_logs_of_lmms_eval_that_keep_ids(tmp_path: Path) -> None:
    rows = [
        log(n, text, f"what is {qid}?\n{SHORT}", exact_match=1.0, submission={"question_id": int(qid), "answer": "x"})
        for n, (qid, text) in reversed(list(enumerate(RIGHT[vqav2].items())))
    ]
    assert read(vqav2(tmp_path / "v"), tmp_path, rows, "samples_vqav2_val.jsonl") == RIGHT[vqav2]
    rows = [
        log(1 - n, [text], f"What is {n}?\n{SHORT}", submission={"image": qid, "answer": "x"})
        for n, (qid, text) in enumerate(RIGHT[vizwiz].items())
    ]
    assert read(vizwiz(tmp_path / "z"), tmp_path, rows, "samples.jsonl") == RIGHT[vizwiz]
    rows = [
        log(n, text, f"What is {word}?\n{SHORT}", submission={"question_id": qid, "answer": "x"})
        for n, ((qid, text), word) in enumerate(zip(RIGHT[textvqa].items(), ("red", "urn"), strict=True))
    ]
    bench = textvqa(tmp_path / "t")
    assert read(bench, tmp_path, rows, "samples.jsonl") == RIGHT[textvqa]
    (tmp_path / "t" / "llava_textvqa_val_v051_ocr.jsonl").unlink()  # the prompts of answers that are there are not made
    assert read(TextVQA(str(tmp_path / "t")), tmp_path, rows, "samples.jsonl") == RIGHT[textvqa]
    rows = [log(0, "A", "which?\nwhat is 1?\nA. a", gpt_eval_score={"index": 1, "prediction": "A"})]
    assert read(mmbench(tmp_path / "m"), tmp_path, rows, "samples.jsonl") == {"1": "A"}


def test_logs_of_lmms_eval_go_by_rows_where_they_keep_no_ids(tmp_path: Path) -> None:
    """GQA's log has the number of the row; it counts where the question asked is the one of that row."""
    bench = gqa(tmp_path)
    rows = [log(1, ["urn"], f"is 0202 red?\n{SHORT}", exact_match=1.0), log(0, "No.", f"is 201 red?\n{SHORT}")]
    assert read(bench, tmp_path, rows, "samples_gqa.jsonl") == {"0202": "urn", "201": "No."}
    error = refused(bench, tmp_path, [log(0, "no", f"is 0202 red?\n{SHORT}")], "samples_gqa.jsonl")
    assert "`doc_id` 0 was asked 'is 0202 red?" in error.what
    assert error.at.endswith("samples_gqa.jsonl:1")
    assert "nothing says what it asks" in refused(bench, tmp_path, [log(0, "no", None)], "s.jsonl").what  # type: ignore[arg-type]
    for several in (["a", "b"], [["-1.5", "True"], ["-2.5", "False"]]):
        error = refused(bench, tmp_path, [log(0, several, "is 201 red?")], "s.jsonl")
        assert "no text in `filtered_resps`, but log-probabilities or several" in error.what


def test_a_log_of_pope_goes_by_rows(tmp_path: Path) -> None:
    """Its question_id counts from 1 in each category."""
    rows = [
        {"question_id": str(n), "question": f"is there a {n}?", "answer": "yes", "category": kind, "image": None,
         "image_source": "a"}
        for kind in ("adversarial", "random") for n in (1, 2)
    ]  # fmt: skip
    parquet(tmp_path / "test-00000-of-00001.parquet", rows)
    rows = [
        log(n, f"{n}", f"is there a {1 + n % 2}?\n{SHORT}", pope_accuracy={"question_id": str(1 + n % 2), "score": 1.0})
        for n in range(4)
    ]
    expected = {"1": "0", "2": "1", "10000001": "2", "10000002": "3"}
    assert read(POPE(str(tmp_path)), tmp_path, rows, "samples_pope.jsonl") == expected
    assert read(POPE(str(tmp_path)), tmp_path, rows[2:], "samples_pope.jsonl") == {"10000001": "2", "10000002": "3"}


# --------------------------------------------------------------------------------------------- what is not guessed


def test_a10_two_ids(tmp_path: Path) -> None:
    """MM-Vet's rows with both filed 208 of 218 answers under the wrong question."""
    rows = [{"id": n, "question_id": f"v1_{39 - n}", "text": "a"} for n in range(40)]
    error = refused(mmvet(tmp_path), tmp_path, rows, "a.jsonl")
    assert "answer 1 has several ids that differ: `id` 0, `question_id` 'v1_39'" in error.what
    assert error.at.endswith("a.jsonl:1")
    assert read(mmvet(tmp_path), tmp_path, [{"id": 3, "question_id": "3", "text": "a"}], "a.jsonl") == {"v1_3": "a"}


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"question_id": 1, "index": 2, "prediction": "a"}, "several ids that differ: `question_id` 1, `index` 2"),
        ({"questionId": "1", "id": "2", "prediction": "a"}, "several ids that differ: `id` '2', `questionId` '1'"),
        ({"question_id": 1, "text": "a", "answer": "b"}, "several texts that differ: `text` 'a', `answer` 'b'"),
        ({"question_id": 1, "answer": "a", "prediction": "b"}, "several texts that differ: `answer` 'a', `prediction`"),
        ({"question_id": 1, "answer": 2}, "a `answer` that is no text: 2"),
        ({"question_id": 1.5, "answer": "a"}, "an id that is neither text nor a whole number: 1.5"),
        ({"question_id": True, "answer": "a"}, "an id that is neither text nor a whole number: True"),
        ({"index": 1, "answer": "A"}, "no `prediction`"),
        ({"question_id": 1, "question": "what?"}, "no `text`"),
        ({"id": None, "text": "a"}, "neither `id` nor `question_id`; its keys: id, text"),
    ],
)
def test_rows_that_can_be_read_in_two_ways_or_in_none(row: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        answer_rows(str(put(tmp_path, "a.json", [{"id": 1, "text": "a"}, row])))
    assert error.value.what.startswith(f"answer 2 has {what}")
    assert error.value.at == f"{tmp_path / 'a.json'} item 2"
    assert "question_id" in error.value.fix


def test_the_same_said_twice_is_read(tmp_path: Path) -> None:
    rows = [{"id": 1, "question_id": "1", "text": "a", "answer": "a"}, {"question_id": None, "id": "2", "pred": "b"}]
    assert {row.id: row.text for row in answer_rows(str(put(tmp_path, "a.json", rows)))} == {"1": "a", "2": "b"}


def test_a11_rounds_without_all_rounds(tmp_path: Path, mmalign: Run) -> None:
    """A perfect model, asked four times, had 0.0000."""
    bench = mmbench(tmp_path, all_rounds=True)
    rows = [
        {"question_id": int(qid.split("/")[0]), "round_id": turn, "text": row["answer"]}
        for qid, row in bench.rounds.items()
        for turn in [int(qid.split("/")[1]) if "/" in qid else 0]
    ]
    assert bench.score(read(bench, tmp_path, rows, "a.jsonl")).metrics["Overall"] == 1
    words = ["score", "--bench", "mmbench", "--data", tmp_path, "--answers", tmp_path / "answers" / "a.jsonl"]
    result = mmalign(*words)
    assert (result.code, result.out) == (2, "")
    assert "error: an answer to round 1 of question 1, whose options were rotated; here they stay" in result.err
    assert "a.jsonl:2" in result.err
    assert result.err.splitlines()[-1] == "  try  all_rounds=true"
    assert mmalign(*words, "all_rounds=true").code == 0


def test_a12_duplicates_that_differ(tmp_path: Path, mmalign: Run) -> None:
    bench = textvqa(tmp_path)
    rows = [{"question_id": 34602, "answer": "red"}, {"question_id": 34603, "answer": "urn"}]
    twice = [*rows, {"question_id": 34602, "answer": "blue"}]
    words = ["score", "--bench", "textvqa", "--data", tmp_path, "--answers", put(tmp_path, "a.json", twice)]
    result = mmalign(*words, "--submission", tmp_path / "up.json")
    assert (result.code, result.out) == (2, "")
    assert "1 questions have several answers that differ: 34602 ('red', 'blue')" in result.err
    assert result.err.splitlines()[-1] == "  try  keep one of each, or score leniently: the last one then counts"
    assert not (tmp_path / "up.json").exists()
    assert json.loads(mmalign(*words, "--gaps", "lenient", "--json").out)["metrics"]["accuracy"] == 50
    equal = read(bench, tmp_path, [*rows, *rows])
    assert (bench.score(equal).metrics["accuracy"], bench.score(equal).counts["duplicate"]) == (100, 2)


def test_an_upload_has_no_gaps_under_strict(tmp_path: Path, mmalign: Run) -> None:
    """A missing answer would be an empty one there, and a number the server gives would be of less than it seems."""
    folder = tmp_path / "dev"
    rows = [{"question_id": n, "image": "a.jpg", "text": "?"} for n in (1, 2)]
    put(folder, "llava_vqav2_mscoco_test-dev2015.jsonl", rows)
    answers = put(tmp_path, "a.json", [{"question_id": 1, "text": "Yes"}])
    words = ["score", "--bench", "vqav2", "--data", folder, "--answers", answers, "--submission", tmp_path / "up.json"]
    result = mmalign(*words)
    assert (result.code, "1 of 2 questions have no answer: 2" in result.err) == (2, True)
    assert not (tmp_path / "up.json").exists()
    assert mmalign(*words, "--gaps", "lenient").code == 0
    upload = [{"question_id": 1, "answer": "yes"}, {"question_id": 2, "answer": ""}]
    assert json.loads((tmp_path / "up.json").read_text()) == upload


def test_a_key_that_is_there_twice_in_a_mapping(tmp_path: Path) -> None:
    bench = mmvet(tmp_path)
    rows = json.dumps(RIGHT[mmvet])[:-1] + ', "v1_0": "another"}'
    with pytest.raises(DataError, match="1 questions have several answers that differ: v1_0"):
        bench.score(read(bench, tmp_path, rows))


def test_several_files_could_be_the_questions(tmp_path: Path) -> None:
    mmbench(tmp_path)
    put(tmp_path, "mmbench_dev_20231003.tsv", HEADER + "\n")
    with pytest.raises(DataError, match="2 files could be the questions: mmbench_dev_20230712.tsv, mmb") as error:
        MMBench(str(tmp_path))
    assert error.value.fix == f"say which: --data {tmp_path / 'mmbench_dev_20230712.tsv'}, or its folder"
    assert len(MMBench(str(tmp_path / "mmbench_dev_20230712.tsv")).questions()) == 2
    other = tmp_path / "kit"
    for name in ("MMBench_DEV_EN.tsv", "MMBench_DEV_EN_V11.tsv"):
        put(other, name, HEADER + "\n")
    with pytest.raises(DataError, match=r"2 files could be the questions: MMBench_DEV_EN.tsv, MMBench_DEV_EN_V11.tsv"):
        MMBench(str(other))


def test_one_name_in_several_folders(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        vizwiz(tmp_path / folder)
    with pytest.raises(DataError, match=r"2 files could be the questions: a/val.json, b/val.json"):
        VizWiz(str(tmp_path))
    for folder in ("c", "d"):
        pope(tmp_path / "pope" / folder)
    with pytest.raises(DataError, match="2 files could be the labels: c/coco_pope_random.json, d/coco_pope"):
        POPE(str(tmp_path / "pope"))


def test_gqa_takes_the_choices_of_its_own_tier(tmp_path: Path) -> None:
    gqa(tmp_path)
    (tmp_path / "testdev_balanced_questions.json").rename(tmp_path / "val_balanced_questions.json")
    valid = {qid: {"valid": ["no", "urn"], "plausible": ["urn"]} for qid in RIGHT[gqa]}
    put(tmp_path, "train_choices.json", {})
    put(tmp_path, "val_choices.json", valid)
    metrics = GQA(str(tmp_path)).score(RIGHT[gqa]).metrics
    assert (metrics["validity"], metrics["plausibility"]) == (100, 50)
    put(tmp_path, "train_balanced_questions.json", {})
    with pytest.raises(DataError, match="2 tiers of GQA"):
        GQA(str(tmp_path))


def test_a_row_of_mmlu_has_an_answer_or_probabilities(tmp_path: Path) -> None:
    put(tmp_path, "test/anatomy_test.csv", "What?,a,b,c,d,A\n")
    put(tmp_path, "dev/anatomy_dev.csv", "Which?,a,b,c,d,B\n" * 5)
    bench = MMLU(str(tmp_path))
    rows = [{"id": "anatomy/0", "logprobs": {" B": -1.0, " A": -2.0}}]
    assert read(bench, tmp_path, rows) == {"anatomy/0": "B"}
    assert "answer 1 has no `text`" in refused(bench, tmp_path, [{"id": "anatomy/0"}]).what


# ------------------------------------------------------------------------------------------------------- protocols


def test_a9_llavas_protocol_for_vqav2(tmp_path: Path, mmalign: Run) -> None:
    """Published numbers are the server's on answers LLaVA has normalised."""
    vqav2(tmp_path)
    rows = [{"question_id": 1 + n, "answer": said} for n, (_, said) in enumerate(UNANIMOUS)]
    words = ["score", "--bench", "vqav2", "--data", tmp_path, "--answers", put(tmp_path, "a.json", rows), "--json"]
    official = json.loads(mmalign(*words).out)
    assert (official["metrics"]["overall"], official["protocol"]) == (20, "official")
    assert official["notes"][0] == (
        "on 4 of 5 questions where all people agree, only their spelling decides: the official rule compares it as it "
        "is written. LLaVA normalises its answers before: 100.00 by --protocol llava"
    )
    llava = json.loads(mmalign(*words, "--protocol", "llava").out)
    assert (llava["metrics"]["overall"], llava["protocol"]) == (100, "llava")
    assert "scored by the rule of llava, not the official one" in llava["notes"]


def test_where_spelling_decides_nothing_there_is_no_note(tmp_path: Path) -> None:
    result = vqav2(tmp_path).score(RIGHT[vqav2])
    assert (result.metrics["overall"], result.notes) == (100, [])


def test_llavas_protocol_for_vizwiz(tmp_path: Path) -> None:
    """What LLaVA uploads, judged by the official program: a comma is gone before that looks for one."""
    rows = [
        {"image": "0.jpg", "question": "?", "answers": people(*["redblue"] * 10)},
        {"image": "1.jpg", "question": "?", "answers": people(*["Red"] * 10)},
    ]
    put(tmp_path, "val.json", rows)
    bench, answers = VizWiz(str(tmp_path)), {"0.jpg": "Red,blue", "1.jpg": "red"}
    official, llava = bench.score(answers), bench.score(answers, "llava")
    assert (official.items, llava.items) == ({"0.jpg": 0, "1.jpg": 0}, {"0.jpg": 100, "1.jpg": 0})
    assert (official.protocol, llava.protocol) == ("official", "llava")
    assert official.notes == [
        "on 1 of 2 questions where all people agree, only their spelling decides: the official rule compares it as it "
        "is written. LLaVA normalises its answers before: 50.00 by --protocol llava"
    ]
    bench.submission(answers, tmp_path / "up.json")
    assert bench.score(bench.read(str(tmp_path / "up.json"))).items == llava.items


@pytest.mark.parametrize("make", [vqav2, gqa, vizwiz, pope], ids=lambda make: make.__name__)
def test_a_score_says_whose_rules_it_follows(make: Maker, tmp_path: Path) -> None:
    bench = make(tmp_path)
    for protocol in bench.protocols:
        assert bench.score(RIGHT[make], protocol).protocol == protocol


# ---------------------------------------------------------------------------------------------------------- grades


def graded(folder: Path, name: str = "grades.json") -> str:
    row = {"model": ["gpt-4"], "content": ["1.0"], "score": [1.0]}
    return str(put(folder, name, dict.fromkeys(RIGHT[mmvet], row)))


def test_grades_of_the_evaluator_are_held_to_the_file_it_graded(tmp_path: Path) -> None:
    """Its grades do not hold the answers; they are called after the results file, which lies beside them."""
    mmvet(tmp_path)
    grades = graded(tmp_path, "llava_13b_gpt-4-0613-grade-1runs.json")
    bench = MMVet(str(tmp_path), grades=grades)
    untold = "nothing tells that llava_13b_gpt-4-0613-grade-1runs.json grades these answers, not another run's"
    assert untold in bench.score(RIGHT[mmvet]).notes
    put(tmp_path, "llava_13b.json", {qid: f" {text}\n" for qid, text in RIGHT[mmvet].items()})
    result = bench.score(RIGHT[mmvet])
    assert (result.metrics["total"], untold in result.notes) == (100, False)
    with pytest.raises(DataError, match="2 grades are of other answers than these: v1_3, v1_7") as error:
        bench.score(RIGHT[mmvet] | {"v1_3": "another", "v1_7": "run"})
    assert error.value.at == grades
    assert error.value.fix == "a grades file of its own for each run: grades=FILE.json"
    put(tmp_path, "llava_13b.json", {"v1_0": "it is 0"})
    with pytest.raises(DataError, match="39 grades are of other answers than these"):
        bench.score(RIGHT[mmvet])
