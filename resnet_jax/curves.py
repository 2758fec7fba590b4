"""A picture of a run: loss, error and learning rate over the epochs."""

from pathlib import Path
from typing import Any

from resnet_jax.errors import InputError

_TRAIN, _HELD, _RATE = "#4c78a8", "#e4572e", "#4fa39d"


def draw_curves(lines: list[dict[str, Any]], split: str, title: str, path: Path) -> None:
    """Writes a PNG of the lines of metrics.jsonl; raises InputError where there are none."""
    if not lines:
        raise InputError(f"{path}: no metrics to draw yet")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    loss, error = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in lines]
    for axes, quantity, label, values in (
        (loss, "loss", "cross-entropy (nats)", lambda line, s: line[f"{s}_loss"]),
        (error, "error", "error (%)", lambda line, s: 100 * (1 - line[f"{s}_accuracy"])),
    ):
        for name, color in (("train", _TRAIN), (split, _HELD)):
            series = [values(line, name) for line in lines]
            axes.plot(epochs, series, color=color, lw=1.8, marker="o", ms=3 if len(lines) < 60 else 0, label=name)
        axes.set(xlabel="epoch", title=quantity, ylabel=label)
        axes.grid(alpha=0.25)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    _plain_log_scale(loss)
    _last_error(error, lines, split, epochs)
    rate = loss.twinx()
    rate.fill_between(epochs, [line["lr"] for line in lines], color=_RATE, alpha=0.15, lw=0)
    rate.set_ylabel("learning rate", color=_RATE)
    rate.set_ylim(0, None)
    rate.tick_params(axis="y", colors=_RATE)
    rate.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    figure.savefig(path)


def _plain_log_scale(axes: Any) -> None:
    """A logarithmic axis with numbers as people write them, between the powers of ten too where there are few."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain if high < 10 * low else NullFormatter())


def _last_error(axes: Any, lines: list[dict[str, Any]], split: str, epochs: list[float]) -> None:
    """Marks the final error, and keeps the first, wild epochs from flattening the rest."""
    errors = [100 * (1 - line[f"{split}_accuracy"]) for line in lines]
    axes.annotate(
        f"{errors[-1]:.2f} %",
        (epochs[-1], errors[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=_HELD,
        fontweight="bold",
    )
    late = [100 * (1 - line[f"{s}_accuracy"]) for line in lines[len(lines) // 4 :] for s in ("train", split)]
    axes.set_ylim(0, 1.2 * max(*late, 1.0))
