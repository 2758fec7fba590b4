"""Blocks and shortcuts."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICKLY

from resnet_jax.backend import compiler_options
from resnet_jax.model.blocks import BasicBlock, Bottleneck, OriginalBottleneck, PreActBasicBlock, PreActBottleneck
from resnet_jax.model.resnet import ResNet
from resnet_jax.model.shortcuts import SHORTCUTS, PadShortcut
from resnet_jax.model.stems import CifarStem, PreActCifarStem
from resnet_jax.summary import summarize


def network(**fields):
    return ResNet((1, 1), stem=CifarStem, width=4, num_classes=3, **fields)


def names_with_parameters(model):
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))["params"]
    return {block: set(params[block]) for block in ("stage1_block1", "stage2_block1")}


LAYERS = {"conv1", "norm1", "conv2", "norm2"}


@pytest.mark.parametrize(
    ("shortcut", "same_shape", "new_shape"),
    [("A", set(), set()), ("B", set(), {"shortcut"}), ("C", {"shortcut"}, {"shortcut"}), ("none", set(), set())],
)
def test_where_a_shortcut_has_parameters(shortcut, same_shape, new_shape):
    found = names_with_parameters(network(shortcut=SHORTCUTS[shortcut]))
    assert found == {"stage1_block1": LAYERS | same_shape, "stage2_block1": LAYERS | new_shape}


def test_option_a_subsamples_and_pads_channels_on_both_sides():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 4))
    y = PadShortcut(8, 2, None, None).apply({}, x)
    assert y.shape == (2, 3, 3, 8)
    np.testing.assert_array_equal(y[..., 2:6], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., :2], 0)
    np.testing.assert_array_equal(y[..., 6:], 0)
    np.testing.assert_array_equal(PadShortcut(4, 1, None, None).apply({}, x), x)


def strides(model):
    """Spatial size after each convolution of the block that halves the resolution."""
    rows = summarize(model, (8, 8, 3))
    return [row.output[0] for row in rows if row.path.startswith("stage2_block1/conv")]


def test_where_the_stride_is():
    assert strides(network(block=BasicBlock)) == [4, 4]
    assert strides(network(block=Bottleneck)) == [8, 4, 4]
    assert strides(network(block=OriginalBottleneck)) == [4, 4, 4]


def initial(model):
    """Parameters as they are drawn, and the output of every module."""
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    v = jax.jit(model.init, compiler_options=QUICKLY)(jax.random.key(0), x)
    apply = partial(model.apply, capture_intermediates=True)
    _, seen = jax.jit(apply, compiler_options=compiler_options() | QUICKLY)(v, x)
    return v["params"], seen["intermediates"]


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("zero_init", [True, False])
def test_zero_init_makes_a_block_its_shortcut(block, zero_init):
    _, seen = initial(network(block=block, shortcut=SHORTCUTS["A"], zero_init=zero_init))
    stem, out = seen["stem"]["__call__"][0], seen["stage1_block1"]["__call__"][0]
    identity = PadShortcut(out.shape[-1], 1, None, None).apply({}, stem)
    assert bool(jnp.array_equal(out, identity)) is zero_init


@pytest.mark.parametrize(("block", "last"), [(PreActBasicBlock, "conv2"), (PreActBottleneck, "conv3")])
@pytest.mark.parametrize("zero_init", [True, False])
def test_zero_init_makes_a_preactivation_block_its_shortcut(block, last, zero_init):
    params, seen = initial(network(block=block, zero_init=zero_init).clone(stem=PreActCifarStem))
    for name in ("stage1_block1", "stage2_block1"):
        out, around = seen[name]["__call__"][0], seen[name]["shortcut"]["__call__"][0]
        assert bool(jnp.array_equal(out, around)) is zero_init
        # The branch ends with a convolution, not with a scale
        assert bool((params[name][last]["kernel"] == 0).all()) is zero_init
        assert (params[name]["conv1"]["kernel"] != 0).any()
        assert (params[name]["norm2"]["scale"] == 1).all()


def test_plain_blocks_add_nothing():
    model = network(shortcut=SHORTCUTS["none"], zero_init=True)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    v = jax.jit(model.init, compiler_options=QUICKLY)(jax.random.key(0), x)
    out = jax.jit(model.apply, compiler_options=compiler_options() | QUICKLY)(v, x)
    np.testing.assert_array_equal(out, 0)  # the last scale is zero, and nothing goes around it


@pytest.mark.parametrize("shape", [(2, 16, 3), (2, 9, 8, 3), (2, 4, 8, 8, 3)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("shortcut", list(SHORTCUTS))
def test_one_to_three_dimensions(shape, shortcut):
    model = network(shortcut=SHORTCUTS[shortcut], block=Bottleneck)
    out = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros(shape)))[0]
    chex.assert_shape(out, (2, 3))
