"""The pictures of a report, as PNG and as SVG that follows the light or dark colours of its reader.

A variant has the same colour in all of them.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resnet_jax.curves import INK, MUTED, Curve, as_written, draw_panel, plain_log_scale
from resnet_jax.report.answers import Answers, confusion
from resnet_jax.report.results import course_of, final, headline, over
from resnet_jax.report.runs import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by people who see colours differently (after Okabe and Ito 2008), on white: 3 to 1 or more
COLORS = ("#0072b2", "#d55e00", "#00875f", "#a8508a", "#8a6d00", "#4d4d4d")
DARK = dict(
    zip(
        (*COLORS, INK, MUTED),
        ("#5ab0e8", "#ff9149", "#3cc9a0", "#e59bc6", "#dcba3a", "#c2c2c2", "#e6e9ec", "#a3adb7"),
        strict=True,
    )
)
MARKERS = ("o", "s", "^", "D", "v")  # the next one when all colours are used
NAMED = 20  # classes whose names fit beside a confusion matrix
DRAWN = 200  # classes whose confusion fits a picture
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_SIZE = (5.4, 3.5)  # inches
_NARROW = (4.0, 2.7)  # where three are side by side
_DPI = 160
_TOLD = 6  # curves, up to which a legend has the dashed ones too


class Picture(NamedTuple):
    """A figure of a report."""

    name: str  # of its file
    alt: str  # for those who do not see it
    draw: Callable[[bool], "Figure"]  # with a legend or without


class Panel(NamedTuple):
    """A quantity of the lines of metrics."""

    name: str
    title: str
    y: str
    held: str  # field; SPLIT stands for the held split
    train: str | None = None  # field that belongs to it
    of: Callable[[np.ndarray], np.ndarray] = np.asarray  # what is drawn of the field
    top: float | None = 0.0  # of a linear axis from 0, at least; None for a logarithmic one
    size: tuple[float, float] = _NARROW  # inches


def _error(accuracy: np.ndarray) -> np.ndarray:
    return 100 * (1 - accuracy)


def _percent(share: np.ndarray) -> np.ndarray:
    return 100 * share


QUALITY = (
    Panel("loss", "Loss", "loss", "SPLIT_loss", "train_loss", top=None, size=_SIZE),
    Panel("error", "Error", "error (%)", "SPLIT_accuracy", "train_accuracy", _error, top=None, size=_SIZE),
)
SPEED = (
    Panel("rate", "Learning rate", "learning rate", "lr"),
    Panel("speed", "Speed", "images/s", "images_per_second"),
    Panel("waiting", "Waiting for data", "% of the time", "data_wait", of=_percent, top=10.0),
)
NAMES = (*(panel.name for panel in (*QUALITY, *SPEED)), "final", "confusion", "mistakes")


def color_of(place: int) -> str:
    """Of the variant at a place."""
    return COLORS[place % len(COLORS)]


def marker_of(place: int) -> str:
    """Of the variant at a place: another one as soon as colours occur again."""
    return MARKERS[place // len(COLORS) % len(MARKERS)]


def in_epochs(variants: Sequence[Variant]) -> bool:
    """Whether time is told in epochs, or in steps, as where there are too few epochs."""
    ends = [run.lines[-1]["epoch"] for variant in variants for run in variant.counted]
    return bool(ends) and max(ends) >= 2


def curves_of(panel: Panel, variants: Sequence[Variant]) -> list[Curve]:
    """Of each variant: the training images dashed, the held split, and its averages in place of it where it has some.

    The mean over the seeds, in a band from the lowest to the highest.
    """
    epochs, curves = in_epochs(variants), []
    for place, variant in enumerate(variants):
        averages = course_of(variant.counted, f"ema_{panel.held}")
        train = course_of(variant.counted, panel.train) if panel.train else None
        for course, dashed in ((train, True), (averages or course_of(variant.counted, panel.held), False)):
            if course is None:
                continue
            x, y = course.epoch if epochs else course.step, panel.of(course.values)
            of = "train" if dashed else f"{variant.split}, averages" if averages else variant.split
            label = f"{variant.label}, {of}" if panel.train else variant.label
            how = (label, color_of(place), dashed, marker_of(place))
            curves.append(Curve(x, y.mean(0), y.min(0), y.max(0), *how))
    return curves


def pictures(panels: Sequence[Panel], variants: Sequence[Variant]) -> list[Picture]:
    """Those of these quantities that the runs have."""
    found = []
    nats = not any(variant.runs[0].recipe.loss.name == "mean_squared_error" for variant in variants)
    for panel in panels:
        curves = curves_of(panel, variants)
        if panel.name == "loss" and nats:
            panel = panel._replace(y="loss (nats)")
        if curves:
            when = "epoch" if in_epochs(variants) else "step"
            lasts = "; ".join(f"{c.label} ends at {c.mean[-1]:.4g}" for c in curves)
            alt = f"{panel.title} by {when}: {lasts}."
            found.append(Picture(panel.name, alt, partial(_draw_panel, panel, curves, when)))
    return found


def _draw_panel(panel: Panel, curves: Sequence[Curve], when: str, legend: bool) -> "Figure":
    figure, axes = _figure(panel.size)
    draw_panel(axes, curves, title=panel.title, y=panel.y, x=when)
    if panel.top is None:
        plain_log_scale(axes, curves)
    else:
        axes.set_ylim(0, max(panel.top, 1.15 * max(float(curve.high.max()) for curve in curves)) or 1)
    if legend:
        few = len(curves) <= _TOLD
        told = [(line, c.label) for line, c in zip(axes.lines, curves, strict=True) if few or not c.dashed]
        lines, labels = zip(*told, strict=True)
        axes.legend(lines, [as_written(label) for label in labels], frameon=False, labelcolor=INK, fontsize=8.5)
    return figure


def final_picture(variants: Sequence[Variant]) -> Picture | None:
    """Where the runs end, a dot each; None where there is nothing to compare."""
    ends = [(place, variant, over(variant, final(headline(variant)))) for place, variant in enumerate(variants)]
    known = [(place, variant, end) for place, variant, end in ends if end is not None]
    errors = all(headline(variant).endswith("accuracy") for _, variant, _ in known)
    if len(known) < 2 or len({headline(variant).endswith("accuracy") for _, variant, _ in known}) > 1:
        return None
    rows = [(place, v.label, [100 * (1 - x) for x in e.values] if errors else list(e.values)) for place, v, e in known]
    what = "final error (%)" if errors else "final loss"
    alt = f"The {what} of each run: " + "; ".join(f"{n} {', '.join(f'{x:.4g}' for x in xs)}" for _, n, xs in rows)
    return Picture("final", alt + ".", partial(_draw_final, rows, what))


def _draw_final(rows: list[tuple[int, str, list[float]]], what: str, legend: bool) -> "Figure":
    figure, axes = _figure((_SIZE[0], 0.8 + 0.5 * len(rows)))
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


def confusion_picture(answers: Sequence[tuple[str, Answers]]) -> Picture | None:
    """The confusion matrices of variants, side by side, where they are not too large."""
    small = [(label, one) for label, one in answers if len(one.source.classes) <= DRAWN]
    return (
        Picture("confusion", "How often each class is taken for each.", partial(_draw_confusion, small))
        if small
        else None
    )


def _draw_confusion(answers: Sequence[tuple[str, Answers]], legend: bool) -> "Figure":
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
    """How strong the colours of a confusion matrix (k, k) are, 0 to 1, by the shares of the images of a class.

    Of the few wrong answers it is by the root, for they are what one looks for.
    """
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    wrong = np.where(matrix > 0, 0.2 + 0.45 * np.sqrt(share), 0.0)
    return np.where(np.eye(len(matrix), dtype=bool), 0.5 * share, wrong)


def draw_confusion(axes: "Axes", matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Right answers in blue, wrong ones in orange, with their numbers and the names of few classes."""
    cells = np.empty((*matrix.shape, 4))
    cells[..., :3] = _rgb(COLORS[1])
    cells[np.diag_indices(len(matrix))] = (*_rgb(COLORS[0]), 0.0)
    cells[..., 3] = strengths(matrix) * (1.0 if len(classes) <= NAMED else 1.5)
    axes.imshow(cells, interpolation="nearest")
    axes.set_xlabel("answer", color=MUTED)
    axes.set_ylabel("class", color=MUTED)
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


def _figure(size: tuple[float, float]) -> "tuple[Figure, Axes]":
    figure, (axes,) = _figures(size, 1, 1)
    return figure, axes


def _figures(size: tuple[float, float], rows: int, columns: int) -> "tuple[Figure, list[Axes]]":
    """A figure that belongs to no window, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def as_png(picture: Picture) -> bytes:
    """With a legend, on white."""
    return _saved(picture.draw(True), format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})


def as_svg(picture: Picture) -> str:
    """Without a legend, on nothing, in the reader's fonts; dark where the reader has it so."""
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    text = _saved(picture.draw(False), format="svg", transparent=True, metadata=nothing).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"font-family: [^;\"]*", f"font-family: {_FONT}", text)
    for number, (light, _) in enumerate(DARK.items()):
        text = text.replace(light, f"var(--c{number})")
    light, dark = (" ".join(f"--c{n}: {c};" for n, c in enumerate(colors)) for colors in (DARK, DARK.values()))
    style = f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }} "
    return text.replace('<style type="text/css">', f'<style type="text/css">{style}', 1)


def _saved(figure: "Figure", **options: Any) -> bytes:
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "resnet-jax"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a class name in another script
        figure.savefig(file, **options)
    return file.getvalue()
