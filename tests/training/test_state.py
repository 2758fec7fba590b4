"""What a network starts from: the distribution that linen would draw from, on any number of devices the same bits."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICKLY, TINY
from flax.traverse_util import flatten_dict

from resnet_jax.models.blocks import Bottleneck
from resnet_jax.models.layers import SqueezeExcite
from resnet_jax.models.resnet import ResNet
from resnet_jax.training.init import abstract_train_state, init_train_state
from resnet_jax.training.setup import make_setup
from resnet_jax.training.sources import open_sources
from resnet_jax.training.state import init_variables

SHAPE = (8, 8, 3)


def network(**fields):
    return ResNet((2, 1), block=Bottleneck, num_classes=5, gate=SqueezeExcite, groups=4, base_width=8, **fields)


@pytest.mark.parametrize("zero_init_residual", [False, True])
def test_draws_follow_the_initialisers_of_the_layers(zero_init_residual):
    model = network(zero_init_residual=zero_init_residual)

    def both(key):
        return init_variables(key, model, SHAPE), model.init(key, jnp.zeros((1, *SHAPE)))

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
    return init_variables(key, network(), SHAPE)["params"]


@pytest.mark.slow
def test_no_two_kernels_are_alike():
    draw = jax.jit(drawing, compiler_options=QUICKLY)
    drawn, other = (jax.device_get(draw(jax.random.key(seed))) for seed in (0, 1))
    firsts = [float(value.ravel()[0]) for value in jax.tree.leaves(drawn) if value.ndim > 1]
    assert len(set(firsts)) == len(firsts)
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (drawn, other)), strict=True) if a.ndim > 1)


def test_devices_and_shards_change_no_bit(tiny, tmp_path, monkeypatch):
    # Otherwise nothing of so small a network would be sharded
    monkeypatch.setattr("resnet_jax.parallel.sharding._SMALL", 8)
    recipe = replace(tiny, model=TINY, ema_decay=0.9)
    dataset = open_sources(recipe, tmp_path).dataset
    one = jax.device_get(init_train_state(make_setup(recipe, dataset, 1)))
    for devices, param_sharding in ((8, "replicated"), (8, "sharded"), (3, "sharded")):
        setup = make_setup(recipe, dataset, devices, param_sharding=param_sharding)
        state = init_train_state(setup)
        chex.assert_trees_all_equal(jax.device_get(state), one)
        known = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
        assert known == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), abstract_train_state(setup))
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
