"""JSON and JSONL: any row by its number, from threads, packed or remote, with rows left out."""

import gzip
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from mmalign.data import Record, Turn, quarantine
from mmalign.data.conversations import Conversations
from mmalign.data.reasons import Unusable
from mmalign.errors import DataError
from tests.data.samples import images, is_picture, jpeg, jsonl, row


def rows(count=5):
    return [row(f"r{n}", f"{n % 3}.jpg", answer=f"Answer {n}.") for n in range(count)]


def written(folder, name, rows):
    """The rows in any of the file formats."""
    text = json.dumps(rows, indent=1) if ".jsonl" not in name else "".join(json.dumps(row_) + "\n" for row_ in rows)
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(folder / name)


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.json.gz", "x.jsonl.gz", "x.txt"])
def test_every_format_gives_the_same_records(tmp_path, name):
    images(tmp_path)
    for _ in range(2):
        data = Conversations(written(tmp_path, name, rows()))
        assert len(data) == 5
        turns = (Turn("user", "<image>\nWhat is it?"), Turn("assistant", "Answer 4."))
        assert data[4] == Record("r4@4", turns, ("1.jpg",))
        assert is_picture(data.image(data[4].images[0]), 1, "JPEG")


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.jsonl.gz"])
def test_remote_files(tmp_path, name):
    for file, content in ((name, Path(written(tmp_path, name, rows())).read_bytes()), ("0.jpg", jpeg(0))):
        with fsspec.open(f"memory://{tmp_path.name}/{file}", "wb") as target:
            target.write(content)
    data = Conversations(f"memory://{tmp_path.name}/{name}")
    assert data[3].id == "r3@3"
    assert is_picture(data.image(data[3].images[0]), 0, "JPEG")


def test_many_threads(tmp_path):
    images(tmp_path)
    data = Conversations(written(tmp_path, "x.jsonl", rows(300)))

    def read(number):
        record = data[number]
        return record.id, data.image(record.images[0]).tobytes()

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(read, [n % 300 for n in range(2000)]))
    assert results == [read(n % 300) for n in range(2000)]


def test_ids_that_repeat_or_lack_are_still_told_apart(tmp_path):
    rows_ = [row("same"), row("same"), row(7), {k: v for k, v in row().items() if k != "id"}, row(None)]
    data = Conversations(jsonl(tmp_path / "x.jsonl", [{**row_, "image": "0.jpg"} for row_ in rows_]))
    assert [record.id for record in data] == ["same@0", "same@1", "7@2", "@3", "@4"]


def test_text_alone_and_several_images(tmp_path):
    rows_ = [row("t", None, "Hello."), row("two", ["0.jpg", "1.jpg"], "<image> or <image>?")]
    data = Conversations(jsonl(tmp_path / "x.jsonl", rows_))
    assert data[0].images == ()
    assert data[1].images == ("0.jpg", "1.jpg")
    assert data[1].keys == ["two@1#0", "two@1#1"]


@pytest.mark.parametrize("number", [-1, 5, 10**9])
def test_numbers_outside(tmp_path, number):
    data = Conversations(written(tmp_path, "x.json", rows()))
    with pytest.raises(DataError, match=f"no record {number}"):
        data[number]


def test_rows_that_cannot_be_read_have_a_name(tmp_path):
    data = Conversations(jsonl(tmp_path / "x.jsonl", [row("a"), "{broken", row("c", None, "<image>")]))
    assert [data.id_of(n) for n in range(3)] == ["a@0", "@1", "c@2"]
    with pytest.raises(Unusable, match="row 1 is not valid JSON"):
        data[1]


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    path = written(tmp_path, "x.jsonl", rows())
    data = Conversations(path)
    os.truncate(path, 20)
    with pytest.raises(Unusable, match="row 4 is not there any more"):
        data[4]


@pytest.mark.parametrize(
    ("path", "message"),
    [("/nowhere/x.json", "no file /nowhere/x.json"), ("memory://nowhere/x.json", "no file memory://nowhere/x.json"),
     ("nosuch://x/y.json", "cannot read nosuch://x/y.json")],
)  # fmt: skip
def test_files_that_are_not_there(path, message):
    with pytest.raises(DataError) as caught:
        Conversations(path)
    assert message in caught.value.what


def test_a_packed_file_that_is_cut(tmp_path):
    path = tmp_path / written(tmp_path, "x.json.gz", rows(200))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="cannot unpack"):
        Conversations(str(path))
    path.write_bytes(b"not packed at all")
    with pytest.raises(DataError, match="cannot unpack"):
        Conversations(str(path))


def test_a_folder_without_files(tmp_path):
    with pytest.raises(DataError, match=r"no .json, .jsonl, .ndjson, .json.gz, .*files in"):
        Conversations(str(tmp_path))


def test_paths_of_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_DATA", str(tmp_path))
    images(tmp_path)
    written(tmp_path, "x.json", rows())
    data = Conversations("data:x.json")
    assert is_picture(data.image(data[0].images[0]), 0, "JPEG")
    assert len(Conversations("data:x.json", "data:")) == 5


def left_out(folder, *ids):
    quarantine.write(folder / "q.jsonl", [(id_, "missing: gone") for id_ in ids])
    return str(folder / "q.jsonl")


def test_quarantined_rows_are_left_out(tmp_path):
    path = written(tmp_path, "x.json", rows(10))
    data = Conversations(path, quarantine=left_out(tmp_path, "r0@0", "r4@4", "r5@5", "r9@9"))
    assert len(data) == 6
    assert data.left_out == 4
    assert [record.id for record in data] == ["r1@1", "r2@2", "r3@3", "r6@6", "r7@7", "r8@8"]
    with pytest.raises(DataError, match="no record 6"):
        data[6]
    data.leave_out(["r1@1", "r4@4"])
    assert [record.id for record in data] == ["r2@2", "r3@3", "r6@6", "r7@7", "r8@8"]
    assert data.left_out == 5


def test_rows_nobody_can_read_are_left_out_by_their_number(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [row("a"), "{broken", row("c")])
    assert len(Conversations(path, quarantine=left_out(tmp_path, "@1"))) == 2


def test_everything_left_out(tmp_path):
    path = written(tmp_path, "x.json", rows(2))
    assert len(Conversations(path, quarantine=left_out(tmp_path, "r0@0", "r1@1"))) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "x9@9"}', "row 9 is r9@9, not x9@9"),
        ('{"id": "r99@99"}', "it names row 99, and there are 10"),
        ('{"id": "r9"}', "must end in @ and its row, got 'r9'"),
        ('{"id": "7"}', "must end in @ and its row"),
        ('{"id": "r@-1"}', "must end in @ and its row"),
        ('{"name": 1}', "not a line of a quarantine"),
        ("[1]", "not a line of a quarantine"),
        ('"x@1"', "not a line of a quarantine"),
        ("x", "not a line of a quarantine: 'x'"),
        (b"\xff", "cannot read the quarantine"),
    ],
)
def test_quarantines_of_something_else(tmp_path, text, message):
    (tmp_path / "q.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        Conversations(written(tmp_path, "x.json", rows(10)), quarantine=str(tmp_path / "q.jsonl"))
    assert message in caught.value.what


def test_no_quarantine_there(tmp_path):
    with pytest.raises(DataError, match="cannot read the quarantine"):
        Conversations(written(tmp_path, "x.json", rows()), quarantine=str(tmp_path / "none.jsonl"))


MEASURE = """
import json, random, sys, time
from PIL import Image
from mmalign.data.conversations import Conversations

def most():
    lines = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
    return int(lines["VmHWM"].split()[0]) / 1024

loaded, began = most(), time.perf_counter()
data = Conversations(sys.argv[1])
took = time.perf_counter() - began
drawn = [0, len(data) - 1, *random.sample(range(len(data)), 2000)]
ids = {data[number].id for number in drawn}
print(json.dumps({"seconds": took, "MiB": most() - loaded, "right": ids == {f"{n:09d}@{n}" for n in drawn}}))
"""


def measure(path, cache):
    """What a fresh process measures; memory is above what it holds once its libraries are loaded."""
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, path], env=os.environ | {"MMALIGN_CACHE": str(cache)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(process.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_million_rows_open_in_two_seconds_and_300_mb(tmp_path):
    """The first time, and in a fifth of a second from the kept index."""
    path = tmp_path / "x.jsonl"
    line = json.dumps(row("000000000", "coco/x.jpg", answer="word " * 60)) + "\n"
    with open(path, "w") as target:
        target.writelines(line.replace("000000000", f"{n:09d}", 1) for n in range(1_000_000))
    runs = [measure(path, tmp_path / f"cache-{n}") for n in (1, 2, 3, 1, 2, 3)]  # the machine may be busy
    path.unlink()  # pytest keeps folders
    assert all(run["right"] for run in runs)
    assert max(run["MiB"] for run in runs) <= 300
    assert min(run["seconds"] for run in runs[:3]) <= 2
    assert min(run["seconds"] for run in runs[3:]) <= 0.2
