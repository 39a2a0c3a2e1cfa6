"""Every number of the test vectors, which the official scorers wrote: prompts, scores, variants, submissions."""

import hashlib
import json
import lzma
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mmalign.benchmarks import Score, pope, scienceqa, vqatext
from mmalign.benchmarks.filed import FiledBenchmark
from mmalign.benchmarks.gqa import GQA, converted
from mmalign.benchmarks.headline import Headline
from mmalign.benchmarks.judge import parse_score, prompt_in
from mmalign.benchmarks.mmbench import MMBench, options
from mmalign.benchmarks.mmlu import MMLU
from mmalign.benchmarks.mmvet import MMVet, nearest_tenth
from mmalign.benchmarks.options import option
from mmalign.benchmarks.pope import POPE
from mmalign.benchmarks.scienceqa import ScienceQA
from mmalign.benchmarks.textvqa import TextVQA
from mmalign.benchmarks.vizwiz import VizWiz
from mmalign.benchmarks.vqav2 import VQAv2
from mmalign.errors import DataError

from .vectors import PACKED, pack, sets, unpack, unpacked

SETS = sets(unpacked())

# LLaVA-1.5's conversation template vicuna_v1
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CLOSE = {"abs": 1e-6, "rel": 0}
TESTED: set[Path] = set()  # the variants that some test here is run for


def chinese(data: str, **more: Any) -> MMBench:
    return MMBench(data, language="cn", **more)


MAKE: dict[str, Any] = {
    "vqav2": VQAv2,
    "gqa": GQA,
    "textvqa": TextVQA,
    "vizwiz": VizWiz,
    "scienceqa": ScienceQA,
    "mmbench": MMBench,
    "mmbench_cn": chinese,
    "pope": POPE,
    "mmvet": MMVet,
    "mmlu": MMLU,
}


def of(*benches: str) -> Any:
    """Run a test for every set of the named benchmarks."""
    sets = [path for path in SETS if path.parent.name in benches]
    return pytest.mark.parametrize("folder", sets, ids=lambda path: f"{path.parent.name}-{path.name}")


def variants(bench: str, *names: str) -> Any:
    """Run a test for the named variants, in every set of the benchmark that has them."""
    paths = [path / "variants" / name for path in SETS if path.parent.name == bench for name in names]
    paths = [path for path in paths if path.exists()]
    TESTED.update(paths)
    return pytest.mark.parametrize("folder", paths, ids=lambda path: f"{path.parts[-3]}-{path.name}")


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def build(folder: Path, **more: Any) -> FiledBenchmark:
    return MAKE[folder.parent.name](str(folder), **more)


def score(bench: FiledBenchmark, folder: Path, **how: Any) -> Score:
    """Its headline is what its questions make it, and each of these is known to have a picture or none."""
    result = bench.score(bench.read(str(folder / "predictions.jsonl")), **how)
    if result.metrics:
        headline = Headline.of(result)
        assert headline is not None
        assert headline.value == pytest.approx(result.metrics[result.headline], abs=1e-9)
        assert headline.parts_of.keys() <= bench.references().keys()
    return result


def scored(folder: Path, **how: Any) -> Score:
    return score(build(folder), folder, **how)


def variant(folder: Path, own: str = "", **how: Any) -> Score:
    """A variant's answers, against its own annotations where it has them, else those of its set."""
    base = folder if own and list(folder.glob(own)) else folder.parents[1]
    return score(MAKE[folder.parents[2].name](str(base)), folder, **how)


def under(metrics: dict[str, float], kind: str) -> dict[str, float]:
    return {name.removeprefix(f"{kind}/"): value for name, value in metrics.items() if name.startswith(f"{kind}/")}


def refuses(folder: Path, **how: Any) -> str:
    with pytest.raises(DataError) as error:
        variant(folder, **how)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------------ prompts


def asks(bench: FiledBenchmark, expected: list[dict[str, Any]]) -> None:
    """The user's turn and the whole vicuna_v1 prompt, question by question, in the official order."""
    questions = bench.questions()
    assert len(questions) == len(expected)
    for question, row in zip(questions, expected, strict=True):
        turn = "<image>\n" * row["has_image"] + question.text
        assert turn == row["user_text"]
        assert (question.image is not None) == row["has_image"]
        prompt = f"{SYSTEM} USER: {turn} ASSISTANT:"
        assert hashlib.sha256(prompt.encode()).hexdigest() == row["full_prompt_sha256"]


PROMPTED = ("vqav2", "gqa", "textvqa", "vizwiz", "scienceqa", "mmbench", "mmbench_cn", "pope", "mmvet")


@of(*PROMPTED)
def test_prompts_are_those_of_llava(folder: Path) -> None:
    bench = build(folder)
    asks(bench, lines(folder / "expected_prompts.jsonl"))
    assert len({question.id for question in bench.questions()}) == len(bench.questions())


@of(*PROMPTED)
def test_tokens_allowed_are_those_of_llava(folder: Path) -> None:
    settings = load(unpacked() / "generation_settings.json")["settings"]
    assert build(folder).max_new_tokens == settings[folder.parent.name]["max_new_tokens"]


HF = {"vqav2": "hf", "gqa": "hf", "vizwiz": "hf", "mmvet": "hf", "scienceqa": "hf/ScienceQA-FULL"}


@of(*HF, "pope")
def test_the_parquet_layout_asks_the_same(folder: Path) -> None:
    name = folder.parent.name
    for place in ["hf/data", "hf/Full"] if name == "pope" else [HF[name]]:
        bench = MAKE[name](str(folder / place))
        assert "parquet" in bench.data_files
        asks(bench, lines(folder / "expected_prompts.jsonl"))


@of("textvqa")
def test_the_parquet_layout_of_textvqa_asks_the_same(folder: Path) -> None:
    """Some made-up rows of LLaVA's file have no OCR line, which its real file has in every row."""
    expected = [row["user_text"] for row in lines(folder / "expected_prompts.jsonl")]
    for question, text in zip(TextVQA(str(folder / "hf")).questions(), expected, strict=True):
        parts = ["<image>", *question.text.split("\n")]
        assert "\n".join(parts if "Reference OCR token" in text else [*parts[:2], parts[-1]]) == text


@of("gqa", "mmbench", "mmbench_cn", "mmvet", "vizwiz")
def test_the_tsv_layout_asks_the_same(folder: Path) -> None:
    [table] = (folder / "tsv").glob("*.tsv")
    for place in (folder / "tsv", table):  # a folder, or the file itself
        bench = MAKE[folder.parent.name](str(place))
        assert "TSV" in bench.data_files
        asks(bench, lines(folder / "expected_prompts.jsonl"))


OFFICIAL = {
    "vqav2": "v2_*.json",
    "gqa": "testdev_balanced_questions.json",
    "vizwiz": "val.json",
    "scienceqa": "p*s.json",
    "mmvet": "mm-vet.json",
    "pope": "coco",
}


@of(*OFFICIAL)
def test_the_official_layout_asks_the_same(folder: Path, tmp_path: Path) -> None:
    """Without LLaVA's file, its prompts are made from the official questions."""
    for path in folder.glob(OFFICIAL[folder.parent.name]):
        (tmp_path / path.name).symlink_to(path)
    bench = MAKE[folder.parent.name](str(tmp_path))
    assert bench.data_files.startswith("official")
    asks(bench, lines(folder / "expected_prompts.jsonl"))


PICTURES = {
    "vqav2": ["hf"],
    "gqa": ["hf", "tsv"],
    "textvqa": ["hf"],
    "vizwiz": ["hf", "tsv"],
    "scienceqa": ["hf", "hf/ScienceQA-IMG", "tsv"],
    "mmbench": [".", "tsv"],
    "mmbench_cn": [".", "tsv"],
    "pope": ["hf/data", "hf/Full", "tsv"],
    "mmvet": ["hf", "tsv"],
}


@of(*PICTURES)
def test_pictures_open_in_every_layout_that_holds_them(folder: Path) -> None:
    for place in PICTURES[folder.parent.name]:
        bench = MAKE[folder.parent.name](str(folder / place))
        references = [question.image for question in bench.questions() if question.image is not None]
        assert {bench.image(reference).size for reference in [*references[:3], references[-1]]} == {(16, 16)}


@of("scienceqa")
def test_the_tsv_of_scienceqa_asks_those_with_a_picture(folder: Path) -> None:
    expected = [row for row in lines(folder / "expected_prompts.jsonl") if row["has_image"]]
    asks(ScienceQA(str(folder / "tsv")), expected)
    asks(ScienceQA(str(folder / "hf" / "ScienceQA-IMG")), expected)


@of("textvqa")
def test_textvqa_without_ocr_says_so(folder: Path) -> None:
    with pytest.raises(DataError, match="has no OCR tokens"):
        TextVQA(str(folder / "tsv")).questions()
    questions = TextVQA(str(folder / "tsv"), ocr=False).questions()
    texts = [row["user_text"].split("\n") for row in lines(folder / "expected_prompts.jsonl")]
    assert [one.text.split("\n") for one in questions] == [[text[1], text[-1]] for text in texts]


@variants("mmbench", "all_rounds")
def test_prompts_of_all_rounds(folder: Path) -> None:
    asks(MMBench(str(folder.parents[1]), all_rounds=True), lines(folder / "expected_prompts.jsonl"))


@variants("mmbench_cn", "all_rounds")
def test_prompts_of_all_rounds_cn(folder: Path) -> None:
    asks(chinese(str(folder.parents[1]), all_rounds=True), lines(folder / "expected_prompts.jsonl"))


@variants("mmbench", "none_like_cells")
def test_prompts_of_odd_cells(folder: Path) -> None:
    bench = MMBench(str(folder))
    asks(bench, lines(folder / "expected_prompts.jsonl"))
    note = load(folder / "note.json")
    assert {name: options(row) for name, row in bench.rows.items()} == note["vlmevalkit_options"]


@of("mmlu")
def test_prompts_of_mmlu(folder: Path) -> None:
    expected = {row["question_id"]: row for row in lines(folder / "expected_prompts.jsonl")}
    for place in (folder, folder / "hf"):
        for style, key in (("hendrycks", "hendrycks_prompt"), ("harness", "lm_eval_prompt")):
            questions = MMLU(str(place), style=style).questions()
            assert {one.id: one.text for one in questions} == {name: row[key] for name, row in expected.items()}
            assert all(one.options == (" A", " B", " C", " D") for one in questions)


@variants("mmlu", "prompts_0_and_2_shot")
def test_prompts_of_mmlu_with_fewer_shots(folder: Path) -> None:
    for row in lines(folder / "expected_prompts.jsonl"):
        for key, text in row.items():
            if key != "question_id":
                style, shots = key.replace("lm_eval", "harness").rsplit("_", 1)
                bench = MMLU(str(folder.parents[1]), style=style, shots=int(shots))
                assert bench.prompt(row["question_id"]) == text


@variants("mmlu", "csv_parsing")
def test_mmlu_reads_raw_cells(folder: Path) -> None:
    bench = MMLU(str(folder), style="hendrycks")
    for row in load(folder / "expected.json")["raw"]:
        assert bench.prompt(f"anatomy/{row['row']}").endswith(row["raw_csv_tail"])


@of("mmlu")
def test_the_validation_split_of_mmlu_is_the_same_in_both_layouts(folder: Path) -> None:
    official, parquet = (MMLU(str(place), split="val", shots=0).questions() for place in (folder, folder / "hf"))
    assert official == parquet
    assert {one.family for one in official} == {path.stem.removesuffix("_val") for path in folder.glob("data/val/*")}


# -------------------------------------------------------------------------------------------------------------- VQAv2


def same_vqa(result: Score, expected: dict[str, Any]) -> None:
    for key, kind in (("perAnswerType", "answer_type"), ("perQuestionType", "question_type")):
        assert under(result.printed, kind) == expected["accuracy"][key]
        assert under(result.metrics, kind) == pytest.approx(expected["accuracy_10_decimals"][key], **CLOSE)
    assert result.printed["overall"] == expected["accuracy"]["overall"]
    assert result.metrics["overall"] == pytest.approx(expected["accuracy_10_decimals"]["overall"], **CLOSE)
    if "per_item" in expected:
        assert result.items == pytest.approx(expected["per_item"], **CLOSE)


@of("vqav2")
def test_vqav2(folder: Path) -> None:
    expected = load(folder / "expected.json")
    same_vqa(scored(folder), expected)
    same_vqa(score(VQAv2(str(folder / "hf")), folder), expected)


@of("vqav2")
def test_vqav2_after_llavas_submission_pipeline(folder: Path) -> None:
    same_vqa(scored(folder, protocol="llava"), load(folder / "expected.json")["llava_submission_pipeline"])


@of("vqav2")
def test_vqav2_by_lmms_eval(folder: Path) -> None:
    expected, result = load(folder / "expected.json")["peer_lmms_eval"], scored(folder, protocol="lmms-eval")
    assert result.metrics["exact_match"] == pytest.approx(expected["exact_match"], **CLOSE)
    assert result.items == pytest.approx({name: 100 * one for name, one in expected["per_item"].items()}, **CLOSE)


@variants("vqav2", "all_empty", "duplicate_ids", "gold_majority", "odd_ground_truth")
def test_vqav2_variants(folder: Path) -> None:
    same_vqa(variant(folder, "v2_*annotations.json", gaps="official"), load(folder / "expected.json"))


@variants("vqav2", "missing_ids")
def test_vqav2_missing(folder: Path) -> None:
    expected = load(folder / "expected.json")
    for gaps in ("strict", "official"):
        message = refuses(folder, gaps=gaps)
        assert all(str(name) in message for name in expected["missing_question_ids"][:5])
    result = variant(folder, gaps="lenient")
    same_vqa(result, expected["if_filled_with_empty_string_as_llava_submission_does"])
    assert result.counts["missing"] == len(expected["missing_question_ids"])


@variants("vqav2", "unknown_id")
def test_vqav2_unknown(folder: Path) -> None:
    assert "belong to no question" in refuses(folder)
    assert "belong to no question" in refuses(folder, gaps="official")
    assert variant(folder, gaps="lenient").counts["unknown"] == 1


# ---------------------------------------------------------------------------------------------------------------- GQA


def same_gqa(result: Score, expected: dict[str, Any]) -> None:
    for name in ("accuracy", "binary", "open", "validity", "plausibility", "distribution", "consistency"):
        assert result.metrics.get(name, 0) == pytest.approx(expected[name], **CLOSE), name
    kinds = {"StructuralType": "structural", "SemanticType": "semantic", "Steps": "steps", "Length": "words"}
    for key, kind in kinds.items():
        scores = {name: one["score"] for name, one in expected[f"accuracyPer{key}"].items()}
        assert under(result.metrics, kind) == pytest.approx(scores, **CLOSE)
        sizes = {f"{kind}/{name}": one["n"] for name, one in expected[f"accuracyPer{key}"].items()}
        assert {name: size for name, size in result.counts.items() if name.startswith(f"{kind}/")} == sizes
    if "per_item_correct" in expected:
        assert {name: value / 100 for name, value in result.items.items()} == expected["per_item_correct"]


@of("gqa")
def test_gqa(folder: Path) -> None:
    expected = load(folder / "expected.json")
    same_gqa(scored(folder), expected)
    same_gqa(score(GQA(str(folder / "hf")), folder), expected)
    table = score(GQA(str(folder / "tsv")), folder)
    assert table.metrics["accuracy"] == pytest.approx(expected["accuracy"], **CLOSE)


@of("gqa")
def test_gqa_by_others(folder: Path) -> None:
    expected = load(folder / "expected.json")
    result = scored(folder, protocol="lmms-eval")
    assert result.metrics["exact_match"] == pytest.approx(expected["peer_lmms_eval_exact_match"]["mean"], **CLOSE)
    assert result.items == expected["peer_lmms_eval_exact_match"]["per_item"]
    result = scored(folder, protocol="vlmevalkit")
    assert result.metrics["accuracy"] == pytest.approx(expected["peer_vlmevalkit_accuracy_percent"], **CLOSE)


@variants("gqa", "duplicate_ids", "unknown_id")
def test_gqa_variants(folder: Path) -> None:
    result = variant(folder, gaps="official")
    same_gqa(result, load(folder / "expected.json"))
    assert result.counts["duplicate" if folder.name == "duplicate_ids" else "unknown"] > 0


@variants("gqa", "val_choices_consistency")
def test_gqa_consistency(folder: Path) -> None:
    bench = GQA(str(folder), consistency=True)
    same_gqa(score(bench, folder), load(folder / "expected.json"))


@variants("gqa", "missing_ids")
def test_gqa_missing(folder: Path) -> None:
    assert "have no answer" in refuses(folder)
    assert "have no answer" in refuses(folder, gaps="official")


@variants("gqa", "unknown_id")
def test_gqa_unknown(folder: Path) -> None:
    assert "belong to no question" in refuses(folder)


# ------------------------------------------------------------------------------------------------------------ TextVQA


def same_textvqa(result: Score, expected: dict[str, Any]) -> None:
    assert result.metrics["accuracy"] == pytest.approx(expected["accuracy_percent"], **CLOSE)
    assert f"Accuracy: {result.printed['accuracy']:.2f}%" == expected["printed"]


@of("textvqa")
def test_textvqa(folder: Path) -> None:
    bench, expected = build(folder), load(folder / "expected.json")
    answers = bench.read(str(folder / "predictions.jsonl"))
    result = bench.score(answers)
    same_textvqa(result, expected)
    items = {name: 100 * one["score"] for name, one in expected["per_item_by_annotation_question_id"].items()}
    assert result.items == pytest.approx(items, **CLOSE)
    rows = [result.items[name] / 100 for name, _ in answers.rows]
    assert rows == pytest.approx(expected["per_row_in_prediction_file_order"], **CLOSE)
    same_textvqa(TextVQA(str(folder / "hf")).score(answers), expected)


@of("textvqa")
def test_textvqa_by_others(folder: Path) -> None:
    bench, expected = build(folder), load(folder / "expected.json")
    answers = bench.read(str(folder / "predictions.jsonl"))
    result = bench.score(answers, protocol="vlmevalkit")
    assert result.metrics["accuracy"] == pytest.approx(expected["peer_vlmevalkit_percent"], **CLOSE)
    rows = [result.items[name] / 100 for name, _ in answers.rows]
    assert rows == pytest.approx(expected["peer_vlmevalkit_per_row"], **CLOSE)
    same_textvqa(bench.score(answers, protocol="lmms-eval"), expected)


@of("textvqa")
def test_textvqa_in_the_tsv_layout(folder: Path) -> None:
    bench, expected = TextVQA(str(folder / "tsv"), ocr=False), load(folder / "expected.json")
    order = [str(row["question_id"]) for row in load(folder / "TextVQA_0.5.1_val.json")["data"]]
    answers = build(folder).read(str(folder / "predictions.jsonl"))
    result = bench.score({str(number): answers[name] for number, name in enumerate(order)})
    assert result.metrics["accuracy"] == pytest.approx(expected["accuracy_percent"], **CLOSE)


@variants("textvqa", "legacy_prompt", "ocr_first_prompt", "missing_rows", "duplicate_rows")
def test_textvqa_variants(folder: Path) -> None:
    result, expected = variant(folder, gaps="official"), load(folder / "expected.json")
    same_textvqa(result, expected)
    assert result.counts["answered"] + result.counts["duplicate"] == expected["samples"]


@variants("textvqa", "missing_rows")
def test_textvqa_missing(folder: Path) -> None:
    assert "have no answer" in refuses(folder)


@variants("textvqa", "bad_prompt", "nine_answers", "unknown_question")
def test_textvqa_refuses(folder: Path) -> None:
    with pytest.raises(DataError) as error:
        variant(folder, "TextVQA*.json", gaps="official")
    what = {"bad_prompt": "no question can be found", "nine_answers": "9 answers", "unknown_question": "no question"}
    assert what[folder.name] in str(error.value)


# ------------------------------------------------------------------------------------------------------------- VizWiz


def same_vizwiz(result: Score, expected: dict[str, Any]) -> None:
    accuracy = expected["accuracy"]
    assert result.printed["overall"] == accuracy["overall"]
    assert result.metrics["overall"] == pytest.approx(accuracy["overall_10"], **CLOSE)
    assert under(result.printed, "answer_type") == accuracy["perAnswerType"]
    assert under(result.metrics, "answer_type") == pytest.approx(accuracy["perAnswerType_10"], **CLOSE)
    if "per_item" in expected:
        assert result.items == pytest.approx(expected["per_item"], **CLOSE)


@of("vizwiz")
def test_vizwiz(folder: Path) -> None:
    expected, result = load(folder / "expected.json"), scored(folder)
    same_vizwiz(result, expected)
    label = "answerability_if_predicted_label_is_0_exactly_when_normalised_answer_equals_unanswerable"
    answerability = {"average_precision": expected[label]["average_precision"], "f1": expected[label]["f1_score"]}
    assert under(result.printed, "answerability") == answerability
    assert result.metrics["lmms-eval"] == pytest.approx(100 * expected["peer_lmms_eval"]["exact_match"], **CLOSE)
    for place in ("hf", "tsv"):
        other = score(VizWiz(str(folder / place)), folder)
        assert other.metrics["overall"] == pytest.approx(expected["accuracy"]["overall_10"], **CLOSE)


@of("vizwiz")
def test_vizwiz_after_llavas_submission_pipeline(folder: Path) -> None:
    same_vizwiz(scored(folder, protocol="llava"), load(folder / "expected.json")["llava_submission_pipeline"])


@of("vizwiz")
def test_vizwiz_by_others(folder: Path) -> None:
    expected = load(folder / "expected.json")
    result = scored(folder, protocol="lmms-eval")
    assert result.metrics["exact_match"] == pytest.approx(expected["peer_lmms_eval"]["exact_match"], **CLOSE)
    items = {name: 100 * one for name, one in expected["peer_lmms_eval"]["per_item"].items()}
    assert result.items == pytest.approx(items, **CLOSE)
    result = scored(folder, protocol="vlmevalkit")
    assert result.metrics["overall"] == pytest.approx(expected["peer_vlmevalkit"]["overall"], **CLOSE)


@variants("vizwiz", "all_empty", "all_unanswerable", "duplicate_ids")
def test_vizwiz_variants(folder: Path) -> None:
    same_vizwiz(variant(folder, gaps="official"), load(folder / "expected.json"))


@variants("vqav2", "duplicate_ids")
def test_duplicates_that_differ_are_refused_under_strict(folder: Path) -> None:
    """The official tools take the last; a number to be cited is of one answer to each question."""
    assert "questions have several answers that differ" in refuses(folder)


@variants("vizwiz", "missing_ids")
def test_vizwiz_missing(folder: Path) -> None:
    assert "have no answer" in refuses(folder)
    assert "have no answer" in refuses(folder, gaps="official")


# ---------------------------------------------------------------------------------------------------------- ScienceQA


def same_scienceqa(result: Score, expected: dict[str, Any]) -> None:
    for name in ("acc", "img_acc"):
        assert result.metrics[name] == pytest.approx(expected[name], **CLOSE)
    rates = f"Accuracy: {result.printed['acc']:.2f}%, IMG-Accuracy: {result.printed['img_acc']:.2f}%"
    right = round(sum(result.items.values()) / 100)
    assert f"Total: {len(result.items)}, Correct: {right}, {rates}" == expected["printed"]


NAMES = {  # ours: those of the official tool
    "natural": "acc_natural",
    "social": "acc_social",
    "language": "acc_language",
    "has_text": "acc_has_text",
    "has_image": "acc_has_image",
    "no_context": "acc_no_context",
    "grade_1_6": "acc_grade_1_6",
    "grade_7_12": "acc_grade_7_12",
}


@of("scienceqa")
def test_scienceqa(folder: Path) -> None:
    expected, result = load(folder / "expected.json"), scored(folder)
    same_scienceqa(result, expected)
    assert result.headline == "img_acc"
    for name, row in expected["per_item"].items():
        assert result.taken[name] == row["parsed"]
        assert result.items[name] == 100 * row["correct"]
    table = {NAMES[name]: f"{value:.2f}" for name, value in under(result.printed, "by").items()}
    table |= {f"acc_{name}": f"{value:.2f}" for name, value in under(result.printed, "topic").items()}
    table["acc_average"] = f"{result.printed['acc']:.2f}"
    scores = expected["official_scienceqa_category_scores"]["scores"]
    assert {name: value for name, value in scores.items() if value != -1} == table


@of("scienceqa")
def test_scienceqa_in_the_other_layouts(folder: Path) -> None:
    expected, order = load(folder / "expected.json"), load(folder / "layout_order.json")
    answers = build(folder).read(str(folder / "predictions.jsonl"))
    full = ScienceQA(str(folder / "hf"))
    in_full = {str(n): answers[one] for n, one in enumerate(order["test_order_problem_ids"])}
    same_scienceqa(full.score(in_full), expected)
    with_picture = {str(n): answers[one] for n, one in enumerate(order["img_order_problem_ids"])}
    for place in ("hf/ScienceQA-IMG", "tsv"):
        result = ScienceQA(str(folder / place)).score(with_picture)
        assert result.metrics["img_acc"] == pytest.approx(expected["img_acc"], **CLOSE)


@of("scienceqa")
def test_scienceqa_by_others(folder: Path) -> None:
    expected = load(folder / "expected.json")
    for protocol, key in (("lmms-eval", "peer_lmms_eval"), ("vlmevalkit", "peer_vlmevalkit_exact_matching")):
        result, peer = scored(folder, protocol=protocol), expected[key]
        assert result.items == peer["per_item"]
        mean = peer.get("exact_match", peer.get("acc"))
        assert result.metrics["exact_match"] == pytest.approx(mean, **CLOSE)


@variants("scienceqa", "duplicate_ids", "missing_ids", "unknown_id")
def test_scienceqa_variants(folder: Path) -> None:
    same_scienceqa(variant(folder, gaps="official"), load(folder / "expected.json"))


@variants("scienceqa", "int_ids", "no_image_marker_in_prompt")
def test_scienceqa_where_the_official_script_stops(folder: Path) -> None:
    """Ids are joined as text, and a picture is told by the problem: the numbers are those of the whole set."""
    same_scienceqa(variant(folder), load(folder.parents[1] / "expected.json"))


@variants("scienceqa", "missing_ids", "unknown_id")
def test_scienceqa_is_strict(folder: Path) -> None:
    assert "no answer" in refuses(folder) if folder.name == "missing_ids" else "no question" in refuses(folder)


# ------------------------------------------------------------------------------------------------------------ MMBench


def same_circular(result: Score, expected: dict[str, Any]) -> None:
    circular = {name: value for name, splits in expected["circular"].items() for value in splits.values()}
    metrics = {name: value for name, value in result.metrics.items() if name not in ("first_pass", "all_passes")}
    assert metrics == pytest.approx(circular, **CLOSE)
    assert result.items == expected["circular_hit_per_main_index"]


@of("mmbench", "mmbench_cn")
def test_mmbench(folder: Path) -> None:
    bench, expected = build(folder), load(folder / "expected.json")
    assert isinstance(bench, MMBench)
    result = score(bench, folder)
    same_circular(result, expected)
    assert result.metrics["first_pass"] == pytest.approx(expected["vanilla_first_pass_acc"], **CLOSE)
    assert result.metrics["all_passes"] == pytest.approx(expected["vanilla_all_passes_acc"], **CLOSE)
    hits = {name: int(letter == bench.rows[name]["answer"]) for name, letter in result.taken.items()}
    assert hits == expected["vanilla_hit_per_index"]
    assert (len(result.items), result.counts["asked"]) == (expected["groups"], expected["rows"])
    same_circular(score(MAKE[folder.parent.name](str(folder / "tsv")), folder), expected)


@of("mmbench", "mmbench_cn")
def test_mmbench_by_each_version_of_the_extraction_rule(folder: Path) -> None:
    for version, value in load(folder / "expected.json")["circular_overall_by_extraction_rule_version"].items():
        result = score(build(folder, extraction=version.replace("_", "-")), folder)
        assert result.metrics["Overall"] == pytest.approx(value, **CLOSE)
        assert any(repr(version.replace("_", "-")) in note for note in result.notes)


CIRCULAR = ("all_A", "all_empty", "duplicate_rows", "first_pass_only", "missing_main_rows", "missing_rotation_rows")


@variants("mmbench", *CIRCULAR)
def test_mmbench_variants(folder: Path) -> None:
    same_circular(variant(folder, gaps="official"), load(folder / "expected.json"))


@variants("mmbench_cn", *CIRCULAR)
def test_mmbench_cn_variants(folder: Path) -> None:
    same_circular(variant(folder, gaps="official"), load(folder / "expected.json"))


@variants("mmbench", "first_pass_only", "missing_main_rows", "missing_rotation_rows")
def test_mmbench_wants_the_whole_of_every_group(folder: Path) -> None:
    assert "have no answer" in refuses(folder)


@variants("mmbench", "test_split_submission")
def test_mmbench_test_split(folder: Path, tmp_path: Path) -> None:
    submits_test(MMBench(str(folder)), folder, tmp_path)


@variants("mmbench_cn", "test_split_submission")
def test_mmbench_cn_test_split(folder: Path, tmp_path: Path) -> None:
    submits_test(chinese(str(folder)), folder, tmp_path)


def submits_test(bench: MMBench, folder: Path, tmp_path: Path) -> None:
    answers = bench.read(str(folder / "predictions.jsonl"))
    with pytest.raises(DataError, match="hold no answers"):
        bench.score(answers)
    bench.submission(answers, tmp_path / "sheet.xlsx")
    expected = load(folder / "expected.json")
    assert cells(tmp_path / "sheet.xlsx") == [expected["header"], *expected["rows"]]


def cells(path: Path) -> list[list[Any]]:
    from openpyxl import load_workbook

    return [list(row) for row in load_workbook(path).active.iter_rows(values_only=True)]


# --------------------------------------------------------------------------------------------------------------- POPE


def same_pope(result: Score, expected: dict[str, Any]) -> None:
    for category, metrics in expected["per_category"].items():
        assert under(result.metrics, category) == pytest.approx(metrics, **CLOSE)
    for name, value in expected["mean_over_three_categories"].items():
        assert result.metrics[name] == pytest.approx(value, **CLOSE)


@of("pope")
def test_pope(folder: Path) -> None:
    expected, result = load(folder / "expected.json"), scored(folder)
    same_pope(result, expected)
    assert round(100 * result.metrics[result.headline], 4) == expected["headline_f1_percent"]
    assert result.taken == expected["per_item_answer"]
    for place in ("coco", "hf/data", "hf/Full"):
        same_pope(score(POPE(str(folder / place)), folder), expected)


@of("pope")
def test_pope_in_the_tsv_layout(folder: Path) -> None:
    """The table has a question of several categories once; made-up questions that contradict each other fall out."""
    table, bench = POPE(str(folder / "tsv")), build(folder)
    assert isinstance(bench, POPE)
    labels = {(item.picture, item.question, item.categories[0], item.yes) for item in bench.truth.values()}
    for item in table.truth.values():
        assert {(item.picture, item.question, category, item.yes) for category in item.categories} <= labels
    assert table.score(dict.fromkeys(table.truth, "Yes")).metrics["yes_ratio"] == 1


@of("pope")
def test_pope_by_others(folder: Path) -> None:
    expected = load(folder / "expected.json")
    result = scored(folder, protocol="lmms-eval")
    for group, metrics in expected["peer_lmms_eval"].items():
        if group != "note":
            assert under(result.metrics, group) == pytest.approx(metrics, **CLOSE)
    result = scored(folder, protocol="vlmevalkit")
    for group, metrics in expected["peer_vlmevalkit_percent"].items():
        if group != "note":
            ours = under(result.metrics, group.replace("Overall", "all"))
            names = {"Overall": "f1", "acc": "accuracy", "precision": "precision", "recall": "recall"}
            assert {name: ours[own] for name, own in names.items()} == pytest.approx(metrics, **CLOSE)


@variants("pope", "all_empty", "all_yes")
def test_pope_variants(folder: Path) -> None:
    same_pope(variant(folder), load(folder / "expected.json"))


@variants("pope", "all_no")
def test_pope_all_no(folder: Path) -> None:
    result = variant(folder)
    assert (result.metrics["f1"], result.metrics["yes_ratio"]) == (0, 0)
    assert any("the official script stops here" in note for note in result.notes)


@variants("pope", "shuffled_order_POSITIONAL_PITFALL")
def test_pope_does_not_join_by_position(folder: Path) -> None:
    same_pope(variant(folder), load(folder.parents[1] / "expected.json"))


@variants("pope", "missing_rows_POSITIONAL_PITFALL")
def test_pope_missing(folder: Path) -> None:
    assert "have no answer" in refuses(folder)
    wrong = load(folder / "expected.json")["mean_over_three_categories"]["f1"]
    assert variant(folder, gaps="lenient").metrics["f1"] != pytest.approx(wrong, **CLOSE)


@variants("pope", "label_files_of_another_revision")
def test_pope_labels_of_another_revision(folder: Path, tmp_path: Path) -> None:
    """The silent wrong number must not come out: either the labels are found by content, or the files are refused."""
    base = folder.parents[1]
    (tmp_path / "llava_pope_test.jsonl").symlink_to(base / "llava_pope_test.jsonl")
    (tmp_path / "coco").symlink_to(folder / "coco")
    original, revised = POPE(str(base)), POPE(str(tmp_path))
    try:
        labels = revised.truth
    except DataError as error:
        labels, message = {}, str(error)
        assert "of another revision" in message
    assert not labels or all(labels[name].yes == item.yes for name, item in original.truth.items())


# ------------------------------------------------------------------------------------------------------------- MM-Vet


def graded(folder: Path, base: Path, tmp_path: Path) -> tuple[Score, dict[str, Any]]:
    """The expected grades as a grades file, aggregated."""
    expected = load(folder / "expected.json")
    sheet = {
        name: {"model": ["stub"] * len(scores), "content": expected["per_item_content"][name], "score": scores}
        for name, scores in expected["per_item_scores"].items()
    }
    (tmp_path / "grades.json").write_text(json.dumps(sheet))
    bench = MMVet(str(base), grades=str(tmp_path / "grades.json"))
    return score(bench, base), expected


def same_mmvet(result: Score, expected: dict[str, Any]) -> None:
    for rounded, metrics in (("rounded_1_decimal", result.printed), ("rounded_10_decimals", result.metrics)):
        runs = expected[rounded]["runs"]
        for name, value in expected[rounded].items():
            if name != "runs":
                assert metrics[name] == pytest.approx(value, **CLOSE), name
        assert [metrics[f"run/{number}"] for number in range(1, len(runs) + 1)] == pytest.approx(runs, **CLOSE)
    for rounded, metrics in (("integration_rounded_1", result.printed), ("integration_rounded_10", result.metrics)):
        sets = {"_".join(sorted(name.split("_"))): value for name, value in expected[rounded].items()}
        assert under(metrics, "set") == pytest.approx(sets, **CLOSE)


@of("mmvet")
def test_mmvet_aggregates_grades(folder: Path, tmp_path: Path) -> None:
    result, expected = graded(folder, folder, tmp_path)
    same_mmvet(result, expected)
    items = {name: 100 * sum(one) / len(one) for name, one in expected["per_item_scores"].items()}
    assert result.items == pytest.approx(items, **CLOSE)
    assert "judge: stub" in result.notes


@variants("mmvet", "3_runs", "5_runs")
def test_mmvet_aggregates_runs(folder: Path, tmp_path: Path) -> None:
    same_mmvet(*graded(folder, folder.parents[1], tmp_path))


@of("mmvet")
def test_mmvet_in_the_other_layouts(folder: Path, tmp_path: Path) -> None:
    result, _ = graded(folder, folder, tmp_path)
    for place in ("hf", "tsv"):
        bench = MMVet(str(folder / place), grades=str(tmp_path / "grades.json"))
        assert score(bench, folder).metrics == pytest.approx(result.metrics, **CLOSE)


@variants("mmvet", "missing_prediction")
def test_mmvet_missing(folder: Path) -> None:
    assert "v1_3" in refuses(folder)


def asks_a_scripted_judge(folder: Path, base: Path, tmp_path: Path, stub_judge: Any) -> None:
    """The replies of the vectors, in the order the evaluator asks for them, through a real endpoint."""
    expected, script = load(folder / "expected.json"), load(folder / "judge_replies.json")["replies"]
    runs = range(expected["num_run"])
    order = iter([one for run in runs for name in load(base / "mm-vet.json") for one in script[name][run]])
    stub = stub_judge(lambda _: next(order))
    (tmp_path / "mm-vet_evaluator.py").write_text('prompt = """Any prompt\n"""\n')
    bench = MMVet(
        str(base),
        grades=str(tmp_path / "grades.json"),
        judge=stub.address,
        evaluator=str(tmp_path / "mm-vet_evaluator.py"),
        runs=expected["num_run"],
    )
    same_mmvet(score(bench, base), expected)
    sheet = load(tmp_path / "grades.json")
    assert {name: one["score"] for name, one in sheet.items()} == expected["per_item_scores"]
    assert {name: one["content"] for name, one in sheet.items()} == expected["per_item_content"]
    assert len(stub.requests) == expected["judge_calls"]
    request = expected["judge_request"]
    assert {one["model"] for one in stub.requests} == {request["model"]}
    assert {one["max_tokens"] for one in stub.requests} == {request["max_tokens"]}
    assert stub.requests[0]["temperature"] == request["first_temperature"]


@of("mmvet")
def test_mmvet_asks_a_judge(folder: Path, tmp_path: Path, stub_judge: Any) -> None:
    asks_a_scripted_judge(folder, folder, tmp_path, stub_judge)


@variants("mmvet", "3_runs", "5_runs")
def test_mmvet_asks_a_judge_several_times(folder: Path, tmp_path: Path, stub_judge: Any) -> None:
    asks_a_scripted_judge(folder, folder.parents[1], tmp_path, stub_judge)


@pytest.mark.skipif("MMVET_EVALUATOR" not in os.environ, reason="needs a copy of mm-vet_evaluator.py: $MMVET_EVALUATOR")
@of("mmvet")
def test_mmvet_asks_exactly_what_the_evaluator_asks(folder: Path) -> None:
    bench = MMVet(str(folder))
    bench.prompt, official = prompt_in(os.environ["MMVET_EVALUATOR"], bench.place)
    assert official
    answers = bench.read(str(folder / "predictions.jsonl"))
    for name, expected in load(folder / "expected.json")["judge_prompt_sha256"].items():
        hashes = [hashlib.sha256(one.encode()).hexdigest() for one in bench.prompts(name, answers[name])]
        assert hashes[: len(expected)] == [expected[key] for key in ("first", "retry") if key in expected]


@of("mmvet")
def test_mmvet_replies(folder: Path) -> None:
    for row in lines(folder / "normalise.jsonl"):
        grade = parse_score(row["input"])
        assert (grade is not None) == row["accepted"], row
        if row["accepted"]:
            assert grade == pytest.approx(float(row["score"]), nan_ok=True, **CLOSE)


@of("mmvet")
def test_mmvet_rounds_as_the_official_tool(folder: Path) -> None:
    expected = load(folder / "expected.json")
    for name, value in expected["integration_rounded_10"].items():
        assert nearest_tenth(value) == expected["integration_rounded_1"][name]


# --------------------------------------------------------------------------------------------------------------- MMLU


@of("mmlu")
def test_mmlu(folder: Path) -> None:
    expected = load(folder / "expected.json")
    for place in (folder, folder / "hf"):
        result = score(MMLU(str(place)), folder)
        assert result.metrics["average"] == pytest.approx(expected["hendrycks_average"], **CLOSE)
        assert f"Average accuracy: {result.printed['average']:.3f}" == expected["printed_tail"]
        assert under(result.metrics, "subject") == pytest.approx(expected["hendrycks_per_subject"], **CLOSE)
        groups = {"__all__": result.printed["average"], **under(result.printed, "area")}
        assert groups | under(result.printed, "hendrycks") == expected["hendrycks_groups_3_decimals"]
        ours = under(result.metrics, "subject") | under(result.metrics, "harness")
        ours["mmlu"] = result.metrics["average"]
        assert ours == pytest.approx(expected["lm_eval"], **CLOSE)
        macro = expected["macro_average_over_subjects_FOR_INFORMATION"]
        assert result.metrics["macro_average"] == pytest.approx(macro, **CLOSE)
        assert result.items == {name: row["correct"] for name, row in expected["per_item"].items()}
        assert result.taken == {name: row["pred"] for name, row in expected["per_item"].items()}
        assert len(result.items) == expected["n"]


# ------------------------------------------------------------------------------------------------------ normalisation


def test_tables_are_the_official_ones() -> None:
    tables = load(unpacked() / "vqav2" / "tables.json")
    assert vqatext.contractions("vqa") == tables["contractions"]
    assert tables["number_words"] == vqatext.NUMBERS
    assert sorted(vqatext.ARTICLES) == sorted(tables["articles"])
    assert sorted(vqatext.PUNCTUATION) == sorted(tables["punctuation"])
    assert vqatext.contractions("vizwiz") == load(unpacked() / "vizwiz" / "tables.json")["contractions"]


@of("vqav2", "textvqa", "vizwiz", "gqa")
def test_normalised_answers(folder: Path) -> None:
    rules = {
        "vqav2": lambda text: vqatext.vqa(vqatext.plain(text)),
        "textvqa": vqatext.m4c,
        "vizwiz": vqatext.vizwiz,
        "gqa": converted,
    }
    for row in lines(folder / "normalise.jsonl"):
        assert rules[folder.parent.name](row["input"]) == row["output"], row


@of("textvqa")
def test_normalised_answers_of_vlmevalkit(folder: Path) -> None:
    for row in lines(folder / "normalise_peer_vlmevalkit.jsonl"):
        assert vqatext.vlmevalkit(row["input"]) == row["output"], row


@of("scienceqa")
def test_letters_of_scienceqa(folder: Path) -> None:
    for row in lines(folder / "normalise.jsonl"):
        letter = scienceqa.letter(row["input"])
        assert (letter, scienceqa.index(letter, len(row["choices"]))) == (row["parsed"], row["index"]), row


@of("pope")
def test_readings_of_pope(folder: Path) -> None:
    for row in lines(folder / "normalise.jsonl"):
        assert pope.yes_or_no(row["input"]) == row["output"], row
        assert pope.PEERS["vlmevalkit"][0](row["input"]) == row["peer_vlmevalkit"].lower(), row


@of("mmbench", "mmbench_cn")
def test_options_of_mmbench(folder: Path) -> None:
    keys = {"head": "option", "before-2026-06": "option_before_2026_06", "before-2025-08": "option_before_2025_08"}
    for row in lines(folder / "normalise.jsonl"):
        for version, key in keys.items():
            assert (option(row["input"], row["choices"], version) or False) == row[key], (version, row)


# -------------------------------------------------------------------------------------------------------- submissions


@of("vqav2", "gqa", "vizwiz", "mmvet")
def test_submissions(folder: Path, tmp_path: Path) -> None:
    bench = build(folder)
    bench.submission(bench.read(str(folder / "predictions.jsonl")), tmp_path / "upload.json")
    assert load(tmp_path / "upload.json") == load(folder / "expected_submission.json")


@of("mmbench", "mmbench_cn")
def test_sheets(folder: Path, tmp_path: Path) -> None:
    bench, expected = build(folder), load(folder / "expected_submission.json")
    bench.submission(bench.read(str(folder / "predictions.jsonl")), tmp_path / "upload.xlsx")
    assert cells(tmp_path / "upload.xlsx") == [expected["header"], *expected["rows"]]
    assert cells(tmp_path / "upload.xlsx") == cells(folder / "expected_submission.xlsx")


# ------------------------------------------------------------------------------------------------------- completeness


def test_every_variant_is_tested() -> None:
    paths = {path for folder in SETS for path in folder.glob("variants/*")}
    assert paths == TESTED


@pytest.mark.parametrize("bench", MAKE)
def test_every_benchmark_has_vectors(bench: str) -> None:
    assert any(folder.parent.name == bench for folder in SETS)


# ------------------------------------------------------------------------------------------------------ how they travel


def with_sets(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "expected.json").write_text("{}")
    return folder


def test_a_clone_alone_has_a_set_of_every_benchmark(tmp_path: Path) -> None:
    found = sets(unpacked(), tmp_path / "nowhere")
    assert {path.parent.name for path in found} == set(MAKE)
    assert all(path.is_relative_to(unpacked()) for path in found)


def test_sets_beside_are_tested_where_they_are_other_or_not_the_same(tmp_path: Path) -> None:
    ours = with_sets(tmp_path / "ours", "pope/public", "gqa/public", "mmlu/public")
    beside = with_sets(tmp_path / "beside", "pope/public", "gqa/public", "mmlu/heldout")
    assert [path.parent.name for path in sets(ours, beside)] == ["gqa", "mmlu", "mmlu", "pope"]
    (beside / "gqa" / "public" / "variants").mkdir()
    (beside / "gqa" / "public" / "variants" / "more.json").write_text("{}")
    assert [path.parent.name for path in sets(ours, beside)] == ["gqa", "gqa", "mmlu", "mmlu", "pope"]


def test_the_same_files_are_packed_the_same(tmp_path: Path) -> None:
    pack(unpacked(), tmp_path)
    assert len(list(tmp_path.glob("*.tar.xz"))) == len(MAKE)
    for path in tmp_path.iterdir():
        ours = (PACKED / path.name).read_bytes()
        # another liblzma may compress otherwise
        assert ours == path.read_bytes() or lzma.decompress(ours) == lzma.decompress(path.read_bytes())


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in PACKED.iterdir() if path.is_file()) < 1_000_000


def test_nothing_is_unpacked_outside_its_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar.xz", "w:xz") as archive:
        archive.addfile(tarfile.TarInfo("../outside.json"))
    (tmp_path / "in").mkdir()
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(tmp_path, tmp_path / "in")
    assert not (tmp_path / "outside.json").exists()
