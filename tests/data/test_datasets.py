"""Data sets on board, held-out images, and arrays in memory."""

import pickle

import numpy as np
import pytest

from resnet_jax.data.arrays import sources_from_arrays
from resnet_jax.data.datasets import digits, open_split, synthetic
from resnet_jax.data.selection import Selection
from resnet_jax.data.source import from_arrays, to_arrays
from resnet_jax.errors import InputError


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
    source = open_split("digits", "train", tmp_path, selection=Selection(100))
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(5).image, source.read(5).image)


def test_held_out_images_are_always_the_same_and_in_one_split_only(tmp_path):
    parts = {
        s: to_arrays(open_split("digits", s, tmp_path, Selection(400)))[0] for s in ("train", "validation", "test")
    }
    assert {s: len(images) for s, images in parts.items()} == {"train": 1037, "validation": 400, "test": 360}
    both = np.concatenate([parts["train"], parts["validation"]])
    whole = to_arrays(digits("train", tmp_path))[0]
    assert sorted(e.tobytes() for e in both) == sorted(e.tobytes() for e in whole)
    again = to_arrays(open_split("digits", "validation", tmp_path, Selection(400)))[0]
    np.testing.assert_array_equal(parts["validation"], again)


@pytest.mark.parametrize("validation", [1437, 5000])
def test_holding_out_everything_is_refused(tmp_path, validation):
    with pytest.raises(InputError, match=f"data.num_validation is {validation}; digits has 1,437"):
        open_split("digits", "train", tmp_path, Selection(validation))


def test_unknown_names(tmp_path):
    with pytest.raises(InputError, match="unknown data set 'cifar11'; nearest: cifar10"):
        open_split("cifar11", "train", tmp_path)
    with pytest.raises(InputError, match="unknown split 'tset'; nearest: test"):
        open_split("digits", "tset", tmp_path)


def test_from_arrays_takes_uint8_images_only():
    with pytest.raises(ValueError, match="needs uint8 images"):
        from_arrays(np.zeros((2, 4, 4, 1)), np.zeros(2, int), ["a"])
    with pytest.raises(ValueError, match="needs uint8 images"):
        from_arrays(np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, int), ["a"])


def test_from_arrays_refuses_a_label_of_no_class():
    for label in (-1, 2):
        with pytest.raises(InputError, match=f"the labels: label {label}, expected 0 to 1"):
            from_arrays(np.zeros((2, 4, 4, 1), np.uint8), np.array([0, label]), ["a", "b"])


def test_arrays_as_keras_hands_them_out():
    rng = np.random.default_rng(0)
    for shape, labels in (((4, 4), (6,)), ((4, 5, 3), (6, 1))):
        x, y = rng.integers(0, 256, (6, *shape), np.uint8), np.array([0, 1, 2, 0, 1, 2], np.uint8).reshape(labels)
        train, test = sources_from_arrays((x, y), (x[:2], y[:2]))
        assert (train.size, test.size, train.classes, test.classes) == (6, 2, ("0", "1", "2"), ("0", "1", "2"))
        np.testing.assert_array_equal(to_arrays(train)[0], x.reshape(6, *shape[:2], -1))
        assert to_arrays(train)[1].tolist() == [0, 1, 2, 0, 1, 2]
        assert pickle.loads(pickle.dumps(test)).read(1).target == 1
    assert sources_from_arrays((x, y), (x, y), ["a", "b", "c", "d"])[0].classes == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("shape", "spatial", "axis"),
    [((6, 3, 8, 9), 2, 1), ((6, 1, 28, 28), 2, 1), ((6, 3, 90), 1, 1), ((6, 16, 3, 8, 8), 3, 2)],
)
def test_channels_before_the_last_axis_are_refused_with_the_way_to_move_them(shape, spatial, axis):
    x, y = np.zeros(shape, np.uint8), np.arange(6)
    message = rf"with {shape[axis]} channels on axis {axis}; move them to the end: np.moveaxis\(images, {axis}, -1\)"
    with pytest.raises(InputError, match=message):
        sources_from_arrays((x, y), (x, y), spatial=spatial)
    moved = np.moveaxis(x, axis, -1)
    assert sources_from_arrays((moved, y), (moved, y), spatial=spatial)[0].size == 6


@pytest.mark.parametrize("shape", [(6, 8, 9), (6, 3, 3, 200), (6, 9, 9, 12), (6, 2, 90)])
def test_images_that_only_look_unusual_are_taken(shape):
    x, y = np.zeros(shape, np.uint8), np.arange(6)
    assert sources_from_arrays((x, y), (x, y))[0].size == 6


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([10**7, 10**7 + 1, 10**7], "train labels are 2 of 0 to 10,000,001, without 0; number the classes from 0"),
        ([2**62, 5, 5], "train labels are 2 of 0 to 4,611,686,018,427,387,904, without 0"),
        ([1, 2, 3], "train labels are 3 of 0 to 3, without 0"),
        ([0, 2, 3], "train labels are 3 of 0 to 3, without 1; .*, or name each of them: classes="),
        ([0, 1, 1], "train labels are 2 of 0 to 2, without 2"),
        ([[0], [1, 2], [1]], "train labels differ in length or size; give one array"),
    ],
    ids=["ids", "large ids", "from 1", "gap", "only in test", "ragged"],
)
def test_labels_that_do_not_number_the_classes_are_refused(labels, message):
    test = labels if max(map(np.max, labels)) > 2 else [0, 1, 2]
    with pytest.raises(InputError, match=message):
        sources_from_arrays((X, labels), (X, test))


def test_a_class_without_images_can_be_named():
    assert len(sources_from_arrays((X, [1, 2, 3]), (X, [1, 1, 3]), "abcde")[0].classes) == 5


def test_images_of_several_sizes_in_a_list_are_refused():
    with pytest.raises(InputError, match="train images differ in length or size"):
        sources_from_arrays(([np.zeros((4, 4), np.uint8), np.zeros((5, 4), np.uint8)], [0, 1]), (X, Y))


X, Y = np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            (X / 255, Y),
            (X, Y),
            "train images are float64; give uint8 pixels of 0 to 255 and leave scaling to data.mean",
        ),
        ((X, Y), (X.astype(int), Y), "test images are int64; give uint8"),
        ((X[0, 0], Y), (X, Y), r"train images have shape \(4, 1\); give \(n, h, w\) or \(n, h, w, c\)"),
        ((X[:0], Y[:0]), (X, Y), r"train images have shape \(0, 4, 4, 1\)"),
        ((X, Y), (X[:, :3], Y), "train images are 4 x 4 x 1, test images 3 x 4 x 1; resize them to one size"),
        ((X, Y.astype(float)), (X, Y), "train labels are float64; give integers from 0"),
        ((X, Y[:2]), (X, Y), r"train labels have shape \(2,\) for 3 images; give \(3,\)"),
        ((X, np.eye(3, dtype=int)), (X, Y), r"train labels have shape \(3, 3\) for 3 images"),
        ((X, Y - 1), (X, Y), "train labels: label -1, expected 0 to 2"),
    ],
)
def test_arrays_of_another_kind_are_refused(train, test, message):
    with pytest.raises(InputError, match=message):
        sources_from_arrays(train, test)


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(InputError, match="test labels: label 2, expected 0 to 1"):
        sources_from_arrays((X, Y % 2), (X, Y), ["a", "b"])
