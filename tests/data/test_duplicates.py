"""Images that are in two splits are found, whatever their names."""

import shutil

import numpy as np
from PIL import Image

from resnet_jax.data.duplicates import Duplicate, are_quickly_compared, duplicates, duplicates_note
from resnet_jax.data.formats.folder import image_folder
from resnet_jax.data.source import Example, Source, from_arrays, subset

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 3, 4, 1), np.uint8)


def arrays(*numbers):
    return from_arrays(IMAGES[list(numbers)], np.zeros(len(numbers), int), ["a"])


def test_arrays_are_compared_by_their_pixels():
    train, held = arrays(0, 1, 2, 1), arrays(5, 1, 2)
    assert duplicates(train, held) == [Duplicate(1, 1), Duplicate(2, 2)]
    assert duplicates_note(train, held, "test") == (
        "2 of 3 test images are in the training split as well, such as test example 1 is train example 1"
    )
    assert duplicates_note(train, arrays(7, 8), "test") == ""
    # The same bytes of another shape are another image
    turned = from_arrays(IMAGES[1:2].reshape(1, 4, 3, 1), np.zeros(1, int), ["a"])
    assert duplicates(train, turned) == []
    assert are_quickly_compared(subset(train, np.array([0])), held)
    assert not are_quickly_compared(train, Source(1, ("a",), lambda index: Example(IMAGES[0], 0)))
    assert not are_quickly_compared(subset(train, np.zeros(10**6, int)), held)


def test_files_are_compared_by_their_bytes(tmp_path):
    for split, numbers in (("train", range(6)), ("val", range(6, 9))):
        for of_class in "ab":
            (tmp_path / split / of_class).mkdir(parents=True)
            for number in numbers:
                pixels = IMAGES[number] if of_class == "a" else 255 - IMAGES[number]
                Image.fromarray(pixels[..., 0]).save(tmp_path / split / of_class / f"{number}.png")
    shutil.copy(tmp_path / "train/b/3.png", tmp_path / "val/a/copy.png")
    (tmp_path / "val/a/gone.png").symlink_to("nowhere")
    train, held = (image_folder(split, tmp_path, ".") for split in ("train", "test"))
    assert duplicates_note(train, held, "test") == (
        "1 of 8 test images are in the training split as well, such as test a/copy.png is train b/3.png"
    )
    assert not are_quickly_compared(train, held)
