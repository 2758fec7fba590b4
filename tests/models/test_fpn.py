"""The feature pyramid against direct computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.models.fpn import FPN, enlarge
from resnet_jax.models.layers import Conv
from resnet_jax.models.zoo import MODELS
from resnet_jax.runtime.compiler_options import compiler_options


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_enlarging_repeats_pixels():
    x = images(2, 3, 4, 2)
    np.testing.assert_array_equal(enlarge(x, (6, 12)), np.repeat(np.repeat(x, 2, 1), 3, 2))
    np.testing.assert_array_equal(enlarge(x, (3, 4)), x)
    # 5 pixels from 3: each begins at 0, 0.6, 1.2, 1.8 and 2.4 of theirs
    np.testing.assert_array_equal(enlarge(x, (5, 4)), np.asarray(x)[:, [0, 0, 1, 1, 2]])


@pytest.mark.parametrize("shape", [(8,), (8, 12), (4, 8, 4)], ids=["1d", "2d", "3d"])
def test_each_map_is_a_sum_with_the_coarser_one(shape):
    maps = [images(2, *(s // 2**i for s in shape), 3 + i, seed=i) for i in range(3)]
    model, random = FPN(5), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(3), maps)
    v = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32) / 4, shapes)

    def conv(v, kernel, name, x):
        return Conv(5, kernel, bias=True).apply({"params": v["params"][name]}, x)

    def direct(v, maps):
        merged = conv(v, 1, "lateral3", maps[2])
        results = [conv(v, 3, "output3", merged)]
        for i in (1, 0):
            for axis in range(1, len(shape) + 1):
                merged = jnp.repeat(merged, 2, axis)
            merged = merged + conv(v, 1, f"lateral{i + 1}", maps[i])
            results.insert(0, conv(v, 3, f"output{i + 1}", merged))
        return results

    compiled = jax.jit(lambda v, maps: (model.apply(v, maps), direct(v, maps)), compiler_options=compiler_options())
    for result, reference in zip(*compiled(v, maps), strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18_1d", "resnet50", "resnet50v2", "r3d_18"])
@pytest.mark.parametrize("output_stride", [None, 16])
def test_on_top_of_a_network(name, output_stride):
    model = MODELS[name].clone(depths=(1, 1, 1, 1), output_stride=output_stride)
    x = jnp.zeros((2, *(33, 47, 21)[: len(model.input_shape) - 1], model.input_shape[-1]))

    def pyramid():
        maps, _ = model.init_with_output(jax.random.key(0), x, method="features")
        return maps, FPN(8).init_with_output(jax.random.key(0), maps)[0]

    maps, results = jax.eval_shape(pyramid)
    assert [y.shape for y in results] == [(*y.shape[:-1], 8) for y in maps]


def test_half_precision_keeps_float32_parameters():
    maps = [images(1, 4, 4, 3), images(1, 2, 2, 6)]
    model = FPN(4, dtype=jnp.bfloat16)
    results, v = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), maps))
    assert {y.dtype for y in results} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(v)} == {jnp.dtype(jnp.float32)}
