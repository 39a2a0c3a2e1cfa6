"""Parquet, Arrow and what `datasets` saved: the same records whatever the file and the types of its columns."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmalign.data import columnar
from mmalign.data.hub import Hub
from mmalign.data.lru import LRUCache
from mmalign.data.reasons import Unusable
from mmalign.data.table import ImageCell, Table
from mmalign.errors import DataError
from tests.data.samples import images, is_picture, jpeg, png, row

COUNT = 23
ROWS = [row(f"r{n}", answer=f"Answer {n}.") for n in range(COUNT)]


def struct(number):
    return {"bytes": png(number), "path": f"{number}.png"}


KINDS = {
    "struct": ("image", [struct(n) for n in range(COUNT)]),
    "bytes": ("image", [png(n) for n in range(COUNT)]),
    "list of structs": ("images", [[struct(n)] for n in range(COUNT)]),
    "list of bytes": ("images", [[png(n)] for n in range(COUNT)]),
    "path": ("image", [f"{n}.png" for n in range(COUNT)]),
    "struct of bytes alone": ("image", [{"bytes": png(n)} for n in range(COUNT)]),
    "list of structs of bytes alone": ("images", [[{"bytes": png(n)}] for n in range(COUNT)]),
    "struct with a path": ("image", [{"bytes": None, "path": f"{n}.png"} for n in range(COUNT)]),
}


def table(kind="struct", rows=ROWS):
    column, cells = KINDS[kind]
    return pa.table({
        "id": [row_["id"] for row_ in rows], "conversations": [row_["conversations"] for row_ in rows],
        column: cells[: len(rows)],
    })  # fmt: skip


def parquet(path, table_, group=5):
    pq.write_table(table_, path, row_group_size=group)
    return str(path)


def arrow(path, table_, stream=False, batch=4):
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table_.schema) as writer:
        writer.write_table(table_, max_chunksize=batch)
    return str(path)


@pytest.fixture(params=["parquet", "arrow", "stream"])
def write(request, tmp_path):
    def make(table_, name="x"):
        if request.param == "parquet":
            return parquet(tmp_path / f"{name}.parquet", table_)
        return arrow(tmp_path / f"{name}.arrow", table_, request.param == "stream")

    return make


@pytest.mark.parametrize("kind", list(KINDS))
def test_images_of_every_type(write, tmp_path, kind):
    for number in range(COUNT):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    data = Table(write(table(kind)))
    assert len(data) == COUNT
    for number in (0, 22, 4, 5, 11):
        record = data[number]
        assert record.id == f"r{number}@{number}"
        assert [turn.text for turn in record.turns] == ["<image>\nWhat is it?", f"Answer {number}."]
        assert len(record.images) == 1
        assert is_picture(data.image(record.images[0]), number)


def test_records_hold_no_bytes(write):
    assert Table(write(table()))[7].images == (ImageCell(7, "image", 0),)


def test_rows_without_an_image_and_with_several(write):
    rows = [row("none", None, "Hello."), row("two", None, "<image> or <image>?"), row("gap", None, "<image>")]
    table_ = pa.table({
        "id": [row_["id"] for row_ in rows], "conversations": [row_["conversations"] for row_ in rows],
        "images": [None, [struct(0), struct(1)], [None, struct(2)]],
    })  # fmt: skip
    data = Table(write(table_))
    assert data[0].images == ()
    assert [is_picture(data.image(row_), n) for n, row_ in enumerate(data[1].images)] == [True, True]
    assert is_picture(data.image(data[2].images[0]), 2)


def test_the_cauldron_and_captions(write):
    texts = pa.table({"texts": [[{"user": "What?", "assistant": "A cat.", "source": "x"}]], "images": [[struct(0)]]})
    assert [turn.text for turn in Table(write(texts))[0].turns] == ["<image>\nWhat?", "A cat."]
    captions = pa.table({"caption": ["a cat"], "image": [struct(0)]})
    assert [turn.text for turn in Table(write(captions, "y"))[0].turns] == ["<image>", "a cat"]


def test_a_folder_a_pattern_a_list(tmp_path):
    (tmp_path / "deep").mkdir()
    places = [parquet(tmp_path / f"{n}.parquet", table(rows=ROWS[n * 3 : n * 3 + 3])) for n in range(3)]
    places.append(arrow(tmp_path / "deep" / "3.arrow", table(rows=ROWS[9:11])))
    ids = [f"r{n}@{n}" for n in range(11)]
    assert [record.id for record in Table(str(tmp_path))] == ids
    assert [record.id for record in Table(places)] == ids
    assert [record.id for record in Table(f"{tmp_path}/*.parquet")] == ids[:9]
    assert [record.id for record in Table(f"{tmp_path}/{{0..1}}.parquet")] == ids[:6]


def test_remote_tables(tmp_path):
    for number in range(2):
        with fsspec.open(f"memory://{tmp_path.name}/{number}.parquet", "wb") as target:
            out = io.BytesIO()
            pq.write_table(table(rows=ROWS[number * 5 : number * 5 + 5]), out)
            target.write(out.getvalue())
    for path in (f"memory://{tmp_path.name}", f"memory://{tmp_path.name}/*.parquet"):
        data = Table(path)
        assert [record.id for record in data] == [f"r{n}@{n}" for n in range(10)]
        assert is_picture(data.image(data[7].images[0]), 2)


def test_many_threads(write, monkeypatch):
    monkeypatch.setattr("mmalign.data.table.PICTURES", 3000)  # hardly one row group
    data = Table(write(table()))
    with ThreadPoolExecutor(8) as pool:
        assert all(
            pool.map(lambda n: is_picture(data.image(data[n].images[0]), n), [n * 7 % COUNT for n in range(200)])
        )


def test_a_row_group_is_read_once_for_its_rows(tmp_path, monkeypatch):
    groups = []
    group = columnar.Parquet._group
    monkeypatch.setattr(columnar.Parquet, "_group", lambda self, *args: groups.append(args) or group(self, *args))
    data = Table(parquet(tmp_path / "x.parquet", table()))
    for number in range(COUNT):
        data.image(data[number].images[0])
    assert len(groups) == 2 * 5  # texts and images of five groups


def test_quarantine(write, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": "r3@3", "reason": "x"}\n{"id": "r22@22"}\n')
    data = Table(write(table()), quarantine=str(tmp_path / "q.jsonl"))
    assert len(data) == 21
    assert data[3].id == "r4@4"


def test_damaged_images_inside(write):
    cells = [jpeg()[:-20], b"", None, {"bytes": None, "path": None}]
    table_ = pa.table({"conversations": [ROWS[0]["conversations"]] * 2, "image": cells[:2]})
    data = Table(write(table_))
    for number, reason in enumerate(("truncated", "empty")):
        with pytest.raises(Unusable, match=f"row {number}: ") as caught:
            data.image(data[number].images[0])
        assert caught.value.reason == reason


def test_files_that_are_no_tables(tmp_path):
    whole = Path(parquet(tmp_path / "x.parquet", table())).read_bytes()
    damaged = {"a.parquet": whole[:-9], "b.parquet": b"PAR1", "c.arrow": b"hello there", "d.arrow": b""}
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="cannot read" if data else "no record in .*d.arrow: the file is empty"):
            Table(str(tmp_path / name))
    with pytest.raises(DataError, match=r"no file .*none.parquet"):
        Table(str(tmp_path / "none.parquet"))
    for path in (f"{tmp_path}/none*.parquet", []):
        with pytest.raises(DataError, match=r"no .parquet, .arrow, .csv, .tsv, .csv.gz, .tsv.gz files in"):
            Table(path)


def test_a_damaged_row_group_is_the_fault_of_its_rows(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(table(), path, row_group_size=5, compression="zstd")
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[start - 30 : start + 40] = bytes(70)
    path.write_bytes(data)
    rows = Table(str(path))
    assert rows[0].id == "r0@0"
    with pytest.raises(Unusable) as caught:
        rows[6]
    assert caught.value.reason == "unreadable"
    assert "row group 1" in caught.value.what


def test_without_pyarrow(tmp_path, monkeypatch):
    path = parquet(tmp_path / "x.parquet", table())
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError) as caught:
        Table(path)
    assert "pip install mmalign[data]" in caught.value.fix


def test_what_datasets_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    images(tmp_path)
    features = datasets.Features({
        "id": datasets.Value("string"), "image": datasets.Image(),
        "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
    })  # fmt: skip
    rows = [{**one, "image": str(tmp_path / f"{n % 3}.jpg")} for n, one in enumerate(ROWS)]
    dataset = datasets.Dataset.from_list(rows, features)
    dataset.select(range(5, 15)).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": dataset, "test": dataset.select([20])}).save_to_disk(tmp_path / "both")
    data = Table(str(tmp_path / "one"))
    assert [record.id for record in data] == [f"r{n + 5}@{n}" for n in range(10)]
    assert is_picture(data.image(data[0].images[0]), 2, "JPEG")
    assert len(Table(str(tmp_path / "both"), split="train")) == COUNT
    with pytest.raises(DataError, match="has several splits: train, test"):
        Table(str(tmp_path / "both"))
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="state.json has no list _data_files"):
        Table(str(tmp_path / "one"))


def test_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({
        "id": ["a", "b"], "conversations": [ROWS[0]["conversations"]] * 2, "image": [struct(0), struct(1)],
        "images": [None, None],
    }).cast_column("image", datasets.Image()).cast_column("images", datasets.Sequence(datasets.Image()))  # fmt: skip
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: calls.append((a, k)) or dataset)
    data = Hub("user/set", split="test", subset="easy", revision="abc")
    assert calls == [(("user/set", "easy"), {"split": "test", "revision": "abc"})]
    assert [record.id for record in data] == ["a@0", "b@1"]
    assert is_picture(data.image(data[1].images[0]), 1)


def test_lists_of_images_on_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    turns = row(asked="<image> or <image>?")["conversations"]
    dataset = datasets.Dataset.from_dict({"conversations": [turns], "images": [[struct(0), struct(1)]]})
    dataset = dataset.cast_column("images", datasets.Sequence(datasets.Image()))
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: dataset)
    data = Hub("user/set")
    assert [is_picture(data.image(image), n) for n, image in enumerate(data[0].images)] == [True, True]


def test_the_hub_refuses(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(*_, **__):
        raise RuntimeError("no such data set\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError) as caught:
        Hub("user/set")
    assert caught.value.what == "cannot load 'user/set': no such data set"


def test_without_datasets(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError) as caught:
        Hub("user/set")
    assert "pip install mmalign[hub]" in caught.value.fix


def test_recent_keeps_the_newest_within_its_budget():
    loaded = []

    def get(key, size=4):
        return cache.get(key, lambda: (loaded.append(key) or key.upper(), size))

    cache = LRUCache(10)
    assert [get("a"), get("b"), get("a"), get("c")] == ["A", "B", "A", "C"]
    assert loaded == ["a", "b", "c"]
    assert get("a") == "A"
    assert loaded == ["a", "b", "c"]
    get("b")
    assert loaded == ["a", "b", "c", "b"]
    get("huge", 100)
    get("huge", 100)
    assert loaded[-1] == "huge"
    assert cache.total == 100


def test_a_folder_on_this_machine_has_no_revision(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="revision=abc cannot apply: .* is a folder on this machine"):
        Hub(str(tmp_path), revision="abc")
