"""The fast training of CIFAR-10: its parts by their formulas, and two steps of the whole."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICKLY

from experiments.fast.cifar10 import (
    BIAS_RATE,
    RATE,
    FastResNet,
    accuracy,
    identity,
    looked_ahead,
    make_optimizer,
    programs,
    sizes,
    train,
    views,
    whitening,
)

SMALL = FastResNet((8, 8, 16))


def initial(seed, images):
    return jax.jit(partial(SMALL.init, train=False), compiler_options=QUICKLY)(jax.random.key(seed), images)


def data(count=16):
    images = jax.random.randint(jax.random.key(0), (count, 32, 32, 3), 0, 256).astype(jnp.uint8)
    return images, jnp.arange(count) % 10


def test_whitened_patches_are_uncorrelated():
    images = jax.random.normal(jax.random.key(0), (64, 9, 9, 3))
    images = images + images[:, :, :, :1]  # correlated colours
    y = jax.lax.conv_general_dilated(
        images, whitening(images), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    flat = np.asarray(y[..., :12]).reshape(-1, 12)
    np.testing.assert_allclose(flat.T @ flat / len(flat), np.eye(12), atol=5e-3)
    np.testing.assert_allclose(y[..., 12:], -y[..., :12], atol=1e-5)


def test_shortcuts_lead_past_the_second_convolution_of_a_group():
    """Where it answers nothing, what goes in still comes out."""
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = initial(0, images)
    for number in (1, 2, 3):
        kernel = variables["params"][f"block{number}_conv"]["kernel"]
        variables["params"][f"block{number}_conv"]["kernel"] = jnp.zeros_like(kernel)
    one, other = jax.jit(partial(SMALL.apply, train=False), compiler_options=QUICKLY)(variables, images)
    assert not np.allclose(one, other)


def test_parameters_of_the_whole_network():
    """Counted by hand: whitening, two convolutions a group and their BatchNorm, head."""
    shapes = jax.eval_shape(partial(FastResNet().init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    groups = [9 * (a * b + b * b) + 4 * b for a, b in ((24, 64), (64, 256), (256, 256))]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 12 * 24 + 24 + sum(groups) + 256 * 10


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (5, 3), (4, 4)])
def test_convolutions_begin_as_the_identity(inputs, outputs):
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, inputs))
    kernel = identity(jax.random.key(1), (3, 3, inputs, outputs))
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    same = min(inputs, outputs)
    np.testing.assert_allclose(y[..., :same], x[..., :same], rtol=1e-6)


def test_fast_parameters_begin_again_from_the_slow_ones():
    fast, slow = {"a": jnp.array(2.0)}, {"a": jnp.array(1.0)}
    assert looked_ahead(fast, slow, jnp.array(3), 100) == (fast, slow)
    keep = 0.95**5 * 0.04**3
    both = looked_ahead(fast, slow, jnp.array(4), 100)
    np.testing.assert_allclose([tree["a"] for tree in both], 2 - keep, rtol=1e-6)


def test_each_kind_of_parameter_has_its_rate():
    params = initial(0, jnp.zeros((1, 32, 32, 3)))["params"]
    optimizer = make_optimizer(params, 100, 0)
    none, ones = (jax.tree.map(fill, params) for fill in (jnp.zeros_like, jnp.ones_like))
    updates, _ = jax.jit(optimizer.update)(ones, jax.jit(optimizer.init)(params), none)  # of zeros nothing decays
    moved = {
        path: float(jnp.abs(updates[path[0]][path[1]]).max()) for path in (("group1_norm", "bias"), ("head", "kernel"))
    }
    assert moved["group1_norm", "bias"] == pytest.approx(0.2 * BIAS_RATE * RATE * 1.85, rel=1e-3)
    assert moved["head", "kernel"] == pytest.approx(0.2 * RATE * 1.85, rel=1e-3)
    for fixed in ("kernel", "bias"):  # whose steps are over
        assert not np.any(updates["whiten"][fixed])
    assert not np.any(updates["group1_norm"]["scale"])


def test_views_of_what_looks_alike_everywhere_are_the_image():
    colours = jax.random.normal(jax.random.key(0), (2, 1, 1, 3))
    images = jnp.broadcast_to(colours, (2, 32, 32, 3))
    variables = initial(1, images)
    both = jax.jit(lambda x: (views(SMALL, variables, x), SMALL.apply(variables, x, train=False)))
    np.testing.assert_allclose(*both(images), rtol=1e-4, atol=1e-6)
    assert not np.allclose(*both(jax.random.normal(jax.random.key(2), images.shape)), atol=1e-4)


def test_a_run_learns_by_heart():
    images, labels = data()
    run = programs(SMALL, len(images), 8, 40)
    state, loss = train(run, 0, (images, labels), 8, 2)
    assert int(state.step) == 2
    state, later = train(run, 0, (images, labels), 8, 40)
    assert later < loss
    assert accuracy(run, state, (images, labels), batch=8) > 0.5


def test_few_images_are_still_a_training():
    assert sizes(50_000, 11.0) == (1024, 537)
    assert sizes(2, 0.1) == (1, 1)
