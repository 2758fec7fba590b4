"""The whole network: maps of stages, strides traded for dilation, and what is dropped in training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICKLY
from flax import linen as nn
from flax.errors import InvalidRngError

from resnet_jax.errors import InputError
from resnet_jax.models.blocks import (
    BasicBlock,
    Bottleneck,
    OriginalBottleneck,
    PreActBasicBlock,
    PreActBottleneck,
    no_norm,
)
from resnet_jax.models.layers import Conv, Dropout, blur_pool
from resnet_jax.models.norm import group_norm
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import SHORTCUTS, AverageShortcut, DimensionShortcut
from resnet_jax.models.stems import CifarStem, PreActCifarStem
from resnet_jax.models.zoo import MODELS
from resnet_jax.runtime.compiler_options import compiler_options


def jit(f):
    return jax.jit(f, compiler_options=compiler_options() | QUICKLY)


def images(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


def variables(model, x):
    """Random parameters and statistics, without compiling how they are drawn."""
    random = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("var", "scale"):
            return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.2
        return random.normal(scale=scale, size=leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0), x))


def small(*depths, **fields):
    return ResNet(depths, **{"stem": CifarStem, "width": 4, "num_classes": 3, **fields})


# Maps of stages


@pytest.mark.parametrize("output_stride", [None, 8, 16])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18_1d", (37,)),
        ("resnet50", (33, 46)),
        ("resnetrs50", (33, 46)),
        ("resnetblur50d", (33, 46)),
        ("resnet50v2", (33, 46)),
        ("resnetv2_50x1_bit", (33, 46)),
        ("r3d_18", (5, 33, 46)),
        ("mc3_18", (5, 33, 46)),
        ("r2plus1d_18", (5, 33, 46)),
    ],
)
def test_maps_are_what_stages_say(name, shape, output_stride):
    model = MODELS[name].clone(depths=(1, 2, 1, 1), output_stride=output_stride)
    x = jnp.zeros((2, *shape, model.input_shape[-1]))
    maps, _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x, method="features"))
    stages, rank = model.stages(), len(shape)
    for seen, stage in zip(maps, stages, strict=True):
        total = (stage.total_stride,) * rank if isinstance(stage.total_stride, int) else stage.total_stride
        assert seen.shape == (2, *(-(-size // t) for size, t in zip(shape, total, strict=True)), stage.channels)
    if output_stride:
        assert np.max(stages[-1].total_stride) == output_stride


def test_stages_of_known_networks():
    assert [s.channels for s in MODELS["resnet50"].stages()] == [256, 512, 1024, 2048]
    assert [s.total_stride for s in MODELS["resnet50"].stages()] == [4, 8, 16, 32]
    assert [s.total_stride for s in MODELS["resnet56"].stages()] == [1, 2, 4]
    assert [s.total_stride for s in MODELS["resnet9"].stages()] == [2, 4, 8]
    assert [s.total_stride for s in MODELS["r3d_18"].stages()] == [(1, 2, 2), (2, 4, 4), (4, 8, 8), (8, 16, 16)]
    # The later blocks keep all frames
    assert [s.total_stride for s in MODELS["mc3_18"].stages()] == [(1, 2, 2), (1, 4, 4), (1, 8, 8), (1, 16, 16)]
    dilated = MODELS["resnet50"].clone(output_stride=8).stages()
    assert [s.dilations for s in dilated] == [(1, 1), (1, 1), (1, 2), (2, 4)]
    assert [s.stride for s in dilated] == [1, 2, 1, 1]


def test_what_would_subsample_the_frames_of_a_block_that_keeps_them_is_refused():
    for fields, message in (
        ({"shortcut": AverageShortcut}, "shortcut: D would average frames"),
        ({"antialias": blur_pool}, "antialias: it would subsample time"),
    ):
        model = MODELS["mc3_18"].clone(depths=(1, 1), **fields)
        with pytest.raises(InputError, match=message):
            jax.eval_shape(lambda m=model: m.init(jax.random.key(0), jnp.zeros((1, 4, 8, 8, 3))))


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        pytest.param({}, (9, 8), marks=pytest.mark.slow),
        ({"block": Bottleneck, "output_stride": 2}, (8, 8)),
        pytest.param({"block": PreActBasicBlock, "stem": PreActCifarStem}, (9, 8), marks=pytest.mark.slow),
        ({}, (11,)),
        pytest.param({"num_classes": 0}, (4, 6, 5), marks=pytest.mark.slow),
    ],
    ids=["post", "dilated", "pre", "sequence", "video without a head"],
)
def test_resumed_from_the_map_of_any_stage_it_ends_the_same(fields, shape):
    model, x = small(1, 2, 1, **fields), images(2, *shape, 2)
    v = variables(model, x)

    @jit
    def both(v):
        maps = model.apply(v, x, method="features")
        return model.apply(v, x), [model.apply(v, m, n, method="forward_from_stage") for n, m in enumerate(maps, 1)]

    whole, resumed = both(v)
    assert len(resumed) == 3
    for logits in resumed:
        np.testing.assert_allclose(logits, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("output_stride", [3, 0, -8, 2, 12, 64])
def test_output_strides_that_cannot_be_had(output_stride):
    model = MODELS["resnet50"].clone(output_stride=output_stride)
    with pytest.raises(InputError, match=f"output_stride is {output_stride}; it must be one of"):
        model.stages()
    with pytest.raises(InputError, match=f"output_stride is {output_stride}"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))


@pytest.mark.parametrize(
    ("block", "shortcut", "output_stride", "shape"),
    [
        (BasicBlock, "A", 1, (8, 16)),
        pytest.param(BasicBlock, "B", 1, (8, 16), marks=pytest.mark.slow),
        pytest.param(BasicBlock, "D", 2, (8, 16), marks=pytest.mark.slow),
        pytest.param(Bottleneck, "B", 2, (8, 16), marks=pytest.mark.slow),
        pytest.param(Bottleneck, "C", 1, (8, 16), marks=pytest.mark.slow),
        (Bottleneck, "D", 1, (8, 16)),
        pytest.param(OriginalBottleneck, "B", 1, (8, 16), marks=pytest.mark.slow),
        (PreActBasicBlock, "B", 1, (8, 16)),
        (PreActBottleneck, "D", 1, (8, 16)),
        (Bottleneck, "B", 1, (24,)),
        (BasicBlock, "D", 1, (4, 8, 4)),
    ],
)
def test_dilation_computes_what_the_stride_would_have_kept(block, shortcut, output_stride, shape):
    """The algorithme a trous: the ordinary maps are the finer ones, subsampled, with the same parameters."""
    stem = PreActCifarStem if block.preactivation else CifarStem
    model = small(1, 2, 1, block=block, stem=stem, shortcut=SHORTCUTS[shortcut])
    finer = model.clone(output_stride=output_stride)
    x = images(2, *shape, 3)
    v = variables(model, x)
    ordinary, fine = jit(lambda v: (model.apply(v, x, method="features"), finer.apply(v, x, method="features")))(v)
    assert fine[-1].shape[1] == shape[0] // output_stride
    for few, many in zip(ordinary, fine, strict=True):
        step = (slice(None, None, many.shape[1] // few.shape[1]),) * len(shape)
        np.testing.assert_allclose(many[(slice(None), *step)], few, rtol=1e-4, atol=1e-5 * float(jnp.abs(few).max()))


@pytest.mark.slow
def test_the_blur_is_dilated_with_the_rest():
    for block, stem in ((BasicBlock, CifarStem), (Bottleneck, CifarStem), (PreActBottleneck, PreActCifarStem)):
        model = small(1, 2, 1, block=block, stem=stem, antialias=blur_pool)
        x = images(2, 16, 24, 3)
        v = variables(model, x)
        finer = model.clone(output_stride=1)
        few, many = jit(lambda v: [m.apply(v, x, method="features")[-1] for m in (model, finer)])(v)  # noqa: B023
        np.testing.assert_allclose(many[:, ::4, ::4], few, rtol=1e-4, atol=1e-5 * float(jnp.abs(few).max()))


def test_pools_are_not_dilated():
    model = MODELS["resnet9"].clone(output_stride=4)
    with pytest.raises(InputError, match="output_stride: the pools of a PooledBlock cannot be dilated"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))


def test_antialiasing_is_less_sensitive_to_shifts():
    """A pattern on an empty canvas, moved by less than the stride: what the pooled features change by."""
    canvas = np.zeros((9, 76, 76, 3), np.float32)
    for shift, moved in enumerate(canvas):
        moved[28 + shift : 40 + shift, 28 + shift : 40 + shift] = images(12, 12, 3)

    def change(model):
        v = variables(model, canvas)
        zero = [{"bias": 0, "mean": 0}.get(path[-1].key, 1) for path, _ in jax.tree.leaves_with_path(v)]
        v = jax.tree.map(jnp.multiply, v, jax.tree.unflatten(jax.tree.structure(v), zero))  # empty stays empty
        features = np.asarray(jit(model.apply)(v, canvas))
        changes = np.linalg.norm(features - features[0], axis=1) / np.linalg.norm(features[0])
        assert changes[8] < 1e-5  # by the whole stride: the same maps elsewhere
        return changes[2:8:2].mean()  # the first convolution has stride two with and without

    model = ResNet((1, 1), width=4, num_classes=0, shortcut=AverageShortcut)
    plain, blurred = change(model), change(model.clone(antialias=blur_pool))
    assert plain > 0.1
    assert blurred < plain / 3


# Heads and inputs


@pytest.mark.parametrize("name", ["resnet20", "resnet50v2"])
def test_without_classes_the_output_is_the_mean_of_the_last_map(name):
    model = MODELS[name].clone(depths=(1, 1), width=4, stem_features=4, num_classes=0)
    x = images(2, 16, 12, 3)
    v = variables(model, x)
    assert "head" not in v["params"]
    pooled, maps = jit(lambda v: (model.apply(v, x), model.apply(v, x, method="features")))(v)
    assert pooled.shape == (2, model.stages()[-1].channels)
    np.testing.assert_allclose(pooled, maps[-1].mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("name", ["resnet18", "resnetrs50", "resnetv2_50x1_bit", "resnet20", "r3d_18"])
def test_any_number_of_input_channels(name, channels):
    model = MODELS[name].clone(depths=(1, 1, 1), num_classes=3)
    x = jnp.zeros((2, *(16,) * (len(model.input_shape) - 1), channels))
    assert jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x))[0].shape == (2, 3)


# Dropout and stochastic depth


def dropped(model, **rngs):
    """The Dropout modules that a training step calls, in order."""
    seen = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, Dropout):
            seen.append(context.module)
        return call(*args, **kwargs)

    def step():
        x = jnp.zeros((2, 8, 8, 3))
        v = model.init(jax.random.key(0), x)
        with nn.intercept_methods(record):
            return model.apply(v, x, train=True, mutable=["batch_stats"], rngs=rngs)

    jax.eval_shape(step)
    return seen


KEY = {"dropout": jax.random.key(0)}
RATES = ["dropout", "head_dropout", "drop_path"]


@pytest.mark.parametrize("rate", RATES)
def test_evaluation_drops_nothing(rate):
    model, x = small(1, 1), images(2, 8, 8, 3)
    v = variables(model, x)
    ordinary, other = jit(lambda v: (model.apply(v, x), model.clone(**{rate: 0.9}).apply(v, x)))(v)
    np.testing.assert_array_equal(ordinary, other)


@pytest.mark.parametrize("rate", RATES)
def test_only_what_drops_needs_the_random_stream(rate):
    assert dropped(small(1, 1)) == []  # and no stream was given
    with pytest.raises(InvalidRngError, match="dropout"):
        dropped(small(1, 1, **{rate: 0.5}))
    assert dropped(small(1, 1, **{rate: 0.5}), **KEY)


def test_the_rate_of_drop_path_grows_linearly_from_zero():
    found = dropped(small(2, 3, drop_path=0.4), **KEY)
    np.testing.assert_allclose([module.rate for module in found], [0.1, 0.2, 0.3, 0.4])  # the first block drops nothing
    assert {module.shared for module in found} == {(1, 2, 3)}
    assert dropped(small(1, drop_path=0.4)) == []


def conv(features, *, last=False, **fields):
    return Conv(features, **fields)


# Without normalisation, and without a last activation: the input and a branch, added
BLOCK = partial(PreActBasicBlock, 4, 1, conv, no_norm, nn.relu, DimensionShortcut)


def test_dropout_of_wide_networks():
    """One in each block, of single activations, between the two convolutions."""
    wide = MODELS["wrn_16_8"].clone(width=4, dropout=0.3, head_dropout=0.5)
    found = dropped(wide, **KEY)
    assert [module.rate for module in found] == [0.3] * 6 + [0.5]
    assert {module.shared for module in found} == {()}

    x = images(4, 8, 8, 4)
    v = variables(BLOCK(), x)
    seen = []
    y = BLOCK(dropout=lambda y: seen.append(y) or jnp.zeros_like(y)).apply(v, x)
    np.testing.assert_array_equal(y, x)  # nothing is left of the branch
    first = Conv(4).apply({"params": v["params"]["conv1"]}, nn.relu(x))
    np.testing.assert_allclose(seen[0], nn.relu(first), rtol=1e-5, atol=1e-6)


def test_drop_path_drops_whole_branches_of_single_images():
    model = small(2, norm=partial(group_norm, num_groups=2))  # so that images do not meet
    x = images(16, 8, 8, 3)
    v = variables(model, x)
    dropping = partial(model.clone(drop_path=0.5).apply, train=True, rngs=KEY)

    @jit
    def maps(v):
        ordinary = (model.clone(depths=(n,)).apply(v, x, method="features")[0] for n in (1, 2))
        return *ordinary, dropping(v, x, method="features")[0]

    first, both, out = map(np.asarray, maps(v))
    gone = np.array([np.array_equal(a, b) for a, b in zip(out, first, strict=True)])
    assert 0 < gone.sum() < 16
    # What is left counts twice; under the last activation that shows where the sum is positive with half of it
    kept, once, before = out[~gone], both[~gone], first[~gone]
    np.testing.assert_allclose(kept[once > 0], (2 * once - before)[once > 0].clip(0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rate", [0.25, 0.75])
def test_drop_path_keeps_the_expectation(rate):
    x = images(2, 4, 4, 4)
    drop = Dropout(rate, (1, 2, 3))
    v = variables(BLOCK(), x)
    whole = BLOCK().apply(v, x) - x

    @jit
    def branches(keys):
        return jax.vmap(lambda key: BLOCK(drop_path=drop).apply(v, x, rngs={"dropout": key}) - x)(keys)

    # What each draw has of the whole branch: 0 or 1 / (1 - rate)
    found = np.asarray(branches(jax.random.split(jax.random.key(1), 4000)))
    whole = np.asarray(whole)
    shares = (found * whole).sum((2, 3, 4)) / np.square(whole).sum((1, 2, 3))
    expected = np.where(shares > 0.5, 1 / (1 - rate), 0)
    np.testing.assert_allclose(shares, expected, atol=1e-4)
    np.testing.assert_allclose(found, shares[..., None, None, None] * whole, atol=1e-4)
    error = (rate / (1 - rate) / shares.size) ** 0.5
    assert abs(shares.mean() - 1) < 4 * error
    assert abs((shares == 0).mean(0) - rate).max() < 0.04
    assert abs(np.corrcoef(shares.T)[0, 1]) < 0.06  # images are drawn apart
