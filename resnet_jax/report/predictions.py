"""Predictions of trained networks on their evaluation split: confusion matrix and mistakes.

Axes: n images of the split, k classes.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.data.augment import normalize
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.inference.evaluate import open_eval_source
from resnet_jax.inference.load_model import load_model
from resnet_jax.input_pipeline.device_input import StepInput, evaluation_batches, gather_batch, open_device_split
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.report.runs import RecipeGroup
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.training.setup import TrainSetup
from resnet_jax.training.state import TrainState

# Number of mistakes on the page
SHOWN = 20

# (state, input) -> label, predicted class, its probability, False on padding; (b,) each
Answer = Callable[[TrainState, StepInput], tuple[Array, Array, Array, Array]]


class Predictions(NamedTuple):
    """Predictions of the networks of a recipe for each image of the split."""

    source: Source
    label: np.ndarray  # (n,) int
    answer: np.ndarray  # (runs, n) int, the predicted class
    probability: np.ndarray  # (runs, n) float, 0 to 1, of the predicted class


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
    loading: DataLoading = DataLoading(),
) -> tuple[Predictions | None, list[str]]:
    """Return the predictions of a recipe's runs, and a note for each run that is left out.

    As in `resnet-jax evaluate`, they come from the newest intact checkpoint, and from its EMA if it has one.
    """
    if variant.runs[0].task.answers != "ranked":
        why = "its classes are not exclusive"
        return None, [f"{variant.label}: no confusion matrix and mistakes, because {why}."]
    found: list[Predictions] = []
    notes: list[str] = []
    answer: Answer | None = None
    for run in variant.counted or variant.runs:
        try:
            setup, state = load_model(run.path, devices=devices)
            source = open_eval_source(run.path, setup, run.split, data_dir)
            answer = answer or make_answer(setup)
            found.append(_answers(answer, state, source, setup, loading))
        except (InputError, OSError) as error:
            notes.append(f"{run.name}: left out of confusion matrix and mistakes: {error}.")
            continue
        if run.rows and int(state.step) != run.rows[-1]["step"]:
            last = run.rows[-1]["step"]
            notes.append(f"{run.name}: predictions are of step {int(state.step):,}, its last row of {last:,}.")
    if not found:
        return None, notes
    answers, probabilities = (np.concatenate([getattr(one, name) for one in found]) for name in Predictions._fields[2:])
    return Predictions(found[0].source, found[0].label, answers, probabilities), notes


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
