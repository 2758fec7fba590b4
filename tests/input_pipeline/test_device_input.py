"""What steps are given: the same on the devices and from the host."""

from dataclasses import replace

import chex
import jax
import numpy as np
import pytest
from PIL import Image
from runs import curve, quietly

from resnet_jax.data.datasets import DATASETS
from resnet_jax.data.prepare import Packing, prepare_data
from resnet_jax.data.source import Example, Source, from_arrays
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline import device_input
from resnet_jax.input_pipeline.device_input import (
    IndexedBatch,
    abstract_step_input,
    evaluation_batches,
    gather_batch,
    open_device_split,
    training_batches,
)
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.input_pipeline.preprocess import original_crop
from resnet_jax.parallel.sharding import data_mesh
from resnet_jax.recipe import Augment, Data, Recipe
from resnet_jax.training.progress import corrupt_log
from resnet_jax.training.sources import open_sources

IMAGES = np.arange(21 * 4, dtype=np.uint8).reshape(21, 2, 2, 1)
SOURCE = from_arrays(IMAGES, np.arange(21) % 3, ("a", "b", "c"))
HOST = DataLoading(device_cache_gib=0.0, num_threads=2)
RECIPE = Recipe(seed=5, batch_size=8)


def taken(items):
    return jax.device_get([gather_batch(item) for item in items])


@pytest.mark.parametrize("devices", [1, 4])
def test_training_items_are_the_same_from_both(devices):
    mesh = data_mesh(devices)
    resident, host = open_device_split(SOURCE, mesh), open_device_split(SOURCE, mesh, HOST)
    assert resident.arrays is not None
    assert host.arrays is None
    first, second = (taken(training_batches(data, RECIPE, range(2, 9))) for data in (resident, host))
    assert len(first) == 7
    chex.assert_trees_all_equal(first, second)
    assert all(batch.mask.all() for batch in first)
    item = next(training_batches(host, RECIPE, range(9)))
    assert item.image.sharding.num_devices == devices


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("feeding", [DataLoading(), HOST], ids=["resident", "host"])
def test_what_an_item_looks_like_is_known_before_the_data_is_open(feeding, outputs):
    mesh, labels = data_mesh(4), np.ones((21, 3), np.float32) if outputs else np.arange(21) % 3
    source = from_arrays(IMAGES, labels, ("a", "b", "c"))
    expected = next(training_batches(open_device_split(source, mesh, feeding), RECIPE, range(1)))
    found = abstract_step_input(source, mesh, RECIPE, feeding)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.sharding.is_equivalent_to(other.sharding, other.ndim)


@pytest.mark.parametrize("batch_size", [1, 4, 8, 500])
def test_evaluation_items_hold_every_example_once(batch_size):
    mesh = data_mesh(4)
    first, second = (
        taken(evaluation_batches(open_device_split(SOURCE, mesh, feeding), batch_size))
        for feeding in (DataLoading(), HOST)
    )
    chex.assert_trees_all_equal(first, second)
    seen = np.concatenate([batch.image[batch.mask] for batch in first])
    np.testing.assert_array_equal(seen, IMAGES)
    assert all(len(batch.mask) % 4 == 0 for batch in first)


def test_large_images_are_evaluated_in_smaller_batches():
    large = Source(300, ("a",), lambda index: Example(np.zeros((512, 512, 1), np.uint8), 0))
    item = next(
        evaluation_batches(open_device_split(large, data_mesh(1), DataLoading(device_cache_gib=0.0, num_threads=0)))
    )
    assert item.mask.shape == (2**23 // 512**2,)


def test_the_bound_is_that_of_the_split():
    # Of images and of targets, int32 each
    bytes_of = (IMAGES.nbytes + 4 * len(IMAGES)) / 2**30
    mesh = data_mesh(1)
    assert open_device_split(SOURCE, mesh, DataLoading(device_cache_gib=bytes_of)).arrays is not None
    assert open_device_split(SOURCE, mesh, DataLoading(device_cache_gib=0.9 * bytes_of)).arrays is None
    assert isinstance(next(training_batches(open_device_split(SOURCE, mesh), RECIPE, range(1))), IndexedBatch)


def test_a_run_is_the_same_whether_it_reads_or_holds_its_data(tiny, tmp_path):
    held, _ = quietly(tiny, tmp_path / "held")
    for name, threads in (("none", 0), ("two", 2)):
        options = {"device_cache_gib": 0.0, "num_threads": threads}
        quietly(tiny, tmp_path / name, stop_at=5, **options)  # within an epoch
        read, _ = quietly(tiny, tmp_path / name, **options)
        chex.assert_trees_all_equal(held.state, read.state)
        assert curve(tmp_path / name) == curve(tmp_path / "held")


def test_corrupt_images_are_logged_once_and_counted():
    said = []
    corrupt = {3: "3.jpg: damaged", 5: "5.jpg: damaged"}
    log_corrupt = corrupt_log(corrupt, 2, said.append)
    for _ in range(2):
        log_corrupt()
    assert said == [f"{index}.jpg: damaged; replaced by the next image" for index in (3, 5)]
    with pytest.raises(InputError, match=r"5\.jpg: damaged, and 1 others, more than --max-corrupt-fraction allows"):
        corrupt_log(corrupt, 1, said.append)()


@pytest.mark.parametrize("gib", [0.0, pytest.param(2.0, marks=pytest.mark.slow)])
def test_a_run_with_a_corrupt_image(tiny, tmp_path, monkeypatch, gib):
    def source(split, folder, original=DATASETS["tiny"]):
        clean = original(split, folder)

        def read(index):
            if split == "train" and index == 7:
                raise InputError("seven.jpg: damaged")
            return clean.read(index)

        return clean._replace(read=read)

    monkeypatch.setitem(DATASETS, "tiny", source)
    with pytest.raises(InputError, match=r"seven\.jpg: damaged.*more than --max-corrupt-fraction allows"):
        quietly(tiny, tmp_path / "strict", device_cache_gib=gib, max_corrupt_fraction=0.0)
    result, said = quietly(tiny, tmp_path / "run", device_cache_gib=gib, max_corrupt_fraction=0.05)
    assert result.step == 12
    assert said.count("seven.jpg: damaged; replaced by the next image") == 1
    again, _ = quietly(tiny, tmp_path / "again", device_cache_gib=gib, num_threads=0, max_corrupt_fraction=1)
    chex.assert_trees_all_equal(result.state, again.state)


@pytest.fixture
def photos(tmp_path):
    """A folder of JPEGs of several sizes, and the same packed."""
    random = np.random.default_rng(0)
    for split, count in (("train", 11), ("val", 3)):
        for name in ("ant", "bee"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (20 + number, 30 - number, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{number:02}.jpg")
    prepare_data("folder:photos", tmp_path / "packed", Packing(), data_dir=tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "crop"),
    [
        ("folder:photos", False),
        ("folder:photos", True),
        ("array_record:packed", False),
        ("array_record:packed", True),
        ("digits", False),
        ("synthetic", False),
    ],
)
def test_any_source_goes_on_from_any_step_with_any_threads(photos, name, crop):
    size = 16 if ":" in name else None
    augment = Augment(crop_padding=0, random_resized_crop=crop, rrc_from="original" if crop else "resized")
    recipe = Recipe(data=Data(name=name, image_size=size), augment=augment, batch_size=8, seed=3)
    source = open_sources(recipe, photos).train
    mesh = data_mesh(2)

    def items(steps, threads):
        data = open_device_split(
            source, mesh, DataLoading(device_cache_gib=0.0, num_threads=threads), crop=original_crop(recipe, source)
        )
        return taken(training_batches(data, recipe, steps))

    whole = items(range(9), 0)
    assert whole[0].image.shape[0] == 8
    for threads in (0, 1, 2):
        chex.assert_trees_all_equal(items(range(4, 9), threads), whole[4:])
    first, later = ({int(i): image for i, image in zip(b.indices, b.image, strict=True)} for b in (whole[0], whole[3]))
    same = [np.array_equal(first[i], later[i]) for i in first.keys() & later.keys()]
    assert all(same) is not crop or not same  # an image is cropped again each time
    assert same or not size


@pytest.mark.parametrize("gib", [0.0, 1.0])
def test_fewer_images_are_evaluated_at_once_if_each_pixel_has_many_outputs(gib, monkeypatch):
    masks = Source(
        6, tuple(map(str, range(40))), lambda i: Example(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8))
    )
    monkeypatch.setattr(device_input, "_EVAL_DENSE", 40 * 8 * 8 * 2)
    split = open_device_split(masks, data_mesh(1), DataLoading(device_cache_gib=gib, num_threads=0))
    assert [batch.mask.shape for batch in evaluation_batches(split)] == [(2,)] * 3


def test_crops_of_originals_need_originals(tiny):
    recipe = replace(
        tiny, data=Data(name="tiny", image_size=8), augment=Augment(random_resized_crop=True, rrc_from="original")
    )
    with pytest.raises(InputError, match="rrc_from is original; this data set keeps no originals"):
        original_crop(recipe, SOURCE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_cache_gib": -1.0}, "--device-cache-gib is -1.0; it must not be negative"),
        ({"num_threads": -1}, "--num-threads is -1; it must not be negative"),
        ({"max_corrupt_fraction": 1.5}, "--max-corrupt-fraction is 1.5; it must be 0 to 1"),
    ],
)
def test_options_that_make_no_sense(tiny, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        quietly(tiny, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
