"""Image references: below a root, in archives, behind URLs, in the row itself; nothing outside is ever read."""

import base64
import os
import tarfile
import zipfile

import fsspec
import pytest

from mmalign.data import pictures
from mmalign.data.pictures import ImageReader
from mmalign.data.reasons import Unusable
from mmalign.errors import DataError
from tests.data.samples import images, jpeg


@pytest.fixture
def root(tmp_path):
    images(tmp_path / "root")
    (tmp_path / "root" / "deep").mkdir()
    (tmp_path / "root" / "deep" / "x.jpg").write_bytes(jpeg(9))
    (tmp_path / "secret.jpg").write_bytes(jpeg(8))
    return tmp_path / "root"


def refused(reader, reference):
    with pytest.raises(Unusable) as caught:
        reader.read(reference)
    assert caught.value.what.startswith(f"{caught.value.reason}: ")
    return caught.value


@pytest.mark.parametrize("name", ["deep/x.jpg", "./deep/x.jpg", "deep//x.jpg", "deep/../deep/x.jpg", "deep/./x.jpg"])
def test_paths_below_the_root(root, name):
    assert ImageReader(str(root)).read(name) == (jpeg(9), name)


def test_absolute_paths_inside_the_root(root, tmp_path):
    (tmp_path / "alias").symlink_to(root)
    assert ImageReader(str(root)).read(str(root / "0.jpg"))[0] == jpeg(0)
    assert ImageReader(str(tmp_path / "alias")).read(str(root / "0.jpg"))[0] == jpeg(0)


@pytest.mark.parametrize("name", ["../secret.jpg", "deep/../../secret.jpg", "/etc/passwd", "..", ".", "", "../root2/x"])
def test_no_path_leaves_the_root(root, tmp_path, name):
    images(tmp_path / "root2")
    assert refused(ImageReader(str(root)), name).reason == "outside"
    assert refused(ImageReader(str(root)), str(tmp_path / "secret.jpg")).reason == "outside"


def test_links_that_the_user_made_are_followed(root, tmp_path):
    images(tmp_path / "elsewhere")
    (root / "coco").symlink_to(tmp_path / "elsewhere")
    assert ImageReader(str(root)).read("coco/1.jpg")[0] == jpeg(1)


def test_links_that_lead_nowhere(root):
    (root / "a.jpg").symlink_to("b.jpg")
    (root / "b.jpg").symlink_to("a.jpg")
    (root / "gone.jpg").symlink_to("no.jpg")
    assert "a.jpg is a link that leads back to itself" in refused(ImageReader(str(root)), "a.jpg").what
    assert refused(ImageReader(str(root)), "gone.jpg").reason == "missing"


@pytest.mark.parametrize(
    ("name", "reason", "message"),
    [
        ("none.jpg", "missing", "no image none.jpg"),
        ("0.jpg/x.jpg", "missing", "no image 0.jpg/x.jpg"),
        ("deep", "missing", "deep"),
        ("a\0b.jpg", "missing", "no file can have the name 'a\\x00b.jpg'"),
        ("x" * 5000, "missing", "no file can have the name xxx"),
        ("\ud800.jpg", "missing", "no file can have the name '\\ud800.jpg'"),
        (7, "shape", "an image is 7"),
        ({"bytes": None, "path": None}, "shape", "with neither bytes nor path"),
        ("data:image/png;base64,!!!!", "base64", "data:image/png;base64,!!!!"),
        ("data:image/png;base64,abc", "base64", "padding"),
        ("data:image/png,abc", "base64", "no data:...;base64, URL"),
        ("file:///etc/passwd", "outside", "only http and https are read"),
        ("FILE:///etc/passwd", "outside", "only http and https are read"),
        ("local:///etc/passwd", "outside", "only http and https are read"),
        ("zip://x.jpg::file:///tmp/x.zip", "outside", "only http and https are read"),
        ("zip://x.jpg::http://127.0.0.1/x.zip", "outside", "only http and https are read"),
        ("http://127.0.0.1/x::y.jpg", "outside", "only http and https are read"),
        ("simplecache::file:///etc/passwd", "outside", "only http and https are read"),
        ("memory://none.jpg", "outside", "only http and https are read"),
        ("s3://bucket/x.jpg", "outside", "only http and https are read"),
        ("ftp://127.0.0.1/x.jpg", "outside", "only http and https are read"),
        ("nosuch://x/y.jpg", "outside", "nosuch://x/y.jpg"),
        ("http://[::1/x.jpg", "outside", "http://[::1/x.jpg"),
        ("http://127.0.0.1/x.jpg", "host", "nobody allowed to fetch pictures from 127.0.0.1"),
    ],
)
def test_reasons(root, name, reason, message):
    err = refused(ImageReader(str(root)), name)
    assert err.reason == reason
    assert message in err.what


def test_a_named_pipe_does_not_stop_the_reader(root):
    os.mkfifo(root / "pipe.jpg")
    assert "pipe.jpg is no file" in refused(ImageReader(str(root)), "pipe.jpg").what


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_closed_to_us(root):
    (root / "0.jpg").chmod(0)
    assert refused(ImageReader(str(root)), "0.jpg").reason == "unreadable"


def test_what_the_disk_refuses(root, monkeypatch):
    def broken(path, flags):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pictures.os, "open", broken)
    assert refused(ImageReader(str(root)), "0.jpg").what == "unreadable: 0.jpg: Input/output error"


def test_a_file_that_comes_in_parts(root, monkeypatch):
    read = os.read
    monkeypatch.setattr(pictures.os, "read", lambda file, size: read(file, min(size, 100)))
    assert ImageReader(str(root)).read("deep/x.jpg")[0] == jpeg(9)


def test_files_too_large_are_not_read(root, monkeypatch):
    monkeypatch.setenv("MMALIGN_IMAGE_BYTES", "100")
    err = refused(ImageReader(str(root)), "0.jpg")
    assert err.what == f"oversized: 0.jpg has {len(jpeg(0))} bytes, and no more than 100 bytes are read"
    assert err.fix == "MMALIGN_IMAGE_BYTES=200, if it is right that it is so large"
    assert refused(ImageReader(str(root)), jpeg(0)).reason == "oversized"


def test_images_in_the_row(root):
    reader = ImageReader(str(root))
    text = base64.b64encode(jpeg(3)).decode()
    assert reader.read(f"data:image/jpeg;base64,{text}")[0] == jpeg(3)
    assert reader.read(jpeg(3)) == (jpeg(3), "the image in the row")
    assert reader.read({"bytes": jpeg(3), "path": "x.jpg"}) == (jpeg(3), "x.jpg")
    assert reader.read({"bytes": None, "path": "0.jpg"}) == (jpeg(0), "0.jpg")


def test_urls():
    with fsspec.open("memory://bucket/images/x.jpg", "wb") as target:
        target.write(jpeg(4))
    for spec in ("memory://bucket/images", ["memory://other", "memory://bucket/"]):
        assert ImageReader(spec).read("memory://bucket/images/x.jpg")[0] == jpeg(4)
    assert refused(ImageReader("memory://bucket/images"), "memory://bucket/images/../x.jpg").reason == "outside"
    assert refused(ImageReader("memory://bucket/imag"), "memory://bucket/images/x.jpg").reason == "outside"
    assert ImageReader("memory://bucket/images").read("x.jpg")[0] == jpeg(4)
    assert refused(ImageReader("memory://bucket/images"), "y.jpg").reason == "missing"
    assert refused(ImageReader("memory://bucket/images"), "../x.jpg").reason == "outside"


def test_a_root_on_this_machine_may_be_a_url(root):
    assert ImageReader(f"file://{root}").read("0.jpg")[0] == jpeg(0)


def test_several_roots(root, tmp_path):
    other = images(tmp_path / "other", 5)
    reader = ImageReader([str(root), str(other)])
    assert reader.read("4.jpg")[0] == jpeg(4)
    assert reader.read(str(other / "4.jpg"))[0] == jpeg(4)
    assert refused(reader, "5.jpg").reason == "missing"


def test_no_root():
    assert "this data has no image folder" in refused(ImageReader(None), "x.jpg").what
    with pytest.raises(DataError, match="no image folder /nowhere"):
        ImageReader("/nowhere")


def archived(folder, kind, members):
    path = folder / f"images.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for number, (name, data) in enumerate(members.items()):
                archive.writestr(name, data, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED][number % 2])
        return path
    for name, data in members.items():
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / name).write_bytes(data)
    with tarfile.open(path, "w") as archive:
        archive.add(folder / "in", "./")
    return path


MEMBERS = {"a.jpg": jpeg(0), "deep/b.jpg": jpeg(1), "long" * 40 + ".jpg": jpeg(2), "empty.jpg": b"", "ü.jpg": jpeg(3)}


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives(tmp_path, kind):
    path = archived(tmp_path, kind, MEMBERS)
    for _ in range(2):  # the second time from the kept list
        reader = ImageReader(str(path))
        for name, data in MEMBERS.items():
            assert reader.read(name)[0] == data
            assert reader.read(f"./{name}")[0] == data
        for name in ("none.jpg", "../a.jpg", "/a.jpg", "deep"):
            assert refused(reader, name).reason == "missing"


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_remote_archives(tmp_path, kind):
    path = archived(tmp_path, kind, MEMBERS)
    with fsspec.open(f"memory://archives/{tmp_path.name}.{kind}", "wb") as target:
        target.write(path.read_bytes())
    reader = ImageReader(f"memory://archives/{tmp_path.name}.{kind}")
    assert [reader.read(name)[0] for name in MEMBERS] == list(MEMBERS.values())


def test_an_archive_that_goes_away(tmp_path):
    url = f"memory://archives/{tmp_path.name}-gone.zip"
    with fsspec.open(url, "wb") as target:
        target.write(archived(tmp_path, "zip", MEMBERS).read_bytes())
    reader = ImageReader(url)
    fsspec.filesystem("memory").rm(url)
    assert refused(reader, "a.jpg").what.startswith(f"unreadable: {url}: ")


def test_of_two_members_of_one_name_the_later_counts(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for number in (1, 2):
            (tmp_path / "x.jpg").write_bytes(jpeg(number))
            archive.add(tmp_path / "x.jpg", "x.jpg")
    assert ImageReader(str(tmp_path / "x.tar")).read("x.jpg")[0] == jpeg(2)


def test_a_changed_archive_is_listed_again(tmp_path):
    path = archived(tmp_path, "zip", MEMBERS)
    ImageReader(str(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("new.jpg", jpeg(7))
    assert ImageReader(str(path)).read("new.jpg")[0] == jpeg(7)


def damaged(path, change):
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return ImageReader(str(path))


def test_members_damaged_inside_a_zip(tmp_path, monkeypatch):
    path = archived(tmp_path, "zip", {"a.jpg": jpeg(0), "b.jpg": bytes(5000)})
    at = path.read_bytes().index(b"b.jpg") + 5

    def change(data):
        data[0:4] = b"gone"
        data[at] = 0xFF  # no such kind of block

    reader = damaged(path, change)
    assert "a.jpg is not where the archive says" in refused(reader, "a.jpg").what
    assert refused(reader, "b.jpg").what.startswith("broken: b.jpg cannot be unpacked: ")
    monkeypatch.setenv("MMALIGN_IMAGE_BYTES", "100")
    assert refused(reader, "b.jpg").reason == "oversized"


def test_a_zip_member_that_claims_to_be_longer(tmp_path):
    path = archived(tmp_path, "zip", {"a.jpg": jpeg(0), "b.jpg": bytes(5000)})
    at = path.read_bytes().rindex(b"PK\1\2") + 24  # the full size in the list of members
    reader = damaged(path, lambda data: data.__setitem__(slice(at, at + 4), (6000).to_bytes(4, "little")))
    assert refused(reader, "b.jpg").what == "truncated: b.jpg unpacks to 5000 of 6000 bytes"


def test_a_method_of_packing_that_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.jpg", jpeg(0))
    assert "packed by method 12" in refused(ImageReader(str(tmp_path / "x.zip")), "a.jpg").what


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x.zip", lambda data: data[:40], "not a readable zip archive"),
        ("x.tar", lambda data: data[:2000], "not a readable tar archive: unexpected end of data"),
        ("x.tar", lambda data: data[: data.index(b"b.jpg") + 99], "cut off in the header of a file"),
        ("x.tar", lambda data: b"\x1f\x8b" + data, "unpack it: a compressed tar cannot be read at random"),
        ("x.tar", lambda data: b"no archive at all", "fetch the archive again"),
    ],
)
def test_archives_that_cannot_be_listed(tmp_path, name, change, message):
    with tarfile.open(tmp_path / "whole.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, member in enumerate(("a.jpg", "b.jpg")):
            (tmp_path / member).write_bytes(jpeg(number, (90, 90)))
            archive.add(tmp_path / member, member)
    (tmp_path / name).write_bytes(change((tmp_path / "whole.tar").read_bytes()))
    with pytest.raises(DataError) as caught:
        ImageReader(str(tmp_path / name))
    assert message in str(caught.value)


def test_an_encrypted_zip(tmp_path):
    path = archived(tmp_path, "zip", {"a.jpg": jpeg(0)})
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="a.jpg is encrypted"):
        ImageReader(str(path))


def test_an_archive_that_is_not_there():
    with pytest.raises(DataError, match=r"no file /nowhere/x.zip"):
        ImageReader("/nowhere/x.zip")
