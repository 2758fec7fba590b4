"""What a network starts from: the distribution that linen would draw from, on any number of devices the same bits."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICKLY
from flax.traverse_util import flatten_dict

from resnet_jax.model.blocks import Bottleneck
from resnet_jax.model.layers import SqueezeExcite
from resnet_jax.model.resnet import ResNet
from resnet_jax.recipe import Model
from resnet_jax.train.job import abstract, initial, open_sources, prepare
from resnet_jax.train.state import draw_variables

SHAPE = (8, 8, 3)


def network(**fields):
    return ResNet((2, 1), block=Bottleneck, num_classes=5, gate=SqueezeExcite, groups=4, base_width=8, **fields)


@pytest.mark.parametrize("zero_init", [False, True])
def test_draws_follow_the_initialisers_of_the_layers(zero_init):
    model = network(zero_init=zero_init)

    def both(key):
        return draw_variables(key, model, SHAPE), model.init(key, jnp.zeros((1, *SHAPE)))

    drawn, expected = map(flatten_dict, jax.device_get(jax.jit(both, compiler_options=QUICKLY)(jax.random.key(0))))
    chex.assert_trees_all_equal_shapes_and_dtypes(drawn, expected)
    for path, value in drawn.items():
        if value.ndim == 1:
            np.testing.assert_array_equal(value, expected[path])  # zeros and ones
        elif path[1:] == ("head", "kernel"):
            np.testing.assert_allclose(value.std(), 0.01, rtol=0.05)
        else:
            variance = 2 / (value.shape[-1] * np.prod(value.shape[:-2]))
            error = 5 * np.sqrt(2 / value.size)  # five standard deviations of a variance that is estimated
            assert abs(value.var() / variance - 1) < error, path
            assert abs(value.mean()) < 5 * np.sqrt(variance / value.size), path


def drawing(key):
    return draw_variables(key, network(), SHAPE)["params"]


def test_no_two_kernels_are_alike():
    draw = jax.jit(drawing, compiler_options=QUICKLY)
    drawn, other = (jax.device_get(draw(jax.random.key(seed))) for seed in (0, 1))
    firsts = [float(value.ravel()[0]) for value in jax.tree.leaves(drawn) if value.ndim > 1]
    assert len(set(firsts)) == len(firsts)
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (drawn, other)), strict=True) if a.ndim > 1)


def test_devices_and_shards_change_no_bit(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_jax.train.devices._SMALL", 8)  # or else nothing of so small a network were sharded
    recipe = replace(tiny, model=Model(name="tiny"), ema=0.9)
    dataset = open_sources(recipe, tmp_path).dataset
    one = jax.device_get(initial(prepare(recipe, dataset, 1)))
    for devices, shard in ((8, "nothing"), (8, "params"), (3, "params")):
        job = prepare(recipe, dataset, devices, shard=shard)
        state, sums = initial(job)
        chex.assert_trees_all_equal(jax.device_get((state, sums)), one)
        known = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), (state, sums))
        assert known == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), abstract(job))
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
