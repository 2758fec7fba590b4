"""What steps are given: the same on the devices and from the host."""

import io
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from resnet_jax.data.source import Example, Source, from_arrays
from resnet_jax.errors import InputError
from resnet_jax.preparation import Packing, prepare_data
from resnet_jax.recipe import Augment, Data, Recipe
from resnet_jax.train.devices import data_mesh
from resnet_jax.train.directory import read_metrics
from resnet_jax.train.feed import Pick, abstract_item, batch_of, evaluation_items, supply, training_items
from resnet_jax.train.habits import Feeding, Habits
from resnet_jax.train.job import open_sources
from resnet_jax.train.preprocess import original_crop
from resnet_jax.train.run import tell_bad, train_recipe

CLOCKS = {"seconds", "images_per_second", "data_wait"}
IMAGES = np.arange(21 * 4, dtype=np.uint8).reshape(21, 2, 2, 1)
SOURCE = from_arrays(IMAGES, np.arange(21) % 3, ("a", "b", "c"))
HOST = Feeding(resident_gib=0.0, threads=2)


def taken(items):
    return jax.device_get([batch_of(item) for item in items])


@pytest.mark.parametrize("devices", [1, 4])
def test_training_items_are_the_same_from_both(devices):
    mesh = data_mesh(devices)
    resident, host = supply(SOURCE, mesh), supply(SOURCE, mesh, HOST)
    assert resident.resident is not None
    assert host.resident is None
    first, second = (taken(training_items(data, 5, 8, range(2, 9))) for data in (resident, host))
    assert len(first) == 7
    chex.assert_trees_all_equal(first, second)
    assert all(batch.mask.all() for batch in first)
    item = next(training_items(host, 5, 8, range(9)))
    assert item.image.sharding.num_devices == devices


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("feeding", [Feeding(), HOST], ids=["resident", "host"])
def test_what_an_item_looks_like_is_known_before_the_data_is_open(feeding, outputs):
    mesh, labels = data_mesh(4), np.ones((21, 3), np.float32) if outputs else np.arange(21) % 3
    source = from_arrays(IMAGES, labels, ("a", "b", "c"))
    expected = next(training_items(supply(source, mesh, feeding), 5, 8, range(1)))
    found = abstract_item(source, mesh, 5, 8, feeding)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.sharding.is_equivalent_to(other.sharding, other.ndim)


@pytest.mark.parametrize("batch_size", [1, 4, 8, 500])
def test_evaluation_items_hold_every_example_once(batch_size):
    mesh = data_mesh(4)
    first, second = (
        taken(evaluation_items(supply(SOURCE, mesh, feeding), batch_size)) for feeding in (Feeding(), HOST)
    )
    chex.assert_trees_all_equal(first, second)
    seen = np.concatenate([batch.image[batch.mask] for batch in first])
    np.testing.assert_array_equal(seen, IMAGES)
    assert all(len(batch.mask) % 4 == 0 for batch in first)


def test_large_images_are_evaluated_in_smaller_batches():
    large = Source(300, ("a",), lambda index: Example(np.zeros((512, 512, 1), np.uint8), 0))
    item = next(evaluation_items(supply(large, data_mesh(1), Feeding(resident_gib=0.0, threads=0))))
    assert item.mask.shape == (2**23 // 512**2,)


def test_the_bound_is_that_of_the_split():
    bytes_of = IMAGES.nbytes / 2**30
    mesh = data_mesh(1)
    assert supply(SOURCE, mesh, Feeding(bytes_of)).resident is not None
    assert supply(SOURCE, mesh, Feeding(0.9 * bytes_of)).resident is None
    assert isinstance(next(training_items(supply(SOURCE, mesh), 0, 4, range(1))), Pick)


def lines(folder):
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in read_metrics(folder)]


def test_a_run_is_the_same_whether_it_reads_or_holds_its_data(tiny, tmp_path):
    quiet = Console(quiet=True)
    held = train_recipe(tiny, tmp_path / "held", devices=1, console=quiet)
    for name, threads in (("none", 0), ("two", 2)):
        feeding = Feeding(resident_gib=0.0, threads=threads)
        train_recipe(
            tiny, tmp_path / name, devices=1, feeding=feeding, habits=Habits(stop_at=5), console=quiet
        )  # within an epoch
        read = train_recipe(tiny, tmp_path / name, devices=1, feeding=feeding, console=quiet)
        chex.assert_trees_all_equal(held.state, read.state)
        assert lines(tmp_path / name) == lines(tmp_path / "held")


def test_bad_images_are_told_and_counted():
    said = []
    bad = {3: "3.jpg: damaged", 5: "5.jpg: damaged"}
    assert tell_bad(bad, 0, 2, said.append) == 2
    assert said == [f"{index}.jpg: damaged; the next one takes its place" for index in (3, 5)]
    assert tell_bad(bad, 2, 2, said.append) == 2
    assert len(said) == 2
    with pytest.raises(InputError, match=r"5\.jpg: damaged; so are 1 others, more than --max-bad-images allows"):
        tell_bad(bad, 2, 1, said.append)


@pytest.mark.parametrize("gib", [0.0, 2.0])
def test_a_run_with_a_bad_image(tiny, tmp_path, monkeypatch, gib):
    from resnet_jax.data.datasets import DATASETS

    def source(split, folder, original=DATASETS["tiny"]):
        clean = original(split, folder)

        def read(index):
            if split == "train" and index == 7:
                raise InputError("seven.jpg: damaged")
            return clean.read(index)

        return clean._replace(read=read)

    monkeypatch.setitem(DATASETS, "tiny", source)
    feeding = Feeding(resident_gib=gib)
    console = Console(record=True, quiet=False, file=io.StringIO())
    with pytest.raises(InputError, match=r"seven\.jpg: damaged.*more than --max-bad-images allows"):
        train_recipe(
            tiny, tmp_path / "strict", devices=1, feeding=feeding, habits=Habits(max_bad_images=0.0), console=console
        )
    result = train_recipe(
        tiny, tmp_path / "run", devices=1, feeding=feeding, habits=Habits(max_bad_images=0.05), console=console
    )
    assert result.step == 12
    assert console.export_text().count("seven.jpg: damaged; the next one takes its place") == 2
    again = train_recipe(
        tiny, tmp_path / "again", devices=1, feeding=Feeding(gib, 0), habits=Habits(max_bad_images=1), console=console
    )
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
    augment = Augment(pad=0, crop=crop, crop_from="original" if crop else "resized")
    recipe = Recipe(data=Data(name=name, size=size), augment=augment, batch_size=8)
    source = open_sources(recipe, photos).train
    mesh = data_mesh(2)

    def items(steps, threads):
        data = supply(source, mesh, Feeding(0.0, threads), crop=original_crop(recipe, source))
        return taken(training_items(data, 3, 8, steps))

    whole = items(range(9), 0)
    assert whole[0].image.shape[0] == 8
    for threads in (0, 1, 2):
        chex.assert_trees_all_equal(items(range(4, 9), threads), whole[4:])
    first, later = ({int(i): image for i, image in zip(b.indices, b.image, strict=True)} for b in (whole[0], whole[3]))
    same = [np.array_equal(first[i], later[i]) for i in first.keys() & later.keys()]
    assert all(same) is not crop or not same  # an image is cropped anew each time
    assert same or not size


def test_crops_of_originals_need_originals(tiny):
    recipe = replace(tiny, data=Data(name="tiny", size=8), augment=Augment(crop=True, crop_from="original"))
    with pytest.raises(InputError, match="crop_from is original; this data set keeps no originals"):
        original_crop(recipe, SOURCE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feeding": Feeding(resident_gib=-1.0)}, "--resident-gib is -1.0; it must not be negative"),
        ({"feeding": Feeding(threads=-1)}, "--threads is -1; it must not be negative"),
        ({"habits": Habits(max_bad_images=1.5)}, "--max-bad-images is 1.5; it must be a share, 0 to 1"),
    ],
)
def test_numbers_that_make_no_sense(tiny, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        train_recipe(tiny, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
