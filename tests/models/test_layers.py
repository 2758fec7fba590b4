"""Convolution, pooling and padding against direct computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from resnet_jax.models.layers import Conv, he_normal_fan_out, max_pool, relu


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "stride", "size"), [(1, 2, 7), (3, 1, 6), (3, 2, 6), (3, 2, 7), (7, 2, 9)])
def test_conv_is_cross_correlation_with_symmetric_padding(rank, kernel, stride, size):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, *(size,) * rank, 3)).astype(np.float32)
    module = Conv(4, kernel, stride)
    shapes = jax.eval_shape(module.init, jax.random.key(1), x)
    fan_out = 4 * kernel**rank
    v = jax.tree.map(lambda leaf: random.normal(0, (2 / fan_out) ** 0.5, leaf.shape).astype(np.float32), shapes)
    weights = np.asarray(v["params"]["kernel"], np.float64)
    assert weights.shape == (*(kernel,) * rank, 3, 4)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), *((kernel // 2,) * 2,) * rank, (0, 0)))
    steps = (slice(None, None, stride),) * rank
    expected = [
        [sum(correlate(row[..., i], weights[..., i, o], "valid") for i in range(3))[steps] for o in range(4)]
        for row in padded
    ]
    found = jax.jit(module.apply)(v, x)
    np.testing.assert_allclose(found, np.moveaxis(np.array(expected), 1, -1), rtol=1e-4, atol=1e-5)


def test_conv_computes_in_its_dtype_and_keeps_float32_parameters():
    x = jnp.ones((1, 4, 4, 3))
    module = Conv(4, dtype=jnp.bfloat16)
    v = module.init(jax.random.key(0), x)
    assert v["params"]["kernel"].dtype == jnp.float32
    assert module.apply(v, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("size", [6, 7])
def test_max_pool(size):
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, size, size, 3)))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), windows.max((-1, -2)))


def test_initial_kernels_have_the_variance_of_he_et_al():
    kernel = he_normal_fan_out(jax.random.key(0), (3, 3, 64, 128), jnp.float32)
    np.testing.assert_allclose(np.var(kernel), 2 / (9 * 128), rtol=0.02)


def test_relu_and_its_gradients_are_those_of_jax():
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0, jnp.inf, -jnp.inf])
    np.testing.assert_array_equal(relu(x), jax.nn.relu(x))
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu))(x), jax.vmap(jax.grad(jax.nn.relu))(x))
    twice = jax.grad(lambda x: jax.grad(lambda y: (relu(y) ** 2).sum())(x).sum())
    np.testing.assert_array_equal(twice(x[:5]), [0, 0, 0, 2, 2])
    assert np.isnan(relu(jnp.nan))
