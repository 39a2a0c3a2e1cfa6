"""The cards of the ten benchmarks: built by name, and their facts held to the classes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmalign.errors import CardError
from mmalign.plan.building import build
from mmalign.plan.cards import Card, Registry

NAMES = ("vqav2", "gqa", "textvqa", "scienceqa", "mmbench", "mmbench_cn", "pope", "vizwiz", "mmvet", "mmlu")
MMBENCH = "index\tquestion\thint\tA\tB\tanswer\tcategory\timage\n1\tWhich?\t\ta\tb\tA\tocr\tiVBO\n"
VQA = {"answer": "red", "answer_confidence": "yes", "answer_id": 1}
GQA = {"question": "What?", "answer": "urn", "isBalanced": True, "imageId": "n1", "groups": {"global": None}}
GQA_KINDS = {"types": {"structural": "query", "semantic": "obj", "detailed": "x"}, "semantic": []}
PROBLEM = {"question": "Which?", "choices": ["a", "b"], "answer": 0, "hint": "", "image": "image.png"}

# the smallest files each benchmark can be built from, and a right answer to their one question
FILES: dict[str, dict[str, Any]] = {
    "vqav2": {
        "v2_OpenEnded_mscoco_val2014_questions.json": {
            "data_subtype": "val2014",
            "questions": [{"question_id": 1, "image_id": 1, "question": "What?"}],
        },
        "v2_mscoco_val2014_annotations.json": {
            "annotations": [{"question_id": 1, "answer_type": "other", "question_type": "what", "answers": [VQA] * 4}]
        },
    },
    "gqa": {"testdev_balanced_questions.json": {"1": GQA | GQA_KINDS}},
    "textvqa": {
        "TextVQA_0.5.1_val.json": {
            "data": [{"question_id": 1, "image_id": "ab", "question": "what?", "answers": ["red"] * 10}]
        },
        "llava_textvqa_val_v051_ocr.jsonl": {"question_id": "ab", "image": "ab.jpg", "text": "What?\nAnswer."},
    },
    "scienceqa": {"problems.json": {"1": PROBLEM}, "pid_splits.json": {"test": ["1"]}},
    "mmbench": {"mmbench_dev_20230712.tsv": MMBENCH},
    "mmbench_cn": {"mmbench_dev_cn_20231003.tsv": MMBENCH},
    "pope": {"coco_pope_random.json": {"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "yes"}},
    "vizwiz": {"val.json": [{"image": "a.jpg", "question": "what?", "answers": [VQA] * 10}]},
    "mmvet": {"mm-vet.json": {"v1_0": {"imagename": "a.png", "question": "?", "answer": "x", "capability": ["ocr"]}}},
    "mmlu": {"test/anatomy_test.csv": "What?,a,b,c,d,A\n", "dev/anatomy_dev.csv": "Which?,a,b,c,d,B\n" * 5},
}


def files(folder: Path, name: str) -> str:
    for file, content in FILES[name].items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder)


def on(card: Card, **args: object) -> Any:
    """The benchmark of a card with other arguments, as a recipe gives them."""
    return build(replace(card, args={**card.args, **args}))


@pytest.mark.parametrize("name", NAMES)
def test_the_facts_of_a_card_are_those_of_its_class(name: str, tmp_path: Path) -> None:
    card = Registry().card("benchmarks", name)
    bench = on(card, data=files(tmp_path, name))
    assert bench.max_new_tokens == card.facts["max_new_tokens"]
    assert list(bench.protocols) == card.facts.get("protocols", ["official"])
    [question] = bench.questions()
    answer = {"gqa": "urn", "pope": "Yes", "scienceqa": "A", "mmbench": "A", "mmbench_cn": "A", "mmlu": " A"}.get(
        name, "red"
    )
    score = bench.score({question.id: answer})
    assert score.headline == card.facts["headline"]
    if name != "mmvet":  # it is not graded
        best = score.metrics[score.headline]
        assert best == {"percent": 100, "fraction": 1}[card.facts["unit"]] or name == "vqav2"
    assert bench.data_files


def test_a_card_takes_the_arguments_of_its_class(tmp_path: Path) -> None:
    card = Registry().card("benchmarks", "mmbench_cn")
    bench = on(card, data=files(tmp_path, "mmbench_cn"), extraction="before-2025-08")
    assert bench.questions()[0].text.endswith("\n请直接回答选项字母。")
    with pytest.raises(CardError, match="takes no argument 'language_'") as told:
        on(card, data=str(tmp_path), language_="cn")
    assert told.value.fix == "did you mean 'language'?"
