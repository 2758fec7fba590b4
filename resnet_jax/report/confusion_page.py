"""Confusion matrix and mistakes on the page."""

import io
import wave
from collections.abc import Sequence
from xml.etree.ElementTree import Element

import numpy as np

from resnet_jax.data.text import decode_text
from resnet_jax.inference.explain import overlaid
from resnet_jax.report.calibration import calibrated
from resnet_jax.report.figures import NAMED, confusion_picture, strengths
from resnet_jax.report.nodes import Child, data_uri, node, scrolled, table
from resnet_jax.report.predictions import Mistake, Predictions, class_scores, confusion, mistakes, most_confused
from resnet_jax.report.runs import RecipeGroup
from resnet_jax.report.sheet import as_pixels, thumbnail
from resnet_jax.report.svg import as_svg


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
        node("div", node("div", by_class(answers)), node("div", pairs(answers), calibrated(answers)), class_="taken"),
    ]


def confused(split: str, answers: Predictions) -> list[Child]:
    """Return the confusion matrix as a table or, for many classes, a picture."""
    classes, networks = answers.source.classes, len(answers.answer)
    of = f"{answers.source.size:,} images of the {split} split{f', by {networks} networks' if networks > 1 else ''}"
    caption = f"All {of}. Rows: true class, columns: predicted."
    if len(classes) <= NAMED:
        return [matrix_table(confusion(answers), classes, caption)]
    heat = confusion_picture([("", answers)])
    return [node("figure", as_svg(heat), node("figcaption", caption), class_="whole") if heat else node("p", caption)]


def by_class(answers: Predictions) -> list[Child]:
    """Return the table of precision, recall and F1 of each class, folded if there are many."""
    matrix, classes = confusion(answers), answers.source.classes
    scores, images = class_scores(matrix), matrix.sum(1) // len(answers.answer)
    rows: list[list[Child]] = [
        [name, *map(_percent, scores[:, place]), f"{images[place]:,}"] for place, name in enumerate(classes)
    ]
    means = [float(row[np.isfinite(row)].mean()) if np.isfinite(row).any() else np.nan for row in scores]
    foot = ["mean", *map(_percent, means), f"{images.sum():,}"]
    head = ["class", "precision", "recall", "F1", "images"]
    whole = table(head, rows, foot=foot, class_="numbers sortable")
    few = len(classes) <= NAMED
    return [
        node("h3", "Classes"),
        whole if few else node("details", node("summary", f"{len(classes):,} classes"), whole),
    ]


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f} %"


def pairs(answers: Predictions) -> list[Child]:
    """Return the table of the most confused pairs; nothing if no image is classified wrongly."""
    classes = answers.source.classes
    rows: list[list[Child]] = [
        [classes[pair.label], classes[pair.answer], f"{pair.times:,}", _percent(pair.share)]
        for pair in most_confused(confusion(answers))
    ]
    head = ["true class", "predicted", "images", "fraction of the class"]
    return [node("h3", "Most confused pairs"), table(head, rows)] if rows else []


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
    """Return a figure per mistake with its prediction: image, sound or text; nothing if it cannot be shown."""
    first = answers.source.read(wrong[0].place).image
    if as_pixels(first, answers.sample_rate) is None and first.dtype != np.int32:
        return []
    networks = len(answers.answer)
    text = "Predicted and true class, probability, and index of the image in the split; most confident first."
    if networks > 1:
        text = (
            f"Predicted and true class, mean probability, number of the {networks} networks that are wrong, and index"
            " of the image in the split. Sorted by the number of wrong networks, then by confidence."
        )
    if answers.heat:
        text += f" Beside it, where the {'first ' if networks > 1 else ''}network sees the predicted class (Grad-CAM)."
    figures = [_figure(answers, one, networks) for one in wrong]
    small = all(picture.get("class") == "small" for one in figures for picture in one.iter("img"))
    return [
        node("h3", "Most confident mistakes"),
        node("p", text, class_="muted"),
        node("div", figures, class_="mistakes" if small else "mistakes large"),
    ]


def _figure(answers: Predictions, one: Mistake, networks: int) -> Element:
    label, answer = answers.source.classes[one.label], answers.source.classes[one.answer]
    example = answers.source.read(one.place).image
    picture = shown_example(example, f"predicted {answer}, true {label}", answers.sample_rate)
    if one.place in answers.heat:
        seen = (255 * overlaid(example, answers.heat[one.place])).astype(np.uint8)
        picture = [node("div", picture, shown_example(seen, f"where it sees {answer}", None), class_="pair")]
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


def shown_example(example: np.ndarray, alt: str, sample_rate: int | None) -> list[Child]:
    """Return an image; a sound, to be played, below its spectrogram; or a text."""
    pixels = as_pixels(example, sample_rate)
    if pixels is None:
        return [node("blockquote", decode_text(example))]
    content, kind, small = thumbnail(pixels)
    picture = node("img", src=data_uri(content, kind), alt=alt, class_="small" if small else None)
    if example.dtype != np.int16 or sample_rate is None:
        return [picture]
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, sample_rate, 0, "NONE", ""))
        sound.writeframes(example.astype("<i2").tobytes())
    return [picture, node("audio", src=data_uri(file.getvalue(), "audio/wav"), controls="")]
