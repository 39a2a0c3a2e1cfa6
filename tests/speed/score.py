"""`mmalign score` of 10,000 answers of each benchmark, and of VQAv2's whole val split, against its limit: CPU seconds
above an interpreter that does nothing. Files are made up in the official layout.

The reference column is the limit, so a ratio above 1 is too slow.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import Pairs

TARGET = 1.0
TIMES = 3
SIZE, LIMIT = 10_000, 1.0  # answers; seconds
WHOLE, LIMIT_WHOLE = 214_354, 20.0
PICTURE = "iVBORw0KGgo" * 500  # a cell of base64, as long as that of a small picture
WORDS = "red blue the kettle's two none 3.5 on/off left-hand dont a yes no urn,".split()  # noqa: SIM905

Make = Callable[[Path, int, random.Random], dict[Any, str]]  # writes the files, returns {question id: answer}


def measure() -> dict[str, Pairs]:
    bare = min(seconds("pass")[0] for _ in range(TIMES))
    with tempfile.TemporaryDirectory() as home:
        found = {f"score {name}": _timed(name, SIZE, LIMIT, TIMES, bare, Path(home)) for name in MAKE}
        found["score vqav2, all of val"] = _timed("vqav2", WHOLE, LIMIT_WHOLE, 1, bare, Path(home))
    return found


def _timed(name: str, size: int, limit: float, times: int, bare: float, home: Path) -> Pairs:
    folder = home / f"{name}-{size}"
    folder.mkdir()
    texts = MAKE[name](folder, size, random.Random(0))
    (folder / "answers.jsonl").write_text("\n".join(json.dumps({"id": str(key), "text": texts[key]}) for key in texts))
    more = ["grades=" + str(folder / "grades.json")] if name == "mmvet" else []
    words = [*more, "--bench", name, "--data", str(folder), "--answers", str(folder / "answers.jsonl"), "--json"]
    found = Pairs(reference=[limit])
    for _ in range(times):
        spent, said = seconds("from mmalign.cli import entry; entry()", "score", *words)
        assert json.loads(said)["counts"]["answered"] == len(texts)
        found.ours.append(spent - bare)
    return found


def seconds(code: str, *words: str) -> tuple[float, str]:
    """CPU seconds of a Python process, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def phrase(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 3))) + (str(rng.randint(0, 9999)) if rng.random() < 0.3 else "")


def dump(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))


def vqav2(folder: Path, size: int, rng: random.Random) -> dict[Any, str]:
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
    return texts


def gqa(folder: Path, size: int, rng: random.Random) -> dict[Any, str]:
    semantic = [{"operation": "select", "dependencies": [], "argument": "urn (1)"}] * 3
    rows = {}
    for name in range(size):
        kinds = {"structural": rng.choice(["query", "verify"]), "semantic": "obj", "detailed": "x"}
        base = {"question": "Is it?", "answer": rng.choice(WORDS), "isBalanced": True, "imageId": "n1"}
        rows[str(name)] = base | {"types": kinds, "groups": {"global": rng.choice(WORDS)}, "semantic": semantic}
    dump(folder / "testdev_balanced_questions.json", rows)
    return {name: rng.choice(WORDS) for name in rows}


def vizwiz(folder: Path, size: int, rng: random.Random) -> dict[Any, str]:
    rows = []
    for name in range(size):
        answers = [{"answer": phrase(rng), "answer_confidence": "yes"} for _ in range(10)]
        kinds = {"answer_type": "other", "answerable": 1}
        rows.append({"image": f"{name}.jpg", "question": "What?", "answers": answers, **kinds})
    dump(folder / "val.json", rows)
    return {row["image"]: phrase(rng) for row in rows}


def textvqa(folder: Path, size: int, rng: random.Random) -> dict[Any, str]:
    rows = []
    for name in range(size):
        said = [phrase(rng) for _ in range(10)]
        rows.append({"question_id": name, "image_id": f"i{name}", "question": "What?", "answers": said})
    dump(folder / "TextVQA_0.5.1_val.json", {"data": rows})
    return {name: phrase(rng) for name in range(size)}


def pope(folder: Path, size: int, rng: random.Random) -> dict[Any, str]:
    texts = {}
    for number, category in enumerate(("adversarial", "random", "popular")):
        sizes = range(1, 1 + size // 3 + (number < size % 3))
        rows = [{"question_id": n, "image": f"{n}.jpg", "text": "Is it?", "label": "yes"} for n in sizes]
        (folder / f"coco_pope_{category}.json").write_text("\n".join(map(json.dumps, rows)))
        texts |= {number * 10_000_000 + n: rng.choice(["Yes", "No.", "Perhaps"]) for n in sizes}
    return texts


def mmbench(folder: Path, size: int, rng: random.Random) -> dict[Any, str]:
    return _circular(folder / "mmbench_dev_20230712.tsv", size, rng)


def mmbench_cn(folder: Path, size: int, rng: random.Random) -> dict[Any, str]:
    return _circular(folder / "mmbench_dev_cn_20231003.tsv", size, rng)


def _circular(path: Path, size: int, rng: random.Random) -> dict[Any, str]:
    """Four passes; a tenth of the rows has a hint with quotes and a line break."""
    head = ["index", "question", "hint", *"ABCD", "answer", "category", "image", "source", "l2-category", "comment"]
    rows = ["\t".join([*head, "split"])]
    indices = [turn * 1_000_000 + n for turn in range(4) for n in range(size // 4)]
    for name in indices:
        hint = '"a ""kettle""\nand an urn"' if name % 10 == 0 else ""
        known = [str(name), "What?", hint, *WORDS[:4], "A", "ocr", PICTURE, "x", "logic_reasoning", "", "dev"]
        rows.append("\t".join(known))
    path.write_text("\n".join(rows))
    return {name: rng.choice(["A", "B.", "The answer is C", phrase(rng)]) for name in indices}


def scienceqa(folder: Path, size: int, rng: random.Random) -> dict[Any, str]:
    base = {"question": "What?", "choices": WORDS[:4], "hint": "", "subject": "natural science", "grade": "grade3"}
    odd = {"image": "image.png", "topic": "verbs"}
    rows = {str(n): base | odd | {"answer": n % 4, "image": odd["image"] if n % 2 else None} for n in range(size)}
    dump(folder / "problems.json", rows)
    dump(folder / "pid_splits.json", {"test": list(rows)})
    return {name: rng.choice(["A", "B. blue", "The answer is C."]) for name in rows}


def mmvet(folder: Path, size: int, rng: random.Random) -> dict[Any, str]:
    """Five grades of each answer, in a file."""
    abilities = ["rec", "ocr", "know", "gen", "spat", "math"]
    rows, grades = {}, {}
    for n in range(size):
        able = rng.sample(abilities, rng.randint(1, 3))
        rows[f"v1_{n}"] = {"imagename": f"v1_{n}.png", "question": "What?", "answer": "x<AND>y", "capability": able}
        score = [rng.randint(0, 10) / 10 for _ in range(5)]
        grades[f"v1_{n}"] = {"model": ["gpt-4"] * 5, "content": [str(one) for one in score], "score": score}
    dump(folder / "mm-vet.json", rows)
    dump(folder / "grades.json", grades)
    return {name: phrase(rng) for name in rows}


def mmlu(folder: Path, size: int, rng: random.Random) -> dict[Any, str]:
    texts = {}
    for part in ("test", "dev"):
        (folder / part).mkdir()
    for subject in ("anatomy", "virology", "sociology", "philosophy"):
        (folder / "test" / f"{subject}_test.csv").write_text('What is it?,a,"b, c",c,d,A\n' * (size // 4))
        (folder / "dev" / f"{subject}_dev.csv").write_text("What is it?,a,b,c,d,A\n" * 5)
        texts |= {f"{subject}/{n}": rng.choice("ABCD") for n in range(size // 4)}
    return texts


MAKE: dict[str, Make] = {
    made.__name__: made for made in (vqav2, gqa, textvqa, vizwiz, scienceqa, mmbench, mmbench_cn, pope, mmvet, mmlu)
}
