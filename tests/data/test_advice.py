"""What to try for paths that lead nowhere."""

import pytest

from mmalign.data import advice


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data" / "images" / "coco").mkdir(parents=True)
    (tmp_path / "data" / "images" / "coco" / "0.jpg").write_bytes(b"x")
    (tmp_path / "data" / "top.jpg").write_bytes(b"x")
    (tmp_path / "data" / "caf\u00e9.jpg").write_bytes(b"x")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("images\\coco\\0.jpg", "write / for \\ in the paths"),
        ("coco\\gone.jpg", "write / for \\ in the paths, which count from {root}"),
        ("D:\\me\\images\\coco\\0.jpg", "these are paths of Windows: take D:\\me\\ away, and write / for \\"),
        ("D:/me/images/coco/0.jpg", "these are paths of Windows: take D:/me/ away, and write / for \\"),
        ("\\\\host\\share\\top.jpg", "these are paths of Windows: take \\\\host\\share\\ away, and write / for \\"),
        ("/home/me/images/coco/0.jpg", "write the paths as they are in the image folder: without /home/me/"),
        ("/home/me/gone.jpg", "write the paths as they are in the image folder, or images=FOLDER where they are"),
        ("coco/0.jpg", "images={root}/images"),
        ("gone.jpg", ""),
        ("./coco/0.jpg", "images={root}/images"),
        (" top.jpg ", "take the blanks away around the paths"),
        ("images/coco/%30.jpg", "write the paths as the files are named: with a blank for %20, and so on"),
        ("Top.jpg", "write the paths in the small letters that the files have"),
        ("top.JPG", "write the paths in the small letters that the files have"),
        ("top.png", "write the ending that the files have: .jpg"),
        ("top", "write the ending that the files have: .jpg"),
        ("train/top.jpg", "write the paths as they are in the image folder: without train/"),
        ("cafe\u0301.jpg", "write the paths in the Unicode form that the files have: NFC"),
        ("../data/gone/../top", ""),
        ("a\0.jpg", ""),
        ("\ud800.jpg", ""),
    ],
)
def test_advice(root, path, said):
    assert advice.for_path(path, [str(root)]) == said.format(root=root)


def test_where_the_picture_is(root):
    assert advice.for_path(f"{root}/top.jpg", ["/nowhere"]) == f"images={root}, the folder they lie in"
    (root / "id_rsa").write_text("secret")
    assert "id_rsa" not in advice.for_path(f"{root}/id_rsa", ["/nowhere"])
    assert f"images={root}" not in advice.for_path(f"{root}/id_rsa", ["/nowhere"])
    said = f"images={root}, for the paths begin with images/"
    for path in ("images/coco/0.jpg", "./images/coco/0.jpg", "images//coco/0.jpg"):
        assert advice.for_path(path, [f"{root}/images"]) == said
    assert advice.for_path("a\\0.jpg", []) == "write / for \\ in the paths"  # of an archive
    assert advice.for_path("x.jpg", []) == ""


def test_paths_of_urls():
    assert advice.path_of_url("file:///a%20b/c.jpg") == advice.path_of_url("FILE://localhost/a b/c.jpg") == "/a b/c.jpg"
    for url in ("file://host/a.jpg", "http://host/a.jpg", "zip://x::file:///a", "s3://b/a"):
        assert advice.path_of_url(url) is None
