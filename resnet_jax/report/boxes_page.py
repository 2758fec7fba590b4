"""Predicted boxes on the page: a table by class and size, precision and recall, and the worst images."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from resnet_jax.data.masks import palette
from resnet_jax.report.boxes import BoxPredictions, pictures_of
from resnet_jax.report.curves import INK, Curve, as_written, draw_panel
from resnet_jax.report.figures import COLORS, Picture, new_figure
from resnet_jax.report.nodes import Child, node, table
from resnet_jax.report.runs import RecipeGroup
from resnet_jax.report.sheet import gallery, sheet_png
from resnet_jax.report.svg import as_svg
from resnet_jax.tasks.coco import OVERLAPS, RECALL, SIZES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Two pictures of an image, two images in a row
_COLUMNS, _SIDE = 4, 420
# Classes whose curves are drawn
_DRAWN = 6
_BOUNDS = {"small": "to 32 x 32", "medium": "to 96 x 96", "large": "over 96 x 96"}


def boxed(variant: RecipeGroup, found: BoxPredictions, *, several: bool) -> list[Child]:
    """Return the section with the table by class, precision and recall, and the worst images of a recipe."""
    caption = (
        f"Images with the lowest F1 at a score of {found.score:.2f}, where F1 over the split is highest"
        f" (precision {found.precision:.1%}, recall {found.recall:.1%}, at an overlap of .5): true and predicted boxes."
    )
    worst = pictures_of(found)
    curves = precision_pictures(found)
    return [
        node("h2", f"Boxes{f': {variant.label}' if several else ''}"),
        by_class(variant, found),
        node("div", [node("figure", as_svg(one)) for one in curves], class_="panels"),
        node("p", caption, class_="muted") if worst else None,
        gallery(worst, 2, _SIDE) if worst else None,
    ]


def by_class(variant: RecipeGroup, found: BoxPredictions) -> Child:
    """Return the table of average precision by class and by size, the mean of the networks."""
    classes, networks = found.source.classes, len(found.ranked)
    labels, crowd = found.found.true_labels, found.found.crowd.astype(bool)
    colors = palette(len(classes))
    # (columns, k): at all overlaps, at .5, at .75, and by size
    chosen: list[tuple[str, float | None]] = [("all", None), ("all", 0.5), ("all", 0.75)]
    chosen += [(size, None) for size in SIZES[1:]]
    values = np.array([np.mean([one.class_ap(*which) for one in found.ranked], 0) for which in chosen])
    there = np.isfinite(values)
    means = np.where(there.any(1), np.where(there, values, 0).sum(1) / np.maximum(there.sum(1), 1), np.nan)
    foot = ["all classes", f"{int(((labels >= 0) & ~crowd).sum()):,}", *map(_percent, means)]
    rows: list[list[Child]] = []
    for place, name in enumerate(classes):
        dot = node("span", "■", style=f"color:#{colors[place].tobytes().hex()}", aria_hidden="true")
        count = int(((labels == place) & ~crowd).sum())
        rows.append([[dot, f" {name}"], f"{count:,}", *map(_percent, values[:, place])])
    by = f", the mean of {networks} networks" if networks > 1 else ""
    caption = f"Average precision on {found.source.size:,} images of the {variant.split} split{by}; sizes in pixels."
    head = ["class", "objects", "AP", "AP at .5", "AP at .75", *(f"{size}, {_BOUNDS[size]}" for size in SIZES[1:])]
    return table(head, rows, foot=foot, caption=caption, class_="numbers sortable")


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1%}"


def precision_pictures(found: BoxPredictions, place: int = 1) -> list[Picture]:
    """Return precision against recall: the mean over the classes at some overlaps, and classes at .5.

    Args:
        found: predictions.
        place: number of the recipe, in the names of the pictures.
    """
    number = f"-{place}" if place > 1 else ""
    # (10, 101, k): all sizes, 100 detections
    values = np.mean([one.precision[..., 0, -1] for one in found.ranked], 0)
    seen = np.flatnonzero((values[0] > -1).all(0))
    if not len(seen):
        return []
    at = {
        f"overlap {overlap:g}": values[row][:, seen].mean(1) for row, overlap in enumerate(OVERLAPS) if row in (0, 5, 8)
    }
    # The classes with most objects
    counts = [(found.found.true_labels == label).sum() for label in seen]
    chosen = seen[np.argsort(-np.array(counts), kind="stable")[:_DRAWN]]
    named = {found.source.classes[label]: values[0][:, label] for label in sorted(chosen)}
    return [
        _picture(f"precision{number}", "Precision, mean of all classes", at),
        _picture(f"precision-classes{number}", "Precision by class, overlap .5", named),
    ]


def _picture(name: str, title: str, values: dict[str, np.ndarray]) -> Picture:
    alt = f"{title}, against recall: " + "; ".join(
        f"{label} {curve.mean():.3f} on average" for label, curve in values.items()
    )
    percent = [(label, 100 * curve) for label, curve in values.items()]
    curves = [Curve(100 * RECALL, y, y, y, label, color) for (label, y), color in zip(percent, COLORS, strict=False)]
    return Picture(name, alt + ".", partial(_draw, title, curves), curves, "recall (%)")


def _draw(title: str, curves: Sequence[Curve], legend: bool) -> "Figure":
    """Draw curves, always with a legend, for nothing else on the page names them."""
    figure, axes = new_figure((5.4, 3.5))
    draw_panel(axes, curves, title=title, y="precision (%)", x="recall (%)")
    axes.set_ylim(0, 105)
    axes.legend(labels=[as_written(c.label) for c in curves], frameon=False, labelcolor=INK, fontsize=8.5)
    return figure


def worst_boxes_png(found: BoxPredictions) -> bytes | None:
    """Return a PNG of the worst images; None if there are none to show."""
    drawn = pictures_of(found)
    return sheet_png(drawn, _COLUMNS, _SIDE) if drawn else None
