"""WebDataset tars: samples by number, whatever they are made of."""

import io
import json
import tarfile

import fsspec
import pytest

from mmalign.data.reasons import Unusable
from mmalign.data.tars import TarImage, Tars
from mmalign.errors import DataError
from tests.data.samples import images, is_picture, jpeg, png, row


def tar(path, members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with fsspec.open(str(path), "wb") as target:
        target.write(buffer.getvalue())
    return str(path)


def samples(first, last):
    """Samples as WebDataset's writer would leave them."""
    return [
        member
        for n in range(first, last)
        for member in ((f"{n:05d}.jpg", jpeg(n)), (f"{n:05d}.json", json.dumps(row(f"r{n}")).encode()))
    ]


def test_conversations(tmp_path):
    path = tar(tmp_path / "x.tar", samples(0, 7))
    for _ in range(2):  # the second time from the kept list
        data = Tars(path)
        assert len(data) == 7
        assert data[5].id == "r5@5"
        assert [turn.text for turn in data[5].turns] == ["<image>\nWhat is it?", "A cat."]
        assert is_picture(data.image(data[5].images[0]), 5, "JPEG")
    assert isinstance(data[5].images[0], TarImage)


def test_captions_as_img2dataset_leaves_them(tmp_path):
    members = [("a.jpg", jpeg(1)), ("a.json", b'{"url": "http://x", "caption": "other"}'), ("a.txt", b"a cat\n"),
               ("b.json", b'{"caption": "a dog"}'), ("b.png", png(2))]  # fmt: skip
    data = Tars(tar(tmp_path / "x.tar", members))
    assert [[turn.text for turn in record.turns] for record in data] == [["<image>", "a cat"], ["<image>", "a dog"]]
    assert [record.id for record in data] == ["a@0", "b@1"]
    assert is_picture(data.image(data[1].images[0]), 2)


def test_several_images_text_alone_and_folders(tmp_path):
    two = row("two", asked="<image> or <image>?")
    members = [("d/a.1.png", png(1)), ("d/a.0.png", png(0)), ("d/a.json", json.dumps(two).encode()),
               ("e/a.json", json.dumps(row("t", None, "Hello.")).encode()), ("README.md", b"no sample")]  # fmt: skip
    data = Tars(tar(tmp_path / "x.tar", members))
    assert [is_picture(data.image(image), n) for n, image in enumerate(data[0].images)] == [True, True]
    assert data[1].images == ()


def test_images_beside_the_tar(tmp_path):
    images(tmp_path)
    path = tar(tmp_path / "x.tar", [("a.json", json.dumps(row("a", "1.jpg")).encode())])
    data = Tars(path, images=str(tmp_path))
    assert is_picture(data.image(data[0].images[0]), 1, "JPEG")


@pytest.mark.parametrize("where", ["", "memory://tars/"])
@pytest.mark.parametrize("pattern", ["{name}", "{name}/*.tar", "{name}/x-{{000..002}}.tar"])
def test_many_tars(tmp_path, where, pattern):
    base = f"{where}{tmp_path.name}" if where else str(tmp_path / "shards")
    if not where:
        (tmp_path / "shards").mkdir()
    for number in range(3):
        tar(f"{base}/x-{number:03d}.tar", samples(number * 2, number * 2 + 2))
    data = Tars(pattern.format(name=base))
    assert [record.id for record in data] == [f"r{n}@{n}" for n in range(6)]
    assert is_picture(data.image(data[4].images[0]), 4, "JPEG")


def test_what_webdatasets_own_writer_leaves(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"s{number}", "jpg": jpeg(number), "json": row(f"r{number}"), "cls": number})
    data = Tars(str(tmp_path / "x.tar"))
    assert [record.id for record in data] == ["r0@0", "r1@1", "r2@2"]
    assert is_picture(data.image(data[2].images[0]), 2, "JPEG")


def test_quarantine(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": "r1@1"}\n')
    data = Tars(tar(tmp_path / "x.tar", samples(0, 3)), quarantine=str(tmp_path / "q.jsonl"))
    assert [record.id for record in data] == ["r0@0", "r2@2"]


@pytest.mark.parametrize(
    ("members", "reason", "message"),
    [
        ([("a.jpg", jpeg())], "shape", "none of conversations, messages, texts, caption"),
        ([("a.jpg", jpeg()), ("a.json", b"{")], "json", "a.json is not valid JSON"),
        ([("a.jpg", jpeg()), ("a.txt", b"\xff")], "shape", "a.txt is not UTF-8: invalid start byte at byte 0"),
        ([("a.jpg", jpeg()), ("a.txt", b" ")], "blank", "says nothing"),
        ([("a.txt", b"a cat")], "shape", "none of conversations"),
    ],
)
def test_samples_that_cannot_be_used(tmp_path, members, reason, message):
    data = Tars(tar(tmp_path / "x.tar", members))
    with pytest.raises(Unusable) as caught:
        data[0]
    assert caught.value.reason == reason
    assert message in caught.value.what


def test_a_damaged_image_inside(tmp_path):
    data = Tars(tar(tmp_path / "x.tar", [("a.jpg", jpeg()[:-50]), ("a.txt", b"a cat")]))
    with pytest.raises(Unusable, match="truncated: the image of a "):
        data.image(data[0].images[0])


def test_tars_without_samples(tmp_path):
    with pytest.raises(DataError, match=r"no sample in .*x.tar"):
        Tars(tar(tmp_path / "x.tar", [("README.md", b"hello")]))
    with pytest.raises(DataError, match="no .tar, .tar.gz, .tgz files in"):
        Tars(str(tmp_path / "none*"))
    with pytest.raises(DataError, match="no file .*none"):
        Tars(str(tmp_path / "none"))


def test_keys_beside_a_caption_are_not_lost(tmp_path):
    """What changes what is learned is refused, the rest is named: as in any other row."""
    beside = [{"url": "https://a/b.jpg", "id": "other"}, {"tools": [{"name": "f"}], "caption": "a star"}]
    members = [(f"{n}.{kind}", data) for n, content in enumerate(beside) for kind, data in (
        ("jpg", jpeg(n)), ("json", json.dumps(content).encode()), ("txt", b"a ring"))]  # fmt: skip
    data = Tars(tar(tmp_path / "x.tar", members))
    assert data[0].id == "0@0"
    assert data[0].turns[-1].text == "a ring"
    assert data[0].notes == ("rows with the key 'url', which is not read",)
    with pytest.raises(Unusable, match="the row has tools"):
        data[1]


def test_no_text_of_a_sample_is_lost_in_silence(tmp_path):
    asked = json.dumps(row("a", None)).encode()
    contents = {"a": asked, "b": b'{"caption": "a star"}', "c": b'{"caption": "a ring"}'}
    kinds = (("jpg", jpeg()), ("txt", b"a ring "))
    members = [
        member for key, content in contents.items()
        for member in (*((f"{key}.{kind}", data) for kind, data in kinds), (f"{key}.json", content))
    ]  # fmt: skip
    data = Tars(tar(tmp_path / "x.tar", members))
    assert [record.notes for record in data] == [
        ("rows with the key '.txt', which is not read",),
        ("rows with the key 'caption in the .json', which is not read",),
        (),
    ]


def test_a_sample_that_cannot_be_read_has_its_key(tmp_path):
    data = Tars(tar(tmp_path / "x.tar", [("a.jpg", jpeg()), ("b.jpg", jpeg()), ("b.json", b"{")]))
    assert [data.id_of(number) for number in range(2)] == ["a@0", "b@1"]
    with pytest.raises(Unusable) as told:
        data[0]
    assert told.value.fix.startswith("a sample is KEY.json or KEY.txt and its images")
