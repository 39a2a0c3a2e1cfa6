"""What a file is by its first bytes, so that one of another kind is refused as what it is."""

from mmalign.errors import DataError

HEAD = 4096  # bytes that are looked at

LFS = b"version https://git-lfs.github.com/"
PICTURE = "a file of rows; pictures are named in them, and their folder under `images:`"
ROWS = "JSON, parquet, CSV or tar"
PICKLE = ("a pickle, which is never read", ROWS)
UTF_16 = ("UTF-16, not UTF-8", "save it as UTF-8")
_MAGIC = {
    LFS: ("a pointer of Git LFS, not the file", "fetch the file itself: git lfs pull"),
    b"PK\3\4": ("a zip archive", "unpack it"),
    b"\x1f\x8b": ("packed with gzip", "name it .gz, or unpack it"),
    b"BZh": ("packed with bzip2", "unpack it"),
    b"\xfd7zXZ": ("packed with xz", "unpack it"),
    b"\x28\xb5\x2f\xfd": ("packed with zstd", "unpack it"),
    b"PAR1": ("a parquet file", "name it .parquet, or the card `table`"),
    b"ARROW1": ("an Arrow file", "name it .arrow, or the card `table`"),
    b"\xff\xd8\xff": ("a picture", PICTURE),
    b"\x89PNG": ("a picture", PICTURE),
    b"\x93NUMPY": ("a NumPy array", ROWS),
    b"\x80\x02": PICKLE,
    b"\x80\x03": PICKLE,
    b"\x80\x04": PICKLE,
    b"\x80\x05": PICKLE,
    b"\x89HDF": ("an HDF5 file", ROWS),
    b"SQLite": ("an SQLite database", ROWS),
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
}
_PAGES = (b"<!doctype", b"<html", b"<?xml")


def of(head: bytes) -> tuple[str, str] | None:
    """(what a file is, what to try) by its first HEAD bytes; None for what may be a text in UTF-8."""
    if head.startswith(b"PK\3\4") and b"[Content_Types].xml" in head:
        return "a workbook of Excel, or another file of Office", "save it as CSV in UTF-8"
    for magic, known in _MAGIC.items():
        if head.startswith(magic):
            return known
    if head[257:262] == b"ustar":
        return "a tar archive", "name it .tar, or the card `tars`"
    if head.lstrip()[:20].lower().startswith(_PAGES):
        return "a web page", "fetch the file again"
    if b"\0" in head[:64]:
        return "no text in UTF-8: it has zero bytes", "save it as UTF-8"
    return None


def check_text(head: bytes, spec: str) -> None:
    """A DataError where a file that should be a text is anything else."""
    if known := of(head[:HEAD]):
        raise DataError(f"the file is {known[0]}", at=spec, fix=known[1])


def check_fetched(head: bytes, spec: str) -> None:
    """A DataError where a file that should be packed is nothing, a pointer to itself, or a page that says no."""
    if not head:
        raise DataError(f"no record in {spec}: the file is empty", at=spec, fix="fetch the file again")
    known = of(head[:HEAD])
    if known and (head.startswith(LFS) or known[0] == "a web page"):
        raise DataError(f"the file is {known[0]}", at=spec, fix=known[1])
