"""Predict the boxes of an image of any size, on a canvas of the size that a network was trained on."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.image import Preprocessing
from resnet_jax.data.resize import padding_level, resize
from resnet_jax.models.detection.nms import Detections
from resnet_jax.weights.entries import coco_classes

# (uint8 (1, h, w, c), height and width of the image within it (1, 2)) -> detections of one image
Detect = Callable[[np.ndarray, np.ndarray], Detections]


class Boxes(NamedTuple):
    """Boxes in an image, the best first."""

    boxes: np.ndarray
    """(n, 4) float32: x1, y1, x2, y2 in pixels."""
    scores: np.ndarray
    """(n,) float32, from 0 to 1."""
    labels: np.ndarray
    """(n,) int32."""


def predict_boxes(
    detect: Detect, image: np.ndarray, canvas: tuple[int, int], preprocessing: Preprocessing, score: float = 0.0
) -> Boxes:
    """Return the detected boxes of an image in its own pixels.

    The whole image is fitted into the canvas at the top left; the rest has the colour of the mean. An upright image is
    fitted into the upright canvas.

    Args:
        detect: on one canvas.
        image: uint8 (h, w, c).
        canvas: height and width of the training images.
        preprocessing: how these were resized.
        score: least score of a box.
    """
    height, width, _ = image.shape
    upright = height > width
    size = (max(canvas), min(canvas)) if upright else (min(canvas), max(canvas))
    fitted, (tall, wide) = _fit(image, size, preprocessing)
    boxes, scores, labels = (np.asarray(leaf)[0] for leaf in detect(fitted[None], np.array([[tall, wide]], np.float32)))
    there = (labels >= 0) & (scores >= score)
    scale = np.array([width / wide, height / tall] * 2, np.float32)
    return Boxes(boxes[there] * scale, scores[there], labels[there])


def _fit(image: np.ndarray, size: tuple[int, int], preprocessing: Preprocessing) -> tuple[np.ndarray, tuple[int, int]]:
    """Return an image in a canvas of a size, filled with the mean, and its height and width there."""
    height, width, channels = image.shape
    scale = min(size[0] / height, size[1] / width)
    tall, wide = (max(1, min(most, round(side * scale))) for most, side in zip(size, (height, width), strict=True))
    # 0 once normalised, as torchvision pads
    canvas = np.empty((*size, channels), np.uint8)
    canvas[:] = padding_level(preprocessing.mean, channels)
    canvas[:tall, :wide] = resize(image, tall, wide, preprocessing.interpolation or "bilinear")
    return canvas, (tall, wide)


def coco_results(names: Sequence[str], found: Sequence[Boxes], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return detections as rows of COCO's result JSON.

    The number of an image is that in its name, as in 000000000139.jpg; without one, the name stands for it. Classes
    have COCO's numbers if all are of COCO, and otherwise count from 1.

    Args:
        names: of the images, without folder and ending.
        found: detections of each, in its pixels.
        classes: names of all classes.
    """
    known = coco_classes()
    of_coco = set(classes) <= set(known)
    numbers = [known.index(name) if of_coco else place for place, name in enumerate(classes, 1)]
    rows = []
    for name, (boxes, scores, labels) in zip(names, found, strict=True):
        image = int(name) if re.fullmatch("[0-9]{1,18}", name) else name
        corners = np.round(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).astype(float), 2).tolist()
        for corner, score, label in zip(corners, scores.tolist(), labels.tolist(), strict=True):
            rows.append({"image_id": image, "category_id": numbers[label], "bbox": corner, "score": round(score, 5)})
    return rows
