"""What trained networks answer on the split that they were measured on, and which of it is wrong.

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

from resnet_jax.backend import compiler_options
from resnet_jax.data.augment import normalize
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.evaluation import open_measured
from resnet_jax.predict import ANSWERS
from resnet_jax.report.runs import Variant
from resnet_jax.train.feed import Item, batch_of, evaluation_items, supply
from resnet_jax.train.habits import Feeding
from resnet_jax.train.job import Job
from resnet_jax.train.state import TrainState
from resnet_jax.trained import open_trained

SHOWN = 20  # mistakes
_OUTPUTS = ("multilabel", "mean_squared_error")  # losses of several outputs an image, not of one class

# (state, item of the feed) -> label, answer, probability of the answer, whether the example counts; (b,) each
Answer = Callable[[TrainState, Item], tuple[Array, Array, Array, Array]]


class Answers(NamedTuple):
    """What the networks of a variant answer on every image of the split, each image once."""

    source: Source
    label: np.ndarray  # (n,) int
    answer: np.ndarray  # (runs, n) int, the likeliest class
    probability: np.ndarray  # (runs, n) float, what the network gives it, 0 to 1


class Mistake(NamedTuple):
    """An image that some networks take for another class than it has."""

    place: int  # in the split
    label: int
    answer: int  # the wrong one with the largest probability
    probability: float  # of the wrong answers, their mean
    wrong: int  # networks


def make_answer(job: Job) -> Answer:
    """The jitted function of a network."""
    data, probabilities = job.recipe.data, ANSWERS[job.recipe.loss.name]

    @partial(jax.jit, compiler_options=compiler_options())
    def answer(state: TrainState, item: Item) -> tuple[Array, Array, Array, Array]:
        image, label, mask, *_ = batch_of(item)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        images = normalize(jnp.asarray(image), data.mean, data.std)
        logits = jnp.asarray(job.model.apply(variables, images, train=False)).astype(jnp.float32)
        return jnp.asarray(label), jnp.argmax(logits, -1), probabilities(logits).max(-1), jnp.asarray(mask)

    return answer


def answers_of(
    variant: Variant, *, data_dir: Path | None = None, devices: int | None = None, feeding: Feeding = Feeding()
) -> tuple[Answers | None, list[str]]:
    """The answers of the runs that count, and why some of them have none, a line each.

    They are of what `resnet-jax evaluate` measures: the newest intact checkpoint, and its averages if there are some.
    """
    loss = variant.runs[0].recipe.loss.name
    if loss in _OUTPUTS:
        return None, [f"{variant.label}: no confusion matrix and mistakes, for an image has several outputs ({loss})."]
    found: list[Answers] = []
    notes: list[str] = []
    answer: Answer | None = None
    for run in variant.counted or variant.runs:
        try:
            job, state = open_trained(run.path, devices=devices)
            source = open_measured(run.path, job, run.split, data_dir)
            answer = answer or make_answer(job)
            found.append(_answers(answer, state, source, job, feeding))
        except (InputError, OSError) as error:
            notes.append(f"{run.name}: left out of confusion matrix and mistakes: {error}.")
            continue
        if run.lines and int(state.step) != run.lines[-1]["step"]:
            last = run.lines[-1]["step"]
            notes.append(f"{run.name}: its answers are of step {int(state.step):,}, its last line of {last:,}.")
    if not found:
        return None, notes
    answers, probabilities = (np.concatenate([getattr(one, name) for one in found]) for name in Answers._fields[2:])
    return Answers(found[0].source, found[0].label, answers, probabilities), notes


def _answers(answer: Answer, state: TrainState, source: Source, job: Job, feeding: Feeding) -> Answers:
    """Of one network."""
    parts = [map(np.asarray, answer(state, item)) for item in evaluation_items(supply(source, job.mesh, feeding))]
    label, answered, probability, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert counts.sum() == source.size, f"answered {counts.sum()} of {source.size} examples"
    return Answers(source, label[counts], answered[counts][None], probability[counts][None])


def confusion(answers: Answers) -> np.ndarray:
    """(k, k) int: how often an image of a class, down, was answered with a class, across, by all networks together."""
    classes = len(answers.source.classes)
    labels = np.broadcast_to(answers.label, answers.answer.shape)
    pairs = np.bincount((labels * classes + answers.answer).ravel(), minlength=classes**2)
    return pairs.reshape(classes, classes)


def mistakes(answers: Answers, count: int = SHOWN) -> list[Mistake]:
    """What most networks get wrong and, of that, what they are surest of, first; at most `count`."""
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
    """A class that is taken for another."""

    label: int
    answer: int
    times: int
    share: float  # of the images of the class, 0 to 1


def most_confused(matrix: np.ndarray, count: int = 20) -> list[Pair]:
    """The pairs of classes that are confused most often, most often first."""
    wrong = (matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))).ravel()
    order = np.argsort(-wrong, kind="stable")[:count]
    rows = matrix.sum(1)
    places = ((int(place) // len(matrix), int(place) % len(matrix)) for place in order if wrong[place])
    return [Pair(a, b, int(matrix[a, b]), float(matrix[a, b] / rows[a])) for a, b in places]
