"""Data sets on board, and CIFAR-10 in its official layouts, whole, broken and hostile."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from resnet_jax.data.datasets import CIFAR10_CLASSES, CIFAR10_FILES, cifar10, digits, open_split, synthetic
from resnet_jax.data.source import from_arrays, to_arrays
from resnet_jax.errors import InputError

NAMES = [name for split in CIFAR10_FILES.values() for name in split]
SIZE = 10_000 * 3073


def binary_layout(folder, size=SIZE, leave_out=()):
    """Files of zeros, which take no room on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        if name not in leave_out:
            with (folder / f"{name}.bin").open("wb") as file:
                file.truncate(size)
    return folder


def test_digits(tmp_path):
    train, test = digits("train", tmp_path), digits("test", tmp_path)
    assert (train.size, test.size) == (1437, 360)
    assert train.classes == tuple("0123456789")
    images, labels = to_arrays(train)
    assert images.dtype == np.uint8
    assert images.shape == (1437, 8, 8, 1)
    assert (images.min(), images.max()) == (0, 255)
    assert set(labels) == set(range(10))
    assert not {e.tobytes() for e in images} & {e.tobytes() for e in to_arrays(test)[0]}


def test_synthetic_is_the_same_every_time(tmp_path):
    for split, size in (("train", 512), ("test", 128)):
        first, second = to_arrays(synthetic(split, tmp_path)), to_arrays(synthetic(split, tmp_path))
        assert first[0].shape == (size, 32, 32, 3)
        np.testing.assert_array_equal(first[0], second[0])


def test_sources_are_picklable(tmp_path):
    source = open_split("digits", "train", tmp_path, validation=100)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(5).image, source.read(5).image)


def test_held_out_images_are_always_the_same_and_in_one_split_only(tmp_path):
    parts = {s: to_arrays(open_split("digits", s, tmp_path, 400))[0] for s in ("train", "validation", "test")}
    assert {s: len(images) for s, images in parts.items()} == {"train": 1037, "validation": 400, "test": 360}
    both = np.concatenate([parts["train"], parts["validation"]])
    whole = to_arrays(digits("train", tmp_path))[0]
    assert sorted(e.tobytes() for e in both) == sorted(e.tobytes() for e in whole)
    again = to_arrays(open_split("digits", "validation", tmp_path, 400))[0]
    np.testing.assert_array_equal(parts["validation"], again)


@pytest.mark.parametrize("validation", [1437, 5000])
def test_holding_out_everything_is_refused(tmp_path, validation):
    with pytest.raises(InputError, match=f"data.validation is {validation}; digits has 1,437"):
        open_split("digits", "train", tmp_path, validation)


def test_unknown_names(tmp_path):
    with pytest.raises(InputError, match="unknown data set 'cifar11'; nearest: cifar10"):
        open_split("cifar11", "train", tmp_path)
    with pytest.raises(InputError, match="unknown split 'tset'; nearest: test"):
        open_split("digits", "tset", tmp_path)


@pytest.mark.parametrize("where", [".", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"])
def test_cifar10_is_found(tmp_path, where):
    binary_layout(tmp_path / where)
    source = cifar10("test", tmp_path)
    assert source.size == 10_000
    assert source.classes == CIFAR10_CLASSES
    assert source.read(9_999).image.shape == (32, 32, 3)


def test_binary_records_are_label_then_red_green_blue_planes(tmp_path):
    binary_layout(tmp_path)
    planes = np.arange(3072).astype(np.uint8)
    record = np.concatenate([np.array([7], np.uint8), planes])
    with (tmp_path / "data_batch_2.bin").open("r+b") as file:
        file.seek(3 * 3073)
        file.write(record.tobytes())
    example = cifar10("train", tmp_path).read(10_003)
    assert example.label == 7
    np.testing.assert_array_equal(example.image, planes.reshape(3, 32, 32).transpose(1, 2, 0))


def test_missing_cifar10(tmp_path):
    with pytest.raises(InputError, match=r"no CIFAR-10 here; expected cifar-10-batches-bin/ or .*--data-dir"):
        cifar10("train", tmp_path / "nowhere")


def test_incomplete_cifar10(tmp_path):
    binary_layout(tmp_path / "cifar-10-batches-bin", leave_out=("data_batch_3", "test_batch"))
    with pytest.raises(InputError, match=r"batches-bin: .*data_batch_3.bin, test_batch.bin is missing"):
        cifar10("train", tmp_path)


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
def test_truncated_cifar10(tmp_path, size):
    binary_layout(tmp_path, size)
    with pytest.raises(InputError, match=r"test_batch.bin: [\d,]+ bytes, expected 30,730,000"):
        cifar10("test", tmp_path)


def test_a_label_over_nine_is_another_format(tmp_path):
    binary_layout(tmp_path)
    with (tmp_path / "test_batch.bin").open("r+b") as file:
        file.write(b"\x63")
    with pytest.raises(InputError, match=r"test_batch.bin: a label over 9"):
        cifar10("test", tmp_path)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_pickle_that_is_not_the_official_one_is_never_opened(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(pickle.dumps(Hostile(tmp_path / "pwned")))
    with pytest.raises(InputError, match=r"test_batch: not the official file \(its md5 differs\), not opened"):
        cifar10("test", tmp_path)
    assert not (tmp_path / "pwned").exists()
    pickle.loads((tmp_path / "test_batch").read_bytes())  # and it would have acted
    assert (tmp_path / "pwned").exists()


def test_real_cifar10_is_the_same_in_both_layouts(real_data, tmp_path):
    subprocess.run([sys.executable, real_data / "make_cifar10.py", tmp_path], check=True, capture_output=True)
    for split, size in (("train", 50_000), ("test", 10_000)):
        binary = to_arrays(cifar10(split, tmp_path / "cifar-10-batches-bin"))
        python = to_arrays(cifar10(split, tmp_path / "cifar-10-batches-py"))
        np.testing.assert_array_equal(binary[0], python[0])
        np.testing.assert_array_equal(binary[1], python[1])
        np.testing.assert_array_equal(np.bincount(binary[1]), [size // 10] * 10)
    assert [CIFAR10_CLASSES[label] for label in binary[1][:4]] == ["cat", "ship", "ship", "airplane"]


def test_from_arrays_takes_uint8_images_only():
    with pytest.raises(ValueError, match="needs uint8 images"):
        from_arrays(np.zeros((2, 4, 4, 1)), np.zeros(2, int), ["a"])
    with pytest.raises(ValueError, match="needs uint8 images"):
        from_arrays(np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, int), ["a"])
