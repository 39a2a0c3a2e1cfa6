"""Archives unpacked: all of it or nothing, and nothing outside of the folder."""

import io
import stat
import tarfile
import zipfile

import pytest

from mmalign.errors import DataError
from mmalign.io import transfer
from mmalign.io.unpack import take, unpack


def zipped(place, **names: bytes):
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as pack:
        for name, content in names.items():
            pack.writestr(name, content)
    return place


def tarred(place, members):
    with tarfile.open(place, "w:gz" if place.name.endswith("gz") else "w") as pack:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
            pack.addfile(info, io.BytesIO(content))
    return place


def tree(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_a_tree_is_put_over_what_is_there(here, name):
    members = {"x/1.txt": b"one", "x/y/2.txt": b"two", "3.txt": b"three"}
    make = zipped if name == "a.zip" else lambda place, **n: tarred(place, [(*m, tarfile.REGTYPE) for m in n.items()])
    archive = make(here / name, **members)
    (here / "out/x").mkdir(parents=True)
    (here / "out/x/1.txt").write_bytes(b"old")
    (here / "out/x/0.txt").write_bytes(b"kept")
    unpack(archive, here / "out")
    assert tree(here / "out") == {**members, "x/0.txt": b"kept"}
    assert stat.S_IMODE((here / "out/x/1.txt").stat().st_mode) & 0o600 == 0o600


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:evil"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_that_would_lie_elsewhere_keeps_all_of_it_packed(here, name, kind):
    if kind == "zip":
        archive = zipped(here / "a.zip", **{"good.txt": b"", name: b"bad"})
    else:
        archive = tarred(here / "a.tar", [("good.txt", b"", tarfile.REGTYPE), (name, b"bad", tarfile.REGTYPE)])
    with pytest.raises(DataError, match="outside of its folder: nothing of it is unpacked"):
        unpack(archive, here / "deep/out")
    assert [place.name for place in here.iterdir()] == [archive.name]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_not_unpacked(here, kind):
    with pytest.raises(DataError, match="a link or a device"):
        unpack(tarred(here / "a.tar", [("x", b"", kind)]), here / "out")


def test_a_link_in_a_zip(here):
    info = zipfile.ZipInfo("x")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(here / "a.zip", "w") as pack:
        pack.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="a link or a device"):
        unpack(here / "a.zip", here / "out")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_what_is_no_archive_or_damaged(here, name):
    (here / name).write_bytes(b"PK\3\4 nothing of the kind" * 99)
    with pytest.raises(DataError, match="is damaged"):
        unpack(here / name, here / "out")


def test_a_zip_that_holds_more_than_it_says(here):
    archive = zipped(here / "a.zip", x=b"a" * 1000)
    data = archive.read_bytes()
    size = (1000).to_bytes(4, "little")
    archive.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(DataError, match="is damaged"):
        unpack(archive, here / "out")
    assert not list((here / "out").iterdir())


def test_another_kind_of_archive(here):
    (here / "a.rar").touch()
    with pytest.raises(DataError) as caught:
        unpack(here / "a.rar", here / "out")
    assert caught.value.fix == "a .zip, .tar, .tar.gz or .tgz"


def test_one_member(here):
    archive = zipped(here / "a.zip", **{"American/2of12.txt": b"a\r\n", "x": b""})
    take(archive, "American/2of12.txt", here / "words/2of12.txt")
    assert tree(here / "words") == {"2of12.txt": b"a\r\n"}
    with pytest.raises(DataError, match="has no 2of12.txt, but American/2of12.txt, x"):
        take(archive, "2of12.txt", here / "b")


def test_no_room(here, monkeypatch):
    archive = zipped(here / "a.zip", x=b"abc")

    class Usage:
        free = 10

    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(transfer.NoSpaceError):
        unpack(archive, here / "out")


def test_a_folder_where_a_file_is_to_be(here):
    (here / "out/x").mkdir(parents=True)
    with pytest.raises(DataError, match="is a folder, and a file is to be there"):
        unpack(zipped(here / "a.zip", x=b"abc"), here / "out")
