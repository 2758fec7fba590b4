"""From the fields of a recipe to what is done to a batch, and steps with all of them."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICKLY

from resnet_jax.data.augment import augment, normalize
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.device_input import gather_batch, open_device_split, training_batches
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.input_pipeline.preprocess import make_preprocess, require_movable_target
from resnet_jax.input_pipeline.sampler import Batch
from resnet_jax.recipe import Augment, Data, Recipe, check
from resnet_jax.tasks.classification import classification
from resnet_jax.training.init import init_train_state
from resnet_jax.training.make_step import make_train_step, step_key
from resnet_jax.training.setup import make_setup
from resnet_jax.training.sources import open_sources

IMAGES = jax.random.randint(jax.random.key(0), (8, 10, 12, 3), 0, 256).astype(jnp.uint8)
KEY = jax.random.key(1)
SOFT = classification().targets.to_soft
MUCH = Augment(
    pad_mode="reflect",
    alternating_hflip=True,
    random_resized_crop=True,
    train_crop_size=6,
    policy="trivialaugment_wide",
    erase_prob=0.25,
    cutmix_alpha=1.0,
    aug_repeats=2,
)


def whole(images, targets, indices=None):
    """A batch with its rows and mask."""
    return gather_batch(Batch(images, targets, None, indices))


def preprocess(**fields):
    recipe = check(Recipe(augment=Augment(**{"crop_padding": 0, **fields}), data=Data(mean=(0.4,), std=(0.2,))))
    return jax.jit(make_preprocess(recipe, 100, 10, SOFT))(KEY, 3, whole(IMAGES, jnp.arange(8))).image


def test_all_frames_of_a_video_are_changed_alike():
    fields = {"crop_padding": 1, "hflip": True, "random_resized_crop": True, "train_crop_size": 6, "brightness": 0.5}
    recipe = check(Recipe(augment=Augment(**fields)))
    step = jax.jit(make_preprocess(recipe, 100, 10, SOFT))
    still = jnp.repeat(IMAGES[:, None], 3, 1)
    changed, alone = (step(KEY, 3, whole(pixels, jnp.arange(8))).image for pixels in (still, IMAGES))
    assert changed.shape == (8, 3, 6, 6, 3)
    for frame in range(3):
        np.testing.assert_array_equal(changed[:, frame], alone)


def test_crop_and_flip_are_those_of_augment():
    key = jax.random.fold_in(KEY, 3)
    expected = jax.jit(lambda: normalize(augment(key, IMAGES, pad=2, mirror=True), (0.4,), (0.2,)))()
    np.testing.assert_array_equal(preprocess(crop_padding=2, hflip=True), expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"crop_padding": 2, "pad_mode": "reflect"},
        {"random_resized_crop": True, "train_crop_size": 7},
        {"policy": "randaugment", "magnitude_std": 2.0},
        {"policy": "autoaugment_cifar10", "policy_fill": 99},
        {"saturation": 0.4, "hue": 0.1},
    ],
)
def test_fields_change_images(fields):
    out = preprocess(**fields)
    assert out.dtype == jnp.float32
    if "train_crop_size" in fields:
        assert out.shape == (8, 7, 7, 3)
    else:
        assert out.shape == IMAGES.shape
        assert not np.allclose(out, preprocess())


@pytest.mark.parametrize("fields", [{"cutout": 5}, {"erase_prob": 1.0}])
def test_what_is_erased_is_the_mean(fields):
    out, plain = preprocess(**fields), preprocess()
    assert (out == 0).all(-1).any((1, 2)).all()
    np.testing.assert_allclose(out[out != 0], plain[out != 0], rtol=1e-5, atol=1e-6)


def test_labels_stay_classes_where_nothing_is_mixed():
    batch = whole(IMAGES[:4], jnp.arange(4))
    plain = jax.jit(make_preprocess(Recipe(), 100, 10, SOFT))(KEY, 0, batch)
    np.testing.assert_array_equal(plain.target, batch.target)
    mixed = jax.jit(make_preprocess(Recipe(augment=Augment(mixup_alpha=0.5)), 100, 5, SOFT))(KEY, 0, batch)
    assert (mixed.image.shape, mixed.target.shape, mixed.target.dtype) == ((4, 10, 12, 3), (4, 5), jnp.float32)
    np.testing.assert_allclose(mixed.target.sum(1), 1, rtol=1e-6)


def test_alternating_flip_turns_each_image_every_second_time():
    recipe = Recipe(augment=Augment(crop_padding=0, alternating_hflip=True, aug_repeats=2), batch_size=8)
    preprocess = jax.jit(make_preprocess(recipe, 4, 10))
    batch = whole(IMAGES.at[4:].set(IMAGES[:4]), jnp.zeros(8, int), jnp.tile(jnp.arange(4), 2))
    plain = normalize(batch.image, recipe.data.mean, recipe.data.std)
    for step in range(3):
        out = preprocess(KEY, step, batch).image
        turned = np.asarray((abs(out - plain) > 1e-6).any((1, 2, 3)))
        assert (turned[:4] ^ turned[4:]).all()
        np.testing.assert_allclose(out[turned], plain[turned][:, :, ::-1], rtol=1e-6)


def test_images_grow():
    recipe = Recipe(augment=Augment(crop_padding=0))
    out = jax.jit(make_preprocess(recipe, 100, 10, image_size=5))(KEY, 0, whole(IMAGES, jnp.arange(8))).image
    assert out.shape == (8, 5, 5, 3)
    np.testing.assert_allclose(out.mean(), normalize(IMAGES, (0.5,), (0.5,)).mean(), atol=0.02)


def test_a_part_of_a_batch_is_treated_as_in_the_whole():
    recipe = Recipe(
        augment=Augment(crop_padding=2, hflip=True, policy="trivialaugment_wide", erase_prob=0.5, mixup_alpha=1.0)
    )
    preprocess = jax.jit(make_preprocess(recipe, 100, 10, SOFT), compiler_options=QUICKLY)
    batch = whole(IMAGES, jnp.arange(8))
    every = preprocess(KEY, 1, batch)
    part = preprocess(KEY, 1, jax.tree.map(lambda x: x[4:], batch))
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[4:], jax.device_get(every)), part, rtol=1e-6, atol=1e-6)


# Of 3 levels in bands and blocks; the images show them
MASKS = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 3, (8, 3, 4), np.uint8), 4, axis=1), 4, axis=2)


@pytest.mark.parametrize(
    ("fields", "image_size"),
    [
        ({"crop_padding": 2, "pad_mode": "reflect"}, None),
        ({"hflip": True}, None),
        ({"alternating_hflip": True}, None),
        ({"random_resized_crop": True, "train_crop_size": 9}, None),
        ({"scale_jitter": (0.4, 2.0), "train_crop_size": 10}, None),
        ({"crop_padding": 3}, None),
        ({"hflip": True, "crop_padding": 3, "pad_mode": "reflect"}, 24),
    ],
)
def test_a_mask_moves_with_its_image_and_is_not_interpolated(fields, image_size):
    augment = Augment(**{"crop_padding": 0, **fields})
    require_movable_target(augment, MASKS[0, ..., None], MASKS[0], fill=7)
    recipe = check(Recipe(augment=augment, data=Data(mean=(0.0,), std=(1.0,))))
    batch = whole(MASKS[..., None] * np.uint8(120), MASKS, jnp.arange(8))
    out = jax.jit(make_preprocess(recipe, 8, 3, image_size=image_size, fill=7))(KEY, 0, batch)
    masks, shown = np.asarray(out.target), np.asarray(out.image)[..., 0] * 255
    assert (masks.dtype, masks.shape) == (np.uint8, shown.shape)
    assert masks.shape != MASKS.shape or not np.array_equal(masks, MASKS)
    # Padding is black, and without label
    padded = masks == 7
    assert padded.any() == bool(augment.scale_jitter[0] < 1 or fields == {"crop_padding": 3})
    assert not shown[padded].any()
    # Pixels between two blocks are mixed in an image that is resized
    same = (abs(shown / 120 - masks) < 0.5)[~padded]
    resized = image_size or augment.random_resized_crop or augment.scale_jitter[0] < 1
    assert same.mean() > (0.8 if resized else 0.999)


@pytest.mark.parametrize(
    ("fields", "target", "message"),
    [
        ({"crop_padding": 1}, (12, 16), "augment.crop_padding adds black, which has no target: set augment.pad_mode"),
        ({"policy": "trivialaugment_wide"}, (12, 16), "augment.policy is trivialaugment_wide, which moves images but"),
        ({"hflip": True}, (4, 3), r"augment.hflip is True, which moves images but not targets of shape \(4, 3\)"),
        ({"cutmix_alpha": 1.0}, (12, 16), "augment.cutmix_alpha is 1.0, which moves"),
        ({"scale_jitter": (0.5, 2.0)}, (12, 16), "augment.scale_jitter adds black, which has no target: take"),
    ],
)
def test_what_would_move_the_image_alone_is_refused(fields, target, message):
    augment = Augment(**{"crop_padding": 0, **fields})
    with pytest.raises(InputError, match=message):
        require_movable_target(augment, MASKS[0, ..., None], np.zeros(target, np.uint8))
    require_movable_target(augment, MASKS[0, ..., None], 1)


def test_a_transform_of_ones_own_sees_image_and_target_and_a_key_of_each_example():
    def transform(key, image, target):
        return image // 2, target + jax.random.randint(key, (), 0, 1000)

    recipe = Recipe(augment=Augment(crop_padding=0))
    batch = whole(IMAGES, jnp.arange(8))
    out = jax.jit(make_preprocess(recipe, 100, 10, transform=transform))(KEY, 0, batch)
    np.testing.assert_allclose(out.image, normalize(IMAGES // 2, (0.5,), (0.5,)), rtol=1e-6)
    assert len(set((out.target - batch.target).tolist())) == 8
    part = jax.jit(make_preprocess(recipe, 100, 10, transform=transform))(KEY, 0, jax.tree.map(lambda x: x[4:], batch))
    np.testing.assert_array_equal(part.target, out.target[4:])


@pytest.mark.slow
def test_steps_with_all_this_are_the_same_from_host_and_devices(tiny, tmp_path):
    recipe = check(replace(tiny, augment=MUCH))
    sources = open_sources(recipe, tmp_path)
    setup = make_setup(recipe, sources.dataset, 1)
    step, ends = make_train_step(setup), []
    for loading in (DataLoading(), DataLoading(device_cache_gib=0.0, num_threads=0)):
        state = init_train_state(setup)
        for inputs in training_batches(open_device_split(sources.train, setup.mesh, loading), recipe, range(3)):
            state, sums = step(state, inputs, step_key(setup))
        ends.append(jax.device_get((state.params, sums)))
    chex.assert_trees_all_equal(*ends)
    assert np.isfinite(ends[0][1]["loss"])
