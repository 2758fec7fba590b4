"""From the fields of a recipe to what is done to a batch, and steps with all of them."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICKLY

from resnet_jax.data.augment import augment, normalize
from resnet_jax.data.batches import Batch
from resnet_jax.recipe import Augment, Data, Recipe, check
from resnet_jax.train.feed import supply, training_items
from resnet_jax.train.habits import Feeding
from resnet_jax.train.job import initial, make_advance, open_sources, prepare, step_key
from resnet_jax.train.preprocess import make_preprocess

IMAGES = jax.random.randint(jax.random.key(0), (8, 10, 12, 3), 0, 256).astype(jnp.uint8)
KEY = jax.random.key(1)
MUCH = Augment(
    pad_mode="reflect", alternate_flip=True, crop=True, crop_size=6, policy="trivial", erase=0.25, cutmix=1.0, repeats=2
)


def preprocess(**fields):
    recipe = check(Recipe(augment=Augment(**{"pad": 0, **fields}), data=Data(mean=(0.4,), std=(0.2,))))
    return jax.jit(make_preprocess(recipe, 100, 10))(KEY, 3, Batch(IMAGES, jnp.arange(8), None))[0]


def test_crop_and_flip_are_those_of_augment():
    key = jax.random.fold_in(KEY, 3)
    expected = jax.jit(lambda: normalize(augment(key, IMAGES, pad=2, mirror=True), (0.4,), (0.2,)))()
    np.testing.assert_array_equal(preprocess(pad=2, flip=True), expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"pad": 2, "pad_mode": "reflect"},
        {"crop": True, "crop_size": 7},
        {"policy": "randaugment", "policy_std": 2.0},
        {"policy": "autoaugment_cifar10", "policy_fill": 99},
        {"saturation": 0.4, "hue": 0.1},
    ],
)
def test_fields_change_images(fields):
    out = preprocess(**fields)
    assert out.dtype == jnp.float32
    if "crop_size" in fields:
        assert out.shape == (8, 7, 7, 3)
    else:
        assert out.shape == IMAGES.shape
        assert not np.allclose(out, preprocess())


@pytest.mark.parametrize("fields", [{"cutout": 5}, {"erase": 1.0}])
def test_what_is_erased_is_the_mean(fields):
    out, plain = preprocess(**fields), preprocess()
    assert (out == 0).all(-1).any((1, 2)).all()
    np.testing.assert_array_equal(out[out != 0], plain[out != 0])


def test_labels_stay_classes_where_nothing_is_mixed():
    batch = Batch(IMAGES[:4], jnp.arange(4), None)
    _, label = jax.jit(make_preprocess(Recipe(), 100, 10))(KEY, 0, batch)
    np.testing.assert_array_equal(label, batch.label)
    images, shares = jax.jit(make_preprocess(Recipe(augment=Augment(mixup=0.5)), 100, 5))(KEY, 0, batch)
    assert (images.shape, shares.shape, shares.dtype) == ((4, 10, 12, 3), (4, 5), jnp.float32)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)


def test_alternating_flip_turns_each_image_every_second_time():
    recipe = Recipe(augment=Augment(pad=0, alternate_flip=True, repeats=2), batch_size=8)
    preprocess = jax.jit(make_preprocess(recipe, 4, 10))
    batch = Batch(IMAGES.at[4:].set(IMAGES[:4]), jnp.zeros(8, int), None, jnp.tile(jnp.arange(4), 2))
    plain = normalize(batch.image, recipe.data.mean, recipe.data.std)
    for step in range(3):
        out, _ = preprocess(KEY, step, batch)
        turned = np.asarray((abs(out - plain) > 1e-6).any((1, 2, 3)))
        assert (turned[:4] ^ turned[4:]).all()
        np.testing.assert_allclose(out[turned], plain[turned][:, :, ::-1], rtol=1e-6)


def test_images_grow():
    batch = Batch(IMAGES, jnp.arange(8), None)
    out, _ = jax.jit(make_preprocess(Recipe(augment=Augment(pad=0)), 100, 10, size=5))(KEY, 0, batch)
    assert out.shape == (8, 5, 5, 3)
    np.testing.assert_allclose(out.mean(), normalize(IMAGES, (0.5,), (0.5,)).mean(), atol=0.02)


def test_a_part_of_a_batch_is_treated_as_in_the_whole():
    recipe = Recipe(augment=Augment(pad=2, flip=True, alternate_flip=False, policy="trivial", erase=0.5, mixup=1.0))
    preprocess = jax.jit(make_preprocess(recipe, 100, 10), compiler_options=QUICKLY)
    whole = preprocess(KEY, 1, Batch(IMAGES, jnp.arange(8), None))
    part = preprocess(KEY, 1, Batch(IMAGES[4:], jnp.arange(4, 8), None, rows=jnp.arange(4, 8)))
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[4:], jax.device_get(whole)), part, rtol=1e-6, atol=1e-6)


def test_steps_with_all_this_are_the_same_from_host_and_devices(tiny, tmp_path):
    recipe = check(replace(tiny, augment=MUCH))
    sources = open_sources(recipe, tmp_path)
    job = prepare(recipe, sources.dataset, 1)
    advance, ends = make_advance(job), []
    for feeding in (Feeding(), Feeding(resident_gib=0.0, threads=0)):
        state, sums = initial(job)
        data = supply(sources.train, job.mesh, feeding)
        for item in training_items(data, recipe.seed, recipe.batch_size, range(3), recipe.augment.repeats):
            state, sums, _ = advance(state, sums, item, step_key(job), None)
        ends.append(jax.device_get((state.params, sums)))
    chex.assert_trees_all_equal(*ends)
    assert np.isfinite(ends[0][1].loss)
