"""Where in an image a network sees a class: Grad-CAM (Selvaraju et al. 2017, section 3). Axes: b batch, h w c."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from resnet_jax.backend import compiler_options
from resnet_jax.data.augment import normalize
from resnet_jax.errors import InputError, nearest
from resnet_jax.model.resnet import ResNet
from resnet_jax.predict import Prediction, answers, check_files, likeliest, read_images
from resnet_jax.train.job import Job
from resnet_jax.train.state import TrainState
from resnet_jax.train.which import Which
from resnet_jax.trained import open_trained
from resnet_jax.weights.like import Like
from resnet_jax.weights.load import Variables


def grad_cam(
    model: ResNet, variables: Variables, images: Array, classes: Array | None = None, stage: int | None = None
) -> Array:
    """What in each image speaks for a class: (b, h, w) float32, from 0 for nothing to 1 for most.

    A map of a stage is weighted, channel by channel, by the mean of the gradient of the class's logit (equations 1
    and 2). Sequences and video are taken as well, with their own axes in place of h and w.

    Args:
        model: with a head.
        variables: of the model.
        images: (b, h, w, c), normalised.
        classes: integers (b,); None is the likeliest of each image.
        stage: whose map is looked at, 1 for the first; None is the last.
    """
    stage = stage or len(model.depths)
    maps = jnp.asarray(model.apply(variables, images, method="features")[stage - 1])

    def scores(maps: Array) -> Array:
        logits = jnp.asarray(model.apply(variables, maps, stage, method="resume"))
        chosen = logits.argmax(-1) if classes is None else jnp.asarray(classes)
        return jnp.take_along_axis(logits, chosen[:, None], axis=-1).sum()

    gradient, spatial = jax.grad(scores)(maps), tuple(range(1, maps.ndim - 1))
    for_class = nn.relu((gradient.mean(spatial, keepdims=True) * maps).sum(-1)).astype(jnp.float32)
    for_class = _enlarge(for_class, images.shape[1:-1], model.stages()[stage - 1].total_stride)
    most = for_class.max(spatial, keepdims=True)
    return for_class / jnp.where(most > 0, most, 1)


def _enlarge(maps: Array, shape: Sequence[int], stride: int | tuple[int, ...]) -> Array:
    """(b, spatial...) to so many pixels, linearly.

    Cell i lies at pixel i * stride, on which what it sees is centred, for padding is symmetric. To stretch the map over
    the image, as is often done, would move it by half a stride.
    """
    strides = (stride,) * len(shape) if isinstance(stride, int) else stride
    for axis, (size, apart) in enumerate(zip(shape, strides, strict=True), 1):
        pixels, cells = jnp.arange(size, dtype=maps.dtype), apart * jnp.arange(maps.shape[axis], dtype=maps.dtype)
        maps = jnp.apply_along_axis(partial(jnp.interp, pixels, cells), axis, maps)
    return maps


class Explanation(NamedTuple):
    """What a network says of one image, and where it sees one of the classes."""

    prediction: Prediction
    name: str  # of that class
    answer: float  # its probability; of a network for regression, the output
    pixels: np.ndarray  # uint8 (h, w, c), as the network takes the image
    heat: np.ndarray  # float32 (h, w), 0 to 1
    cells: tuple[int, ...]  # (h, w) of the map that it is made of


def explain_images(
    where: Path | str,
    images: Sequence[Path],
    name: str | None = None,
    *,
    stage: int | None = None,
    top: int = 5,
    like: Like = Like(),
    which: Which = Which(),
) -> list[Explanation]:
    """Where in each image file a run or published weights see the class of that `name`, or else the likeliest one.

    Everything else is as in `predict_images`, and so is what it raises.
    """
    check_files(images, top)
    job, state = open_trained(str(where), like, which, devices=1)
    number = None if name is None else _number(job, name)
    last = len(job.model.depths)
    if stage is not None and not 1 <= stage <= last:
        raise InputError(f"--stage is {stage}; {job.recipe.model.name} has stages 1 to {last}")
    pixels = read_images(job, images)
    look = jax.jit(partial(_look, job, state, stage), compiler_options=compiler_options())
    cells = np.ceil(np.array(pixels.shape[1:3]) / job.model.stages()[(stage or last) - 1].total_stride)
    found = []
    for path, image in zip(images, pixels, strict=True):
        row, chosen, heat = (np.asarray(x[0]) for x in look(image[None], number))
        said, seen = likeliest(job, path, row, top), job.dataset.classes[chosen]
        found.append(Explanation(said, seen, float(row[chosen]), image, heat, tuple(map(int, cells))))
    return found


def _look(job: Job, state: TrainState, stage: int | None, images: Array, number: Any) -> tuple[Array, Array, Array]:
    """Answers (b, k), the class that is looked for (b,), and where it is (b, h, w)."""
    rows, data = answers(job, state, images), job.recipe.data
    chosen = rows.argmax(-1) if number is None else jnp.full(len(images), number)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return rows, chosen, grad_cam(job.model, variables, normalize(images, data.mean, data.std), chosen, stage)


def _number(job: Job, name: str) -> int:
    classes = job.dataset.classes
    if name in classes:
        return classes.index(name)
    hint = nearest(name, classes) or f"; it is one of {len(classes):,}, such as {', '.join(classes[:3])}"
    raise InputError(f"unknown class {name!r}{hint}")


def draw_explanations(found: Sequence[Explanation], path: Path) -> None:
    """Writes a PNG, a row for each image: as the network takes it, and under what speaks for the class, in colour.

    Raises InputError where it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.5 * len(found)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for (left, right), e in zip(figure.subplots(len(found), 2, squeeze=False), found, strict=True):
        left.imshow(e.pixels.squeeze(-1) if e.pixels.shape[-1] == 1 else e.pixels, cmap="gray", vmin=0, vmax=255)
        right.imshow(overlaid(e))
        left.set_title(e.prediction.image.name, loc="left", fontsize=10)
        right.set_title(f"{e.name}  {e.prediction.written(e.answer)}", loc="left", fontsize=10, fontweight="bold")
        for axes in (left, right):
            axes.set_axis_off()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written ({error}); name another picture with --out") from error


def overlaid(e: Explanation) -> np.ndarray:
    """The image in grey under its heat in colour: float32 (h, w, 3) in 0 to 1."""
    from matplotlib import colormaps

    grey = e.pixels.astype(np.float32).mean(-1, keepdims=True) / 255
    color, opacity = colormaps["inferno"](e.heat)[..., :3], 0.75 * e.heat[..., None]
    return ((1 - opacity) * grey + opacity * color).astype(np.float32)
