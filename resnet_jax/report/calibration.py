"""Calibration on the page: accuracy against confidence."""

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.report.curves import MUTED, Curve, draw_panel
from resnet_jax.report.figures import COLORS, Picture, new_figure
from resnet_jax.report.nodes import Child, node
from resnet_jax.report.predictions import Predictions
from resnet_jax.report.svg import as_svg
from resnet_jax.tasks.metrics import CALIBRATION_BINS, bin_confidence, expected_calibration_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confidence_bins(answers: Predictions) -> dict[str, np.ndarray]:
    """Return the sums of `calibration_bins` over the predictions of all networks."""
    confidence, hits = answers.probability.ravel(), (answers.answer == answers.label).ravel()
    return jax.device_get(bin_confidence(jnp.asarray(confidence), jnp.asarray(hits), jnp.ones(hits.shape, bool)))


def wilson_interval(hits: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of the 95 % intervals of fractions `hits / count`.

    Reference:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Example:
        >>> low, high = wilson_interval(np.array([9]), np.array([10]))
        >>> low.round(3), high.round(3)
        (array([0.596]), array([0.982]))
    """
    z, p = 1.96, hits / count
    half = z * np.sqrt(p * (1 - p) / count + (z / (2 * count)) ** 2)
    middle, scale = p + z**2 / (2 * count), 1 + z**2 / count
    return (middle - half) / scale, (middle + half) / scale


def calibration_picture(answers: Predictions, place: int = 1) -> Picture:
    """Return accuracy against confidence; `place` is the number of the recipe, in the name of the picture."""
    sums = confidence_bins(answers)
    seen = sums["examples"] > 0
    confidence, hits, count = (100 * sums["confidence"][seen], sums["hits"][seen], sums["examples"][seen])
    low, high = wilson_interval(hits, count)
    curve = Curve(confidence / count, 100 * hits / count, 100 * low, 100 * high, "accuracy (%)", COLORS[0])
    alt = "Accuracy against confidence: " + "; ".join(
        f"{y:.0f} % of {n:,} at {x:.0f} %" for x, y, n in zip(curve.x, curve.mean, count, strict=True)
    )
    name = f"calibration-{place}" if place > 1 else "calibration"
    return Picture(name, alt + ".", partial(_draw, curve, sums["examples"]), (curve,), "confidence (%)")


def _draw(curve: Curve, examples: np.ndarray, legend: bool) -> "Figure":
    figure, axes = new_figure((4.4, 3.3))
    edges = np.linspace(0, 100, len(examples) + 1)
    axes.bar(edges[:-1], 100 * examples / examples.sum(), edges[1], align="edge", color=MUTED, alpha=0.25)
    axes.plot([0, 100], [0, 100], color=MUTED, lw=1, ls=(0, (1, 2)))
    draw_panel(axes, [curve], title="Calibration", y="accuracy (%)", x="confidence (%)")
    axes.set(xlim=(0, 100.5), ylim=(0, 102))
    return figure


def calibrated(answers: Predictions) -> list[Child]:
    """Return the picture of calibration, its expected error, and what the picture shows."""
    (error,) = expected_calibration_error(confidence_bins(answers)).values()
    words = (
        f"Expected calibration error {error:.4f}, in {CALIBRATION_BINS} bins. On the dotted line, accuracy equals"
        " confidence. Band: 95 % interval of the accuracy in each bin. Bars: fraction of the images."
    )
    return [node("figure", as_svg(calibration_picture(answers)), node("figcaption", words), class_="whole")]
