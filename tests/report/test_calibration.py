"""Calibration in a report: the bins are those of the metric, and every answer is in one."""

import jax
import numpy as np
import pytest
from scipy.stats import binomtest

from resnet_jax.report.calibration import calibration_picture, confidence_bins, wilson_interval
from resnet_jax.report.predictions import Predictions
from resnet_jax.tasks.metrics import calibration_bins


@pytest.fixture(scope="module")
def measured():
    """Logits of two networks for 40 images of three classes, and what a report keeps of them."""
    rng = np.random.default_rng(0)
    logits, label = rng.normal(0, 2, (2, 40, 3)).astype(np.float32), rng.integers(0, 3, 40)
    probs = np.asarray(jax.nn.softmax(logits))
    return logits, Predictions(None, label, logits.argmax(-1), probs.max(-1))


def test_the_bins_are_those_of_the_metric(measured):
    logits, answers = measured
    theirs = calibration_bins(logits.reshape(-1, 3), np.tile(answers.label, 2), np.ones(80, bool))
    for name, sums in confidence_bins(answers).items():
        np.testing.assert_allclose(sums, theirs[name], rtol=1e-6)


def test_the_picture_has_the_bins_that_are_not_empty(measured):
    sums = confidence_bins(measured[1])
    picture = calibration_picture(measured[1], 2)
    (curve,) = picture.curves
    assert picture.name == "calibration-2"
    assert 1 < len(curve.x) == (sums["examples"] > 0).sum() < 15
    np.testing.assert_allclose(curve.mean @ sums["examples"][sums["examples"] > 0], 100 * sums["hits"].sum())
    assert (curve.low < curve.mean + 1e-9).all()
    assert (curve.mean < curve.high + 1e-9).all()
    assert sum(bar.get_height() for bar in picture.draw(False).axes[0].patches) == pytest.approx(100)


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (9, 10), (50, 50), (123, 360)])
def test_intervals_are_those_of_scipy(hits, count):
    theirs = binomtest(hits, count).proportion_ci(method="wilson")
    np.testing.assert_allclose(np.concatenate(wilson_interval(np.array([hits]), np.array([count]))), theirs, atol=1e-4)
