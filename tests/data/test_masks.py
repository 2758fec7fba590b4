"""Images with masks: files, what is wrong with them, shards, and crops that move both."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from squares import draw, write, write_splits

from resnet_jax.cli.main import main
from resnet_jax.data.augment.host_crop import crop_reader
from resnet_jax.data.datasets import open_split
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.masks import decode_mask, encode_mask, overlay, palette
from resnet_jax.data.source import MissingSplitError, to_arrays
from resnet_jax.errors import InputError
from resnet_jax.recipe import Augment, Data, Loss, Recipe, check
from resnet_jax.training.sources import open_sources

HERE = Path("nowhere")


@pytest.fixture
def masks(tmp_path):
    """Eight training and four test images, in folders of images and masks."""
    return write_splits(tmp_path / "data")


def expected(index):
    image, mask = draw(index)
    return image, np.where(mask == 2, 255, mask)


def test_folders_of_images_and_masks(masks):
    train, test = (open_split(f"masks:{masks}", split, HERE) for split in ("train", "test"))
    assert (train.size, test.size, train.classes) == (8, 4, ("around", "rectangle"))
    images, targets = to_arrays(pickle.loads(pickle.dumps(train)))
    assert targets.dtype == np.uint8
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        for found, made in zip((image, target), expected(index), strict=True):
            np.testing.assert_array_equal(found, made)
    np.testing.assert_array_equal(test.read(0).target, expected(8)[1])


def test_masks_are_resized_without_mixing_classes(masks):
    half = open_split(f"masks:{masks}", "train", HERE, preprocessing=Preprocessing(image_size=(6, 8)))
    image, target = half.read(0)
    assert (image.shape, target.shape) == ((6, 8, 3), (6, 8))
    assert set(np.unique(target)) <= {0, 1, 255}
    sure = target != 255
    assert ((image.mean(-1) > 120) == (target == 1))[sure].mean() > 0.8


def test_a_padded_image_is_whole_and_its_padding_has_no_label(masks):
    padded = Preprocessing(image_size=16, crop_mode="border", mean=(0.5,))
    image, target = open_split(f"masks:{masks}", "train", HERE, preprocessing=padded).read(0)
    for found, made, fill in zip((image, target), expected(0), (128, 255), strict=True):
        np.testing.assert_array_equal(found[2:14], made)
        assert (found[[0, 1, 14, 15]] == fill).all()
    unknown = Preprocessing(crop_mode="border")
    with pytest.raises(InputError, match=r"crop_mode and interpolation need data\.image_size"):
        open_split(f"masks:{masks}", "train", HERE, preprocessing=unknown)


def test_folders_as_camvid_has_them(tmp_path, real_data):
    for split in ("train", "val", "test"):
        write(tmp_path, (tmp_path / split, tmp_path / f"{split}annot"))
    train, test = (open_split(f"masks:{tmp_path}", split, HERE) for split in ("train", "test"))
    np.testing.assert_array_equal(train.read(3).target, expected(3)[1])
    assert test.notes == (
        f"the test split is test of {tmp_path}: not val; data.test_split (prepare: --test-split) chooses",
    )
    (tmp_path / "classes.txt").unlink()
    names = open_split(f"masks:{tmp_path}", "train", HERE).classes
    assert (len(names), names[0], names[-1]) == (11, "sky", "bicyclist")
    camvid = open_split(f"masks:{real_data / 'camvid'}", "test", HERE)
    assert (camvid.size, camvid.read(0).target.shape, set(np.unique(camvid.read(0).target)) - {*range(11)}) == (
        233,
        (360, 480),
        {255},
    )


def test_pascal_voc_has_palettes_and_lists(tmp_path):
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    mask = np.array([[0, 1, 20, 255]] * 3, np.uint8)
    for stem in ("2007_000032", "2007_000039"):
        Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(tmp_path / "JPEGImages" / f"{stem}.jpg")
        (tmp_path / "SegmentationClass" / f"{stem}.png").write_bytes(encode_mask(mask, palette(21)))
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("2007_000032\n2007_000039\n")
    source = open_split(f"voc:{tmp_path}", "train", HERE)
    assert (source.size, len(source.classes), source.classes[15]) == (2, 21, "person")
    np.testing.assert_array_equal(source.read(1).target, mask)
    with pytest.raises(MissingSplitError, match=r"val\.txt: no such list; expected VOC's JPEGImages, Segment"):
        open_split(f"voc:{tmp_path}", "test", HERE)


def test_masks_are_written_without_loss():
    mask = np.random.default_rng(0).integers(0, 256, (5, 7)).astype(np.uint8)
    colors = palette(30)
    assert len(np.unique(colors[:30], axis=0)) == 30
    for content in (encode_mask(mask), encode_mask(mask, colors)):
        np.testing.assert_array_equal(decode_mask(content, "mask"), mask)
    shown = overlay(np.full((5, 7, 1), 100, np.uint8), mask, colors)
    assert (shown[mask == 255] == 100).all()
    assert (shown[mask == 3] == np.round(45 + 0.55 * colors[3])).all()


BROKEN = [
    (lambda root: (root / "masks/train/02.png").unlink(), r"images/train/02\.png: has no mask of this name; add it"),
    (lambda root: (root / "images/train/02.png").unlink(), r"masks/train/02\.png: has no image of this name; add it,"),
    (lambda root: Image.fromarray(np.zeros((12, 15), np.uint8)).save(root / "masks/train/02.png"),
     r"masks/train/02\.png: the mask has 12 x 15 pixels, its image 12 x 16; they must have the same size"),
    (lambda root: Image.fromarray(np.full((12, 16), 9, np.uint8)).save(root / "masks/train/02.png"),
     r"masks/train/02\.png: class 9 in the mask, expected 0 to 2 or 255 for no label; correct the mask or the classes"),
    (lambda root: Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(root / "masks/train/02.png"),
     r"masks/train/02\.png: not a mask that can be read \(RGB pixels, but masks have one channel, of classes\)"),
    (lambda root: (root / "masks/train/02.png").write_bytes(b"\x89PNG"),
     r"masks/train/02\.png: not a mask that can be read \("),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_an_example_that_does_not_fit_is_named_and_replaced_like_a_bad_image(masks, damage, message):
    damage(masks)
    recipe = check(
        Recipe(
            data=Data(name=f"masks:{masks}", image_size=(12, 16)),
            augment=Augment(crop_padding=0),
            loss=Loss(name="pixel_cross_entropy"),
        )
    )
    sources = open_sources(recipe, HERE)
    with pytest.raises(InputError, match=message):
        sources.train.read(2)
    sources.train.read(3)
    # In the split that a run is evaluated on it is refused before anything is written
    with pytest.raises(InputError, match=message):
        to_arrays(open_split(f"masks:{masks}", "train", HERE, preprocessing=Preprocessing(image_size=(12, 16))))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "classes.txt").unlink(), "no classes.txt; name the classes in it, one on a line, in the"),
        (lambda root: (root / "classes.txt").write_text("a\na\n"), "classes.txt: 2 names; give 1 to 255 different one"),
        (lambda root: (root / "masks/train").rename(root / "masks/elsewhere"), "masks/train: no such folder; expected"),
        (lambda root: (root / "images/train").rename(root / "images/training"), "no images/train/ in this folder; exp"),
        (lambda root: (root / "images/train/02.jpg").write_bytes(b""), r"02\.png: 02\.jpg has the same name; remove"),
    ],
)
def test_folders_that_lack_something_are_refused_in_one_line(masks, damage, message):
    damage(masks)
    with pytest.raises(InputError, match=message):
        open_split(f"masks:{masks}", "train", HERE)


def test_shards_hold_masks_without_loss(masks, tmp_path, capsys):
    packed = tmp_path / "packed"
    assert main(["prepare", f"masks:{masks}", str(packed), "--shards", "2"]) == 0
    assert "train: 8 images" in capsys.readouterr().out
    for split in ("train", "test"):
        plain, again = (open_split(name, split, HERE) for name in (f"masks:{masks}", f"array_record:{packed}"))
        assert again.classes == plain.classes
        for ours, theirs in zip(to_arrays(again), to_arrays(plain), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert main(["prepare", f"masks:{masks}", str(tmp_path / "small"), "--size", "6"]) == 0
    small = open_split(f"array_record:{tmp_path / 'small'}", "train", HERE)
    assert {example.target.shape for example in map(small.read, range(8))} == {(6, 8)}
    Image.fromarray(np.full((12, 16), 9, np.uint8)).save(masks / "masks/train/02.png")
    assert main(["prepare", f"masks:{masks}", str(tmp_path / "other")]) == 2
    assert "class 9 in the mask" in capsys.readouterr().err


def test_a_random_crop_of_the_original_takes_the_same_box_of_the_mask(masks):
    source = open_split(f"masks:{masks}", "train", HERE)
    read = crop_reader(source, seed=1, size=(10, 10), area=(0.3, 0.6))
    boxes = [read(index, position) for index in range(8) for position in range(3)]
    assert {(e.image.shape, e.target.shape) for e in boxes} == {((10, 10, 3), (10, 10))}
    same = [((e.image.mean(-1) > 120) == (e.target == 1))[e.target != 255].mean() for e in boxes]
    assert np.mean(same) > 0.9
    other = crop_reader(source, seed=2, size=(10, 10), area=(0.3, 0.6))
    assert not np.array_equal(other(0, 0).target, boxes[0].target)


def test_an_image_size_has_one_number_or_two():
    recipe = Recipe(data=Data(name="masks:x", image_size=(12, 16)))
    assert check(recipe) == recipe
    with pytest.raises(InputError, match=r"data.image_size is \(1, 2, 3\); give one number, or height and width"):
        check(dataclasses.replace(recipe, data=Data(image_size=(1, 2, 3))))
    with pytest.raises(InputError, match=r"data.image_size is \(0, 2\); it must be positive"):
        check(dataclasses.replace(recipe, data=Data(image_size=(0, 2))))
