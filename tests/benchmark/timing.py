"""How long scoring takes; run by hand: python tests/benchmark/timing.py [FOLDER for the made-up files]."""

import json
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = [
    "red",
    "blue",
    "the",
    "kettle's",
    "two",
    "none",
    "3.5",
    "on/off",
    "left-hand",
    "dont",
    "a",
    "yes",
    "no",
    "urn,",
]
HEAD = [
    "index",
    "question",
    "hint",
    *"ABCD",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
]
QUICK, WHOLE = 10_000, 214_354  # questions: the first goal, and the val split of VQAv2


def phrase(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 3))) + (str(rng.randint(0, 9999)) if rng.random() < 0.3 else "")


def dump(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def predict(folder: Path, texts: dict[Any, str]) -> None:
    rows = (json.dumps({"question_id": name, "text": text}) for name, text in texts.items())
    (folder / "predictions.jsonl").write_text("\n".join(rows))


def vqav2(folder: Path, size: int, rng: random.Random) -> None:
    questions, annotations, texts = [], [], {}
    for name in range(size):
        said = rng.choices([phrase(rng) for _ in range(3)], k=10)
        answers = [{"answer": one, "answer_confidence": "yes", "answer_id": n + 1} for n, one in enumerate(said)]
        kinds = {"question_type": rng.choice(WORDS), "answer_type": rng.choice(["yes/no", "number", "other"])}
        annotations.append({"question_id": name, "image_id": name, "answers": answers, **kinds})
        questions.append({"question_id": name, "image_id": name, "question": "What?"})
        texts[name] = rng.choice([*said, phrase(rng)])
    dump(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"data_subtype": "val2014", "questions": questions})
    dump(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    predict(folder, texts)


def gqa(folder: Path, size: int, rng: random.Random) -> None:
    rows = {}
    for name in range(size):
        kinds = {"structural": rng.choice(["query", "verify"]), "semantic": "obj", "detailed": "x"}
        semantic = [{"operation": "select", "dependencies": [], "argument": "urn (1)"}] * 3
        base = {"question": "Is it?", "answer": rng.choice(WORDS), "isBalanced": True, "imageId": "n1"}
        rows[str(name)] = base | {"types": kinds, "groups": {"global": rng.choice(WORDS)}, "semantic": semantic}
    dump(folder / "testdev_balanced_questions.json", rows)
    predict(folder, {name: rng.choice(WORDS) for name in rows})


def vizwiz(folder: Path, size: int, rng: random.Random) -> None:
    rows = []
    for name in range(size):
        answers = [{"answer": phrase(rng), "answer_confidence": "yes"} for _ in range(10)]
        rows.append({"image": f"{name}.jpg", "question": "What?", "answers": answers, "answer_type": "other"})
    dump(folder / "val.json", rows)
    predict(folder, {row["image"]: phrase(rng) for row in rows})


def textvqa(folder: Path, size: int, rng: random.Random) -> None:
    rows = []
    for name in range(size):
        said = [phrase(rng) for _ in range(10)]
        rows.append({"question_id": name, "image_id": f"i{name}", "question": "What?", "answers": said})
    dump(folder / "TextVQA_0.5.1_val.json", {"data": rows})
    predict(folder, {name: phrase(rng) for name in range(size)})


def pope(folder: Path, size: int, rng: random.Random) -> None:
    offsets = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}
    for category in offsets:
        rows = [{"question_id": n + 1, "image": f"{n}.jpg", "text": "Is it?", "label": "yes"} for n in range(size // 3)]
        (folder / f"coco_pope_{category}.json").write_text("\n".join(map(json.dumps, rows)))
    texts = {
        start + n + 1: rng.choice(["Yes", "No.", "Perhaps"]) for start in offsets.values() for n in range(size // 3)
    }
    predict(folder, texts)


def mmbench(folder: Path, size: int, rng: random.Random) -> None:
    rows, picture = ["\t".join(HEAD)], "iVBORw0KGgo" * 500
    indices = [turn * 1_000_000 + n for turn in range(4) for n in range(size // 4)]
    for name in indices:
        rows.append(
            "\t".join([str(name), "What?", "", *WORDS[:4], "A", "ocr", picture, "x", "logic_reasoning", "", "dev"])
        )
    (folder / "mmbench_dev_20230712.tsv").write_text("\n".join(rows))
    predict(folder, {name: rng.choice(["A", "B.", "The answer is C", phrase(rng)]) for name in indices})


def scienceqa(folder: Path, size: int, rng: random.Random) -> None:
    base = {"question": "What?", "choices": WORDS[:4], "hint": "", "subject": "natural science", "grade": "grade3"}
    rows = {
        str(n): base | {"answer": n % 4, "image": "image.png" if n % 2 else None, "topic": "verbs"} for n in range(size)
    }
    dump(folder / "problems.json", rows)
    dump(folder / "pid_splits.json", {"test": list(rows)})
    predict(folder, {name: rng.choice(["A", "B. blue", "The answer is C."]) for name in rows})


def mmlu(folder: Path, size: int, rng: random.Random) -> None:
    texts = {}
    for subject in ("anatomy", "virology", "sociology", "philosophy"):
        for part in ("test", "dev"):
            (folder / part).mkdir(exist_ok=True)
            (folder / part / f"{subject}_{part}.csv").write_text("What is it?,a,b,c,d,A\n" * (size // 4))
        texts |= {f"{subject}/{n}": rng.choice("ABCD") for n in range(size // 4)}
    predict(folder, texts)


def timed(make: Callable[[Path, int, random.Random], None], size: int, home: Path) -> None:
    """`mmalign score --json` on made-up files, against an interpreter that does nothing."""
    folder = home / f"{make.__name__}-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    make(folder, size, random.Random(0))
    words = ["score", "--bench", make.__name__, "--data", folder, "--answers", folder / "predictions.jsonl", "--json"]
    whole, said = seconds("from mmalign.cli import entry; entry()", *map(str, words))
    bare, _ = seconds("pass")
    found = json.loads(said)
    print(f"{make.__name__:10} {size:7} answers {whole - bare:6.2f} s above the interpreter", end="  ")
    print(f"{found['headline']} {found['metrics'][found['headline']]:.4f}")


def seconds(code: str, *words: str) -> tuple[float, str]:
    """CPU seconds of a Python process, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def main(home: Path) -> None:
    for make in (vqav2, gqa, textvqa, vizwiz, pope, mmbench, scienceqa, mmlu):
        timed(make, QUICK, home)
    timed(vqav2, WHOLE, home)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
