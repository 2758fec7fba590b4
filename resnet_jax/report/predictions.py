"""Predictions of trained networks on their evaluation split: confusion matrix and mistakes.

Axes: n images of the split, k classes.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.data.augment import normalize
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.inference.evaluate import open_eval_source
from resnet_jax.inference.explain import grad_cam
from resnet_jax.inference.load_model import load_model
from resnet_jax.inference.source import CheckpointChoice
from resnet_jax.input_pipeline.device_input import StepInput, evaluation_batches, gather_batch, open_device_split
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.models.resnet import ResNet
from resnet_jax.report.boxes import BoxPredictions, box_predictions, join_boxes
from resnet_jax.report.dense import MaskPredictions, join_masks, mask_predictions
from resnet_jax.report.runs import RecipeGroup
from resnet_jax.report.sheet import can_show
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.training.setup import TrainSetup
from resnet_jax.training.state import TrainState

# Number of mistakes on the page
SHOWN = 20

# How the predictions of networks that say more than one class of an image are made, and joined
_DRAWN: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "dense": (mask_predictions, join_masks),
    "boxes": (box_predictions, join_boxes),
}

# (state, input) -> label, predicted class, its probability, False on padding; (b,) each
Answer = Callable[[TrainState, StepInput], tuple[Array, Array, Array, Array]]


class Predictions(NamedTuple):
    """Predictions of the networks of a recipe for each image of the split."""

    source: Source
    label: np.ndarray  # (n,) int
    answer: np.ndarray  # (runs, n) int, the predicted class
    probability: np.ndarray  # (runs, n) float, 0 to 1, of the predicted class
    sample_rate: int | None = None  # Hz, of sound
    # By index of a mistake: float32 (h, w), 0 to 1, where the first network sees the class of that mistake
    heat: Mapping[int, np.ndarray] = MappingProxyType({})


# What is collected of a recipe
Collected = Predictions | MaskPredictions | BoxPredictions


class Mistake(NamedTuple):
    """An image that at least one network classifies wrongly."""

    place: int  # index in the split
    label: int
    answer: int  # the wrong prediction with the largest probability
    probability: float  # mean over the wrong predictions
    wrong: int  # number of networks that are wrong


def make_answer(setup: TrainSetup) -> Answer:
    """Return the jitted prediction function of a network."""
    data, probabilities = setup.recipe.data, setup.task.predict

    @partial(jax.jit, compiler_options=compiler_options())
    def answer(state: TrainState, item: StepInput) -> tuple[Array, Array, Array, Array]:
        batch = gather_batch(item)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        images = normalize(jnp.asarray(batch.image), data.mean, data.std)
        logits = jnp.asarray(setup.model.apply(variables, images, train=False)).astype(jnp.float32)
        return jnp.asarray(batch.target), jnp.argmax(logits, -1), probabilities(logits).max(-1), jnp.asarray(batch.mask)

    return answer


def collect_predictions(
    variant: RecipeGroup,
    *,
    data_dir: Path | str | None = None,
    devices: int | None = None,
    network: str | None = None,
    loading: DataLoading = DataLoading(),
) -> tuple[Collected | None, list[str]]:
    """Return the predictions of a recipe's runs, and a note for each run that is left out.

    As in `resnet-jax evaluate`, they come from the newest intact checkpoint, and from its EMA if it has one.
    """
    kind = variant.runs[0].task.answers
    if kind not in ("ranked", *_DRAWN):
        why = "its classes are not exclusive"
        return None, [f"{variant.label}: no confusion matrix or mistakes, because {why}."]
    found: list[Any] = []
    notes: list[str] = []
    answer: Answer | None = None
    first: tuple[TrainSetup, TrainState] | None = None
    runs = variant.counted or variant.runs
    if len(runs) > 1 and runs[0].recipe.data.fold:
        # Each fold is evaluated on images of its own
        runs = runs[:1]
        notes.append(f"{variant.label}: confusion matrix and mistakes are those of {runs[0].name} alone.")
    for run in runs:
        try:
            setup, state = load_model(run.path, checkpoint=CheckpointChoice(network=network), devices=devices)
            source = open_eval_source(run.path, setup, run.split, data_dir)
            if kind in _DRAWN:
                found.append(_DRAWN[kind][0](state, source, setup, loading))
            else:
                answer, first = answer or make_answer(setup), first or (setup, state)
                found.append(_answers(answer, state, source, setup, loading))
        except (InputError, OSError) as error:
            notes.append(f"{run.name}: left out of the confusion matrix and mistakes: {error}.")
            continue
        if run.rows and int(state.step) != run.rows[-1]["step"]:
            last = run.rows[-1]["step"]
            notes.append(f"{run.name}: predictions are of step {int(state.step):,}, its last row of {last:,}.")
    if not found:
        return None, notes
    if kind in _DRAWN:
        return _DRAWN[kind][1](found), notes
    several = ("answer", "probability")
    answers, probabilities = (np.concatenate([getattr(one, name) for one in found]) for name in several)
    rate = variant.runs[0].recipe.data.sample_rate
    joined = Predictions(found[0].source, found[0].label, answers, probabilities, rate)
    return joined._replace(heat=heat_maps(*first, joined) if first else {}), notes


def _answers(answer: Answer, state: TrainState, source: Source, setup: TrainSetup, loading: DataLoading) -> Predictions:
    """Return the predictions of one network."""
    parts = [
        map(np.asarray, answer(state, item))
        for item in evaluation_batches(open_device_split(source, setup.mesh, loading))
    ]
    label, answered, probability, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert counts.sum() == source.size, f"answered {counts.sum()} of {source.size} examples"
    return Predictions(source, label[counts], answered[counts][None], probability[counts][None])


def confusion(answers: Predictions) -> np.ndarray:
    """Return the confusion matrix (k, k) int of all networks together: rows true, columns predicted."""
    classes = len(answers.source.classes)
    labels = np.broadcast_to(answers.label, answers.answer.shape)
    pairs = np.bincount((labels * classes + answers.answer).ravel(), minlength=classes**2)
    return pairs.reshape(classes, classes)


def mistakes(answers: Predictions, count: int = SHOWN) -> list[Mistake]:
    """Return the worst mistakes: sorted by number of wrong networks, then by confidence."""
    wrong = answers.answer != answers.label
    times = wrong.sum(0)
    mean = np.where(wrong, answers.probability, 0.0).sum(0) / np.maximum(times, 1)
    surest = np.where(wrong, answers.probability, -1.0).argmax(0)
    order = np.lexsort((np.arange(len(mean)), -mean, -times))[:count]
    return [
        Mistake(
            int(place),
            int(answers.label[place]),
            int(answers.answer[surest[place], place]),
            float(mean[place]),
            int(times[place]),
        )
        for place in order
        if times[place]
    ]


def class_scores(matrix: np.ndarray) -> np.ndarray:
    """Return precision, recall and F1 of each class, (3, k), of a confusion matrix (k, k); NaN if undefined.

    Example:
        >>> class_scores(np.array([[3, 1], [0, 4]])).round(2)
        array([[1.  , 0.8 ],
               [0.75, 1.  ],
               [0.86, 0.89]])
    """
    predicted, true = matrix.sum(0), matrix.sum(1)
    with np.errstate(invalid="ignore"):
        return np.diag(matrix) / [predicted, true, (predicted + true) / 2]


def heat_maps(setup: TrainSetup, state: TrainState, answers: Predictions) -> dict[int, np.ndarray]:
    """Return the Grad-CAM of each mistake on the page, by its index; nothing if a ResNet does not look at images."""
    model, wrong, data = setup.model, mistakes(answers), setup.recipe.data
    images = [answers.source.read(one.place).image for one in wrong]
    if not isinstance(model, ResNet) or not images or not can_show(images[0]):
        return {}

    @partial(jax.jit, compiler_options=compiler_options())
    def look(state: TrainState, images: Array, classes: Array) -> Array:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return grad_cam(model, variables, normalize(images, data.mean, data.std), classes)

    maps = np.asarray(look(state, np.stack(images), np.array([one.answer for one in wrong])))
    return {one.place: heat for one, heat in zip(wrong, maps, strict=True)}


class Pair(NamedTuple):
    """A class that is classified as another one."""

    label: int
    answer: int
    times: int
    share: float  # fraction of the images of the class, 0 to 1


def most_confused(matrix: np.ndarray, count: int = 20) -> list[Pair]:
    """Return the most confused pairs of classes of a confusion matrix (k, k), most frequent first."""
    wrong = (matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))).ravel()
    order = np.argsort(-wrong, kind="stable")[:count]
    rows = matrix.sum(1)
    places = ((int(place) // len(matrix), int(place) % len(matrix)) for place in order if wrong[place])
    return [Pair(a, b, int(matrix[a, b]), float(matrix[a, b] / rows[a])) for a, b in places]
