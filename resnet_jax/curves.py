"""Curves of training as pictures: what one panel looks like, and the picture that a run draws of itself."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resnet_jax.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED = "#1c2126", "#5a636d"  # of titles and axes
_TRAIN, _HELD, _RATE = "#4c78a8", "#e4572e", "#4fa39d"
_FEW = 120  # points of a panel, up to which each has a mark


class Curve(NamedTuple):
    """A line of a picture, within a band where several runs are behind it."""

    x: np.ndarray  # (n,)
    mean: np.ndarray  # (n,)
    low: np.ndarray  # (n,) equal to the mean where there is one run
    high: np.ndarray  # (n,)
    label: str
    color: str
    dashed: bool = False
    marker: str = "o"


def as_written(text: str) -> str:
    """Text of a user for matplotlib, which would set what is between dollars as a formula."""
    return text.replace("$", r"\$")


def draw_panel(axes: "Axes", curves: Sequence[Curve], *, title: str, y: str, x: str = "epoch") -> None:
    """Curves with their bands, and axes around them."""
    from matplotlib.ticker import MaxNLocator

    few = sum(len(curve.x) for curve in curves) <= _FEW
    for c in curves:
        how: dict[str, Any] = {"ls": (0, (4, 2)), "lw": 1.3} if c.dashed else {"lw": 1.8}
        how |= {"marker": c.marker, "ms": 3} if few or len(c.x) == 1 else {}
        axes.plot(c.x, c.mean, color=c.color, label=as_written(c.label), **how)
        if (c.high > c.low).any():
            axes.fill_between(c.x, c.low, c.high, color=c.color, alpha=0.18, lw=0)
    axes.set_title(as_written(title), loc="left", color=INK, fontweight="bold", fontsize=11)
    axes.set_xlabel(x, color=MUTED)
    axes.set_ylabel(y, color=MUTED)
    axes.grid(alpha=0.25, color=MUTED)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(which="both", color=MUTED, labelcolor=MUTED)


def plain_log_scale(axes: "Axes", curves: Sequence[Curve]) -> None:
    """A logarithmic axis around curves; what is 0 leaves the picture below, and an axis stays linear where all is."""
    positive = np.concatenate([values[values > 0] for curve in curves for values in (curve.low, curve.high)])
    if positive.size:
        axes.set_ylim(positive.min() / 1.3, positive.max() * 1.3)
        plain_log(axes)


def plain_log(axes: "Axes") -> None:
    """A logarithmic axis with numbers as people write them, as many between the powers of ten as there is room for."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log", nonpositive="clip")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    low, high = axes.get_ylim()
    if high < 1000 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain if high < 4 * low else NullFormatter())


def _late_scale(axes: "Axes", curves: Sequence[Curve]) -> None:
    """An axis from 0 that keeps the first, wild epochs from flattening the rest."""
    late = [curve.high[len(curve.high) // 4 :].max() for curve in curves]
    axes.set_ylim(0, 1.2 * max(*late, 1.0))


def draw_curves(lines: list[dict[str, Any]], split: str, title: str, path: Path) -> None:
    """Writes a PNG of the lines of metrics.jsonl; raises InputError where there are none."""
    if not lines:
        raise InputError(f"{path}: no metrics to draw yet")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    answers = f"{split}_accuracy" in lines[-1]  # or else nothing is right or wrong, as in regression
    figure = Figure(figsize=(10, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    loss, *others = figure.subplots(1, 1 + answers, squeeze=False)[0]
    unit = "loss (nats)" if answers else "loss"
    loss_curves = _of_run(lines, split, lambda line, s: line[f"{s}_loss"])
    draw_panel(loss, loss_curves, title="Loss", y=unit)
    plain_log_scale(loss, loss_curves)
    loss.legend(frameon=False, labelcolor=INK)
    for axes in others:
        curves = _of_run(lines, split, lambda line, s: 100 * (1 - line[f"{s}_accuracy"]))
        draw_panel(axes, curves, title="Error", y="error (%)")
        _late_scale(axes, curves)
        _mark_last(axes, curves[-1])
        axes.legend(frameon=False, labelcolor=INK)
    _shade_rate(loss, lines)
    figure.suptitle(as_written(title), fontsize=12, fontweight="bold", color=INK)
    figure.savefig(path)


def _of_run(lines: list[dict[str, Any]], split: str, value: Callable[[dict[str, Any], str], float]) -> list[Curve]:
    """A quantity of a line, on the training images and on the held split, of a single run."""
    x = np.array([line["epoch"] for line in lines])
    both = ((name, np.array([value(line, name) for line in lines])) for name in ("train", split))
    return [Curve(x, y, y, y, name, _TRAIN if name == "train" else _HELD) for name, y in both]


def _mark_last(axes: "Axes", curve: Curve) -> None:
    """Writes the final error beside its point."""
    axes.annotate(
        f"{curve.mean[-1]:.2f} %",
        (curve.x[-1], curve.mean[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=curve.color,
        fontweight="bold",
    )


def _shade_rate(axes: "Axes", lines: list[dict[str, Any]]) -> None:
    """The learning rate as an area behind."""
    rate = axes.twinx()
    rate.fill_between([line["epoch"] for line in lines], [line["lr"] for line in lines], color=_RATE, alpha=0.15, lw=0)
    rate.set_ylabel("learning rate", color=_RATE)
    rate.set_ylim(0, None)
    rate.tick_params(axis="y", colors=_RATE)
    rate.spines[:].set_visible(False)
