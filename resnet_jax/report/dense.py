"""Predictions of a class for each pixel: confusion over the evaluation split, and its worst images."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.data.augment import normalize
from resnet_jax.data.masks import IGNORE, overlay, palette
from resnet_jax.data.source import Source
from resnet_jax.input_pipeline.device_input import StepInput, evaluation_batches, gather_batch, open_device_split
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.report.sheet import can_show
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.tasks.losses import main_output
from resnet_jax.tasks.metric import add, empty
from resnet_jax.tasks.metrics import confusion
from resnet_jax.training.setup import TrainSetup
from resnet_jax.training.state import TrainState

# Number of images on the page
SHOWN = 8


class MaskPredictions(NamedTuple):
    """Predictions of the networks of a recipe for the pixels of each image of the split."""

    source: Source
    matrix: np.ndarray  # (k, k) int64, pixels by true (rows) and predicted class, of all networks
    accuracy: np.ndarray  # (runs, n) float, of the labelled pixels of an image; NaN if it has none
    worst: tuple[int, ...]  # indices of the images that the first network predicts worst
    masks: tuple[np.ndarray, ...]  # its predictions for these, uint8 (h, w)


def mask_predictions(state: TrainState, source: Source, setup: TrainSetup, loading: DataLoading) -> MaskPredictions:
    """Return the predictions of one network."""
    data = setup.recipe.data
    source = setup.task.targets.cast(source)

    @partial(jax.jit, compiler_options=compiler_options())
    def measure(state: TrainState, item: StepInput) -> tuple[Array, ...]:
        batch = gather_batch(item)
        masks, mask, images = (jnp.asarray(each) for each in (batch.target, batch.mask, batch.image))
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        outputs = main_output(setup.model.apply(variables, normalize(images, data.mean, data.std), train=False))
        labelled, answers = masks < outputs.shape[-1], jnp.argmax(outputs, -1).astype(jnp.uint8)
        hits, pixels = labelled & (answers == masks), tuple(range(1, masks.ndim))
        return confusion(outputs, masks, mask), hits.sum(pixels), labelled.sum(pixels), answers, mask

    classes = len(source.classes)
    matrix, accuracy = empty(np.zeros((classes, classes), np.int32)), np.empty(0)
    # The predictions of all images would be too many to keep
    worst: dict[int, np.ndarray] = {}
    for item in evaluation_batches(open_device_split(source, setup.mesh, loading)):
        counts, hits, labelled, answers, mask = jax.device_get(measure(state, item))
        matrix = add(matrix, counts)
        with np.errstate(invalid="ignore"):
            known = worst | dict(enumerate(answers[mask], len(accuracy)))
            accuracy = np.concatenate([accuracy, (hits / labelled)[mask]])
        worst = {int(place): known[place] for place in np.argsort(accuracy, kind="stable")[:SHOWN]}
    return MaskPredictions(source, matrix, accuracy[None], tuple(worst), tuple(worst.values()))


def join_masks(found: list[MaskPredictions]) -> MaskPredictions:
    """Return the predictions of several networks of a recipe as one."""
    matrix = np.sum([one.matrix for one in found], axis=0)
    return found[0]._replace(matrix=matrix, accuracy=np.concatenate([one.accuracy for one in found]))


def pictures_of(found: MaskPredictions) -> list[tuple[np.ndarray, str]]:
    """Return the worst images, each plain, with its mask and with its prediction, and their captions."""
    colors, shown = palette(len(found.source.classes)), list[tuple[np.ndarray, str]]()
    if not can_show(found.source.read(0).image):
        return shown
    for place, predicted in zip(found.worst, found.masks, strict=True):
        image, target = found.source.read(place)
        # As the target has it, what is not labelled stays plain
        answered = np.where(target == IGNORE, IGNORE, predicted).astype(np.uint8)
        drawn = (image, ""), (overlay(image, target, colors), "true"), (overlay(image, answered, colors), "predicted")
        shown += [(picture, f"#{place} {what}".strip()) for picture, what in drawn]
    return shown
