"""The fast training of CIFAR-10: its parts against their formulas, and a few steps of the whole on smaller images."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.fast.cifar10 import (
    BIAS_LR_MULT,
    LR,
    FastResNet,
    accuracy,
    augmented_logits,
    identity,
    lookahead,
    make_optimizer,
    make_programs,
    sizes,
    train,
    whitening,
)

SMALL = FastResNet((16,))
SIZE = 16  # pixels, instead of 32


@pytest.fixture(scope="module")
def variables():
    return jax.jit(partial(SMALL.init, train=False))(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))


@pytest.fixture(scope="module")
def logits():
    """Jitted (variables, images) -> logits."""
    return jax.jit(partial(SMALL.apply, train=False))


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_whitened_patches_are_uncorrelated():
    images = normal(0, 64, 9, 9, 3)
    # Correlated colours
    images = images + images[:, :, :, :1]
    y = jax.lax.conv_general_dilated(
        images, jax.jit(whitening)(images), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    flat = np.asarray(y[..., :12]).reshape(-1, 12)
    np.testing.assert_allclose(flat.T @ flat / len(flat), np.eye(12), atol=5e-3)
    np.testing.assert_allclose(y[..., 12:], -y[..., :12], atol=1e-5)


def test_shortcuts_bypass_the_second_convolution_of_a_group(variables, logits):
    """If its kernel is zero, its input still reaches the output."""
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.zeros_like(leaf) if re.fullmatch("block._conv", path[0].key) else leaf,
        variables["params"],
    )
    one, other = logits({**variables, "params": params}, normal(0, 2, SIZE, SIZE, 3))
    assert not np.allclose(one, other)


def test_parameters_of_the_whole_network():
    """Counted by hand: whitening, two convolutions per group and their BatchNorm, head."""
    shapes = jax.eval_shape(partial(FastResNet().init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    groups = [9 * (a * b + b * b) + 4 * b for a, b in ((24, 64), (64, 256), (256, 256))]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 12 * 24 + 24 + sum(groups) + 256 * 10


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (5, 3), (4, 4)])
def test_convolutions_start_as_the_identity(inputs, outputs):
    x = normal(0, 2, 5, 5, inputs)
    kernel = jax.jit(identity, static_argnums=1)(jax.random.key(1), (3, 3, inputs, outputs))
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    same = min(inputs, outputs)
    np.testing.assert_allclose(y[..., :same], x[..., :same], rtol=1e-6)


def test_fast_parameters_restart_from_the_slow_ones():
    fast, slow = {"a": jnp.array(2.0)}, {"a": jnp.array(1.0)}
    assert lookahead(fast, slow, jnp.array(3), 100) == (fast, slow)
    keep = 0.95**5 * 0.04**3
    both = lookahead(fast, slow, jnp.array(4), 100)
    np.testing.assert_allclose([tree["a"] for tree in both], 2 - keep, rtol=1e-6)


def test_each_kind_of_parameter_has_its_learning_rate(variables):
    optimizer = make_optimizer(variables["params"], 100, 0)
    # Zeros do not decay
    zeros, ones = (jax.tree.map(fill, variables["params"]) for fill in (np.zeros_like, np.ones_like))
    updates, _ = jax.jit(lambda grads, params: optimizer.update(grads, optimizer.init(params), params))(ones, zeros)
    moved = {
        path: float(jnp.abs(updates[path[0]][path[1]]).max()) for path in (("group1_norm", "bias"), ("head", "kernel"))
    }
    assert moved["group1_norm", "bias"] == pytest.approx(0.2 * BIAS_LR_MULT * LR * 1.85, rel=1e-3)
    assert moved["head", "kernel"] == pytest.approx(0.2 * LR * 1.85, rel=1e-3)
    # Its steps are over
    for frozen in ("kernel", "bias"):
        assert not np.any(updates["whiten"][frozen])
    assert not np.any(updates["group1_norm"]["scale"])


def test_flips_and_shifts_change_nothing_in_a_uniform_image(variables, logits):
    augmented = jax.jit(partial(augmented_logits, SMALL))
    uniform, noise = jnp.broadcast_to(normal(0, 2, 1, 1, 3), (2, SIZE, SIZE, 3)), normal(2, 2, SIZE, SIZE, 3)
    np.testing.assert_allclose(augmented(variables, uniform), logits(variables, uniform), rtol=1e-4, atol=1e-6)
    assert not np.allclose(augmented(variables, noise), logits(variables, noise), atol=1e-4)


@pytest.mark.slow
def test_a_run_memorises_its_images():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), np.uint8))
    data = images, jnp.arange(16) % 10
    programs = make_programs(SMALL, len(images), 8, 80)
    state, loss = train(programs, 0, data, 8, 2)
    assert int(state.step) == 2
    state, later = train(programs, 0, data, 8, 80)
    assert later < loss
    assert accuracy(programs, state, data, batch=8) > 0.5


def test_few_images_make_at_least_one_step():
    assert sizes(50_000, 11.0) == (1024, 537)
    assert sizes(2, 0.1) == (1, 1)
