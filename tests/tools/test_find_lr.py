"""The range test: smoothing and suggestion by hand, and the recipe's own steps."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import quietly

from resnet_jax.errors import InputError
from resnet_jax.tools.find_lr import draw_range_test, find_lr, smooth, suggest


def test_the_moving_average_is_that_of_its_weights():
    losses = np.array([3.0, 1.0, 2.0, 5.0])
    for count in range(1, 5):
        weights = 0.9 ** np.arange(count)[::-1]
        assert smooth(losses)[count - 1] == pytest.approx((weights * losses[:count]).sum() / weights.sum())


def test_the_suggestion_is_the_steepest_place_before_the_lowest():
    """A loss that falls as a logistic function of log rate, steepest at 1e-2, and then explodes."""
    rates = 10 ** np.linspace(-5, 1, 601)
    position = np.log10(rates)
    losses = 3 - 2 / (1 + np.exp(-4 * (position + 2))) + np.maximum(position, 0) * 10
    test = suggest(rates, losses)
    # The average lags behind by up to 0.9 / 0.1 steps of 2.3 %
    assert 1e-2 <= test.steepest < 1.25e-2
    assert 0.1 < test.lowest <= 1.2
    with pytest.raises(InputError, match="the loss does not fall at any of these rates"):
        suggest(rates, np.arange(601.0))


def test_its_steps_are_those_of_the_recipe_with_another_rate(tiny, tmp_path):
    test = find_lr(tiny, lr_min=1e-4, lr_max=10, steps=12, devices=1)
    assert not list(tmp_path.iterdir())
    assert test.rates[:2] == pytest.approx([1e-4, 1e-4 * 1e5 ** (1 / 11)])
    rates = np.asarray(1e-4 * 1e5 ** (np.arange(12) / 11), np.float32)
    schedule = lambda step: jnp.asarray(rates)[step]  # noqa: E731
    run, _ = quietly(tiny, tmp_path / "run", schedule=schedule, eval_every=1)
    count = len(test.losses)
    assert [row["train/loss"] for row in run.rows[:count]] == pytest.approx(test.losses.tolist(), rel=1e-6)
    draw_range_test(test, tmp_path / "test.png", "a title")
    with Image.open(tmp_path / "test.png") as image:
        assert image.size == (1050, 600)


def test_rates_without_sense(tiny):
    with pytest.raises(InputError, match=r"rates from 1 to 0.1 in 100 steps: give 0 < min < max"):
        find_lr(tiny, lr_min=1, lr_max=0.1)
