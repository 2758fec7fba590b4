"""Training curves as pictures: the style of a panel, and the curves.png of a run."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resnet_jax.errors import InputError
from resnet_jax.runtime.safe_files import write_atomic
from resnet_jax.runtime.terminal import printable
from resnet_jax.tasks.metric import Display
from resnet_jax.tasks.metrics import display_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours of titles and axes
INK, MUTED = "#1c2126", "#5a636d"
_TRAIN, _HELD, _RATE = "#4c78a8", "#e4572e", "#4fa39d"
# Up to this number of points in a panel, each has a marker
_FEW = 120


class Curve(NamedTuple):
    """A line of a picture, with a band if it is the mean of several runs."""

    x: np.ndarray  # (n,)
    mean: np.ndarray  # (n,)
    low: np.ndarray  # (n,), the mean if there is one run
    high: np.ndarray  # (n,)
    label: str
    color: str
    dashed: bool = False
    marker: str = "o"


def as_written(text: str) -> str:
    """Return text for matplotlib: control characters as escapes, and no dollar signs that it reads as formulas."""
    return printable(text).replace("$", r"\$")


def draw_panel(axes: "Axes", curves: Sequence[Curve], *, title: str, y: str, x: str = "epoch") -> None:
    """Draw curves with their bands, title and axis labels.

    Args:
        axes: to draw on.
        curves: lines of the panel.
        title: of the panel.
        y: label of the y axis.
        x: label of the x axis.
    """
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
    """Set a logarithmic y axis around curves; it stays linear if no value is positive."""
    positive = np.concatenate([values[values > 0] for curve in curves for values in (curve.low, curve.high)])
    if positive.size:
        axes.set_ylim(positive.min() / 1.3, positive.max() * 1.3)
        plain_log(axes)


def plain_log(axes: "Axes") -> None:
    """Set a logarithmic y axis with plain numbers, more of them if the range is small."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log", nonpositive="clip")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    low, high = axes.get_ylim()
    if high < 1000 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain if high < 4 * low else NullFormatter())


def _late_scale(axes: "Axes", curves: Sequence[Curve]) -> None:
    """Scale an axis from 0 so that the first, wild epochs do not flatten the rest."""
    late = [float(curve.high[len(curve.high) // 4 :].max()) for curve in curves]
    axes.set_ylim(0, 1.2 * max(*late, 1.0))


class Quantity(NamedTuple):
    """How a metric value is drawn."""

    name: str
    """Name of the value: "accuracy"."""
    title: str
    """Title of the panel: "Error"."""
    unit: str
    """Label of the axis: "error (%)"."""
    transform: Callable[[np.ndarray], np.ndarray]
    """Value -> what is drawn."""


def quantity_of(name: str, known: Mapping[str, Display] = MappingProxyType({})) -> Quantity:
    """Return how a metric value is drawn: as an error in percent if it has one, in percent, or as it is.

    Args:
        name: of the value.
        known: how the values of a task are shown.

    Example:
        >>> quantity_of("accuracy").unit
        'error (%)'
    """
    how = display_of(name, known)
    if how.percent and how.complement:
        return Quantity(name, how.complement.capitalize(), f"{how.complement} (%)", lambda x: 100 * (1 - x))
    words = name.replace("_", " ")
    if how.percent:
        return Quantity(name, words.capitalize(), f"{words} (%)", lambda x: 100 * x)
    return Quantity(name, words.capitalize(), words, np.asarray)


def values_in(row: Mapping[str, Any], known: Mapping[str, Display] = MappingProxyType({})) -> list[str]:
    """Return the names of the values of the evaluation split in a row that are shown, the loss first.

    Args:
        row: of metrics.jsonl.
        known: how the values of a task are shown.

    Example:
        >>> values_in({"step": 1, "train/loss": 1.0, "test/accuracy": 0.5, "test/loss": 1.0, "test/count": 10})
        ['loss', 'accuracy']
    """
    keys = [key for key in row if "/" in key and not key.startswith(("train/", "ema/"))]
    names = [name for name in (key.partition("/")[2] for key in keys) if display_of(name, known).shown]
    return sorted(dict.fromkeys(names), key=lambda name: name != "loss")


def split_in(row: Mapping[str, Any]) -> str:
    """Return the name of the evaluation split in a row."""
    return next(key.split("/")[0] for key in row if key.endswith("/loss") and not key.startswith(("train/", "ema/")))


def draw_curves(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Write a PNG with a panel per value of metrics.jsonl; raise InputError if there are no rows."""
    if not rows:
        raise InputError(f"{path}: no metrics to draw yet")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    split, quantities = split_in(rows[-1]), [quantity_of(name) for name in values_in(rows[-1])]
    figure = Figure(figsize=(5 * len(quantities), 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, len(quantities), squeeze=False)[0])
    for axes, quantity in zip(panels, quantities, strict=True):
        curves = _curves_of(rows, split, quantity)
        draw_panel(axes, curves, title=quantity.title, y=quantity.unit)
        if quantity.name == "loss":
            plain_log_scale(axes, curves)
        elif display_of(quantity.name).complement:
            _late_scale(axes, curves)
            _mark_last(axes, curves[-1])
        axes.legend(frameon=False, labelcolor=INK)
    _shade_rate(panels[0], rows)
    figure.suptitle(as_written(title), fontsize=12, fontweight="bold", color=INK)
    file = io.BytesIO()
    figure.savefig(file)
    write_atomic(path, file.getvalue())


def _curves_of(rows: Sequence[Mapping[str, Any]], split: str, quantity: Quantity) -> list[Curve]:
    """Return a value of one run on the evaluation split and, if measured, on the training images."""
    curves = []
    for of, color in (("train", _TRAIN), (split, _HELD)):
        known = [(row["epoch"], row[key]) for row in rows if row.get(key := f"{of}/{quantity.name}") is not None]
        if known:
            x, y = np.array(known, float).T
            y = quantity.transform(y)
            curves.append(Curve(x, y, y, y, of, color))
    return curves


def _mark_last(axes: "Axes", curve: Curve) -> None:
    """Write the final error beside its point."""
    axes.annotate(
        f"{curve.mean[-1]:.2f} %",
        (curve.x[-1], curve.mean[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=curve.color,
        fontweight="bold",
    )


def _shade_rate(axes: "Axes", lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw the learning rate as an area in the background."""
    rate = axes.twinx()
    rate.fill_between([line["epoch"] for line in lines], [line["lr"] for line in lines], color=_RATE, alpha=0.15, lw=0)
    rate.set_ylabel("learning rate", color=_RATE)
    rate.set_ylim(0, None)
    rate.tick_params(axis="y", colors=_RATE)
    rate.spines[:].set_visible(False)
