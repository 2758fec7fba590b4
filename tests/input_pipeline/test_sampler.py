"""The order of examples is a function of (seed, step)."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_jax.data.permutation import Draws, epoch_draws
from resnet_jax.input_pipeline.sampler import batch_indices, epoch_permutation, evaluation_indices, times_seen

SIZES = st.integers(1, 50)
SEEDS = st.integers(0, 2**32 - 1)


def test_the_order_never_changes():
    """Golden: another order would silently make every published run irreproducible."""
    np.testing.assert_array_equal(epoch_permutation(0, 0, 10), [0, 2, 9, 1, 8, 5, 4, 3, 6, 7])
    np.testing.assert_array_equal(epoch_permutation(7, 3, 10), [2, 5, 9, 7, 3, 0, 6, 8, 4, 1])


@given(seed=SEEDS, epoch=st.integers(0, 1000), size=SIZES)
def test_an_epoch_is_a_permutation(seed, epoch, size):
    assert sorted(epoch_permutation(seed, epoch, size)) == list(range(size))


@given(seed=SEEDS, size=SIZES, batch=st.integers(1, 70), epochs=st.integers(1, 3))
def test_batches_are_the_epochs_one_after_another(seed, size, batch, epochs):
    steps = -(-epochs * size // batch)
    stream = np.concatenate([batch_indices(seed, step, batch, size) for step in range(steps)])
    expected = np.concatenate([epoch_permutation(seed, epoch, size) for epoch in range(epochs)])
    np.testing.assert_array_equal(stream[: epochs * size], expected)
    assert stream.dtype == np.int32


@pytest.mark.parametrize("repeats", [1, 2])
def test_weighted_epochs_follow_each_other(repeats):
    draws = Draws(np.arange(1.0, 8.0), np.zeros(7, int))
    stream = np.concatenate([batch_indices(3, step, 4, 7, repeats, draws)[: 4 // repeats] for step in range(14)])
    expected = np.concatenate([epoch_draws(3, epoch, draws) for epoch in range(8)])
    np.testing.assert_array_equal(stream, expected[: len(stream)])


def test_seeds_and_epochs_differ():
    orders = {tuple(epoch_permutation(seed, epoch, 20)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@given(size=st.integers(1, 60), batch=st.integers(1, 25))
def test_evaluation_covers_every_example_once(size, batch):
    batches = list(evaluation_indices(size, batch))
    assert all(len(indices) == len(mask) == batch for indices, mask in batches)
    seen = np.concatenate([indices[mask] for indices, mask in batches])
    np.testing.assert_array_equal(seen, np.arange(size))


@pytest.mark.parametrize(
    ("size", "different", "repeats"), [(7, 19, 3), (20, 6, 1), (20, 6, 2), (5, 1, 4), (1, 2, 2), (12, 12, 3)]
)
def test_repeats_lie_apart_and_are_counted(size, different, repeats):
    batch, seen = different * repeats, {index: set() for index in range(size)}
    for step in range(5):
        indices = batch_indices(3, step, batch, size, repeats)
        once = batch_indices(3, step, different, size)
        np.testing.assert_array_equal(indices.reshape(repeats, different), np.tile(once, (repeats, 1)))
        counts = times_seen(step, jnp.arange(batch, dtype=jnp.uint32), batch, size, repeats)
        for index, count in zip(indices, np.asarray(counts), strict=True):
            assert count not in seen[index]
            seen[index].add(int(count))
    assert all(counts == set(range(len(counts))) for counts in seen.values())
