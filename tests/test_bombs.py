"""Files that ask for far more memory than they weigh: refused with our message, in a process that stays small."""

import gzip
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from mmalign.io.limits import FILE_BYTES, IMAGE_BYTES, TABLE_BYTES, UNPACKED_BYTES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
GIB = 1 << 30
BASE = 300 << 20  # bytes of a process that has numpy, Pillow and pyarrow loaded, and does nothing

PROBE = """
import sys
from mmalign.errors import MMAlignError
path = sys.argv[1]
try:
    exec(sys.argv[2])
    said = "nothing was refused"
except MMAlignError as err:
    said = str(err)
with open("/proc/self/status") as source:  # getrusage would count the parent's memory, were it larger
    print(next(int(line.split()[1]) << 10 for line in source if line.startswith("VmHWM")))
print(said)
"""


def refused(path: Path, code: str, **settings: str) -> tuple[int, str]:
    """(peak bytes of a process that runs the code on a path, the message it ended with)."""
    env = {**os.environ, "MMALIGN_CACHE": str(path.parent / "cache"), "ARROW_DEFAULT_MEMORY_POOL": "system", **settings}
    line = [sys.executable, "-c", PROBE, str(path), code]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=env)
    peak, _, said = done.stdout.partition("\n")
    return int(peak), said


def sparse(path: Path, size: int) -> Path:
    """A file of zeros that takes no space."""
    with open(path, "wb") as out:
        out.truncate(size)
    return path


def sparse_tar(path: Path, members: dict[str, int], kind: bytes = tarfile.REGTYPE) -> Path:
    """A tar of files of zeros that takes no space."""
    with open(path, "wb") as out:
        for name, size in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = size, kind
            out.write(member.tobuf(tarfile.USTAR_FORMAT))
            out.seek(-(-size // 512) * 512, os.SEEK_CUR)
        out.truncate(out.tell() + 1024)
    return path


def test_a_picture_of_3_gib_in_a_tar(tmp_path):
    tar = sparse_tar(tmp_path / "x.tar", {"a.jpg": 3 * GIB, "a.txt": 10})
    code = "from mmalign.data.tars import Tars; d = Tars(path); d.image(d[0].images[0])"
    peak, said = refused(tar, code)
    assert "oversized: the image of a has 3 GiB, and no more than 256 MiB are read" in said
    assert "MMALIGN_IMAGE_BYTES=512M" in said
    assert peak < BASE
    peak, said = refused(tar, "from mmalign.data.pictures import ImageReader; ImageReader(path).read('a.jpg')")
    assert "oversized: a.jpg has 3 GiB" in said
    assert peak < BASE


@pytest.mark.parametrize("ending", ["json", "txt"])
def test_a_text_of_3_gib_in_a_tar(tmp_path, ending):
    tar = sparse_tar(tmp_path / "x.tar", {"a.jpg": 10, f"a.{ending}": 3 * GIB})
    peak, said = refused(tar, "from mmalign.data.tars import Tars; Tars(path)[0]")
    assert "oversized: the text of a has 3 GiB, and no more than 256 MiB are read" in said
    assert "MMALIGN_ROW_BYTES=512M" in said
    assert peak < BASE


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE], ids=["GNU", "pax"])
def test_a_name_of_3_gib_in_a_tar(tmp_path, kind):
    tar = sparse_tar(tmp_path / "x.tar", {"a": 3 * GIB}, kind)
    peak, said = refused(tar, "from mmalign.data.tars import Tars; Tars(path)")
    assert "not a readable tar archive: a header of more than 1,048,576 bytes" in said
    assert peak < BASE


@pytest.mark.slow
@pytest.mark.parametrize("byte", [b"\0", b"\n", b" ", b"{"])
def test_2_mb_of_gz_that_unpack_to_2_gib(tmp_path, byte):
    member = gzip.compress(byte * (64 << 20))
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(member * 32)
    assert path.stat().st_size < 2.5e6
    peak, said = refused(path, "from mmalign.data.conversations import Conversations; Conversations(path)")
    assert f"{path} unpacks to more than 1 GiB and 100 times its own size" in said
    assert "MMALIGN_UNPACKED_BYTES=2G" in said
    assert peak < BASE
    assert not list(tmp_path.glob("cache/data/*"))  # nor is the disk full of it
    assert UNPACKED_BYTES.value == GIB


def test_a_gz_of_real_text_may_be_larger_than_the_limit(tmp_path):
    rows = [
        json.dumps({"id": n, "conversations": [{"from": "human", "value": f"{n * 7919 % 10007}"}]}) for n in range(4000)
    ]
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    code = "from mmalign.data.conversations import Conversations; assert len(Conversations(path)) == 4000"
    assert refused(tmp_path / "x.jsonl.gz", code, MMALIGN_UNPACKED_BYTES="1K")[1].strip() == "nothing was refused"


@pytest.mark.parametrize(
    ("head", "row"), [(b"", b"\n"), (b"", b"{}\n"), (b"[", b"{},")], ids=["blank", "lines", "list"]
)
def test_a_file_of_nothing_but_rows(tmp_path, head, row):
    (tmp_path / "x.jsonl").write_bytes(head + row * (50_000_000 // len(row)))
    code = "from mmalign.data.conversations import Conversations; Conversations(path)"
    peak, said = refused(tmp_path / "x.jsonl", code, MMALIGN_ROWS="1M")
    if row != b"\n":
        assert "x.jsonl has more than 1,048,576 rows" in said
        assert "MMALIGN_ROWS=2097152" in said
    assert peak < BASE


def test_a_row_of_3_gib(tmp_path):
    path = sparse(tmp_path / "x.jsonl", 3 * GIB)
    read = "from mmalign.data.conversations import Conversations; Conversations(path)[0]"
    peak, said = refused(path, read)
    assert "the file is no text in UTF-8: it has zero bytes" in said
    assert peak < BASE
    with open(path, "r+b") as target:
        target.write(b'{"id": "' + b"a" * (1 << 20))
    peak, said = refused(path, read)
    assert "x.jsonl has more than 256 MiB" in said
    assert peak < BASE + 5 * (256 << 20)  # the element as far as it may go, and the copies of reading on


def parquet(path: Path, code: str) -> Path:
    """A table written by a process that may be large."""
    pytest.importorskip("pyarrow")
    write = "import pyarrow as pa, pyarrow.parquet as pq, sys\ncell = lambda d: {'bytes': d, 'path': 'x.jpg'}\n"
    write += f"pq.write_table(pa.table({code}), sys.argv[1], compression='zstd', dictionary_pagesize_limit=1 << 30)"
    subprocess.run([sys.executable, "-c", write, str(path)], check=True)
    return path


TABLE = "from mmalign.data.table import Table; d = Table(path); d.image(d[0].images[0])"
POPE = "from mmalign.benchmarks.reading import parquet; parquet([path])"
PICTURE = "from mmalign.benchmarks.pictures import _parquet_bytes, ParquetImage; _parquet_bytes(ParquetImage(path, 0))"


@pytest.mark.parametrize("code", [TABLE, PICTURE])
def test_17_kb_of_parquet_that_unpack_to_512_mib(tmp_path, code):
    path = parquet(tmp_path / "x.parquet", "{'image': [cell(bytes(512 << 20))], 'caption': ['a']}")
    assert path.stat().st_size < 20_000
    peak, said = refused(path, code)
    assert "row group 0: a value of image.bytes is larger than 256 MiB" in said
    assert "MMALIGN_IMAGE_BYTES=512M" in said
    assert peak < BASE < IMAGE_BYTES.value + BASE


@pytest.mark.slow
@pytest.mark.parametrize(
    "table",
    [
        "{'image': [cell(bytes(20 << 20) + bytes([n])) for n in range(100)], 'caption': ['a'] * 100}",
        "{'image': [cell(bytes(4 << 20))] * 1000, 'caption': ['a'] * 1000}",  # written once
        "{'images': [[cell(bytes(4 << 20))] * 500] * 2, 'caption': ['a'] * 2}",  # once, inside lists
        "{'image': ['a'] * 2, 'messages': [[{'role': 'user', 'content': 'a' * (4 << 20)}] * 500] * 2}",
    ],
    ids=["plain", "repeated", "in lists", "texts"],
)
def test_more_parquet_that_unpacks_to_gigabytes(tmp_path, table):
    path = parquet(tmp_path / "x.parquet", table)
    assert path.stat().st_size < 100_000
    peak, said = refused(path, TABLE)
    assert "row group 0 unpacks to more than 1 GiB" in said
    assert "MMALIGN_TABLE_BYTES=2G" in said
    assert peak < 1.25 * TABLE_BYTES.value + BASE  # an eighth more at a time, while it grows
    peak, said = refused(path, POPE)
    assert peak < 2 * TABLE_BYTES.value + BASE


def arrow(path: Path, code: str, kind: str, compression: str) -> Path:
    """An Arrow file or stream written by a process that may be large."""
    pytest.importorskip("pyarrow")
    write = "import pyarrow as pa, pyarrow.ipc as ipc, sys\nt = pa.table(" + code + ")\n"
    write += f"o = ipc.IpcWriteOptions(compression={compression})\n"
    write += f"w = ipc.new_{kind}(sys.argv[1], t.schema, options=o)\nw.write(t)\nw.close()"
    subprocess.run([sys.executable, "-c", write, str(path)], check=True)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("values", ["binary", "dictionary"])
def test_an_arrow_file_that_unpacks_to_gigabytes(tmp_path, kind, values):
    cell = "pa.array([bytes(80 << 20) for n in range(20)], pa.binary())"
    cell = cell if values == "binary" else f"pa.DictionaryArray.from_arrays(list(range(20)), {cell})"
    path = arrow(tmp_path / "x.arrow", f"{{'image': {cell}, 'caption': ['a'] * 20}}", kind, "'zstd'")
    assert path.stat().st_size < 300_000
    peak, said = refused(path, TABLE)
    assert "x.arrow unpacks to 1.56" in said
    assert "MMALIGN_TABLE_BYTES=2G" in said
    assert "or save it without compression" in said
    assert peak < BASE


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("compression", ["None", "'lz4'", "'zstd'"])
def test_what_an_arrow_file_takes_is_what_pyarrow_takes(tmp_path, kind, compression):
    code = "{'caption': [str(n) * 50 for n in range(3000)], 'image': pa.array(['a', None] * 1500).dictionary_encode()}"
    path = arrow(tmp_path / "x.arrow", code, kind, compression)
    import pyarrow as pa

    from mmalign.data.messages import unpacked

    with pa.memory_map(str(path)) as source:
        size = unpacked(source, kind == "stream")
        before = pa.total_allocated_bytes()
        source.seek(0)
        table = pa.ipc.open_file(source).read_all() if kind == "file" else pa.ipc.open_stream(source).read_all()
        taken = pa.total_allocated_bytes() - before
    assert len(table) == 3000
    if compression == "None":
        assert size == 0
    else:
        assert 0.9 * taken <= size <= taken


def test_ordinary_repetition_is_read(tmp_path):
    """Texts that repeat, each row like the other: what is counted is what they take, not what they could."""
    code = "{'messages': [[{'role': 'user', 'content': 'a' * 4000}, {'role': 'assistant', 'content': 'b'}] * 4] * 3000}"
    path = parquet(tmp_path / "x.parquet", code)
    read = "from mmalign.data.table import Table; d = Table(path); assert len(d[2999].turns) == 8"
    for limit in ("128M", "200M"):
        assert refused(path, read, MMALIGN_TABLE_BYTES=limit)[1].strip() == "nothing was refused"
    assert "unpacks to more than 40 MiB" in refused(path, read, MMALIGN_TABLE_BYTES="40M")[1]


READERS = {
    "answers": ("x.jsonl", "from mmalign.benchmarks.answers import answer_rows; answer_rows(path)"),
    "JSON": ("x.json", "from mmalign.benchmarks.reading import json_file; json_file(path)"),
    "TSV": ("x.tsv", "from mmalign.benchmarks.reading import tsv; tsv(path)"),
    "words": ("x.txt", "from mmalign.io.wordlist import read_words; read_words(path)"),
    "quarantine": ("x.jsonl", "from mmalign.data.quarantine import read; read(path)"),
    "stage.json": (
        "stage.json",
        "from pathlib import Path; from mmalign.io.files import read_json; read_json(Path(path))",
    ),
    "recipe": (
        "x.yaml",
        "from mmalign.io import yaml; from mmalign.errors import RecipeError; yaml.read(path, RecipeError)",
    ),
    "image": ("x.png", "from pathlib import Path; from mmalign.cli.images import open_rgb; open_rgb(Path(path))"),
}


@pytest.mark.parametrize("name", READERS)
def test_5_gib_where_a_file_is_read_whole(tmp_path, name):
    file, code = READERS[name]
    peak, said = refused(sparse(tmp_path / file, 5 * GIB), code)
    assert "has 5 GiB, and no more than" in said
    assert "MMALIGN_" in said
    assert peak < BASE
    assert FILE_BYTES.value < 5 * GIB


@pytest.mark.parametrize("name", READERS)
def test_a_file_without_an_end(tmp_path, name):
    settings = dict.fromkeys(["MMALIGN_FILE_BYTES", "MMALIGN_SETTINGS_BYTES", "MMALIGN_IMAGE_BYTES"], "64M")
    (tmp_path / READERS[name][0]).symlink_to("/dev/zero")
    peak, said = refused(tmp_path / READERS[name][0], READERS[name][1], **settings)
    assert "has more than 64 MiB" in said
    assert peak < BASE + (64 << 20)
