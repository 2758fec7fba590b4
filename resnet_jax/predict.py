"""Classes of image files."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.backend import compiler_options
from resnet_jax.data.augment import normalize
from resnet_jax.data.decode import decode, resize_crop
from resnet_jax.errors import InputError
from resnet_jax.train.job import Job, fit_of
from resnet_jax.train.state import TrainState
from resnet_jax.train.which import Which
from resnet_jax.trained import open_trained
from resnet_jax.weights.like import Like

_BATCH = 64  # images a call of the network


class Prediction(NamedTuple):
    """What a network says of one image: the likeliest classes, first the best.

    Of a network that was trained on several labels each is by itself. One for regression has outputs in place of
    probabilities, in their own order.
    """

    image: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    measure: str = "probability"  # or "output": what the numbers are

    def written(self, number: float) -> str:
        """One of the numbers as people read it."""
        return f"{number:.2%}" if self.measure == "probability" else f"{number:.4g}"


# Of the logits, by the loss that a network was trained with
ANSWERS: dict[str, Callable[[Array], Array]] = {
    "cross_entropy": jax.nn.softmax,
    "bce": jax.nn.sigmoid,
    "multilabel": jax.nn.sigmoid,
    "mean_squared_error": lambda logits: logits,
}


def predict_images(
    where: Path | str, images: Sequence[Path], top: int = 5, *, like: Like = Like(), which: Which = Which()
) -> list[Prediction]:
    """The `top` classes of each image file by the newest checkpoint of a run, or by published weights.

    An image is scaled to cover the size that the network was trained on, and its centre taken; `like` says how where
    weights do not. Raises InputError, before anything is computed, where run, weights or an image cannot be read.
    """
    check_files(images, top)
    job, state = open_trained(str(where), like, which, devices=1)
    pixels = read_images(job, images)
    ask = jax.jit(partial(answers, job, state), compiler_options=compiler_options())
    chunks = [pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH)]
    rows = np.concatenate([np.asarray(ask(chunk)) for chunk in chunks])
    return [likeliest(job, path, row, top) for path, row in zip(images, rows, strict=True)]


def check_files(images: Sequence[Path], top: int) -> None:
    """Raises InputError for what needs no network to be seen wrong, and so before weights are fetched."""
    if top < 1:
        raise InputError(f"--top is {top}; it must be positive")
    if not images:
        raise InputError("no image is named; give at least one file")
    for path in images:
        if not path.is_file():
            raise InputError(f"{path}: no such image file")


def read_images(job: Job, images: Sequence[Path]) -> np.ndarray:
    """Image files as a network takes them, uint8 (n, h, w, c); raises InputError where it or a file is of no use."""
    shape, fit = job.dataset.image_shape, fit_of(job.recipe.data)
    if len(shape) != 3:
        taken = " x ".join(map(str, shape))
        raise InputError(f"{job.recipe.model.name} takes {taken} and no image files; use load_run and model.apply")
    height, width, channels = shape
    return np.stack(
        [resize_crop(decode(path, channels), height, width, fit.crop, fit.interpolation) for path in images]
    )


def answers(job: Job, state: TrainState, images: Array) -> Array:
    """What a network says of uint8 (b, h, w, c): probabilities or outputs, float32 (b, k)."""
    data, variables = job.recipe.data, {"params": state.params, "batch_stats": state.batch_stats}
    logits = job.model.apply(variables, normalize(images, data.mean, data.std), train=False)
    return ANSWERS[job.recipe.loss.name](jnp.asarray(logits))


def likeliest(job: Job, image: Path, answer: np.ndarray, top: int) -> Prediction:
    """The `top` of the answers (k,) on an image, with their names."""
    regression = job.recipe.loss.name == "mean_squared_error"
    order = (np.arange(len(answer)) if regression else np.argsort(-answer, kind="stable"))[:top]
    names, numbers = tuple(job.dataset.classes[i] for i in order), tuple(float(answer[i]) for i in order)
    return Prediction(image, names, numbers, "output" if regression else "probability")
