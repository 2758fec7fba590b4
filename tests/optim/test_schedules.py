"""Learning rates against the papers' formulas."""

import numpy as np
import pytest

from resnet_jax.errors import InputError
from resnet_jax.optim.schedules import learning_rate
from resnet_jax.recipe import Optimizer, Recipe, Schedule

SIZE = 50_000


def rates(recipe, steps, size=SIZE):
    schedule = learning_rate(recipe, size)
    return np.array([float(schedule(step)) for step in steps])


def of(steps, **fields):
    """A recipe of so many steps and a peak of 2."""
    fields = {"warmup": 0} | fields
    return Recipe(epochs=None, steps=steps, schedule=Schedule(**fields), optimizer=Optimizer(lr=2.0))


def test_steps_of_he_2015():
    schedule = Schedule(name="steps", warmup=0, milestones=(32_000, 48_000), gamma=0.1)
    recipe = Recipe(epochs=None, steps=64_000, schedule=schedule)
    steps = (0, 31_999, 32_000, 47_999, 48_000, 63_999)
    np.testing.assert_allclose(rates(recipe, steps), [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


def test_epochs_are_turned_into_steps():
    schedule = Schedule(name="steps", warmup=5, warmup_start_factor=0.1, milestones=(30, 60, 80))
    recipe = Recipe(epochs=90, batch_size=500, schedule=schedule, optimizer=Optimizer(lr=1.0))
    steps = (0, 250, 500, 2999, 3000, 6000, 8000)  # 100 an epoch
    np.testing.assert_allclose(rates(recipe, steps), [0.1, 0.55, 1, 1, 0.1, 0.01, 0.001], rtol=1e-5)


def test_warmup_then_cosine():
    expected = [0, 1.0, 2.0, 0.2 + 1.8 * (1 + np.cos(np.pi * 0.25)) / 2, 0.2 + 1.8 * 0.5, 0.2]
    np.testing.assert_allclose(rates(of(110, warmup=10, end_factor=0.1), (0, 5, 10, 35, 60, 110)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "steps", "expected"),
    [
        ({"name": "constant"}, (0, 50, 99), [2, 2, 2]),
        ({"name": "linear", "end_factor": 0.1}, (0, 25, 50, 100), [2, 1.55, 1.1, 0.2]),
        ({"name": "polynomial", "power": 2.0}, (0, 25, 50, 100), [2, 2 * 0.75**2, 0.5, 0]),
        ({"name": "polynomial", "power": 3.0, "end_factor": 0.5}, (0, 50, 100), [2, 1 + 0.125, 1]),
        (
            {"name": "exponential", "gamma": 0.5, "decay_every": 25},
            (0, 10, 25, 99),
            2 * 0.5 ** (np.array([0, 10, 25, 99]) / 25),
        ),
        ({"name": "exponential", "gamma": 0.5, "decay_every": 25, "staircase": True}, (0, 24, 25, 99), [2, 2, 1, 0.25]),
    ],
    ids=str,
)
def test_shapes(fields, steps, expected):
    np.testing.assert_allclose(rates(of(100, **fields), steps), expected, rtol=1e-5, atol=1e-7)
    warm = rates(of(110, warmup=10, warmup_start_factor=0.5, **fields), [0, 5, *(step + 10 for step in steps)])
    np.testing.assert_allclose(warm, [1, 1.5, *expected], rtol=1e-5, atol=1e-7)


def test_exponential_of_efficientnet():
    """Tan and Le 2019, section 5.2: 0.256, decayed by 0.97 every 2.4 epochs; here of 100 steps."""
    schedule = Schedule(name="exponential", warmup=5, gamma=0.97, decay_every=2.4, staircase=True)
    recipe = Recipe(epochs=350, batch_size=500, schedule=schedule, optimizer=Optimizer(lr=0.256))
    expected = [0.0, 0.256, 0.256, 0.256 * 0.97, 0.256 * 0.97**2]
    np.testing.assert_allclose(rates(recipe, (0, 500, 739, 741, 981)), expected, rtol=1e-5)


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
def test_one_cycle_rises_to_the_peak_and_falls(anneal):
    recipe = of(101, name="onecycle", pct_start=0.4, div_factor=10.0, final_div_factor=100.0, anneal_strategy=anneal)
    curve = rates(recipe, range(110))
    np.testing.assert_allclose(curve[[0, 100, 109]], [0.2, 0.002, 0.002], rtol=1e-5)
    assert curve.max() <= 2.0
    assert curve.argmax() == 39  # the peak, at 0.4 * 101 - 1, is between two steps
    assert (np.diff(curve[:40]) > 0).all()
    assert (np.diff(curve[40:101]) < 0).all()
    half = 0.2 + 1.8 * (19.7 / 39.4)
    np.testing.assert_allclose(np.interp(19.7, range(110), curve), half, rtol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_one_cycle_of_a_very_short_run_has_rates(steps):
    curve = rates(of(steps, name="onecycle"), range(steps + 1))
    assert (curve > 0).all()
    assert (curve <= 2.0).all()


def test_milestones_that_round_to_one_step_both_count():
    schedule = Schedule(name="steps", warmup=0, milestones=(1.0, 1.001))
    recipe = Recipe(epochs=2, batch_size=10, schedule=schedule)
    np.testing.assert_allclose(rates(recipe, (9, 10), size=100), [0.1, 0.001], rtol=1e-6)


def test_an_unknown_shape():
    with pytest.raises(InputError, match="unknown schedule.name 'cosin'; nearest: cosine"):
        learning_rate(Recipe(schedule=Schedule(name="cosin")), SIZE)
