"""The clock of the training alone."""

from types import SimpleNamespace

import pytest

from resnet_jax.recipe import Recipe
from resnet_jax.train.evaluate import Metrics
from resnet_jax.train.lap import Lap, metrics_line

JOB = SimpleNamespace(recipe=Recipe(), dataset=SimpleNamespace(train_size=1000), schedule=lambda step: 0.1)
METRICS = Metrics(1.0, 0.5, 5, 10)


def lap_of(first: int, steps: int, seconds: float) -> Lap:
    lap = Lap(first)
    lap.steps, lap.seconds = steps, seconds
    return lap


def test_time_adds_up_over_the_lines():
    first = metrics_line(JOB, 10, METRICS, {"": METRICS}, lap_of(0, 10, 5.0), [])
    assert first["seconds"] == pytest.approx(5.0)
    second = metrics_line(JOB, 30, METRICS, {"": METRICS}, lap_of(10, 20, 8.0), [first])
    assert second["seconds"] == pytest.approx(13.0)


def test_steps_before_an_interruption_count_as_long_as_those_after_it():
    """Of 40 steps the clock saw the last 8."""
    line = metrics_line(JOB, 40, METRICS, {"": METRICS}, lap_of(32, 8, 4.0), [])
    assert line["seconds"] == pytest.approx(20.0)
    assert line["images_per_second"] == pytest.approx(2 * JOB.recipe.batch_size)
    later = metrics_line(JOB, 80, METRICS, {"": METRICS}, lap_of(60, 20, 10.0), [line])
    assert later["seconds"] == pytest.approx(40.0)
