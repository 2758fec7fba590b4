"""Folders of image files: layouts, order, every kind of file, and what is wrong with them."""

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import quietly

from resnet_jax.data.datasets import found_in, open_split
from resnet_jax.data.formats.folder import CHOOSE, image_folder
from resnet_jax.data.image import Preprocessing, decode
from resnet_jax.data.resize import resize_crop
from resnet_jax.data.selection import Selection
from resnet_jax.data.source import to_arrays
from resnet_jax.errors import InputError
from resnet_jax.inference.evaluate import evaluate
from resnet_jax.recipe import Data
from resnet_jax.training.sources import open_sources

RGB = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)


def put(path, level=0, size=(10, 12)):
    """An image of one grey level, so that it can be told from others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path)


def layout(root, test="val", count=4, classes=("ant", "bee")):
    """`count` images of each class in both splits; the levels count up from 0."""
    for split in ("train", test):
        for index in range(count * len(classes)):
            put(root / split / classes[index // count] / f"{index:03}.png", index)
    return root


def levels(source):
    return [int(source.read(index).image[0, 0, 0]) for index in range(source.size)]


@pytest.mark.parametrize("test", ["val", "valid", "validation", "test"])
def test_layouts(tmp_path, test):
    layout(tmp_path / "pets", test)
    for split in ("train", "test"):
        source = open_split("folder:pets", split, tmp_path, preprocessing=Preprocessing(image_size=8))
        assert (source.size, source.classes) == (8, ("ant", "bee"))
        images, labels = to_arrays(source)
        assert (images.dtype, images.shape) == (np.uint8, (8, 8, 8, 3))
        assert (labels.dtype, labels.tolist()) == (np.int32, [0] * 4 + [1] * 4)


def test_a_test_folder_goes_before_val(tmp_path):
    layout(tmp_path, "val")
    layout(tmp_path, "test", count=1)
    assert image_folder("test", Path(), str(tmp_path), Preprocessing(image_size=8)).size == 2


def test_a_test_folder_that_is_flat_or_empty_or_of_other_classes_leaves_val_usable(tmp_path):
    layout(tmp_path, "val")
    for case in ("flat", "empty", "unlabelled"):
        test = tmp_path / "test"
        test.mkdir()
        if case == "flat":
            put(test / "1.png")
        for name in {"flat": (), "empty": ("ant", "bee"), "unlabelled": ("unknown",)}[case]:
            (test / name).mkdir()
        if case == "unlabelled":
            put(test / "unknown" / "1.png")
        source = open_split("folder:.", "test", tmp_path)
        assert levels(source) == list(range(8))
        assert source.notes[0].startswith(f"the test split is {tmp_path / 'val'}: {test}"), case
        assert open_split("folder:.", "train", tmp_path).size == 8
        shutil.rmtree(test)
    assert open_split("folder:.", "test", tmp_path).notes == ()


def test_the_folder_to_test_on_is_said_and_can_be_chosen(tmp_path, tiny):
    layout(tmp_path, "val")
    layout(tmp_path, "test", count=1)
    source = open_split("folder:.", "test", tmp_path)
    assert source.notes == (f"the test split is {tmp_path / 'test'}: not val/; {CHOOSE}",)
    recipe = replace(tiny, data=Data(name="folder:.", test_split="val"))
    sources = open_sources(recipe, tmp_path)
    assert (sources.evaluation.size, sources.notes()) == (8, ())
    held = open_sources(replace(recipe, data=Data(name="folder:.", num_validation=2)), tmp_path)
    assert (held.evaluation.size, held.notes()) == (2, ())
    with pytest.raises(InputError, match=r"tset: no such folder; expected train/CLASS"):
        open_split("folder:.", "test", tmp_path, test_split="tset")
    with pytest.raises(
        InputError, match=r"data.test_split is val; digits has only one test split; leave data.test_split"
    ):
        open_split("digits", "test", tmp_path, test_split="val")


def test_files_that_are_passed_over_are_counted(tmp_path):
    layout(tmp_path, count=2)
    for name in ("ant/a.heic", "ant/deep/b.heic", "bee/notes.txt", "loose.png", "ant/.hidden"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"")
    message = f"{tmp_path / 'train'}: skipped 4 files that are not examples of a class: 2 .heic"
    for split in ("train", "validation"):
        (note,) = open_split("folder:.", split, tmp_path, Selection(1)).notes
        assert note.startswith(message)
    assert open_split("folder:.", "test", tmp_path).notes == ()


def test_less_common_suffixes_are_read(tmp_path):
    folder = tmp_path / "train" / "all"
    folder.mkdir(parents=True)
    for suffix, kind in {"jfif": "JPEG", "jpe": "JPEG", "avif": "AVIF", "ppm": "PPM", "jp2": "JPEG2000"}.items():
        Image.fromarray(RGB).save(folder / f"a.{suffix}", kind)
    Image.fromarray(RGB[..., 0]).save(folder / "a.PGM", "PPM")
    images, _ = to_arrays(image_folder("train", tmp_path, "."))
    assert images.shape == (6, 12, 10, 3)


def test_the_order_is_that_of_the_names(tmp_path):
    names = ("b/10.png", "b/2.png", "b/A.PNG", "b/a/z.png", "b/a1.png", "c/0.png")
    for level, name in reversed(list(enumerate(names))):
        put(tmp_path / "train" / name, level)
    source = image_folder("train", tmp_path, ".", Preprocessing(image_size=8))
    assert levels(source) == list(range(6))
    assert [source.read(index).target for index in range(6)] == [0, 0, 0, 0, 0, 1]


def test_hidden_and_other_files_are_passed_over(tmp_path):
    layout(tmp_path)
    for name in ("ant/.hidden.png", "ant/.checkpoints/a.png", ".checkpoints/a.png", "a.png"):
        put(tmp_path / "train" / name, 99)
    (tmp_path / "train" / "bee" / "notes.txt").write_text("no image")
    assert levels(image_folder("train", tmp_path, ".")) == list(range(8))


def test_links_are_followed_once(tmp_path):
    layout(tmp_path / "elsewhere", count=2)
    (tmp_path / "train" / "ant").mkdir(parents=True)
    (tmp_path / "train" / "ant" / "more").symlink_to(tmp_path / "elsewhere" / "train" / "ant")
    (tmp_path / "train" / "ant" / "loop").symlink_to(tmp_path / "train" / "ant")
    (tmp_path / "train" / "bee").symlink_to(tmp_path / "elsewhere" / "train" / "bee")
    assert levels(image_folder("train", tmp_path, ".")) == [0, 1, 2, 3]


def test_every_kind_of_file_becomes_rgb_of_the_size(tmp_path):
    kinds = {"L": "jpg", "CMYK": "jpeg", "RGBA": "png", "P": "gif", "1": "tif", "LA": "PNG", "RGB": "webp"}
    folder = tmp_path / "train" / "all"
    folder.mkdir(parents=True)
    for mode, suffix in kinds.items():
        Image.fromarray(RGB).convert(mode).save(folder / f"{mode}.{suffix}")
    Image.fromarray(np.linspace(0, 65535, 120).reshape(12, 10).astype(np.uint16)).save(folder / "deep.tiff")
    Image.fromarray(RGB).save(folder / "windows.BMP")
    images, _ = to_arrays(image_folder("train", tmp_path, ".", Preprocessing(image_size=8)))
    assert (images.dtype, images.shape) == (np.uint8, (9, 8, 8, 3))
    assert all(20 < image.mean() < 235 for image in images)


def test_images_are_upright_and_as_prediction_sees_them(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    (tmp_path / "train" / "a").mkdir(parents=True)
    path = tmp_path / "train" / "a" / "turned.png"
    Image.fromarray(RGB).save(path, exif=exif.tobytes())
    np.testing.assert_array_equal(image_folder("train", tmp_path, ".").read(0).image, np.rot90(RGB, -1))
    small = image_folder("train", tmp_path, ".", Preprocessing(image_size=8)).read(0).image
    np.testing.assert_array_equal(small, resize_crop(decode(path, 3), 8, 8))


def test_one_size_needs_no_size(tmp_path):
    layout(tmp_path)
    assert to_arrays(open_split("folder:.", "train", tmp_path))[0].shape == (8, 12, 10, 3)


def test_several_sizes_need_one(tmp_path):
    layout(tmp_path, count=50)
    put(tmp_path / "train" / "bee" / "zzz.png", size=(7, 6))
    with pytest.raises(InputError, match=r"train: images of 12 x 10 and 6 x 7 pixels; set data.image_size"):
        open_split("folder:.", "train", tmp_path)
    (tmp_path / "train" / "bee" / "zzz.png").unlink()
    put(tmp_path / "train" / "ant" / "001.png", size=(7, 6))  # which no quick look finds
    with pytest.raises(InputError, match=r"images of 12 x 10 and 6 x 7 pixels; set data.image_size"):
        to_arrays(open_split("folder:.", "train", tmp_path))
    assert to_arrays(open_split("folder:.", "train", tmp_path, preprocessing=Preprocessing(image_size=5)))[0].shape == (
        100,
        5,
        5,
        3,
    )


def test_splits_of_different_sizes_need_one(tmp_path, tiny):
    layout(tmp_path)
    put(tmp_path / "val" / "ant" / "000.png", size=(7, 6))
    for path in (tmp_path / "val").rglob("*.png"):
        put(path, size=(7, 6))
    with pytest.raises(InputError, match=r"folder:\.: the splits have images of different sizes; set data.image_size"):
        open_sources(replace(tiny, data=Data(name="folder:.")), tmp_path)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("train/cat/a.png", r"val: no class 'cat', which .*train has; give both the same class folders"),
        ("val/cat/a.png", r"train: no class 'cat', which .*val has; give both the same class folders"),
    ],
)
def test_classes_must_agree(tmp_path, extra, message):
    layout(tmp_path)
    put(tmp_path / extra)
    for split in ("train", "test"):
        with pytest.raises(InputError, match=message):
            image_folder(split, tmp_path, ".", Preprocessing(image_size=8))


def test_an_empty_class_is_named(tmp_path):
    layout(tmp_path)
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir()
        (tmp_path / split / "cat" / "notes.txt").write_text("none yet")
    with pytest.raises(InputError, match=r"train/cat: no images here \(\.avif, .*; add some, or remove this folder"):
        image_folder("train", tmp_path, ".", Preprocessing(image_size=8))


def test_folders_of_another_layout(tmp_path):
    with pytest.raises(
        InputError, match=r"gone: no such folder, here or below .*expected train/CLASS/\*\.jpg and val/"
    ):
        open_split("folder:gone", "train", tmp_path)
    put(tmp_path / "flat" / "ant" / "a.png")
    with pytest.raises(InputError, match=r"flat: no train/ in this folder; expected train/CLASS/"):
        open_split("folder:flat", "train", tmp_path)
    put(tmp_path / "loose" / "train" / "a.png")
    with pytest.raises(InputError, match=r"loose/train: no folders of classes here; expected train/CLASS/"):
        open_split("folder:loose", "train", tmp_path)
    put(tmp_path / "half" / "train" / "ant" / "a.png")
    with pytest.raises(InputError, match=r"half: no val/ in this folder; .*or hold training images out with data.num_"):
        open_split("folder:half", "test", tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path):
    layout(tmp_path)
    put(tmp_path / "train" / "ant" / "closed" / "a.png")
    (tmp_path / "train" / "ant" / "closed").chmod(0)
    with pytest.raises(PermissionError):
        image_folder("train", tmp_path, ".", Preprocessing(image_size=8))
    (tmp_path / "train" / "ant" / "closed").chmod(0o700)


@pytest.mark.parametrize("name", ["folder", "folder:"])
def test_a_path_is_needed(tmp_path, name):
    with pytest.raises(InputError, match=f"data set '{name}' needs a path; give folder:PATH"):
        open_split(name, "train", tmp_path)


def test_other_data_sets_take_no_size(tmp_path):
    with pytest.raises(
        InputError, match=r"data.image_size is 16; all images of digits have the same size; leave data.image_size out"
    ):
        open_split("digits", "train", tmp_path, preprocessing=Preprocessing(image_size=16))
    with pytest.raises(InputError, match=r"unknown data set 'foldr:pets'; nearest: folder:PATH"):
        open_split("foldr:pets", "train", tmp_path)


def test_the_data_folder_goes_before_the_working_directory(tmp_path, monkeypatch):
    layout(tmp_path / "data" / "pets", count=1)
    layout(tmp_path / "pets", count=2)
    layout(tmp_path / "here", count=3)
    monkeypatch.chdir(tmp_path)
    for path, home, size in (("pets", "data", 2), ("here", "", 6), (tmp_path / "pets", "data", 4)):
        assert (
            open_split(f"folder:{path}", "train", Path("data"), preprocessing=Preprocessing(image_size=8)).size == size
        )
        assert found_in(f"folder:{path}", Path("data")) == Path(home)
    assert found_in("digits", Path("data")) == Path("data")


def test_sources_are_picklable_and_know_where_they_are(tmp_path, monkeypatch):
    layout(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    packed = pickle.dumps(
        open_split(
            "folder:pets", "train", Path("data"), selection=Selection(3), preprocessing=Preprocessing(image_size=8)
        )
    )
    (tmp_path / "pets" / "train" / "ant" / "late.png").write_bytes(b"")  # nothing is listed again
    monkeypatch.chdir("/")
    assert to_arrays(pickle.loads(packed))[0].shape == (5, 8, 8, 3)


def test_held_out_images(tmp_path):
    layout(tmp_path, count=10)
    parts = [
        levels(open_split("folder:.", split, tmp_path, Selection(5), Preprocessing(image_size=8)))
        for split in ("train", "validation")
    ]
    assert [len(part) for part in parts] == [15, 5]
    assert sorted(parts[0] + parts[1]) == list(range(20))
    with pytest.raises(InputError, match=r"data.num_validation is 20; folder:\. has 20 training images"):
        open_split("folder:.", "train", tmp_path, Selection(20), Preprocessing(image_size=8))


@pytest.mark.parametrize("cores", [1, 3, 64, None])
def test_threads_read_what_one_would(tmp_path, monkeypatch, cores):
    layout(tmp_path, count=30)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    source = image_folder("train", tmp_path, ".", Preprocessing(image_size=9))
    examples = [source.read(index) for index in range(source.size)]
    images, labels = to_arrays(source)
    np.testing.assert_array_equal(images, np.stack([example.image for example in examples]))
    np.testing.assert_array_equal(labels, [example.target for example in examples])
    assert images.flags.c_contiguous


def test_a_broken_image_is_named_the_first_of_several(tmp_path):
    layout(tmp_path, count=30)
    for index in (7, 8, 50):
        next((tmp_path / "train").rglob(f"{index:03}.png")).write_bytes(b"no image")
    with pytest.raises(InputError, match=r"train/ant/007\.png: not an image"):
        to_arrays(image_folder("train", tmp_path, ".", Preprocessing(image_size=8)))


def test_a_run_finds_its_images_again_and_knows_its_classes(tmp_path, tiny, monkeypatch):
    layout(tmp_path / "pets", count=8)
    recipe = replace(tiny, data=Data(name="folder:pets", image_size=8), steps=4)
    (tmp_path / "pets" / "train" / "ant" / "a.heic").write_bytes(b"")
    put(tmp_path / "pets" / "validation" / "ant" / "a.png")
    put(tmp_path / "pets" / "validation" / "bee" / "a.png")
    monkeypatch.chdir(tmp_path)
    result, said = quietly(recipe, tmp_path / "run", data_dir=Path("data"))
    assert "pets/train: skipped 1 files that are not examples of a class: 1 .heic" in said
    monkeypatch.chdir("/")
    step, values, notes, *_ = evaluate(tmp_path / "run", devices=1)
    assert notes == (f"the test split is {tmp_path}/pets/val: not validation/; {CHOOSE}",)
    assert (step, values["count"], values["errors"]) == (4, 16, result.rows[-1]["test/errors"])
    for split in ("train", "val"):
        (tmp_path / "pets" / split / "ant").rename(tmp_path / "pets" / split / "cat")
    with pytest.raises(InputError, match="run: trained on other classes or sizes than folder:pets has now"):
        evaluate(tmp_path / "run", devices=1)


def test_a_first_image_that_is_corrupt_is_replaced_by_the_next(tmp_path, tiny):
    layout(tmp_path)
    (tmp_path / "train" / "ant" / "000.png").write_bytes(b"no image")
    sources = open_sources(replace(tiny, data=Data(name="folder:.", image_size=8)), tmp_path)
    assert sources.dataset.image_shape == (8, 8, 3)


def test_real_photos(real_data):
    train, test = (
        open_split("folder:hymenoptera", split, real_data, preprocessing=Preprocessing(image_size=32))
        for split in ("train", "test")
    )
    assert train.classes == test.classes == ("ants", "bees")
    images, labels = to_arrays(train)
    assert images.shape == (244, 32, 32, 3)
    assert np.bincount(labels).tolist() == [123, 121]
    assert np.bincount(to_arrays(test)[1]).tolist() == [70, 83]
    assert 80 < images.mean() < 150
    with pytest.raises(InputError, match=r"hymenoptera/train: images of .* pixels; set data.image_size"):
        open_split("folder:hymenoptera", "train", real_data)


def test_a_damaged_image_is_left_to_the_training(tmp_path):
    """Where all images have one size and none is resized."""
    damaged = layout(tmp_path) / "train" / "ant" / "001.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    source = image_folder("train", tmp_path, ".")
    assert source.size == 8
    with pytest.raises(InputError, match=r"001\.png: not an image that can be read"):
        source.read(1)
