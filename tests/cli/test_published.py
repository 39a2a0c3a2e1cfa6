"""Data laid out as published data sets are, with the rows that such sets hold: checked, shown, and trained on."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import TINY, command
from tests.data.samples import jpeg, jsonl, png

QUESTION = {"from": "human", "value": "<image>\nWhat is red?"}
ANSWER = {"from": "gpt", "value": "The star."}
GOOD = 6  # rows of each set without any fault, whatever else stands beside them


def talk(answer="The star.", question="<image>\nWhat is red?", **flags):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer, **flags}]


def written(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number, (64, 48)))


def hub_snapshot(folder):
    """Parquet files of splits beside a README, as the hub keeps them."""
    picture = {"bytes": jpeg(0, (64, 48)), "path": "0.jpg"}
    rows = [{"id": f"a{n}", "image": picture, "conversations": talk(), "system": None} for n in range(GOOD)]
    rows += [
        {"id": "text", "image": None, "conversations": talk(question="What is red?"), "system": "Be brief."},
        {"id": "grey", "image": {"bytes": png(1), "path": None}, "conversations": talk(), "system": ""},
        {"id": "flag", "image": picture, "conversations": talk(loss=False), "system": None},
        {"id": "cut", "image": {"bytes": jpeg(2)[:200], "path": "2.jpg"}, "conversations": talk(), "system": None},
    ]
    (folder / "data").mkdir(parents=True)
    for split, some in {"train": rows, "validation": rows[:2]}.items():
        pq.write_table(pa.Table.from_pylist(some), folder / "data" / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A data set\n")
    (folder / ".gitattributes").write_text("*.parquet filter=lfs\n")
    return ["snapshot", "split=train"], {"flag", "cut"}


def webdataset(folder):
    """Shards of img2dataset, with the tables and figures it writes beside them."""
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for n in range(GOOD // 2):
                key, about = f"{shard:05}{n:04}", {"caption": "a red star", "url": "http://host/a.jpg", "exif": "{}"}
                add(tar, f"{key}.jpg", jpeg(n, (64, 48)))
                add(tar, f"{key}.json", json.dumps(about | {"key": key, "status": "success"}).encode())
                add(tar, f"{key}.txt", b"a red star")
            if shard:
                add(tar, "000010008.jpg", jpeg(8)[:200])
                add(tar, "000010008.txt", b"cut")
                add(tar, "000010009.json", b'{"caption": "gone", "status": "failed_to_download"}')
        (folder / f"{shard:05}_stats.json").write_text('{"count": 5}')
        pq.write_table(pa.table({"url": ["http://host/a.jpg"]}), folder / f"{shard:05}.parquet")
    return ["web/*.tar"], {"000010008", "000010009"}


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def sharegpt4v(folder):
    """One JSON list; pictures in the folders of their sources; ids that repeat."""
    names = [f"sam/images/sa_{n}.jpg" for n in range(GOOD)]
    written(folder / "data", *names, "coco/train2017/000000000009.jpg")
    rows = [{"id": "000000000009", "image": name, "conversations": talk()} for name in names]
    rows += [
        {"id": "behind", "image": names[0], "conversations": talk(question="What is red?\n<image>")},
        {"id": "newline", "image": names[0], "conversations": talk(answer="\nThe star.\n")},
        {"id": "no-mark", "image": names[0], "conversations": talk(question="What is red?")},
        {"id": "gone", "image": "sam/images/sa_7.jpg", "conversations": talk()},
        {"id": "empty", "image": names[0], "conversations": talk(answer="")},
    ]
    (folder / "share.json").write_text(json.dumps(rows))
    return ["share/share.json", "images=share/data"], {"gone", "empty"}


def cambrian(folder):
    """JSON lines of many sources: numbers as ids, no picture written in three ways, a line that was cut."""
    names = [f"coco/{n}.jpg" for n in range(GOOD)]
    written(folder, *names)
    rows = [{"id": n, "image": name, "conversations": talk(), "source": "x.json"} for n, name in enumerate(names)]
    words = talk(question="What is red?")
    rows += [{"id": 90, "image": "", "conversations": words}, {"id": 91, "conversations": words}, ""]
    rows += [{"id": 92, "image": "None", "conversations": words}]
    rows += [{"id": 93, "image": names[0], "conversations": talk(question="<image>\n<image>\nWhat is red?")}]
    rows += ['{"id": 94, "image": "coco/0.jpg", "conversa']
    jsonl(folder / "cambrian.jsonl", rows)
    return ["cambrian/cambrian.jsonl"], {"93", ""}


def saved_to_disk(folder):
    """What `datasets` saves: splits as folders of Arrow streams, messages in parts, pictures in a list beside them."""
    picture = {"bytes": jpeg(0, (64, 48)), "path": None}
    asked = [{"index": None, "text": "What is red?", "type": "text"}, {"index": 0, "text": None, "type": "image"}]
    rows = [saved(asked, [picture]) for _ in range(GOOD)]
    rows += [saved([*asked, {"index": 1, "text": None, "type": "image"}], [picture]), saved(asked[:1], [])]
    swapped = [{"index": 1, "text": None, "type": "image"}, {"index": 0, "text": None, "type": "image"}]
    rows += [saved([*asked[:1], *swapped], [picture, picture])]
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(folder / split / "data-00000-of-00001.arrow", table.schema) as out:
            out.write_table(table)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split, "_format_type": None}
        (folder / split / "state.json").write_text(json.dumps(state))
        (folder / split / "dataset_info.json").write_text("{}")
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return ["saved", "split=train"], {"@6", "@8"}


def saved(asked, pictures):
    answer = [{"index": None, "text": "The star.", "type": "text"}]
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": pictures}


LAYOUTS = {
    "snapshot": hub_snapshot, "web": webdataset, "share": sharegpt4v, "cambrian": cambrian, "saved": saved_to_disk,
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_row_is_read_or_named(here, mmalign, name):
    words, bad = LAYOUTS[name](here / name)
    said = mmalign("data", "check", *words, "--llm", "toy-llama", "--jobs", "1", "--json")
    result = json.loads(said.out)
    assert said.code == 1
    named = {entry["id"] for listed in result["listed"].values() for entry in listed}
    assert {id_ if id_ in bad else id_.rpartition("@")[0] for id_ in named} == bad, result
    assert result["rows"] - result["bad"] >= GOOD

    said = mmalign("data", "show", *words, "--rows", f"0:{result['rows']}", "--json")
    shown = json.loads(said.out)
    assert said.code == 0
    trained = {"".join(part["tokens"]) for one in shown[:GOOD] for part in one["parts"] if part["state"] == "trained"}
    assert len(trained) == 1
    assert "star" in trained.pop()
    assert {tuple(image.get("width", 0) for image in one["images"]) for one in shown[:GOOD]} == {(64,)}
    assert sum("error" in one or any("error" in image for image in one["images"]) for one in shown) == len(bad)


@pytest.mark.slow
def test_three_steps_on_every_one(here):
    """One recipe with a stage for each: what cannot be used is left out, and counted."""
    stages, off = [], [f"stages.{name}=~" for name in ("label", "align", "tune", "score", "report")]
    (here / "tiny.yaml").write_text(TINY)
    for name, make in LAYOUTS.items():
        (path, *more), _ = make(here / name)
        reader = {"snapshot": "table", "saved": "table", "web": "tars"}.get(name, "conversations")
        args = {"path": f"./{path}"} | dict(word.split("=") for word in more)
        args |= {"images": f"./{args['images']}"} if "images" in args else {}
        stage = {
            "kind": "train", "data": {"card": reader, "args": args}, "trains": ["adapter"], "objectives": {"lm": 1.0},
            "optim": {"lr": 1e-3}, "batch": 8, "micro_batch": 4, "steps": 3, "precision": "fp32", "max_bad": 0.5,
            "engine": {"zero": 0, "workers": 1}, "log_every": 1,
        }  # fmt: skip
        stages.append(f"stages.{name}={json.dumps(stage)}")
    said = command("run", "tiny.yaml", *off, *stages, cwd=here)
    assert said.code == 0, said.err
    left = {}
    for place in here.glob("runs/train-*/stage.json"):
        about = json.loads(place.read_text())
        left[about["name"]] = sum(about["bad_reasons"].values())
        assert about["metrics"]["step"] == 3
    assert left == dict.fromkeys(LAYOUTS, 2)
