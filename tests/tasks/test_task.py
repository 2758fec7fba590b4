"""What targets look like on their way to the devices."""

import pickle

import numpy as np
import pytest

from resnet_jax.data.source import Example, Source, as_target, to_arrays
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.host_input import reader, stream
from resnet_jax.tasks.multilabel import multilabel
from resnet_jax.tasks.task import TargetSpec

MASKS = np.random.default_rng(0).integers(0, 200, (6, 4, 5))


def example_of(index):
    return Example(np.zeros((4, 5, 1), np.uint8), MASKS[index])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_a_mask_keeps_the_integers_that_its_task_says(dtype):
    spec = TargetSpec(lambda source: None, lambda classes, shape: (4, 5), dtype)
    source = pickle.loads(pickle.dumps(spec.cast(Source(6, ("a",), example_of))))
    _, masks = to_arrays(source)
    _, batch = next(stream(reader(source, None), lambda _: np.arange(6), range(1), threads=0))
    for got in (masks, batch):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, MASKS)


def test_labels_given_as_integers_become_the_floats_of_their_task():
    source = Source(1, ("a", "b"), lambda _: Example(np.zeros((2, 2, 1), np.uint8), np.array([0, 1])))
    (labels,) = to_arrays(multilabel().targets.cast(source))[1]
    assert (labels.dtype, labels.tolist()) == (np.float32, [0, 1])


def test_targets_of_several_shapes_are_refused():
    shapes = [(4, 5), (4, 5), (5, 4)]
    source = Source(3, ("a",), lambda index: Example(np.zeros((4, 5, 1), np.uint8), np.zeros(shapes[index], np.uint8)))
    with pytest.raises(InputError, match=r"targets of shape \(4, 5\) and \(5, 4\); they must have the same shape"):
        to_arrays(source)
    with pytest.raises(InputError, match="they must have the same shape"):
        next(stream(reader(source, None), lambda _: np.arange(3), range(1), threads=0))


@pytest.mark.parametrize(
    ("target", "dtype"),
    [(3, np.int32), (np.uint8(3), np.int32), (0.5, np.float32), (np.zeros(2), np.float32), (MASKS[0], np.int32)],
)
def test_targets_without_a_task(target, dtype):
    assert as_target(target).dtype == dtype
