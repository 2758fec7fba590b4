"""The clock of training alone, and the time in the rows."""

import time
from types import SimpleNamespace

import pytest

from resnet_jax.recipe import Recipe
from resnet_jax.tasks.make import make_task
from resnet_jax.training.rows import metrics_row
from resnet_jax.training.timer import StepTimer

SETUP = SimpleNamespace(
    recipe=Recipe(),
    dataset=SimpleNamespace(train_size=1000, classes=()),
    schedule=lambda step: 0.1,
    task=make_task(Recipe().loss),
)
VALUES = {"": {"loss": 1.0, "accuracy": 0.5, "errors": 5, "count": 10}}


def timer_of(first: int, seconds: float) -> SimpleNamespace:
    return SimpleNamespace(first_step=first, seconds=seconds, waited=0.25 * seconds)


def test_time_adds_up_over_the_rows():
    first = metrics_row(SETUP, 10, {}, VALUES, timer_of(0, 5.0), [])
    assert first["train_seconds"] == pytest.approx(5.0)
    assert first["images_per_second"] == pytest.approx(10 * 64 / 5)
    assert first["data_wait_fraction"] == pytest.approx(0.25)
    second = metrics_row(SETUP, 30, {}, VALUES, timer_of(10, 8.0), [first])
    assert second["train_seconds"] == pytest.approx(13.0)


def test_what_is_not_training_does_not_count():
    timer = StepTimer(0)
    with timer.paused():
        time.sleep(0.2)
    timer.exclude(-1.0)
    assert 1.0 <= timer.seconds < 1.15
    assert list(iter([timer.wait(iter([7]))])) == [7]


def test_a_saved_timer_goes_on():
    saved = {"first_step": 3, "seconds": 20.0, "waited": 2.0}
    timer = StepTimer(**saved)
    assert 20.0 <= timer.seconds < 20.5
    assert timer.saved().keys() == saved.keys()
