"""The label store: what is written is read, every hash is checked, a kill leaves nothing half done."""

import json

import numpy as np
import pytest

from mmalign.errors import DataError, RunError
from mmalign.io import seal
from mmalign.labels import store
from mmalign.labels.store import Header, Store
from mmalign.vision.picture import placed

WORDS = ["red", "star", "blue", "ring"]


def header(grid=(5, 3), keep=3, words=WORDS):
    return Header("clip abc", store.words_hash(words), grid, keep, {"sign": 1}, "toy", "pad", size=len(words))


def random_row(seed, grid=(5, 3), keep=3, words=len(WORDS)):
    g = np.random.default_rng(seed)
    shape = (grid[0] * grid[1], keep)
    return g.integers(0, words, shape), g.random(shape, dtype=np.float32) - 0.3


def frame(number=0, grid=(5, 3)):
    return placed("pad", (40 + number, 30), grid, 60)


def build(folder, images=7, shard=3, words=WORDS, grid=(5, 3), keep=3):
    head = header(grid, keep, words)
    rows = {f"img/{n}": random_row(n, grid, keep, len(words)) for n in range(images)}
    keys = list(rows)
    shards = -(-images // shard)
    for number in range(shards):
        part = keys[number * shard : (number + 1) * shard]
        bad = [["img/bad", "truncated"]] if number == 0 else []
        store.write_shard(
            folder, number, head, [store.pack(head, *rows[k], frame(keys.index(k), grid)) for k in part], part, bad
        )
    store.finish(folder, head, words, shards)
    return rows


@pytest.mark.parametrize(("grid", "keep"), [((5, 3), 3), ((27, 27), 10), ((1, 1), 1)])
def test_what_is_written_is_read(tmp_path, grid, keep):
    rows = build(tmp_path, grid=grid, keep=keep)
    read = Store(tmp_path)
    assert len(read) == 7
    assert read.words == WORDS
    assert read.bad == [["img/bad", "truncated"]]
    for number, (key, (words, scores)) in enumerate(rows.items()):
        got_words, got_scores, got_frame = read[key]
        assert np.array_equal(got_words, words)
        assert np.array_equal(got_scores, scores.astype(np.float16))
        assert got_frame == frame(number, grid)
        assert hash(got_frame) == hash(frame(number, grid))  # so that what is worked out once is met again


def test_bytes_per_image_are_as_promised():
    head = header((24, 24), 10)
    assert head.stride == 23_080  # 576 patches x 10 words x (2 bytes number + 2 bytes score), and where they lie
    assert len(store.pack(head, *random_row(0, (24, 24), 10), frame(grid=(24, 24)))) == 23_080


def test_long_word_lists_take_wider_numbers(tmp_path):
    words = [f"w{n}" for n in range(70_000)]
    rows = build(tmp_path, images=2, words=words)
    assert np.array_equal(Store(tmp_path)["img/1"][0], rows["img/1"][0])


def test_a_key_without_labels(tmp_path):
    build(tmp_path)
    assert "img/99" not in Store(tmp_path)
    with pytest.raises(DataError, match="no labels for 'img/99'"):
        Store(tmp_path)["img/99"]


@pytest.mark.parametrize("at", [0, 100, -1])
def test_a_flipped_byte_is_found_and_named(tmp_path, at):
    build(tmp_path)
    place = tmp_path / "shard-00001.bin"
    data = bytearray(place.read_bytes())
    data[at] ^= 1
    place.write_bytes(data)
    read = Store(tmp_path)
    assert read["img/0"]  # another shard is whole
    with pytest.raises(RunError, match=r"shard-00001\.bin is damaged"):
        read["img/3"]


def test_a_cut_shard_a_changed_list_another_format(tmp_path):
    build(tmp_path)
    place = tmp_path / "shard-00000.bin"
    place.write_bytes(place.read_bytes()[:-4])
    with pytest.raises(RunError, match=r"shard-00000\.bin is damaged"):
        Store(tmp_path)["img/0"]
    (tmp_path / "words.txt").write_text("other\n")
    with pytest.raises(RunError, match=r"words\.txt is not the list"):
        Store(tmp_path)
    header = seal.read(tmp_path / "header.json")
    (tmp_path / "header.json").write_text(json.dumps({**header, "format": 99}))
    with pytest.raises(RunError, match="format 99"):
        Store(tmp_path)


def test_a_store_that_does_not_say_where_its_patches_lie(tmp_path):
    """As 0.1.0 wrote them."""
    build(tmp_path)
    header = seal.read(tmp_path / "header.json")
    header.pop("fit")
    (tmp_path / "header.json").write_text(json.dumps({**header, "format": 1}))
    with pytest.raises(
        RunError, match="label store of format 1, which does not say where in a picture its patches"
    ) as err:
        Store(tmp_path)
    assert err.value.at == str(tmp_path)
    assert "kind: label" in err.value.fix


@pytest.mark.parametrize("at", [-1, -4, -6, -9, 0, 20, 100])  # row, shard and hash of the last entry; numpy's header
def test_a_flipped_byte_of_the_index_is_found_before_any_label_is_read(tmp_path, at):
    build(tmp_path)
    place = tmp_path / "index.npy"
    data = bytearray(place.read_bytes())
    data[at] ^= 0x81
    place.write_bytes(data)
    with pytest.raises(RunError, match=r"index\.npy is damaged"):
        Store(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"format": 2, "grid": [1, 1], "colour": 3}'])
def test_a_damaged_header(tmp_path, text):
    build(tmp_path)
    (tmp_path / "header.json").write_text(text)
    with pytest.raises(RunError, match=r"header\.json is damaged"):
        Store(tmp_path)


@pytest.mark.parametrize("at", range(0, 600, 7))
def test_a_flipped_bit_of_the_header_is_noticed(tmp_path, at):
    build(tmp_path)
    place = tmp_path / "header.json"
    data = bytearray(place.read_bytes())
    data[at % len(data)] ^= 1
    place.write_bytes(data)
    with pytest.raises(RunError, match=r"header\.json is damaged"):
        Store(tmp_path)


def test_a_word_list_that_is_no_text(tmp_path):
    build(tmp_path)
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match=r"words\.txt is not the list"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ((0, 30, 0, 0, 1, 1), r"a picture of 0 x 30 pixels"),
        ((40, 30, 0, 0, np.nan, 1), r"\[0\.0, 0\.0, nan, 1\.0\]"),
        ((40, 30, 0.5, 0, 0.5, 1), r"\[0\.5, 0\.0, 0\.5, 1\.0\] of a picture of 40 x 30 pixels"),
        ((40, 30, 0, 0, 1, np.inf), "inf"),
    ],
)
def test_patches_that_cover_no_part_of_a_picture(tmp_path, place, says):
    """In a shard whose checksum is right."""
    head = header()
    place = np.array(place, store._FRAME)
    row = store.pack(head, *random_row(0), frame())[: -store._FRAME.itemsize] + place.tobytes()
    store.write_shard(tmp_path, 0, head, [store.pack(head, *random_row(1), frame()), row], ["img/0", "img/1"], [])
    store.finish(tmp_path, head, WORDS, 1)
    with pytest.raises(RunError, match=rf"shard-00000\.bin is damaged: its patches cover .*{says}"):
        Store(tmp_path)["img/0"]


def test_a_shard_that_is_missing(tmp_path):
    build(tmp_path)
    (tmp_path / "shard-00001.bin").unlink()
    with pytest.raises(RunError, match=r"shard-00001\.bin is damaged: it is not there"):
        Store(tmp_path)
    read = Store(tmp_path, lengths=False)
    with pytest.raises(RunError, match=r"shard-00001\.bin is damaged: it is missing"):
        read["img/3"]
    assert [name for name, _ in read.damage()] == ["shard-00001.bin"]


def test_no_store_here(tmp_path):
    with pytest.raises(RunError, match=r"no label store here: header\.json"):
        Store(tmp_path)


def test_two_images_with_one_key(tmp_path):
    head = header()
    row = store.pack(head, *random_row(0), frame())
    for number in (0, 1):
        store.write_shard(tmp_path, number, head, [row], ["same"], [])
    with pytest.raises(DataError, match="two images share the key same"):
        store.finish(tmp_path, head, WORDS, 2)


def test_readable_through_a_url(tmp_path):
    import fsspec

    rows = build(tmp_path)
    memory = fsspec.filesystem("memory")
    for place in tmp_path.iterdir():
        memory.pipe(f"/labels/{place.name}", place.read_bytes())
    words, _, _ = Store("memory://labels")["img/4"]
    assert np.array_equal(words, rows["img/4"][0])


def test_an_empty_shard(tmp_path):
    head = header()
    store.write_shard(tmp_path, 0, head, [], [], [["a", "gone"]])
    store.finish(tmp_path, head, WORDS, 1)
    assert len(Store(tmp_path)) == 0
