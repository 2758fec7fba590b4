"""Operations as one sequence are the operations themselves; policies depend on nothing but key and image."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.augment import affine, augment_one, color, map_images, policies
from resnet_jax.data.augment.erase import cutout, random_erase
from resnet_jax.data.augment.geometry import random_resized_crop
from resnet_jax.data.augment.jitter import jitter
from resnet_jax.data.augment.operations import Operation, apply_op, apply_ops
from resnet_jax.data.augment.tables import IMAGENET
from resnet_jax.parallel.sharding import batch_sharding, data_mesh

IMAGES = jax.random.randint(jax.random.key(0), (16, 18, 14, 3), 0, 220).astype(jnp.uint8)
DIRECT = {
    Operation.IDENTITY: (0.0, lambda x: x),
    Operation.SHEAR_X: (-0.3, lambda x: affine.shear_x(x, -0.3, fill=128)),
    Operation.SHEAR_Y: (0.2, lambda x: affine.shear_y(x, 0.2, fill=128)),
    Operation.TRANSLATE_X: (4.0, lambda x: affine.translate(x, 4, 0, fill=128)),
    Operation.TRANSLATE_Y: (-3.0, lambda x: affine.translate(x, 0, -3, fill=128)),
    Operation.ROTATE: (21.0, lambda x: affine.rotate(x, 21.0, fill=128)),
    Operation.BRIGHTNESS: (0.5, lambda x: color.brightness(x, 1.5)),
    Operation.COLOR: (-0.75, lambda x: color.saturation(x, 0.25)),
    Operation.CONTRAST: (0.5, lambda x: color.contrast(x, 1.5)),
    Operation.SHARPNESS: (-0.5, lambda x: color.sharpness(x, 0.5)),
    Operation.POSTERIZE: (3.0, lambda x: color.posterize(x, 3)),
    Operation.SOLARIZE: (100.5, lambda x: color.solarize(x, 100.5)),
    Operation.AUTO_CONTRAST: (0.0, color.autocontrast),
    Operation.EQUALIZE: (0.0, color.equalize),
    Operation.INVERT: (0.0, color.invert),
    Operation.SOLARIZE_ADD: (66.0, lambda x: color.solarize_add(x, 66)),
}
OPERATE = jax.jit(jax.vmap(partial(apply_op, fill=128)))
CHANGES = {
    "randaugment_inc": policies.randaugment_inc,
    "trivialaugment_wide": partial(policies.trivialaugment_wide, interpolation="bilinear"),
    "imagenet": partial(policies.autoaugment, policy=IMAGENET),
    "others": partial(
        augment_one,
        pad=2,
        mirror=True,
        pad_mode="reflect",
        changes=(
            lambda key, image: random_resized_crop(key, image, image.shape[:2]),
            partial(jitter, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
            partial(cutout, size=5),
            partial(random_erase, probability=0.5),
        ),
    ),
}


@pytest.mark.parametrize("channels", [1, 3])
def test_each_operation_of_the_sequence_is_the_operation(channels):
    images = jnp.stack([IMAGES[0, ..., :channels]] * len(DIRECT))
    names, arguments = jnp.array(list(DIRECT), jnp.int32), jnp.array([argument for argument, _ in DIRECT.values()])
    directly = jax.jit(lambda image: [direct(image) for _, direct in DIRECT.values()])(images[0])
    for result, name, expected in zip(OPERATE(images, names, arguments), DIRECT, directly, strict=True):
        np.testing.assert_array_equal(result, expected, err_msg=name.name)


def test_operations_in_turn():
    names, arguments = jnp.array([Operation.ROTATE, Operation.EQUALIZE], jnp.int32), jnp.array([20.0, 0])
    expected = jax.jit(lambda image: color.equalize(affine.rotate(image, 20.0)))(IMAGES[0])
    np.testing.assert_array_equal(jax.jit(apply_ops)(IMAGES[0], names, arguments), expected)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "imagenet" else pytest.mark.slow) for name in CHANGES]
)
def test_key_and_image_decide_alone(name):
    """Not the batch, its size, nor the devices: sixteen images on eight devices, and each alone on one."""
    change, key = CHANGES[name], jax.random.key(7)
    batched, alone = jax.jit(partial(map_images, change=change)), jax.jit(change)
    images = jax.device_put(IMAGES, batch_sharding(data_mesh(8)))
    spread = batched(key, images)
    assert (spread.shape, spread.dtype) == (IMAGES.shape, IMAGES.dtype)
    assert len(spread.sharding.device_set) == 8
    for place, (image, result) in enumerate(zip(IMAGES, np.asarray(spread), strict=True)):
        np.testing.assert_array_equal(alone(jax.random.fold_in(key, place), image), result)
    assert (np.asarray(batched(jax.random.key(8), images)) != spread).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_the_compiler_and_the_size_of_the_batch_do_not_decide(name):
    change, key = CHANGES[name], jax.random.key(7)
    whole = jax.jit(partial(map_images, change=change))(key, IMAGES)
    # Not compiled, and compiled for one image
    alone = change if name == "others" else jax.jit(change)
    np.testing.assert_array_equal(alone(jax.random.fold_in(key, 5), IMAGES[5]), whole[5])


@pytest.mark.slow
def test_magnitude_zero_of_the_operations_that_grow_with_it():
    """What is left are those without a magnitude: of RandAugment, autocontrast and equalize."""
    stretched = IMAGES.at[:, 0, 0].set(255).at[:, 0, 1].set(0)  # which autocontrast leaves alone
    out = jax.jit(partial(map_images, change=partial(policies.randaugment, count=1, magnitude=0.0)))(
        jax.random.key(0), stretched
    )
    allowed = jax.jit(jax.vmap(lambda image: jnp.stack([image, color.equalize(image), color.solarize(image, 255)])))(
        stretched
    )
    assert (allowed == out[:, None]).all((2, 3, 4)).any(1).all()


@pytest.mark.parametrize("policy", [policies.randaugment, policies.trivialaugment_wide])
def test_operations_are_drawn_evenly(policy, monkeypatch):
    monkeypatch.setattr(policies, "apply_op", lambda image, name, argument, **_: jnp.stack([1.0 * name, argument]))
    monkeypatch.setattr(
        policies, "apply_ops", lambda image, names, arguments, **_: jnp.stack([1.0 * names[0], arguments[0]])
    )
    drawn = jax.jit(jax.vmap(lambda key: policy(key, IMAGES[0])))(jax.random.split(jax.random.key(0), 2800))
    counts = Counter(np.asarray(drawn[:, 0], int).tolist())
    assert len(counts) == 14
    assert min(counts.values()) > 140
    assert max(counts.values()) < 260
    signs = np.asarray(drawn[drawn[:, 0] == Operation.ROTATE, 1])
    assert 0.35 < (signs > 0).mean() < 0.65


def test_only_the_increasing_policy_leaves_half_of_the_operations_out(monkeypatch):
    monkeypatch.setattr(policies, "apply_ops", lambda image, names, arguments, **_: names)
    keys = jax.random.split(jax.random.key(0), 1000)
    names = jax.jit(jax.vmap(lambda key: policies.randaugment_inc(key, IMAGES[0], count=3)))(keys)
    assert names.shape == (1000, 3)
    assert 0.46 < (names == Operation.IDENTITY).mean() < 0.54


def test_noise_of_the_magnitude():
    levels = policies._levels(jax.random.key(0), 4000, 9.0, 0.5, 10.0)
    assert levels.max() == 10
    assert abs(float(levels.mean()) - 9) < 0.05
    assert 0.4 < float(levels.std()) < 0.55
    np.testing.assert_array_equal(policies._levels(jax.random.key(0), 3, 7.0, 0.0, 10.0), [7, 7, 7])
