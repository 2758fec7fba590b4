"""COCO's metric of detections: precision and recall over ten overlaps, in twelve numbers.

It is no sum over batches, because the detections of all images are ranked together: what is kept of each example comes
to the host. Axes: n images, d detections, m objects, k classes.

Reference:
    Lin et al. 2014, "Microsoft COCO"; cocodataset.org, "Detection evaluation".
"""

from importlib.util import find_spec
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.errors import InputError
from resnet_jax.models.detection.objects import Objects

# COCO's twelve numbers, in its order
NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
SIZES = ("all", "small", "medium", "large")
OVERLAPS = np.linspace(0.5, 0.95, 10)
# Recall of the columns of `Ranked.precision`
RECALL = np.linspace(0, 1, 101)


class Found(NamedTuple):
    """Detections and objects of images: arrays, padded with labels of -1; boxes are x1, y1, x2, y2."""

    boxes: Any
    """(n, d, 4) float."""
    scores: Any
    """(n, d) float."""
    labels: Any
    """(n, d) int."""
    true_boxes: Any
    """(n, m, 4) float."""
    true_labels: Any
    """(n, m) int."""
    crowd: Any
    """(n, m) bool: a box around many objects, which may be found any number of times or not at all."""
    area: Any
    """(n, m) float, of the object in pixels of its file: small is up to 32 x 32, large from 96 x 96 on."""
    scale: Any
    """(n,) float: pixels of the boxes per pixel of the file."""
    classes: Any
    """(n,) int: the number k of classes."""


class Ranked(NamedTuple):
    """Precision and recall of all detections; -1 for classes without an object of a size."""

    precision: np.ndarray
    """(10, 101, k, 4, 3) float64: by `OVERLAPS`, `RECALL`, class, `SIZES` and most detections 1, 10, 100."""
    recall: np.ndarray
    """(10, k, 4, 3) float64."""
    numbers: dict[str, float | None]
    """COCO's twelve, from 0 to 1; None if there is no object of the size, and 0 if there is none at all."""

    def class_ap(self, size: str = "all", overlap: float | None = None) -> np.ndarray:
        """Return the average precision of each class (k,); NaN for classes without objects of the size."""
        rows = np.isclose(OVERLAPS, OVERLAPS if overlap is None else overlap)
        chosen = self.precision[rows, ..., SIZES.index(size), -1]
        return np.where((chosen > -1).all((0, 1)), chosen.mean((0, 1)), np.nan)


def keep_boxes(outputs: Any, targets: Objects, mask: Array) -> Found:
    """Return the detections of a network and the objects of a batch: what `rank` needs of each example.

    Args:
        outputs: of a detector, with `detect()` and `num_classes`.
        targets: of the batch.
        mask: (b,), not needed: what is kept of padding is dropped on the host.
    """
    found = outputs.detect()
    detections = found.boxes, found.scores, found.labels
    objects = targets.boxes, targets.labels, targets.crowd, targets.area
    scale, classes = (jnp.broadcast_to(value, mask.shape) for value in (targets.scale, outputs.num_classes))
    return Found(*detections, *objects, scale=scale, classes=classes)


def average_precision(found: Found) -> dict[str, float | None]:
    """Return the first three of COCO's numbers: AP over all overlaps, at .5 and at .75."""
    numbers = rank(found).numbers
    return {name: numbers[name] for name in NAMES[:3]}


def coco_numbers(found: Found) -> dict[str, float | None]:
    """Return COCO's twelve numbers."""
    return rank(found).numbers


def class_precision(found: Found) -> dict[str, np.ndarray]:
    """Return the AP of each class (k,); NaN for classes without objects."""
    return {"class_ap": rank(found).class_ap()}


def require_coco() -> None:
    """Raise InputError if the package that computes the metric is not installed."""
    if find_spec("faster_coco_eval") is None:
        raise InputError("metrics of detections need faster-coco-eval: pip install faster-coco-eval")


def rank(found: Found) -> Ranked:
    """Return precision and recall of the detections of all images, by faster-coco-eval.

    Equal scores are ranked by image and then by index, whatever the batches were.

    Raises:
        InputError: The package is not installed.

    Example:
        >>> boxes, zeros = np.array([[[0.0, 0.0, 40.0, 40.0]]]), np.zeros((1, 1), int)
        >>> right = Found(boxes, zeros + 0.9, zeros, boxes, zeros, zeros, zeros + 1600, np.ones(1), np.ones(1, int))
        >>> round(rank(right).numbers["ap"], 3)
        1.0
    """
    require_coco()
    from faster_coco_eval import COCO, COCOeval_faster

    truth, answers = as_coco(found)
    judge = COCOeval_faster(COCO(truth), COCO(answers), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    numbers = [float(number) for number in judge.stats[: len(NAMES)]]
    missing = None if max(numbers) >= 0 else 0.0
    known = {name: missing if number < 0 else number for name, number in zip(NAMES, numbers, strict=True)}
    return Ranked(np.asarray(judge.eval["precision"]), np.asarray(judge.eval["recall"]), known)


def as_coco(found: Found) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return objects and detections as COCO's JSON has them, in pixels of the files; images count from 0."""
    count, classes = len(found.labels), int(found.classes[0]) if len(found.classes) else 0
    common = {"images": [{"id": n} for n in range(count)], "categories": [{"id": k} for k in range(classes)]}
    image, place = np.nonzero(np.asarray(found.true_labels) >= 0)
    boxes = _corner_and_size(found.true_boxes, image, place, found.scale)
    columns = found.true_labels[image, place], boxes, found.area[image, place], found.crowd[image, place]
    objects = _annotations(image, *columns)
    image, place = np.nonzero(np.asarray(found.labels) >= 0)
    scores = found.scores[image, place]
    order = np.lexsort((place, -scores, image))
    image, place, scores = image[order], place[order], scores[order]
    boxes = _corner_and_size(found.boxes, image, place, found.scale)
    columns = found.labels[image, place], boxes, boxes[:, 2] * boxes[:, 3], np.zeros(len(boxes), bool)
    detections = _annotations(image, *columns)
    for one, score in zip(detections, scores.tolist(), strict=True):
        one["score"] = score
    return {**common, "annotations": objects}, {**common, "annotations": detections}


def _corner_and_size(boxes: np.ndarray, image: np.ndarray, place: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return boxes (b, 4) as x, y, width, height in pixels of their files."""
    chosen = boxes[image, place].astype(np.float64) / np.asarray(scale, np.float64)[image, None]
    return np.concatenate([chosen[:, :2], chosen[:, 2:] - chosen[:, :2]], 1)


def _annotations(
    image: np.ndarray, labels: np.ndarray, boxes: np.ndarray, area: np.ndarray, crowd: np.ndarray
) -> list[dict[str, Any]]:
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    rows = zip(*(column.tolist() for column in (image, labels, boxes, area, crowd.astype(int))), strict=True)
    # COCO's numbers of annotations begin with 1
    return [{"id": number, **dict(zip(names, row, strict=True))} for number, row in enumerate(rows, 1)]


def match_objects(found: Found, overlap: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Return which detections find an object, and which count at all, two (n, d) bool.

    As in COCO's metric the best detection chooses first, the object of its class that it overlaps most; what only finds
    a crowd does not count.

    Args:
        found: detections and objects.
        overlap: intersection over union from which on an object is found.
    """
    hits, counted = np.zeros(found.labels.shape, bool), np.ones(found.labels.shape, bool)
    for n, labels in enumerate(found.labels):
        there = np.flatnonzero(found.true_labels[n] >= 0)
        order = np.argsort(-found.scores[n], kind="stable")
        order = order[labels[order] >= 0]
        if not len(there):
            continue
        crowd, free = found.crowd[n][there].astype(bool), np.ones(len(there), bool)
        iou = _overlaps(found.boxes[n][order], found.true_boxes[n][there], crowd)
        iou[labels[order][:, None] != found.true_labels[n][there]] = 0
        for place, row in zip(order, iou, strict=True):
            single = np.where(free & ~crowd, row, 0)
            best = int(single.argmax())
            if single[best] >= overlap:
                hits[n, place], free[best] = True, False
            elif (row[crowd] >= overlap).any():
                counted[n, place] = False
    return hits, counted


def _overlaps(boxes: np.ndarray, others: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Return intersections (b, m) over unions; over the areas of the boxes themselves for crowds (m,)."""
    sides = np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - np.maximum(boxes[:, None, :2], others[None, :, :2])
    shared = np.maximum(sides, 0).prod(-1).astype(np.float64)
    area, other = ((x[:, 2:] - x[:, :2]).prod(-1).astype(np.float64) for x in (boxes, others))
    union = area[:, None] + np.where(crowd, 0, other - shared)
    return shared / np.maximum(union, 1e-9)
