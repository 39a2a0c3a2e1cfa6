"""What the ten benchmarks do with small files of their own: layouts, ids, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmalign.benchmarks.gqa import GQA, distribution
from mmalign.benchmarks.mmbench import MMBench
from mmalign.benchmarks.mmlu import MMLU, likeliest
from mmalign.benchmarks.pictures import Base64Image
from mmalign.benchmarks.pope import POPE, unclear, yes_or_no
from mmalign.benchmarks.scienceqa import ScienceQA, letter
from mmalign.benchmarks.textvqa import TextVQA, question_of
from mmalign.benchmarks.vizwiz import VizWiz, average_precision, f1
from mmalign.benchmarks.vqav2 import VQAv2
from mmalign.errors import DataError

SHORT = "Answer the question using a single word or phrase."


def put(folder: Path, name: str, content: Any) -> Path:
    """A file: text as it is, a list of rows as JSON lines where the name says so, else JSON."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".jsonl") or "coco_pope" in name:
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def people(*texts: str) -> list[dict[str, Any]]:
    return [{"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(texts)]


# -------------------------------------------------------------------------------------------------------------- VQAv2


def vqa(folder: Path, split: str = "val2014", answers: bool = True) -> str:
    questions = [{"question_id": 77000, "image_id": 77, "question": "Is the kettle red?"}]
    put(folder, f"v2_OpenEnded_mscoco_{split}_questions.json", {"data_subtype": split, "questions": questions})
    row = {"question_id": 77000, "answer_type": "yes/no", "question_type": "is the", "answers": people(*["yes"] * 10)}
    if answers:
        put(folder, f"annotations/v2_mscoco_{split}_annotations.json", {"annotations": [row]})
    return str(folder)


def test_vqav2_asks_about_the_picture_of_the_split(tmp_path: Path) -> None:
    [question] = VQAv2(vqa(tmp_path)).questions()
    assert (question.id, question.image) == ("77000", "COCO_val2014_000000000077.jpg")
    assert question.text == f"Is the kettle red?\n{SHORT}"
    [question] = VQAv2(vqa(tmp_path / "dev", "test-dev2015", answers=False)).questions()
    assert question.image == "COCO_test2015_000000000077.jpg"


def test_vqav2_prefers_the_split_with_answers(tmp_path: Path) -> None:
    vqa(tmp_path, "test-dev2015", answers=False)
    assert "test-dev2015" in VQAv2(str(tmp_path)).data_files
    vqa(tmp_path)
    assert "val2014" in VQAv2(str(tmp_path)).data_files
    assert "test-dev2015" in VQAv2(str(tmp_path), split="test-dev").data_files


def test_vqav2_has_no_local_score_for_a_test_split(tmp_path: Path) -> None:
    bench = VQAv2(vqa(tmp_path, "test-dev2015", answers=False))
    with pytest.raises(DataError, match="VQAv2: these files hold no answers") as error:
        bench.score({"77000": "yes"})
    assert error.value.fix == "write a submission for EvalAI (challenge 830): mmalign score --submission FILE"


def test_vqav2_submits_every_id_of_test2015(tmp_path: Path) -> None:
    vqa(tmp_path, "test-dev2015", answers=False)
    rows = [{"question_id": n, "image": "a.jpg", "text": "?"} for n in (1, 77000)]
    put(tmp_path, "llava_vqav2_mscoco_test2015.jsonl", rows)
    VQAv2(str(tmp_path)).submission({"77000": "The dog's."}, tmp_path / "up.json")
    upload = [{"question_id": 1, "answer": ""}, {"question_id": 77000, "answer": "dog 's"}]
    assert json.loads((tmp_path / "up.json").read_text()) == upload


def test_vqav2_splits_are_named() -> None:
    with pytest.raises(DataError, match="VQAv2 has no split 'dev'"):
        VQAv2("/anywhere", split="dev")


def test_vqav2_refuses_a_question_nobody_answered(tmp_path: Path) -> None:
    folder = vqa(tmp_path)
    file = tmp_path / "annotations" / "v2_mscoco_val2014_annotations.json"
    file.write_text(json.dumps({"annotations": [{"question_id": 77000, "answers": []}]}))
    with pytest.raises(DataError, match="question 77000 has no answers"):
        VQAv2(folder).score({"77000": "yes"})


def test_protocols_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="VQAv2 has no protocol 'lmms'") as error:
        VQAv2(vqa(tmp_path)).score({"77000": "yes"}, protocol="lmms")
    assert error.value.fix == "did you mean 'lmms-eval'?"
    result = VQAv2(str(tmp_path)).score({"77000": "yes"}, protocol="lmms-eval")
    assert "scored by the rule of lmms-eval, not the official one" in result.notes
    same = TextVQA(textvqa(tmp_path / "textvqa"))
    assert not same.score(dict.fromkeys(same.truth, "x"), protocol="lmms-eval").notes


def test_a_benchmark_names_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no files of VQAv2 in") as error:
        VQAv2(str(tmp_path), split="val")
    assert "v2_OpenEnded_mscoco_val2014_questions.json (official)" in error.value.fix


# ---------------------------------------------------------------------------------------------------------------- GQA


def gqa_row(answer: str = "red", **more: Any) -> dict[str, Any]:
    kinds = {"structural": "query", "semantic": "attr", "detailed": "x"}
    base = {"question": "What is it?", "imageId": "n1", "answer": answer, "isBalanced": True, "types": kinds}
    return base | {"groups": {"global": "color"}, "semantic": [], "entailed": []} | more


def test_gqa_converts_as_llava_does(tmp_path: Path) -> None:
    put(tmp_path, "testdev_balanced_questions.json", {"01": gqa_row(), "02": gqa_row("blue")})
    bench = GQA(str(tmp_path))
    assert [question.image for question in bench.questions()] == ["n1.jpg", "n1.jpg"]
    result = bench.score({"01": "Red..", "02": "blue ."})
    assert result.items == {"01": 100, "02": 0}  # a blank before the period stays
    bench.submission({"01": "Red.."}, tmp_path / "up.json")
    assert json.loads((tmp_path / "up.json").read_text()) == [{"questionId": "01", "prediction": "red"}]


def test_gqa_distribution_is_the_weighted_chi_square() -> None:
    color = [("color", "red", "blue"), ("color", "red", "red"), ("color", "blue", "x")]  # red 1 for 2, blue 1 for 1
    expected = (3 * ((1 - 2) ** 2 / 2 + (1 - 1) ** 2 / 1) + 1 * 0) / 4 / 100
    assert distribution([*color, ("shape", "round", "round"), (None, "x", "y")]) == pytest.approx(expected)
    assert distribution([]) == 0


def test_gqa_wants_to_know_the_tier(tmp_path: Path) -> None:
    for tier in ("val_balanced", "val_all"):
        put(tmp_path, f"{tier}_questions.json", {"1": gqa_row()})
    with pytest.raises(DataError, match="2 tiers of GQA"):
        GQA(str(tmp_path))
    assert "val_all_questions.json" in GQA(str(tmp_path), tier="val_all").data_files


def test_gqa_consistency_needs_what_is_entailed(tmp_path: Path) -> None:
    put(tmp_path, "val_all_questions.json", {"1": gqa_row(entailed=["2"])})
    with pytest.raises(DataError, match="question 1 entails 2, which this tier lacks"):
        GQA(str(tmp_path), consistency=True).score({"1": "red"})
    put(tmp_path / "tsv", "GQA_TestDev_Balanced.tsv", "index\timage\tquestion\tanswer\n0\tx\tWhat?\tred\n")
    with pytest.raises(DataError, match="does not say what a question entails"):
        GQA(str(tmp_path / "tsv"), consistency=True)


def test_gqa_without_the_official_file_can_be_asked_but_not_scored(tmp_path: Path) -> None:
    put(tmp_path, "llava_gqa_testdev_balanced.jsonl", [{"question_id": "1", "image": "n1.jpg", "text": "?"}])
    bench = GQA(str(tmp_path))
    assert [question.id for question in bench.questions()] == ["1"]
    with pytest.raises(DataError, match="GQA: these files hold no answers"):
        bench.score({"1": "red"})


# ------------------------------------------------------------------------------------------------------------ TextVQA


def textvqa(folder: Path) -> str:
    rows = [
        {"question_id": 34602, "image_id": "00ab", "question": "what is USB?", "answers": ["a port"] * 10},
        {"question_id": 34603, "image_id": "00ab", "question": "What is usb?", "answers": ["a plug"] * 10},
        {"question_id": 34604, "image_id": "00ac", "question": "who?", "answers": ["me"] * 10},
    ]
    put(folder, "TextVQA_0.5.1_val.json", {"data": rows})
    text = f"What is usb?\nReference OCR token: USB, 3\n{SHORT}"
    llava = [{"question_id": "00ab", "image": "00ab.jpg", "text": text}] * 2
    last = {"question_id": "00ac", "image": "00ac.jpg", "text": f"Who?\nReference OCR token: \n{SHORT}"}
    put(folder, "llava_textvqa_val_v051_ocr.jsonl", [*llava, last])
    return str(folder)


def test_textvqa_gives_each_row_of_llava_an_id_of_its_own(tmp_path: Path) -> None:
    """Two annotations may share image and question; the official scorer judges both by the later."""
    bench = TextVQA(textvqa(tmp_path))
    assert [question.id for question in bench.questions()] == ["34602", "34603", "34604"]
    questions = bench.questions()
    rows = [{"question_id": one.image[:4], "prompt": one.text, "text": "plug"} for one in questions]
    result = bench.score(bench.read(str(put(tmp_path, "answers.jsonl", rows))))
    assert result.items == {"34602": 100, "34603": 100, "34604": 0}
    ours = [{"id": one.id, "text": "plug"} for one in questions]
    assert bench.score(bench.read(str(put(tmp_path, "ours.jsonl", ours)))).items == result.items


def test_pictures_are_known_without_the_prompts(tmp_path: Path) -> None:
    """What an interval is resampled by: TextVQA's questions cannot be asked without OCR tokens, VQAv2's need not be."""
    place = textvqa(tmp_path / "textvqa")
    (Path(place) / "llava_textvqa_val_v051_ocr.jsonl").unlink()
    bench = TextVQA(place)
    with pytest.raises(DataError, match="no OCR tokens"):
        bench.questions()
    assert bench.references() == {"34602": "00ab.jpg", "34603": "00ab.jpg", "34604": "00ac.jpg"}


def test_textvqa_asks_a_split_without_answers(tmp_path: Path) -> None:
    put(tmp_path, "TextVQA_0.5.1_test.json", {"data": [{"question_id": 1, "image_id": "00ab", "question": "what?"}]})
    (tmp_path / "00ab.jpg").touch()
    bench = TextVQA(str(tmp_path), split="test", ocr=False)
    bench.ready()
    with pytest.raises(DataError, match="TextVQA: these files hold no answers"):
        bench.score({"1": "x"})


def test_textvqa_submits_its_own_ids(tmp_path: Path) -> None:
    TextVQA(textvqa(tmp_path)).submission({"34604": "me"}, tmp_path / "up.json")
    assert json.loads((tmp_path / "up.json").read_text())[2] == {"question_id": 34604, "answer": "me"}


@pytest.mark.parametrize("prompt", ["one line", "a\nb\nc", "1\n2\n3\n4", "OCR tokens: x. Question: what"])
def test_textvqa_knows_four_forms_of_prompts(prompt: str) -> None:
    assert question_of(f"Reference OCR token: a\nWhat?\n{SHORT}") == "What?"
    with pytest.raises(DataError, match="no question can be found in the prompt"):
        question_of(prompt)


# ------------------------------------------------------------------------------------------------------------- VizWiz


def vizwiz(folder: Path) -> str:
    rows = [
        {"image": "a.jpg", "question": "What BRAND?", "answers": people(*["Dont"] * 10), "answer_type": "other"},
        {
            "image": "b.jpg",
            "question": "why?",
            "answers": people(*["unanswerable"] * 10),
            "answer_type": "unanswerable",
        },
    ]
    put(folder, "val.json", rows)
    return str(folder)


def test_vizwiz_normalises_the_answer_only(tmp_path: Path) -> None:
    bench = VizWiz(vizwiz(tmp_path))
    assert bench.questions()[0].text.startswith("What brand?\nWhen the provided information is insufficient,")
    result = bench.score({"a.jpg": "Dont", "b.jpg": "Unanswerable."})
    assert result.items == {"a.jpg": 0, "b.jpg": 100}
    assert result.metrics["lmms-eval"] == 100


def test_vizwiz_takes_llavas_running_numbers(tmp_path: Path) -> None:
    bench = VizWiz(vizwiz(tmp_path))
    answers = put(tmp_path, "a.jsonl", [{"question_id": 1, "text": "x"}, {"question_id": "a.jpg", "text": "y"}])
    assert bench.read(str(answers)) == {"b.jpg": "x", "a.jpg": "y"}


@pytest.mark.parametrize(
    ("file", "row"),
    [
        ("val.json", [{"image": ["a.jpg"], "question": "?", "answers": []}]),
        ("llava_test.jsonl", [{"question_id": 0, "image": ["a.jpg"], "text": "?"}]),
    ],
)
def test_a_picture_of_vizwiz_has_a_name(tmp_path: Path, file: str, row: list[dict[str, object]]) -> None:
    bench = VizWiz(str(put(tmp_path, file, row).parent))
    answers = put(tmp_path, "a.jsonl", [{"question_id": "a.jpg", "text": "y"}])
    with pytest.raises(DataError, match=r"not built as expected: a picture is named \['a.jpg'\]") as err:
        bench.read(str(answers))
    assert file in err.value.at


def test_vizwiz_submits_every_picture(tmp_path: Path) -> None:
    bench = VizWiz(vizwiz(tmp_path))
    with pytest.raises(DataError, match="the server wants every picture; 1 have no answer"):
        bench.submission({"a.jpg": "x"}, tmp_path / "up.json")


def test_vizwiz_test_has_no_answers(tmp_path: Path) -> None:
    put(tmp_path, "llava_test.jsonl", [{"question_id": 0, "image": "t.jpg", "text": "?"}])
    bench = VizWiz(str(tmp_path))
    with pytest.raises(DataError, match="VizWiz: these files hold no answers"):
        bench.score({"t.jpg": "x"})
    with pytest.raises(DataError, match="VizWiz has no split 'dev'"):
        VizWiz(str(tmp_path), split="dev")


def test_answerability_of_a_perfect_and_a_blind_answerer() -> None:
    assert (average_precision([(True, True), (False, False)]), f1([(True, True), (False, False)])) == (1, 1)
    blind = [(True, False), (False, False)]
    assert (average_precision(blind), f1(blind)) == (0.5, 0)
    assert f1([(False, False)]) == 0


# ---------------------------------------------------------------------------------------------------------- ScienceQA


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("A", "A"),
        ("B. vase", "B"),
        ("The answer is C.", "C"),
        ("The answer is Apple", "A"),
        ("A.", "FAILED"),
        ("(A)", "FAILED"),
        ("a", "FAILED"),
        ("The answer is A", "FAILED"),
        ("The answer is A. The answer is A.", "FAILED"),
        ("AB", "FAILED"),
        ("", "FAILED"),
    ],
)
def test_scienceqa_reads_letters_as_llava_does(text: str, read: str) -> None:
    assert letter(text) == read


def scienceqa(folder: Path) -> str:
    base = {"question": "Which?", "choices": ["urn", "vase"], "answer": 1, "subject": "natural science"}
    text = base | {"hint": "A <image> here.", "image": None, "grade": "grade7", "topic": "verbs"}
    picture = base | {"hint": "", "image": "image.png", "grade": "grade6", "topic": "verbs"}
    put(folder, "problems.json", {"7": text, "8": picture, "9": picture})
    put(folder, "pid_splits.json", {"test": ["7", "8"]})
    return str(folder)


def test_scienceqa_counts_pictures_by_the_problem(tmp_path: Path) -> None:
    bench = ScienceQA(scienceqa(tmp_path))
    first, second = bench.questions()
    assert first.text.split("\n")[:3] == ["Context: A  here.", "Which?", "A. urn"]  # the mark is taken out
    assert (first.image, second.image) == (None, "8/image.png")
    result = bench.score({"7": "B", "8": "A"})
    assert (result.metrics["acc"], result.metrics["img_acc"]) == (50, 0)
    grades = result.metrics["by/grade_7_12"], result.metrics["by/grade_1_6"]
    assert (grades, result.metrics["topic/verbs"]) == ((100, 0), 50)
    assert bench.score({"7": "B", "8": "what"}).counts["unparsable"] == 1


def test_scienceqa_splits_are_those_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'minival'") as error:
        ScienceQA(scienceqa(tmp_path), split="minival").questions()
    assert error.value.fix == "one of test"


# ------------------------------------------------------------------------------------------------------------ MMBench


def mmbench(folder: Path, name: str = "mmbench_dev_20230712.tsv") -> str:
    head = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category", "split"]
    rows = [
        ["12", "Which one is red?", "", "kettle", "urn", "", "", "A", "color", "iVBORw0", "logic_reasoning", "dev"],
        ["1000012", "Which one is red?", "", "urn", "kettle", "", "", "B", "color", "12", "logic_reasoning", "dev"],
        ["13", "How many?", "Look.", "1", "none", "3", "4", "A", "count", "iVBORw1", "coarse_perception", "dev"],
    ]
    put(folder, name, "\n".join("\t".join(row) for row in [head, *rows]))
    return str(folder)


def test_mmbench_counts_a_question_when_every_pass_is_right(tmp_path: Path) -> None:
    bench = MMBench(mmbench(tmp_path))
    texts = [question.text.split("\n")[:-1] for question in bench.questions()]
    assert texts[0] == ["Which one is red?", "A. kettle", "B. urn"]
    assert texts[2] == ["Look.", "How many?", "A. 1"]  # options end at `none`
    assert bench.questions()[1].image == Base64Image("iVBORw0")  # a rotated row names the row with the picture
    result = bench.score({"12": "A", "1000012": "A", "13": "A"})
    assert result.items == {"12": 0, "13": 1}
    assert (result.metrics["Overall"], result.metrics["first_pass"], result.metrics["LR"]) == (0.5, 1, 0)
    assert bench.score({"12": "A", "1000012": "B", "13": "?"}).counts["unparsable"] == 1


def test_mmbench_makes_the_rounds_of_a_file_that_is_not_circular(tmp_path: Path) -> None:
    head = ["index", "question", "hint", "A", "B", "C", "answer", "image"]
    rows = [["12", "Which is red?", "", "oar", "urn", "vase", "B", "iVBORw0"], ["13", "?", "", "1", "2", "", "A", "12"]]
    put(tmp_path, "mmbench_dev_x.tsv", "\n".join("\t".join(row) for row in [head, *rows]))
    bench = MMBench(str(tmp_path), all_rounds=True)
    first = {one.id: one.text.split("\n")[1:-1] for one in bench.questions()}
    assert list(first) == ["12", "12/1", "12/2", "13", "13/1"]
    assert first["12/1"] == ["A. urn", "B. vase", "C. oar"]
    right = {"12": "B", "12/1": "A", "12/2": "C", "13": "A", "13/1": "B"}
    assert bench.score(right).items == {"12": 1, "13": 1}
    result = bench.score(right | {"12/2": "B"})
    assert (result.items, result.metrics["Overall"], result.metrics["first_pass"]) == ({"12": 0, "13": 1}, 0.5, 1)
    lines = [
        {"question_id": int(name[:2]), "round_id": int(name[3:] or 0), "text": text} for name, text in right.items()
    ]
    assert bench.read(str(put(tmp_path, "llava.jsonl", lines))) == right
    with pytest.raises(DataError, match="3 of 5 questions have no answer: 12/1, 12/2, 13/1"):
        bench.score({"12": "B", "13": "A"})


def test_mmbench_without_a_column_of_answers(tmp_path: Path) -> None:
    put(tmp_path, "mmbench_test_x.tsv", "index\tquestion\thint\tA\tB\timage\n12\tWhich?\t\turn\toar\tiVBORw0\n")
    bench = MMBench(str(tmp_path))
    bench.ready()
    with pytest.raises(DataError, match="MMBench: these files hold no answers"):
        bench.score({"12": "A"})


def test_mmbench_names_its_rule(tmp_path: Path) -> None:
    result = MMBench(mmbench(tmp_path), extraction="before-2025-08").score(dict.fromkeys(["12", "1000012", "13"], "A"))
    assert "option extraction: exact matching, rule 'before-2025-08' of VLMEvalKit, no judge" in result.notes
    with pytest.raises(DataError, match="no extraction rule 'before-2025'"):
        MMBench(str(tmp_path), extraction="before-2025")


def test_mmbench_without_a_first_pass(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no question has an answer to its first pass"):
        MMBench(mmbench(tmp_path)).score({"1000012": "B"}, gaps="official")


def test_mmbench_sheets_hold_text_not_formulas(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    MMBench(mmbench(tmp_path)).submission({"12": "=1+1\x07", "13": ""}, tmp_path / "new" / "up.xlsx")
    rows = list(openpyxl.load_workbook(tmp_path / "new" / "up.xlsx").active.iter_rows(values_only=True))
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert rows[1] == (12, "Which one is red?", "kettle", "urn", None, None, "=1+1", "A", "dev")
    assert rows[3][6] is None


def test_mmbench_without_openpyxl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(DataError, match="writing the sheet needs openpyxl"):
        MMBench(mmbench(tmp_path)).submission({}, tmp_path / "up.xlsx")


def test_mmbench_in_the_parquet_layout(tmp_path: Path) -> None:
    """Its columns are spelt otherwise, and empty cells are the text nan."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    row = {"index": 12, "question": "Which?", "hint": "nan", "answer": "B", "A": "urn", "B": "kettle", "C": "nan"}
    row |= {"D": None, "category": "color", "image": {"bytes": b"x", "path": None}, "L2-category": "logic_reasoning"}
    (tmp_path / "cn").mkdir()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "cn" / "dev-00000-of-00001.parquet")
    bench = MMBench(str(tmp_path), language="cn")
    assert bench.questions()[0].text == "Which?\nA. urn\nB. kettle\n请直接回答选项字母。"
    assert bench.score({"12": "B"}).metrics["LR"] == 1


# --------------------------------------------------------------------------------------------------------------- POPE


@pytest.mark.parametrize(
    ("text", "read"),
    [("No, it is", "no"), ("There is not.", "no"), ("No!", "yes"), ("NO", "yes"), (". no", "yes"), ("", "yes")],
)
def test_pope_reads_yes_unless_a_piece_says_no(text: str, read: str) -> None:
    assert yes_or_no(text) == read


def test_pope_counts_what_is_a_yes_only_by_default() -> None:
    assert [unclear(text) for text in ("Yes, there is", "no", "Nope", "")] == [False, False, True, True]


def pope(folder: Path, label: dict[str, Any]) -> str:
    base = {"question_id": 1, "image": "a.jpg", "text": "Is there a kettle in the imange?", "label": "yes"}
    put(folder, "coco/coco_pope_random.json", [base | label])
    question = {"question_id": 10000001, "image": "a.jpg", "category": "random"}
    put(folder, "llava_pope_test.jsonl", [question | {"text": f"Is there a kettle in the image?\n{SHORT}"}])
    return str(folder)


def test_pope_takes_a_mended_spelling_for_the_same_question(tmp_path: Path) -> None:
    result = POPE(pope(tmp_path, {})).score({"10000001": "Yes"})
    assert (result.metrics["f1"], result.metrics["random/TP"]) == (1, 1)


def test_pope_finds_a_label_elsewhere_by_its_content(tmp_path: Path) -> None:
    assert POPE(pope(tmp_path, {"question_id": 9})).score({"10000001": "Yes"}).metrics["f1"] == 1


@pytest.mark.parametrize("label", [{"image": "b.jpg"}, {"text": "Is there an urn in the image?"}])
def test_pope_refuses_labels_of_another_revision(label: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"of another revision than LLaVA's questions; .* 1 have no label: 10000001"):
        POPE(pope(tmp_path, label)).score({"10000001": "Yes"})


def test_pope_says_which_revision_has_3000_random_questions(tmp_path: Path) -> None:
    rows = [{"question_id": n, "image": "a.jpg", "text": "?", "label": "no"} for n in range(1, 3001)]
    put(tmp_path, "coco_pope_random.json", rows)
    bench = POPE(str(tmp_path))
    result = bench.score({question.id: "no" for question in bench.questions()})
    assert any("3000 random questions: POPE's current revision" in note for note in result.notes)
    assert any("the official script stops here" in note for note in result.notes)


def test_pope_counts_a_question_in_each_of_its_categories(tmp_path: Path) -> None:
    table = (
        "index\timage\tquestion\tanswer\tcategory\n0\tx\tIs it?\tYes\trandom,popular\n1\tx\tIs it not?\tNo\trandom\n"
    )
    put(tmp_path, "POPE.tsv", table)
    result = POPE(str(tmp_path)).score({"0": "yes", "1": "yes"}, protocol="vlmevalkit")
    assert (result.metrics["random/accuracy"], result.metrics["popular/accuracy"]) == (50, 100)
    assert result.metrics["all/accuracy"] == pytest.approx(200 / 3)


# --------------------------------------------------------------------------------------------------------------- MMLU


def mmlu(folder: Path) -> str:
    put(folder, "data/test/high_school_physics_test.csv", '"  Which is NA?\n",NA,"urn, red",007,nan,B\n')
    put(folder, "data/dev/high_school_physics_dev.csv", "2+2?,3,4,5,6,B\n1+1?,2,3,4,5,A\n")
    return str(folder)


def test_mmlu_prompts_of_both_harnesses(tmp_path: Path) -> None:
    ours = MMLU(mmlu(tmp_path), shots=1).prompt("high_school_physics/0")
    about = "The following are multiple choice questions (with answers) about"
    example, question = (
        "2+2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer: B",
        "Which is NA?\nA. NA\nB. urn, red\nC. 007\nD. nan\nAnswer:",
    )
    assert ours == f"{about} high school physics.\n\n{example}\n\n{question}"
    theirs = MMLU(str(tmp_path), style="hendrycks", shots=2).prompt("high_school_physics/0", shots=0)
    assert theirs.startswith(f"{about}  high school physics.\n\n  Which")


def test_mmlu_is_not_asked_with_fewer_examples_than_it_says(tmp_path: Path) -> None:
    """A subject whose dev file was never fetched would be asked without any."""
    bench = MMLU(mmlu(tmp_path), shots=3)
    with pytest.raises(DataError, match="1 subjects have fewer than 3 worked examples: high_school_physics") as error:
        bench.ready()
    assert error.value.fix == "fetch the dev split again, or show fewer: shots=0"
    with pytest.raises(DataError, match="shots cannot be negative, got -1"):
        MMLU(str(tmp_path), shots=-1)


def test_mmlu_takes_the_likeliest_letter(tmp_path: Path) -> None:
    assert likeliest({" A": -2.0, "B": -2.0, "D": -3.0}) == "A"  # ties go to the first
    assert likeliest({"B": -101.0}) == "A"  # an absent letter has -100
    bench = MMLU(mmlu(tmp_path))
    lines = [{"id": "high_school_physics/0", "logprobs": {"A": -9.0, "B": -0.1, "C": -5.0, "D": -7.0}}]
    result = bench.score(bench.read(str(put(tmp_path, "a.jsonl", lines))))
    assert (result.metrics["average"], result.metrics["harness/stem"], result.metrics["area/physics"]) == (1, 1, 1)
    assert bench.score({"high_school_physics/0": "Beta"}).counts["unparsable"] == 1


def test_mmlu_refuses_what_is_no_logprobs(tmp_path: Path) -> None:
    file = put(tmp_path, "a.jsonl", [{"id": "high_school_physics/0", "logprobs": [1, 2]}])
    with pytest.raises(DataError, match="`logprobs` is no object"):
        MMLU(mmlu(tmp_path)).read(str(file))


def test_mmlu_styles_are_named() -> None:
    with pytest.raises(DataError, match="no prompt style 'flan'"):
        MMLU("/anywhere", style="flan")  # type: ignore[arg-type]
