"""Predictions of boxes: COCO's precision and recall over the evaluation split, and its worst images.

Axes: n images, d detections, m objects, k classes.
"""

from typing import NamedTuple

import numpy as np

from resnet_jax.data.draw import draw_boxes
from resnet_jax.data.source import Source
from resnet_jax.input_pipeline.device_input import open_device_split
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.report.sheet import can_show
from resnet_jax.tasks.coco import Found, Ranked, match_objects, rank
from resnet_jax.tasks.metrics import METRICS
from resnet_jax.training.evaluate import make_eval_step, measure_split
from resnet_jax.training.setup import TrainSetup
from resnet_jax.training.state import TrainState

# Number of images on the page
SHOWN = 6


class BoxPredictions(NamedTuple):
    """Predictions of the networks of a recipe for the objects of each image of the split."""

    source: Source
    ranked: tuple[Ranked, ...]  # of each network
    found: Found  # of the first network
    score: float  # at which its F1 is the largest
    precision: float  # there, at an overlap of .5
    recall: float
    worst: tuple[int, ...]  # indices of the images whose F1 is the smallest there


def box_predictions(state: TrainState, source: Source, setup: TrainSetup, loading: DataLoading) -> BoxPredictions:
    """Return the predictions of one network."""
    metrics = {"ap": METRICS["ap"]}
    step = make_eval_step(setup.model, setup.recipe.data, setup.mesh, metrics)
    source = setup.task.targets.cast(source)
    found: Found = measure_split(step, metrics, state, open_device_split(source, setup.mesh, loading))["ap"]
    hits, counts = match_objects(found)
    # Detections in crowds are neither right nor wrong
    counted = counts & (np.asarray(found.labels) >= 0)
    objects = ((np.asarray(found.true_labels) >= 0) & ~np.asarray(found.crowd)).sum(1)
    score, precision, recall = best_score(np.asarray(found.scores)[counted], hits[counted], int(objects.sum()))
    taken = counted & (np.asarray(found.scores) >= score)
    f1 = 2 * (hits & taken).sum(1) / np.maximum(taken.sum(1) + objects, 1)
    relevant = np.flatnonzero(taken.sum(1) + objects)
    worst = relevant[np.argsort(f1[relevant], kind="stable")[:SHOWN]]
    return BoxPredictions(source, (rank(found),), found, score, precision, recall, tuple(map(int, worst)))


def best_score(scores: np.ndarray, hits: np.ndarray, objects: int) -> tuple[float, float, float]:
    """Return the score from which on F1 of detections (d,) is the largest, and precision and recall there.

    Example:
        >>> best_score(np.array([0.9, 0.2, 0.8]), np.array([True, False, True]), 2)
        (0.8, 1.0, 1.0)
    """
    if not len(scores) or not objects:
        return 1.0, 0.0, 0.0
    order = np.argsort(-scores, kind="stable")
    right, taken = np.cumsum(hits[order]), np.arange(1, len(scores) + 1)
    # Equal scores are taken together
    last = np.flatnonzero(np.append(scores[order][1:] < scores[order][:-1], True))
    place = last[np.argmax(2 * right[last] / (taken[last] + objects))]
    return float(scores[order][place]), float(right[place] / taken[place]), float(right[place] / objects)


def join_boxes(found: list[BoxPredictions]) -> BoxPredictions:
    """Return the predictions of several networks of a recipe as one."""
    return found[0]._replace(ranked=tuple(ranked for one in found for ranked in one.ranked))


def pictures_of(predicted: BoxPredictions) -> list[tuple[np.ndarray, str]]:
    """Return the worst images, each with its objects and with what was detected, and their captions."""
    found, classes, shown = predicted.found, predicted.source.classes, list[tuple[np.ndarray, str]]()
    if not can_show(predicted.source.read(0).image):
        return shown
    for place in predicted.worst:
        image = predicted.source.read(place).image
        there = found.true_labels[place] >= 0
        crowds = zip(found.true_labels[place][there], found.crowd[place][there], strict=True)
        names = [f"{classes[label]}{' (crowd)' if crowd else ''}" for label, crowd in crowds]
        true = draw_boxes(image, found.true_boxes[place][there], found.true_labels[place][there], names, len(classes))
        taken = (found.labels[place] >= 0) & (found.scores[place] >= predicted.score)
        scores, labels = found.scores[place][taken], found.labels[place][taken]
        captions = [f"{classes[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
        drawn = draw_boxes(image, found.boxes[place][taken], labels, captions, len(classes))
        shown += [(true, f"#{place} true"), (drawn, "predicted")]
    return shown
