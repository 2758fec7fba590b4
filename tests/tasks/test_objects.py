"""The task of finding objects: its targets on their way to the devices."""

import pickle
from functools import partial

import jax
import numpy as np
import pytest

from resnet_jax.data.source import Example, Source, sample_digest, to_arrays
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.device_input import (
    abstract_step_input,
    evaluation_batches,
    gather_batch,
    open_device_split,
    training_batches,
)
from resnet_jax.input_pipeline.host_input import reader, stream
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.models.detection.objects import Objects, make_objects
from resnet_jax.parallel.sharding import data_mesh
from resnet_jax.recipe import Loss, Recipe
from resnet_jax.tasks.detection import detection
from resnet_jax.tasks.make import make_task

CLASSES = ("cell", "platelet")


def example_of(index, count=None):
    corners = np.arange(index % 3 if count is None else count)[:, None] * [1, 1, 1, 1] + [0, 1, 4, 5]
    return Example(np.full((8, 8, 3), index, np.uint8), make_objects(corners, np.arange(len(corners)) % 2))


def source_of(size=8, **options):
    return Source(size, CLASSES, partial(example_of, **options))


def test_objects_are_padded_and_reach_the_devices_as_a_tree():
    source = pickle.loads(pickle.dumps(detection(max_objects=3).targets.cast(source_of())))
    _, targets = to_arrays(source)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), targets) == Objects(
        ((8, 3, 4), "float32"), ((8, 3), "int32"), ((8, 3), "bool"), ((8, 3), "float32"), ((8,), "float32")
    )
    np.testing.assert_array_equal(targets.labels[:3], [[-1, -1, -1], [0, -1, -1], [0, 1, -1]])
    np.testing.assert_array_equal(targets.boxes[2], [[0, 1, 4, 5], [1, 2, 5, 6], [0, 0, 0, 0]])
    _, streamed = next(stream(reader(source, None), lambda _: np.arange(8), range(1), threads=0))
    jax.tree.map(np.testing.assert_array_equal, streamed, targets)


@pytest.mark.parametrize("gib", [1.0, 0.0])
def test_batches_of_objects_are_the_same_from_host_and_devices(gib):
    source, mesh, loading = (
        detection(max_objects=3).targets.cast(source_of()),
        data_mesh(2),
        DataLoading(device_cache_gib=gib),
    )
    recipe, split = (
        Recipe(batch_size=4, loss=Loss(name="detection", max_objects=3)),
        open_device_split(source, mesh, loading),
    )
    assert (split.arrays is None) == (gib == 0)
    (inputs,) = training_batches(split, recipe, range(1))
    abstract = abstract_step_input(source, mesh, recipe, loading)
    assert jax.tree.structure(abstract) == jax.tree.structure(inputs)
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), abstract, inputs)
    batch = gather_batch(inputs)
    wanted = [source.read(int(index)) for index in batch.indices]
    np.testing.assert_array_equal(batch.target.boxes, [example.target.boxes for example in wanted])
    (held,) = evaluation_batches(split)
    np.testing.assert_array_equal(gather_batch(held).target.labels, to_arrays(source)[1].labels)


def test_the_digest_sees_each_box():
    def moved(index):
        image, objects = example_of(index)
        return Example(image, objects._replace(area=objects.area + (index == 7)))

    digests = [sample_digest(source) for source in (source_of(), source_of(), Source(8, CLASSES, moved))]
    assert digests[0] == digests[1] != digests[2]


def test_what_does_not_fit_is_refused():
    task = make_task(Loss(name="detection", max_objects=3))
    with pytest.raises(InputError, match="example 2: 4 objects, and loss.max_objects is 3: raise it"):
        task.targets.cast(source_of(count=4)).read(2)
    with pytest.raises(InputError, match="example 0: label 1 of object 1, expected 0 to 0"):
        task.targets.cast(source_of(count=2)._replace(classes=("cell",))).read(0)
    with pytest.raises(InputError, match="the task is detection; the targets are no boxes"):
        task.targets.check(Source(1, CLASSES, lambda _: Example(np.zeros((8, 8, 3), np.uint8), 1)))
