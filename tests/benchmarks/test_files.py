"""Finding, reading and opening what a benchmark is made of."""

import base64
import csv
import io
import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign.benchmarks import reading
from mmalign.benchmarks.gqa import GQA
from mmalign.benchmarks.layouts import DataLocation, Layout, find_layout
from mmalign.benchmarks.pictures import Base64Image, Pictures, vlmevalkit_rows
from mmalign.benchmarks.reading import ParquetImage
from mmalign.errors import DataError
from mmalign.io.limits import IMAGE_PIXELS


def png(color: Any = (250, 10, 10), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (3, 2), color).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path: Path, rows: list[dict[str, Any]], group: int = 2) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def test_files_are_found_in_the_nearest_level(tmp_path: Path) -> None:
    for name in ("deep/er/x.json", "hf/x.json", "hf/y-1.json", "hf/y-0.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    folder = DataLocation(str(tmp_path))
    assert folder.find("x.json") == [str(tmp_path / "hf/x.json")]
    assert folder.find("y-*.json") == [str(tmp_path / "hf/y-0.json"), str(tmp_path / "hf/y-1.json")]
    assert folder.find("z.json") == []
    file = DataLocation(str(tmp_path / "hf/x.json"))
    assert (file.find("deep/x.json"), file.find("y*")) == ([str(tmp_path / "hf/x.json")], [])
    assert file.folder == str(tmp_path / "hf")


def test_files_behind_a_url() -> None:
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    fs.pipe("/bench/sub/rows.jsonl", b'{"a": 1}\n')
    fs.pipe("/bench/images/red.png", png())
    location = DataLocation("memory://bench")
    [path] = location.find("rows.jsonl")
    assert reading.json_lines(path) == [{"a": 1}]
    assert Pictures(location, ()).open("red.png").size == (3, 2)
    fs.pipe("/llava-v1.5/rows.jsonl", b"{}\n")
    assert DataLocation("memory://llava-v1.5").find("rows.jsonl")  # a folder, for all its dot
    assert DataLocation("memory://llava-v1.5/rows.jsonl").is_file


def test_a_layout_is_taken_when_all_of_it_is_there(tmp_path: Path) -> None:
    layouts = [
        Layout("LLaVA", {"q": "q.jsonl", "a": "a.json"}, {}),
        Layout("official", {"a": "a.json"}, {"c": "c.json"}),
    ]
    with pytest.raises(DataError, match="no files of Quiz in") as error:
        find_layout(DataLocation(str(tmp_path)), layouts, "Quiz")
    assert "q.jsonl + a.json (LLaVA); a.json (official)" in error.value.fix
    (tmp_path / "a.json").write_text("{}")
    files = find_layout(DataLocation(str(tmp_path)), layouts, "Quiz")
    assert str(files) == "official layout: a.json"
    assert not files.has("c")


def test_no_such_folder() -> None:
    with pytest.raises(DataError, match="no such file or folder: /nowhere/at/all"):
        DataLocation("/nowhere/at/all")


def test_lines_without_quotes_are_read_as_csv_reads_them(tmp_path: Path) -> None:
    rng, path = random.Random(0), tmp_path / "a.tsv"
    pieces = ["a", "1", " ", "\t", "\t", "\n", "\r\n", '"', '""', '\t"a\n"', ",", "é", "日本", "\u2028", "\x0c", "'"]
    for _ in range(500):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 20)))
        path.write_bytes(text.encode())
        expected = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t"))
        assert reading.cells(text.encode(), str(path), "\t") == expected, repr(text)


def test_tables_keep_their_cells_as_they_are(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text('index\thint\tA\n007\t"two\nlines, ""quoted"""\tNA\n8\n', encoding="utf-8")
    first, second = reading.tsv(str(table))
    assert first == {"index": "007", "hint": 'two\nlines, "quoted"', "A": "NA"}
    assert second == {"index": "8", "hint": "", "A": ""}
    long = "x" * 200_000  # longer than the csv module's own limit
    table.write_text(f"image\n{long}\n")
    assert reading.tsv(str(table))[0]["image"] == long


def test_parquet_leaves_the_pictures_in_the_file(tmp_path: Path) -> None:
    cells = [{"bytes": png((n, 0, 0)), "path": f"{n}.png"} for n in range(5)]
    rows = [{"name": n, "image": cell} for n, cell in enumerate(cells)]
    rows[3]["image"] = None
    path = str(parquet(tmp_path / "p.parquet", rows))
    rows = reading.parquet([path])
    assert [row["image"] for row in rows] == [None if n == 3 else ParquetImage(path, n) for n in range(5)]
    assert rows[4]["image_name"] == "4.png"
    pictures = Pictures(DataLocation(str(tmp_path)), ())
    opened = [pictures.open(ParquetImage(path, n)).getpixel((0, 0)) for n in (4, 0, 2)]
    assert opened == [(4, 0, 0), (0, 0, 0), (2, 0, 0)]
    with pytest.raises(DataError, match="the row has no picture"):
        pictures.open(ParquetImage(path, 3))


@pytest.mark.parametrize("cell", [png(), {"bytes": png()}])
def test_parquet_pictures_without_a_name(cell: Any, tmp_path: Path) -> None:
    path = str(parquet(tmp_path / "p.parquet", [{"image": cell}, {"image": None}]))
    assert [row["image"] for row in reading.parquet([path])] == [ParquetImage(path, 0), None]
    assert Pictures(DataLocation(str(tmp_path)), ()).open(ParquetImage(path, 0)).size == (3, 2)


def test_pictures_are_converted_unless_the_official_script_does_not(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(7, "P"))
    location = DataLocation(str(tmp_path))
    assert Pictures(location, ()).open("a.png").mode == "RGB"
    assert Pictures(location, (), rgb=False).open("a.png").mode == "P"
    assert Pictures(location, (), images=str(tmp_path / "images")).open("a.png").mode == "RGB"
    cell = base64.b64encode(png(7, "P")).decode()
    assert Pictures(location, (), rgb=False).open(Base64Image(cell)).mode == "P"


def test_a_table_writes_the_picture_of_several_rows_once(tmp_path: Path) -> None:
    """As VLMEvalKit reads its TSVs, all of them: a short cell is the index of the row with the picture."""
    cell = base64.b64encode(png()).decode()
    (tmp_path / "GQA_TestDev_Balanced.tsv").write_text(
        f"index\timage\tquestion\tanswer\n7\t{cell}\ta?\tyes\n8\t7\tb?\tno\n"
    )
    (tmp_path / "t.tsv").write_text("index\timage\n7\t9\n")
    bench = GQA(str(tmp_path))
    assert [question.image for question in bench.questions()] == [Base64Image(cell)] * 2
    assert bench.image(bench.questions()[1].image).size == Pictures(bench.location, ()).open(Base64Image(cell)).size
    [row] = vlmevalkit_rows(str(tmp_path / "t.tsv"))
    assert row == {"index": "7", "image": Base64Image("9")}  # told when it is opened


def test_pictures_that_cannot_be_opened(tmp_path: Path) -> None:
    pictures = Pictures(DataLocation(str(tmp_path)), ("val2014",))
    with pytest.raises(DataError, match=r"no picture 'gone.jpg'") as error:
        pictures.open("gone.jpg")
    assert str(tmp_path / "val2014") in error.value.at
    assert "images=FOLDER" in error.value.fix
    (tmp_path / "half.png").write_bytes(png()[:40])
    with pytest.raises(DataError, match="cannot read the picture"):
        pictures.open("half.png")
    with pytest.raises(DataError, match="not base64"):
        pictures.open(Base64Image("abc"))
    size = IMAGE_PIXELS.value
    (tmp_path / "huge.bmp").write_bytes(
        b"BM" + bytes(8) + struct.pack("<IIiiHHIIiiII", 54, 40, size, 3, 1, 24, *[0] * 6)
    )
    with pytest.raises(DataError, match="cannot read the picture: huge.bmp has .* pixels") as error:
        pictures.open("huge.bmp")
    assert "MMALIGN_IMAGE_PIXELS=" in error.value.fix
    for name in (f"{tmp_path}/half.png", "../half.png", "a/../../half.png"):
        with pytest.raises(DataError, match="is not in the benchmark's folder"):
            pictures.open(name)


BAD = {
    "not UTF-8 text": (b"\xff\xfe\x00", reading.text),
    "not valid JSON": (b'{"a": ', reading.json_file),
    "an object was expected, got '3'": (b'{"a": 1}\n3\n', reading.json_lines),
    "the file is empty": (b"", reading.tsv),
    "not a readable parquet file": (b"PAR0", lambda path: reading.parquet([path])),
}


@pytest.mark.parametrize("what", BAD)
def test_damaged_files_are_named(what: str, tmp_path: Path) -> None:
    content, read = BAD[what]
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(DataError, match=what) as error:
        read(str(tmp_path / "bad"))
    assert str(tmp_path / "bad") in error.value.at


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a"\n')
    with pytest.raises(DataError, match="not valid JSON") as error:
        reading.json_lines(str(tmp_path / "a.jsonl"))
    assert error.value.at.endswith("a.jsonl:3")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"cannot read /nowhere/x\.json: No such file"):
        reading.json_file("/nowhere/x.json")


def test_a_file_built_otherwise() -> None:
    with (
        pytest.raises(DataError, match="the file is not built as expected: no 'answers'") as error,
        reading.shape("f.json"),
    ):
        json.loads("{}")["answers"]
    assert error.value.at == "f.json"


def test_parquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match="parquet, Arrow, CSV and TSV files need pyarrow"):
        reading.parquet(["x.parquet"])
