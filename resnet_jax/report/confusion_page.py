"""Confusion matrix and mistakes on the page."""

import io
from collections.abc import Sequence
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image

from resnet_jax.report.figures import NAMED, confusion_picture, strengths
from resnet_jax.report.nodes import Child, data_uri, node, scrolled, shown, table
from resnet_jax.report.predictions import Mistake, Predictions, confusion, mistakes, most_confused
from resnet_jax.report.runs import RecipeGroup
from resnet_jax.report.sheet import as_picture, can_show

# Images up to this longer side in pixels are shown unscaled, as PNG
_SMALL = 64
# Longer side in pixels to which larger images are scaled
_SHOWN = 192


def answered(variant: RecipeGroup, answers: Predictions | None, *, several: bool) -> list[Child]:
    """Return the section with the confusion matrix and the most confident mistakes of a recipe."""
    if answers is None:
        return []
    wrong = mistakes(answers)
    return [
        node("h2", f"Confusion matrix{f': {variant.label}' if several else ''}"),
        node(
            "div",
            node("div", confused(variant.split, answers)),
            node("div", mistaken(answers, wrong) if wrong else node("p", "Every image is classified correctly.")),
            class_="taken",
        ),
    ]


def confused(split: str, answers: Predictions) -> list[Child]:
    """Return the confusion matrix as a table or, for many classes, a picture and the most confused pairs."""
    matrix, classes, networks = confusion(answers), answers.source.classes, len(answers.answer)
    of = f"{answers.source.size:,} images of the {split} split{f', by {networks} networks' if networks > 1 else ''}"
    caption = f"All {of}. Rows: true class, columns: predicted."
    if len(classes) <= NAMED:
        return [matrix_table(matrix, classes, caption)]
    rows: list[list[Child]] = [
        [classes[pair.label], classes[pair.answer], f"{pair.times:,}", f"{100 * pair.share:.1f} %"]
        for pair in most_confused(matrix)
    ]
    heat = confusion_picture([("", answers)])
    return [
        node("figure", shown(heat), node("figcaption", caption), class_="whole") if heat else None,
        table(
            ["true class", "predicted", "images", "fraction of the class"],
            rows,
            caption=f"The most confused pairs, of {of}.",
        ),
    ]


def matrix_table(matrix: np.ndarray, classes: Sequence[str], caption: str) -> Element:
    """Return a table of a confusion matrix (k, k), rows by true class."""
    strength = strengths(matrix)

    def cell(row: int, column: int) -> Element:
        if not matrix[row, column]:
            return node("td", "0", class_="none")
        kind = "right" if row == column else "wrong"
        return node("td", f"{matrix[row, column]:,}", class_=kind, style=f"--share:{strength[row, column]:.2f}")

    body = [
        node("tr", node("th", name, scope="row"), [cell(row, column) for column in range(len(classes))])
        for row, name in enumerate(classes)
    ]
    head = node("tr", node("td"), [node("th", name, scope="col") for name in classes])
    whole = node("table", node("thead", head), node("tbody", body))
    return scrolled(whole, caption=caption, class_="matrix")


def mistaken(answers: Predictions, wrong: Sequence[Mistake]) -> list[Child]:
    """Return a figure per mistake with its prediction; nothing if images cannot be shown as pictures."""
    if not can_show(answers.source.read(wrong[0].place).image):
        return []
    networks = len(answers.answer)
    text = "Predicted and true class, probability, and index of the image in the split; most confident first."
    if networks > 1:
        text = (
            f"Predicted and true class, mean probability, number of the {networks} networks that are wrong, and index"
            " of the image in the split. Sorted by the number of wrong networks, then by confidence."
        )
    figures = [_figure(answers, one, networks) for one in wrong]
    small = all(figure[0].get("class") == "small" for figure in figures)
    return [
        node("h3", "Most confident mistakes"),
        node("p", text, class_="muted"),
        node("div", figures, class_="mistakes" if small else "mistakes large"),
    ]


def _figure(answers: Predictions, one: Mistake, networks: int) -> Element:
    label, answer = answers.source.classes[one.label], answers.source.classes[one.answer]
    content, kind, small = thumbnail(answers.source.read(one.place).image)
    class_ = "small" if small else None
    picture = node("img", src=data_uri(content, kind), alt=f"predicted {answer}, true {label}", class_=class_)
    sure = f"{100 * one.probability:.1f} %"
    place: Child = [f"{sure}, {one.wrong} of {networks}", node("br")] if networks > 1 else f"{sure}, "
    words: list[Child] = [
        "predicted ",
        node("b", answer),
        node("br"),
        f"true {label}",
        node("br"),
        place,
        f"#{one.place}",
    ]
    return node("figure", picture, node("figcaption", words))


def thumbnail(image: np.ndarray) -> tuple[bytes, str, bool]:
    """Return an image (h, w, 1 or 3) uint8 as file content, its MIME type, and whether it is unscaled."""
    picture, file = as_picture(image), io.BytesIO()
    small = max(picture.size) <= _SMALL
    if small:
        picture.save(file, "png")
    else:
        picture.thumbnail((_SHOWN, _SHOWN), Image.Resampling.LANCZOS)
        picture.save(file, "jpeg", quality=85)
    return file.getvalue(), f"image/{'png' if small else 'jpeg'}", small
