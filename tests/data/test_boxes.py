"""Boxes in the files of COCO and Visual Genome: records, truth on real pictures, and what is wrong with a file."""

import gzip
import json
import logging

import pytest
from PIL import Image

from mmalign.data.boxes import CocoBoxes, VisualGenomeBoxes
from mmalign.data.reasons import Unusable
from mmalign.errors import DataError
from mmalign.testing import check_data
from mmalign.vision import Frame
from tests.data.samples import encode, is_picture, jpeg, picture

SIZES = {7: (40, 30), 3: (30, 40), 12: (32, 32), 9: (40, 30)}  # by id; the last has nothing in it


def coco(more=(), **changes):
    return {
        "info": {"year": 2017}, "licenses": [],
        "images": [{"id": i, "file_name": f"{i:03d}.jpg", "width": w, "height": h} for i, (w, h) in SIZES.items()],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 90, "bbox": [0, 0, 15, 20], "iscrowd": 0, "segmentation": [[1.5]]},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [20.0, 15, 20.0, 15], "iscrowd": 0},
            {"id": 3, "image_id": 7, "category_id": 10, "bbox": [0, 0, 40, 15]},
            {"id": 4, "image_id": 12, "category_id": 1, "bbox": [0, 0, 32, 32], "iscrowd": 1}, *more,
        ],
        "categories": [{"id": 10, "name": "Traffic light"}, {"id": 1, "name": "person"}, {"id": 90, "name": "dog"}],
    } | changes  # fmt: skip


CAPTIONS = {"annotations": [{"image_id": 7, "id": 5, "caption": " A man waits.\n"}, {"image_id": 7, "caption": "Two."},
                            {"image_id": 9, "caption": "Nothing."}, {"image_id": 3, "caption": " "}]}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number, (id_, size) in enumerate(SIZES.items()):
        (tmp_path / "images" / f"{id_:03d}.jpg").write_bytes(jpeg(number, size))
    written(tmp_path, coco())
    return tmp_path


def written(folder, document, name="instances.json"):
    (folder / name).write_text(json.dumps(document))
    return str(folder / name)


def opened(folder, **args):
    return CocoBoxes(str(folder / "instances.json"), str(folder / "images"), **args)


def by_id(data):
    return {record.id.partition("@")[0]: record for record in data}


def square(size, grid=(2, 2)):
    return Frame("squash", size, grid)


def test_records_say_the_names_the_largest_first(folder):
    data = opened(folder)
    assert [record.id for record in data] == ["7@0", "3@1", "12@2"]
    assert [turn.text for turn in data[0].turns] == ["<image>", "traffic light, person"]
    assert [record.caption for record in data] == ["traffic light, person", "dog", "person"]
    assert is_picture(data.image(data[1].images[0]), 1, "JPEG", (30, 40))


def test_records_say_the_first_caption(folder):
    captions = written(folder, CAPTIONS, "captions.json")
    said = {id_: record.caption for id_, record in by_id(opened(folder, captions=captions)).items()}
    assert said == {"7": "A man waits.", "3": "dog", "12": "person", "9": "Nothing."}
    written(folder, {"annotations": [{"image_id": 4, "caption": "Another split."}]}, "captions.json")
    with pytest.raises(DataError, match="the captions are of other pictures than") as caught:
        opened(folder, captions=captions)
    assert caught.value.at == captions


def test_truth(folder):
    data = opened(folder)
    truth = {id_: data.truth(record.images[0], square(SIZES[int(id_)])) for id_, record in by_id(data).items()}
    assert truth["7"].words == [("traffic light",), ("traffic light",), (), ("person",)]
    assert truth["7"].object == [True, True, False, True]
    assert truth["3"].words == [("dog",), (), (), ()]
    assert truth["12"].object == [None] * 4  # a crowd


def test_aliases(folder):
    (folder / "same.txt").write_text("person,people\n")
    data = opened(folder, aliases=str(folder / "same.txt"))
    assert data.truth(data[0].images[0], square((40, 30))).words[3] == ("person", "people")
    assert data[2].caption == "person"


def test_the_contract(folder):
    check_data(lambda: opened(folder))
    path = written(folder, VG, "objects.json")
    for id_, size in SIZES.items():
        (folder / "images" / f"{id_}.jpg").write_bytes(jpeg(id_, size))
    check_data(lambda: VisualGenomeBoxes(path, str(folder / "images")))


def test_the_order_of_the_lists_and_packed_files(folder):
    document = coco()
    (folder / "x.json.gz").write_bytes(gzip.compress(json.dumps(dict(reversed(document.items()))).encode()))
    data = CocoBoxes(str(folder / "x.json.gz"), str(folder / "images"))
    assert list(data) == list(opened(folder))
    written(folder / "images", document)
    assert CocoBoxes(str(folder / "images" / "instances.json")).image(0).size == (40, 30)


def test_a_box_outside_is_cut_and_one_of_no_area_told(folder, caplog):
    flat = [
        {"image_id": 3, "category_id": 10, "bbox": [-20, -20, 35, 60]},  # its left half, once it is cut
        {"image_id": 12, "category_id": 10, "bbox": [40, 0, 9, 9]},
        {"image_id": 7, "category_id": 10, "bbox": [1, 1, 0, 9]},
    ]
    written(folder, coco(flat))
    with caplog.at_level(logging.WARNING):
        data = by_id(opened(folder))
    assert [record.message for record in caplog.records] == [
        "instances.json: 2 boxes have no area in their picture and show nothing, the first is annotations.5.bbox"
    ]
    assert data["3"].caption == "traffic light, dog"
    truth = opened(folder).truth(data["3"].images[0], square((30, 40)))
    assert truth.words == [("dog",), (), ("traffic light",), ()]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_of_the_stored_picture(folder, orientation):
    """A picture whose left upper quarter is white, with a box around that, whatever way it is turned."""
    stored, exif = Image.new("RGB", (40, 30)), Image.Exif()
    stored.paste("white", (0, 0, 20, 15))
    exif[0x0112] = orientation
    (folder / "images" / "007.jpg").write_bytes(encode(stored, "PNG", exif=exif))
    box = {"image_id": 7, "category_id": 1, "bbox": [0, 0, 20, 15]}
    written(folder, coco(annotations=[box]))
    data = opened(folder)
    from mmalign.vision.picture import rgb

    upright = rgb(data.image(0))
    pixels = [upright.getpixel((upright.width * x // 4, upright.height * y // 4))[0] for y in (1, 3) for x in (1, 3)]
    truth = opened(folder).truth(0, square(upright.size))  # of a picture that nobody opened yet
    assert [bool(words) for words in truth.words] == [value > 128 for value in pixels]
    assert sum(map(bool, truth.words)) == 1


def test_boxes_of_the_upright_picture_are_known_by_its_size(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored as 40 x 30, seen as 30 x 40
    (folder / "images" / "003.jpg").write_bytes(encode(picture((40, 30)), "JPEG", exif=exif))
    data = opened(folder)
    assert data.truth(1, square((30, 40))).words == [("dog",), (), (), ()]


def test_a_copy_of_another_size_and_another_picture(folder):
    (folder / "images" / "007.jpg").write_bytes(jpeg(0, (13, 10)))
    data = opened(folder)
    assert data.truth(0, square((13, 10))).object == [True, True, False, True]
    (folder / "images" / "007.jpg").write_bytes(jpeg(0, (30, 40)))
    with pytest.raises(DataError) as caught:
        opened(folder).truth(0, square((30, 40)))
    assert caught.value.what == "007.jpg: its boxes are of 40 x 30 pixels, and it has 30 x 40"
    (folder / "images" / "007.jpg").unlink()
    with pytest.raises(Unusable, match="no image 007.jpg"):
        opened(folder).truth(0, square((30, 40)))


def changed(key, number, **values):
    document = coco()
    one = {**document[key][number], **values}
    document[key][number] = {name: value for name, value in one.items() if value is not None}
    return document


HUGE = {"image_id": 7, "category_id": 1, "bbox": [1e300, 0, 1, 1]}


@pytest.mark.parametrize(
    ("document", "key", "what"),
    [
        ({}, "", "instances.json has no list 'images'"),
        ([], "", "instances.json has no list 'images'"),
        (coco(annotations={}), "", "annotations must be a list, and begins with '{'"),
        (changed("images", 1, width=None), "images.1", "lacks 'width'"),
        (changed("images", 1, width=0), "images.1.width", "must be a whole number of at least 1, got 0"),
        (changed("images", 1, id="a"), "images.1.id", "must be a whole number of at least 0, got 'a'"),
        (changed("images", 1, id=True), "images.1.id", "must be a whole number of at least 0, got True"),
        (changed("images", 1, id=7), "images.1.id", "is that of an earlier one: 7"),
        (changed("images", 1, file_name=5), "images.1.file_name", "must be text, got 5"),
        (changed("annotations", 2, bbox=None), "annotations.2", "lacks 'bbox'"),
        (changed("annotations", 2, bbox=[1, 2, 3]), "annotations.2.bbox",
         "must be a list of 4: a number, a number, a number, a number, got [1, 2, 3]"),
        (changed("annotations", 2, bbox="1234"), "annotations.2.bbox", "must be a list of 4"),
        (changed("annotations", 2, bbox=[1, 2, "3", 4]), "annotations.2.bbox.2", "must be a number, got '3'"),
        (coco([HUGE]), "annotations.4", "has a number that is out of range"),
        (changed("annotations", 2, iscrowd=2), "annotations.2.iscrowd", "must be one of 0, 1, got 2"),
        (changed("annotations", 2, image_id=8), "annotations.2.image_id", "is 8, and no element of images has that id"),
        (changed("annotations", 2, category_id=99), "annotations.2.category_id",
         "is 99, and no element of categories has that id"),
        (coco(annotations=[5]), "annotations.0", "must be a mapping, got 5"),
        (coco(categories=[{"id": 1, "name": ["dog"]}]), "categories.0.name", "must be text, got ['dog']"),
        (coco(categories=[]), "annotations.0.category_id", "is 90, and no element of categories has that id"),
        (coco(annotations=[]), "", "no picture has a box with a name"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_of_coco(folder, document, key, what):
    path = written(folder, document)
    with pytest.raises(DataError) as caught:
        opened(folder)
    assert what in caught.value.what
    assert (f"{key} " in caught.value.what) or not key
    assert caught.value.at == f"{path}  {key}".strip()
    assert caught.value.fix


def test_what_is_wrong_with_captions(folder):
    path = written(folder, {"annotations": [{"image_id": 7, "caption": 3}]}, "captions.json")
    with pytest.raises(DataError, match=r"captions.json is damaged: annotations.0.caption must be text, got 3"):
        opened(folder, captions=path)


def test_files_that_are_not_there(folder):
    with pytest.raises(DataError, match="no image folder"):
        CocoBoxes(str(folder / "instances.json"), str(folder / "none"))
    with pytest.raises(DataError, match=r"no file .*none.json"):
        CocoBoxes(str(folder / "none.json"))


# Visual Genome


def thing(names, x, y, w, h):
    return {
        "object_id": 1,
        "merged_object_ids": [],
        "synsets": ["a.n.01"],
        "names": names,
        "x": x,
        "y": y,
        "w": w,
        "h": h,
    }


VG = [
    {"image_id": 7, "objects": [thing(["tree trunk", "trunk"], 0, 0, 20, 15), thing(["Tree"], -1, -1, 41, 40)],
     "image_url": "https://cs.stanford.edu/people/rak248/VG_100K_2/7.jpg"},
    {"image_id": 9, "objects": []},
    {"image_id": 3, "objects": [thing([], 0, 0, 30, 40), thing(["man"], 15, 0, 15, 20)]},
]  # fmt: skip


@pytest.fixture
def genome(tmp_path):
    for part, id_ in (("VG_100K", 7), ("VG_100K_2", 3)):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{id_}.jpg").write_bytes(jpeg(id_, SIZES[id_]))
    return tmp_path


def objects(genome, document=VG, **args):
    return VisualGenomeBoxes(written(genome, document, "objects.json"),
                             [str(genome / "VG_100K"), str(genome / "VG_100K_2")], **args)  # fmt: skip


def test_visual_genome(genome):
    data = objects(genome)
    assert [(record.id, record.caption) for record in data] == [("7@0", "tree, tree trunk"), ("3@1", "man")]
    assert is_picture(data.image(data[1].images[0]), 3, "JPEG", (30, 40))
    truth = data.truth(data[0].images[0], square((40, 30)))
    assert truth.words == [("tree trunk", "trunk"), *[("tree",)] * 3]
    truth = data.truth(data[1].images[0], square((30, 40)))
    assert truth.words == [(), ("man",), (), ()]
    assert truth.object == [None, True, None, None]  # something is there that nobody named


def test_visual_genomes_own_aliases(genome):
    (genome / "object_alias.txt").write_text("tree,trees,a tree\n")
    data = objects(genome, aliases=str(genome / "object_alias.txt"))
    assert data.truth(data[0].images[0], square((40, 30))).words[1] == ("tree", "trees", "a tree")


@pytest.mark.parametrize(
    ("document", "key", "what"),
    [
        ({"image_id": 7}, "", "objects.json is no list"),
        ([VG[0], {"image_id": 7}], "1", "lacks 'objects'"),
        ([VG[0], VG[0]], "1.image_id", "is that of an earlier one: 7"),
        ([{"image_id": 7, "objects": {}}], "0.objects", "must be a list of a mapping, got {}"),
        ([{"image_id": 7, "objects": [thing("tree", 0, 0, 1, 1)]}], "0.objects.0.names", "must be a list of text"),
        ([{"image_id": 7, "objects": [thing([5], 0, 0, 1, 1)]}], "0.objects.0.names.0", "must be text, got 5"),
        ([{"image_id": 7, "objects": [thing(["a"], 0, None, 1, 1)]}], "0.objects.0.y", "must be a number, got None"),
        ([], "", "no picture has a box with a name"),
    ],
)
def test_what_is_wrong_with_a_file_of_visual_genome(genome, document, key, what):
    with pytest.raises(DataError) as caught:
        objects(genome, document)
    assert what in caught.value.what
    assert caught.value.at == f"{genome / 'objects.json'}  {key}".strip()


def test_a_box_of_no_area_in_visual_genome(genome, caplog):
    document = [*VG, {"image_id": 12, "objects": [thing(["cat"], 0, 0, 4, 4), thing(["dog"], 3, 3, 0, 4)]}]
    with caplog.at_level(logging.WARNING):
        objects(genome, document)
    assert caplog.records[0].message.endswith("objects.json: 1 boxes have no area in their picture and show nothing, "
                                              "the first is 3.objects.1")  # fmt: skip
