"""`data check` of files as people have them: what is read, and the true reason where it is not."""

import base64
import gzip
import io
import json
import tarfile
import zipfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.samples import images, jpeg, jsonl, png, row
from tests.plan.test_mistakes import assert_mistake


@pytest.fixture
def checked(mmalign):
    """The result of `data check` in plain values; nothing may be wrong with it but what is asked for."""

    def run(path, *words, bad=0):
        said = mmalign("data", "check", path, *words, "--jobs", "1", "--json")
        assert said.code == (1 if bad else 0), said.out + said.err
        result = json.loads(said.out)
        assert result["bad"] == bad, result
        return result

    return run


@pytest.fixture
def refused(mmalign):
    def run(path, what, fix, *words):
        said = mmalign("data", "check", path, *words, "--jobs", "1")
        assert_mistake(said, what, "", fix)
        return said.err

    return run


def rows(count, first=0, image=None):
    return [row(f"r{number}", image, *(() if image else ("What?",))) for number in range(first, first + count)]


def parquet(path, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows(count)), path)


def text_of(value, **layout):
    return json.dumps(value, **layout)


def tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def captioned(*keys):
    return [member for n, key in enumerate(keys) for member in ((f"{key}.jpg", jpeg(n)), (f"{key}.txt", key.encode()))]


# Splits

LAYOUTS = {
    "shards": "data/{}-00000-of-00001.parquet",
    "folders": "{}/0000.parquet",
    "files": "{}.parquet",
    "subsets": "default/partial-{}/0000.parquet",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_of_a_hub_snapshot(here, checked, refused, layout):
    for name, count in (("train", 4), ("validation", 2), ("test", 3)):
        parquet(here / "snapshot" / LAYOUTS[layout].format(name), count)
    (here / "snapshot" / "dataset_infos.json").write_text("{}")
    (here / "snapshot" / "README.md").write_text("A card.")
    for split, count in (("train", 4), ("validation", 2), ("val", 2), ("test", 3)):
        assert checked("snapshot", f"split={split}")["rows"] == count
    refused("snapshot", "has several splits: test, train, validation", "split=train")
    refused("snapshot", "no split 'trian' among test, train, validation", "'train'", "split=trian")
    parquet(here / "snapshot" / "extra.parquet", 1)
    refused("snapshot", "validation, and 1 of no split", "split=")
    assert checked("snapshot", "split=train")["rows"] == 4


def test_splits_of_a_remote_folder(here, checked, refused):
    for split, count in (("train", 4), ("test", 3)):
        parquet(here / f"{split}.parquet", count)
        for name in (f"{split}-00000-of-00001.parquet", f".cache/{split}.parquet"):
            with fsspec.open(f"memory://{here.name}/train set/{name}", "wb") as target:
                target.write((here / f"{split}.parquet").read_bytes())
        with fsspec.open(f"memory://{here.name}/texts/{split}.jsonl", "wb") as target:
            target.write("".join(text_of(one) + "\n" for one in rows(count)).encode())
    for folder in ("train set", "texts"):
        assert checked(f"memory://{here.name}/{folder}", "split=test")["rows"] == 3
        refused(f"memory://{here.name}/{folder}", "has several splits: test, train", "split=train")
    refused(f"memory://{here.name}", "has files of several kinds: 2 JSON", "*.parquet")


def test_splits_of_several_folders(here, checked, refused):
    for folder in ("en", "de"):
        for split, count in (("train", 4), ("test", 3)):
            parquet(here / "all" / folder / f"{split}-00000-of-00001.parquet", count)
    for path in ("path=[all/en,all/de]", "path=all/*", "path=all"):
        refused("table", "has several splits: test, train", "split=train", path)
        assert checked("table", path, "split=test")["rows"] == 6
    for path in ("path=all/*/train-*.parquet", "path=all/**/train-*.parquet"):
        assert checked("table", path)["rows"] == 8
    one = "path=[all/en,all/de/test-00000-of-00001.parquet]"
    refused("table", "split=train cannot apply: the path names files beside folders", "leave split= out", one,
            "split=train")  # fmt: skip
    refused("table", "has several splits: test, train", "split=train", one)


def test_a_split_alone_needs_no_name(here, checked, refused):
    parquet(here / "one" / "train-00000-of-00002.parquet", 4)
    parquet(here / "one" / "train-00001-of-00002.parquet", 3)
    assert checked("one")["rows"] == checked("one", "split=train")["rows"] == 7
    refused("one", "no split 'test' among train", "one of train", "split=test")


def test_a_split_is_refused_where_it_cannot_apply(here, checked, refused):
    parquet(here / "plain" / "a.parquet", 2)
    parquet(here / "plain" / "b.parquet", 2)
    jsonl(here / "x.jsonl", rows(1))
    (here / "x.json").write_text(text_of(rows(1)))
    (here / "x.csv").write_text("id,conversations\n")
    tar(here / "x.tar", captioned("a"))
    assert checked("plain")["rows"] == 4
    refused("plain", "split=train cannot apply: no file is named after a split", "leave split= out", "split=train")
    for name in ("plain/a.parquet", "x.csv", "x.tar", "x.jsonl", "x.json"):
        refused(name, "split=train cannot apply", "leave split= out", "split=train")
    refused("table", "cannot apply", "leave", "path=[plain/a.parquet,plain/b.parquet]", "split=train")
    refused("table", "cannot apply", "leave", "path=plain/*.parquet", "split=train")


def test_splits_of_tars_and_of_json(here, checked, refused):
    (here / "shards").mkdir()
    for name, keys in (("cc-train-0000", "abc"), ("cc-train-0001", "d"), ("cc-validation-0000", "ef")):
        tar(here / "shards" / f"{name}.tar", captioned(*keys))
    assert checked("shards", "split=train")["rows"] == 4
    refused("shards", "has several splits: train, validation", "split=train")
    (here / "texts").mkdir()
    jsonl(here / "texts" / "train.jsonl", rows(3))
    jsonl(here / "texts" / "val.jsonl", rows(2))
    assert checked("texts", "split=val")["rows"] == 2
    refused("texts", "has several splits: train, validation", "split=train")


def test_a_path_cannot_be_named_twice(here, refused):
    jsonl(here / "x.jsonl", rows(1))
    refused("x.jsonl", "x.jsonl is the path, and path=y.jsonl is another", "leave path= out", "path=y.jsonl")


def test_a_folder_that_datasets_saved(here, checked, refused):
    folder = here / "saved"
    for name, count in (("train", 3), ("test", 2)):
        (folder / name).mkdir(parents=True)
        table = pa.Table.from_pylist(rows(count))
        with pa.ipc.new_stream(str(folder / name / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": name}
        (folder / name / "state.json").write_text(json.dumps(state))
        (folder / name / "dataset_info.json").write_text("{}")
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert checked("saved", "split=test")["rows"] == 2
    assert checked("saved/train")["rows"] == checked("saved/train", "split=train")["rows"] == 3
    refused("saved", "has several splits: train, test", "split=train")
    refused("saved/train", "split=test cannot apply: the folder is one data set that was saved, of train",
            "leave split= out", "split=test")  # fmt: skip
    (folder / "dataset_dict.json").rename(here / "away.json")
    refused("saved", "has several splits: test, train", "split=train")
    assert checked("saved", "split=test")["rows"] == 2
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert checked("saved")["rows"] == 3
    state["_indices_files"] = [{"filename": "indices.arrow"}]
    (folder / "train" / "state.json").write_text(json.dumps(state))
    refused("saved", "is a selection of rows", "flatten_indices")


# Nothing

EMPTY = {
    "x.jsonl": b"", "y.jsonl": b"\n \n", "x.json": b"[]", "y.json": b" [ ] \n", "z.json": b'{"data": []}',
    "x.jsonl.gz": gzip.compress(b""), "x.csv": b"", "y.csv": b"image,caption\n", "x.tar": b"", "x.parquet": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_is_no_data_without_faults(here, refused, name):
    (here / name).write_bytes(EMPTY[name])
    refused(name, "no record in", "")


def test_no_rows_in_a_table_and_no_members_in_a_tar(here, refused):
    parquet(here / "some.parquet", 1)
    pq.write_table(pq.read_table("some.parquet").slice(0, 0), "none.parquet")
    refused("none.parquet", "no record in", "")
    tar(here / "none.tar", [])
    refused("none.tar", "no sample in", "images:")


def test_everything_left_out(here, mmalign):
    jsonl(here / "x.jsonl", rows(1))
    jsonl(here / "q.jsonl", [{"id": "r0@0", "reason": "x"}])
    said = mmalign("data", "check", "x.jsonl", "quarantine=q.jsonl", "--jobs", "1")
    assert_mistake(said, "there is no record to check", "", "quarantine")


# JSON

PAIR = {"train": rows(3), "test": rows(2)}
DOCUMENTS = {
    "around a list": (text_of({"version": "1.0", "data": rows(3)}), 3),
    "around a list, over many lines": (text_of({"data": rows(3), "info": {"by": "us"}}, indent=2), 3),
    "a list inside": (text_of({"data": {"count": 3, "rows": rows(3)}}), 3),
    "one row over many lines": (text_of(row("a", None, "What?"), indent=2), 1),
    "a row in one line": (text_of(row("a", None, "What?")), 1),
    "as jq writes": ("\n".join(text_of(one, indent=2) for one in rows(3)), 3),
    "a list over many lines": (text_of(rows(3), indent=4), 3),
    "one list in one list": (text_of({"data": rows(1)}, indent=1), 1),
    "a mark before it": ("\ufeff" + text_of({"data": rows(2)}, indent=1), 2),
    "lines of Windows": ("".join(text_of(one) + "\r\n" for one in rows(3)), 3),
    "a document of Windows": (text_of({"data": rows(3)}, indent=1).replace("\n", "\r\n"), 3),
    "ä in front": (text_of({"über": "ä😀", "data": [row("ö", None, "Wäs?")]}, ensure_ascii=False), 1),
}


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("ending", ["json", "jsonl.gz", "ndjson"])
def test_documents(here, checked, name, ending):
    text, count = DOCUMENTS[name]
    data = text.encode()
    (here / f"x.{ending}").write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    for _ in range(2):  # the second time from the kept index
        assert checked(f"x.{ending}")["rows"] == count


def test_what_stands_beside_a_list_is_told(here, checked):
    (here / "x.json").write_text(text_of({"version": 1, "system": "Be brief.", "info": {"by": "us"}, "data": rows(2)}))
    for _ in range(2):
        assert checked("x.json")["remarks"] == [
            "beside the list of rows stand version, system, info.by, which are not read"
        ]


def test_lists_for_each_split(here, checked, refused):
    (here / "x.json").write_text(text_of(PAIR))
    (here / "y.json").write_text(text_of({"data": PAIR}, indent=1))
    for name in ("x.json", "y.json"):
        assert [checked(name, f"split={split}")["rows"] for split in PAIR] == [3, 2]
        refused(name, "has several lists: train, test", "split=train")
        refused(name, "no split 'dev' among test, train", "one of", "split=dev")


COCO = {"images": [{"id": 1}], "annotations": [{"id": 1}], "categories": [{"id": 1}]}


@pytest.mark.parametrize(
    ("content", "what", "fix"),
    [
        (text_of(COCO), "has COCO's layout", "coco-boxes path="),
        (text_of({"version": "1", "rows": 3, "tags": ["a"]}, indent=1),
         "one object without a list of rows; its keys: version, rows, tags", "JSONL"),
        (text_of({"a": rows(1)[0], "b": rows(1)[0]}), "has its rows under keys, such as 'a'", "as `id`"),
        (text_of({"data": rows(3)}, indent=1)[:-60], "not valid JSON", "fetch the file again"),
        (text_of({"data": rows(3)}, indent=1) + "\n]", "']' behind the end of an object", "fetch the file again"),
        (text_of(rows(2)).encode("utf-16"), "UTF-16, not UTF-8", "save it as UTF-8"),
        (text_of(rows(2)).encode("utf-16-le"), "no text in UTF-8: it has zero bytes", "save it as UTF-8"),
        (gzip.compress(b"[]", mtime=0), "packed with gzip", "name it .gz"),
        (b"PK\3\4 and so on", "a zip archive", "unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a pointer of Git LFS", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page", "fetch the file again"),
        (jpeg(), "a picture", "under `images:`"),
        ("image,caption\n0.jpg,a\n", "neither JSON nor JSONL: the file begins with 'image,caption'", "named .csv"),
        ("- a: 1\n", "neither JSON nor JSONL: the file begins with '- a: 1'", "an object a line"),
        ('"text"', "neither JSON nor JSONL", "an object a line"),
        (",\n".join(map(text_of, rows(3))), "the lines end in commas: a list without its brackets", "put [ in front"),
        (text_of({"features": [{"a": 1}], "rows": rows(3)}), "several lists: features, rows", "split=rows"),
        (b"\x80\x04\x95pickled", "a pickle, which is never read", "JSON"),
        (text_of({"id": ["a"], "conversations": [row()["conversations"]]}), "by columns: conversations", "records"),
        (text_of({"id": {"0": "a"}, "messages": {"0": []}}, indent=1), "by columns: messages", "records"),
        (text_of({"image": ["0.jpg"], "caption": ["a cat"]}), "by columns: caption holds", "orient='records'"),
        (text_of({"features": [{}], "rows": [{"row": row()}], "num_rows_total": 1}), "a page", "hf download"),
        (b'{"data": [{"a": 1}, 7]}', "one object without a list of rows; its keys: data", "JSONL"),
        (b'{"data": [], "data": []}', "'data' is given twice", ""),
        (text_of({"a": row()["conversations"], "b": row()["conversations"]}), "has its rows under keys, such as 'a'",
         "as `id`"),
        ("\n".join(text_of(row()["conversations"]) for _ in range(3)), "each line is a list, and a row is an object",
         "under `messages` or `conversations`"),
        (b"PK\3\4 [Content_Types].xml", "a workbook of Excel", "save it as CSV"),
    ],
)  # fmt: skip
def test_documents_that_are_refused_as_what_they_are(here, refused, content, what, fix):
    (here / "x.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused("x.json", what, fix)


def test_a_broken_first_line_is_the_fault_of_its_row(here, checked):
    for first in ('{"id": ', "{broken", '{"id": 1, "conversations": [', '{"a": "x'):
        jsonl(here / "x.jsonl", [first, *rows(2)])
        assert checked("x.jsonl", bad=1)["reasons"] == {"json": 1}


def test_a_folder_of_json_files(here, checked, mmalign):
    folder = images(here / "annotated")
    for number in range(3):
        (folder / f"{number}.json").write_text(text_of(row(f"r{number}", f"{number}.jpg"), indent=2))
    (folder / "deep").mkdir()
    jsonl(folder / "deep" / "more.jsonl", rows(2, first=3))
    (folder / "._0.json").write_bytes(b"\0\5\x16\7")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "0.json").write_bytes(b"\0\5\x16\7")
    (folder / "00000_stats.json").write_text("{}")
    result = checked("annotated")
    assert (result["rows"], result["images"]) == (5, 3)
    for n in range(70):  # more files than are held open
        (folder / f"x{n:02}.json").write_text(text_of(row(f"x{n}", "1.jpg")))
    assert checked("annotated")["rows"] == 75
    assert '"id": "x69@74"' in mmalign("data", "show", "annotated", "--rows", "74", "--json", "--llm", "toy-llama").out


# CSV and TSV

TABLES = {
    "x.csv": 'image,caption\n0.jpg,"a cat, black"\n1.jpg,"two\nlines"\n2.jpg,NA\n',
    "quoted.csv": '"image" ,"caption"\r\n"0.jpg","a ""cat"""\r\n"1.jpg",1e5\r\n"2.jpg",007\r\n',
    "excel.csv": "\ufeffimage;caption\n0.jpg;a, b\n1.jpg;null\n2.jpg;c\n",
    "blank.csv": "\n\nimage,caption\n0.jpg,a\n\n1.jpg,b\n2.jpg,c",
    "x.tsv": "caption\timage\ta\n a cat, black\t0.jpg\t\nb\t1.jpg\t\nc\t2.jpg\tx\n",
}
CAPTIONS = {
    "x.csv": ["a cat, black", "two\nlines", "NA"], "quoted.csv": ['a "cat"', "1e5", "007"],
    "blank.csv": list("abc"), "excel.csv": ["a, b", "null", "c"], "x.tsv": [" a cat, black", "b", "c"],
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_tables_of_text(here, checked, name, packed):
    from mmalign.data.table import Table

    images(here)
    data = TABLES[name].encode()
    (here / f"{name}{packed}").write_bytes(gzip.compress(data) if packed else data)
    for _ in range(2):  # the second time from the cache
        result = checked(f"{name}{packed}")
        assert (result["rows"], result["images"]) == (3, 3)
    assert [record.caption for record in Table(f"{name}{packed}")] == CAPTIONS[name]


def test_conversations_in_a_cell(here, checked):
    turns = text_of(row()["conversations"]).replace('"', '""')
    (here / "x.csv").write_text(f'id,image,conversations\na,,"{turns.replace("<image>", "")}"\n')
    assert checked("x.csv")["rows"] == 1
    pq.write_table(
        pa.table(
            {
                "messages": [
                    text_of([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
                    '[{"role"',
                    '[], "x": 1',
                ]
            }
        ),
        "x.parquet",
    )
    assert checked("x.parquet", bad=2)["reasons"] == {"json": 2}


@pytest.mark.parametrize(
    ("name", "content", "what", "fix"),
    [
        ("x.csv", "0.jpg,a cat\n1.jpg,a dog\n",
         "names neither conversations, messages, texts nor image and caption: '0.jpg,a cat'", "image,caption"),
        ("x.csv", "image,caption\n0.jpg,a cat, black\n", "a row has 3 cells, and the first line names 2", "a CSV with"),
        ("x.csv", "image,caption,caption\n", "has the column 'caption' twice", "take one of them out"),
        ("x.tsv", "image\tcaption\n".encode("utf-16"), "UTF-16, not UTF-8", "save it as UTF-8"),
        ("x.csv", "image,caption\n0.jpg,caf\xe9\n".encode("latin-1"), "x.csv is not UTF-8", "save it as UTF-8"),
        ("x.csv", 'image,caption\n0.jpg,"a "big" cat"\n', "',' expected after '\"'", 'quotes in it as "a ""big"" cat"'),
        ("x.tsv", 'image\tcaption\n0.jpg\t"a cat\n1.jpg\tb', "unexpected end of data", 'quotes in it as'),
        ("x.csv", "image_path,caption\n0.jpg,a cat\n", "nor image and caption: 'image_path,caption'", "image,caption"),
    ],
)  # fmt: skip
def test_tables_of_text_that_are_refused(here, refused, name, content, what, fix):
    (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(name, what, fix)


def test_the_line_of_a_table_that_is_wrong(here, refused):
    (here / "x.csv").write_text('\nimage,caption\n0.jpg,"two\nlines"\n1.jpg\n')
    assert "x.csv:5\n" in refused("x.csv", "a row has 1 cells", "a CSV with a header")


# Folders of several kinds


def test_a_folder_of_several_kinds(here, refused, checked):
    tar(here / "0.tar", captioned("a"))
    parquet(here / "0.parquet", 2)
    refused(
        ".", "has files of several kinds: 1 parquet or Arrow (0.parquet), 1 tar (0.tar)", "'./*.parquet' or './*.tar'"
    )
    assert checked("./*.tar")["rows"] == 1
    assert checked("./*.parquet")["rows"] == 2
    parquet(here / "both" / "a.parquet", 2)
    (here / "both" / "a.csv").write_text("image,caption\n")
    refused("both", "has files of several kinds", "*.csv")
    refused("table", "has files of several kinds: 1 CSV, 1 parquet or Arrow", "*.parquet", "path=both")
    images(here / "pictures")
    refused("pictures", "no file of data in pictures: none of .json, .parquet, .csv, .tar", "MMALIGN_DATA")


def test_a_file_is_known_by_its_content_where_its_name_says_nothing(here, checked):
    parquet(here / "table", 2)
    (here / "table").rename("rows")
    assert checked("rows")["rows"] == 2
    tar(here / "shard", captioned("a"))
    assert checked("shard")["rows"] == 1


# Tars


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz"])
def test_a_tar_packed_with_gzip(here, checked, name):
    tar(here / name, captioned("a", "b"), "w:gz")
    for _ in range(2):
        assert checked(name)["rows"] == 2
    (here / "images.tar.gz").write_bytes((here / name).read_bytes())
    jsonl(here / "x.jsonl", [row("a", "b.jpg")])
    assert checked("x.jsonl", "images=images.tar.gz")["images"] == 1


def test_tars_packed_otherwise(here, refused):
    tar(here / "a.tar", captioned("a"), "w:gz")
    refused("a.tar", "not a readable tar archive", "name it .tar.gz, or unpack it")
    tar(here / "b.tar", captioned("a"), "w:xz")
    refused("b.tar", "not a readable tar archive", "unpack it")
    (here / "c.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused("c.tar", "a pointer of Git LFS", "git lfs pull")


def captions_of(path):
    from mmalign.data.tars import Tars

    data = Tars(str(path))
    return {record.id.rpartition("@")[0]: (record.caption, len(record.images)) for record in data}


def test_names_with_dots(here, checked):
    members = captioned("img.v1.5", "img.v1.6", "other")
    for order in (members, sorted(members), members[::2] + members[1::2]):
        assert checked(tar(here / "x.tar", order))["rows"] == 3
        assert captions_of("x.tar") == {key: (key, 1) for key in ("img.v1.5", "img.v1.6", "other")}
    two = text_of(row("two", None, "<image> or <image>?")).encode()
    members = [("d.1.0.png", png(0)), ("d.1.1.png", png(1)), ("d.1.json", two), ("d.2.0.png", png(2)),
               ("d.2.1.png", png(3)), ("d.2.json", two)]  # fmt: skip
    assert checked(tar(here / "y.tar", members))["images"] == 4


def test_a_tar_that_is_not_sorted(here, checked):
    members = captioned(*"abc")
    assert checked(tar(here / "x.tar", members[::2] + members[1::2]))["rows"] == 3
    assert captions_of("x.tar") == {key: (key, 1) for key in "abc"}


def test_the_same_names_again_are_other_samples(here, checked):
    assert checked(tar(here / "x.tar", captioned("a", "b") + captioned("a")))["rows"] == 3


def test_no_caption_is_lost(here, checked):
    members = [("a.jpg", jpeg()), ("a.caption.txt", b"one"), ("a.alt.txt", b"another")]
    assert "a has 2 captions" in checked(tar(here / "x.tar", members), bad=1)["listed"]["shape"][0]["what"]
    members = [*captioned("v.1"), ("v.2.jpg", jpeg())]
    assert checked(tar(here / "y.tar", members), bad=1)["rows"] == 2


def test_hidden_members_and_folders(here, checked):
    members = [member for key in ("./d/a", "./e/a") for member in captioned(key)]
    hidden = [(name.replace("/a.", "/._a."), b"\0\5\x16\7") for name, _ in members] + [("__MACOSX/a.txt", b"x")]
    assert checked(tar(here / "x.tar", members + hidden))["rows"] == 2


# Pictures

JPEG, PNG = (base64.b64encode(data).decode() for data in (jpeg(1), png(2)))
WRITTEN = {
    "JPEG": JPEG, "PNG": PNG, "a URL": f"data:image/png;base64,{PNG}",
    "a URL of many words": f"DATA:image/png;name=x;base64,{PNG}",
    "in lines": base64.encodebytes(png(2)).decode(), "of URLs": base64.urlsafe_b64encode(png(2)).decode(),
    "an object": {"bytes": PNG, "path": "x.png"}, "a list": [PNG], "behind a blank": f"\n {PNG}",
    "of URLs, as they write it": base64.urlsafe_b64encode(jpeg(2, (25, 17)) + b"x").decode().rstrip("="),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_base64_in_json_and_parquet(here, checked, name):
    one = row("a", WRITTEN[name])
    jsonl(here / "x.jsonl", [one])
    pq.write_table(pa.Table.from_pylist([one]), "x.parquet")
    for path in ("x.jsonl", "x.parquet"):
        result = checked(path)
        assert (result["images"], result["files"]) == (1, 1)
    if name in ("JPEG", "PNG", "in lines", "of URLs"):  # as binary
        pq.write_table(pa.table({"image": [WRITTEN[name].encode()], "caption": ["x"]}), "y.parquet")
        assert checked("y.parquet")["files"] == 1


def test_base64_in_a_table_of_text(here, checked):
    (here / "x.tsv").write_text(f"image\tcaption\n{PNG}\ta\n{JPEG}\tb\n")
    assert checked("x.tsv")["files"] == 2


def test_base64_that_is_damaged(here, checked):
    jsonl(here / "x.jsonl", [row("a", JPEG[:-7]), row("b", JPEG[:400]), row("c", {"bytes": "text"})])
    assert checked("x.jsonl", bad=3)["reasons"] == {"base64": 1, "truncated": 1, "shape": 1}


@pytest.fixture
def advised(here, mmalign):
    """What `data check` says to try for an image's path."""
    images(here / "data" / "images", 5) if (here / "data").mkdir() is None else None

    def run(path, *words):
        jsonl(here / "data" / "x.jsonl", [row("a", path), row("b", path)])
        said = mmalign("data", "check", "data/x.jsonl", *words, "--jobs", "1")
        assert said.code == 1, said.out
        line = next(line for line in said.out.splitlines() if line.startswith("try, for 2: "))
        return line.removeprefix("try, for 2: ") + said.out.partition(line)[2].partition("\nnote")[0]

    return run


def plain(text):
    return "".join(text.split())


def test_the_advice_that_solves_a_path(here, advised):
    root = here / "data"
    assert advised("images\\4.jpg").startswith("write / for \\ in the paths")
    assert "take C:\\me\\data\\ away, and write / for \\" in advised("C:\\me\\data\\images\\4.jpg")
    outside = here / "elsewhere"
    images(outside)
    for path in (f"{outside}/0.jpg", f"file://{outside}/0.jpg"):
        assert f"images={outside}" in plain(advised(path))
    assert "without/home/me/" in plain(advised("/home/me/images/4.jpg"))
    assert "without/home/me/" in plain(advised("file:///home/me/images/4.jpg"))
    assert "orimages=FOLDERwheretheyare" in plain(advised("/home/me/other.jpg"))
    assert f"images={root}" in plain(advised("images/4.jpg", "images=data/images"))
    assert f"images={root}/images" in plain(advised("4.jpg"))


def test_the_advice_does_solve_it(here, checked):
    (here / "data").mkdir()
    images(here / "data" / "images")
    outside = images(here / "elsewhere 1")
    inside = f"file://{here}/data/images/0.jpg"
    jsonl(
        here / "data" / "x.jsonl",
        [row("a", f"{outside}/0.jpg"), row("b", f"file://{outside}/0.jpg".replace(" ", "%20"))],
    )
    assert checked("data/x.jsonl", f"images={outside}")["images"] == 2
    jsonl(here / "data" / "y.jsonl", [row("a", "images/0.jpg"), row("b", inside)])
    assert checked("data/y.jsonl")["images"] == 2


def test_a_zip_of_data_is_refused_as_one(here, refused):
    with zipfile.ZipFile(here / "x.zip", "w") as archive:
        archive.writestr("x.json", text_of(rows(1)))
    refused("x.zip", "a zip archive", "unpack it")


def test_endings_in_capitals(here, checked):
    parquet(here / "a" / "X.PARQUET", 2)
    (here / "b").mkdir()
    (here / "b" / "X.JSON").write_text(text_of(rows(3)))
    (here / "X.CSV").write_text("image,caption\n,a\n")
    (here / "X.TAR.GZ").write_bytes(tar(here / "x.tar", captioned("a"), "w:gz").read_bytes())
    assert [checked(name)["rows"] for name in ("a", "a/X.PARQUET", "b", "X.TAR.GZ")] == [2, 2, 3, 1]
    assert checked("X.CSV", bad=1)["rows"] == 1  # a caption of nothing


def test_what_is_not_there_or_not_read_is_told(here, checked, mmalign):
    parquet(here / "snapshot" / "train-00000-of-00003.parquet", 2)
    assert checked("snapshot")["remarks"] == ["1 of the 3 shards of train are there"]
    assert "note: 1 of the 3 shards of train are there" in mmalign("data", "check", "snapshot").out
    (here / "shards").mkdir()
    jsonl(here / "shards" / "train-00000-of-00002.jsonl", rows(1))
    tar(here / "x-train-00001-of-00003.tar", captioned("a"))
    assert checked("shards")["remarks"] == ["1 of the 2 shards of train are there"]
    assert checked("x-train-00001-of-00003.tar")["remarks"] == ["1 of the 3 shards of x-train are there"]
    members = [*captioned("a", "b"), ("a.cls", b"1"), ("b.cls", b"1"), ("a.mp4", b"x"), ("README", b"x")]
    said = ["files in the tars that are not read: 2 .cls, 1 .mp4, 1 without an ending"]
    for _ in range(2):
        assert checked(tar(here / "x.tar", members))["remarks"] == said
    pair = ["{kind: conversations, path: x.json}", "{kind: tars, path: x.tar}"]
    (here / "x.json").write_text(text_of({"version": 1, "data": rows(1)}))
    remarks = checked("mixture", f"data=[{', '.join(pair)}]")["remarks"]
    assert remarks == ["0: beside the list of rows stand version, which are not read", f"1: {said[0]}"]


def test_many_images_stand_in_the_order_of_their_numbers(here, checked):
    from mmalign.data.tars import Tars
    from tests.data.samples import is_picture

    asked = row("a", None, "<image> " * 12)
    members = [(f"a.{n}.png", png(n)) for n in range(12)] + [("a.json", text_of(asked).encode())]
    checked(tar(here / "x.tar", members))
    data = Tars("x.tar")
    assert all(is_picture(data.image(image), n) for n, image in enumerate(data[0].images))


def test_marks_of_windows_are_no_part_of_a_caption(here, checked):
    checked(tar(here / "x.tar", [("a.jpg", jpeg()), ("a.txt", b"\xef\xbb\xbfa cat\r\n")]))
    assert captions_of("x.tar") == {"a": ("a cat", 1)}


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_of_pictures_with_metadata(here, checked, name):
    folder = images(here / "pictures")
    captions = [{"file_name": f"{number}.jpg", "text": f"picture {number}"} for number in range(3)]
    text = "\n".join(map(text_of, captions))
    if name.endswith(".csv"):
        text = "file_name,text\n" + "\n".join(f"{one['file_name']},{one['text']}" for one in captions)
    (folder / name).write_text(text + "\n")
    result = checked("pictures")
    assert (result["rows"], result["images"], result["notes"]) == (3, 3, {})


def test_a_file_name_beside_an_image_is_not_read(here, checked):
    images(here)
    jsonl(here / "x.jsonl", [row("a", "0.jpg") | {"file_name": "1.jpg"}])
    assert checked("x.jsonl")["notes"] == {"rows with the key 'file_name', which is not read": 1}


def test_what_is_named_gz_and_is_not(here, refused):
    for name, data in (("x.json.gz", b"[]"), ("x.tar.gz", (here / tar(here / "x.tar", captioned("a"))).read_bytes())):
        (here / name).write_bytes(data)
        refused(name, "Not a gzipped file", "take .gz out of its name")


def test_several_pictures_and_flags_in_a_table_of_text(here, checked):
    images(here)
    (here / "x.csv").write_text('images,caption\n"[""0.jpg"", ""1.jpg""]",two\n2.jpg,one\n')
    assert checked("x.csv")["images"] == 3
    (here / "y.csv").write_text("image,caption,train\n0.jpg,a,True\n1.jpg,b,False\n")
    assert checked("y.csv", bad=1)["reasons"] == {"flags": 1}


def test_pictures_that_are_no_pictures_yet(here, checked):
    images(here)
    (here / "lfs.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    jsonl(here / "x.jsonl", [row("a", "lfs.jpg"), row("b", "file://0.jpg"), row("c", f"b'{PNG}'")])
    said = {one["id"]: one for some in checked("x.jsonl", bad=3)["listed"].values() for one in some}
    assert "a pointer of Git LFS" in said["a@0"]["what"]
    assert "git lfs pull" in said["a@0"]["try"]
    assert said["b@1"]["try"].startswith("write the paths alone")
    assert "data:image/jpeg;base64," in said["c@2"]["try"]
