"""Predict the classes of image files."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.data.augment import normalize
from resnet_jax.data.image import decode, resize_crop_as
from resnet_jax.errors import InputError
from resnet_jax.inference.load_model import load_model
from resnet_jax.inference.source import CheckpointChoice, WeightsInfo
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.training.setup import Parts, TrainSetup
from resnet_jax.training.sources import preprocessing_of
from resnet_jax.training.state import TrainState

# Images per call of the network
_BATCH = 64


class Prediction(NamedTuple):
    """Prediction for one image: the likeliest classes, best first, or the outputs in order."""

    image: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    """Probabilities of the classes, or outputs of a regression."""
    measure: str = "probability"
    """Or "output": what the numbers are."""

    def format(self, number: float) -> str:
        """Return one of the numbers as people read it."""
        return f"{number:.2%}" if self.measure == "probability" else f"{number:.4g}"


def predict(
    where: Path | str,
    images: Sequence[Path | str],
    topk: int = 5,
    *,
    weights: WeightsInfo = WeightsInfo(),
    checkpoint: CheckpointChoice = CheckpointChoice(),
    parts: Parts = Parts(),
) -> list[Prediction]:
    """Return the `topk` classes of each image file, by a run or by published weights.

    An image is resized to cover the size that the network was trained on, and its centre is cropped.

    Args:
        where: a run directory, a weights file, "hf:OWNER/NAME" or a published name.
        images: image files.
        topk: number of classes per image.
        weights: what a bare weights file does not say.
        checkpoint: which weights of a run.
        parts: values that the run was given.

    Raises:
        InputError: Run, weights or an image cannot be read; nothing was computed.

    Example:
        >>> predict("runs/digits", ["seven.png"], topk=1)[0].classes  # doctest: +SKIP
        ('7',)
    """
    paths = [Path(image) for image in images]
    check_files(paths, topk)
    setup, state = load_model(where, weights, checkpoint, devices=1, parts=parts)
    pixels = read_images(setup, paths)
    probs = jax.jit(partial(predict_probs, setup, state), compiler_options=compiler_options())
    chunks = [pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH)]
    rows = np.concatenate([np.asarray(probs(chunk)) for chunk in chunks])
    return [top_predictions(setup, path, row, topk) for path, row in zip(paths, rows, strict=True)]


def check_files(images: Sequence[Path], topk: int) -> None:
    """Raise InputError for what is wrong before any weights are fetched."""
    if topk < 1:
        raise InputError(f"--topk is {topk}; it must be positive")
    if not images:
        raise InputError("no image is named; give at least one file")
    for path in images:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name the images in it, such as {path}/*.jpg")
        if not path.is_file():
            raise InputError(f"{path}: no such image file")


def read_images(setup: TrainSetup, images: Sequence[Path]) -> np.ndarray:
    """Return image files as a network takes them, uint8 (n, h, w, c); raise InputError if it takes no images."""
    shape, preprocessing = setup.dataset.image_shape, preprocessing_of(setup.recipe.data)
    if len(shape) != 3:
        taken = " x ".join(map(str, shape))
        raise InputError(f"{setup.recipe.model.name} takes {taken} and no image files; use load_run and model.apply")
    height, width, channels = shape
    return np.stack(
        [resize_crop_as(decode(path, channels), height, width, preprocessing, str(path)) for path in images]
    )


def predict_probs(setup: TrainSetup, state: TrainState, images: Array) -> Array:
    """Return what a network says of uint8 (b, h, w, c): probabilities or outputs, float32 (b, k)."""
    data, variables = setup.recipe.data, {"params": state.params, "batch_stats": state.batch_stats}
    outputs = setup.model.apply(variables, normalize(images, data.mean, data.std), train=False)
    return setup.task.predict(jnp.asarray(outputs))


def top_predictions(setup: TrainSetup, image: Path, probs: np.ndarray, topk: int) -> Prediction:
    """Return the `topk` of the probabilities (k,) of an image with their names; numbers stay in order."""
    if probs.ndim != 1:
        shape = " x ".join(map(str, probs.shape))
        raise InputError(
            f"{image}: the network predicts {shape} values, not one per class; use load_run and model.apply"
        )
    numbers = setup.task.answers == "numbers"
    order = (np.arange(len(probs)) if numbers else np.argsort(-probs, kind="stable"))[:topk]
    names, values = tuple(setup.dataset.classes[i] for i in order), tuple(float(probs[i]) for i in order)
    return Prediction(image, names, values, "output" if numbers else "probability")
