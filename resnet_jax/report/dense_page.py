"""Predicted pixels on the page: a table by class, and the worst images."""

import numpy as np

from resnet_jax.data.masks import palette
from resnet_jax.report.dense import MaskPredictions, pictures_of
from resnet_jax.report.nodes import Child, node, table
from resnet_jax.report.runs import RecipeGroup
from resnet_jax.report.sheet import gallery, sheet_png
from resnet_jax.tasks.metrics import class_iou

# Three pictures of an image, two images in a row
_COLUMNS, _SIDE = 6, 240


def segmented(variant: RecipeGroup, found: MaskPredictions, *, several: bool) -> list[Child]:
    """Return the section with the table by class and the worst images of a recipe."""
    caption = "Images with the smallest fraction of correct pixels: plain, with true and with predicted classes."
    worst = pictures_of(found)
    return [
        node("h2", f"Classes{f': {variant.label}' if several else ''}"),
        by_class(variant, found),
        node("p", caption, class_="muted") if worst else None,
        gallery(worst, 3, _SIDE) if worst else None,
    ]


def by_class(variant: RecipeGroup, found: MaskPredictions) -> Child:
    """Return the table of intersection over union, accuracy and frequency of each class, and its rival."""
    matrix, classes, colors = found.matrix, found.source.classes, palette(len(found.source.classes))
    pixels, networks = max(int(matrix.sum()), 1), len(found.accuracy)
    rows: list[list[Child]] = []
    for place, (name, iou) in enumerate(zip(classes, class_iou(matrix), strict=True)):
        total = int(matrix[place].sum())
        wrong = np.where(np.arange(len(classes)) == place, 0, matrix[place])
        color = "#" + colors[place].tobytes().hex()
        rows.append(
            [
                [node("span", "■", style=f"color:{color}", aria_hidden="true"), f" {name}"],
                "-" if np.isnan(iou) else f"{iou:.1%}",
                f"{matrix[place, place] / total:.1%}" if total else "-",
                f"{total / pixels:.2%}",
                f"{classes[int(wrong.argmax())]} ({wrong.max() / total:.1%})" if wrong.any() else "-",
            ]
        )
    by = f", by {networks} networks" if networks > 1 else ""
    caption = f"All labelled pixels of {found.source.size:,} images of the {variant.split} split{by}."
    head = ["class", "IoU", "pixels found", "of all pixels", "most often predicted as"]
    return table(head, rows, caption=caption, class_="numbers sortable")


def worst_png(found: MaskPredictions) -> bytes | None:
    """Return a PNG of the worst images; None if there are none to show."""
    shown = pictures_of(found)
    return sheet_png(shown, _COLUMNS, _SIDE) if shown else None
