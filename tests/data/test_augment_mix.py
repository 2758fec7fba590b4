"""Mixup and CutMix: neighbours, weights and shares."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.augment.mix import cutmix, cutmix_weights, mix, mix_pairs, mixup, mixup_weights, swap_pairs
from resnet_jax.parallel.sharding import batch_sharding, data_mesh

IMAGES = jax.random.normal(jax.random.key(0), (16, 12, 10, 3))
TARGETS = jax.nn.one_hot(jnp.arange(16) % 5, 5)
KEYS = jax.random.split(jax.random.key(1), 3000)
BOTH = partial(mix, mixup_alpha=0.8, cutmix_alpha=1.0)


def test_neighbours():
    np.testing.assert_array_equal(swap_pairs(jnp.arange(6)), [1, 0, 3, 2, 5, 4])
    np.testing.assert_array_equal(swap_pairs(swap_pairs(IMAGES)), IMAGES)


def test_mixup_is_the_published_mean():
    (images, targets), share = jax.jit(
        lambda key: (mixup(key, IMAGES, TARGETS, alpha=0.4), mixup_weights(key, 12, 10, 0.4)[1])
    )(KEYS[0])
    share = float(share)
    assert 0 < share < 1
    np.testing.assert_allclose(images[3], share * IMAGES[3] + (1 - share) * IMAGES[2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(targets[3], share * TARGETS[3] + (1 - share) * TARGETS[2], rtol=1e-5, atol=1e-6)
    assert targets.dtype == jnp.float32


def test_shares_follow_the_beta_distribution():
    draw = jax.jit(jax.vmap(lambda key, alpha: mixup_weights(key, 2, 2, alpha)[1], (0, None)))
    for alpha in (0.2, 1.0):
        shares = np.asarray(draw(KEYS, alpha))
        assert abs(shares.mean() - 0.5) < 0.03
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_cutmix_takes_a_box_and_counts_it():
    (images, targets), (weights, share) = jax.jit(
        lambda key: (cutmix(key, IMAGES, TARGETS, alpha=1.0), cutmix_weights(key, 12, 10, 1.0))
    )(KEYS[3])
    own = np.asarray((images == IMAGES).all((0, 3)))
    np.testing.assert_array_equal(own, weights == 1)
    np.testing.assert_array_equal(images[:, ~own], swap_pairs(IMAGES)[:, ~own])
    rows, columns = (~own).any(1).sum(), (~own).any(0).sum()
    assert rows * columns == (~own).sum() > 0
    np.testing.assert_allclose(share, own.mean(), rtol=1e-6)
    np.testing.assert_allclose(targets[0], share * TARGETS[0] + (1 - share) * TARGETS[1], rtol=1e-6)


def test_cutmix_shares_are_those_of_boxes_cut_at_the_border():
    shares = np.asarray(jax.jit(jax.vmap(lambda key: cutmix_weights(key, 32, 32, 1.0)[1]))(KEYS))
    assert shares.min() >= 0
    assert shares.max() == 1
    assert 0.67 < shares.mean() < 0.72  # 1 - E(s - s^2 / 4)^2 = 0.68 where s^2 is uniform, and whole pixels


def test_one_of_the_two_is_chosen_for_a_batch():
    def is_cut(key):
        images, targets = BOTH(key, IMAGES[:4], TARGETS[:4], mix_switch_prob=0.3, probability=0.8)
        whole = (images == IMAGES[:4]).all()
        own = (images == IMAGES[:4]) | (images == swap_pairs(IMAGES[:4]))
        return whole & (targets == TARGETS[:4]).all(), own.all() & ~whole

    whole, cut = (np.asarray(v) for v in jax.jit(jax.vmap(is_cut))(KEYS[:1000]))
    assert 0.17 < whole.mean() < 0.27  # a box may be empty, and mixup's share all but 1
    assert 0.2 < cut.mean() < 0.28  # 0.3 of 0.8


def test_probability_zero_is_nothing_done():
    images, targets = jax.jit(partial(BOTH, probability=0.0))(KEYS[0], IMAGES, TARGETS)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(targets, TARGETS)


def test_batch_and_devices_do_not_matter():
    compiled = jax.jit(mix_pairs)
    how = (jax.random.uniform(KEYS[0], (12, 10)), jnp.float32(0.3))
    whole = compiled(IMAGES, TARGETS, *how)
    spread = compiled(*jax.device_put((IMAGES, TARGETS), batch_sharding(data_mesh(8))), *how)
    assert len(spread[0].sharding.device_set) == 8
    for part, part_spread, part_alone in zip(whole, spread, compiled(IMAGES[:6], TARGETS[:6], *how), strict=True):
        np.testing.assert_allclose(part_spread, part, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(part_alone, part[:6], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(whole[1].sum(1), 1, rtol=1e-6)
