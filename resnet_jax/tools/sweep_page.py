"""The page of a sweep: its trials in a table, and the value by each field."""

import io
from collections.abc import Sequence
from pathlib import Path

from resnet_jax.report.nodes import Child, data_uri, node, render, table
from resnet_jax.runtime.safe_files import write_atomic
from resnet_jax.tools.sweep import Range, Sweep, Trial, Vary

PAGE = "index.html"


def in_order(sweep: Sweep, larger_is_better: bool) -> list[Trial]:
    """Return the trials, the complete ones first and each kind from best to worst."""
    sign = -1 if larger_is_better else 1
    kinds = ("complete", "pruned", "failed")
    return sorted(sweep.trials, key=lambda t: (kinds.index(t.state), sign * (t.value or 0.0), t.number))


def format_number(value: object) -> str:
    """Return a value of a trial as people read it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_page(
    sweep: Sweep, vary: Vary, out: Path, *, title: str, monitor: str, larger_is_better: bool, notes: Sequence[str] = ()
) -> Path:
    """Write OUT/index.html about a sweep, and return its path."""
    ordered = in_order(sweep, larger_is_better)
    rows: list[list[Child]] = [
        [
            f"trial{t.number}",
            *(format_number(t.values.get(name, "")) for name in vary),
            "-" if t.value is None else f"{t.value:.4f}",
            f"{t.step:,}",
            t.state,
        ]
        for t in ordered
    ]
    pictures = [node("img", src=data_uri(_scatter(sweep, name, vary, monitor), "image/png"), alt=name) for name in vary]
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("title", title),
        node("style", Path(__file__).parents[1].joinpath("report", "style.css").read_text()),
    )
    main = node(
        "main",
        node("ul", [node("li", note) for note in notes], class_="notes") if notes else None,
        node("div", [node("figure", picture) for picture in pictures], class_="panels"),
        table(["trial", *vary, monitor, "steps", "state"], rows),
    )
    body = node("body", node("header", node("h1", title)), main)
    write_atomic(out / PAGE, render(node("html", head, body, lang="en")))
    return out / PAGE


def _scatter(sweep: Sweep, name: str, vary: Vary, monitor: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), dpi=130, layout="constrained")
    axes, space = figure.subplots(), vary[name]
    for state, color in (("complete", "#4c78a8"), ("pruned", "#b0b7bf")):
        some = [t for t in sweep.trials if t.state == state and t.value is not None and name in t.values]
        x = [t.values[name] if isinstance(space, Range) else str(t.values[name]) for t in some]
        if some:
            axes.scatter(x, [float(t.value or 0) for t in some], color=color, s=22, label=state)
    if isinstance(space, Range) and space.log:
        axes.set_xscale("log")
    axes.set_xlabel(name)
    axes.set_ylabel(monitor)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.collections:
        axes.legend(frameon=False, fontsize=9)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()
