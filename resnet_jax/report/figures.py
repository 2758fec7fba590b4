"""The pictures of a report, and their PNG. A recipe has the same colour in all of them."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resnet_jax.report.curves import INK, MUTED, Curve, as_written, draw_panel, plain_log_scale, quantity_of, values_in
from resnet_jax.report.predictions import Predictions, confusion
from resnet_jax.report.results import aggregate, final_value, headline, series_of
from resnet_jax.report.runs import RecipeGroup, display_of_runs
from resnet_jax.tasks.metrics import display_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinct for colour-blind people (after Okabe and Ito 2008); contrast to white is 3 to 1 or more
COLORS = ("#0072b2", "#d55e00", "#00875f", "#a8508a", "#8a6d00", "#4d4d4d")
DARK = dict(
    zip(
        (*COLORS, INK, MUTED),
        ("#5ab0e8", "#ff9149", "#3cc9a0", "#e59bc6", "#dcba3a", "#c2c2c2", "#e6e9ec", "#a3adb7"),
        strict=True,
    )
)
# The next marker is taken when all colours are used
MARKERS = ("o", "s", "^", "D", "v")
# Maximum number of classes whose names fit beside a confusion matrix
NAMED = 20
# Maximum number of classes whose confusion matrix is drawn
DRAWN = 200
# Inches
_SIZE = (5.4, 3.5)
# Inches, for three panels side by side
_NARROW = (4.0, 2.7)
_DPI = 160
# Up to this number of curves, a legend names the dashed ones too
_TOLD = 6


class Picture(NamedTuple):
    """A figure of a report."""

    name: str  # stem of its file
    alt: str  # alternative text
    draw: Callable[[bool], "Figure"]  # (whether to draw a legend) -> figure
    curves: Sequence[Curve] = ()  # whose values the page shows at the pointer
    x: str = "epoch"  # name of their x axis


class Panel(NamedTuple):
    """A quantity in the rows of metrics, and its axis."""

    name: str
    title: str
    y: str
    held: str  # key; SPLIT stands for the evaluation split
    train: str | None = None  # key of the same value on training images
    of: Callable[[np.ndarray], np.ndarray] = np.asarray  # value -> what is drawn
    top: float | None = 0.0  # minimal upper end of a linear axis; None is a logarithmic axis
    size: tuple[float, float] = _NARROW  # inches


def _percent(share: np.ndarray) -> np.ndarray:
    return 100 * share


def quality_panels(groups: Sequence[RecipeGroup]) -> list[Panel]:
    """Return a panel per metric value of any run; losses and errors on a logarithmic scale."""
    runs = [run for group in groups for run in group.counted]
    display = display_of_runs(runs)
    names = dict.fromkeys(name for run in runs for name in values_in(run.rows[-1], display))
    panels = []
    for quantity in (quantity_of(name, display) for name in names):
        complement = display_of(quantity.name, display).complement
        name = complement or quantity.name
        top = None if quantity.name == "loss" or complement else 0.0
        held, train = f"SPLIT/{quantity.name}", f"train/{quantity.name}"
        file = re.sub(r"[^\w.-]+", "-", name)
        panels.append(Panel(file, quantity.title, quantity.unit, held, train, quantity.transform, top, _SIZE))
    return panels


SPEED = (
    Panel("rate", "Learning rate", "learning rate", "lr"),
    Panel("speed", "Speed", "images/s", "images_per_second"),
    Panel("waiting", "Waiting for data", "% of the time", "data_wait_fraction", of=_percent, top=10.0),
)


def color_of(place: int) -> str:
    """Return the colour of a recipe by its position."""
    return COLORS[place % len(COLORS)]


def marker_of(place: int) -> str:
    """Return the marker of a recipe by its position; it changes when colours repeat."""
    return MARKERS[place // len(COLORS) % len(MARKERS)]


def in_epochs(variants: Sequence[RecipeGroup]) -> bool:
    """Return whether the x axis is in epochs; in steps if there are fewer than two epochs."""
    ends = [run.rows[-1]["epoch"] for variant in variants for run in variant.counted]
    return bool(ends) and max(ends) >= 2


def curves_of(panel: Panel, variants: Sequence[RecipeGroup]) -> list[Curve]:
    """Return the curves of each recipe: training images dashed, the evaluation split solid.

    The solid curve is of the EMA if it is kept. A curve is the mean over the seeds, in a band from lowest to highest.
    """
    epochs, curves = in_epochs(variants), []
    for place, variant in enumerate(variants):
        averages = series_of(variant.counted, f"ema/{panel.held}")
        train = series_of(variant.counted, panel.train) if panel.train else None
        for course, dashed in ((train, True), (averages or series_of(variant.counted, panel.held), False)):
            if course is None:
                continue
            x, y = course.epoch if epochs else course.step, panel.of(course.values)
            of = "train" if dashed else f"{variant.split}, EMA" if averages else variant.split
            label = f"{variant.label}, {of}" if panel.train else variant.label
            how = (label, color_of(place), dashed, marker_of(place))
            curves.append(Curve(x, y.mean(0), y.min(0), y.max(0), *how))
    return curves


def pictures(panels: Sequence[Panel], variants: Sequence[RecipeGroup]) -> list[Picture]:
    """Return a picture for each panel of which the runs have values."""
    found = []
    for panel in panels:
        curves = curves_of(panel, variants)
        if curves:
            when = "epoch" if in_epochs(variants) else "step"
            lasts = "; ".join(f"{c.label} ends at {c.mean[-1]:.4g}" for c in curves)
            alt = f"{panel.title} by {when}: {lasts}."
            found.append(Picture(panel.name, alt, partial(_draw_panel, panel, curves, when), curves, when))
    return found


def _draw_panel(panel: Panel, curves: Sequence[Curve], when: str, legend: bool) -> "Figure":
    figure, axes = new_figure(panel.size)
    draw_panel(axes, curves, title=panel.title, y=panel.y, x=when)
    if panel.top is None:
        plain_log_scale(axes, curves)
    elif min(float(curve.low.min()) for curve in curves) >= 0:
        axes.set_ylim(0, max(panel.top, 1.15 * max(float(curve.high.max()) for curve in curves)) or 1)
    if legend:
        few = len(curves) <= _TOLD
        told = [(line, c.label) for line, c in zip(axes.lines, curves, strict=True) if few or not c.dashed]
        lines, labels = zip(*told, strict=True)
        axes.legend(lines, [as_written(label) for label in labels], frameon=False, labelcolor=INK, fontsize=8.5)
    return figure


def final_picture(groups: Sequence[RecipeGroup]) -> Picture | None:
    """Return a picture with a dot per run at its final value; None if there is nothing to compare."""
    ends = [(place, group, aggregate(group, final_value(headline(group)))) for place, group in enumerate(groups)]
    known = [(place, group, end) for place, group, end in ends if end is not None]
    values = {headline(group).rpartition("/")[2] for _, group, _ in known}
    if len(known) < 2 or len(values) > 1:
        return None
    quantity = quantity_of(values.pop(), display_of_runs([run for group in groups for run in group.runs]))
    rows = [(place, g.label, [float(x) for x in quantity.transform(np.array(e.values))]) for place, g, e in known]
    what = f"final {quantity.unit}"
    alt = f"The {what} of each run: " + "; ".join(f"{n} {', '.join(f'{x:.4g}' for x in xs)}" for _, n, xs in rows)
    return Picture("final", alt + ".", partial(_draw_final, rows, what))


def _draw_final(rows: list[tuple[int, str, list[float]]], what: str, legend: bool) -> "Figure":
    figure, axes = new_figure((_SIZE[0], 0.8 + 0.5 * len(rows)))
    for row, (place, name, values) in enumerate(rows):
        how: dict[str, Any] = {"color": color_of(place), "clip_on": False}
        axes.plot([np.mean(values)] * 2, [row - 0.18, row + 0.18], lw=2, **how)
        axes.plot(values, [row] * len(values), ls="", marker=marker_of(place), ms=7, alpha=0.65, mew=0, **how)
        at = axes.get_yaxis_transform()
        axes.text(0, row - 0.28, as_written(name), transform=at, va="bottom", color=INK, fontsize=9.5)
    axes.set_ylim(len(rows) - 0.6, -0.7)
    axes.set_yticks([])
    axes.margins(x=0.03)
    axes.set_xlabel(what, color=MUTED)
    axes.grid(axis="x", alpha=0.25, color=MUTED)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(axis="x", color=MUTED, labelcolor=MUTED)
    return figure


def confusion_picture(answers: Sequence[tuple[str, Predictions]]) -> Picture | None:
    """Return the confusion matrices with at most 200 classes, side by side; None if there are none."""
    small = [(label, one) for label, one in answers if len(one.source.classes) <= DRAWN]
    return (
        Picture(
            "confusion",
            "Confusion matrix, rows: true class.",
            partial(_draw_confusion, small),
        )
        if small
        else None
    )


def _draw_confusion(answers: Sequence[tuple[str, Predictions]], legend: bool) -> "Figure":
    classes = [len(one.source.classes) for _, one in answers]
    side, columns = 2.2 + 0.3 * min(NAMED, max(classes)), min(3, len(answers))
    rows = -(-len(answers) // columns)
    figure, grid = _figures((side * columns, (side + 0.2) * rows), rows, columns)
    for axes in grid[len(answers) :]:
        axes.set_axis_off()
    for axes, (label, one) in zip(grid, answers, strict=False):
        draw_confusion(axes, confusion(one), one.source.classes)
        if len(answers) > 1:
            axes.set_title(as_written(label), loc="left", color=INK, fontsize=10)
    return figure


def strengths(matrix: np.ndarray) -> np.ndarray:
    """Return the opacity 0 to 1, (k, k), of the cells of a confusion matrix, by fraction of the row.

    Wrong predictions are few but matter most, so their opacity grows with the square root.
    """
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    wrong = np.where(matrix > 0, 0.2 + 0.45 * np.sqrt(share), 0.0)
    return np.where(np.eye(len(matrix), dtype=bool), 0.5 * share, wrong)


def draw_confusion(axes: "Axes", matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Draw a confusion matrix (k, k): correct in blue, wrong in orange, with names and counts if k <= 20."""
    cells = np.empty((*matrix.shape, 4))
    cells[..., :3] = _rgb(COLORS[1])
    cells[np.diag_indices(len(matrix))] = (*_rgb(COLORS[0]), 0.0)
    cells[..., 3] = strengths(matrix) * (1.0 if len(classes) <= NAMED else 1.5)
    axes.imshow(cells, interpolation="nearest")
    axes.set_xlabel("predicted class", color=MUTED)
    axes.set_ylabel("true class", color=MUTED)
    axes.tick_params(color=MUTED, labelcolor=MUTED)
    axes.spines[:].set_color(MUTED)
    if len(classes) > NAMED:
        return
    names = [as_written(name[:18]) for name in classes]
    long = max(map(len, names)) > 3
    axes.set_xticks(range(len(names)), names, rotation=45 if long else 0, ha="right" if long else "center")
    axes.set_yticks(range(len(names)), names)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", fontsize=8, color=INK)


def _rgb(color: str) -> tuple[float, ...]:
    return tuple(int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))


def new_figure(size: tuple[float, float]) -> "tuple[Figure, Axes]":
    """Return a figure of a size in inches without a window, and its axes."""
    figure, (axes,) = _figures(size, 1, 1)
    return figure, axes


def _figures(size: tuple[float, float], rows: int, columns: int) -> "tuple[Figure, list[Axes]]":
    """Return a figure without a window, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def as_png(picture: Picture) -> bytes:
    """Return a picture as PNG with a legend, on white."""
    return saved(picture.draw(True), format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})


def saved(figure: "Figure", *, salt: str = "", **options: Any) -> bytes:
    """Return a figure as a file; pictures of different salts have different ids in SVG."""
    import matplotlib

    file = io.BytesIO()
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"resnet-jax {salt}"}),
        warnings.catch_warnings(),
    ):
        # Class names in other scripts
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(file, **options)
    return file.getvalue()
