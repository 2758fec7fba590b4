"""Blocks and shortcuts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICKLY

from resnet_jax.models.blocks import BasicBlock, Bottleneck, OriginalBottleneck, PreActBasicBlock, PreActBottleneck
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import SHORTCUTS, PadShortcut
from resnet_jax.models.stems import CifarStem, PreActCifarStem
from resnet_jax.models.summary import summarize
from resnet_jax.runtime.compiler_options import compiler_options


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
    """By zero_init_residual: parameters as they are drawn, and the output of every module."""
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)

    def draw(key, zero_init_residual):
        network = model.clone(zero_init_residual=zero_init_residual)
        v = network.init(key, x)
        _, seen = network.apply(v, x, capture_intermediates=True)
        return v["params"], seen["intermediates"]

    options = compiler_options() | QUICKLY
    both = jax.jit(lambda key: [draw(key, zero) for zero in (False, True)], compiler_options=options)
    return dict(zip((False, True), both(jax.random.key(0)), strict=True))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_zero_init_makes_a_block_its_shortcut(block):
    for zero_init_residual, (_, seen) in initial(network(block=block, shortcut=SHORTCUTS["A"])).items():
        stem, out = seen["stem"]["__call__"][0], seen["stage1_block1"]["__call__"][0]
        identity = PadShortcut(out.shape[-1], 1, None, None).apply({}, stem)
        assert bool(jnp.array_equal(out, identity)) is zero_init_residual


@pytest.mark.parametrize(("block", "last"), [(PreActBasicBlock, "conv2"), (PreActBottleneck, "conv3")])
def test_zero_init_makes_a_preactivation_block_its_shortcut(block, last):
    for zero_init_residual, (params, seen) in initial(network(block=block).clone(stem=PreActCifarStem)).items():
        for name in ("stage1_block1", "stage2_block1"):
            out, around = seen[name]["__call__"][0], seen[name]["shortcut"]["__call__"][0]
            assert bool(jnp.array_equal(out, around)) is zero_init_residual
            # The branch ends with a convolution, not with a scale
            assert bool((params[name][last]["kernel"] == 0).all()) is zero_init_residual
            assert (params[name]["conv1"]["kernel"] != 0).any()
            assert (params[name]["norm2"]["scale"] == 1).all()


def test_plain_blocks_add_nothing():
    model = network(shortcut=SHORTCUTS["none"], zero_init_residual=True)
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
