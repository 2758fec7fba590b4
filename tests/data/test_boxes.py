"""Images with boxes: COCO's files, Pascal VOC's in a folder and in an archive, shards, and what is refused."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.datasets import open_split
from resnet_jax.data.formats.voc import parse_xml
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.prepare import prepare_data
from resnet_jax.data.source import ChangedDataError, source_digest
from resnet_jax.errors import InputError

HERE = Path()
OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox>{}</bndbox></object>"


def corners(*box):
    return "".join(
        f"<{name}>{value}</{name}>" for name, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )


def annotation(*objects):
    return (
        f"<annotation>{''.join(OBJECT.format(name, hard, corners(*box)) for name, hard, *box in objects)}</annotation>"
    )


@pytest.fixture
def voc(tmp_path):
    """Three training images of 30 x 20 pixels and a test image."""
    root = tmp_path / "cells"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for place in range(4):
        Image.fromarray(np.full((20, 30, 3), place, np.uint8)).save(root / "JPEGImages" / f"{place}.jpg")
        text = annotation(("red", 0, 1, 1, 10, 20), ("white", place % 2, 5, 6, 5, 6))
        (root / "Annotations" / f"{place}.xml").write_text(text if place else annotation())
    (root / "ImageSets/Main/train.txt").write_text("0\n1\n2\n")
    (root / "ImageSets/Main/val.txt").write_text("3\n")
    return root


def test_pascal_voc_counts_pixels_from_1_and_an_archive_is_the_same(voc):
    archive = Path(shutil.make_archive(str(voc), "zip", voc.parent, "cells"))
    for path in (voc, archive):
        source = pickle.loads(pickle.dumps(open_split(f"voc_boxes:{path}", "train", HERE)))
        assert (source.size, source.classes, len(source.read(0).target.labels)) == (3, ("red", "white"), 0)
        found = source.read(1).target
        assert found.boxes.tolist() == [[0, 0, 10, 20], [4, 5, 5, 6]]
        assert (found.labels.tolist(), found.crowd.tolist(), found.area.tolist()) == ([0, 1], [False, True], [200, 1])
        assert open_split(f"voc_boxes:{path}", "test", HERE).size == 1


def test_the_archive_of_bccd_is_read_as_it_is(real_data):
    half = Preprocessing(image_size=(240, 320))
    sizes = {
        split: open_split("voc_boxes:bccd.zip", split, real_data, preprocessing=half) for split in ("train", "test")
    }
    assert {split: source.size for split, source in sizes.items()} == {"train": 205, "test": 72}
    source = sizes["test"]
    assert (source.classes, source.read(0).image.shape) == (("Platelets", "RBC", "WBC"), (240, 320, 3))
    assert source.read(0).target.boxes[0].tolist() == [96, 45.5, 193.5, 142.5]
    # As counted from the XML files themselves
    labels = np.concatenate([source.read(index).target.labels for index in range(72)])
    assert np.bincount(labels).tolist() == [69, 805, 71]


BOMB = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
FAULTS = [
    (annotation(("red", 0, 1, 1, 33, 9)), r"2\.xml: object 1 has the box 0, 0, 33, 9, outside its image of 30 x 20"),
    (annotation(("red", 0, 1, 1, 3, 9), ("white", 0, 5, 5, 4, 9)), r"2\.xml: object 2 has the box 4, 4, 4, 9, of no"),
    (annotation(("blue", 0, 1, 1, 3, 9)), r"2\.xml: object 1 is 'blue', which is not a class: red, white"),
    (annotation(("red", 0, 1, "x", 3, 9)), r"2\.xml: not an annotation that can be read \(could not convert string"),
    (annotation(("red", 0, 1, "nan", 3, 9)), "outside its image"),
    ("<annotation>", r"2\.xml: not an annotation that can be read \(not XML: no element found"),
    (BOMB, r"2\.xml: not an annotation that can be read \(it has a document type declaration, which is not allowed\)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_an_annotation_that_does_not_fit_is_named(voc, text, message):
    (voc / "classes.txt").write_text("red\nwhite\n")
    (voc / "Annotations/2.xml").write_text(text)
    source = open_split(f"voc_boxes:{voc}", "train", HERE)
    assert source.read(1).target.labels.tolist() == [0, 1]
    with pytest.raises(InputError, match=message):
        source.read(2)


def test_an_annotation_that_is_missing_is_named(voc):
    (voc / "Annotations/2.xml").unlink()
    with pytest.raises(InputError, match=r"Annotations/2\.xml: no such file"):
        open_split(f"voc_boxes:{voc}", "train", HERE).read(2)


def test_an_archive_that_is_replaced_is_not_the_one_that_was_opened(voc):
    archive = shutil.make_archive(str(voc), "zip", voc.parent, "cells")
    source = open_split(f"voc_boxes:{archive}", "train", HERE)
    digest = source_digest(source)
    (voc / "Annotations/1.xml").write_text(annotation(("red", 0, 1, 1, 9, 20)))
    shutil.make_archive(str(voc), "zip", voc.parent, "cells")
    with pytest.raises(ChangedDataError, match=r"cells\.zip: changed since this data set was opened"):
        source.read(1)
    assert source_digest(open_split(f"voc_boxes:{archive}", "train", HERE)) != digest


def test_no_entity_hides_in_another_encoding():
    with pytest.raises(ValueError, match="document type"):
        parse_xml(BOMB.encode("utf-16"))


@pytest.fixture
def coco(tmp_path):
    values = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}],
        "categories": [{"id": 44, "name": "cat"}, {"id": 2, "name": "bus"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 44, "bbox": [1, 2, 4, 5], "area": 9.5, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 8, 8], "area": 60, "iscrowd": 1},
            {"id": 5, "image_id": 3, "category_id": 2, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0},
        ],
    }
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        for name in "ab":
            Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(tmp_path / split / f"{name}.jpg")
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(values))
    return tmp_path, values


def test_instances_of_coco(coco):
    root, _ = coco
    for split in ("train", "test"):
        source = pickle.loads(pickle.dumps(open_split(f"coco:{root}", split, HERE)))
        assert (source.size, source.classes) == (2, ("bus", "cat"))
        crowd, two = source.read(0).target, source.read(1).target
        assert (crowd.crowd.tolist(), crowd.area.tolist()) == ([True], [60])
        assert (two.labels.tolist(), two.boxes.tolist()) == ([1, 0], [[1, 2, 5, 7], [0, 0, 2, 2]])


COCO_FAULTS = [
    ({"image_id": 99}, r"instances_train2017\.json: annotation 1 is of image 99, which is not listed"),
    ({"category_id": 9}, r"instances_train2017\.json: annotation 1 of b\.jpg has a category that the file does"),
    ({"bbox": [1, 2, 0, 5]}, r"instances_train2017\.json: b\.jpg: annotation 1 has the box 1, 2, 1, 7, of no"),
    ({"bbox": [1, 2, 20, 5]}, "annotation 1 has the box 1, 2, 21, 7, outside its image of 12 x 10 pixels"),
    ({"bbox": [1, 2]}, r"not COCO's instances \("),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), COCO_FAULTS)
def test_an_instance_that_does_not_fit_is_named(coco, change, message):
    root, values = coco
    values["annotations"][0] |= change
    (root / "annotations/instances_train2017.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        open_split(f"coco:{root}", "train", HERE).read(1)


def test_shards_have_the_boxes_of_the_files(voc, tmp_path):
    prepare_data(f"voc_boxes:{voc}", tmp_path / "packed", num_threads=1)
    packed, files = (open_split(f"{kind}", "train", tmp_path) for kind in ("array_record:packed", f"voc_boxes:{voc}"))
    assert packed.classes == files.classes
    assert source_digest(packed) == source_digest(open_split("array_record:packed", "train", tmp_path))
    for index in range(3):
        for ours, theirs in zip(packed.read(index).target, files.read(index).target, strict=True):
            np.testing.assert_array_equal(ours, theirs)
