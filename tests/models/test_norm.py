"""Grouped batch normalisation against flax's own and against the formula."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICKLY
from flax import linen as nn

from resnet_jax.errors import InputError
from resnet_jax.models.norm import BatchNorm, moments_in_one_pass, moments_in_two_passes, split_groups, statistics
from resnet_jax.weights.load import create_model


def images(shape=(8, 5, 5, 3), seed=0):
    return np.random.default_rng(seed).normal(2, 3, shape).astype(np.float32)


def variables(channels=3, seed=1):
    scale, bias, mean, var = jax.random.uniform(jax.random.key(seed), (4, channels), minval=0.5, maxval=2)
    return {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}


def run(x, v=None, **fields):
    module = BatchNorm(use_running_average=False, **fields)
    return module.apply(v or variables(x.shape[-1]), x, mutable=["batch_stats"])


def flax_norm(v, x, *, train):
    module = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, use_fast_variance=False)
    return module.apply(v, x, mutable=["batch_stats"])


@pytest.mark.parametrize("shape", [(8, 7, 3), (8, 5, 5, 3), (4, 3, 5, 5, 3)], ids=["1d", "2d", "3d"])
def test_whole_batch_is_flax_batch_norm(shape):
    x, v = images(shape), variables()

    def loss(apply, v, x):
        return jnp.sin(apply(v, x)[0]).sum()

    def derived(apply):
        return jax.jit(jax.value_and_grad(partial(loss, apply), (0, 1)), compiler_options=QUICKLY)(v, x)

    ours, ours_grad = derived(lambda v, x: run(x, v))
    theirs, theirs_grad = derived(partial(flax_norm, train=True))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    chex.assert_trees_all_close(ours_grad, theirs_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "group"), [((1, 1, 1, 3), None), ((4, 1, 1, 3), 1), ((1, 3), None)])
def test_one_value_per_channel_is_refused(shape, group):
    """PyTorch raises "Expected more than 1 value per channel when training"."""
    with pytest.raises(InputError, match="BatchNorm: one value per channel.* has no variance; raise batch_size"):
        run(images(shape), group=group)
    run(images((2, *shape[1:])))
    BatchNorm(use_running_average=True, group=group).apply(variables(), images(shape))
    run(images(shape), group=group, frozen=True)


def test_the_layer_with_one_value_is_named():
    model = create_model("resnet8", num_classes=3, norm=partial(BatchNorm, group=1))
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(InputError, match="^stage3_block1/norm1: one value per channel"):
        jax.eval_shape(partial(model.apply, train=True, mutable=["batch_stats"]), variables, jnp.zeros((2, 4, 4, 3)))


@pytest.mark.parametrize("group", [None, 2])
def test_derivatives_of_any_order_are_those_of_the_formula(group):
    with jax.enable_x64(True):
        x, v = images((4, 3, 3, 2)).astype(jnp.float64), variables(2)
        v = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), v)
        along = jax.tree.map(jnp.cos, (v["params"], x))

        def formula(params, x):
            grouped = x.reshape(-1, group or 4, *x.shape[1:])
            mean, var = grouped.mean((1, 2, 3), keepdims=True), grouped.var((1, 2, 3), keepdims=True)
            scale, bias = (jnp.expand_dims(params[name], (0, 1, 2, 3)) for name in ("scale", "bias"))
            return (scale * (grouped - mean) / jnp.sqrt(var + 1e-5) + bias).reshape(x.shape)

        def ours(params, x):
            return run(x, v | {"params": params}, group=group)[0]

        def derivatives(apply, at, along):
            grad = jax.grad(lambda params, x: jnp.sin(apply(params, x)).sum(), (0, 1))
            value, tangent = jax.jvp(apply, at, along)
            return value, tangent, *jax.jvp(grad, at, along)

        both = jax.jit(lambda *given: [derivatives(apply, *given) for apply in (ours, formula)])
        chex.assert_trees_all_close(*both((v["params"], x), along), rtol=1e-12, atol=1e-12)


def test_running_statistics_follow_the_paper():
    x, v = images(), variables()
    _, updated = run(x, v, momentum=0.9)
    flat = np.asarray(x).reshape(-1, 3)
    expected_mean = 0.9 * v["batch_stats"]["mean"] + 0.1 * flat.mean(0)
    expected_var = 0.9 * v["batch_stats"]["var"] + 0.1 * flat.var(0, ddof=1)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], expected_mean, rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], expected_var, rtol=1e-5)


def test_groups_are_batches_of_their_own():
    x, v = images(), variables()
    y, updated = run(x, v, group=2)
    parts = [run(x[i : i + 2], v) for i in range(0, 8, 2)]
    np.testing.assert_allclose(y, jnp.concatenate([part for part, _ in parts]), rtol=1e-5, atol=1e-6)
    mean_of_parts = jax.tree.map(lambda *leaves: sum(leaves) / 4, *[stats for _, stats in parts])
    chex.assert_trees_all_close(updated, mean_of_parts, rtol=1e-5)
    whole, _ = run(x, v)
    assert np.abs(np.asarray(y - whole)).max() > 0.1


def test_evaluation_uses_and_keeps_the_running_statistics():
    x, v = images(), variables()
    module = BatchNorm(use_running_average=True, group=3)  # 3 does not divide 8, and need not
    y, updated = module.apply(v, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, flax_norm(v, x, train=False)[0], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(updated["batch_stats"], v["batch_stats"])


def test_a_group_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(InputError, match=r"norm_group_size is 3.*batch of 8"):
        split_groups(images(), 3)
    with pytest.raises(InputError, match="norm_group_size is 0"):
        split_groups(images(), 0)


@pytest.mark.parametrize("mean", [1e4, -300.0, 0.0])
def test_variance_survives_a_large_mean(mean):
    x = mean + jax.random.normal(jax.random.key(0), (1, 4096, 1))
    found, var = statistics(x)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(found.item(), exact.mean(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(var.item(), exact.var(), rtol=1e-4)


@pytest.mark.parametrize("shape", [(2, 8, 9, 7, 3), (1, 4, 64, 3), (2, 6, 3), (1, 2, 4, 5, 6, 3)])
@pytest.mark.parametrize("mean", [1e4, 0.0])
def test_one_pass_equals_two(shape, mean):
    """Those of GPUs and of other devices, also where the pixels that set the shift are far from all others."""
    x = mean + jax.random.normal(jax.random.key(1), shape)
    if x.ndim == 5:
        x = x.at[:, :, ::8, ::4].add(500.0)
    exact = np.asarray(x, np.float64)
    axes = tuple(range(1, x.ndim - 1))
    for formula in (moments_in_one_pass, moments_in_two_passes):
        found, var = jax.jit(formula)(x)
        np.testing.assert_allclose(found, exact.mean(axes, keepdims=True), rtol=1e-6, atol=5e-6 * exact.std())
        np.testing.assert_allclose(var, exact.var(axes, keepdims=True), rtol=2e-5)


def test_a_gpu_takes_statistics_in_one_pass():
    def lowered(platform):
        step = jax.jit(jax.grad(lambda x: sum(jnp.sin(each).sum() for each in statistics(x))))
        return step.trace(jnp.ones((2, 4, 16, 16, 3))).lower(lowering_platforms=(platform,)).as_text()

    assert "tensor<2x4x2x4x3xf32>" in lowered("cuda")
    assert "tensor<2x4x2x4x3xf32>" not in lowered("cpu")


def test_half_precision_keeps_float32_statistics():
    x = images().astype(jnp.bfloat16)
    y, updated = run(x, dtype=jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype(jnp.float32)}
    exact, _ = run(x.astype(jnp.float32))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=1e-2, atol=1e-2)


def test_initialisation_takes_any_batch():
    v = BatchNorm(use_running_average=False, group=32).init(jax.random.key(0), images())
    chex.assert_trees_all_equal(v["batch_stats"], {"mean": jnp.zeros(3), "var": jnp.ones(3)})


def test_a_frozen_one_is_the_same_in_training_as_after():
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 2)) + 5
    after = BatchNorm(use_running_average=True)
    v = after.init(jax.random.key(1), x)
    y, updated = BatchNorm(use_running_average=False, frozen=True).apply(v, x, mutable=["batch_stats"])
    chex.assert_trees_all_equal((y, updated["batch_stats"]), (after.apply(v, x), v["batch_stats"]))
    moved = BatchNorm(use_running_average=False).apply(v, x, mutable=["batch_stats"])[1]["batch_stats"]
    assert not np.allclose(moved["mean"], v["batch_stats"]["mean"])
